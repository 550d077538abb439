"""Messages as lists and rows: newest first, by cursor, inside one inbox and organization."""

import json

import pytest
from sqlalchemy import insert

from storage import accounts, events, folders, messages, schema
from storage.db import Database
from storage.records import Event, Mailbox, Source
from tests.storage.tenants import OTHER, OURS, tenants

AT = 1_800_000_000_000_000


@pytest.fixture
def inboxes(database: Database) -> tuple[Mailbox, Mailbox, Mailbox]:
    """Two inboxes of ours and one of the others."""
    tenants(database)

    def unit(connection) -> tuple[Mailbox, ...]:
        for owner, name in ((OURS, "ours.example"), (OTHER, "other.example")):
            accounts.add_domain(connection, organization_id=owner, name=name, at=AT)
        return tuple(
            accounts.add_mailbox(connection, organization_id=owner, address=address, at=AT)
            for owner, address in (
                (OURS, "one@ours.example"),
                (OURS, "two@ours.example"),
                (OTHER, "x@other.example"),
            )
        )

    return database.write(unit)


def put(
    database: Database,
    mailbox: Mailbox,
    number: int,
    *,
    folder: str = "INBOX",
    source: Source = Source.MX,
    sender: str | None = "a@far.example",
    has_message: bool = False,
    uid: int | None = None,
) -> str:
    """Insert a message's rows as apply would, without a file."""
    message_id = f"msg_{number:026}"

    def unit(connection) -> None:
        if not has_message:
            row = {
                "id": message_id,
                "organization_id": mailbox.organization_id,
                "source": source.value,
                "accepted_at": AT + number,
                "octets": 100,
                "digest": b"\x01" * 32,
                "reverse_path": sender,
                "envelope": json.dumps({"recipients": [{"address": mailbox.address}]}),
                "peer": "{}",
                "decision": "{}",
                "verdicts": "[]",
                "trace": b"",
                "message_id_header": f"<{number}@far.example>",
                "subject": f"Größe {number}",
                "from_": "a@far.example",
                "to": mailbox.address,
                "sent_at": 0,
                "thread_id": "thr_1",
                "spooled": 0,
            }
            connection.execute(insert(schema.messages), row)
            connection.execute(
                insert(schema.renditions),
                {
                    "message_id": message_id,
                    "header_octets": 1,
                    "envelope": b"",
                    "body": b"",
                    "bodystructure": b"",
                    "parts": b"",
                    "preview": f"p{number}",
                    "attachments": 2,
                    "text": "",
                },
            )
        found = folders.find_folder(connection, mailbox_id=mailbox.id, name=folder)
        connection.execute(
            insert(schema.entries),
            {
                "folder_id": found.id,
                "uid": number if uid is None else uid,
                "modseq": number,
                "message_id": message_id,
                "flags": 5,
                "keywords": "one two",
                "internal_date": AT + number,
                "octets": 120,
                "prefix_octets": 20,
                "name": f"n{number}",
                "subdirectory": "new",
                "mirrored": "",
                "mirror_due": 0,
            },
        )

    database.write(unit)
    return message_id


def page(database: Database, mailbox: Mailbox, organization: str = OURS, **more):
    return database.read(
        lambda c: messages.page(c, organization_id=organization, mailbox_id=mailbox.id, **more)
    )


def test_a_page_is_newest_first_below_its_cursor(database: Database, inboxes) -> None:
    made = [put(database, inboxes[0], number) for number in range(1, 6)]
    put(database, inboxes[1], 9)
    first = page(database, inboxes[0], limit=2)
    assert [line.message_id for line in first] == [made[4], made[3]]
    rest = page(database, inboxes[0], limit=10, before_uid=first[-1].uid)
    assert [line.message_id for line in rest] == made[2::-1]
    line = first[0]
    assert (line.subject, line.to, line.preview, line.attachments) == ("Größe 5", "one@ours.example", "p5", 2)
    assert (line.flags, line.keywords, line.octets, line.internal_date) == (5, "one two", 120, AT + 5)


def test_a_page_is_never_longer_than_the_limit_of_pages(database: Database, inboxes) -> None:
    put(database, inboxes[0], 1)
    assert len(page(database, inboxes[0], limit=-5)) == 1
    assert len(page(database, inboxes[0], limit=10**9)) == 1


@pytest.mark.parametrize("folder", ["Nowhere", "inbox", "", "%", "INBOX' OR '1'='1"])
def test_a_folder_that_is_not_there_has_no_page(database: Database, inboxes, folder: str) -> None:
    put(database, inboxes[0], 1)
    assert page(database, inboxes[0], folder=folder) is None


