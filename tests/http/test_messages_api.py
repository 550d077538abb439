"""Messages read over HTTP: lists, one in full, octets, parts, deletion."""

import os

import pytest

from server.http import models
from storage import mailboxes, messages, signs
from storage.records import Flag, Verdict
from tests.http.world import ALL_SCOPES, MESSAGE, World, problem


@pytest.fixture
def key(world: World) -> str:
    return world.key(*ALL_SCOPES)


def path(world: World, message_id: str = "", more: str = "") -> str:
    return f"/v1/inboxes/{world.one.id}/messages" + (f"/{message_id}" if message_id else "") + more


def listed(world: World, key: str, **params) -> dict:
    answer = world.ask("GET", path(world), key, params=params)
    assert answer.status_code == 200, answer.text
    models.MessageList.model_validate_json(answer.content, strict=True)
    return answer.json()


def full(world: World, key: str, message_id: str) -> dict:
    answer = world.ask("GET", path(world, message_id), key)
    assert answer.status_code == 200, answer.text
    models.Message.model_validate_json(answer.content, strict=True)
    return answer.json()


def test_a_list_is_newest_first_and_pages_to_its_end(world: World, key: str) -> None:
    made = [world.deliver(world.one) for _ in range(5)]
    seen, cursor = [], ""
    while cursor is not None:
        page = listed(world, key, limit=2, cursor=cursor)
        seen += [one["id"] for one in page["messages"]]
        cursor = page["next_cursor"]
    assert seen == made[::-1]


def test_a_message_that_comes_meanwhile_shifts_no_page(world: World, key: str) -> None:
    made = [world.deliver(world.one) for _ in range(3)]
    first = listed(world, key, limit=2)
    world.deliver(world.one)
    rest = listed(world, key, limit=2, cursor=first["next_cursor"])
    assert [one["id"] for one in rest["messages"]] == made[:1]


def test_a_list_shows_what_a_reader_needs(world: World, key: str) -> None:
    message_id = world.deliver(world.one)
    (one,) = listed(world, key)["messages"]
    assert one == {
        "id": message_id,
        "inbox_id": world.one.id,
        "folder": "INBOX",
        "thread_id": one["thread_id"],
        "received_at": "2027-01-15T08:00:00.000000Z",
        "octets": one["octets"],
        "from": "Ada <ada@far.example>",
        "to": "one@ours.example",
        "subject": "Hello Wörld",
        "preview": "Good day.",
        "attachments": 1,
        "flags": [],
        "labels": [],
    }


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"folder": "Nowhere"}, 404),
        ({"folder": ""}, 422),
        ({"limit": 0}, 422),
        ({"limit": 201}, 422),
        ({"limit": "x"}, 422),
        ({"cursor": "-1"}, 422),
        ({"cursor": "1;DROP"}, 422),
        ({"cursor": "99999999999"}, 422),
    ],
)
def test_a_page_that_cannot_be_is_a_problem(
    world: World, key: str, params: dict[str, object], status: int
) -> None:
    answer = world.ask("GET", path(world), key, params=params)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_folders_of_one_inbox_are_not_those_of_another(world: World, key: str) -> None:
    world.deliver(world.two)
    world.deliver(world.one, folder="Archive")
    assert listed(world, key)["messages"] == []
    assert len(listed(world, key, folder="Archive")["messages"]) == 1


def test_one_message_is_shown_in_full(world: World, key: str) -> None:
    verdict = Verdict("spf", "pass", "far.example", "because", {"smtp.mailfrom": "ada@far.example"})
    shown = full(world, key, world.deliver(world.one, verdicts=(verdict,)))
    assert shown["sender"] == [{"name": "Ada", "address": "ada@far.example"}]
    assert shown["recipients"] == [{"name": "", "address": "one@ours.example"}]
    assert shown["cc"] == [{"name": "", "address": "c@far.example"}]
    assert shown["date"] == "2026-01-30T08:00:00.000000Z"
    assert shown["message_id"] == "<first@far.example>"
    assert shown["text"].strip() == "Good day."
    assert shown["html"].strip() == "<p onclick='x()'>Good day.</p>"
    assert shown["headers"][0] == ["Delivered-To", "one@ours.example"]
    assert ["Subject", "Hello Wörld"] in shown["headers"]
    assert [part["part"] for part in shown["structure"]["parts"]] == ["1", "2", "3"]
    assert shown["files"] == [
        {
            "part": "3",
            "filename": "a.pdf",
            "content_type": "application/pdf",
            "disposition": "attachment",
            "content_id": None,
            "octets": shown["files"][0]["octets"],
        }
    ]
    assert shown["authentication"] == [
        {"method": "spf", "result": "pass", "domain": "far.example", "reason": "because"}
    ]
    assert shown["truncated"] is False


