"""MTA-STS policies: when they are fetched, which one counts, and what a policy host may not do."""

import asyncio
import gzip
from functools import partial
from pathlib import Path

import pytest

from server.transport.mtasts import MAX_POLICY_OCTETS, Mode
from server.transport.policies import Sts
from server.transport.security import ResultType
from storage import tls_policies
from storage.db import Database
from storage.tls_policies import Kept
from tests.transport.authority import DAY, NOW, make, server_context
from tests.transport.world import DOMAIN, ROOT, PolicyHost, World, go

HOUR = 3600


def mode(found: Sts) -> str:
    return found.policy.mode.value if found.policy is not None else "no policy"


def test_policy_is_fetched_once_and_kept_over_a_restart(tmp_path: Path, database: Database) -> None:
    async def scenario(world: World) -> None:
        world.policy("enforce")
        for _ in range(3):
            assert mode(await world.sts.find(DOMAIN)) == "enforce"
        world.begin()
        assert mode(await world.sts.find(DOMAIN)) == "enforce"
        assert len(world.web.requests) == 1

    go(tmp_path, scenario, database)


def test_many_who_ask_at_once_fetch_once(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.policy("enforce")
        found = await asyncio.gather(*(world.sts.find(DOMAIN) for _ in range(20)))
        assert {mode(one) for one in found} == {"enforce"} and len(world.web.requests) == 1

    go(tmp_path, scenario)


def test_one_who_gives_up_leaves_the_others_their_fetch(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.policy("enforce")
        first = asyncio.create_task(world.sts.find(DOMAIN))
        second = asyncio.create_task(world.sts.find(DOMAIN))
        while not world.sts._fetching:
            await asyncio.sleep(0)
        first.cancel()
        assert mode(await second) == "enforce"

    go(tmp_path, scenario)


def test_another_id_brings_another_policy(tmp_path: Path, database: Database) -> None:
    async def scenario(world: World) -> None:
        world.policy("testing")
        assert mode(await world.sts.find(DOMAIN)) == "testing"
        world.policy("enforce", id="2")
        world.clock.advance(61)
        assert mode(await world.sts.find(DOMAIN)) == "enforce"
        world.policy("none", id="3")
        world.clock.advance(61)
        assert mode(await world.sts.find(DOMAIN)) == "no policy"
        assert len(world.web.requests) == 3

    go(tmp_path, scenario, database)


@pytest.mark.parametrize("trouble", ["no record", "two records", "servfail", "no host", "no policy"])
def test_kept_policy_outlives_record_and_host(tmp_path: Path, trouble: str) -> None:
    """RFC 8461 3.1, 5.1: what is kept counts until it expires; a record that is gone takes nothing back."""

    async def scenario(world: World) -> None:
        world.policy("enforce", max_age=7200)
        assert mode(await world.sts.find(DOMAIN)) == "enforce"
        record = f"_mta-sts.{DOMAIN}"
        if trouble == "no record":
            del world.dns.zone[record]
        if trouble == "two records":
            world.dns.zone[record]["TXT"].append("v=STSv1; id=2")
        if trouble == "servfail":
            world.dns.servfail.add(record)
        if trouble in ("no host", "no policy"):
            world.dns.zone[record]["TXT"] = ["v=STSv1; id=2"]
        if trouble == "no host":
            del world.dns.zone[f"mta-sts.{DOMAIN}"]
        if trouble == "no policy":
            world.web.policies.clear()
        world.clock.advance(3600)
        found = await world.sts.find(DOMAIN)
        assert mode(found) == "enforce" and found.is_cached
        assert (found.fault is not None) == (trouble in ("no host", "no policy"))
        world.clock.advance(3601)
        found = await world.sts.find(DOMAIN)
        assert mode(found) == "no policy"
        assert found.is_unknown == (trouble in ("servfail", "no host", "no policy"))

    go(tmp_path, scenario)


def test_failed_fetch_is_not_tried_again_at_once(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.policy("enforce")
        text = world.web.policies.pop(DOMAIN)
        for _ in range(5):
            found = await world.sts.find(DOMAIN)
            assert found.fault is not None and found.fault.type is ResultType.STS_FETCH
        assert len(world.web.requests) == 1
        world.web.policies[DOMAIN] = text
        world.clock.advance(301)
        assert mode(await world.sts.find(DOMAIN)) == "enforce"

    go(tmp_path, scenario)


def http(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


GOOD = b"version: STSv1\r\nmode: testing\r\nmx: a.test\r\nmax_age: 10000\r\n"
PLAIN = "Content-Type: text/plain"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (http("200 OK", PLAIN, body=GOOD), None),
        (http("200 OK", "content-type: TEXT/PLAIN;charset=x", body=GOOD), None),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + GOOD, None),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD),
            None,
        ),
        (
            http("301 Moved", PLAIN, "Location: https://mta-sts.peer.test/other", body=GOOD),
            ResultType.STS_FETCH,
        ),
        (http("204 No", PLAIN), ResultType.STS_FETCH),
        (http("404 No", PLAIN, body=GOOD), ResultType.STS_FETCH),
        (http("200 OK", "Content-Type: text/html", body=GOOD), ResultType.STS_FETCH),
        (http("200 OK", body=GOOD), ResultType.STS_FETCH),
        (http("200 OK", PLAIN, "Content-Type: text/html", body=GOOD), ResultType.STS_FETCH),
        (http("200 OK", PLAIN, body=b"x: y\n" * MAX_POLICY_OCTETS), ResultType.STS_FETCH),
        (http("200 OK", PLAIN, body=b"<html>"), ResultType.STS_INVALID),
        (http("200 OK", PLAIN, "Content-Encoding: gzip", body=gzip.compress(GOOD)), ResultType.STS_INVALID),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 999\r\n\r\n" + GOOD,
            ResultType.STS_FETCH,
        ),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, ResultType.STS_FETCH),
        (b"220 mail server\r\n", ResultType.STS_FETCH),
        (b"", ResultType.STS_FETCH),
    ],
)
def test_answers_of_policy_hosts(tmp_path: Path, answer: bytes, expected: ResultType | None) -> None:
    async def scenario(world: World) -> None:
        world.policy("testing")
        world.web.answer = answer
        found = await world.sts.find(DOMAIN)
        if expected is None:
            assert mode(found) == "testing", found
        else:
            assert found.fault is not None and found.fault.type is expected, found
            assert found.policy is None and found.is_unknown and len(found.fault.text) <= 300

    go(tmp_path, scenario)


