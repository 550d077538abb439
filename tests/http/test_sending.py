"""Sending over HTTP: what becomes of the request, and once per idempotency key."""

import asyncio
import base64
import email
import email.policy
import json

import pytest

from server.http import models
from server.refusal import Broken, Refusal
from storage import idempotency
from storage.records import Source, Spooled
from tests.http.world import ALL_SCOPES, World, problem

TO = {"to": ["a@far.example"]}


@pytest.fixture
def key(world: World) -> str:
    return world.key(*ALL_SCOPES)


def send(world: World, key: str, asked: object, **more):
    return world.ask("POST", f"/v1/inboxes/{world.one.id}/messages", key, json=asked, **more)


def accepted(answer) -> str:
    assert answer.status_code == 202, answer.text
    models.Accepted.model_validate_json(answer.content, strict=True)
    return answer.json()["id"]


def parsed(world: World):
    return email.message_from_bytes(world.intake.content(), policy=email.policy.default)


def test_a_message_goes_to_intake_with_its_envelope_and_is_answered_202(world: World, key: str) -> None:
    asked = {
        "to": ["Ada Lovelace <ada@far.example>", "b@Bücher.example"],
        "cc": ["c@far.example"],
        "bcc": ["secret@far.example", "ADA@far.example"],
        "reply_to": ["answers@ours.example"],
        "subject": "Grüße",
        "text": "Hello\nworld",
        "html": "<p>Hello</p>",
        "headers": {"X-Campaign": "7", "List-Unsubscribe": "<mailto:u@ours.example>"},
        "attachments": [
            {"filename": "ä.txt", "content_type": "text/plain", "content": base64.b64encode(b"abc").decode()},
            {"filename": "i.png", "content_type": "image/png", "content": "iVBO", "content_id": "logo"},
        ],
    }
    answer = send(world, key, asked)
    message_id = accepted(answer)
    assert answer.headers["location"] == f"/v1/messages/{message_id}/timeline"
    (arrival,) = world.intake.arrivals
    assert arrival.source is Source.API
    assert arrival.envelope.reverse_path == "one@ours.example"
    assert [one.address for one in arrival.envelope.recipients] == [
        "ada@far.example",
        "b@xn--bcher-kva.example",
        "c@far.example",
        "secret@far.example",
    ]
    assert arrival.identity is not None
    assert (arrival.identity.mailbox_id, arrival.identity.address) == (world.one.id, "one@ours.example")
    content = world.intake.content()
    assert content.isascii()
    assert b"secret@far.example" not in content
    message = parsed(world)
    assert message["From"].addresses[0].addr_spec == "one@ours.example"
    assert message["Subject"] == "Grüße"
    assert message["Reply-To"] == "answers@ours.example"
    assert message["X-Campaign"] == "7"
    assert message.get_body(("plain",)).get_content().split() == ["Hello", "world"]
    names = [part.get_filename() for part in message.walk() if part.get_filename()]
    assert sorted(names) == ["i.png", "ä.txt"]


def test_a_sent_message_is_in_the_sent_folder_and_on_its_timeline(world: World, key: str) -> None:
    message_id = accepted(send(world, key, {**TO, "subject": "s", "text": "t"}))
    path = f"/v1/inboxes/{world.one.id}/messages"
    listed = world.ask("GET", path, key, params={"folder": "Sent"}).json()["messages"]
    assert [(one["id"], one["flags"]) for one in listed] == [(message_id, ["seen"])]
    assert world.ask("GET", path, key).json()["messages"] == []
    timeline = world.ask("GET", f"/v1/messages/{message_id}/timeline", key).json()
    assert [one["recipient"] for one in timeline["deliveries"]] == ["a@far.example"]


