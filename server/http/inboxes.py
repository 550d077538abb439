"""Routes for inboxes and their app passwords.

Owns provisioning over HTTP. An app password opens the whole inbox over IMAP and
SMTP, so only a key that may do all that itself hands one out; it is shown once.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from server.http import answers, models
from server.http.access import Caller
from server.http.answers import answer, next_cursor
from server.http.openapi import Door
from server.http.problems import Problem, not_found
from server.http.services import Services, known_id, normal_address, write_audit
from server.login import hash_password, new_password, scram_verifier, shared_salt
from storage import accounts, mailboxes
from storage.errors import Missing
from storage.records import Credential, Mailbox

if TYPE_CHECKING:
    from sqlalchemy import Connection

GRANTED_BY_PASSWORD = frozenset({"message:read", "message:send", "message:delete"})
# Crockford's alphabet without vowels' look-alikes: addresses that can be read aloud.
_ALPHABET = "23456789abcdefghjkmnpqrstvwxyz"
MADE_UP_CHARACTERS = 12


class InboxRoutes:
    """Inboxes and credentials."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def add_to(self, door: Door) -> None:
        """Add the routes."""
        door.add(
            "POST /inboxes",
            self.add,
            scope="inbox:write",
            request=models.InboxRequest,
            answer=models.Inbox,
            status=201,
            tag="Inboxes",
        )
        door.add(
            "GET /inboxes",
            self.list_all,
            scope="inbox:read",
            query=models.PageQuery,
            answer=models.InboxList,
            tag="Inboxes",
        )
        door.add(
            "GET /inboxes/{inbox_id}", self.get, scope="inbox:read", answer=models.InboxDetails, tag="Inboxes"
        )
        door.add(
            "PATCH /inboxes/{inbox_id}",
            self.change,
            scope="inbox:write",
            request=models.InboxChange,
            answer=models.Inbox,
            tag="Inboxes",
        )
        door.add(
            "POST /inboxes/{inbox_id}/credentials",
            self.add_credential,
            scope="inbox:write",
            request=models.CredentialRequest,
            answer=models.CredentialSecret,
            status=201,
            tag="App passwords",
        )
        door.add(
            "GET /inboxes/{inbox_id}/credentials",
            self.list_credentials,
            scope="inbox:read",
            answer=models.CredentialList,
            tag="App passwords",
        )
        door.add(
            "DELETE /inboxes/{inbox_id}/credentials/{credential_id}",
            self.revoke_credential,
            scope="inbox:write",
            status=204,
            tag="App passwords",
        )

    async def add(self, caller: Caller, request: Request) -> Response:
        """Create an inbox: at an address, or at one that is made up on a domain of the organization."""
        caller.require_unbound()
        asked = await self._services.bodies.read(request, models.InboxRequest)
        address = _address(asked)
        now = self._services.clock.now()

        def unit(connection: Connection) -> Mailbox:
            made = accounts.add_mailbox(
                connection,
                organization_id=caller.organization_id,
                address=address,
                display_name=asked.display_name,
                quota_octets=asked.quota_octets,
                at=now,
            )
            write_audit(connection, caller, action="inbox.add", thing=made.id, at=now, address=address)
            return made

        try:
            made = await self._services.threads.write(unit)
        except Missing:
            raise Problem(
                422,
                "domain_not_owned",
                "The address is not in a domain of this organization.",
                fix="Have an operator add the domain, or choose one of GET /v1/domains.",
            ) from None
        return answer(answers.inbox(made), status=201, headers={"Location": f"/v1/inboxes/{made.id}"})

    async def list_all(self, caller: Caller, query: models.PageQuery) -> Response:
        """List the organization's inboxes, or the one that the key is bound to."""

        def unit(connection: Connection) -> list[Mailbox]:
            if caller.bound_to is None:
                return accounts.mailboxes(
                    connection, organization_id=caller.organization_id, after=query.cursor, limit=query.limit
                )
            own = accounts.mailbox(
                connection, organization_id=caller.organization_id, mailbox_id=caller.bound_to
            )
            return [] if own is None else [own]

        page = await self._services.threads.read(unit)
        after = next_cursor(page, query.limit, page[-1].id) if page and caller.bound_to is None else None
        return answer({"inboxes": [answers.inbox(one) for one in page], "next_cursor": after})

    async def get(self, caller: Caller, inbox_id: str) -> Response:
        """Show an inbox with its folders."""
        caller.reach(known_id(inbox_id))

        def unit(connection: Connection) -> dict[str, object]:
            found = accounts.mailbox(connection, organization_id=caller.organization_id, mailbox_id=inbox_id)
            if found is None:
                raise not_found()
            return {**answers.inbox(found), "folders": _folders(connection, inbox_id)}

        return answer(await self._services.threads.read(unit))

    async def change(self, caller: Caller, inbox_id: str, request: Request) -> Response:
        """Set an inbox active, suspended (mail is deferred) or closed (mail is refused)."""
        caller.require_unbound()
        known_id(inbox_id)
        asked = await self._services.bodies.read(request, models.InboxChange)
        now = self._services.clock.now()

        def unit(connection: Connection) -> Mailbox:
            changed = accounts.set_mailbox_state(
                connection,
                organization_id=caller.organization_id,
                mailbox_id=inbox_id,
                state=asked.state,
            )
            write_audit(connection, caller, action=f"inbox.{asked.state}", thing=inbox_id, at=now)
            return changed

        return answer(answers.inbox(await self._services.threads.write(unit)))

    async def add_credential(self, caller: Caller, inbox_id: str, request: Request) -> Response:
        """Create an app password for IMAP and SMTP. The password is shown this once.

        The key that asks must itself hold message:read, message:send and message:delete.
        """
        inbox = await self._services.inbox(caller, inbox_id)
        caller.require_held(GRANTED_BY_PASSWORD)
        asked = await self._services.bodies.read(request, models.CredentialRequest)
        held = await self._services.threads.read(lambda c: accounts.credentials(c, mailbox_id=inbox_id))
        if len(held) >= accounts.PASSWORDS_LIMIT:
            raise _too_many_passwords()
        now = self._services.clock.now()
        password = new_password()
        encoded = await self._services.threads.compute(hash_password, password)
        salt = await self._services.threads.read(lambda c: shared_salt(c, inbox_id))
        verifier = await self._services.threads.compute(scram_verifier, password, salt)

        def unit(connection: Connection) -> Credential:
            made = accounts.add_credential(
                connection,
                organization_id=caller.organization_id,
                mailbox_id=inbox_id,
                name=asked.name,
                password_hash=encoded,
                scram_verifier=verifier,
                at=now,
            )
            write_audit(connection, caller, action="credential.add", thing=made.id, at=now, inbox=inbox_id)
            return made

        made = await self._services.threads.write(unit)
        payload = {**answers.credential(made), "username": inbox.address, "password": password}
        return answer(payload, status=201, headers={"Cache-Control": "no-store"})

    async def list_credentials(self, caller: Caller, inbox_id: str) -> Response:
        """List an inbox's app passwords that are not revoked, newest first, without the passwords."""
        await self._services.inbox(caller, inbox_id)
        found = await self._services.threads.read(lambda c: accounts.credentials(c, mailbox_id=inbox_id))
        return answer({"credentials": [answers.credential(one) for one in found]})

    async def revoke_credential(self, caller: Caller, inbox_id: str, credential_id: str) -> Response:
        """Revoke an app password; it opens nothing from then on."""
        await self._services.inbox(caller, inbox_id)
        known_id(credential_id)
        now = self._services.clock.now()

        def unit(connection: Connection) -> None:
            held = accounts.credentials(connection, mailbox_id=inbox_id)
            if credential_id not in {one.id for one in held}:
                raise not_found()
            accounts.revoke_credential(
                connection,
                organization_id=caller.organization_id,
                credential_id=credential_id,
                at=now,
            )
            write_audit(connection, caller, action="credential.revoke", thing=credential_id, at=now)

        await self._services.threads.write(unit)
        return Response(status_code=204)


def _address(asked: models.InboxRequest) -> str:
    if (asked.address is None) == (asked.domain is None):
        raise Problem(422, "invalid", "Give either an address or a domain.")
    if asked.address is not None:
        return normal_address(asked.address)
    local = "".join(secrets.choice(_ALPHABET) for _ in range(MADE_UP_CHARACTERS))
    return normal_address(f"{local}@{asked.domain}")


def _folders(connection: Connection, inbox_id: str) -> list[dict[str, object]]:
    shown: list[dict[str, object]] = []
    for folder in mailboxes.folders(connection, mailbox_id=inbox_id):
        counts = mailboxes.counts(connection, folder_id=folder.id)
        shown.append(
            {
                "name": folder.name,
                "special_use": folder.special_use,
                "messages": counts.messages,
                "unseen": counts.unseen,
            }
        )
    return shown


def _too_many_passwords() -> Problem:
    return Problem(
        409,
        "too_many_passwords",
        f"An inbox has at most {accounts.PASSWORDS_LIMIT} app passwords.",
        fix="Revoke one that is not used.",
        extra={"limit": accounts.PASSWORDS_LIMIT},
    )