@pytest.mark.parametrize("case", ["stranger", "wrong name", "expired", "no tls"])
def test_policy_host_proves_its_name(tmp_path: Path, case: str) -> None:
    async def scenario(world: World) -> None:
        world.policy("enforce")
        name = "other.test" if case == "wrong name" else f"mta-sts.{DOMAIN}"
        by = make("stranger", ca=True) if case == "stranger" else ROOT
        end = NOW - 300 * DAY if case == "expired" else NOW + DAY
        other = PolicyHost(server_context(tmp_path / "o", make("o", by=by, names=[name], end=end)))
        other.policies = world.web.policies
        if case == "no tls":
            server = await asyncio.start_server(
                lambda _r, w: w.write(b"HTTP/1.1 200 OK\r\n\r\n"), "127.0.0.1", 0
            )
            world.sts._fetcher._port = server.sockets[0].getsockname()[1]
        else:
            await other.start()
            world.sts._fetcher._port = other.port
        found = await world.sts.find(DOMAIN)
        assert found.fault is not None and found.fault.type is ResultType.STS_WEBPKI, found
        assert other.requests == []

    go(tmp_path, scenario)


def test_policy_host_that_says_nothing_is_waited_for_so_long(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.begin(seconds=0.3)
        world.policy("enforce")
        world.web.stalls = True
        found = await world.sts.find(DOMAIN)
        assert found.fault is not None and found.fault.type is ResultType.STS_FETCH
        assert "within 0.3 seconds" in found.fault.text

    go(tmp_path, scenario)


def test_private_addresses_are_not_asked(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.policy("enforce")
        world.sts._fetcher._allow_private = False
        found = await world.sts.find(DOMAIN)
        assert found.fault is not None and "private addresses" in found.fault.text
        assert world.web.requests == []

    go(tmp_path, scenario)


@pytest.mark.parametrize("domain", ["x" * 250 + ".test", "localhost", "a" * 60 + ".test"])
def test_names_that_have_no_policy_ask_little(tmp_path: Path, domain: str) -> None:
    async def scenario(world: World) -> None:
        assert await world.sts.find(domain) == Sts()
        assert world.web.requests == []

    go(tmp_path, scenario)


def test_policy_in_use_is_fetched_anew_before_it_expires(tmp_path: Path, database: Database) -> None:
    async def scenario(world: World) -> None:
        world.policy("enforce", max_age=10 * 86400)
        await world.sts.find(DOMAIN)
        world.clock.advance(23 * HOUR)
        await world.sts.refresh()
        assert len(world.web.requests) == 1
        world.clock.advance(2 * HOUR)
        await world.sts.refresh()
        assert len(world.web.requests) == 2
        kept = database.read(partial(tls_policies.find, domain=DOMAIN))
        assert kept is not None and kept.fetched_at == world.clock.now()

    go(tmp_path, scenario, database)


def test_failed_refresh_leaves_what_is_kept(tmp_path: Path, database: Database) -> None:
    async def scenario(world: World) -> None:
        world.policy("enforce", max_age=4 * 86400)
        await world.sts.find(DOMAIN)
        world.web.policies.clear()
        world.clock.advance(25 * HOUR)
        await world.sts.refresh()
        await world.sts.refresh()
        assert len(world.web.requests) == 2, "an hour lies between two tries"
        assert mode(await world.sts.find(DOMAIN)) == "enforce"
        world.clock.advance(4 * 24 * HOUR)
        await world.sts.refresh()
        assert database.read(partial(tls_policies.find, domain=DOMAIN)) is None

    go(tmp_path, scenario, database)


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        monkeypatch.setattr("server.transport.policies.MEMORY_LIMIT", 3)
        for number in range(9):
            await world.sts.find(f"d{number}.test")
        assert len(world.sts._entries) == 3

    go(tmp_path, scenario)


def kept(domain: str, at: int, age: int = 1000) -> Kept:
    return Kept(domain, "1", "version: …", at, at + age, at + age // 2, at)


def test_rows_are_bounded_and_the_longest_unused_go(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_policies, "MAX_POLICIES", 3)
    for number in range(5):
        database.write(partial(tls_policies.keep, kept=kept(f"d{number}.test", 100 + number)))
    database.write(partial(tls_policies.note_used, domain="d2.test", at=500))
    database.write(partial(tls_policies.keep, kept=kept("d5.test", 105)))
    assert [one.domain for one in database.read(partial(tls_policies.newest, limit=9))] == [
        "d2.test", "d5.test", "d4.test",
    ]  # fmt: skip


def test_rows_are_replaced_and_pruned(database: Database) -> None:
    database.write(partial(tls_policies.keep, kept=kept("a.test", 100)))
    newer = kept("a.test", 300)
    database.write(partial(tls_policies.keep, kept=newer))
    assert database.read(partial(tls_policies.find, domain="a.test")) == newer
    assert database.read(partial(tls_policies.due, at=799, used_since=0, limit=5)) == []
    assert database.read(partial(tls_policies.due, at=800, used_since=0, limit=5)) == [newer]
    assert database.read(partial(tls_policies.due, at=800, used_since=301, limit=5)) == []
    database.write(partial(tls_policies.postpone, domain="a.test", refresh_at=900))
    assert database.read(partial(tls_policies.due, at=800, used_since=0, limit=5)) == []
    assert not database.write(partial(tls_policies.prune, at=1299))
    assert database.read(partial(tls_policies.find, domain="a.test")) is not None
    database.write(partial(tls_policies.prune, at=1300))
    assert database.read(partial(tls_policies.find, domain="a.test")) is None


def test_row_that_cannot_be_read_is_as_none(tmp_path: Path, database: Database) -> None:
    async def scenario(world: World) -> None:
        now = world.clock.now()
        database.write(partial(tls_policies.keep, kept=kept(DOMAIN, now, 10**12)))
        world.policy("enforce")
        found = await world.sts.find(DOMAIN)
        assert found.policy is not None and found.policy.mode is Mode.ENFORCE

    go(tmp_path, scenario, database)
