"""Under what name a sender is remembered: never under one that anybody can write into a header."""

import pytest

from server.origin import NOBODY, Origin, is_vouched_for, network_of, origin_of
from storage.records import Verdict

ADDRESS = "Ada@Far.Example"
VOUCHED = Origin("address ada@far.example", "domain far.example", is_authenticated=True)
LOOSE = Origin("address ada@far.example from 192.0.2.0/24", "network 192.0.2.0/24")


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], LOOSE),
        ([Verdict("dmarc", "pass", "far.example")], VOUCHED),
        ([Verdict("dmarc", "none"), Verdict("spf", "pass", "far.example")], VOUCHED),
        ([Verdict("dmarc", "none"), Verdict("dkim", "pass", "FAR.example")], VOUCHED),
        ([Verdict("dkim", "pass", "example")], LOOSE),  # a top level domain vouches for nobody
        ([Verdict("dkim", "pass", "other.example"), Verdict("spf", "pass", "bounces.far.example")], LOOSE),
        ([Verdict("dkim", "fail", "far.example"), Verdict("spf", "softfail", "far.example")], LOOSE),
        # The domain's own policy is stricter than what is aligned at first sight.
        ([Verdict("dmarc", "fail", "far.example"), Verdict("dkim", "pass", "far.example")], LOOSE),
        ([Verdict("dmarc", "pass"), Verdict("dmarc", "fail")], LOOSE),
        ([Verdict("arc", "pass", "far.example")], LOOSE),
    ],
)
def test_a_domain_stands_behind_its_addresses_or_the_network_goes_with_them(verdicts, expected):
    assert origin_of([ADDRESS], verdicts, "192.0.2.77") == expected


def test_a_domain_above_vouches_and_one_below_does_not():
    assert is_vouched_for("news.far.example", [Verdict("dkim", "pass", "far.example")])
    assert not is_vouched_for("far.example", [Verdict("dkim", "pass", "news.far.example")])
    assert not is_vouched_for("notfar.example", [Verdict("dkim", "pass", "far.example")])


@pytest.mark.parametrize("authors", [[], ["a@far.example", "b@far.example"], ["no address"], [""]])
def test_several_authors_or_none_are_nobody(authors):
    assert origin_of(authors, [Verdict("dmarc", "pass", "far.example")], "192.0.2.1") is NOBODY


def test_without_network_and_authentication_nobody_is_known():
    assert origin_of([ADDRESS], [], "") is NOBODY


@pytest.mark.parametrize(
    ("client", "network"),
    [
        ("192.0.2.200", "192.0.2.0/24"),
        ("::ffff:192.0.2.200", "192.0.2.0/24"),
        ("2001:db8:1:2:3::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("nonsense", ""),
        ("", ""),
    ],
)
def test_networks_are_as_wide_as_one_sender(client, network):
    assert network_of(client) == network
