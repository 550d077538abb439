"""One session: its state, the command that runs, and what the client is told about its mailbox.

Owns the order of responses: a command's own, then what changed, then the tagged
one. Reads and writes through the connection it is given and knows no socket.
Each command's doing is in a module of its own. RFC 9051 3, 5.2, 5.5 and 7.
"""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from server.imap import (
    append,
    authentication,
    fetch,
    greeting,
    machine,
    mailbox,
    search,
    selection,
    store,
    telling,
)
from server.imap import commands as c
from server.imap.answer import Completion, Disconnected, Failed, of_refusal, of_storage
from server.imap.machine import Security, State, Telling
from server.refusal import Refusal
from storage.errors import StorageError

if TYPE_CHECKING:
    import ssl

    from server.clock import Clock
    from server.imap.folder import OpenFolder, OpenFolders
    from server.imap.framing import Announced, Event
    from server.imap.limits import Bounds, ImapSettings
    from server.imap.view import View
    from server.intake import Intake
    from server.login import Identity, Login
    from server.threads import Threads
    from storage.maildir import Maildir
    from storage.watch import Watch

log = structlog.get_logger("imap")


@dataclass(frozen=True, slots=True)
class Services:
    """What all sessions of a server share."""

    threads: Threads
    login: Login
    intake: Intake
    maildir: Maildir
    clock: Clock
    settings: ImapSettings
    bounds: Bounds
    folders: OpenFolders
    watch: Watch
    hostname: str
    tls_context: Callable[[], ssl.SSLContext | None]


class Wire(Protocol):
    """The connection as a session sees it."""

    id: str
    peer_address: str
    security: Security

    def write(self, data: bytes) -> None:
        """Send octets, soon."""
        ...

    async def drain(self) -> None:
        """Wait until the client has read enough of what was written; raises Disconnected."""
        ...

    async def breathe(self) -> None:
        """Drain, and let others have their turn."""
        ...

    async def event(self) -> Event:
        """Return the next event of the framing; raises Disconnected."""
        ...

    async def line(self, limit: int) -> bytes:
        """Return one line, cut to limit + 1 octets; raises Disconnected."""
        ...

    async def start_tls(self) -> None:
        """Make TLS over the connection; raises Disconnected."""
        ...

    def accept_literal(self) -> None:
        """Take the announced literal."""
        ...

    def refuse_literal(self) -> None:
        """Do without the announced literal and its command."""
        ...

    def abandon_command(self) -> None:
        """Skip what is left of a command whose literal is being taken."""
        ...

    def discard_input(self) -> int:
        """Forget what was read and not looked at; returns its octets."""
        ...

    def logged_in(self) -> bool:
        """Allow what only a client that is logged in may; False where its inbox has too many sessions."""
        ...

    @property
    def is_writable(self) -> bool:
        """Whether the client reads what it is sent."""
        ...

    def close(self) -> None:
        """End the connection once all is sent."""
        ...


Handler = Callable[["Session", Any], Awaitable[Completion]]

_HANDLERS: dict[type, Handler] = {
    c.Capability: greeting.capability,
    c.Noop: greeting.noop,
    c.Check: greeting.noop,
    c.Logout: greeting.logout,
    c.Identify: greeting.identify,
    c.Enable: greeting.enable,
    c.StartTls: authentication.start_tls,
    c.Authenticate: authentication.authenticate,
    c.Login: authentication.log_in,
    c.Select: selection.select,
    c.Close: selection.close,
    c.Unselect: selection.unselect,
    c.Idle: selection.idle,
    c.Create: mailbox.create,
    c.Delete: mailbox.delete,
    c.Rename: mailbox.rename,
    c.Subscribe: mailbox.subscribe,
    c.Listing: mailbox.list_,
    c.SubscribedListing: mailbox.list_subscribed,
    c.Namespace: mailbox.namespace,
    c.Status: mailbox.status,
    c.Append: append.append,
    c.Fetch: fetch.fetch,
    c.Search: search.search,
    c.Store: store.store,
    c.Copy: store.copy,
    c.Move: store.move,
    c.Expunge: store.expunge,
}


