"""Organizations, domains, inboxes, routes, and the secrets that open them.

Owns the rows that say who may hold and send mail. Every function that reads or
changes what belongs to a tenant takes the organization as an argument; the few
that do not (`find_…`) answer the appliance itself, never a client. Keeps only
hashes of secrets, normalises no address (the caller has), and publishes the
notice `accounts` for every change that a cache must hear of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from storage import ids, schema, signs
from storage.db import Notice, publish
from storage.errors import Conflict, Missing
from storage.mailboxes import create_mailbox_folders
from storage.records import ApiKey, Credential, DkimKey, Domain, Mailbox, Organization, Route

PAGE_LIMIT = 1000
# A login with a wrong password is held against each of them, at some 20 ms of a processor.
PASSWORDS_LIMIT = 20
MAILBOX_STATES = frozenset({"active", "suspended", "closed"})
ORGANIZATION_STATES = frozenset({"active", "suspended"})
ROUTE_KINDS = frozenset({"inbox", "forward", "drop", "reject"})


def add_organization(connection: Connection, *, name: str, at: int) -> Organization:
    """Make a tenant; Conflict if the name is taken."""
    made = Organization(ids.new("org"), name, "active", at)
    _insert(connection, schema.organizations, f"organization {name}", **_values(made))
    _changed(connection, made.id)
    return made


def organization(connection: Connection, *, organization_id: str) -> Organization | None:
    """Return one tenant, or None."""
    row = _one(connection, schema.organizations, schema.organizations.c.id == organization_id)
    return None if row is None else Organization(row.id, row.name, row.state, row.created_at)


def organizations(connection: Connection, *, after: str = "", limit: int = 100) -> list[Organization]:
    """Return up to `limit` tenants with ids above `after`, oldest first."""
    query = select(schema.organizations).where(schema.organizations.c.id > after)
    rows = connection.execute(query.order_by(schema.organizations.c.id).limit(_page(limit)))
    return [Organization(row.id, row.name, row.state, row.created_at) for row in rows]


def set_organization_state(connection: Connection, *, organization_id: str, state: str) -> None:
    """Set a tenant 'active' or 'suspended'; Missing if there is none."""
    if state not in ORGANIZATION_STATES:
        raise ValueError(f"organization state {state!r}")
    query = update(schema.organizations).where(schema.organizations.c.id == organization_id)
    if connection.execute(query.values(state=state)).rowcount == 0:
        raise Missing(f"organization {organization_id}")
    _changed(connection, organization_id)


def add_domain(connection: Connection, *, organization_id: str, name: str, at: int) -> Domain:
    """Give a tenant a mail domain (lower-case A-labels); Conflict if any tenant has it."""
    if organization(connection, organization_id=organization_id) is None:
        raise Missing(f"organization {organization_id}")
    made = Domain(ids.new("dom"), organization_id, name, "active", at)
    _insert(connection, schema.domains, f"domain {name}", **_values(made))
    _changed(connection, organization_id)
    return made


def find_domain(connection: Connection, *, name: str) -> Domain | None:
    """Return the appliance's domain of that name, whoever owns it."""
    row = _one(connection, schema.domains, schema.domains.c.name == name)
    return None if row is None else _domain(row)


def domains(connection: Connection, *, organization_id: str) -> list[Domain]:
    """Return a tenant's domains by name."""
    query = select(schema.domains).where(schema.domains.c.organization_id == organization_id)
    return [_domain(row) for row in connection.execute(query.order_by(schema.domains.c.name))]


def add_dkim_key(
    connection: Connection,
    *,
    organization_id: str,
    domain: str,
    selector: str,
    algorithm: str,
    private_pem: bytes,
    public_record: str,
    at: int,
) -> DkimKey:
    """Keep a signing key for a tenant's domain; Missing for a foreign one, Conflict for a used selector."""
    _own_domain(connection, organization_id, domain)
    made = DkimKey(
        id=ids.new("dkm"),
        organization_id=organization_id,
        domain=domain,
        selector=selector,
        algorithm=algorithm,
        private_pem=private_pem,
        public_record=public_record,
        state="active",
        created_at=at,
        changed_at=at,
        told="active",
        due_at=at,
    )
    _insert(connection, schema.dkim_keys, f"selector {selector} of {domain}", **_values(made))
    _changed(connection, organization_id)
    return made


def dkim_keys(connection: Connection, *, domain: str) -> list[DkimKey]:
    """Return the keys that sign for a domain, oldest first; dkim has those of other states."""
    columns = schema.dkim_keys.c
    query = select(schema.dkim_keys).where(columns.domain == domain, columns.state == "active")
    return [dkim_key(row) for row in connection.execute(query.order_by(columns.id))]


