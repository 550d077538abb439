"""Where reports go: what a rua tag names, and who agreed."""

import asyncio

import pytest

from server.sender_auth.report_targets import Targets, find_targets, mail_addresses
from tests.sender_auth.zone import TIMEOUT, ZoneResolver


@pytest.mark.parametrize(
    ("rua", "expected"),
    [
        ("mailto:a@example.com", ["a@example.com"]),
        (" mailto:a@example.com!10m , MAILTO:b@Example.COM ", ["a@example.com", "b@example.com"]),
        ("https://example.com/x, mailto:a@example.com?subject=x", ["a@example.com"]),
        ("mailto:a%2Bb@example.com, mailto:a+b@example.com", ["a+b@example.com"]),
        ("mailto:a, mailto:@, mailto:a@localhost, mailto:a@[127.0.0.1], a@example.com", []),
        ("mailto:a%0d%0aBcc:x@example.com, mailto:a%00@example.com, mailto:%ff@example.com", []),
        (",".join(f"mailto:a{n}@example.com" for n in range(20)), [f"a{n}@example.com" for n in range(5)]),
        ("", []),
    ],
)
def test_addresses_of_a_record(rua: str, expected: list[str]) -> None:
    assert mail_addresses(rua) == expected


def find(rua: str, zone: dict[str, object], domain: str = "example.com") -> Targets:
    resolver = ZoneResolver({name: {"TXT": value} for name, value in zone.items()})  # type: ignore[dict-item]
    return asyncio.run(find_targets(resolver, domain=domain, rua=rua))


RECORD = ["v=DMARC1; p=none"]
CONSENT = "example.com._report._dmarc.other.example"


def test_own_organization_needs_no_consent() -> None:
    zone = {"_dmarc.example.com": RECORD, "_dmarc.mail.example.com": RECORD}
    found = find("mailto:a@example.com, mailto:b@mail.example.com", zone)
    assert (found.agreed, found.refused, found.open) == (["a@example.com", "b@mail.example.com"], {}, {})
    assert find("mailto:a@example.com", zone, "mail.example.com").agreed == ["a@example.com"]


@pytest.mark.parametrize("text", ["v=DMARC1", "v=DMARC1;", "v=DMARC1; p=none"])
def test_consent_is_enough(text: str) -> None:
    assert find("mailto:a@other.example", {CONSENT: [text]}).agreed == ["a@other.example"]


def test_one_good_record_among_others_is_enough() -> None:
    assert find("mailto:a@other.example", {CONSENT: ["spam", "v=DMARC1"]}).agreed == ["a@other.example"]


@pytest.mark.parametrize("zone", [{}, {CONSENT: ["yes"]}, {CONSENT: ["p=none; v=DMARC1"]}])
def test_without_consent_nothing_goes(zone: dict[str, object]) -> None:
    found = find("mailto:a@other.example", zone)
    assert found.agreed == [] and list(found.refused) == ["a@other.example"]


def test_consent_may_name_another_place_at_the_same_host() -> None:
    zone = {CONSENT: ["v=DMARC1; rua=mailto:b@other.example"]}
    assert find("mailto:a@other.example", zone).agreed == ["b@other.example"]


def test_consent_that_names_another_host_sends_nothing_anywhere() -> None:
    zone = {CONSENT: ["v=DMARC1; rua=mailto:victim@third.example"]}
    found = find("mailto:a@other.example", zone)
    assert found.agreed == [] and "another host" in found.refused["a@other.example"]


def test_silent_dns_leaves_it_open() -> None:
    found = find("mailto:a@other.example", {CONSENT: [TIMEOUT]})
    assert (found.agreed, found.refused, list(found.open)) == ([], {}, ["a@other.example"])
    found = find("mailto:a@mail.example.com", {"_dmarc.example.com": [TIMEOUT]})
    assert list(found.open) == ["a@mail.example.com"]


def test_name_beyond_the_limits_of_the_dns_is_no_consent() -> None:
    domain = ".".join(["x" * 60] * 4)
    found = find("mailto:a@other.example", {}, domain)
    assert "too long" in found.refused["a@other.example"]
