"""The DNS records that the owner of a mail domain publishes.

Owns their names, values and the reason for each; looks nothing up.
RFC 5321 5 (MX), 7208 (SPF), 6376 (DKIM), 9989 (DMARC), 9990 (reports).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from storage.records import DkimKey


@dataclass(frozen=True, slots=True)
class ZoneRecord:
    """One record: absolute name without the last dot, value as a zone file has it, unquoted."""

    type: str
    name: str
    value: str
    why: str


_KEYS = {
    "made": "the next public key, not in use before it is published,",
    "published": "the next public key, soon in use,",
    "retiring": "the last public key, for mail on the way,",
}


def records(
    domain: str, *, hostname: str, keys: Sequence[DkimKey], report_address: str = ""
) -> list[ZoneRecord]:
    """Return what to publish for a domain served by `hostname` and signed with `keys`.

    report_address: where DMARC reports go; '' is the domain's postmaster.
    """
    address = report_address or f"postmaster@{domain}"
    return [
        ZoneRecord("MX", domain, f"10 {hostname}.", "mail for the domain comes here"),
        ZoneRecord(
            "TXT", domain, "v=spf1 mx -all", "this server, and no other, sends for the domain (RFC 7208)"
        ),
        *key_records(keys),
        ZoneRecord(
            "TXT",
            f"_dmarc.{domain}",
            f"v=DMARC1; p=quarantine; rua=mailto:{quote(address, safe='@')}",
            "what receivers do with mail that proves neither, and where they report (RFC 9989)",
        ),
        *_consent(domain, address.rpartition("@")[2]),
    ]


def key_records(keys: Sequence[DkimKey]) -> list[ZoneRecord]:
    """Return the records of keys, whose owner is told what each is for."""
    return [
        ZoneRecord(
            "TXT",
            f"{key.selector}._domainkey.{key.domain}",
            key.public_record,
            f"{_KEYS.get(key.state, 'the public key')} of {key.algorithm} signatures (RFC 6376)",
        )
        for key in keys
    ]


def _consent(domain: str, host: str) -> list[ZoneRecord]:
    """Return the record by which a destination outside the domain agrees to its reports (RFC 9990 4)."""
    if host == domain or domain.endswith("." + host) or host.endswith("." + domain):
        return []
    name = f"{domain}._report._dmarc.{host}"
    return [ZoneRecord("TXT", name, "v=DMARC1;", f"{host} takes the reports about {domain} (RFC 9990)")]
