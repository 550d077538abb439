"""Feedback reports from intake to the rates: who complained of what, once, and is written to no more."""

from functools import partial
from typing import Any

import pytest

from server.arrival import Arrival
from server.delivery.complaints import Complaints
from server.login import Identity
from storage import accounts, events, sending, suppression
from storage.records import Envelope, Event, Peer, Recipient, Source, Verdict
from tests.test_intake import HOST, Appliance, run

SENT = b"From: One <one@ours.example>\r\nMessage-ID: <sent-1@ours.example>\r\nSubject: x\r\n\r\nBuy.\r\n"


def report(
    *, about: str = "<sent-1@ours.example>", kind: str = "abuse", recipient: str = "", trace: str = "",
    author: str = "one@ours.example",
) -> bytes:  # fmt: skip
    fields = [f"Feedback-Type: {kind}", "User-Agent: Provider/1", "Version: 1"]
    fields += [f"Original-Rcpt-To: <{recipient}>"] * bool(recipient)
    returned = [trace] * bool(trace) + [f"From: {author}", f"Message-ID: {about}"]
    lines = [
        "From: feedback@provider.test",
        "Subject: FW: x",
        "MIME-Version: 1.0",
        'Content-Type: multipart/report; report-type=feedback-report; boundary="b"',
        "",
        "--b",
        "Content-Type: message/feedback-report",
        "",
        *fields,
        "",
        "--b",
        "Content-Type: text/rfc822-headers",
        "",
        *returned,
        "",
        "--b--",
        "",
    ]
    return "\r\n".join(lines).encode()


async def send(appliance: Appliance, *recipients: str) -> str:
    mailbox = appliance.store.database.read(lambda c: accounts.find_mailbox(c, address="one@ours.example"))
    assert mailbox is not None
    login = Identity(mailbox.organization_id, mailbox.id, mailbox.address, "password", "cred_1", frozenset())
    envelope = Envelope("one@ours.example", tuple(map(Recipient, recipients)))
    arrival = Arrival(Source.SUBMISSION, Peer("192.0.2.9", identity="cred_1"), envelope, SENT, login)
    receipt = await appliance.intake.accept(arrival, wait_applied=True)
    return receipt.message_ids[0]


def complaints(appliance: Appliance) -> Complaints:
    return Complaints(
        threads=appliance.threads, hub=appliance.threads.hub, clock=appliance.clock, hostname=HOST
    )


def log(appliance: Appliance, kind: str) -> list[Event]:
    return appliance.store.database.read(lambda c: events.after(c, seq=0, kinds=[kind], limit=100))


def outcomes(appliance: Appliance) -> list[str]:
    return [str(one.data["outcome"]) for one in log(appliance, "message.feedback_read")]


def held_back(appliance: Appliance, address: str) -> Any:
    owner = appliance.store.database.read(lambda c: accounts.find_domain(c, name="ours.example"))
    assert owner is not None
    find = partial(
        suppression.find, organization_id=owner.organization_id, address=address, at=appliance.clock.now()
    )
    return appliance.store.database.read(find)


