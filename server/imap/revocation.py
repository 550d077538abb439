"""Whether those who are logged in still may be: asked when accounts change, not before each command.

Owns the question to storage, for all identities of one organization at once.
RFC 9051 3.4 (a server may end a session at any time).
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from server.login import Identity
from storage import accounts


def ended(connection: Connection, identities: Iterable[Identity], *, now: int) -> set[Identity]:
    """Return the identities whose inbox, tenant, app password or key is no longer in force at now."""
    return {identity for identity in set(identities) if not _holds(connection, identity, now)}


def _holds(connection: Connection, identity: Identity, now: int) -> bool:
    organization_id, mailbox_id = identity.organization_id, identity.mailbox_id
    if mailbox_id is None:
        return False
    organization = accounts.organization(connection, organization_id=organization_id)
    mailbox = accounts.mailbox(connection, organization_id=organization_id, mailbox_id=mailbox_id)
    if organization is None or organization.state != "active" or mailbox is None or mailbox.state != "active":
        return False
    if identity.kind != "key":
        return any(each.id == identity.id for each in accounts.credentials(connection, mailbox_id=mailbox_id))
    key = accounts.api_key(connection, organization_id=organization_id, key_id=identity.id)
    return key is not None and key.revoked_at is None and (key.expires_at is None or key.expires_at > now)
