"""Recipient to destination: local inbox, forward, drop, remote, or a refusal; recipients by organization.

Owns the order of address rules and a bounded cache of their answers, dropped
whole when any account changes. Decides nothing about policy or quota.
RFC 5321 3.6 (domains), 4.5.1 (postmaster), RFC 5233 (subaddress with '+').
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from server.mail.address import domain_of, normalise
from server.refusal import Refusal
from server.return_tokens import has_form, made_at
from storage import accounts, returning
from storage.records import Mailbox, Recipient, Route

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.return_tokens import ReturnTokens
    from server.threads import Threads
    from storage.db import Notice

CACHE_LIMIT = 100_000
RETURN_PREFIX = "fwd-"
# A server tries for five days as a rule (RFC 5321 4.5.4.1), and one behind it again.
RETURN_MICROSECONDS = 30 * 86_400 * 1_000_000
_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_RETURN = re.compile(rf"{RETURN_PREFIX}([{_DIGITS}]{{26}})@", re.IGNORECASE)
ROLE_LOCAL_PARTS = frozenset({"postmaster", "abuse"})  # RFC 5321 4.5.1, RFC 2142 4


@dataclass(frozen=True, slots=True)
class Local:
    """An inbox of this appliance; address is the recipient in normal form."""

    mailbox: Mailbox
    address: str


@dataclass(frozen=True, slots=True)
class Remote:
    """A domain that is not ours."""

    domain: str


@dataclass(frozen=True, slots=True)
class Forward:
    """An address whose mail goes on to another one."""

    organization_id: str
    target: str
    is_return: bool = False  # a notice about forwarded or sent mail, on its way to the sender of that


@dataclass(frozen=True, slots=True)
class Drop:
    """A route that accepts and keeps nothing; the timeline shows it."""

    organization_id: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """No mail is taken for this address."""

    code: int
    enhanced: str
    text: str

    def refusal(self) -> Refusal:
        """Return the refusal to raise."""
        return Refusal(self.code, self.enhanced, self.text)


Resolution = Local | Remote | Forward | Drop | Refuse


@dataclass(slots=True)
class Group:
    """A message's recipients of one organization. recipients: as they were given, whatever they lead to."""

    organization_id: str
    recipients: list[Recipient] = field(default_factory=list)
    local: list[tuple[Recipient, Local]] = field(default_factory=list)
    remote: list[tuple[Recipient, str]] = field(default_factory=list)  # with the queue's domain
    dropped: list[Recipient] = field(default_factory=list)
    _named: set[str] = field(default_factory=set)

    def place(self, recipient: Recipient, local: Local) -> None:
        """Add a recipient with its inbox."""
        self.recipients.append(recipient)
        if self._is_new(local.address):
            self.local.append((recipient, local))

    def send(self, recipient: Recipient, address: str) -> None:
        """Add a recipient whose mail goes to an address by the queue."""
        self.recipients.append(recipient)
        if self._is_new(address):
            onward = recipient if address == recipient.address else replace(recipient, address=address)
            self.remote.append((onward, domain_of(address)))

    def drop(self, recipient: Recipient) -> None:
        """Add a recipient whose mail is not kept."""
        self.recipients.append(recipient)
        self.dropped.append(recipient)

    def also_place(self, recipient: Recipient, local: Local) -> None:
        """Add an inbox that policy names; who was named to us stays as it was."""
        if self._is_new(local.address):
            self.local.append((recipient, local))

    def also_send(self, recipient: Recipient) -> None:
        """Add an address that policy names, by the queue."""
        if self._is_new(recipient.address):
            self.remote.append((recipient, domain_of(recipient.address)))

    def discard(self) -> None:
        """Let nobody get the message."""
        self.dropped.extend(recipient for recipient, _ in (*self.local, *self.remote))
        self.clear()

    def queue_all(self) -> None:
        """Send inboxes' mail by the queue too, whose local lane brings it home."""
        for recipient, local in self.local:
            # RFC 5321 4.5.1: 'postmaster' comes without a domain, and the queue needs one.
            address = recipient.address if "@" in recipient.address else local.mailbox.address
            self.remote.append((replace(recipient, address=address), domain_of(address)))
        self.local.clear()

    def clear(self) -> None:
        """Forget where mail was to go; who was named stays."""
        self.local.clear()
        self.remote.clear()
        self._named.clear()

    def _is_new(self, address: str) -> bool:
        """Return whether an address is named for the first time: one named again gets no second copy."""
        is_new = address not in self._named
        self._named.add(address)
        return is_new


def is_role(address: str) -> bool:
    """Return whether an address is postmaster's or abuse's, in any case, of any domain or none."""
    local = address.rpartition("@")[0] or address
    # A quoted string names the same mailbox (RFC 5321 4.1.2).
    return local.strip('"').split("+", 1)[0].lower() in ROLE_LOCAL_PARTS


