"""DNS lists against a real name server: what is asked, what it means, which zones are passed over."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from policies.rules import ListKind
from server.dns import CachingResolver, DnsTemporary
from server.dns_list import DnsList, parse, said
from server.names.zones import (
    FAULTS_LIMIT,
    REFUSED_SECONDS,
    REST_SECONDS,
    RETEST_SECONDS,
    TEST_SECONDS,
    Zones,
)
from tests.fakes import FakeClock
from tests.nameserver import Nameserver

BAD, GOOD = "192.0.2.99", "192.0.2.1"
BAD6 = "2001:db8::bad"
BAD6_NAME = "d.a.b.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2"
SANE6_NAME = "2.0.0.0.0.0.f.7.f.f.f.f." + ".".join("0" * 20)
NETWORKS, DOMAINS = ListKind.NETWORKS, ListKind.DOMAINS


def a(*addresses: str) -> dict[str, list[str]]:
    return {"A": list(addresses)}


ZONE = {
    "2.0.0.127.bl.example": a("127.0.0.2"),
    f"{SANE6_NAME}.bl.example": a("127.0.0.2"),
    "99.2.0.192.bl.example": a("127.0.0.4", "127.0.0.10"),
    f"{BAD6_NAME}.bl.example": a("127.0.0.3"),
    "7.2.0.192.bl.example": a("203.0.113.7"),
    "8.2.0.192.bl.example": a("127.255.255.254"),
    "9.2.0.192.bl.example": a(*(f"127.0.{number // 250}.{number % 250 + 2}" for number in range(600))),
    "*.wild.example": a("127.0.0.2"),
    "*.parked.example": a("203.0.113.80"),
    "2.0.0.127.shut.example": a("127.255.255.254"),
    "1.0.0.127.shut.example": a("127.255.255.254"),
    "test.dbl.example": a("127.0.1.2"),
    "spam.example.dbl.example": a("127.0.1.2"),
    "2.0.0.127.four.example": a("127.0.0.2"),
    f"{BAD6_NAME}.four.example": a("127.0.0.2"),
}
ASKED = 2.0


@asynccontextmanager
async def zones(
    *, timeout_seconds: float = ASKED, resolver_seconds: float = 5.0
) -> AsyncIterator[tuple[Zones, Nameserver, FakeClock]]:
    server, clock = Nameserver(ZONE, ttl=60), FakeClock()
    await server.start()
    resolver = CachingResolver(
        servers=[server.address], timeout_seconds=resolver_seconds, cache_entries=1000, clock=clock
    )
    made = Zones(resolver, clock, timeout_seconds=timeout_seconds)
    try:
        yield made, server, clock
    finally:
        await made.close()
        await resolver.close()
        await server.stop()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]  # every scenario is a coroutine function


@pytest.mark.parametrize(
    ("zone", "kind", "value", "codes"),
    [
        ("bl.example", NETWORKS, BAD, {"127.0.0.4", "127.0.0.10"}),
        ("bl.example", NETWORKS, GOOD, set()),
        ("bl.example", NETWORKS, "::ffff:192.0.2.99", {"127.0.0.4", "127.0.0.10"}),
        ("bl.example", NETWORKS, BAD6, {"127.0.0.3"}),
        ("bl.example", NETWORKS, "2001:db8::1", set()),
        ("dbl.example", DOMAINS, "spam.example", {"127.0.1.2"}),
        ("dbl.example", DOMAINS, "ham.example", set()),
        ("four.example", NETWORKS, BAD6, {"127.0.0.2"}),  # alive by its IPv4 entry
    ],
)
def test_a_list_says_who_is_on_it(zone, kind, value, codes):
    async def scenario() -> None:
        async with zones() as (made, _, _):
            assert await made.ask(zone, kind, value) == codes

    run(scenario)


@pytest.mark.parametrize(
    ("zone", "kind", "value", "reason"),
    [
        ("wild.example", NETWORKS, BAD, "it lists everything"),
        ("wild.example", NETWORKS, BAD6, "it lists everything"),
        ("wild.example", DOMAINS, "spam.example", "it lists everything"),
        ("parked.example", NETWORKS, BAD, "it lists everything"),
        ("gone.example", NETWORKS, BAD, "it does not list its test entry"),
        ("gone.example", NETWORKS, BAD6, "it does not list its test entry"),
        ("shut.example", NETWORKS, BAD, "it refuses to answer this resolver"),
        ("dbl.example", NETWORKS, BAD, "it does not list its test entry"),
    ],
)
def test_a_zone_that_is_dead_or_lists_everything_is_passed_over_and_the_log_says_so_once(
    zone, kind, value, reason
):
    async def scenario() -> None:
        async with zones() as (made, server, clock):
            with capture_logs() as logs:
                for _ in range(3):
                    assert await made.ask(zone, kind, value) == set()
                    clock.advance(TEST_SECONDS + 1)
            (told,) = [line for line in logs if line["event"] == "DNS list passed over"]
            assert (told["zone"], told["reason"]) == (zone, reason)
            assert not [name for name, _, _ in server.asked if name.startswith("99.2.0.192")]

    run(scenario)


def test_a_zone_that_comes_back_is_asked_again_after_its_next_test():
    async def scenario() -> None:
        async with zones() as (made, server, clock):
            assert await made.ask("gone.example", NETWORKS, BAD) == set()
            assert made.usable() == {("gone.example", "IPv4"): 0.0}
            server.update(
                {"2.0.0.127.gone.example": a("127.0.0.2"), "99.2.0.192.gone.example": a("127.0.0.2")}
            )
            assert await made.ask("gone.example", NETWORKS, BAD) == set()
            clock.advance(TEST_SECONDS + 1)
            await made.ask("gone.example", NETWORKS, BAD)  # has it tested, and waits for nothing
            await asyncio.gather(*(one.testing for one in made._zones.values() if one.testing))
            assert await made.ask("gone.example", NETWORKS, BAD) == {"127.0.0.2"}
            assert made.usable() == {("gone.example", "IPv4"): 1.0}

    run(scenario)


def test_an_address_that_no_list_gives_is_no_listing_and_is_logged_once():
    async def scenario() -> None:
        async with zones() as (made, _, _):
            with capture_logs() as logs:
                for _ in range(3):
                    assert await made.ask("bl.example", NETWORKS, "192.0.2.7") == set()
            assert [line["answer"] for line in logs if "answer" in line] == ["203.0.113.7"]

    run(scenario)


def test_a_zone_that_refuses_this_resolver_is_left_alone_for_a_while():
    async def scenario() -> None:
        async with zones() as (made, _, clock):
            assert await made.ask("bl.example", NETWORKS, BAD)
            with capture_logs() as logs:
                assert await made.ask("bl.example", NETWORKS, "192.0.2.8") == set()
            assert "refuses" in logs[0]["reason"]
            assert await made.ask("bl.example", NETWORKS, BAD) == set()
            clock.advance(REFUSED_SECONDS + 1)
            await made.ask("bl.example", NETWORKS, BAD)
            await asyncio.gather(*(one.testing for one in made._zones.values() if one.testing))
            assert await made.ask("bl.example", NETWORKS, BAD)

    run(scenario)


def test_a_huge_answer_is_read_over_tcp_and_no_further_than_its_beginning():
    async def scenario() -> None:
        async with zones() as (made, server, _):
            assert len(await made.ask("bl.example", NETWORKS, "192.0.2.9")) == 100
            assert ("9.2.0.192.bl.example", "A", "tcp") in server.asked

    run(scenario)


def test_one_question_is_asked_once_however_many_wait_for_it_and_again_when_its_time_is_over():
    async def scenario() -> None:
        async with zones() as (made, server, clock):
            found = await asyncio.gather(*(made.ask("bl.example", NETWORKS, BAD) for _ in range(20)))
            assert set(map(len, found)) == {2}
            name = ("99.2.0.192.bl.example", "A", "udp")
            assert server.asked.count(name) == 1
            assert len(server.asked) == 3  # and the two test entries
            clock.advance(61)
            await made.ask("bl.example", NETWORKS, BAD)
            assert server.asked.count(name) == 2

    run(scenario)


def test_servfail_is_no_listing_but_a_failure_and_after_some_the_zone_rests():
    async def scenario() -> None:
        async with zones() as (made, server, clock):
            assert await made.ask("bl.example", NETWORKS, GOOD) == set()
            server.servfail.add("99.2.0.192.bl.example")
            for _ in range(FAULTS_LIMIT):
                with pytest.raises(DnsTemporary):
                    await made.ask("bl.example", NETWORKS, BAD)
                clock.advance(10)
            asked = len(server.asked)
            assert await made.ask("bl.example", NETWORKS, BAD) == set()
            assert len(server.asked) == asked
            server.servfail.clear()
            clock.advance(REST_SECONDS)
            assert await made.ask("bl.example", NETWORKS, BAD)

    run(scenario)


def test_a_slow_zone_is_waited_for_no_longer_than_the_deadline():
    async def scenario() -> None:
        async with zones(timeout_seconds=0.05) as (made, server, clock):
            server.silent |= {"2.0.0.127.slow.example", "1.0.0.127.slow.example"}
            with pytest.raises(DnsTemporary):
                await made.ask("slow.example", NETWORKS, BAD)
            await asyncio.gather(
                *(one.testing for one in made._zones.values() if one.testing), return_exceptions=True
            )
            # Its test came to nothing: nobody waits for it until the next one.
            assert await made.ask("slow.example", NETWORKS, BAD) == set()
            server.silent.clear()
            server.update({"2.0.0.127.slow.example": a("127.0.0.2")})
            clock.advance(RETEST_SECONDS + 1)

    run(scenario)


def test_what_no_list_can_hold_is_not_asked():
    async def scenario() -> None:
        async with zones() as (made, server, _):
            for kind, value in [
                (NETWORKS, ""),
                (NETWORKS, "mx.example"),
                (DOMAINS, "a b"),
                (DOMAINS, "x" * 70),
                (DOMAINS, "a." * 130),
                (DOMAINS, "[192.0.2.1]"),
            ]:
                assert await made.ask("bl.example", kind, value) == set()
            assert server.asked == []

    run(scenario)


@pytest.mark.parametrize(
    ("text", "counting", "others"),
    [
        ("bl.example", ["127.0.0.2", "127.0.0.4", "127.1.2.3"], ["127.0.0.1"]),
        ("bl.example=127.0.0.4", ["127.0.0.4"], ["127.0.0.2", "127.0.1.4"]),
        (
            "bl.example=127.0.0.[2..4;10]",
            ["127.0.0.2", "127.0.0.4", "127.0.0.10"],
            ["127.0.0.5", "127.0.0.1"],
        ),
        ("bl.example=127.0.[0..1].1*5", ["127.0.0.1", "127.0.1.1"], ["127.0.2.1"]),
    ],
)
def test_codes_of_an_entry_say_which_answers_count(text, counting, others):
    entry = parse(text)
    assert [code for code in counting + others if entry.counts(code)] == counting


def test_an_entry_has_a_zone_and_a_weight():
    assert parse("BL.Example.") == DnsList("bl.example")
    assert parse("bl.example*7").weight == 7
    assert parse("dbl.spamhaus.org=127.0.1.[2..99]").counts("127.0.1.2")
    assert parse("bl.example=127.0.0.2*7") == DnsList(
        "bl.example", (frozenset({127}), frozenset({0}), frozenset({0}), frozenset({2})), 7
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example",
        "bl example",
        "bl.example=",
        "bl.example=127.0.0",
        "bl.example=127.0.0.2.3",
        "bl.example=127.0.0.256",
        "bl.example=127.0.0.[4..2]",
        "bl.example=127.0.0.[]",
        "bl.example=10.0.0.2",
        "bl.example*0",
        "bl.example*101",
        "bl.example*-1",
        "bl..example",
        "x." * 100 + "example",
        "bl.example=127.0.0.[" + "1;" * 200 + "1]",
    ],
)
def test_what_is_no_entry_is_refused(text):
    with pytest.raises(ValueError, match=r"no DNS list|no codes|no number|within|begin with|weight"):
        parse(text)


def test_records_say_codes_refusals_and_what_is_strange():
    found = said(["127.0.0.2", "127.255.255.1", "192.0.2.1"])
    assert (found.codes, found.refused, found.strange) == ({"127.0.0.2"}, True, "192.0.2.1")