def test_the_display_name_of_the_inbox_stands_in_the_from(world: World, key: str) -> None:
    asked = {"address": "named@ours.example", "display_name": 'The "Bot"'}
    inbox = world.ask("POST", "/v1/inboxes", key, json=asked).json()
    world.ask("POST", f"/v1/inboxes/{inbox['id']}/messages", key, json=TO)
    assert parsed(world)["From"].addresses[0].display_name == 'The "Bot"'


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({}, "no_recipients"),
        ({"to": []}, "no_recipients"),
        ({"to": ["nobody"]}, "invalid_address"),
        ({"to": ["a@far.example", "bb@"]}, "invalid_address"),
        ({"to": ["a@far.example\r\nBcc: x@far.example"]}, "invalid"),
        ({**TO, "subject": "a\r\nBcc: x@far.example"}, "invalid"),
        ({**TO, "subject": "a\u0000b"}, "invalid"),
        ({**TO, "headers": {"X-A": "b\r\nBcc: x@far.example"}}, "invalid"),
        ({**TO, "headers": {"X-A: b\r\nBcc": "x"}}, "invalid"),
        ({**TO, "headers": {"Bcc": "x@far.example"}}, "header_not_allowed"),
        ({**TO, "headers": {"From": "x@far.example"}}, "header_not_allowed"),
        ({**TO, "headers": {"x-a b": "c"}}, "header_not_allowed"),
        ({**TO, "headers": {"DKIM-Signature": "v=1"}}, "header_not_allowed"),
        ({**TO, "from": "x@ours.example"}, "invalid"),
        ({**TO, "attachments": [{"filename": "a", "content": "not base64!"}]}, "invalid"),
        ({**TO, "attachments": [{"filename": "a", "content": "", "content_type": "a\r\nb: c"}]}, "invalid"),
        ({"to": [f"u{number}@far.example" for number in range(101)]}, "too_many_recipients"),
        ([], "invalid"),
        ("x", "invalid"),
    ],
)
def test_a_message_that_cannot_be_is_422_and_reaches_no_intake(
    world: World, key: str, asked: object, code: str
) -> None:
    problem(send(world, key, asked), 422, code)
    assert world.intake.arrivals == []


def test_what_was_wrong_is_named_by_place_and_not_repeated(world: World, key: str) -> None:
    found = problem(send(world, key, {"to": ["a@far.example", "s3cret"], "subject": 7}), 422, "invalid")
    assert found["errors"] == [{"pointer": "/subject", "message": found["errors"][0]["message"]}]
    assert "s3cret" not in json.dumps(found)


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 422),
        (b"\xff", {}, 422),
        (b"[" * 100_000, {}, 422),
        (b'{"to":["\\ud800@far.example"]}', {}, 422),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Content-Type": "application/json; charset=utf-8", "Content-Encoding": "gzip"}, 415),
        (b"", {}, 422),
    ],
)
def test_a_body_that_is_no_json_is_refused(
    world: World, key: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    answer = world.ask("POST", f"/v1/inboxes/{world.one.id}/messages", key, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (Refusal(550, "5.1.1", "No such mailbox here"), (422, "recipient_refused")),
        (Refusal(452, "4.2.2", "Mailbox full"), (422, "recipient_mailbox_full")),
        (Refusal(553, "5.7.1", "Not yours"), (403, "sender_not_owned")),
        (Refusal(550, "5.7.1", "By policy"), (422, "refused")),
        (Refusal(451, "4.7.1", "Later"), (503, "unavailable")),
        (Refusal(452, "4.3.1", "Insufficient system storage"), (507, "storage_full")),
        (Refusal(552, "5.3.4", "Too big"), (413, "too_large")),
        (Refusal(550, "5.6.0", "Odd content"), (422, "content_refused")),
        (Broken("secret cause"), (503, "unavailable")),
        (RuntimeError("secret cause"), (500, "internal_error")),
    ],
)
@pytest.mark.parametrize("place", ["refuse_sender", "refuse_recipient", "refuse_content"])
def test_what_intake_refuses_becomes_a_problem(
    world: World, key: str, place: str, refusal: BaseException, expected: tuple[int, str]
) -> None:
    status, code = expected
    setattr(world.intake, place, refusal)
    answer = send(world, key, TO)
    found = problem(answer, status, code)
    assert "secret" not in answer.text
    if isinstance(refusal, Refusal):
        assert (found["smtp_code"], found["enhanced_code"]) == (refusal.code, refusal.enhanced)
    if status in (503, 507) and isinstance(refusal, Refusal):
        assert answer.headers["retry-after"].isdigit()


def test_a_body_above_the_limit_is_413_whether_or_not_it_says_so(world: World, key: str) -> None:
    path = f"/v1/inboxes/{world.one.id}/messages"
    limit = world.settings.http.max_body_octets
    declared = world.ask("POST", path, key, content=b" " * (limit + 1))
    assert problem(declared, 413, "too_large")["limit_octets"] == limit
    sent = 0

    async def endless():
        nonlocal sent
        while sent < 100 * limit:
            sent += 65536
            yield b" " * 65536

    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    answer = world.run(world.client.post(path, content=endless(), headers=headers))
    problem(answer, 413, "too_large")
    assert sent < limit + 10 * 65536
    small = world.ask("POST", "/v1/inboxes", key, content=b" " * 300_000)
    assert problem(small, 413, "too_large")["limit_octets"] == 262_144


