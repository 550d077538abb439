"""The caching resolver against a real name server on loopback."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import dns.asyncresolver
import dns.resolver
import pytest
import uvloop

from server import dns as server_dns
from server.dns import (
    CachingResolver,
    DnsTemporary,
    Mx,
    NoAnswer,
    NoSuchDomain,
    addresses,
    mx,
)
from tests.fakes import FakeClock
from tests.nameserver import Nameserver

ZONE = {
    "example.com": {
        "A": ["192.0.2.1", "192.0.2.2"],
        "AAAA": ["2001:db8::1"],
        "MX": ["20 mx2.example.com", "10 MX1.Example.com"],
        "TXT": ["v=spf1 -all", "x" * 600],
    },
    "null.example": {"MX": ["0 ."]},
    "alias.example": {"CNAME": ["www.example.com"]},
    "www.example.com": {"A": ["192.0.2.9"]},
    "big.example": {"TXT": ["y" * 5000]},
    "9.2.0.192.in-addr.arpa": {"PTR": ["www.example.com"]},
    "dane.example": {"TLSA": ["3 1 1 " + "ab" * 32]},
    "only4.example": {"A": ["192.0.2.4"]},
    "*.wild.example": {"A": ["192.0.2.5"]},
}


@asynccontextmanager
async def resolving(
    *, timeout_seconds: float = 2.0, cache_entries: int = 100, **options: Any
) -> AsyncIterator[tuple[CachingResolver, Nameserver, FakeClock]]:
    server, clock = Nameserver(ZONE, **options), FakeClock()
    await server.start()
    resolver = CachingResolver(
        servers=[server.address], timeout_seconds=timeout_seconds, cache_entries=cache_entries, clock=clock
    )
    try:
        yield resolver, server, clock
    finally:
        await resolver.close()
        await server.stop()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]  # every scenario is a coroutine function


@pytest.mark.parametrize(
    ("name", "rdtype", "records"),
    [
        ("example.com", "A", {"192.0.2.1", "192.0.2.2"}),
        ("EXAMPLE.com.", "AAAA", {"2001:db8::1"}),
        ("example.com", "MX", {Mx(10, "mx1.example.com"), Mx(20, "mx2.example.com")}),
        ("null.example", "MX", {Mx(0, "")}),
        ("example.com", "TXT", {(b"v=spf1 -all",), (b"x" * 255, b"x" * 255, b"x" * 90)}),
        ("alias.example", "A", {"192.0.2.9"}),
        ("9.2.0.192.in-addr.arpa", "PTR", {"www.example.com"}),
        ("dane.example", "TLSA", {(3, 1, 1, b"\xab" * 32)}),
        ("a.b.wild.example", "A", {"192.0.2.5"}),
    ],
)
def test_records_come_typed(name: str, rdtype: str, records: set[object]) -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, _, _):
            answer = await resolver.resolve(name, rdtype)
            assert set(answer.records) == records
            assert answer.ttl == 60
            assert not answer.authenticated

    run(scenario)


def test_resolver_works_on_uvloop() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _):
            server.truncated.add("example.com")
            assert (await resolver.resolve("example.com", "A")).records
            assert [transport for _, _, transport in server.asked] == ["udp", "tcp"]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize(
    ("name", "failure"),
    [("absent.example.net", NoSuchDomain), ("null.example", NoAnswer), ("broken.example", DnsTemporary)],
)
def test_failures_are_told_apart(name: str, failure: type[Exception]) -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _):
            server.servfail.add("broken.example")
            with pytest.raises(failure):
                await resolver.resolve(name, "A")
            with pytest.raises(failure):  # out of the cache
                await resolver.resolve(name, "A")
            assert len(server.asked) == 1

    run(scenario)


def test_silent_server_is_a_temporary_failure() -> None:
    async def scenario() -> None:
        async with resolving(timeout_seconds=0.05) as (resolver, server, _):
            server.silent.add("example.com")
            with pytest.raises(DnsTemporary):
                await resolver.resolve("example.com", "A")

    run(scenario)


@pytest.mark.parametrize(
    "name",
    ["a..example.com", "x" * 64 + ".example.com", ".".join(["a" * 60] * 5), "bücher.example", "", "."],
)
def test_what_is_no_name_is_never_asked(name: str) -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _):
            with pytest.raises(NoSuchDomain):
                await resolver.resolve(name, "A")
            assert not server.asked

    run(scenario)


def test_backslash_in_a_name_is_a_plain_octet() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _):
            with pytest.raises(NoSuchDomain):
                await resolver.resolve("example\\046com", "A")
            assert server.asked[0][0] == "example\\\\046com"

    run(scenario)


def test_answer_is_cached_until_its_ttl_ends() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, clock):
            await resolver.resolve("example.com", "A")
            clock.advance(59)
            await resolver.resolve("example.com", "A")
            assert len(server.asked) == 1
            clock.advance(2)
            await resolver.resolve("example.com", "A")
            assert len(server.asked) == 2

    run(scenario)


@pytest.mark.parametrize(("negative_ttl", "kept"), [(30, 30), (9000, server_dns.NEGATIVE_TTL_SECONDS)])
@pytest.mark.parametrize("name", ["absent.example.net", "null.example"])
def test_denial_is_cached_as_its_soa_says_within_our_limit(negative_ttl: int, kept: int, name: str) -> None:
    async def scenario() -> None:
        async with resolving(negative_ttl=negative_ttl) as (resolver, server, clock):
            for seconds, asked in ((0, 1), (kept - 1, 1), (2, 2)):
                clock.advance(seconds)
                with pytest.raises((NoSuchDomain, NoAnswer)):
                    await resolver.resolve(name, "A")
                assert len(server.asked) == asked

    run(scenario)


def test_failure_is_cached_briefly() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, clock):
            server.servfail.add("example.com")
            with pytest.raises(DnsTemporary):
                await resolver.resolve("example.com", "A")
            server.servfail.clear()
            clock.advance(server_dns.FAILURE_TTL_SECONDS + 1)
            assert (await resolver.resolve("example.com", "A")).records

    run(scenario)


def test_ttl_of_zero_is_not_cached() -> None:
    async def scenario() -> None:
        async with resolving(ttl=0) as (resolver, server, _):
            await resolver.resolve("example.com", "A")
            await resolver.resolve("example.com", "A")
            assert len(server.asked) == 2

    run(scenario)


def test_same_question_is_asked_once_at_a_time() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _):
            answers = await asyncio.gather(*(resolver.resolve("example.com", "A") for _ in range(20)))
            assert len(server.asked) == 1
            assert len({id(answer) for answer in answers}) == 1

    run(scenario)


def test_one_askers_deadline_spares_the_others() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, _, _):
            hasty = asyncio.ensure_future(resolver.resolve("example.com", "A"))
            patient = asyncio.ensure_future(resolver.resolve("example.com", "A"))
            await asyncio.sleep(0)
            hasty.cancel()
            assert (await patient).records
            with pytest.raises(asyncio.CancelledError):
                await hasty

    run(scenario)


def test_long_answer_is_fetched_over_tcp() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _):
            answer = await resolver.resolve("big.example", "TXT")
            assert b"".join(answer.records[0]) == b"y" * 5000
            assert [transport for _, _, transport in server.asked] == ["udp", "tcp"]

    run(scenario)


def test_authenticated_data_is_the_resolvers_word() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _):
            server.authenticated = True
            assert (await resolver.resolve("example.com", "A")).authenticated

    run(scenario)


def test_cache_is_bounded_in_entries() -> None:
    async def scenario() -> None:
        async with resolving(cache_entries=20) as (resolver, server, _):
            for number in range(100):
                await resolver.resolve(f"n{number}.wild.example", "A")
                assert len(resolver._cache) <= 20
            await resolver.resolve("n99.wild.example", "A")
            assert len(server.asked) == 100  # the newest is still there

    run(scenario)


def test_cache_is_bounded_in_octets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_dns, "MAX_CACHE_OCTETS", 20_000)

    async def scenario() -> None:
        async with resolving() as (resolver, server, _):
            for number in range(10):
                server.update({f"t{number}.example": {"TXT": ["z" * 4000]}})
                await resolver.resolve(f"t{number}.example", "TXT")
                assert resolver._octets <= 20_000
                assert resolver._octets == sum(entry.octets for entry in resolver._cache.values())
            assert 1 <= len(resolver._cache) <= 4

    run(scenario)


def test_without_servers_every_lookup_is_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.asyncresolver, "Resolver", refuse)

    async def scenario() -> None:
        resolver = CachingResolver(servers=[], timeout_seconds=1, cache_entries=10, clock=FakeClock())
        with pytest.raises(DnsTemporary):
            await resolver.resolve("example.com", "A")

    run(scenario)


def test_mx_comes_in_order_of_preference() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, _, _):
            hosts = [record.host for record in (await mx(resolver, "example.com")).records]
            assert hosts == ["mx1.example.com", "mx2.example.com"]

    run(scenario)


def test_addresses_of_both_families_with_ipv6_first() -> None:
    async def scenario() -> None:
        async with resolving() as (resolver, server, _):
            found = await addresses(resolver, "example.com")
            assert found[0] == "2001:db8::1"
            assert set(found[1:]) == {"192.0.2.1", "192.0.2.2"}
            assert await addresses(resolver, "only4.example") == ("192.0.2.4",)
            with pytest.raises(NoAnswer):
                await addresses(resolver, "null.example")
            server.servfail.add("broken.example")
            with pytest.raises(DnsTemporary):
                await addresses(resolver, "broken.example")

    run(scenario)


def test_close_ends_pending_lookups() -> None:
    async def scenario() -> None:
        async with resolving(timeout_seconds=60) as (resolver, server, _):
            server.silent.add("example.com")
            waiting = asyncio.ensure_future(resolver.resolve("example.com", "A"))
            await asyncio.sleep(0)
            await resolver.close()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    run(scenario)


@pytest.mark.parametrize(
    ("server", "host", "port"),
    [
        ("192.0.2.1", "192.0.2.1", 53),
        ("192.0.2.1:5353", "192.0.2.1", 5353),
        ("::1", "::1", 53),
        ("[::1]:54", "::1", 54),
        ("[::1]", "::1", 53),
    ],
)
def test_servers_are_read_with_and_without_port(server: str, host: str, port: int) -> None:
    nameserver = server_dns._nameserver(server)
    assert (nameserver.answer_nameserver(), nameserver.answer_port()) == (host, port)