NO_OPERATOR = Refuse(451, "4.3.5", "Mail for the operator cannot be taken now, try again later")
NO_SUCH_USER = Refuse(550, "5.1.1", "No such mailbox here")
NO_RETURN_PATH = Refuse(550, "5.7.1", "This return path was not made here, or has expired")


class Routing:
    """Answers where an address leads, from cache or from storage."""

    def __init__(
        self,
        threads: Threads,
        *,
        postmaster: str = "",
        clock: Clock | None = None,
        tokens: ReturnTokens | None = None,
    ) -> None:
        self._threads = threads
        self._tokens = tokens
        self._clock = clock
        self._postmaster = normalise(postmaster) if postmaster else ""
        self._cache: dict[str, Resolution] = {}
        self._local_domains: dict[str, bool] = {}
        self._generation = 0  # a look-up that a change overtook answers once and is not kept
        self._unsubscribe = threads.hub.subscribe("accounts", None, self._forget)

    def _forget(self, _notice: Notice) -> None:
        self._generation += 1
        self._cache.clear()
        self._local_domains.clear()

    async def resolve(self, address: str) -> Resolution:
        """Return where mail for a syntactically valid address goes."""
        # RFC 5321 4.5.1: 'RCPT TO:<postmaster>' comes without a domain.
        found = self._cache.get(address)
        if found is None and (returned := _RETURN.match(address)) is not None:
            found = await self._returned(returned[1].lower(), domain_of(address))
        if found is None and has_form(address):
            found = await self._bounced(address)
        if found is None:
            key = normalise(address) if "@" in address else address.lower()
            generation = self._generation
            found = await self._threads.read(lambda connection: self._look_up(connection, key))
            if len(self._cache) >= CACHE_LIMIT:
                self._cache.clear()
            if generation == self._generation:
                self._cache[address] = found
        return found

    async def _bounced(self, address: str) -> Resolution | None:
        """Return the way of a bounce to who sent the mail; None where the domain is none of ours."""
        if not await self.is_local(domain_of(address)):
            return None
        delivery_id = None
        if self._tokens is not None and self._clock is not None:
            delivery_id = self._tokens.delivery(normalise(address), now=self._clock.now())
        if delivery_id is None:
            return NO_RETURN_PATH
        sent = await self._threads.read(lambda c: returning.sender_of(c, delivery_id=delivery_id))
        if sent is None:
            return NO_RETURN_PATH
        organization_id, sender = sent
        if isinstance(await self.resolve(sender), Refuse):
            return Drop(organization_id)  # it is read all the same
        return Forward(organization_id, sender, is_return=True)

    async def _returned(self, identifier: str, domain: str) -> Resolution | None:
        """Return the way back to the sender of a forwarded delivery; None where there is none."""
        begun = made_at(identifier)
        if self._clock is None or self._clock.now() - begun > RETURN_MICROSECONDS:
            return None

        def look_up(connection: Connection) -> Resolution | None:
            owner = accounts.find_domain(connection, name=domain)
            if owner is None:
                return None
            sender = returning.original_sender(
                connection, delivery_id=f"dlv_{identifier}", organization_id=owner.organization_id
            )
            return None if sender is None else Forward(owner.organization_id, sender, is_return=True)

        return await self._threads.read(look_up)

    async def is_local(self, domain: str) -> bool:
        """Return whether the appliance is the destination of a domain (lower-case A-labels)."""
        known = self._local_domains.get(domain)
        if known is None:
            generation = self._generation
            row = await self._threads.read(lambda connection: accounts.find_domain(connection, name=domain))
            known = row is not None
            if len(self._local_domains) >= CACHE_LIMIT:
                self._local_domains.clear()
            if generation == self._generation:
                self._local_domains[domain] = known
        return known

    def _look_up(self, connection: Connection, address: str) -> Resolution:
        local, _, domain = address.rpartition("@")
        if not local:
            return self._postmaster_mailbox(connection, address, None)
        owner = accounts.find_domain(connection, name=domain)
        if owner is None:
            return Remote(domain)
        base = local.split("+", 1)[0]
        candidates = [name for name in dict.fromkeys((local, base)) if name]
        patterns = [f"{name}@{domain}" for name in (*candidates, "*")]
        found = accounts.find_routes(connection, domain=domain, patterns=patterns)
        routes = {route.pattern: route for route in found}
        for candidate in candidates:
            route = routes.get(f"{candidate}@{domain}")
            if route is not None:
                return self._follow(connection, route, address)
            mailbox = accounts.find_mailbox(connection, address=f"{candidate}@{domain}")
            # RFC 5321 4.5.1: a closed inbox of that name does not make postmaster unknown.
            if mailbox is not None and (mailbox.state == "active" or base not in ROLE_LOCAL_PARTS):
                return _open(mailbox, address)
        if base in ROLE_LOCAL_PARTS:
            return self._postmaster_mailbox(connection, address, owner.organization_id)
        catch_all = routes.get(f"*@{domain}")
        if catch_all is not None:
            return self._follow(connection, catch_all, address)
        return NO_SUCH_USER

    def _follow(self, connection: Connection, route: Route, address: str) -> Resolution:
        if route.kind == "inbox":
            mailbox = accounts.mailbox(
                connection, organization_id=route.organization_id, mailbox_id=route.target
            )
            return _open(mailbox, address) if mailbox is not None else NO_SUCH_USER
        if route.kind == "forward":
            return Forward(route.organization_id, route.target)
        if route.kind == "drop":
            return Drop(route.organization_id)
        return Refuse(550, "5.7.1", route.target or "Mail for this address is refused")

    def _postmaster_mailbox(
        self, connection: Connection, address: str, organization_id: str | None
    ) -> Resolution:
        if self._postmaster:
            named = self._named(connection, address, organization_id)
            if named is not None:
                return named
        for owner in (organization_id, None):
            found = accounts.first_open_mailbox(connection, organization_id=owner)
            if found is not None:
                return Local(found, address)
        # Temporary: the first inbox that is made will do.
        return NO_OPERATOR

    def _named(self, connection: Connection, address: str, organization_id: str | None) -> Resolution | None:
        """Return where server.postmaster leads, None where it leads nowhere."""
        mailbox = accounts.find_mailbox(connection, address=self._postmaster)
        if mailbox is not None:
            return Local(mailbox, address) if mailbox.state == "active" else None
        if accounts.find_domain(connection, name=domain_of(self._postmaster)) is not None:
            return None
        owner = organization_id or next((one.id for one in accounts.organizations(connection, limit=1)), None)
        return Forward(owner, self._postmaster) if owner is not None else None


