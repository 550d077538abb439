"""SPF beyond the public suite: identities, hostile records, and what is asked of the DNS."""

import asyncio
from typing import Any

import pytest
import spf as patched
from hypothesis import given, settings
from hypothesis import strategies as st

from server.sender_auth import spf_check
from server.sender_auth.spf_check import check_spf
from storage.records import Verdict
from tests.fakes import FakeClock
from tests.sender_auth.original import load
from tests.sender_auth.zone import TIMEOUT, InlineThreads, ZoneResolver

original = load("spf")


def check(
    zone: dict[str, dict[str, list[Any]]],
    *,
    sender: str | None = "a@example.com",
    address: str = "192.0.2.1",
    helo: str = "mail.example.com",
) -> tuple[Verdict, ZoneResolver, InlineThreads]:
    resolver, threads = ZoneResolver(zone), InlineThreads()
    verdict = asyncio.run(
        check_spf(
            resolver,
            threads,  # type: ignore[arg-type]  # stands in for Threads
            address=address,
            sender=sender,
            helo=helo,
            receiver="mx.example.net",
        )
    )
    return verdict, resolver, threads


def record(text: str) -> dict[str, dict[str, list[Any]]]:
    return {"example.com": {"TXT": [text]}}


def test_mail_from_is_the_identity() -> None:
    verdict, _, _ = check(record("v=spf1 ip4:192.0.2.1 -all"))
    assert verdict == Verdict("spf", "pass", "example.com", "", {"smtp.mailfrom": "a@example.com"})


def test_helo_stands_in_for_a_null_sender() -> None:
    zone = {"mail.example.com": {"TXT": ["v=spf1 a -all"], "A": ["192.0.2.1"]}}
    verdict, _, _ = check(zone, sender=None)
    assert verdict == Verdict("spf", "pass", "mail.example.com", "", {"smtp.helo": "mail.example.com"})


@pytest.mark.parametrize("helo", ["localhost", "[192.0.2.1]", "", "a b.example", "-", "x" * 300 + ".example"])
def test_helo_that_is_no_domain_gives_none_without_a_lookup(helo: str) -> None:
    verdict, resolver, _ = check({}, sender=None, helo=helo)
    assert (verdict.result, verdict.domain, resolver.asked) == ("none", "", [])


@pytest.mark.parametrize("address", ["", "unix", "fe80::1%eth0", "192.0.2"])
def test_client_without_an_ip_address_gives_none(address: str) -> None:
    verdict, resolver, _ = check(record("v=spf1 -all"), address=address)
    assert (verdict.result, resolver.asked) == ("none", [])


def test_ipv4_mapped_address_is_ipv4() -> None:
    assert check(record("v=spf1 ip4:192.0.2.1 -all"), address="::ffff:192.0.2.1")[0].result == "pass"


@pytest.mark.parametrize("term", ["mx", "ptr"])
def test_hosts_without_an_address_of_the_clients_kind_are_no_void_terms(term: str) -> None:
    hosts = {f"h{number}.example.com": {"A": ["192.0.2.7"]} for number in range(4)}
    reverse = "1." + "0." * 23 + "8.b.d.0.1.0.0.2.ip6.arpa"
    zone = {
        **record(f"v=spf1 {term} ip6:2001:db8::1 -all"),
        **hosts,
        reverse: {"PTR": list(hosts)},
    }
    zone["example.com"]["MX"] = [(10, host) for host in hosts]
    assert check(zone, address="2001:db8::1")[0].result == "pass"


def test_more_mx_records_than_may_be_looked_up_are_an_error() -> None:
    zone = record("v=spf1 mx -all")
    zone["example.com"]["MX"] = [(10, f"h{number}.example.com") for number in range(11)]
    assert check(zone)[0].result == "permerror"


