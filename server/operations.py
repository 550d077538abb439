"""What an operator can ask for, each as one synchronous function over the open store.

Owns the administrative acts that the command line performs, either through the
control socket of a running daemon or straight on the store when it is down.
Arguments and results are JSON-able; every change is written to the audit log.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from server import tracing
from server.arguments import WrongArguments, check
from server.dkim_acts import DKIM_ACTS
from server.login import hash_password, new_key, new_password, scram_verifier
from server.mail.address import AddressSyntax, normalise, parse_mailbox
from server.policy_acts import ACTS, note
from server.queue_operations import QUEUE_OPERATIONS
from server.routing import operator_fault
from server.sender_auth import zone
from server.sender_auth.keys import ALGORITHMS, make_key, selector_of
from server.sender_auth.rotation import USUAL, Pace
from server.suppression_operations import SUPPRESSION_OPERATIONS
from server.transport import publishing
from storage import (
    accounts,
    dkim,
    dmarc,
    events,
    grants,
    queue_view,
    reconcile,
    report_tables,
    tls_policies,
    tls_reports,
)
from storage.errors import Conflict, Full, Missing
from storage.records import Domain, Event, Grant, Mailbox, Organization

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from server.transport.publishing import Published
    from storage.store import Store

SCOPES = frozenset(
    {
        "inbox:read",
        "inbox:write",
        "message:read",
        "message:send",
        "message:delete",
        "domain:admin",
        "event:read",
        "suppression:write",
        "bulk",
        "org:admin",
        "operator",
    }
)
DEFAULT_SCOPES = ("inbox:read", "message:read", "message:send", "event:read")


class OperationFailed(Exception):
    """The act was not done; the text tells the operator why. code is stable, in snake_case."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Context:
    """What an operation works on. actor: who asks, for the audit log.

    roles: of the daemon that is asked. report_address: whom DMARC's aggregate reports are asked for by.
    published: what transport security publishes, None where that is not asked for.
    pace: of the rotation of DKIM keys. names: what the DNS says of a domain's hosts, where a daemon asks.
    """

    store: Store
    clock: Clock
    hostname: str
    actor: str = "operator"
    roles: tuple[str, ...] = ()
    report_address: str = ""
    published: Callable[[], Published] | None = None
    pace: Pace = USUAL
    names: Callable[[str], Mapping[str, Sequence[str]]] | None = None


Operation = Callable[..., dict[str, Any]]


def organization_add(context: Context, *, name: str) -> dict[str, Any]:
    """Create an organization."""
    now = context.clock.now()

    def unit(connection: Connection) -> Organization:
        made = accounts.add_organization(connection, name=name, at=now)
        note(connection, context, owner=made.id, action="organization.add", thing=made.id, name=name)
        return made

    made = context.store.database.write(unit)
    return {"id": made.id, "name": made.name}


def domain_add(context: Context, *, name: str, organization: str = "") -> dict[str, Any]:
    """Create a domain with an RSA-2048 and an Ed25519 key; returns the DNS records to publish.

    organization: name or id; empty takes the only one, or makes one called as the domain.
    A domain that was restored without its keys gets new ones.
    """
    now = context.clock.now()
    domain = _domain_name(name)
    keys = [(algorithm, *make_key(algorithm)) for algorithm in ALGORITHMS]

    def unit(connection: Connection) -> Domain:
        owner = _organization(connection, organization, now, fallback=domain)
        made = _keyless(connection, owner.id, domain)
        made = made or accounts.add_domain(connection, organization_id=owner.id, name=domain, at=now)
        for algorithm, pem, record in keys:
            accounts.add_dkim_key(
                connection,
                organization_id=owner.id,
                domain=domain,
                selector=selector_of(algorithm, now),
                algorithm=algorithm,
                private_pem=pem,
                public_record=record,
                at=now,
            )
        note(connection, context, owner=owner.id, action="domain.add", thing=made.id, name=domain)
        return made

    made = context.store.database.write(unit)
    records = domain_dns(context, name=domain)["records"]
    return {"id": made.id, "name": made.name, "organization": made.organization_id, "records": records}


def domain_dns(context: Context, *, name: str) -> dict[str, Any]:
    """Return the DNS records that a domain's owner publishes: type, name, value, why."""
    domain = _domain_name(name)
    found, keys = context.store.database.read(
        lambda c: (accounts.find_domain(c, name=domain), dkim.keys(c, domain=domain))
    )
    if found is None:
        raise OperationFailed("no_such_domain", f"{domain} is no domain of this appliance")
    told = zone.records(domain, hostname=context.hostname, keys=keys, report_address=context.report_address)
    secured = publishing.advice(domain, context.published()) if context.published is not None else []
    records = [*map(asdict, told), *map(asdict, secured)]
    return {"domain": domain, "records": records}