def dkim_key(row: Row[Any]) -> DkimKey:
    """Return a row of the keys as their record."""
    values = row._asdict()
    return DkimKey(**{**values, "private_pem": bytes(row.private_pem)})


def retire_dkim_key(connection: Connection, *, organization_id: str, key_id: str) -> None:
    """Take a signing key out of use; its row stays, so that the selector is never used again."""
    columns = schema.dkim_keys.c
    query = update(schema.dkim_keys).where(columns.id == key_id, columns.organization_id == organization_id)
    if connection.execute(query.values(state="retired", told="retired", due_at=None)).rowcount == 0:
        raise Missing(f"DKIM key {key_id}")
    _changed(connection, organization_id)


def add_mailbox(
    connection: Connection,
    *,
    organization_id: str,
    address: str,
    display_name: str = "",
    quota_octets: int = 0,
    retention_class: str = "standard",
    at: int,
) -> Mailbox:
    """Make an inbox with its folders.

    address: normal form, in a domain of the tenant, else Missing. Conflict if the address is taken.
    """
    _own_domain(connection, organization_id, address.rpartition("@")[2])
    made = Mailbox(
        ids.new("inb"),
        organization_id,
        address,
        display_name,
        "active",
        quota_octets,
        0,
        retention_class,
        at,
    )
    _insert(connection, schema.mailboxes, f"inbox {address}", **_values(made))
    create_mailbox_folders(connection, mailbox_id=made.id, at=at)
    _changed(connection, organization_id)
    return made


def find_mailbox(connection: Connection, *, address: str) -> Mailbox | None:
    """Return the inbox of an address in normal form, whoever owns it."""
    row = _one(connection, schema.mailboxes, schema.mailboxes.c.address == address)
    return None if row is None else _mailbox(row)


def mailbox(connection: Connection, *, organization_id: str, mailbox_id: str) -> Mailbox | None:
    """Return a tenant's inbox, or None if it is not the tenant's or not there."""
    columns = schema.mailboxes.c
    row = _one(
        connection, schema.mailboxes, columns.id == mailbox_id, columns.organization_id == organization_id
    )
    return None if row is None else _mailbox(row)


def mailboxes(
    connection: Connection, *, organization_id: str, after: str = "", limit: int = 100
) -> list[Mailbox]:
    """Return up to `limit` inboxes of a tenant with ids above `after`, oldest first."""
    columns = schema.mailboxes.c
    query = select(schema.mailboxes).where(columns.organization_id == organization_id, columns.id > after)
    return [_mailbox(row) for row in connection.execute(query.order_by(columns.id).limit(_page(limit)))]


def first_open_mailbox(connection: Connection, *, organization_id: str | None) -> Mailbox | None:
    """Return the oldest active inbox of a tenant, of all where None is given; None where there is none."""
    columns = schema.mailboxes.c
    query = select(schema.mailboxes).where(columns.state == "active")
    if organization_id is not None:
        query = query.where(columns.organization_id == organization_id)
    row = connection.execute(query.order_by(columns.id).limit(1)).first()
    return None if row is None else _mailbox(row)


def newest_mailboxes(connection: Connection, *, limit: int) -> list[Mailbox]:
    """Return the newest inboxes of all tenants, newest first: for the operator's pages alone."""
    query = select(schema.mailboxes).order_by(schema.mailboxes.c.id.desc()).limit(_page(limit))
    return [_mailbox(row) for row in connection.execute(query)]


def used_octets(connection: Connection, *, organization_id: str, mailbox_id: str) -> int:
    """Return the octets that a tenant's inbox holds now, 0 for one that is not there."""
    columns = schema.mailboxes.c
    query = select(columns.used_octets).where(
        columns.id == mailbox_id, columns.organization_id == organization_id
    )
    return int(connection.execute(query).scalar() or 0)


def message_exists(connection: Connection, *, message_id: str) -> bool:
    """Return whether a message of that id was applied, whoever owns it."""
    query = select(schema.messages.c.id).where(schema.messages.c.id == message_id)
    return connection.execute(query).first() is not None


def set_mailbox_state(
    connection: Connection, *, organization_id: str, mailbox_id: str, state: str
) -> Mailbox:
    """Set a tenant's inbox 'active', 'suspended' or 'closed' and return it; Missing if there is none."""
    if state not in MAILBOX_STATES:
        raise ValueError(f"inbox state {state!r}")
    columns = schema.mailboxes.c
    query = update(schema.mailboxes).where(
        columns.id == mailbox_id, columns.organization_id == organization_id
    )
    connection.execute(query.values(state=state))
    changed = mailbox(connection, organization_id=organization_id, mailbox_id=mailbox_id)
    if changed is None:
        raise Missing(f"inbox {mailbox_id}")
    if state == "closed":
        signs.erase(connection, mailbox_id=mailbox_id)
    _changed(connection, organization_id)
    return changed


