"""Routes that read and delete messages of an inbox.

Owns lists by cursor, one message in full, its octets as they lie, and single
parts. Files are streamed with a bounded number of octets in memory; what came
from outside is never served in a form that a browser would run.
RFC 9110 8.8.3 and 13.1.2 (ETag, If-None-Match), RFC 6266 (Content-Disposition).
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server.http import answers, models, reading
from server.http.access import Caller
from server.http.answers import answer, next_cursor
from server.http.message_files import MessageFiles
from server.http.openapi import Door
from server.http.problems import Problem, not_found
from server.http.services import Services, known_id, write_audit
from server.refusal import Broken
from storage import mailboxes, messages

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from storage.messages import Listed

CHUNK_OCTETS = 256 * 1024
# RFC 9110 5.5 and a browser's caution: what strangers sent is data, whatever it says of itself.
_GUARDED = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class MessageRoutes:
    """Lists, messages, files, deletion."""

    def __init__(self, services: Services, files: MessageFiles) -> None:
        self._services = services
        self._files = files

    def add_to(self, door: Door) -> None:
        """Add the routes."""
        one = "/inboxes/{inbox_id}/messages/{message_id}"
        door.add(
            "GET /inboxes/{inbox_id}/messages",
            self.list_page,
            scope="message:read",
            query=models.MessagePageQuery,
            answer=models.MessageList,
            tag="Messages",
        )
        door.add(f"GET {one}", self.get, scope="message:read", answer=models.Message, tag="Messages")
        door.add(f"DELETE {one}", self.delete, scope="message:delete", status=204, tag="Messages")
        door.add(
            f"POST {one}/move",
            self.move,
            scope="message:delete",
            request=models.MoveRequest,
            status=204,
            tag="Messages",
        )
        raw, part = f"GET {one}/raw", f"GET {one}" + "/attachments/{part}"
        door.add(raw, self.get_raw, scope="message:read", media="message/rfc822", tag="Messages")
        door.add(part, self.get_part, scope="message:read", media="application/octet-stream", tag="Messages")

    async def list_page(self, caller: Caller, inbox_id: str, query: models.MessagePageQuery) -> Response:
        """List the messages of a folder, newest first."""
        caller.reach(known_id(inbox_id))
        page = await self._services.threads.read(
            partial(
                messages.page,
                organization_id=caller.organization_id,
                mailbox_id=inbox_id,
                folder=query.folder,
                before_uid=int(query.cursor) if query.cursor else None,
                limit=query.limit,
            )
        )
        if page is None:
            raise not_found()
        after = next_cursor(page, query.limit, str(page[-1].uid)) if page else None
        shown = [answers.row(one, inbox_id, query.folder) for one in page]
        return answer({"messages": shown, "next_cursor": after})

    async def get(self, caller: Caller, inbox_id: str, message_id: str, request: Request) -> Response:
        """Show a message in full: header, text, HTML as it came, structure, files.

        Carries an ETag that changes with flags and labels.
        """
        caller.reach(known_id(inbox_id))
        listed, verdicts = await self._find_with_verdicts(caller, inbox_id, known_id(message_id))
        etag = f'"{message_id}.{listed.entry.folder_id}.{listed.entry.modseq}"'
        if _unchanged(request, etag):
            return Response(status_code=304, headers={"ETag": etag})
        async with self._files.room(listed.entry.octets):
            content = await self._files.look(caller, inbox_id, listed, reading.describe)
            shown = {**answers.summary(listed, inbox_id), **content, "authentication": verdicts}
            return answer(shown, headers={"ETag": etag})

    async def get_raw(self, caller: Caller, inbox_id: str, message_id: str, request: Request) -> Response:
        """Give the message's octets as they lie, trace fields on top: what IMAP would give."""
        listed = await self._files.find(caller, known_id(inbox_id), known_id(message_id))
        etag = f'"{message_id}.{listed.entry.prefix_octets}"'
        if _unchanged(request, etag):
            return Response(status_code=304, headers={"ETag": etag})
        opened = await self._files.look(caller, inbox_id, listed, _open)
        stack = AsyncExitStack()
        stack.callback(opened.close)
        headers = {
            "Content-Length": str(listed.entry.octets),
            "Content-Disposition": f'attachment; filename="{message_id}.eml"',
            "ETag": etag,
            **_GUARDED,
        }
        return _Held(stack, self._stream(opened, listed.entry.octets), headers, "message/rfc822")

    async def get_part(self, caller: Caller, inbox_id: str, message_id: str, part: str) -> Response:
        """Give a part of a message, decoded. Its number is `part` in the message's `files`."""
        if len(part) > 200 or not part.isascii():
            raise not_found()
        listed = await self._files.find(caller, known_id(inbox_id), known_id(message_id))
        stack = AsyncExitStack()
        await stack.enter_async_context(self._files.room(listed.entry.octets))
        try:
            look = partial(reading.extract_part, number=part)
            found = await self._files.look(caller, inbox_id, listed, look)
            if found is None:
                raise not_found()
        except BaseException:
            await stack.aclose()
            raise
        media, filename, octets = found
        headers = {
            "Content-Length": str(len(octets)),
            "Content-Disposition": _disposition(filename or f"part-{part}"),
            **_GUARDED,
        }
        return _Held(stack, _pieces(octets), headers, media)

    async def delete(self, caller: Caller, inbox_id: str, message_id: str) -> Response:
        """Delete a message from every folder of the inbox, for good."""
        caller.reach(known_id(inbox_id))
        known_id(message_id)
        now = self._services.clock.now()

        def unit(connection: Connection) -> None:
            places = messages.places(
                connection,
                organization_id=caller.organization_id,
                mailbox_id=inbox_id,
                message_id=message_id,
            )
            if not places:
                raise not_found()
            for folder_id, uid in places:
                mailboxes.expunge(
                    connection, maildir=self._services.maildir, folder_id=folder_id, uids=[uid], at=now
                )
            write_audit(connection, caller, action="message.delete", thing=message_id, at=now, inbox=inbox_id)

        await self._services.threads.write(unit)
        return Response(status_code=204)

    async def move(self, caller: Caller, inbox_id: str, message_id: str, request: Request) -> Response:
        """Move a message into another folder of its inbox.

        Out of Junk or Rejects, and into Junk, it also says what the owner thinks of the sender.
        """
        caller.reach(known_id(inbox_id))
        known_id(message_id)
        body = await self._services.bodies.read(request, models.MoveRequest)
        now = self._services.clock.now()

        def unit(connection: Connection) -> None:
            listed = messages.find(
                connection,
                organization_id=caller.organization_id,
                mailbox_id=inbox_id,
                message_id=message_id,
            )
            target = mailboxes.find_folder(connection, mailbox_id=inbox_id, name=body.folder)
            if listed is None:
                raise not_found()
            if target is None:
                raise Problem(422, "no_such_folder", "The inbox has no folder of that name.")
            if target.id == listed.entry.folder_id:
                return
            mailboxes.move(
                connection,
                maildir=self._services.maildir,
                source_id=listed.entry.folder_id,
                target_id=target.id,
                uids=[listed.entry.uid],
                at=now,
            )
            write_audit(connection, caller, action="message.move", thing=message_id, at=now, inbox=inbox_id)

        await self._services.threads.write(unit)
        return Response(status_code=204)

    async def _find_with_verdicts(
        self, caller: Caller, inbox_id: str, message_id: str
    ) -> tuple[Listed, list[dict[str, Any]]]:
        owner = caller.organization_id

        def unit(connection: Connection) -> tuple[Listed, list[dict[str, Any]]]:
            listed = messages.find(
                connection, organization_id=owner, mailbox_id=inbox_id, message_id=message_id
            )
            row = messages.facts(connection, organization_id=owner, message_id=message_id)
            if listed is None or row is None:
                raise not_found()
            return listed, [_verdict(one) for one in json.loads(row.verdicts)]

        return await self._services.threads.read(unit)

    async def _stream(self, opened: BinaryIO, octets: int) -> AsyncIterator[bytes]:
        """Yield exactly as many octets as were announced, whatever became of the file meanwhile."""
        while octets > 0:
            chunk = await self._services.threads.run(opened.read, min(CHUNK_OCTETS, octets))
            if not chunk:
                raise Broken("a message's file is shorter than its entry says")
            octets -= len(chunk)
            yield chunk


class _Held(StreamingResponse):
    """A stream that gives back what it holds however it ends, begun or not."""

    def __init__(
        self,
        stack: AsyncExitStack,
        content: AsyncIterator[bytes],
        headers: dict[str, str],
        media: str,
    ) -> None:
        super().__init__(content, headers=headers, media_type=media)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        async with self._stack:
            await super().__call__(scope, receive, send)


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


async def _pieces(octets: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(octets), CHUNK_OCTETS):
        yield octets[start : start + CHUNK_OCTETS]


def _verdict(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found.get(name, "") for name in ("method", "result", "domain", "reason")}


def _unchanged(request: Request, etag: str) -> bool:
    given = request.headers.get("if-none-match", "")
    return given.strip() == "*" or etag in (one.strip().removeprefix("W/") for one in given.split(","))


def _disposition(filename: str) -> str:
    plain = "".join(
        one if one.isascii() and one.isprintable() and one not in '"\\/%' else "_" for one in filename
    )
    encoded = urllib.parse.quote(filename.replace("/", "_").encode("utf-8", "replace"), safe="")
    return f"attachment; filename=\"{plain[:150]}\"; filename*=UTF-8''{encoded[:900]}"