def domain_dmarc(context: Context, *, name: str, days: int = 30, limit: int = 50) -> dict[str, Any]:
    """Return what others reported about a domain: who sent in its name, and the newest reports."""
    domain = _domain_name(name)
    since = context.clock.now() - days * report_tables.DAY

    def unit(connection: Connection) -> dict[str, Any]:
        found = accounts.find_domain(connection, name=domain)
        if found is None:
            raise OperationFailed("no_such_domain", f"{domain} is no domain of this appliance")
        owner = found.organization_id
        reports = dmarc.reports(connection, organization_id=owner, domain=domain, limit=limit)
        sources = dmarc.sources(connection, organization_id=owner, domain=domain, since=since, limit=limit)
        return {
            "domain": domain,
            "days": days,
            "sources": sources,
            "reports": [{k: v for k, v in asdict(one).items() if k != "rows"} for one in reports],
        }

    result: dict[str, Any] = context.store.database.read(unit)
    return result


def domain_tls(context: Context, *, name: str, days: int = 30, limit: int = 50) -> dict[str, Any]:
    """Return what others reported about TLS with a domain: results, and the newest reports."""
    domain = _domain_name(name)
    since = context.clock.now() - days * report_tables.DAY

    def unit(connection: Connection) -> dict[str, Any]:
        found = accounts.find_domain(connection, name=domain)
        if found is None:
            raise OperationFailed("no_such_domain", f"{domain} is no domain of this appliance")
        owner = found.organization_id
        reports = tls_reports.reports(connection, organization_id=owner, domain=domain, limit=limit)
        return {
            "domain": domain,
            "days": days,
            "results": tls_reports.results(
                connection, organization_id=owner, domain=domain, since=since, limit=limit
            ),
            "reports": [{k: v for k, v in asdict(one).items() if k != "rows"} for one in reports],
        }

    result: dict[str, Any] = context.store.database.read(unit)
    return result


def transport_policies(context: Context, *, limit: int = 50) -> dict[str, Any]:
    """Return the MTA-STS policies of other domains that are kept, those in use last first."""
    kept = context.store.database.read(lambda c: tls_policies.newest(c, limit=limit))
    return {"policies": [asdict(one) for one in kept]}


def inbox_add(
    context: Context,
    *,
    address: str,
    display_name: str = "",
    quota_octets: int = 0,
) -> dict[str, Any]:
    """Create an inbox on a domain of the appliance with an app password, which is shown this once.

    One that was restored, and has no password any more, gets a new one and is else left as it is.
    """
    now = context.clock.now()
    mailbox = _address(address)
    password = new_password()
    encoded, verifier = hash_password(password), scram_verifier(password)

    def unit(connection: Connection) -> Mailbox:
        domain = accounts.find_domain(connection, name=mailbox.rpartition("@")[2])
        if domain is None:
            raise OperationFailed("no_such_domain", f"{mailbox}: its domain is not on this appliance")
        made = _locked_out(connection, mailbox) or accounts.add_mailbox(
            connection,
            organization_id=domain.organization_id,
            address=mailbox,
            display_name=display_name,
            quota_octets=quota_octets,
            at=now,
        )
        accounts.add_credential(
            connection,
            organization_id=made.organization_id,
            mailbox_id=made.id,
            name="first",
            password_hash=encoded,
            scram_verifier=verifier,
            at=now,
        )
        note(
            connection,
            context,
            owner=made.organization_id,
            action="inbox.add",
            thing=made.id,
            address=mailbox,
        )
        return made

    made = context.store.database.write(unit)
    return {
        "id": made.id,
        "address": made.address,
        "organization": made.organization_id,
        "password": password,
    }


