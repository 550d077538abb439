"""Routes that send: a new message, and a reply.

Owns the way from a request to intake, and one send per idempotency key. A 202
is given when intake has the message on stable storage, never before. The
sender's right is intake's question: asked for the inbox, not for the key.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from server.arrival import Arrival
from server.http import models
from server.http.access import Caller
from server.http.answers import answer
from server.http.drafting import draft_of, envelope_of, reply_of
from server.http.message_files import MessageFiles
from server.http.openapi import Door
from server.http.problems import Problem
from server.http.reading import answered
from server.http.services import Services, known_id
from server.mail.compose import Draft, NamedAddress, compose
from server.refusal import Refusal
from storage import idempotency
from storage.errors import Conflict
from storage.idempotency import Different, Done, Fresh
from storage.records import Envelope, Flag, LocalTarget, Mailbox, Peer, Source, Spooled

if TYPE_CHECKING:
    from pydantic import BaseModel

_KEY = re.compile(r"[!-~]{1,255}")
_KEY_HEADER: dict[str, object] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Sends once, however often the same request is repeated within seven days.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": f"^{_KEY.pattern}$"},
}
INLINE_OCTETS = 16 * 1024
RETRY_SECONDS = 1
SENT_FOLDER = "Sent"


class SendingRoutes:
    """Send and reply."""

    def __init__(self, services: Services, files: MessageFiles) -> None:
        self._services = services
        self._files = files

    def add_to(self, door: Door) -> None:
        """Add the routes."""
        door.add(
            "POST /inboxes/{inbox_id}/messages",
            self.send,
            scope="message:send",
            request=models.SendRequest,
            header=_KEY_HEADER,
            answer=models.Accepted,
            status=202,
            tag="Messages",
        )
        door.add(
            "POST /inboxes/{inbox_id}/messages/{message_id}/reply",
            self.reply,
            scope="message:send",
            request=models.ReplyRequest,
            header=_KEY_HEADER,
            answer=models.Accepted,
            status=202,
            tag="Messages",
        )

    async def send(
        self,
        caller: Caller,
        inbox_id: str,
        request: Request,
    ) -> Response:
        """Send a message from an inbox.

        Answered once the message is on stable storage. What becomes of it is on its timeline; a copy lies
        in the inbox's Sent folder.
        """
        key = _idempotency_key(request)
        inbox = await self._open_inbox(caller, inbox_id)
        limit = self._services.settings.http.max_body_octets
        async with self._services.bodies.opened(request, models.SendRequest, limit_octets=limit) as asked:

            async def submit() -> str:
                draft, blind = draft_of(asked, inbox, at=self._services.clock.now())
                return await self._submit(caller, inbox, draft, blind, key)

            return await self._once(caller, key, (inbox_id,), asked, submit)

    async def reply(
        self,
        caller: Caller,
        inbox_id: str,
        message_id: str,
        request: Request,
    ) -> Response:
        """Reply to a message of the inbox: to its sender or Reply-To, or to all that it names."""
        key = _idempotency_key(request)
        inbox = await self._open_inbox(caller, inbox_id)
        original = await self._files.read(caller, inbox_id, known_id(message_id), answered)
        limit = self._services.settings.http.max_body_octets
        async with self._services.bodies.opened(request, models.ReplyRequest, limit_octets=limit) as asked:

            async def submit() -> str:
                draft = reply_of(asked, inbox, original, at=self._services.clock.now())
                return await self._submit(caller, inbox, draft, (), key)

            return await self._once(caller, key, (inbox_id, message_id), asked, submit)

    async def _open_inbox(self, caller: Caller, inbox_id: str) -> Mailbox:
        inbox = await self._services.inbox(caller, inbox_id)
        if inbox.state != "active":
            raise Problem(403, "inbox_not_active", f"The inbox is {inbox.state}; it sends nothing.")
        return inbox

    async def _once(
        self,
        caller: Caller,
        key: str | None,
        place: Sequence[str],
        asked: BaseModel,
        submit: Callable[[], Awaitable[str]],
    ) -> Response:
        """Run a send, or answer for the one that the key has done already."""
        if key is None:
            return _accepted(await submit())
        owner = caller.organization_id
        digest = await self._services.threads.compute(_digest, place, asked)
        now = self._services.clock.now()
        try:
            begun = await self._services.threads.write(
                lambda c: idempotency.begin(c, organization_id=owner, key=key, request_hash=digest, at=now)
            )
        except Conflict:
            raise _in_progress() from None
        if isinstance(begun, Done):
            return _accepted(begun.message_id, replayed=True)
        if isinstance(begun, Different):
            raise Problem(
                409,
                "idempotency_key_reused",
                "The idempotency key was used for another request.",
                fix="Use a new key for a new message.",
            )
        if not isinstance(begun, Fresh):
            raise _in_progress()
        try:
            return _accepted(await submit())
        except (Refusal, Problem):
            # Refused before anything was stored: the corrected request may use the key.
            await self._services.threads.write(
                lambda c: idempotency.release(c, organization_id=owner, key=key)
            )
            raise

    async def _submit(
        self,
        caller: Caller,
        inbox: Mailbox,
        draft: Draft,
        blind: Sequence[NamedAddress],
        key: str | None,
    ) -> str:
        settings = self._services.settings.smtp
        envelope = envelope_of(draft, blind, inbox, max_recipients=settings.max_recipients)
        content = await self._compose(draft)
        if len(content) > settings.max_message_octets:
            raise Problem(
                413,
                "too_large",
                f"A message has at most {settings.max_message_octets} octets, encoded.",
                extra={"limit_octets": settings.max_message_octets},
            )
        arrival = Arrival(
            source=Source.API,
            peer=Peer(address=caller.peer, identity=caller.key_id),
            envelope=envelope,
            content=content,
            identity=replace(caller.identity, mailbox_id=inbox.id, address=inbox.address),
            organization_id=inbox.organization_id,
            keep=LocalTarget(inbox.id, inbox.address, folder=SENT_FOLDER, flags=int(Flag.SEEN)),
            idempotency_key=key,
        )
        await self._ask(arrival, envelope, len(content))
        stored = await self._store_large(content)
        receipt = await self._services.intake.accept(replace(arrival, content=stored))
        return receipt.message_ids[0]

    async def _ask(self, arrival: Arrival, envelope: Envelope, octets: int) -> None:
        """Ask what a session asks at MAIL and RCPT; raises Refusal."""
        intake = self._services.intake
        await intake.sender(arrival.peer, arrival.identity, envelope, octets)
        for recipient in envelope.recipients:
            await intake.recipient(arrival.peer, arrival.identity, envelope, recipient)

    async def _compose(self, draft: Draft) -> bytes:
        octets = sum(len(one.content) for one in draft.attachments)
        octets += len(draft.text or "") + len(draft.html or "")
        try:
            if octets <= INLINE_OCTETS:
                return compose(draft)
            return await self._services.threads.compute(compose, draft)
        except ValueError as error:
            raise Problem(422, "cannot_be_written", f"That makes no message: {error}.") from None

    async def _store_large(self, content: bytes) -> bytes | Spooled:
        if len(content) < self._services.settings.store.spool_threshold_octets:
            return content
        return await self._services.threads.run(self._spool, content)

    def _spool(self, content: bytes) -> Spooled:
        writer = self._services.intake.spool()
        try:
            writer.write(content)
            return writer.finish()
        except BaseException:
            writer.discard()
            raise


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and _KEY.fullmatch(key) is None:
        place = "/header/Idempotency-Key"
        problem = {"pointer": place, "message": "1 to 255 printable characters of ASCII, no space"}
        raise Problem(422, "invalid", "The idempotency key can't be used.", extra={"errors": [problem]})
    return key


def _digest(place: Sequence[str], asked: BaseModel) -> bytes:
    digest = hashlib.sha256("\0".join((type(asked).__name__, *place)).encode())
    digest.update(asked.model_dump_json().encode())
    return digest.digest()


def _accepted(message_id: str, *, replayed: bool = False) -> Response:
    headers = {"Location": f"/v1/messages/{message_id}/timeline"}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return answer({"id": message_id, "status": "accepted"}, status=202, headers=headers)


def _in_progress() -> Problem:
    return Problem(
        409,
        "idempotency_in_progress",
        "The first request with this key is still being carried out.",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )
