"""The DNS records that the owner of a mail domain publishes.

Owns their names, values and the reason for each; looks nothing up.
RFC 5321 5 (MX), 7208 (SPF), 6376 (DKIM), 9989 (DMARC).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from storage.records import DkimKey


@dataclass(frozen=True, slots=True)
class ZoneRecord:
    """One record: absolute name without the last dot, value as a zone file has it, unquoted."""

    type: str
    name: str
    value: str
    why: str


def records(domain: str, *, hostname: str, keys: Sequence[DkimKey]) -> list[ZoneRecord]:
    """Return what to publish for a domain served by `hostname` and signed with `keys`."""
    return [
        ZoneRecord("MX", domain, f"10 {hostname}.", "mail for the domain comes here"),
        ZoneRecord(
            "TXT", domain, "v=spf1 mx -all", "this server, and no other, sends for the domain (RFC 7208)"
        ),
        *(
            ZoneRecord(
                "TXT",
                f"{key.selector}._domainkey.{domain}",
                key.public_record,
                f"the public key of {key.algorithm} signatures (RFC 6376)",
            )
            for key in keys
        ),
        ZoneRecord(
            "TXT",
            f"_dmarc.{domain}",
            f"v=DMARC1; p=quarantine; rua=mailto:postmaster@{domain}",
            "what receivers do with mail that proves neither (RFC 9989)",
        ),
    ]