def test_another_organization_has_no_page_of_ours(database: Database, inboxes) -> None:
    put(database, inboxes[0], 1)
    assert page(database, inboxes[0], OTHER) is None
    assert page(database, inboxes[2]) is None
    assert page(database, inboxes[1]) == []


def test_a_message_is_found_where_it_came_first_and_in_all_its_places(database: Database, inboxes) -> None:
    message_id = put(database, inboxes[0], 1)
    put(database, inboxes[0], 1, folder="Archive", has_message=True, uid=7)
    put(database, inboxes[1], 1, has_message=True)
    scope = {"organization_id": OURS, "mailbox_id": inboxes[0].id, "message_id": message_id}
    found = database.read(lambda c: messages.find(c, **scope))
    assert (found.folder, found.entry.uid, found.entry.keywords) == ("INBOX", 1, ("one", "two"))
    assert (found.message.octets, found.entry.octets, found.message.digest) == (100, 120, "01" * 32)
    assert [uid for _, uid in database.read(lambda c: messages.places(c, **scope))] == [1, 7]
    for changed in ({"organization_id": OTHER}, {"mailbox_id": inboxes[2].id}, {"message_id": "msg_x"}):
        narrowed = {**scope, **changed}
        assert database.read(lambda c, n=narrowed: messages.find(c, **n)) is None
        assert database.read(lambda c, n=narrowed: messages.places(c, **n)) == []


def test_facts_are_of_one_organization_alone(database: Database, inboxes) -> None:
    message_id = put(database, inboxes[0], 1)
    row = database.read(lambda c: messages.facts(c, organization_id=OURS, message_id=message_id))
    assert row.subject == "Größe 1"
    assert database.read(lambda c: messages.facts(c, organization_id=OTHER, message_id=message_id)) is None
    assert database.read(lambda c: messages.organization_of(c, message_id=message_id)) == OURS
    assert database.read(lambda c: messages.organization_of(c, message_id="msg_x")) is None
    assert database.read(lambda c: accounts.message_exists(c, message_id=message_id)) is True


def test_the_operators_facts_are_json(database: Database, inboxes) -> None:
    message_id = put(database, inboxes[0], 1)
    found = database.read(lambda c: events.message_facts(c, message_or_delivery_id=message_id))
    assert json.loads(json.dumps(found))["envelope"]["recipients"][0]["address"] == "one@ours.example"


@pytest.mark.parametrize(
    ("source", "sender", "expected"),
    [
        (Source.API, "one@ours.example", True),
        (Source.SUBMISSION, "one@ours.example", True),
        (Source.MX, "one@ours.example", False),
        (Source.API, "two@ours.example", False),
        (Source.API, None, False),
    ],
)
def test_a_sender_is_who_proved_it(
    database: Database, inboxes, source: Source, sender: str | None, *, expected: bool
) -> None:
    message_id = put(database, inboxes[1], 1, source=source, sender=sender)
    asked = {"message_id": message_id, "mailbox_id": inboxes[0].id}
    assert database.read(lambda c: messages.sent_by(c, **asked)) is expected


def test_a_message_of_another_organization_is_nobodys_here(database: Database, inboxes) -> None:
    message_id = put(database, inboxes[2], 1, source=Source.API, sender="one@ours.example")
    asked = {"message_id": message_id, "mailbox_id": inboxes[0].id}
    assert database.read(lambda c: messages.sent_by(c, **asked)) is False


def test_who_was_given_a_message_stays_so_after_its_deletion(database: Database, inboxes) -> None:
    event = Event("evt_1", "message.received", AT, OURS, "msg_1", inboxes[0].id)
    database.write(lambda c: events.append(c, [event]))
    for inbox, expected in ((inboxes[0], True), (inboxes[1], False)):
        asked = {"message_id": "msg_1", "mailbox_id": inbox.id}
        assert database.read(lambda c, a=asked: messages.given_to(c, **a)) is expected


def test_the_newest_of_one_organization_or_of_all(database: Database, inboxes) -> None:
    made = [put(database, inboxes[number % 3], number) for number in range(1, 7)]

    def newest(organization: str | None, **more) -> list[str]:
        found = database.read(lambda c: messages.newest(c, organization_id=organization, **more))
        return [one.id for one in found]

    assert newest(None) == made[::-1]
    assert newest(OTHER) == [made[4], made[1]]
    assert newest(None, before_id=made[2], limit=1) == [made[1]]


def test_accounts_are_counted(database: Database, inboxes) -> None:
    assert database.read(messages.count_accounts) == messages.Counted(2, 3)
    newest = database.read(lambda c: accounts.newest_mailboxes(c, limit=2))
    assert len(newest) == 2