def remembering(
    zone: dict[str, dict[str, list[Any]]], *asked: tuple[str, str]
) -> tuple[list[str], ZoneResolver, FakeClock]:
    """Results for (sender, address) pairs in one memory, a second apart."""
    resolver, clock = ZoneResolver(zone), FakeClock()
    memory = spf_check.Memory(clock)

    async def all_of_them() -> list[str]:
        results = []
        for sender, address in asked:
            verdict = await check_spf(
                resolver,
                InlineThreads(),  # type: ignore[arg-type]  # stands in for Threads
                address=address,
                sender=sender,
                helo="mail.example.com",
                receiver="mx.example.net",
                memory=memory,
            )
            assert verdict.properties == {"smtp.mailfrom": sender}
            results.append(verdict.result)
            clock.advance(35)
        return results

    return asyncio.run(all_of_them()), resolver, clock


def test_outcome_holds_for_an_address_and_a_domain_and_no_longer_than_its_answers() -> None:
    zone = record("v=spf1 ip4:192.0.2.1 -all")
    ann, bob = ("ann@example.com", "192.0.2.1"), ("bob@example.com", "192.0.2.1")
    results, resolver, _ = remembering(zone, ann, bob, ("ann@example.com", "192.0.2.2"), ann)
    assert results == ["pass", "pass", "fail", "pass"]
    assert len(resolver.asked) == 3  # the second is remembered, and the last came after a minute


@pytest.mark.parametrize("text", ["v=spf1 exists:%{l}.ok.example -all", "v=spf1 redirect=next.example"])
def test_outcome_that_a_macro_took_part_in_is_not_remembered(text: str) -> None:
    zone = {
        **record(text),
        "next.example": {"TXT": ["v=spf1 exists:%{l}.ok.example -all"]},
        "ann.ok.example": {"A": ["127.0.0.2"]},
    }
    asked = [(f"{name}@example.com", "192.0.2.1") for name in ("ann", "bob", "ann")]
    assert remembering(zone, *asked)[0] == ["pass", "fail", "pass"]


def test_failed_lookup_is_not_remembered() -> None:
    zone: dict[str, dict[str, list[Any]]] = {"example.com": {"TXT": [TIMEOUT]}}
    results, resolver, _ = remembering(zone, *[("ann@example.com", "192.0.2.1")] * 2)
    assert results == ["temperror", "temperror"]
    assert len(resolver.asked) == 2


def test_at_sign_in_a_quoted_local_part_moves_no_domain() -> None:
    zone = {**record("v=spf1 -all"), "evil.example": {"TXT": ["v=spf1 +all"]}}
    verdict, resolver, _ = check(zone, sender='"x@evil.example"@example.com')
    assert (verdict.result, verdict.domain) == ("fail", "example.com")
    assert {name for name, _ in resolver.asked} == {"example.com"}


def test_macro_sees_the_real_local_part() -> None:
    zone = {**record("v=spf1 exists:%{l}.ok.example -all"), "b.ok.example": {"A": ["127.0.0.2"]}}
    assert check(zone, sender="b@example.com")[0].result == "pass"
    assert check(zone, sender="c@example.com")[0].result == "fail"


def test_internationalised_domain_is_asked_for_in_a_labels() -> None:
    verdict, resolver, _ = check(
        {"xn--bcher-kva.example": {"TXT": ["v=spf1 -all"]}}, sender="a@Bücher.example"
    )
    assert (verdict.result, verdict.domain) == ("fail", "xn--bcher-kva.example")
    assert resolver.asked == [("xn--bcher-kva.example", "TXT")]


def test_explanation_is_fetched_for_fail_alone() -> None:
    zone = {**record("v=spf1 ip4:192.0.2.1 -all exp=why.example"), "why.example": {"TXT": ["%{i} may not"]}}
    assert check(zone, address="192.0.2.9")[0].reason == "192.0.2.9 may not"
    verdict, resolver, _ = check(zone)
    assert verdict.result == "pass"
    assert ("why.example", "TXT") not in resolver.asked


def test_explanation_is_printable_and_short() -> None:
    zone = {**record("v=spf1 -all exp=why.example"), "why.example": {"TXT": ["a\r\nX: y\x1b" + "z" * 400]}}
    reason = check(zone)[0].reason
    assert reason.isprintable() and len(reason) <= 200


