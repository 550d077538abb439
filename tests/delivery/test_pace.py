"""Rates, providers, and the addresses that mail leaves from."""

import asyncio
from datetime import date
from typing import Any

import pytest

from server.delivery.backlog import Backlog
from server.delivery.pace import Pace, parse_rate, provider_of
from server.delivery.sources import Resting, SourcePlan, Sources
from server.dns import NoAnswer
from storage.lanes import Lane
from tests.delivery.test_backlog import delivery
from tests.delivery.test_scheduler import TAKE, MakeWorld, run
from tests.fakes import FakeClock
from tests.smtp.scripted import HELLO, Scripted, script
from tests.storage.queued import NOW

DAY = 86_400


@pytest.mark.parametrize(
    ("text", "rate"), [("10/second", 10), ("60/minute", 1), ("3600/hour", 1), ("86400/day", 1)]
)
def test_rates_are_read(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["0/second", "10", "10/week", "-1/day", "1.5/hour", "1/second "])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no rate"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("aspmx.l.google.com", "google.com"),
        ("ALT1.ASPMX.L.GOOGLE.COM.", "google.com"),
        ("mx.example.co.uk", "example.co.uk"),
        ("mx.example.de", "example.de"),
        ("localhost", ""),
        ("192.0.2.1", ""),
        ("co.uk", "co.uk"),
    ],
)
def test_a_provider_is_named_by_its_hosts(host: str, provider: str) -> None:
    assert provider_of(host) == provider


def test_a_rate_lets_so_many_go_and_says_when_the_next_may() -> None:
    pace = Pace({"peer.test": "1/second"}, per_provider_concurrency=5)
    assert pace.room("peer.test", 0.0) == 10
    pace.take("peer.test", 10, 0.0)
    assert pace.room("peer.test", 0.5) == 0
    assert pace.wait("peer.test", 0.5) == pytest.approx(0.5)
    assert pace.room("peer.test", 1.0) == 1
    assert pace.room("peer.test", 1000.0) == 10
    assert pace.room("other.test", 0.0) is None


def test_domains_behind_one_provider_share_its_rate() -> None:
    pace = Pace({"mx:google.com": "6/minute"}, per_provider_concurrency=5)
    assert pace.room("a.test", 0.0) is None
    for domain in ("a.test", "b.test"):
        pace.learn(domain, "aspmx.l.google.com")
    assert pace.room("a.test", 0.0) == 1
    pace.take("a.test", 1, 0.0)
    assert pace.room("b.test", 0.0) == 0
    assert pace.wait("b.test", 0.0) == pytest.approx(10.0)


@pytest.mark.parametrize("host", ["", "192.0.2.1", "2001:db8::1", "localhost"])
def test_a_host_without_a_name_teaches_nothing(host: str) -> None:
    pace = Pace({}, per_provider_concurrency=5)
    pace.learn("a.test", host)
    assert pace.provider("a.test") is None


def filled(pace: Pace, *domains: str) -> Backlog:
    backlog = Backlog(concurrency=100, per_domain_concurrency=10, pace=pace)
    backlog.note([Lane("org_a", domain, 0, 1, 100) for domain in domains])
    return backlog


def test_no_more_is_leased_than_a_rate_lets_go() -> None:
    backlog = filled(Pace({"slow.test": "2/minute"}, per_provider_concurrency=5), "slow.test", "free.test")
    limits = {pick.domain: pick.limit for pick in backlog.choose()}
    assert limits == {"slow.test": 1, "free.test": 4}
    backlog.took("slow.test", 1)
    backlog.took("free.test", 4)
    assert [pick.domain for pick in backlog.choose()] == []
    assert backlog.next_room_in == pytest.approx(30.0)


def test_a_provider_bounds_attempts_of_all_its_domains() -> None:
    from server.delivery.attempt import Group
    from server.delivery.route import BY_MX

    pace = Pace({}, per_provider_concurrency=2)
    backlog = Backlog(concurrency=100, per_domain_concurrency=10, pace=pace)
    for number in range(4):
        domain = f"d{number}.test"
        pace.learn(domain, "mx.big.test")
        backlog.add(Group(domain, BY_MX, (delivery(number, domain),)))
    turns = [turn for turn in (backlog.next() for _ in range(4)) if turn is not None]
    assert len(turns) == 2
    turns[0].adapt(is_slowed=True)
    provider = turns[0].provider
    assert provider is not None
    assert provider.window.size == 1
    backlog.ended(turns[0])
    assert backlog.next() is None
    backlog.ended(turns[1])
    assert backlog.next() is not None