def key_add(
    context: Context,
    *,
    inbox: str = "",
    organization: str = "",
    name: str = "key",
    scopes: list[str] | None = None,
) -> dict[str, Any]:
    """Create an API key for one inbox or a whole organization; its secret is shown this once."""
    wanted = frozenset(scopes or DEFAULT_SCOPES)
    if wanted - SCOPES:
        unknown = ", ".join(sorted(wanted - SCOPES))
        raise OperationFailed("no_such_scope", f"{unknown}: a scope is one of {', '.join(sorted(SCOPES))}")
    now = context.clock.now()
    secret, prefix, digest = new_key()

    def unit(connection: Connection) -> dict[str, Any]:
        mailbox = _inbox(connection, inbox) if inbox else None
        owner = mailbox.organization_id if mailbox else _organization(connection, organization, now).id
        made = accounts.add_api_key(
            connection,
            organization_id=owner,
            mailbox_id=mailbox.id if mailbox else None,
            name=name,
            prefix=prefix,
            key_hash=digest,
            scopes=wanted,
            expires_at=None,
            at=now,
        )
        note(connection, context, owner=owner, action="key.add", thing=made.id, scopes=sorted(wanted))
        return {"id": made.id, "organization": owner, "inbox": mailbox.id if mailbox else None}

    made = context.store.database.write(unit)
    return {**made, "scopes": sorted(wanted), "key": secret}


def grant_add(context: Context, *, address: str, inbox: str = "", key: str = "") -> dict[str, Any]:
    """Let an inbox (by its address) or a key (by its id) send as an address, or as *@domain."""
    if bool(inbox) == bool(key):
        raise OperationFailed("bad_arguments", "name the inbox or the key that gets the grant")
    domain = _domain_name(address.rpartition("@")[2])
    pattern = f"*@{domain}" if address.startswith("*@") else _address(address)
    now = context.clock.now()

    def unit(connection: Connection) -> Grant:
        owner = accounts.find_domain(connection, name=domain)
        if owner is None:
            raise OperationFailed("no_such_domain", f"{domain} is no domain of this appliance")
        made = grants.add(
            connection,
            organization_id=owner.organization_id,
            pattern=pattern,
            mailbox_id=_inbox(connection, inbox).id if inbox else None,
            api_key_id=key or None,
            at=now,
        )
        note(
            connection,
            context,
            owner=made.organization_id,
            action="grant.add",
            thing=made.id,
            address=pattern,
        )
        return made

    return _shown(context.store.database.write(unit))


def grant_list(context: Context, *, organization: str = "", limit: int = 100) -> dict[str, Any]:
    """Return an organization's grants, oldest first."""
    now = context.clock.now()

    def unit(connection: Connection) -> list[Grant]:
        owner = _organization(connection, organization, now)
        return grants.grants(connection, organization_id=owner.id, limit=limit)

    return {"grants": [_shown(one) for one in context.store.database.read(unit)]}


def grant_remove(context: Context, *, id: str, organization: str = "") -> dict[str, Any]:
    """Take a grant back."""
    now = context.clock.now()

    def unit(connection: Connection) -> None:
        owner = _organization(connection, organization, now)
        grants.remove(connection, organization_id=owner.id, grant_id=id)
        note(connection, context, owner=owner.id, action="grant.remove", thing=id)

    context.store.database.write(unit)
    return {"id": id}


def _shown(grant: Grant) -> dict[str, Any]:
    return {
        "id": grant.id,
        "organization": grant.organization_id,
        "inbox": grant.mailbox_id,
        "key": grant.api_key_id,
        "address": grant.pattern,
    }


def explain(context: Context, *, id: str) -> dict[str, Any]:
    """Return all that happened to a message, or to the message of a delivery."""

    def unit(connection: Connection) -> dict[str, Any]:
        message = events.message_facts(connection, message_or_delivery_id=id)
        if message is None:
            raise OperationFailed("no_such_message", f"{id}: no message or delivery has this id")
        organization_id = str(message["organization_id"])
        steps = events.timeline(connection, organization_id=organization_id, message_id=str(message["id"]))
        deliveries = queue_view.of_message(
            connection, organization_id=organization_id, message_id=str(message["id"])
        )
        return {"message": message, "timeline": [_step(event) for event in steps], "deliveries": deliveries}

    found: dict[str, Any] = context.store.database.read(unit)
    return found


def trace(context: Context, *, address: str, days: int = 7, limit: int = 100) -> dict[str, Any]:
    """Return the messages to or from an address in the last days, newest first."""
    return tracing.trace(context, address=address, days=days, limit=limit)


def case(context: Context, *, id: str) -> dict[str, Any]:
    """Return all that is known of a delivery as one document."""
    domain = context.store.database.read(lambda c: tracing.domain_of(c, delivery_id=id))
    names = context.names(domain) if context.names is not None and domain else {}
    return tracing.case(context, id=id, hostname=context.hostname, names=names)