class Session:
    """The state behind one connection."""

    __slots__ = (
        "announced",
        "condstore",
        "failures",
        "folder",
        "identity",
        "idling",
        "qresync",
        "saved",
        "services",
        "state",
        "tag",
        "view",
        "wire",
    )

    def __init__(self, services: Services, wire: Wire) -> None:
        self.services = services
        self.wire = wire
        self.state = State.NOT_AUTHENTICATED
        self.identity: Identity | None = None
        self.tag = b""  # of the command that runs: ESEARCH names it
        self.announced: Announced | None = None  # the literal that APPEND is about
        self.failures = 0
        self.folder: OpenFolder | None = None
        self.view: View | None = None
        self.condstore = False
        self.qresync = False
        self.idling = False
        self.saved: array[int] = array("Q")  # RFC 5182: UIDs of the last SEARCH RETURN (SAVE)

    @property
    def mailbox_id(self) -> str:
        """The inbox of whoever is logged in."""
        assert self.identity is not None and self.identity.mailbox_id is not None
        return self.identity.mailbox_id

    @property
    def may_write(self) -> bool:
        """Whether the login may change anything: an app password always, a key only with the scope for it."""
        identity = self.identity
        return identity is not None and (identity.kind != "key" or "message:delete" in identity.scopes)

    def opened(self) -> tuple[OpenFolder, View]:
        """Return the selected folder and this session's view of it."""
        assert self.folder is not None and self.view is not None
        return self.folder, self.view

    def capabilities(self) -> bytes:
        """Return the capability list for the session's state."""
        octets = self.services.settings.max_literal_octets
        return machine.capabilities(self.state, self.wire.security, append_octets=octets)

    async def run(self, tagged: c.Tagged) -> Completion:
        """Do one command and say how it ended; raises Disconnected."""
        command, self.tag = tagged.command, tagged.tag
        try:
            completion = await self._do(command)
        except Failed as failed:
            completion = failed.completion
        except Refusal as refusal:
            completion = of_refusal(refusal)
        except StorageError as error:
            completion = of_storage(error) or self._broken(error)
        await self._catch_up(machine.telling(command))
        self.wire.write(completion.line(tagged.tag))
        if isinstance(command, c.StartTls) and completion.status == b"OK":
            await self.wire.start_tls()
        return completion

    async def _do(self, command: c.ImapCommand) -> Completion:
        reason = machine.refusal(command, self.state)
        if reason is not None:
            raise Failed(reason, status=b"BAD")
        if machine.writes(command) and self.view is not None and self.view.access is c.Access.READ_ONLY:
            raise Failed("The mailbox was opened read-only", code=b"[READ-ONLY]")
        if machine.condstore_enabling(command):
            self.enable_condstore()
        return await _HANDLERS[type(command)](self, command)

    def _broken(self, error: StorageError) -> Completion:
        log.error("storage failed", session=self.wire.id, error=repr(error))
        return Completion("The server has a fault, try again later", b"NO", b"[UNAVAILABLE]")

    def enable_condstore(self) -> None:
        """Tell mod-sequences from now on (RFC 7162 3.1)."""
        if not self.condstore and self.view is not None:
            modseq = self.view.contents.highestmodseq
            self.wire.write(b"* OK [HIGHESTMODSEQ %d] CONDSTORE is on\r\n" % modseq)
        self.condstore = True

    async def _catch_up(self, allowed: Telling) -> None:
        if self.view is None or self.folder is None or allowed is Telling.NOTHING:
            return
        if self.folder.is_behind:
            await self.folder.refresh()
        self.tell(allowed)

    def tell(self, allowed: Telling) -> None:
        """Write what changed in the selected mailbox, as far as it may be told now."""
        folder, view = self.folder, self.view
        if folder is None or view is None:
            return
        if folder.gone:
            self.wire.write(b"* BYE The mailbox was deleted\r\n")
            self.wire.close()
            raise Disconnected
        if view.is_current:
            return
        before = view.contents.recent_next
        updates = view.sync(expunge=allowed is Telling.ALL)
        folder.keep_recent(before)
        if updates.vanished and self.saved:
            gone = set(updates.vanished)
            self.saved = array("Q", (uid for uid in self.saved if uid not in gone))
        data = telling.updates(view, updates, condstore=self.condstore, qresync=self.qresync)
        if data:
            self.wire.write(data)

    def tell_keywords(self) -> None:
        """Write the flags defined in the mailbox where keywords came: before any FETCH that names one."""
        if self.view is not None and self.view.take_keywords():
            self.wire.write(telling.flags_line(self.view.contents))

    def wake(self) -> None:
        """Hear that the selected folder moved: an idle client is told at once."""
        if self.idling and self.wire.is_writable:
            try:
                self.tell(Telling.ALL)
            except Disconnected:
                self.idling = False

    def deselect(self) -> None:
        """Leave the selected mailbox."""
        if self.folder is not None and self.view is not None:
            self.services.folders.release(self.folder, self.view)
        self.folder = self.view = None
        self.saved = array("Q")
        if self.state is State.SELECTED:
            self.state = State.AUTHENTICATED

    def end(self) -> None:
        """Let go of everything: the connection is over."""
        self.idling = False
        self.deselect()
        self.state = State.LOGOUT