def add_route(
    connection: Connection, *, organization_id: str, pattern: str, kind: str, target: str, at: int
) -> Route:
    """Say what becomes of mail for an address or '*@domain' of the tenant.

    Missing for a foreign domain or inbox, Conflict if the pattern has a route already.
    """
    if kind not in ROUTE_KINDS:
        raise ValueError(f"route kind {kind!r}")
    _own_domain(connection, organization_id, pattern.rpartition("@")[2])
    if kind == "inbox":
        _own_mailbox(connection, organization_id, target)
    made = Route(ids.new("rte"), organization_id, pattern, kind, target)
    _insert(connection, schema.routes, f"route {pattern}", **_values(made), created_at=at)
    _changed(connection, organization_id)
    return made


def find_routes(connection: Connection, *, domain: str, patterns: Sequence[str] | None = None) -> list[Route]:
    """Return the routes of a domain, or only those of the given patterns (at most one each)."""
    column = schema.routes.c.pattern
    if patterns is None:
        condition = column.endswith(f"@{domain}", autoescape=True)
    else:
        condition = column.in_([pattern for pattern in patterns if pattern.endswith(f"@{domain}")])
    query = select(schema.routes).where(condition)
    return [_route(row) for row in connection.execute(query.order_by(column))]


def routes(connection: Connection, *, organization_id: str) -> list[Route]:
    """Return a tenant's routes by pattern."""
    query = select(schema.routes).where(schema.routes.c.organization_id == organization_id)
    return [_route(row) for row in connection.execute(query.order_by(schema.routes.c.pattern))]


def remove_route(connection: Connection, *, organization_id: str, route_id: str) -> None:
    """Delete a tenant's route; Missing if there is none."""
    columns = schema.routes.c
    query = delete(schema.routes).where(columns.id == route_id, columns.organization_id == organization_id)
    if connection.execute(query).rowcount == 0:
        raise Missing(f"route {route_id}")
    _changed(connection, organization_id)


def add_credential(
    connection: Connection,
    *,
    organization_id: str,
    mailbox_id: str,
    name: str,
    password_hash: str,
    scram_verifier: str,
    at: int,
) -> Credential:
    """Keep an app password of a tenant's inbox, hashed by the caller.

    Missing for a foreign inbox, Conflict for one with PASSWORDS_LIMIT that work.
    """
    _own_mailbox(connection, organization_id, mailbox_id)
    if len(credentials(connection, mailbox_id=mailbox_id)) >= PASSWORDS_LIMIT:
        raise Conflict(f"the inbox has {PASSWORDS_LIMIT} app passwords already; revoke one")
    made = Credential(ids.new("crd"), organization_id, mailbox_id, name, password_hash, at, None)
    values = {**_values(made), "scram_verifier": scram_verifier}
    _insert(connection, schema.credentials, "app password", **values)
    _changed(connection, organization_id)
    return made


def credentials(connection: Connection, *, mailbox_id: str) -> list[Credential]:
    """Return an inbox's app passwords that are not revoked, newest first."""
    columns = schema.credentials.c
    query = select(schema.credentials).where(columns.mailbox_id == mailbox_id, columns.revoked_at.is_(None))
    return [
        Credential(
            row.id,
            row.organization_id,
            row.mailbox_id,
            row.name,
            row.password_hash,
            row.created_at,
            row.revoked_at,
        )
        for row in connection.execute(query.order_by(columns.id.desc()))
    ]


def scram_verifiers(connection: Connection, *, mailbox_id: str) -> list[tuple[str, str]]:
    """Return id and SCRAM verifier of an inbox's app passwords that are not revoked, newest first."""
    columns = schema.credentials.c
    query = select(columns.id, columns.scram_verifier).where(
        columns.mailbox_id == mailbox_id, columns.revoked_at.is_(None)
    )
    return [(row.id, row.scram_verifier) for row in connection.execute(query.order_by(columns.id.desc()))]


def revoke_credential(connection: Connection, *, organization_id: str, credential_id: str, at: int) -> None:
    """End an app password; Missing if the tenant has none of that id that still works."""
    _revoke(connection, schema.credentials, organization_id, credential_id, at)


def add_api_key(
    connection: Connection,
    *,
    organization_id: str,
    mailbox_id: str | None,
    name: str,
    prefix: str,
    key_hash: bytes,
    scopes: frozenset[str],
    expires_at: int | None,
    at: int,
) -> ApiKey:
    """Keep a key's SHA-256 and what it may do; Missing for a foreign inbox or no such tenant."""
    if mailbox_id is not None:
        _own_mailbox(connection, organization_id, mailbox_id)
    elif organization(connection, organization_id=organization_id) is None:
        raise Missing(f"organization {organization_id}")
    made = ApiKey(
        ids.new("key"),
        organization_id,
        mailbox_id,
        name,
        prefix,
        frozenset(scopes),
        at,
        expires_at,
        None,
        None,
    )
    values = {**_values(made), "key_hash": key_hash, "scopes": " ".join(sorted(scopes))}
    _insert(connection, schema.api_keys, "key", **values)
    _changed(connection, organization_id)
    return made


