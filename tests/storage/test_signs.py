"""What owners do, noted with the act and learnt from once, on both databases."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Connection

from storage import mailboxes, schema, signs
from storage.db import Database
from storage.mailboxes import FlagMode
from storage.records import Envelope, Peer, Recipient, Source
from storage.signs import JUNK, NOT_JUNK, WELCOME, WRITTEN, Due, Sign
from storage.store import Store
from tests.storage.mailroom import MAILBOX, NOW, Mailroom, open_mailroom
from tests.storage.samples import AT, ORGANIZATION, deliver, fill, opened, record, remote


@pytest.fixture
def room(database: Database, tmp_path) -> Mailroom:
    return open_mailroom(database, tmp_path)


def noted(room: Mailroom) -> list[tuple[str, str]]:
    return [(one.message_id, one.kind) for one in room.read(lambda c: signs.due(c, limit=100))]


def learn(room: Mailroom, *found: Sign) -> list[Sign]:
    return room.write(lambda c: signs.learn(c, found))


def sign(
    message_id: str, kind: str = JUNK, *, of: Sequence[str] = ("address a@b", "domain b"), at: int = NOW
) -> Sign:
    return Sign(MAILBOX, message_id, kind, at, tuple(of))


def kinds(room: Mailroom) -> dict[str, str]:
    return dict(room.rows("SELECT correspondent, kind FROM signs"))


def test_an_act_is_noted_in_its_own_transaction(room: Mailroom) -> None:
    first, second = room.add(2)
    folders = room.folders["INBOX"].id, room.folders["Junk"].id

    def fails(connection) -> None:
        mailboxes.move(
            connection, maildir=room.maildir, source_id=folders[0], target_id=folders[1], uids=[first], at=NOW
        )
        raise LookupError

    with pytest.raises(LookupError):
        room.write(fails)
    assert noted(room) == []
    room.write(
        lambda c: mailboxes.store_flags(
            c, folder_id=folders[0], uids=[first, second], mode=FlagMode.ADD, flags=0, keywords=("$Junk",)
        )
    )
    assert [kind for _, kind in noted(room)] == [JUNK, JUNK]
    # What is so already says nothing new.
    room.write(
        lambda c: mailboxes.store_flags(
            c, folder_id=folders[0], uids=[first, second], mode=FlagMode.ADD, flags=0, keywords=("$Junk",)
        )
    )
    assert len(noted(room)) == 2


def test_an_act_is_taken_by_one_learner(room: Mailroom) -> None:
    room.write(lambda c: signs.note(c, mailbox_id=MAILBOX, message_ids=["m1", "m2"], kind=JUNK, at=NOW))
    seqs = [one.seq for one in room.read(lambda c: signs.due(c, limit=100))]
    assert room.write(lambda c: signs.claim(c, seqs)) == set(seqs)
    assert room.write(lambda c: signs.claim(c, seqs)) == set()


def test_a_message_gives_one_sign_and_the_last_word_counts(room: Mailroom) -> None:
    assert len(learn(room, sign("m1"), sign("m1"))) == 1
    assert learn(room, sign("m1", at=NOW + 5)) == []
    assert kinds(room) == {"address a@b": JUNK, "domain b": JUNK}
    assert learn(room, sign("m1", WELCOME))
    assert kinds(room) == {"address a@b": WELCOME, "domain b": WELCOME}
    assert learn(room, sign("m1", NOT_JUNK, of=())) == []  # it was none any more
    assert learn(room, sign("m1", JUNK)) and learn(room, sign("m1", NOT_JUNK, of=()))
    assert kinds(room) == {}


def test_writing_again_renews_once_a_day_and_never_adds(room: Mailroom) -> None:
    later = NOW + signs.RENEWED
    for at, expected in ((NOW, NOW), (NOW + 7, NOW), (later, later)):
        learn(room, sign("to a@b", WRITTEN, at=at))
        found = room.read(lambda c: signs.of(c, mailbox_id=MAILBOX, correspondent="address a@b"))
        assert found == ((WRITTEN, expected),)


def test_a_closed_or_unknown_inbox_learns_nothing(room: Mailroom) -> None:
    assert learn(room, Sign("inb_gone", "m1", JUNK, NOW, ("address a@b",))) == []
    room.write(lambda c: c.execute(schema.mailboxes.update().values(state="closed")) and None)
    assert learn(room, sign("m1")) == []


def test_inboxes_with_signs_are_told(room: Mailroom) -> None:
    assert room.read(lambda c: signs.inboxes(c, limit=10)) == []
    learn(room, sign("m1"))
    assert room.read(lambda c: signs.inboxes(c, limit=10)) == [MAILBOX]
    room.write(lambda c: signs.erase(c, mailbox_id=MAILBOX))
    assert room.read(lambda c: signs.inboxes(c, limit=10)) == []


def test_a_correspondent_of_any_length_has_its_place(room: Mailroom) -> None:
    long = "address " + "x" * 5000
    learn(room, sign("m1", of=(long,)))
    assert room.read(lambda c: signs.of(c, mailbox_id=MAILBOX, correspondent=long)) == ((JUNK, NOW),)


@pytest.mark.parametrize(
    ("words", "is_removal", "kind"),
    [
        (["$Junk"], False, JUNK),
        (["x", "JUNK"], False, JUNK),
        (["$NotJunk"], False, WELCOME),
        (["$Junk", "$NotJunk"], False, JUNK),
        (["$Junk"], True, NOT_JUNK),
        (["NonJunk"], True, signs.NOT_WELCOME),
        (["Junkyard", "$Forwarded"], False, ""),
        ([], False, ""),
    ],
)
def test_keywords_that_tell_something(words, is_removal, kind) -> None:
    assert signs.marked(words, is_removal=is_removal) == kind


@pytest.fixture
def store(database_url: str, tmp_path: Path) -> Iterator[Store]:
    with opened(tmp_path / "data", database_url) as made:
        fill(made.database)
        yield made


def due(store: Store) -> list[Due]:
    return store.database.read(lambda c: signs.due(c, limit=10))


def test_of_a_strangers_message_is_known_who_vouched_and_where_it_lies(store: Store, tmp_path: Path) -> None:
    item = record()
    deliver(store, item)
    acts = [
        Due(1, "inb_0", item.message_id, JUNK, AT),
        Due(2, "inb_1", item.message_id, JUNK, AT),  # not in that inbox
        Due(3, "inb_0", "msg_gone", JUNK, AT),
    ]
    found, *others = store.database.read(lambda c: signs.about(c, acts=acts))
    assert others == [None, None]
    assert isinstance(found, signs.Received)
    assert (found.client, found.verdicts[0].domain) == ("192.0.2.1", "a.example")
    (place,) = found.places
    path = store.maildir.folder_path("inb_0", place.folder) / place.file
    assert path.read_bytes()[place.prefix_octets :] == item.content


@pytest.mark.parametrize("source", [Source.LOCAL, Source.APPEND, Source.NOTICE])
def test_what_did_not_come_from_a_stranger_tells_nothing(store: Store, source: Source) -> None:
    item = record(source=source)
    deliver(store, item)
    acts = [Due(1, "inb_0", item.message_id, JUNK, AT)]
    assert store.database.read(lambda c: signs.about(c, acts=acts)) == [None]


@pytest.mark.parametrize(
    ("identity", "reverse_path", "expected"),
    [
        ("crd_1", "other@b.example", "inb_1"),
        ("key_1", "other@b.example", "inb_2"),
        ("key_org", "INB_0@b.example", "inb_0"),
        ("key_org", "other@b.example", None),
        (None, None, None),
    ],
)
def test_sent_mail_is_of_the_inbox_that_logged_in_or_wrote_it(
    store: Store, identity: str | None, reverse_path: str | None, expected: str | None
) -> None:
    def logins(connection: Connection) -> None:
        key = {
            "organization_id": ORGANIZATION, "name": "k", "prefix": "k", "scopes": "", "created_at": 1,
        }  # fmt: skip
        connection.execute(
            schema.credentials.insert().values(
                id="crd_1",
                organization_id=ORGANIZATION,
                mailbox_id="inb_1",
                name="c",
                password_hash="x",
                scram_verifier="",
                created_at=1,
            )
        )
        for number, (key_id, mailbox_id) in enumerate((("key_1", "inb_2"), ("key_org", None))):
            values = {**key, "id": key_id, "mailbox_id": mailbox_id, "key_hash": bytes([number])}
            connection.execute(schema.api_keys.insert().values(values))

    store.database.write(logins)
    envelope = Envelope(reverse_path, (Recipient("ada@far.example"),))
    item = record(
        source=Source.SUBMISSION,
        local=(),
        remote=(remote(),),
        envelope=envelope,
        peer=Peer("", identity=identity),
    )
    deliver(store, item)
    (act,) = due(store)
    assert (act.mailbox_id, act.kind, act.message_id) == (None, WRITTEN, item.message_id)
    (found,) = store.database.read(lambda c: signs.about(c, acts=[act]))
    assert (found and found.mailbox_id) == expected
    if found is not None:
        assert found.recipients == ("ada@far.example",)


def test_too_many_signs_are_trimmed_to_the_newest(room: Mailroom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "LIMIT", 4)
    monkeypatch.setattr(signs, "SLACK", 2)
    learn(room, *[sign(f"m{number}", at=NOW + number) for number in range(3)])
    room.write(lambda c: signs.trim(c, mailbox_ids={MAILBOX}))
    assert len(room.rows("SELECT at FROM signs")) == 6
    learn(room, sign("m3", at=NOW + 3))
    room.write(lambda c: signs.trim(c, mailbox_ids={MAILBOX}))
    assert sorted(row[0] - NOW for row in room.rows("SELECT at FROM signs")) == [2, 2, 3, 3]