def test_nobody_without_a_key_has_a_body_read(world: World) -> None:
    sent = 0

    async def counted():
        nonlocal sent
        while sent < 1 << 20:
            sent += 65536
            yield b" " * 65536

    path = f"/v1/inboxes/{world.one.id}/messages"
    answer = world.run(
        world.client.post(path, content=counted(), headers={"Content-Type": "application/json"})
    )
    problem(answer, 401, "unauthenticated")
    assert sent <= 65536


def test_a_large_attachment_is_spooled_and_a_larger_message_is_413(world: World, key: str) -> None:
    octets = bytes(range(256)) * 4096
    asked = {**TO, "attachments": [{"filename": "a", "content": base64.b64encode(octets).decode()}]}
    accepted(send(world, key, asked))
    assert isinstance(world.intake.arrivals[0].content, Spooled)
    (part,) = [one for one in parsed(world).walk() if one.get_filename()]
    assert part.get_content() == octets
    asked["attachments"] *= 2
    found = problem(send(world, key, asked), 413, "too_large")
    assert found["limit_octets"] == world.settings.smtp.max_message_octets


# ---- replies ----


def reply(world: World, key: str, message_id: str, asked: object, **more):
    path = f"/v1/inboxes/{world.one.id}/messages/{message_id}/reply"
    return world.ask("POST", path, key, json=asked, **more)


def test_a_reply_answers_the_sender_and_continues_the_thread(world: World, key: str) -> None:
    original = world.deliver(world.one)
    sent = accepted(reply(world, key, original, {"text": "Thanks"}))
    message = parsed(world)
    assert (message["To"], message["Cc"]) == ("ada@far.example", None)
    assert message["Subject"] == "Re: Hello Wörld"
    assert message["In-Reply-To"] == message["References"] == "<first@far.example>"
    path = f"/v1/inboxes/{world.one.id}/messages"
    threads = {world.ask("GET", f"{path}/{one}", key).json()["thread_id"] for one in (original, sent)}
    assert len(threads) == 1


@pytest.mark.parametrize(
    ("field", "said", "status"),
    [
        (b"Auto-Submitted: auto-replied", "auto-replied", 422),
        (b"List-Id: <l.far.example>", "Auto-Replied", 422),
        (b"List-Id: <l.far.example>", "no", 202),
        (b"Precedence: bulk", "", 202),
        (b"X-Any: x", "auto-replied", 202),
    ],
)
def test_an_automatic_reply_answers_no_program_and_no_list(
    world: World, key: str, field: bytes, said: str, status: int
) -> None:
    content = b"From: a@far.example\r\nSubject: x\r\n%b\r\n\r\nx\r\n" % field
    asked = {"text": "Out of office", "headers": {"auto-submitted": said} if said else {}}
    answer = reply(world, key, world.deliver(world.one, content), asked)
    if status == 422:
        problem(answer, 422, "automatic_message")
    else:
        accepted(answer)


def test_a_reply_to_all_leaves_the_inbox_itself_out(world: World, key: str) -> None:
    original = world.deliver(world.one)
    accepted(reply(world, key, original, {"text": "Thanks", "reply_all": True}))
    message = parsed(world)
    assert (message["To"], message["Cc"]) == ("ada@far.example", "c@far.example")


def test_a_reply_follows_reply_to_and_keeps_one_re(world: World, key: str) -> None:
    original = world.deliver(
        world.one,
        b"From: a@far.example\r\nReply-To: List <list@far.example>\r\nSubject: RE:  Hi\r\n"
        b"Message-ID: <2@far.example>\r\nReferences: <0@far.example> junk\r\n <1@far.example>\r\n\r\nx\r\n",
    )
    accepted(reply(world, key, original, {"text": "y"}))
    message = parsed(world)
    assert (message["To"], message["Subject"]) == ("list@far.example", "RE: Hi")
    assert message["References"].split() == ["<0@far.example>", "<1@far.example>", "<2@far.example>"]


@pytest.mark.parametrize(
    "content",
    [
        b"Subject: nobody\r\n\r\nx\r\n",
        b"From: undisclosed\r\n\r\nx\r\n",
        b"From: a@\r\n\r\nx\r\n",
        b"",
        b'From: "a\r\n b" <@@>\r\n\r\n',
        b"\xff\xfe\x00",
    ],
)
def test_a_message_that_names_nobody_gets_no_reply(world: World, key: str, content: bytes) -> None:
    original = world.deliver(world.one, content)
    problem(reply(world, key, original, {"text": "y"}), 422, "no_reply_address")


