"""The audit log's chain: every change of a row is found, an erased detail is not a change."""

import json

import pytest
from sqlalchemy import delete, select, update

from storage import audit
from storage.db import Database
from storage.errors import Missing
from storage.schema import audit as table


def fill(database: Database, count: int = 6, organization: str | None = "org_a") -> list[int]:
    return [
        database.write(
            lambda c, n=number: audit.append(
                c,
                organization_id=organization,
                actor=f"key_{n}",
                action="inbox.add",
                object=f"inb_{n}",
                detail=json.dumps({"address": f"user{n}@example.org", "odd": "ü\u2028"}),
                at=1000 + n,
            )
        )
        for number in range(count)
    ]


def verify(database: Database) -> audit.Verification:
    return database.read(audit.verify)


def test_an_empty_log_is_whole(database: Database) -> None:
    assert verify(database) == audit.Verification(0, 0, audit.GENESIS)


def test_an_untouched_log_is_whole_and_its_head_moves_with_each_row(database: Database) -> None:
    fill(database, 3)
    before = verify(database)
    (last,) = fill(database, 1)
    after = verify(database)
    assert (before.broken_seq, after.broken_seq) == (None, None)
    assert (after.rows, after.head_seq) == (4, last)
    assert before.head != after.head


@pytest.mark.parametrize(
    "change",
    [
        {"detail": '{"address": "else@example.org"}'},
        {"actor": "key_9"},
        {"action": "inbox.remove"},
        {"object": "inb_9"},
        {"organization_id": "org_b"},
        {"organization_id": None},
        {"at": 999},
        {"salt": bytes(32)},
        {"commitment": bytes(32)},
        {"chain": bytes(32)},
        {"salt": None},
        {"detail": None},
    ],
    ids=lambda change: "-".join(change) + str(next(iter(change.values())) is None),
)
def test_a_changed_row_is_named(database: Database, change: dict[str, object]) -> None:
    seqs = fill(database)
    database.write(lambda c: c.execute(update(table).where(table.c.seq == seqs[2]).values(**change)) and None)
    found = verify(database)
    assert (found.broken_seq, found.head_seq, found.rows) == (seqs[2], seqs[1], 2)
    assert found.reason


def test_a_removed_row_breaks_the_one_after_it(database: Database) -> None:
    seqs = fill(database)
    database.write(lambda c: c.execute(delete(table).where(table.c.seq == seqs[3])) and None)
    assert verify(database).broken_seq == seqs[4]


def test_swapped_rows_break_the_chain(database: Database) -> None:
    seqs = fill(database)

    def swap(connection) -> None:
        rows = [
            dict(connection.execute(select(table).where(table.c.seq == seq)).mappings().one())
            for seq in seqs[1:3]
        ]
        for row, seq in zip(rows, reversed(seqs[1:3]), strict=True):
            row.pop("seq")
            connection.execute(update(table).where(table.c.seq == seq).values(**row))

    database.write(swap)
    assert verify(database).broken_seq == seqs[1]


def test_an_erased_detail_leaves_the_chain_whole_and_its_facts_protected(database: Database) -> None:
    seqs = fill(database)
    database.write(lambda c: audit.erase_detail(c, seq=seqs[2]))
    assert verify(database).broken_seq is None
    (entry,) = [row for row in entries(database) if row.seq == seqs[2]]
    assert entry.detail is None
    database.write(
        lambda c: c.execute(update(table).where(table.c.seq == seqs[2]).values(actor="x")) and None
    )
    assert verify(database).broken_seq == seqs[2]


def test_erasing_a_row_that_is_not_there_says_so(database: Database) -> None:
    with pytest.raises(Missing):
        database.write(lambda c: audit.erase_detail(c, seq=99))


def entries(database: Database, **narrowed) -> list[audit.AuditEntry]:
    return database.read(lambda c: audit.entries(c, **{"organization_id": "org_a", **narrowed}))


def test_entries_are_one_organizations_newest_first(database: Database) -> None:
    ours = fill(database, 3)
    fill(database, 2, organization="org_b")
    fill(database, 1, organization=None)
    assert [entry.seq for entry in entries(database)] == ours[::-1]
    assert [entry.seq for entry in entries(database, before=ours[1])] == [ours[0]]
    assert len(entries(database, organization_id=None)) == 1
    assert json.loads(entries(database)[0].detail or "")["address"] == "user2@example.org"


def test_a_long_log_is_checked_in_steps(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_STEP", 4)
    seqs = fill(database, 11)
    assert verify(database).rows == 11
    database.write(lambda c: c.execute(update(table).where(table.c.seq == seqs[8]).values(at=5)) and None)
    assert verify(database).broken_seq == seqs[8]