@pytest.mark.parametrize("explanation", [["x" * 600], ["one", "two"], [TIMEOUT]])
def test_unusable_explanation_is_passed_over(explanation: list[str]) -> None:
    zone = {**record("v=spf1 -all exp=why.example"), "why.example": {"TXT": explanation}}
    verdict = check(zone)[0]
    assert (verdict.result, verdict.reason) == ("fail", "SPF fail - not authorized")


def test_temporary_failure_of_the_record_is_temperror() -> None:
    assert check({"example.com": {"TXT": [TIMEOUT]}})[0].result == "temperror"


@pytest.mark.parametrize(
    "zone",
    [
        {"1.2.0.192.in-addr.arpa": {"PTR": [TIMEOUT]}},
        {"1.2.0.192.in-addr.arpa": {"PTR": ["h.example.com"]}, "h.example.com": {"A": [TIMEOUT]}},
    ],
)
def test_failures_of_ptr_match_nothing_and_end_nothing(zone: dict[str, dict[str, list[Any]]]) -> None:
    assert check({**record("v=spf1 ptr ?all"), **zone})[0].result == "neutral"


def test_more_than_ten_terms_that_ask_are_permerror() -> None:
    terms = " ".join(f"a:h{number}.example" for number in range(11))
    hosts = {f"h{number}.example": {"A": ["192.0.2.99"]} for number in range(11)}
    verdict, resolver, _ = check({**record(f"v=spf1 {terms} -all"), **hosts})
    assert verdict.result == "permerror"
    assert len(resolver.asked) == 11


def test_more_than_two_void_lookups_are_permerror() -> None:
    terms = " ".join(f"a:h{number}.example" for number in range(5))
    verdict, resolver, _ = check(record(f"v=spf1 {terms} +all"))
    assert verdict.result == "permerror"
    assert len(resolver.asked) == 4


def test_hosts_of_mx_are_asked_for_side_by_side_and_at_most_ten() -> None:
    zone: dict[str, dict[str, list[Any]]] = {
        "example.com": {"TXT": ["v=spf1 mx -all"], "MX": [(1, f"m{n}.example") for n in range(12)]}
    }
    verdict, resolver, _ = check(zone)
    assert verdict.result == "permerror"  # RFC 7208 4.6.4: more than ten
    assert sum(rdtype == "A" for _, rdtype in resolver.asked) == 10


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("v=spf1 " + "ip4:192.0.2.200 " * 600 + "+all", "permerror"),  # too long to be read
        ("v=spf1 exists:" + "%{" * 300 + " -all", "permerror"),
        ("v=spf1 a:" + "a" * 600 + ".b -all", "permerror"),
        ("v=spf1 x" + "=" * 600, "permerror"),
        ("v=spf1 exists:%{d" + "9" * 400 + "}.example -all", "fail"),
        ("x" * 20_000, "none"),
    ],
)
def test_hostile_records_are_bounded(text: str, result: str) -> None:
    assert check(record(text))[0].result == result


def test_costly_evaluation_leaves_the_loop() -> None:
    assert check(record("v=spf1 " + "ip4:192.0.2.200 " * 200 + "-all"))[2].computed == 1
    assert check(record("v=spf1 ip4:192.0.2.200 -all"))[2].computed == 0


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80).map(lambda octets: b"v=spf1 " + octets))
def test_no_record_makes_it_raise(octets: bytes) -> None:
    verdict = check({"example.com": {"TXT": [octets]}})[0]
    assert verdict.result in {"pass", "fail", "softfail", "neutral", "none", "permerror", "temperror"}


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(["a", "A", "1", "-", ".", "%", "{d}", "_", "é", "\n"]), max_size=14))
def test_top_label_pattern_splits_as_pyspfs(letters: list[str]) -> None:
    text = "".join(letters)
    assert patched.RE_TOPLAB.split(text) == original.RE_TOPLAB.split(text)
    assert bool(patched.RE_INVALID_MACRO.search(text)) == bool(original.RE_INVALID_MACRO.search(text))


def test_pyspf_never_asks_the_dns_itself() -> None:
    assert patched.DNSLookup is spf_check._look_up