def find_api_key(connection: Connection, *, key_hash: bytes) -> ApiKey | None:
    """Return the key with that SHA-256, revoked and expired ones too: the caller judges."""
    row = _one(connection, schema.api_keys, schema.api_keys.c.key_hash == key_hash)
    return None if row is None else _api_key(row)


def api_keys(
    connection: Connection, *, organization_id: str, after: str = "", limit: int = PAGE_LIMIT
) -> list[ApiKey]:
    """Return up to `limit` keys of a tenant with ids above `after`, revoked ones too, oldest first."""
    columns = schema.api_keys.c
    query = select(schema.api_keys).where(columns.organization_id == organization_id, columns.id > after)
    return [_api_key(row) for row in connection.execute(query.order_by(columns.id).limit(_page(limit)))]


def api_key(connection: Connection, *, organization_id: str, key_id: str) -> ApiKey | None:
    """Return a tenant's key by its id, a revoked or expired one too, or None."""
    columns = schema.api_keys.c
    row = _one(connection, schema.api_keys, columns.id == key_id, columns.organization_id == organization_id)
    return None if row is None else _api_key(row)


def revoke_api_key(connection: Connection, *, organization_id: str, key_id: str, at: int) -> None:
    """End a key; Missing if the tenant has none of that id that still works."""
    _revoke(connection, schema.api_keys, organization_id, key_id, at)


def touch_api_keys(connection: Connection, *, used: Mapping[str, int]) -> None:
    """Note when keys were last used (id to microseconds); the caller gathers, no cache hears of it."""
    _touch(connection, schema.api_keys, used)


def touch_credentials(connection: Connection, *, used: Mapping[str, int]) -> None:
    """Note when app passwords were last used (id to microseconds), as `touch_api_keys`."""
    _touch(connection, schema.credentials, used)


def _page(limit: int) -> int:
    return max(1, min(limit, PAGE_LIMIT))


def _one(connection: Connection, table: Table, *conditions: ColumnElement[bool]) -> Row[Any] | None:
    return connection.execute(select(table).where(*conditions)).first()


def _insert(connection: Connection, table: Table, what: str, **values: object) -> None:
    try:
        connection.execute(insert(table), values)
    except IntegrityError as error:
        raise Conflict(f"{what} exists already") from error


def _values(record: Any) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__slots__}


def _changed(connection: Connection, organization_id: str) -> None:
    publish(connection, Notice("accounts", organization_id))


def _own_domain(connection: Connection, organization_id: str, name: str) -> None:
    owner = find_domain(connection, name=name)
    if owner is None or owner.organization_id != organization_id:
        raise Missing(f"domain {name}")


def _own_mailbox(connection: Connection, organization_id: str, mailbox_id: str) -> None:
    if mailbox(connection, organization_id=organization_id, mailbox_id=mailbox_id) is None:
        raise Missing(f"inbox {mailbox_id}")


def _revoke(connection: Connection, table: Table, organization_id: str, key_id: str, at: int) -> None:
    columns = table.c
    query = update(table).where(
        columns.id == key_id, columns.organization_id == organization_id, columns.revoked_at.is_(None)
    )
    if connection.execute(query.values(revoked_at=at)).rowcount == 0:
        raise Missing(f"{table.name} {key_id}")
    _changed(connection, organization_id)


def _touch(connection: Connection, table: Table, used: Mapping[str, int]) -> None:
    if used:
        query = (
            update(table).where(table.c.id == bindparam("key_id")).values(last_used_at=bindparam("used_at"))
        )
        connection.execute(query, [{"key_id": key, "used_at": at} for key, at in used.items()])


def _domain(row: Row[Any]) -> Domain:
    return Domain(row.id, row.organization_id, row.name, row.state, row.created_at)


def _mailbox(row: Row[Any]) -> Mailbox:
    return Mailbox(
        row.id,
        row.organization_id,
        row.address,
        row.display_name,
        row.state,
        row.quota_octets,
        row.used_octets,
        row.retention_class,
        row.created_at,
    )


def _route(row: Row[Any]) -> Route:
    return Route(row.id, row.organization_id, row.pattern, row.kind, row.target)


def _api_key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        row.id,
        row.organization_id,
        row.mailbox_id,
        row.name,
        row.prefix,
        frozenset(row.scopes.split()),
        row.created_at,
        row.expires_at,
        row.last_used_at,
        row.revoked_at,
    )