def nested(depth: int) -> bytes:
    head = b"".join(
        b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (number, number)
        for number in range(depth)
    )
    return b"From: a@far.example\r\n" + head + b"\r\nx\r\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\r\n",
        b"no header at all",
        b"\xff\xfe: \xfd\r\n\r\n\x80",
        b"Subject: =?x-unknown?b?////?=\r\n\r\n",
        b"Date: Mon, 99 Foo 99999 99:99:99 +9999\r\nFrom: <\r\nTo: ;;;,,,\r\n\r\n",
        b"Content-Type: text/plain; charset=utf-16\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!\r\n",
        b"Content-Type: message/rfc822\r\n\r\nSubject: in\r\n\r\ninner\r\n",
        b"Content-Type: multipart/mixed\r\n\r\nno boundary\r\n",
        nested(200),
        b"X-A: b\r\n" * 2000 + b"\r\nx\r\n",
        b"References: " + b"<a@b> " * 20_000 + b"\r\n\r\nx\r\n",
        b"To: " + b"a@b.example, " * 5000 + b"\r\n\r\nx\r\n",
        b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n' + b"--b\r\n\r\nx\r\n" * 3000,
        b"Content-Type: text/plain\r\n\r\n" + b"x" * 3_000_000,
    ],
    ids=lambda content: content[:24].decode("latin-1").split("\r")[0] + f"-{len(content)}",
)
def test_what_strangers_send_is_shown_within_limits(world: World, key: str, content: bytes) -> None:
    message_id = world.deliver(world.one, content)
    shown = full(world, key, message_id)
    assert len(shown["headers"]) <= 500
    assert len(shown["recipients"]) <= 1000
    assert len(shown["references"]) <= 100
    assert len(shown["text"] or "") <= 1_048_576
    # Only what is beyond all reason here is longer than twelve thousand octets.
    assert shown["truncated"] is (len(content) > 12_000)
    raw = world.ask("GET", path(world, message_id, "/raw"), key)
    assert raw.content.endswith(content)
    assert len(raw.content) == shown["octets"]


def test_raw_octets_are_what_lies_there_and_never_run_in_a_browser(world: World, key: str) -> None:
    message_id = world.deliver(world.one)
    answer = world.ask("GET", path(world, message_id, "/raw"), key)
    assert answer.content.endswith(MESSAGE)
    assert answer.content.startswith(b"Delivered-To: one@ours.example\r\nReceived:")
    assert answer.headers["content-type"] == "message/rfc822"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


def test_a_part_is_decoded_and_named(world: World, key: str) -> None:
    content = MESSAGE.replace(b'filename="a.pdf"', b"filename*=utf-8''%C3%A4%22%0D%0Ax.pdf")
    message_id = world.deliver(world.one, content)
    answer = world.ask("GET", path(world, message_id, "/attachments/3"), key)
    assert answer.content == b"%PDF"
    assert answer.headers["content-type"] == "application/pdf"
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith('attachment; filename="')
    assert "%C3%A4" in disposition
    assert "sandbox" in answer.headers["content-security-policy"]
    text = world.ask("GET", path(world, message_id, "/attachments/1"), key)
    assert text.content.strip() == b"Good day."


@pytest.mark.parametrize("part", ["0", "4", "1.1", "x", "-1", "1" * 300, "3%20"])
def test_a_part_that_is_not_there_is_404(world: World, key: str, part: str) -> None:
    message_id = world.deliver(world.one)
    problem(world.ask("GET", path(world, message_id, f"/attachments/{part}"), key), 404, "not_found")


def test_parts_of_an_embedded_message_are_numbered_as_in_imap(world: World, key: str) -> None:
    inner = b'Content-Type: multipart/mixed; boundary="i"\r\n\r\n--i\r\n\r\na\r\n--i\r\n\r\nb\r\n--i--\r\n'
    content = (
        b'Content-Type: multipart/mixed; boundary="o"\r\n\r\n--o\r\n\r\ntext\r\n'
        b"--o\r\nContent-Type: message/rfc822\r\n\r\n" + inner + b"--o--\r\n"
    )
    message_id = world.deliver(world.one, content)
    answer = world.ask("GET", path(world, message_id, "/attachments/2.2"), key)
    assert answer.content.strip() == b"b"


