"""Settings of transport security: what others' policies ask, what ours is, and the reports about both.

Owns sections as sections owns the others.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from server.settings_kinds import DAY, HOUR, Section, mail_address
from server.settings_text import setting


def _host(text: str) -> str:
    name = text.lower().rstrip(".")
    plain = name.removeprefix("*.").replace("-", "").replace(".", "").replace("_", "")
    if not plain.isascii() or not plain.isalnum() or ".." in name or "." not in name.removeprefix("*."):
        raise ValueError(f"{text!r} is no name of a host")
    return name


Hosts = Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], Field(strict=False, max_length=100)]


class Transport(Section):
    """TLS with other servers: DANE and MTA-STS of the domains that mail goes to, and our own policy."""

    dane: bool = setting(
        True,
        "Hold servers to their TLSA records (RFC 7672), where DNSSEC proves them: see dns.believe_ad.",
    )
    mta_sts: bool = setting(True, "Hold servers to the MTA-STS policies of domains (RFC 8461).")
    publish_mode: Literal["off", "none", "testing", "enforce"] = setting(
        "off",
        "Our own MTA-STS policy, which the role http serves as /.well-known/mta-sts.txt to requests for "
        "mta-sts.DOMAIN, DOMAIN being one of the appliance. Each such name needs an address in the DNS and a "
        "certificate that web clients trust. none takes a policy back; off serves and advises nothing.",
    )
    publish_mx: Hosts = setting(
        (),
        "MX hosts that our policy names. Empty is server.hostname.",
        allowed='a list of names, with "*" as the first label where it stands for one',
    )
    publish_max_age_seconds: int = setting(
        7 * DAY, "How long others may hold on to our policy.", at_least=HOUR, at_most=31_557_600
    )
    publish_tlsa: bool = setting(
        False,
        "Advise a TLSA record (3 1 1) of the certificate's key. For zones with DNSSEC, and keys that stay: a "
        "record of a key that is gone stops all mail from senders that use DANE.",
    )


class TlsReports(Section):
    """Reports of TLS (RFC 8460): what domains are told of how TLS with them went, and what they tell us."""

    report_address: Annotated[str, AfterValidator(mail_address)] = setting(
        "",
        "Address that reports to other domains come from, and to which others send theirs about the domains "
        "of this appliance; it needs an inbox or a route. Its domain is one of this appliance, with a DKIM "
        "key. Empty: nothing is counted and nothing is sent.",
        allowed="empty, or an address, tls-reports@ and one of the domains by custom",
    )
    send_reports: bool = setting(
        True, "Send reports to the domains that ask for them, where report_address is set."
    )
    organization_name: str = setting(
        "", "Name of the reporting organization in reports. Empty is server.hostname."
    )
    spread_seconds: int = setting(
        4 * HOUR,
        "Reports leave within this time after a day's end (UTC), each domain's at its own moment.",
        at_least=0,
        at_most=DAY,
    )
    keep_days: int = setting(
        365, "How long reports of others are kept.", unit="days", at_least=1, at_most=3660
    )

    @property
    def sends(self) -> bool:
        """Whether reports are made and sent."""
        return bool(self.report_address) and self.send_reports
