"""The arithmetic of message numbers, against a model of a client that believes what it is told."""

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from server.imap.commands import Access
from server.imap.view import Contents, Rows, View
from storage.records import Flag


def contents(uids=(), *, recent=0) -> Contents:
    rows = Rows(array("Q", uids), array("Q", [1] * len(uids)), array("L", [0] * len(uids)))
    return Contents(
        rows=rows,
        keywords={},
        uidvalidity=1,
        uidnext=(uids[-1] if uids else 0) + 1,
        highestmodseq=1,
        recent=recent,
    )


def a_view(folder: Contents, access: Access = Access.READ_WRITE) -> View:
    return View(folder, access, lambda: None)


class Client:
    """Keeps the UIDs by message number as a client would, from what it is told."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.uids: list[int | None] = list(view.rows.uids)
        self.flags: dict[int, int] = dict.fromkeys(view.rows.uids, 0)

    def sync(self, *, expunge: bool) -> None:
        updates = self.view.sync(expunge=expunge)
        assert expunge or not updates.expunged
        for number in updates.expunged:
            del self.uids[number - 1]
        if updates.exists is not None:
            assert updates.exists >= len(self.uids), "EXISTS never shrinks a mailbox"
            self.uids += [None] * (updates.exists - len(self.uids))
        for number, uid, flags, _, _ in updates.changed:
            assert self.uids[number - 1] in (uid, None)
            self.uids[number - 1] = uid
            self.flags[uid] = flags
        assert len(self.uids) == self.view.count
        for number in range(1, self.view.count + 1):
            real = self.view.rows.uids[number - 1]
            known = self.uids[number - 1]
            assert known in (None, real), "a number means what the client thinks it means"
            if known is None:
                self.uids[number - 1] = real
                self.flags[real] = self.view.state(number - 1)[0]
            assert self.view.number(real) == number


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("new"), st.integers(1, 3)),
        st.tuples(st.just("expunge"), st.integers(0, 30)),
        st.tuples(st.just("flag"), st.integers(0, 30)),
        st.tuples(st.just("sync"), st.tuples(st.integers(0, 1), st.booleans())),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 5), STEPS)
def test_clients_stay_in_step_whatever_happens_between(first, steps):
    folder = contents(tuple(range(1, first + 1)))
    clients = [Client(a_view(folder)), Client(a_view(folder))]
    flags = dict.fromkeys(range(1, first + 1), 0)
    for kind, value in steps:
        modseq = folder.highestmodseq + 1
        if kind == "new":
            rows = [(folder.uidnext + number, modseq, 0, ()) for number in range(value)]
            flags.update({row[0]: 0 for row in rows})
            folder.apply(highestmodseq=modseq, uidnext=folder.uidnext + value, changed=rows, vanished=())
        elif kind == "expunge" and value in flags:
            del flags[value]
            folder.apply(highestmodseq=modseq, uidnext=folder.uidnext, changed=(), vanished=[value])
        elif kind == "flag" and value in flags:
            flags[value] ^= Flag.SEEN
            folder.apply(
                highestmodseq=modseq,
                uidnext=folder.uidnext,
                changed=[(value, modseq, flags[value], ())],
                vanished=(),
            )
        elif kind == "sync":
            clients[value[0]].sync(expunge=value[1])
    for client in clients:
        client.sync(expunge=True)
        assert client.uids == sorted(flags)
        assert {uid: client.flags[uid] for uid in flags} == flags


@given(st.sets(st.integers(1, 40)), st.sets(st.integers(1, 40)))
def test_rows_without_some_uids_keep_the_others_in_order(uids, gone):
    ordered = sorted(uids)
    rows = Rows(array("Q", ordered), array("Q", ordered), array("L", ordered)).without(gone)
    expected = [uid for uid in ordered if uid not in gone]
    assert list(rows.uids) == list(rows.modseqs) == list(rows.flags) == expected


def test_view_that_lags_behind_the_log_compares_instead():
    folder = contents((1, 2, 3))
    client = Client(a_view(folder))
    for number in range(3000):  # more than the log keeps
        modseq = folder.highestmodseq + 1
        folder.apply(
            highestmodseq=modseq, uidnext=folder.uidnext, changed=[(2, modseq, number % 2, ())], vanished=()
        )
    folder.apply(highestmodseq=folder.highestmodseq + 1, uidnext=4, changed=(), vanished=[1])
    assert folder.since(client.view.position) is None
    client.sync(expunge=True)
    assert client.uids == [2, 3]


def test_recent_belongs_to_the_first_session_that_may_write():
    folder = contents((1, 2, 3), recent=2)
    looking = a_view(folder, Access.READ_ONLY)
    assert looking.recent() == 2
    first, second = a_view(folder), a_view(folder)
    assert (first.recent(), second.recent()) == (2, 0)
    folder.apply(highestmodseq=2, uidnext=5, changed=[(4, 2, 0, ())], vanished=())
    updates = second.sync(expunge=True)
    assert (updates.exists, updates.recent) == (4, 1)
    assert first.sync(expunge=True).recent == 2
    assert second.is_recent(4) and not first.is_recent(4)


def test_own_silent_changes_are_not_told_but_later_ones_are():
    folder = contents((1,))
    view = a_view(folder)
    folder.apply(highestmodseq=2, uidnext=2, changed=[(1, 2, 1, ())], vanished=())
    view.quiet[1] = 2
    assert view.sync(expunge=True).changed == []
    folder.apply(highestmodseq=3, uidnext=2, changed=[(1, 3, 0, ())], vanished=())
    assert view.sync(expunge=True).changed == [(1, 1, 0, (), 3)]


def test_new_keyword_is_noticed():
    folder = contents((1,))
    view = a_view(folder)
    folder.apply(highestmodseq=2, uidnext=2, changed=[(1, 2, 0, ("Work",))], vanished=())
    assert view.sync(expunge=True).keywords_grew
    assert not view.sync(expunge=True).keywords_grew


def test_older_news_is_passed_over():
    folder = contents((1,))
    folder.apply(highestmodseq=1, uidnext=1, changed=(), vanished=[1])
    assert list(folder.rows.uids) == [1]