class Counts:
    """Counters that are all at hand."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    async def load(self, _keys: Any) -> None:
        return None

    def total(self, _kind: str, key: str, *, seconds: int) -> int:
        assert seconds == DAY
        return self.found.get(key, 0)

    def count(self, _kind: str, key: str, amount: int) -> None:
        self.found[key] = self.found.get(key, 0) + amount


def chosen(sources: Sources, domain: str = "peer.test", organization: str = "org_a") -> dict[bool, str]:
    found = asyncio.run(sources.choose(organization_id=organization, domain=domain))
    return {wide: source.address for wide, source in found.items()}


def test_a_destination_keeps_to_one_address_of_its_pool() -> None:
    plan = SourcePlan(
        names={"192.0.2.1": "out1.test", "192.0.2.2": "", "192.0.2.3": "", "2001:db8::1": ""},
        pools={"gold": ["192.0.2.3"]},
        organizations={"org_g": "gold"},
    )
    sources = Sources(plan, counters=None, clock=FakeClock(NOW))
    found = {domain: chosen(sources, domain) for domain in (f"d{n}.test" for n in range(40))}
    assert {one[False] for one in found.values()} == {"192.0.2.1", "192.0.2.2"}
    assert {one[True] for one in found.values()} == {"2001:db8::1"}
    assert all(chosen(sources, domain) == one for domain, one in found.items())
    assert chosen(sources, organization="org_g") == {False: "192.0.2.3"}
    assert chosen(Sources(SourcePlan(), counters=None, clock=FakeClock(NOW))) == {}


def test_a_new_address_sends_a_little_more_every_other_day() -> None:
    clock = FakeClock(NOW)
    today = date.fromtimestamp(NOW // 1_000_000)
    plan = SourcePlan(names={"192.0.2.1": ""}, warm_up={"192.0.2.1": today}, first_day=100)
    sources = Sources(plan, counters=Counts(), clock=clock)  # type: ignore[arg-type]  # what is asked of it
    told = []
    for _ in range(15):
        told.append(sources.allowance("192.0.2.1"))
        clock.advance(2 * DAY)
    assert told[:4] == [100, 200, 400, 800]
    assert told[-1] is None


def test_an_address_that_used_up_its_day_gives_way_to_another_or_rests() -> None:
    clock = FakeClock(NOW)
    today = date.fromtimestamp(NOW // 1_000_000)
    counts = Counts()
    plan = SourcePlan(
        names={"192.0.2.1": "", "192.0.2.2": ""},
        warm_up={"192.0.2.1": today, "192.0.2.2": today},
        first_day=10,
    )
    sources = Sources(plan, counters=counts, clock=clock)  # type: ignore[arg-type]  # what is asked of it
    first = chosen(sources)[False]
    sources.count(first, 10)
    second = chosen(sources)[False]
    assert {first, second} == {"192.0.2.1", "192.0.2.2"}
    sources.count(second, 10)
    with pytest.raises(Resting):
        chosen(sources)


def test_mail_leaves_from_the_address_and_under_the_name_that_the_settings_say(
    make_world: MakeWorld,
) -> None:
    async def test() -> None:
        async with Scripted(script(HELLO.replace("C EHLO us.test", "C EHLO out9.test"), TAKE)) as peer:
            world = make_world(allow_private_addresses=True)
            world.zone.mx("peer.test", (10, "mx.peer.test")).a("mx.peer.test", "127.0.0.1")
            world.queue("dlv_1", message_id="msg_1")
            plan = SourcePlan(names={"127.0.0.9": "out9.test"})
            async with world.running(sources=Sources(plan, counters=None, clock=world.clock)) as scheduler:
                scheduler._carrier._transmitter._exchangers._port = peer.port
                await world.until(dlv_1="delivered")
            assert peer.lines[0] == "EHLO out9.test"

    run(test())


def test_what_no_address_may_send_now_waits_without_a_try(make_world: MakeWorld) -> None:
    async def test() -> None:
        world = make_world(allow_private_addresses=True)
        world.zone.mx("peer.test", (10, "mx.peer.test")).a("mx.peer.test", "127.0.0.1")
        world.zone.fails("mx.peer.test", "AAAA", NoAnswer("none"))
        world.queue("dlv_1", message_id="msg_1")
        today = date.fromtimestamp(NOW // 1_000_000)
        counts = Counts()
        plan = SourcePlan(names={"127.0.0.9": ""}, warm_up={"127.0.0.9": today}, first_day=1)
        sources = Sources(plan, counters=counts, clock=world.clock)  # type: ignore[arg-type]  # as above
        sources.count("127.0.0.9", 1)
        async with world.running(sources=sources):
            while not world.log("message.put_off"):
                await asyncio.sleep(0.01)
        row = world.row("dlv_1")
        assert (row.state, row.tries, row.next_attempt_at) == ("scheduled", 0, NOW + 600_000_000)
        assert "used up" in str(world.data("message.put_off")[0]["text"])

    run(test())