# ---- once per key ----

ONCE = {"Idempotency-Key": "order-7"}


def test_the_same_request_with_the_same_key_is_sent_once(world: World, key: str) -> None:
    first = send(world, key, TO, headers=ONCE)
    again = send(world, key, TO, headers=ONCE)
    assert accepted(first) == accepted(again)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert len(world.intake.arrivals) == 1


def test_another_request_with_the_same_key_is_409(world: World, key: str) -> None:
    accepted(send(world, key, TO, headers=ONCE))
    problem(send(world, key, {**TO, "subject": "x"}, headers=ONCE), 409, "idempotency_key_reused")
    path = f"/v1/inboxes/{world.two.id}/messages"
    problem(world.ask("POST", path, key, json=TO, headers=ONCE), 409, "idempotency_key_reused")
    assert len(world.intake.arrivals) == 1


def test_requests_that_differ_only_in_how_json_is_written_are_the_same(world: World, key: str) -> None:
    path = f"/v1/inboxes/{world.one.id}/messages"
    written = [b'{"to":["a@far.example"],"subject":"s"}', b'{ "subject": "\\u0073", "to": ["a@far.example"]}']
    answers = [world.ask("POST", path, key, content=one, headers=dict(ONCE)) for one in written]
    assert len({accepted(one) for one in answers}) == 1


def test_of_concurrent_requests_with_one_key_one_is_sent(world: World, key: str) -> None:
    async def race():
        world.intake.hold = asyncio.Event()
        headers = {"Authorization": f"Bearer {key}", **ONCE}
        path = f"/v1/inboxes/{world.one.id}/messages"
        tasks = [asyncio.create_task(world.client.post(path, json=TO, headers=headers)) for _ in range(5)]
        waiting = asyncio.gather(*tasks)
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 4:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)
        world.intake.hold.set()
        return await waiting

    answers = world.run(race())
    assert sorted(one.status_code for one in answers) == [202, 409, 409, 409, 409]
    for one in answers:
        if one.status_code == 409:
            problem(one, 409, "idempotency_in_progress")
            assert one.headers["retry-after"] == "1"
    assert len(world.intake.arrivals) == 1


def test_a_refused_request_gives_its_key_back(world: World, key: str) -> None:
    world.intake.refuse_recipient = Refusal(550, "5.1.1", "No such mailbox here")
    problem(send(world, key, TO, headers=ONCE), 422, "recipient_refused")
    world.intake.refuse_recipient = None
    problem(send(world, key, {"to": ["bb@"]}, headers=ONCE), 422, "invalid_address")
    accepted(send(world, key, {"to": ["b@far.example"]}, headers=ONCE))


def test_a_failure_that_may_have_stored_it_keeps_the_key_for_a_while(world: World, key: str) -> None:
    world.intake.refuse_content = RuntimeError("disk gone")
    problem(send(world, key, TO, headers=ONCE), 500, "internal_error")
    world.intake.refuse_content = None
    problem(send(world, key, TO, headers=ONCE), 409, "idempotency_in_progress")
    world.clock.advance(idempotency.IN_PROGRESS_SECONDS)
    accepted(send(world, key, TO, headers=ONCE))


def test_keys_of_different_organizations_do_not_meet(world: World, key: str) -> None:
    accepted(send(world, key, TO, headers=ONCE))
    theirs = world.key("message:send", organization=world.other)
    path = f"/v1/inboxes/{world.theirs.id}/messages"
    accepted(world.ask("POST", path, theirs, json=TO, headers=ONCE))
    assert len(world.intake.arrivals) == 2


@pytest.mark.parametrize("value", ["", "a b", "x" * 256, "ü"])
def test_an_idempotency_key_that_is_none_is_422(world: World, key: str, value: str) -> None:
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": value.encode("utf-8")}
    path = f"/v1/inboxes/{world.one.id}/messages"
    problem(world.run(world.client.post(path, json=TO, headers=headers)), 422, "invalid")


def test_replies_are_sent_once_too(world: World, key: str) -> None:
    original = world.deliver(world.one)
    answers = [reply(world, key, original, {"text": "y"}, headers=ONCE) for _ in range(2)]
    assert len({accepted(one) for one in answers}) == 1
    other = world.deliver(world.one, b"From: b@far.example\r\n\r\nx\r\n")
    problem(reply(world, key, other, {"text": "y"}, headers=ONCE), 409, "idempotency_key_reused")