def operator_fault(connection: Connection, *, postmaster: str) -> str:
    """Return what keeps mail for postmaster and abuse from its reader, '' for nothing.

    postmaster: the setting server.postmaster.
    """
    fallback = accounts.first_open_mailbox(connection, organization_id=None)
    instead = f"it goes to {fallback.address} instead" if fallback else "it is answered 451"
    if not postmaster:
        if fallback is None:
            return "there is no inbox that mail for postmaster and abuse could go to: it is answered 451"
        return ""
    address = normalise(postmaster)
    mailbox = accounts.find_mailbox(connection, address=address)
    if mailbox is not None:
        return (
            "" if mailbox.state == "active" else f"server.postmaster: {address} is {mailbox.state}: {instead}"
        )
    if accounts.find_domain(connection, name=domain_of(address)) is None:
        return ""  # elsewhere: the queue brings it there
    return f"server.postmaster: there is no inbox {address}: {instead}"


def return_address(delivery_id: str, domain: str) -> str:
    """Return the address in a domain of ours that leads back to the sender of a forwarded delivery.

    The id's 80 random bits are its secret: no other address can be made to lead anywhere.
    """
    return f"{RETURN_PREFIX}{delivery_id.partition('_')[2]}@{domain}"


def is_return_address(address: str) -> bool:
    """Whether an address has the form of those that lead notices back to a sender."""
    return _RETURN.match(address) is not None or has_form(address)


def sort(groups: dict[str, Group], recipient: Recipient, resolution: Resolution) -> None:
    """Put a recipient into its organization's group; raises Refusal where no mail is taken for it."""
    if isinstance(resolution, Local):
        owner = resolution.mailbox.organization_id
        groups.setdefault(owner, Group(owner)).place(recipient, resolution)
    elif isinstance(resolution, Forward):
        # RFC 5321 3.9.1: an alias keeps the reverse-path.
        owner = resolution.organization_id
        groups.setdefault(owner, Group(owner)).send(recipient, resolution.target)
    elif isinstance(resolution, Drop):
        owner = resolution.organization_id
        groups.setdefault(owner, Group(owner)).drop(recipient)
    elif isinstance(resolution, Refuse):
        # Closed between RCPT and the end of data: the sender learns it now.
        raise resolution.refusal()
    else:
        raise Refusal(550, "5.7.1", "Relaying denied")


def _open(mailbox: Mailbox, address: str) -> Resolution:
    if mailbox.state == "active":
        return Local(mailbox, address)
    if mailbox.state == "suspended":
        return Refuse(450, "4.2.1", "Mailbox is disabled for now")
    return Refuse(550, "5.2.1", "Mailbox is closed")