def test_a_complaint_is_noted_at_its_message_and_moves_the_rates(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        sent = await send(appliance, "Reader@away.example")
        # It comes to an inbox of somebody else: what it is about is still found.
        await appliance.receive(report(), "x@other.example")
        await complaints(appliance).catch_up()
        (noted,) = log(appliance, "message.complained")
        assert (noted.message_id, noted.data["recipient"]) == (sent, "Reader@away.example".lower())
        assert "report" not in noted.data
        assert held_back(appliance, "reader@away.example").cause == "complaint"
        (read,) = log(appliance, "message.feedback_read")
        assert read.data == {"type": "abuse", "outcome": "noted"}
        await appliance.standing.tally()
        for key in ("cred_1", noted.organization_id):
            found = appliance.store.database.read(partial(sending.counts, keys=[(sending.COMPLAINED, key)]))
            assert sum(found[sending.COMPLAINED, key].values()) == 1

    run(tmp_path, scenario)


def test_the_same_complaint_counts_once_and_a_second_readers_as_well(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await send(appliance, "a@away.example", "b@away.example")
        made = complaints(appliance)
        for recipient in ("a@away.example", "A@AWAY.example", "b@away.example", "b@away.example"):
            await appliance.receive(report(recipient=recipient))
        await made.catch_up()
        found = log(appliance, "message.complained")
        assert sorted(str(one.data["recipient"]) for one in found) == ["a@away.example", "b@away.example"]
        assert sorted(outcomes(appliance)) == ["noted", "noted", "noted_before", "noted_before"]

    run(tmp_path, scenario)


def test_who_never_got_the_message_is_not_suppressed(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await send(appliance, "a@away.example", "b@away.example")
        await appliance.receive(report(recipient="victim@away.example"))
        await appliance.receive(report())
        await complaints(appliance).catch_up()
        (noted,) = log(appliance, "message.complained")
        assert noted.data["recipient"] == ""
        for address in ("victim@away.example", "a@away.example", "b@away.example"):
            assert held_back(appliance, address) is None

    run(tmp_path, scenario)


def test_our_own_trace_tells_the_message_where_its_id_was_taken_out(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        sent = await send(appliance, "a@away.example")
        trace = f"Received: from x (local) by {HOST} with ESMTPSA id {sent}; Mon, 01 Jun 2026 10:00:00 +0000"
        forged = trace.replace(HOST, "evil.test")
        await appliance.receive(report(about="<redacted>", trace=forged))
        await appliance.receive(report(about="<redacted>", trace=trace))
        await complaints(appliance).catch_up()
        assert outcomes(appliance) == ["no_message_of_ours", "noted"]

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"about": "<unknown@ours.example>"}, "no_message_of_ours"),
        ({"author": "one@other.example"}, "no_message_of_ours"),
        ({"author": "one@nobody.example"}, "no_message_of_ours"),
        ({"kind": "not-spam"}, "no_complaint"),
        ({"kind": "auth-failure"}, "no_complaint"),
        ({"kind": "dkim"}, "no_complaint"),
    ],
)
def test_what_is_no_complaint_about_mail_of_ours_changes_nothing(tmp_path, changes, outcome):
    async def scenario(appliance: Appliance) -> None:
        await send(appliance, "a@away.example")
        await appliance.receive(report(**changes))
        await complaints(appliance).catch_up()
        assert outcomes(appliance) == [outcome]
        assert log(appliance, "message.complained") == []
        assert held_back(appliance, "a@away.example") is None

    run(tmp_path, scenario)


def test_an_opt_out_holds_mail_back_and_blames_nobody(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await send(appliance, "a@away.example")
        await appliance.receive(report(kind="opt-out"))
        await complaints(appliance).catch_up()
        assert log(appliance, "message.complained") == []
        assert held_back(appliance, "a@away.example").cause == "unsubscribe"

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("results", "counts"), [((), True), (("fail", "none"), False), (("fail", "pass"), True)]
)
def test_a_report_whose_sender_passes_no_check_does_not_count(tmp_path, results, counts):
    async def scenario(appliance: Appliance) -> None:
        class Verifier:
            async def verify(self, **_: object) -> tuple[Verdict, ...]:
                return tuple(
                    Verdict(method, one) for method, one in zip(("spf", "dkim"), results, strict=False)
                )

            def results_field(self, _verdicts: object) -> bytes:
                return b""

        appliance.intake._verifier = Verifier()
        await send(appliance, "a@away.example")
        await appliance.receive(report())
        await complaints(appliance).catch_up()
        assert outcomes(appliance) == ["noted" if counts else "not_authenticated"]

    run(tmp_path, scenario)


def test_reports_that_are_broken_or_gone_are_passed_over(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(report()[:200])
        await appliance.receive(report().replace(b"Feedback-Type", b"Feedback-Tpye"))
        receipt = await appliance.receive(report())
        for path in (appliance.store.maildir.root / appliance.inbox("one@ours.example") / "new").iterdir():
            if b"Feedback-Type" in path.read_bytes():
                path.unlink()
        made = complaints(appliance)
        await made.catch_up()
        await made.catch_up()
        assert outcomes(appliance) == ["unreadable", "unreadable", "gone"]
        assert receipt.message_ids

    run(tmp_path, scenario)


def test_an_ordinary_message_leaves_no_event_of_reports(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.receive(b"From: a@b.test\r\nContent-Type: text/plain\r\n\r\nhello\r\n")
        assert log(appliance, "message.feedback") == []

    run(tmp_path, scenario)
