"""The DMARC records that a domain's owner is told to publish."""

import pytest

from server.sender_auth import dmarc, zone
from server.sender_auth.report_targets import mail_addresses


def told(domain: str, address: str) -> dict[str, str]:
    made = zone.records(domain, hostname="mx.example.com", keys=(), report_address=address)
    return {one.name: one.value for one in made if "_dmarc" in one.name}


@pytest.mark.parametrize(
    ("domain", "address", "expected", "consent"),
    [
        ("example.com", "", "postmaster@example.com", None),
        ("example.com", "dmarc-reports@example.com", "dmarc-reports@example.com", None),
        ("mail.example.com", "dmarc-reports@example.com", "dmarc-reports@example.com", None),
        ("example.com", "r@mail.example.com", "r@mail.example.com", None),
        ("other.example", "r@example.com", "r@example.com", "other.example._report._dmarc.example.com"),
        ("example.com", "a!b+c@example.com", "a!b+c@example.com", None),
    ],
)
def test_policy_record_names_the_report_address(
    domain: str, address: str, expected: str, consent: str | None
) -> None:
    found = told(domain, address)
    record = dmarc.parse(found[f"_dmarc.{domain}"])
    assert record is not None and record.p == "quarantine"
    assert mail_addresses(record.rua) == [expected]
    assert set(found) == {f"_dmarc.{domain}", *([consent] if consent else [])}
    if consent:
        assert dmarc.parse(found[consent]) is not None
