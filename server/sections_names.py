"""Settings of what the DNS says of clients, and of greylisting.

Owns sections as sections owns the others.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from server.dns_list import FORM, DnsList, Lists, parse
from server.settings_kinds import DAY, Section
from server.settings_text import setting


def _entry(text: str) -> str:
    parse(text)
    return text


Entries = Annotated[tuple[Annotated[str, AfterValidator(_entry)], ...], Field(strict=False, max_length=50)]


class DnsLists(Section):
    """Lists of clients and domains that others keep in the DNS (RFC 5782); only what is named is asked."""

    block: Entries = setting(
        (),
        "Lists of addresses to be wary of, as zen.spamhaus.org=127.0.0.[2..11]: a shipped rule refuses what "
        "comes from them. CODES says which answers count, all unless given; WEIGHT, 1 unless given, is what "
        "the list adds to the fact dnsbl_score.",
        allowed=FORM,
    )
    allow: Entries = setting(
        (), "Lists of addresses to be trusted, as list.dnswl.org: what they have is spared.", allowed=FORM
    )
    block_domains: Entries = setting(
        (),
        "Lists of domains to be wary of, as dbl.spamhaus.org=127.0.1.[2..99]; asked about the domain of the "
        "envelope sender and the EHLO name.",
        allowed=FORM,
    )
    timeout_seconds: float = setting(
        4.0,
        "Time for a list, or a client's name, to be looked up; it begins with the connection. What is open "
        "then is not listed.",
        at_least=0.1,
        at_most=30,
    )

    @property
    def configured(self) -> frozenset[str]:
        """What rules may need of these, by the names that they need it under."""
        there = {"blocklists": self.block, "domain-blocklists": self.block_domains}
        return frozenset(name for name, entries in there.items() if entries)

    @property
    def lists(self) -> Lists:
        """The lists, read."""
        return Lists(_read(self.block), _read(self.allow), _read(self.block_domains))


def _read(entries: tuple[str, ...]) -> tuple[DnsList, ...]:
    return tuple(map(parse, entries))


class Greylist(Section):
    """What the action greylist of a rule does (RFC 6647). No shipped rule is on that uses it."""

    delay_seconds: int = setting(
        300, "How soon a retry is early still, and refused again.", at_least=1, at_most=3600
    )
    window_seconds: int = setting(
        DAY, "How late a retry counts; after that the sender is new again.", at_least=3600, at_most=7 * DAY
    )
    keep_days: int = setting(
        35,
        "How long a client that came back is known for a sender's domain, counted from its last message.",
        unit="days",
        at_least=1,
        at_most=366,
    )
