"""What rules are told of clients by the DNS: begun in time, asked only where wanted, never in the way."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from policies.compile import compile_rules
from server import client_facts, evidence
from server.client_facts import ClientFacts
from server.dns import CachingResolver
from server.dns_list import Lists, parse
from server.names import reverse
from server.names.zones import Zones
from storage.records import Envelope, Peer, Source
from tests.fakes import FakeClock
from tests.nameserver import Nameserver
from tests.test_rules_acting import rule

BAD = "192.0.2.99"
BAD6 = "2001:db8::bad"
ARPA6 = "d.a.b.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"


def a(*addresses: str) -> dict[str, list[str]]:
    return {"A": list(addresses)}


ZONE = {
    "2.0.0.127.bl.example": a("127.0.0.2"),
    "99.2.0.192.bl.example": a("127.0.0.2"),
    "2.0.0.127.other.example": a("127.0.0.2"),
    "99.2.0.192.other.example": a("127.0.0.4"),
    "2.0.0.127.wl.example": a("127.0.0.2"),
    "98.2.0.192.wl.example": a("127.0.5.1"),
    "test.dbl.example": a("127.0.1.2"),
    "spam.example.dbl.example": a("127.0.1.2"),
    "bot.spam.example.dbl.example": a("127.0.1.3"),
    "99.2.0.192.in-addr.arpa": {"PTR": ["liar.example", "MX.far.example"]},
    "mx.far.example": {"A": [BAD, "192.0.2.50"], "AAAA": [BAD6]},
    "liar.example": a("198.51.100.1"),
    "98.2.0.192.in-addr.arpa": {"PTR": ["liar.example"]},
    "97.2.0.192.in-addr.arpa": {"PTR": ["liar.example", "broken.example"]},
    "96.2.0.192.in-addr.arpa": {"PTR": [f"n{number}.far.example" for number in range(40)]},
    "95.2.0.192.in-addr.arpa": {"PTR": ["localhost", "192.0.2.95", "bad\\000name.example"]},
    **{f"n{number}.far.example": a("198.51.100.1") for number in range(40)},
    ARPA6: {"PTR": ["mx.far.example"]},
    "mail.example": {"MX": ["10 mx.far.example"]},
    "null.example": {"MX": ["0 ."]},
    "odd.example": {"TXT": ["nothing"]},
}
LISTS = Lists(
    (parse("bl.example"), parse("other.example=127.0.0.[2..3]*4"), parse("other.example=127.0.0.4*2")),
    (parse("wl.example"),),
    (parse("dbl.example"),),
)
ALL = "dnsbl_listed && dnswl_listed && reverse_status == 'x' && helo_status == 'x' && size(dnsbl_domains) > 0"


class Book:
    """The rules in force."""

    def __init__(self, *texts: str) -> None:
        self.rules = compile_rules([("one", "".join(texts))])


class Client:
    """The look-ups of a process, before a name server of their own."""

    def __init__(self, server: Nameserver, clock: FakeClock, *texts: str, **changes: Any) -> None:
        self.server, self.clock = server, clock
        self.resolver = CachingResolver(
            servers=[server.address], timeout_seconds=3.0, cache_entries=1000, clock=clock
        )
        settings = {"lists": LISTS, "timeout_seconds": 2.0, **changes}
        self.made = ClientFacts(
            resolver=self.resolver,
            zones=Zones(self.resolver, clock, timeout_seconds=settings["timeout_seconds"]),
            rulebook=Book(*(texts or [rule("tag", ALL, keyword="x")])),
            clock=clock,
            **settings,
        )

    async def facts(
        self, address: str, *names: str, sender: str | None = None, **peer: Any
    ) -> evidence.Facts:
        case = evidence.Case(Peer(address, **peer), envelope=Envelope(sender, ()))
        found = evidence.Facts(case)
        await self.made.look(names or client_facts.NAMES, found)
        return found

    async def settled(self) -> None:
        """Wait until nothing is under way."""
        await asyncio.gather(*self.made._tasks)


def run(scenario: Callable[[Client], Awaitable[None]], *texts: str, **changes: Any) -> None:
    async def whole() -> None:
        server, clock = Nameserver(ZONE, ttl=300), FakeClock()
        await server.start()
        client = Client(server, clock, *texts, **changes)
        try:
            await scenario(client)
        finally:
            await client.made.stop()
            await client.resolver.close()
            await server.stop()

    asyncio.run(whole())


def test_a_listed_address_is_told_with_zones_and_weights():
    async def scenario(client: Client) -> None:
        found = await client.facts(BAD)
        assert (found["dnsbl_listed"], found["dnsbl_score"]) == (True, 3)
        assert found["dnsbl_zones"] == ["bl.example", "other.example"]
        assert (found["dnswl_listed"], found["dnswl_zones"]) == (False, [])
        allowed = await client.facts("192.0.2.98")
        assert (allowed["dnsbl_listed"], allowed["dnswl_listed"]) == (False, True)

    run(scenario)


def test_domains_of_sender_and_helo_are_asked():
    async def scenario(client: Client) -> None:
        found = await client.facts("192.0.2.1", sender="x@Spam.example", helo="Bot.Spam.example")
        assert found["dnsbl_domains"] == ["spam.example", "bot.spam.example"]
        found = await client.facts("192.0.2.1", sender="x@ham.example", helo="[192.0.2.1]")
        assert found["dnsbl_domains"] == []
        found = await client.facts("192.0.2.1", sender=None, helo="x" * 300)
        assert found["dnsbl_domains"] == []

    run(scenario)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "192.168.7.7", "::1", "fe80::1", "fd00::5"])
def test_addresses_of_the_house_are_asked_of_no_list(address):
    async def scenario(client: Client) -> None:
        found = await client.facts(address, "dnsbl_listed")
        assert found["dnsbl_listed"] is False
        assert client.server.asked == []

    run(scenario)


@pytest.mark.parametrize(
    ("address", "status", "name", "count"),
    [
        (BAD, "pass", "mx.far.example", 2),
        (BAD6, "pass", "mx.far.example", 1),
        ("192.0.2.98", "fail", "", 1),
        ("192.0.2.94", "none", "", 0),
        ("192.0.2.97", "temperror", "", 2),
        ("192.0.2.93", "temperror", "", 0),
        ("192.0.2.96", "fail", "", reverse.NAMES_LIMIT),  # of forty
        ("192.0.2.95", "fail", "", 0),  # names that no host has are not followed
        ("", "", "", 0),
    ],
)
def test_reverse_names_are_followed_back(address, status, name, count):
    async def scenario(client: Client) -> None:
        client.server.servfail |= {"broken.example", "93.2.0.192.in-addr.arpa"}
        found = await client.facts(address)
        assert (found["reverse_status"], found["reverse_name"]) == (status, name)
        assert len(found["reverse_names"]) == count
        followed = [asked for asked, kind, _ in client.server.asked if asked.startswith("n")]
        assert len(followed) <= reverse.NAMES_LIMIT

    run(scenario)


@pytest.mark.parametrize(
    ("helo", "status"),
    [
        ("MX.far.example.", "pass"),
        ("liar.example", "fail"),
        ("mail.example", "fail"),
        ("null.example", "none"),
        ("odd.example", "none"),
        ("gone.example", "none"),
        ("localhost", "none"),
        ("192.0.2.99", "none"),
        ("[192.0.2.99]", "pass"),
        ("[192.0.2.98]", "fail"),
        ("[IPv6:2001:db8::bad]", "fail"),
        ("[", "fail"),
        ("broken.example", "temperror"),
        ("x" * 64 + ".example", "none"),
        ("ä.example", "none"),
    ],
)
def test_the_ehlo_name_is_held_against_the_address(helo, status):
    async def scenario(client: Client) -> None:
        client.server.servfail.add("broken.example")
        assert (await client.facts(BAD, helo=helo))["helo_status"] == status

    run(scenario)


def test_an_ipv6_client_is_held_against_its_literal_and_its_host():
    async def scenario(client: Client) -> None:
        assert (await client.facts(BAD6, helo="[IPv6:2001:DB8::BAD]"))["helo_status"] == "pass"
        assert (await client.facts(BAD6, helo="mx.far.example"))["helo_status"] == "pass"

    run(scenario)


def test_look_ups_begin_with_the_connection_and_the_rules_find_them_done():
    async def scenario(client: Client) -> None:
        peer = Peer(BAD, helo="mx.far.example")
        client.made.begin(Peer(BAD))
        client.made.begin(peer)
        client.made.begin(peer, Envelope("x@spam.example", ()))
        await client.settled()
        asked = len(client.server.asked)
        found = await client.facts(BAD, sender="x@spam.example", helo="mx.far.example")
        assert found["dnsbl_listed"]
        assert found["dnsbl_domains"] == ["spam.example"]
        assert (found["reverse_status"], found["helo_status"]) == ("pass", "pass")
        assert len(client.server.asked) == asked

    run(scenario)


@pytest.mark.parametrize(
    ("when", "began"),
    [
        ("true", set()),
        ("dnsbl_listed", {"address"}),
        ("dnswl_listed", {"address"}),
        ("reverse_name == 'x'", {"reverse"}),
        ("helo_status == 'none'", {"helo"}),
        ("size(dnsbl_domains) > 0", {"domain"}),
    ],
)
def test_nothing_is_asked_that_no_rule_wants(when, began):
    async def scenario(client: Client) -> None:
        client.made.begin(Peer(BAD, helo="mx.far.example"), Envelope("x@spam.example", ()))
        assert {key[0] for key in client.made._known} == began

    run(scenario, rule("tag", when, keyword="x"))


def test_rules_that_are_read_anew_are_looked_at_anew():
    async def scenario(client: Client) -> None:
        client.made.begin(Peer(BAD))
        assert not client.made._known
        client.made._rulebook.rules = Book(rule("tag", "dnsbl_listed", keyword="x")).rules
        client.made.begin(Peer(BAD))
        assert client.made._known

    run(scenario, rule("tag", keyword="x"))


def test_mail_of_users_and_of_no_client_has_nobody_looked_up():
    async def scenario(client: Client) -> None:
        for case in (
            evidence.Case(Peer(BAD), source=Source.SUBMISSION),
            evidence.Case(Peer(""), source=Source.LMTP),
        ):
            found = evidence.Facts(case)
            await client.made.look(client_facts.NAMES, found)
            assert (found["dnsbl_listed"], found["reverse_status"], found["helo_status"]) == (False, "", "")
        assert client.server.asked == []

    run(scenario)


def test_one_list_that_is_silent_hides_no_other_and_stops_nobody():
    async def scenario(client: Client) -> None:
        client.server.silent |= {"2.0.0.127.bl.example", "1.0.0.127.bl.example"}
        found = await client.facts(BAD, "dnsbl_listed")
        assert found["dnsbl_zones"] == ["other.example"]

    run(scenario, timeout_seconds=0.3)


def test_names_that_are_silent_are_temporary_failures():
    async def scenario(client: Client) -> None:
        client.server.silent |= {"99.2.0.192.in-addr.arpa", "mx.far.example"}
        found = await client.facts(BAD, "reverse_status", "helo_status", helo="mx.far.example")
        assert (found["reverse_status"], found["helo_status"]) == ("temperror", "temperror")

    run(scenario, timeout_seconds=0.1)


def test_more_clients_than_can_be_looked_up_at_once_are_not_held_up(monkeypatch):
    async def scenario(client: Client) -> None:
        monkeypatch.setattr(client_facts, "UNDER_WAY", 1)
        client.made.begin(Peer(BAD))
        found = await client.facts("192.0.2.98", "dnsbl_listed", "reverse_status")
        assert (found["dnsbl_listed"], found["reverse_status"]) == (False, "temperror")
        await client.settled()
        assert (await client.facts("192.0.2.98", "dnswl_listed"))["dnswl_listed"]

    run(scenario, rule("tag", "dnsbl_listed", keyword="x"))


def test_what_is_kept_of_clients_is_bounded(monkeypatch):
    async def scenario(client: Client) -> None:
        monkeypatch.setattr(client_facts, "CLIENTS", 5)
        for number in range(20):
            client.made.begin(Peer(f"192.0.2.{number}"))
        assert len(client.made._known) == 5
        await client.settled()

    run(scenario, rule("tag", "dnsbl_listed", keyword="x"))


def test_a_minute_later_the_resolver_is_asked_again():
    async def scenario(client: Client) -> None:
        assert not (await client.facts("192.0.2.60", "dnsbl_listed"))["dnsbl_listed"]
        client.server.update({"60.2.0.192.bl.example": a("127.0.0.2")})
        client.clock.advance(61)  # and the denial is over too
        assert (await client.facts("192.0.2.60", "dnsbl_listed"))["dnsbl_listed"]

    run(scenario)


def test_a_name_that_a_trusted_host_told_is_taken_as_it_is():
    async def scenario(client: Client) -> None:
        found = await client.facts(BAD, "reverse_name", reverse_name="Told.example")
        assert (found["reverse_name"], found["reverse_status"]) == ("told.example", "pass")
        assert client.server.asked == []

    run(scenario)


@pytest.mark.parametrize(
    ("address", "result", "domain"),
    [(BAD, "pass", "mx.far.example"), ("192.0.2.98", "fail", ""), ("192.0.2.94", "permerror", "")],
)
def test_iprev_is_a_result_where_the_setting_says_so(address, result, domain):
    async def scenario(client: Client) -> None:
        (found,) = await client.made.verdicts(Peer(address))
        assert (found.method, found.result, found.domain) == ("iprev", result, domain)
        assert found.properties == {"policy.iprev": address}
        assert (await client.made.introduced(Peer(address))).reverse_name == (domain or None)

    run(scenario, rule("tag", keyword="x"), says_names=True)


def test_without_the_setting_and_without_a_rule_nobody_is_introduced():
    async def scenario(client: Client) -> None:
        assert await client.made.verdicts(Peer(BAD)) == ()
        assert await client.made.introduced(Peer(BAD)) == Peer(BAD)
        assert client.server.asked == []

    run(scenario, rule("tag", keyword="x"))
