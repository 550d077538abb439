"""What this appliance publishes of its own transport security: the policy, and the DNS records.

Owns our MTA-STS policy, the id that follows from its text, and the records that a domain's
owner is told of. Serves nothing and looks nothing up. RFC 8461 3, RFC 7672 3.1.1, RFC 8460 3.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.config import locate_secret
from server.tls import CertificateError, read_leaf
from server.transport import tlsrpt
from server.transport.dane import own_record
from server.transport.mtasts import Mode, Policy

if TYPE_CHECKING:
    from pathlib import Path

    from server.config import Settings

ID_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Published:
    """What is published. policy: None for none; tlsa: of our certificate, '' for none."""

    hostname: str
    policy: Policy | None = None
    tlsa: str = ""
    report_address: str = ""


@dataclass(frozen=True, slots=True)
class Advice:
    """One record: absolute name without the last dot, value as a zone file has it, unquoted."""

    type: str
    name: str
    value: str
    why: str


def read_published(settings: Settings) -> Published:
    """Return what the settings say; blocks on the certificate's file where its record is wanted."""
    hostname = settings.server.hostname
    transport = settings.transport
    return Published(
        hostname,
        own_policy(
            transport.publish_mode, transport.publish_mx or (hostname,), transport.publish_max_age_seconds
        ),
        _own_tlsa(settings) if transport.publish_tlsa else "",
        settings.tls_reports.report_address,
    )


def own_policy(mode: str, hosts: tuple[str, ...], max_age: int) -> Policy | None:
    """Return our policy; None where nothing is published."""
    return None if mode == "off" else Policy(Mode(mode), max_age, tuple(one.lower() for one in hosts))


def _own_tlsa(settings: Settings) -> str:
    try:
        return str(own_record(read_leaf(_certificate_file(settings))))
    except (CertificateError, LookupError, ValueError):
        return ""  # the daemon does not start with such a certificate, and says why


def _certificate_file(settings: Settings) -> Path:
    if settings.tls.certificate_file:
        return locate_secret(settings.tls.certificate_file)
    return settings.server.data_directory / "tls" / "certificate.pem"


def policy_id(policy: Policy) -> str:
    """Return the id of a policy's record: another one whenever the policy is another (RFC 8461 3.1)."""
    return hashlib.sha256(policy.text.encode("utf-8")).hexdigest()[:ID_DIGITS]


def advice(domain: str, published: Published) -> list[Advice]:
    """Return the records that a domain's owner publishes for transport security."""
    found: list[Advice] = []
    if published.policy is not None:
        found += [
            Advice(
                "TXT",
                f"_mta-sts.{domain}",
                f"v=STSv1; id={policy_id(published.policy)}",
                "the domain has an MTA-STS policy; a new id says that it changed (RFC 8461)",
            ),
            Advice(
                "CNAME",
                f"mta-sts.{domain}",
                f"{published.hostname}.",
                "where the policy is fetched by HTTPS, with a certificate for this name",
            ),
        ]
    address = published.report_address or f"postmaster@{domain}"
    found.append(
        Advice(
            "TXT",
            f"_smtp._tls.{domain}",
            tlsrpt.record_of(address),
            "where others report how TLS with this server went (RFC 8460)",
        )
    )
    if published.tlsa:
        found.append(
            Advice(
                "TLSA",
                f"_25._tcp.{published.hostname}",
                published.tlsa,
                "this server's key, for zones with DNSSEC; to be changed before the key is (RFC 7672)",
            )
        )
    return found
