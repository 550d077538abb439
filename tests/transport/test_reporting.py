"""From sessions to the report: counted, written, made, sent by mail and by HTTPS, and read by others."""

import asyncio
import email
import email.policy
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from server.delivery.letter import read_letter
from server.delivery.tls_reader import parse_mail
from server.delivery.tls_reporter import TlsReporter
from server.events.posting import Poster
from server.mail.tls_report import TlsReport, parse_report
from server.operations import Context, domain_add, organization_add
from server.refusal import Refusal
from server.sections_transport import TlsReports
from storage import events, tls_reports
from storage.db import Database
from storage.errors import StorageError
from storage.records import Event
from storage.report_tables import ReportTables
from tests.delivery.world import Inbox
from tests.transport.authority import make, server_context
from tests.transport.world import DOMAIN, HOST, ROOT, Peer, World, certified, go

ADDRESS = "tls-reports@us.test"
DAY = 86_400
RECORD = f"_smtp._tls.{DOMAIN}"


class Receiver:
    """Takes reports by HTTPS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.status = "201 Created"
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.port = 0

    async def start(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.port = server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(one[15:]) for one in head.split("\r\n") if one.lower().startswith("content-length:")
        )
        self.heads.append(head)
        self.bodies.append(await reader.readexactly(length))
        writer.write(f"HTTP/1.1 {self.status}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()


class Round:
    """A world with a reporter."""

    def __init__(self, world: World, **settings: Any) -> None:
        self.world = world
        self.inbox = Inbox()
        self.settings = TlsReports(**{"report_address": ADDRESS, "spread_seconds": 0, **settings})
        context = Context(_Store(world.database), world.clock, "mx.us.test")  # type: ignore[arg-type]
        organization_add(context, name="us")
        domain_add(context, name="us.test", organization="us")

    def reporter(self) -> TlsReporter:
        world = self.world
        return TlsReporter(
            threads=world.threads,
            intake=self.inbox,  # type: ignore[arg-type]  # takes the one call made
            resolver=world.resolver,
            clock=world.clock,
            poster=Poster(
                resolver=world.resolver, allow_private=True, timeout_seconds=2, make_context=world.trusted
            ),
            settings=self.settings,
            hostname="mx.us.test",
        )

    async def look(self) -> None:
        await self.reporter().look()

    def log(self, kind: str) -> list[Event]:
        return self.world.database.read(lambda c: events.after(c, seq=0, kinds=(kind,), limit=99))

    def mails(self) -> list[bytes]:
        found = [one.content for one in self.inbox.arrivals]
        assert all(isinstance(one, bytes) for one in found)
        return found  # type: ignore[return-value]

    def left(self) -> Sequence[tls_reports.Period]:
        return self.world.database.read(partial(tls_reports.due, at=1 << 60, limit=9))


class _Store:
    def __init__(self, database: Database) -> None:
        self.database = database


def wants(world: World, *places: str) -> None:
    world.dns.update({RECORD: {"TXT": [f"v=TLSRPTv1; rua={','.join(places)}"]}})


def play(
    directory: Path, database: Database, scenario: Callable[[Round], Awaitable[None]], **given: Any
) -> None:
    async def whole(world: World) -> None:
        await scenario(await asyncio.to_thread(partial(Round, world, **given)))

    go(directory, whole, database)


async def a_day_of_mail(world: World, directory: Path) -> None:
    """Two hosts under a policy: one that is met thrice, one that is not."""
    await world.host(Peer(certified(directory, "bad", "wrong.example")))
    await world.host(Peer(certified(directory, "good", "mx2.peer.test")), "mx2.peer.test", preference=20)
    world.policy("enforce", "*.peer.test")
    for number in range(3):
        found = await world.send(number=number)
        assert found.host == "mx2.peer.test", found
        await world.later(100)
    await world.results.flush()


def check(report: TlsReport) -> None:
    assert (report.organization_name, report.contact_info) == ("mx.us.test", ADDRESS)
    (result,) = report.policies
    assert (result.type, result.domain, result.mx_hosts) == ("sts", DOMAIN, ("*.peer.test",))
    assert result.strings[0] == "version: STSv1" and "mode: enforce" in result.strings
    assert (result.successes, result.failures) == (3, 3)
    (detail,) = result.details
    assert (detail.result_type, detail.count) == ("certificate-host-mismatch", 3)
    assert (detail.receiving_mx_hostname, detail.receiving_ip) == (HOST, "127.0.0.1")
    assert detail.sending_mta_ip.startswith("127.") and detail.failure_reason_code == "X509_V_ERR_62"
    assert report.begin % DAY == 0 and report.end == report.begin + DAY - 1


def test_a_day_becomes_one_report_by_mail(tmp_path: Path, database: Database) -> None:
    async def scenario(game: Round) -> None:
        world = game.world
        wants(world, "mailto:reports@far.test")
        await a_day_of_mail(world, tmp_path)
        await game.look()
        assert game.inbox.arrivals == [], "the day is not over"
        world.clock.advance(DAY)
        await game.look()
        (arrival,) = game.inbox.arrivals
        assert arrival.envelope.reverse_path == ADDRESS
        assert [one.address for one in arrival.envelope.recipients] == ["reports@far.test"]
        assert arrival.envelope.recipients[0].notify == {"NEVER"}
        (content,) = game.mails()
        found = parse_mail(content)
        assert found is not None and found[1] == DOMAIN
        check(found[0])
        check_mail(content, found[0], tmp_path)
        (sent,) = game.log("tls.report_sent")
        assert sent.data["sessions"] == 6 and sent.data["failed"] == 3
        await game.look()
        world.clock.advance(DAY)
        await game.look()
        assert len(game.inbox.arrivals) == 1 and game.left() == []

    play(tmp_path, database, scenario)


def check_mail(content: bytes, report: TlsReport, directory: Path) -> None:
    """RFC 8460 5.3, and RFC 8689 5 for its way."""
    mail = email.message_from_bytes(content, policy=email.policy.default)
    assert mail.get_content_type() == "multipart/report"
    assert mail.get_param("report-type") == "tlsrpt"
    assert mail["TLS-Report-Domain"] == DOMAIN and mail["TLS-Report-Submitter"] == "mx.us.test"
    assert mail["Subject"] == f"Report Domain: {DOMAIN} Submitter: mx.us.test Report-ID: <{report.report_id}>"
    text, packed = mail.iter_parts()
    assert text.get_content_type() == "text/plain" and "3 did not" in text.get_content()
    assert packed.get_content_type() == "application/tlsrpt+gzip"
    name = f"mx.us.test!{DOMAIN}!{report.begin}!{report.end}!{report.report_id}.json.gz"
    assert packed.get_filename() == name
    path = directory / "mail"
    path.write_bytes(content)
    assert read_letter(path).tls_optional


def test_a_report_goes_by_https_too(tmp_path: Path, database: Database) -> None:
    async def scenario(game: Round) -> None:
        world = game.world
        receiver = Receiver(server_context(tmp_path / "r", make("r", by=ROOT, names=["rpt.far.test"])))
        await receiver.start()
        world.dns.update({"rpt.far.test": {"A": ["127.0.0.1"]}})
        wants(world, f"https://rpt.far.test:{receiver.port}/v1?x=1", "mailto:reports@far.test")
        await a_day_of_mail(world, tmp_path)
        world.clock.advance(DAY)
        receiver.status = "503 later"
        await game.look()
        assert len(game.inbox.arrivals) == 1 and len(receiver.bodies) == 1
        receiver.status = "201 Created"
        await game.look()
        assert len(receiver.bodies) == 1, "not before half an hour"
        world.clock.advance(1801)
        await game.look()
        assert len(game.inbox.arrivals) == 1 and len(receiver.bodies) == 2
        check(parse_report(receiver.bodies[1]))
        head = receiver.heads[1].lower()
        assert head.startswith("post /v1?x=1 http/1.1") and "content-type: application/tlsrpt+gzip" in head
        assert len(game.log("tls.report_sent")) == 2 and game.left() == []

    play(tmp_path, database, scenario)


@pytest.mark.parametrize("case", ["500", "unknown name", "stranger's certificate", "no url"])
def test_place_that_does_not_take_it_is_given_up_after_a_day(
    tmp_path: Path, database: Database, case: str
) -> None:
    async def scenario(game: Round) -> None:
        world = game.world
        by = make("stranger", ca=True) if case.startswith("stranger") else ROOT
        receiver = Receiver(server_context(tmp_path / "r", make("r", by=by, names=["rpt.far.test"])))
        receiver.status = "500 never"
        await receiver.start()
        if case != "unknown name":
            world.dns.update({"rpt.far.test": {"A": ["127.0.0.1"]}})
        wants(world, "https://u:p@x.test/" if case == "no url" else f"https://rpt.far.test:{receiver.port}/")
        await a_day_of_mail(world, tmp_path)
        world.clock.advance(DAY)
        await game.look()
        assert len(game.log("tls.report_failed")) == (case == "no url")
        world.clock.advance(DAY)
        await game.look()
        assert len(game.log("tls.report_failed")) == 1 and game.left() == []

    play(tmp_path, database, scenario)


def test_domain_that_asks_for_nothing_is_not_kept(tmp_path: Path, database: Database) -> None:
    async def scenario(game: Round) -> None:
        await a_day_of_mail(game.world, tmp_path)
        assert game.left() == []

    play(tmp_path, database, scenario)


def test_unknown_record_keeps_the_counts_until_it_is_known(tmp_path: Path, database: Database) -> None:
    async def scenario(game: Round) -> None:
        world = game.world
        world.dns.servfail.add(RECORD)
        await a_day_of_mail(world, tmp_path)
        world.clock.advance(DAY)
        await game.look()
        assert game.inbox.arrivals == [] and len(game.left()) == 1
        world.dns.servfail.clear()
        wants(world, "mailto:reports@far.test")
        world.clock.advance(1801)
        await game.look()
        assert len(game.inbox.arrivals) == 1 and game.left() == []

    play(tmp_path, database, scenario)


def test_a_crash_between_mail_and_note_sends_the_same_mail(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(game: Round) -> None:
        wants(game.world, "mailto:reports@far.test")
        await a_day_of_mail(game.world, tmp_path)
        game.world.clock.advance(DAY)
        with monkeypatch.context() as patch:

            def cut(*_given: Any, **_more: Any) -> None:
                raise StorageError("power cut")

            patch.setattr(ReportTables, "note_sent", cut)
            with pytest.raises(StorageError):
                await game.look()
        await game.look()
        # Intake takes a message id once; the second time it is the same one.
        assert len(game.inbox.arrivals) == 1 and len(game.log("tls.report_sent")) == 1

    play(tmp_path, database, scenario)


@pytest.mark.parametrize("temporary", [True, False])
def test_refused_mail_waits_or_is_given_up(tmp_path: Path, database: Database, temporary: bool) -> None:
    async def scenario(game: Round) -> None:
        wants(game.world, "mailto:reports@far.test")
        await a_day_of_mail(game.world, tmp_path)
        game.world.clock.advance(DAY)
        game.inbox.refusal = Refusal(451 if temporary else 550, "4.0.0" if temporary else "5.0.0", "no")
        await game.look()
        assert len(game.log("tls.report_failed")) == (not temporary)
        assert len(game.left()) == temporary

    play(tmp_path, database, scenario)


def test_without_a_key_nothing_is_sent(tmp_path: Path, database: Database) -> None:
    async def scenario(game: Round) -> None:
        wants(game.world, "mailto:reports@far.test")
        await a_day_of_mail(game.world, tmp_path)
        game.world.clock.advance(DAY)
        await game.look()
        assert game.inbox.arrivals == [] and len(game.left()) == 1

    play(tmp_path, database, scenario, report_address="x@stranger.test")


def test_policies_of_one_day_are_told_apart(tmp_path: Path, database: Database) -> None:
    async def scenario(game: Round) -> None:
        world = game.world
        wants(world, "mailto:reports@far.test")
        await world.host(Peer(certified(tmp_path, "p", HOST)))
        await world.send()
        await world.later(400)
        world.policy("enforce")
        await world.send()
        await world.later(400)
        world.policy("testing", id="2")
        world.dns.update({HOST: {"A": ["127.0.0.1"]}})
        await world.send()
        await world.results.flush()
        world.clock.advance(DAY)
        await game.look()
        found = parse_mail(game.mails()[0])
        assert found is not None
        told = {(one.type, one.strings[1:2], one.successes) for one in found[0].policies}
        assert told == {
            ("no-policy-found", (), 1),
            ("sts", ("mode: enforce",), 1),
            ("sts", ("mode: testing",), 1),
        }

    play(tmp_path, database, scenario)


def test_failed_fetch_is_reported(tmp_path: Path, database: Database) -> None:
    async def scenario(game: Round) -> None:
        world = game.world
        wants(world, "mailto:reports@far.test")
        await world.host(Peer(certified(tmp_path, "p", HOST)))
        world.policy("enforce")
        world.web.policies[DOMAIN] = "nonsense"
        found = await world.send()
        assert found.tls_policy == "opportunistic" and "cannot be had" in found.tls_reason
        await world.results.flush()
        world.clock.advance(DAY)
        await game.look()
        read = parse_mail(game.mails()[0])
        assert read is not None
        told = {one.type: [detail.result_type for detail in one.details] for one in read[0].policies}
        assert told == {"no-policy-found": [], "sts": ["sts-policy-invalid"]}

    play(tmp_path, database, scenario)


def test_counts_that_cannot_be_written_are_kept(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(game: Round) -> None:
        world = game.world
        wants(world, "mailto:reports@far.test")
        await world.host(Peer(certified(tmp_path, "p", HOST)))
        await world.send()
        with monkeypatch.context() as patch:

            def cut(*_given: Any, **_more: Any) -> int:
                raise StorageError("disk full")

            patch.setattr(tls_reports, "add", cut)
            with pytest.raises(StorageError):
                await world.results.flush()
        assert sum(world.counted().values()) == 1
        await world.results.flush()
        assert world.counted() == {} and len(game.left()) == 1

    play(tmp_path, database, scenario)


def test_kinds_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        monkeypatch.setattr("server.transport.results.MAX_PENDING", 2)
        await world.host(Peer())
        for domain in ("a", "b", "c", "d"):
            from server.transport.results import Session
            from server.transport.security import PolicyType, Reported

            world.results.note(Session(domain, Reported(PolicyType.NONE, domain)))
        assert len(world.results._pending) == 2

    go(tmp_path, scenario)