def reconcile_now(context: Context) -> dict[str, Any]:
    """Heal differences between files and database; returns what was found and done."""
    report = reconcile.reconcile(context.store, at=context.clock.now())
    return reconcile.as_dict(report)


def status(context: Context) -> dict[str, Any]:
    """Return counts that show whether the appliance lives and works."""
    counts = context.store.database.read(queue_view.counts)
    backlog = context.store.backlog_octets
    processes = [{"pid": os.getpid(), "roles": list(context.roles)}] if context.roles else []
    return {"queue": counts, "journal_backlog_octets": backlog, "processes": processes}


def operator_check(context: Context, *, postmaster: str) -> dict[str, Any]:
    """Return what keeps mail for postmaster and abuse from its reader, '' for nothing."""
    return {"fault": context.store.database.read(lambda c: operator_fault(c, postmaster=postmaster))}


OPERATIONS: Mapping[str, Operation] = {
    "trace": trace,
    "case": case,
    "organization-add": organization_add,
    "domain-add": domain_add,
    "domain-dns": domain_dns,
    "domain-dmarc": domain_dmarc,
    "domain-tls": domain_tls,
    "transport-policies": transport_policies,
    "inbox-add": inbox_add,
    "key-add": key_add,
    "grant-add": grant_add,
    "grant-list": grant_list,
    "grant-remove": grant_remove,
    "explain": explain,
    "reconcile": reconcile_now,
    "status": status,
    "operator-check": operator_check,
    **QUEUE_OPERATIONS,
    **DKIM_ACTS,
    **SUPPRESSION_OPERATIONS,
    **ACTS,
}


def perform(context: Context, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Run an operation by name; raises OperationFailed for whatever the asker can mend."""
    operation = OPERATIONS.get(name)
    if operation is None:
        raise OperationFailed("no_such_operation", f"{name}: there is no such operation")
    try:
        check(operation, arguments)
        return operation(context, **arguments)
    except WrongArguments as error:
        raise OperationFailed("bad_arguments", f"{name}: {error}") from None
    except Conflict as error:
        raise OperationFailed("exists_already", str(error)) from error
    except Missing as error:
        raise OperationFailed("not_found", str(error)) from error
    except Full as error:
        raise OperationFailed("no_room", str(error)) from error


def _step(event: Event) -> dict[str, Any]:
    return {
        "at": event.at,
        "kind": event.kind,
        "delivery": event.delivery_id,
        "inbox": event.mailbox_id,
        "data": dict(event.data),
    }


def _keyless(connection: Connection, organization_id: str, name: str) -> Domain | None:
    """Return an organization's domain that no key signs for, as a lost database leaves it."""
    found = accounts.find_domain(connection, name=name)
    is_ours = found is not None and found.organization_id == organization_id
    return found if is_ours and not accounts.dkim_keys(connection, domain=name) else None


def _locked_out(connection: Connection, address: str) -> Mailbox | None:
    """Return an inbox that nobody can log in to, as a lost database leaves it."""
    found = accounts.find_mailbox(connection, address=address)
    return found if found is not None and not accounts.credentials(connection, mailbox_id=found.id) else None


def _domain_name(text: str) -> str:
    try:
        return normalise(f"postmaster@{text}").rpartition("@")[2]
    except (AddressSyntax, ValueError):
        raise OperationFailed("bad_domain", f"{text!r} is no domain name") from None


def _address(text: str) -> str:
    try:
        return parse_mailbox(text, smtputf8=True).normal
    except (AddressSyntax, ValueError) as error:
        raise OperationFailed("bad_address", f"{text!r} is no address: {error}") from None


def _organization(
    connection: Connection, wanted: str, now: int, *, fallback: str | None = None
) -> Organization:
    known = accounts.organizations(connection, limit=1000)
    if wanted:
        for organization in known:
            if wanted in (organization.id, organization.name):
                return organization
        raise OperationFailed("no_such_organization", f"{wanted}: there is no such organization")
    if len(known) == 1:
        return known[0]
    if not known and fallback is not None:
        return accounts.add_organization(connection, name=fallback, at=now)
    raise OperationFailed("organization_needed", "name the organization: there is none or more than one")


def _inbox(connection: Connection, address: str) -> Mailbox:
    found = accounts.find_mailbox(connection, address=_address(address))
    if found is None:
        raise OperationFailed("no_such_inbox", f"{address}: there is no such inbox")
    return found
