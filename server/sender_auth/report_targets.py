"""Where a domain's reports go: the addresses of a rua tag that agreed to get them.

Owns the reading of mailto URIs and the verification of external destinations: a domain
outside the reported one's organization must say in the DNS that it wants the reports, else
anybody could have them sent to a victim. RFC 9990 4, RFC 6068 (mailto).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from urllib.parse import unquote

from server.dns import DnsFailure, DnsTemporary, Resolver
from server.mail.address import AddressSyntax, normalise_domain, parse_mailbox
from server.sender_auth import dmarc
from server.sender_auth.lookups import Lookups

MAX_TARGETS = 5  # of one record
MAX_NAME_OCTETS = 253
DEADLINE_SECONDS = 20.0


@dataclass(slots=True)
class Targets:
    """What became of a rua tag. agreed: addresses; refused: address to reason; open: not known yet."""

    agreed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)


def mail_addresses(rua: str) -> list[str]:
    """Return the addresses of a rua tag's mailto URIs in order, each once, MAX_TARGETS at most.

    Other schemes and what is malformed are passed over (RFC 9990 3.5).
    """
    found: dict[str, None] = {}
    for uri in dmarc.report_uris(rua):
        scheme, _, rest = uri.partition(":")
        if scheme.lower() == "mailto" and (address := _address(rest)):
            found[address] = None
    return list(found)[:MAX_TARGETS]


def _address(text: str) -> str:
    try:
        mailbox = parse_mailbox(unquote(text.partition("?")[0], errors="strict"), smtputf8=True)
        domain = normalise_domain(mailbox.domain)
    except (AddressSyntax, UnicodeDecodeError):
        return ""
    if domain.startswith("[") or "." not in domain:
        return ""
    return f"{str(mailbox).rpartition('@')[0]}@{domain}"


async def find_targets(resolver: Resolver, *, domain: str, rua: str) -> Targets:
    """Return where the reports about a policy domain go, as its rua tag and the destinations say."""
    targets = Targets()
    for address in mail_addresses(rua):
        host = address.rpartition("@")[2]
        try:
            found = (
                [address]
                if await _is_own(resolver, domain, host)
                else await _agreed(resolver, domain, host, address)
            )
        except (DnsTemporary, dmarc.Unknown) as error:
            targets.open[address] = f"no answer from the DNS: {error}"
        except _Refused as error:
            targets.refused[address] = str(error)
        else:
            targets.agreed += [one for one in found if one not in targets.agreed]
    return targets


class _Refused(Exception):
    """The destination does not want these reports; the text says how that is known."""


async def _is_own(resolver: Resolver, domain: str, host: str) -> bool:
    """Return whether destination and reported domain have one organizational domain; raises Unknown."""
    if host == domain:
        return True
    if host.rpartition(".")[2] != domain.rpartition(".")[2]:
        return False
    lookups = Lookups(resolver)
    await lookups.walk((domain, host), by=asyncio.get_running_loop().time() + DEADLINE_SECONDS)
    records = lookups.records
    return dmarc.organizational_domain(domain, records) == dmarc.organizational_domain(host, records)


async def _agreed(resolver: Resolver, domain: str, host: str, address: str) -> list[str]:
    """Return the addresses that a destination host names for a domain's reports, or the one asked about."""
    name = f"{domain}._report._dmarc.{host}"
    if len(name) > MAX_NAME_OCTETS:
        raise _Refused(f"the name {name[:60]}… is too long to ask for")
    try:
        answer = await resolver.resolve(name, "TXT")
    except DnsTemporary:
        raise
    except DnsFailure:
        raise _Refused(f"{host} does not say at {name} that it takes these reports") from None
    texts = [b"".join(strings).decode("ascii", "replace") for strings in answer.records]
    records = [record for text in texts if (record := dmarc.parse(text)) is not None]
    if not records:
        raise _Refused(f"{name} holds no DMARC record")
    override = next((record.rua for record in records if record.rua), "")
    if not override:
        return [address]
    others = mail_addresses(override)
    # RFC 9990 4, 9: the new place must be at the same host, else the report goes nowhere.
    if not others or any(one.rpartition("@")[2] != host for one in others):
        raise _Refused(f"{name} names a place at another host")
    return others
