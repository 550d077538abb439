"""Hosts by MX and address records."""

import asyncio
import random

import pytest

from server.delivery.exchangers import Exchangers, Unroutable, in_order, interleave, is_public
from server.dns import DnsTemporary
from server.next_hop import parse_next_hop
from tests.delivery.world import Zone


def find(zone: Zone, domain: str = "peer.test", *, private: bool = False) -> list[tuple[int, str, str]]:
    exchangers = Exchangers(zone, hostname="us.test", allow_private_addresses=private)
    found = asyncio.run(exchangers.of_domain(domain))
    return [(one.preference, place.host, place.address) for one in found for place in one.endpoints]


def problem(zone: Zone, domain: str = "peer.test") -> tuple[str, int, str]:
    with pytest.raises(Unroutable) as failed:
        find(zone, domain)
    found = failed.value.outcome
    assert found.phase == "dns"
    return found.state.value, found.code, found.enhanced


def test_hosts_come_by_preference() -> None:
    zone = (
        Zone().mx("peer.test", (20, "b.test"), (10, "a.test")).a("a.test", "9.9.9.9").a("b.test", "8.8.8.8")
    )
    assert find(zone) == [(10, "a.test", "9.9.9.9"), (20, "b.test", "8.8.8.8")]


def test_without_mx_the_domain_is_its_own_host() -> None:
    assert find(Zone().a("peer.test", "9.9.9.9")) == [(0, "peer.test", "9.9.9.9")]


def test_mx_records_that_fail_to_resolve_are_passed_over() -> None:
    zone = Zone().mx("peer.test", (10, "gone.test"), (20, "b.test")).a("b.test", "8.8.8.8")
    assert find(zone) == [(20, "b.test", "8.8.8.8")]


def test_a_null_mx_takes_no_mail() -> None:
    assert problem(Zone().mx("peer.test", (0, ""))) == ("bounced", 556, "5.1.10")


def test_a_domain_that_does_not_exist_bounces() -> None:
    assert problem(Zone()) == ("bounced", 550, "5.1.2")


def test_a_resolver_in_trouble_is_temporary() -> None:
    zone = Zone().fails("peer.test", "MX", DnsTemporary("SERVFAIL"))
    assert problem(zone)[0] == "deferred"
    zone = Zone().mx("peer.test", (10, "a.test"))
    zone.fails("a.test", "A", DnsTemporary("timeout")).fails("a.test", "AAAA", DnsTemporary("timeout"))
    assert problem(zone)[0] == "deferred"


def test_a_domain_without_any_host_bounces_but_one_with_bad_mx_waits() -> None:
    assert problem(Zone({("peer.test", "TXT"): []})) == ("bounced", 550, "5.4.4")
    assert problem(Zone().mx("peer.test", (10, "gone.test")))[0] == "deferred"


def test_addresses_of_private_networks_are_refused_unless_allowed() -> None:
    zone = Zone().mx("peer.test", (10, "a.test")).a("a.test", "127.0.0.1", "10.0.0.1", "::1", "fe80::1")
    assert problem(zone)[0] == "deferred"
    assert len(find(zone, private=True)) == 4


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.1.1", "0.0.0.0", "224.0.0.1", "::1", "::", "fc00::1",
     "fe80::1", "ff02::1", "::ffff:127.0.0.1", "100.64.0.1"],
)  # fmt: skip
def test_what_is_not_of_the_public_internet_is_known(address: str) -> None:
    assert not is_public(address)
    assert is_public("9.9.9.9")
    assert is_public("2620:fe::fe")


def test_only_hosts_better_than_ourselves_are_tried() -> None:
    zone = Zone().mx("peer.test", (5, "a.test"), (10, "us.test"), (10, "b.test"), (20, "c.test"))
    for name in ("a", "b", "c"):
        zone.a(f"{name}.test", "9.9.9.9")
    assert [host for _, host, _ in find(zone)] == ["a.test"]
    assert problem(Zone().mx("peer.test", (10, "us.test"))) == ("bounced", 554, "5.4.6")


def test_an_address_literal_is_its_own_host() -> None:
    assert find(Zone(), "[9.9.9.9]") == [(0, "[9.9.9.9]", "9.9.9.9")]
    assert problem(Zone(), "[127.0.0.1]")[0] == "bounced"
    assert problem(Zone(), "[x:y]")[0] == "bounced"


def test_families_take_turns() -> None:
    assert interleave(["::1", "::2", "1.1.1.1"]) == ["::1", "1.1.1.1", "::2"]
    assert interleave(["1.1.1.1", "2.2.2.2"]) == ["1.1.1.1", "2.2.2.2"]


def test_equals_are_shuffled_and_preferences_kept() -> None:
    zone = Zone().mx("peer.test", (10, "a.test"), (10, "b.test"), (20, "c.test"))
    for name in ("a", "b", "c"):
        zone.a(f"{name}.test", "9.9.9.9")
    exchangers = Exchangers(zone, hostname="us.test", allow_private_addresses=False)
    found = asyncio.run(exchangers.of_domain("peer.test"))
    orders = {
        tuple(one.endpoints[0].host for one in in_order(found, random.Random(seed))) for seed in range(20)
    }
    assert orders == {("a.test", "b.test", "c.test"), ("b.test", "a.test", "c.test")}


def test_a_hop_configured_by_name_is_resolved_whatever_its_network() -> None:
    exchangers = Exchangers(
        Zone().a("relay.test", "10.0.0.1"), hostname="us.test", allow_private_addresses=False
    )
    (found,) = asyncio.run(exchangers.of_hop(parse_next_hop("smtp:relay.test:2525")))
    assert [(place.address, place.port) for place in found.endpoints] == [("10.0.0.1", 2525)]
    with pytest.raises(Unroutable) as failed:
        asyncio.run(exchangers.of_hop(parse_next_hop("lmtp:gone.test:24")))
    assert failed.value.outcome.state.value == "deferred"