def test_an_etag_spares_the_body_until_a_flag_changes(world: World, key: str) -> None:
    message_id = world.deliver(world.one)
    first = world.ask("GET", path(world, message_id), key)
    etag = first.headers["etag"]
    again = world.ask("GET", path(world, message_id), key, headers={"If-None-Match": f'"x", W/{etag}'})
    assert (again.status_code, again.content) == (304, b"")

    def flag(connection) -> None:
        (place,) = messages.places(
            connection, organization_id=world.ours, mailbox_id=world.one.id, message_id=message_id
        )
        mailboxes.store_flags(
            connection,
            folder_id=place[0],
            uids=[place[1]],
            mode=mailboxes.FlagMode.ADD,
            flags=int(Flag.SEEN | Flag.FLAGGED),
            keywords=("later",),
            unchanged_since=None,
        )

    world.run(world.threads.write(flag))
    changed = world.ask("GET", path(world, message_id), key, headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag
    assert (changed.json()["flags"], changed.json()["labels"]) == (["seen", "flagged"], ["later"])
    raw = world.ask("GET", path(world, message_id, "/raw"), key)
    tag = {"If-None-Match": raw.headers["etag"]}
    assert world.ask("GET", path(world, message_id, "/raw"), key, headers=tag).status_code == 304


def file_of(world: World, message_id: str):
    found = world.run(
        world.threads.read(
            lambda c: messages.find(
                c, organization_id=world.ours, mailbox_id=world.one.id, message_id=message_id
            )
        )
    )
    return world.store.maildir.entry_path(world.one.id, found.folder, found.entry)


def test_a_message_whose_file_is_gone_is_404(world: World, key: str) -> None:
    message_id = world.deliver(world.one)
    file_of(world, message_id).unlink()
    for more in ("", "/raw", "/attachments/3"):
        problem(world.ask("GET", path(world, message_id, more), key), 404, "not_found")


def test_a_message_whose_file_is_cut_short_breaks_off_instead_of_lying(world: World, key: str) -> None:
    message_id = world.deliver(world.one)
    os.truncate(file_of(world, message_id), 100)
    with pytest.raises(ConnectionAbortedError):
        world.ask("GET", path(world, message_id, "/raw"), key)


def test_a_deleted_message_is_gone_from_every_folder_and_its_timeline_stays(world: World, key: str) -> None:
    message_id = world.deliver(world.one)
    kept = world.deliver(world.one)

    def copy(connection) -> None:
        inbox, archive = (
            mailboxes.find_folder(connection, mailbox_id=world.one.id, name=name)
            for name in ("INBOX", "Archive")
        )
        mailboxes.copy(
            connection,
            maildir=world.store.maildir,
            source_id=inbox.id,
            target_id=archive.id,
            uids=[1],
            at=world.clock.now(),
        )

    world.run(world.threads.write(copy))
    assert len(listed(world, key, folder="Archive")["messages"]) == 1
    assert world.ask("DELETE", path(world, message_id), key).status_code == 204
    assert listed(world, key, folder="Archive")["messages"] == []
    assert [one["id"] for one in listed(world, key)["messages"]] == [kept]
    problem(world.ask("GET", path(world, message_id), key), 404, "not_found")
    problem(world.ask("DELETE", path(world, message_id), key), 404, "not_found")


def test_a_message_for_two_inboxes_is_found_in_each_and_deleted_in_one(world: World, key: str) -> None:
    message_id = world.deliver(world.one, others=(world.two,))
    assert world.ask("DELETE", path(world, message_id), key).status_code == 204
    other = f"/v1/inboxes/{world.two.id}/messages/{message_id}"
    assert world.ask("GET", other, key).status_code == 200
    assert b"one@ours.example\r\n" not in world.ask("GET", f"{other}/raw", key).content.split(b"\r\n")[0]


def test_a_message_moves_between_folders(world: World, key: str) -> None:
    made = world.deliver(world.one, folder="Junk")
    other = world.deliver(world.one)
    answer = world.ask("POST", path(world, made, "/move"), key, json={"folder": "inbox"})
    assert (answer.status_code, answer.content) == (204, b"")
    assert [one["id"] for one in listed(world, key)["messages"]] == [made, other]
    assert listed(world, key, folder="Junk")["messages"] == []
    # Where it is already, it stays.
    assert world.ask("POST", path(world, made, "/move"), key, json={"folder": "INBOX"}).status_code == 204
    assert len(listed(world, key)["messages"]) == 2
    acts = world.run(world.threads.read(lambda c: signs.due(c, limit=10)))
    assert [(act.message_id, act.kind) for act in acts] == [(made, "welcome")]


def test_a_move_to_nowhere_says_so(world: World, key: str) -> None:
    made = world.deliver(world.one)
    for folder in ("Nowhere", "a//b", "\x00", "x" * 999):
        answer = world.ask("POST", path(world, made, "/move"), key, json={"folder": folder})
        problem(answer, 422, "no_such_folder")
    for body in ({}, {"folder": ""}, {"folder": 7}, {"folder": "INBOX", "more": 1}):
        problem(world.ask("POST", path(world, made, "/move"), key, json=body), 422, "invalid")
