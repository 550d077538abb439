"""The commands about mailboxes as wholes: CREATE to STATUS.

Owns the checks of names and rights and the rendering of LIST, LSUB and STATUS.
The folders' rows and directories are storage's. RFC 9051 6.3.4 to 6.3.11, RFC
3501 6.3.9 (LSUB), 2342 (NAMESPACE), 5258, 5819, 6154, 8438 (STATUS=SIZE).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.imap import format as wire
from server.imap import hierarchy
from server.imap.answer import Completion, Failed, nonexistent
from storage import mailboxes
from storage.folders import normal_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from server.imap import commands as c
    from server.imap.session import Session
    from storage.mailboxes import Counts
    from storage.records import Folder

INBOX = "INBOX"


def require_right(session: Session) -> None:
    """Raise Failed where the login may only read."""
    if not session.may_write:
        raise Failed("This login may only read", code=b"[NOPERM]")


async def find(session: Session, name: str) -> Folder:
    """Return the folder of a name; raises Failed where there is none."""
    mailbox_id = session.mailbox_id
    folder = await session.services.threads.read(
        lambda connection: mailboxes.find_folder(connection, mailbox_id=mailbox_id, name=name)
    )
    if folder is None:
        raise nonexistent()
    return folder


async def find_target(session: Session, name: str) -> Folder:
    """Return the folder that messages go to; raises Failed with TRYCREATE where there is none."""
    try:
        return await find(session, name)
    except Failed:
        # RFC 9051 6.3.12: what could not even be created gets no such hint.
        _good_name(name)
        raise Failed("Mailbox does not exist", code=b"[TRYCREATE]") from None


def _good_name(name: str) -> str:
    # RFC 9051 6.3.4: a trailing delimiter says that names below will follow.
    name = normal_name(name.removesuffix(hierarchy.DELIMITER))
    if "*" in name or "%" in name:
        raise Failed("A mailbox name cannot hold a wildcard", code=b"[CANNOT]")
    return name


async def create(session: Session, command: c.Create) -> Completion:
    """CREATE."""
    require_right(session)
    name, mailbox_id = _good_name(command.mailbox), session.mailbox_id
    if len(command.special_use) > 1 or not hierarchy.SPECIAL_USES.issuperset(command.special_use):
        raise Failed("That special use is not supported", code=b"[USEATTR]")
    special_use, now = "".join(command.special_use), session.services.clock.now()
    await session.services.threads.write(
        lambda connection: mailboxes.create_folder(
            connection, mailbox_id=mailbox_id, name=name, at=now, special_use=special_use
        )
    )
    return Completion("CREATE done")


async def delete(session: Session, command: c.Delete) -> Completion:
    """DELETE; a session of this process that has it open is told and sent away."""
    require_right(session)
    if command.mailbox == INBOX:
        raise Failed("INBOX cannot be deleted", code=b"[CANNOT]")
    services, mailbox_id = session.services, session.mailbox_id
    folder = await find(session, command.mailbox)
    if session.folder is not None and session.folder.record.id == folder.id:
        session.deselect()
    await services.threads.write(
        lambda connection: mailboxes.delete_folder(
            connection, mailbox_id=mailbox_id, name=command.mailbox, maildir=services.maildir
        )
    )
    services.folders.deleted(folder.id)
    return Completion("DELETE done")


async def rename(session: Session, command: c.Rename) -> Completion:
    """RENAME; INBOX stays and gives its messages to the new mailbox."""
    require_right(session)
    services, mailbox_id = session.services, session.mailbox_id
    new_name = _good_name(command.new_name)
    if (new_name + hierarchy.DELIMITER).startswith(command.mailbox + hierarchy.DELIMITER):
        same = new_name == command.mailbox
        code = b"[ALREADYEXISTS]" if same else b"[CANNOT]"
        raise Failed("A mailbox cannot become what it is or a part of itself", code=code)
    await services.threads.write(
        lambda connection: mailboxes.rename_folder(
            connection,
            mailbox_id=mailbox_id,
            name=command.mailbox,
            new_name=new_name,
            maildir=services.maildir,
        )
    )
    return Completion("RENAME done")


async def subscribe(session: Session, command: c.Subscribe) -> Completion:
    """SUBSCRIBE and UNSUBSCRIBE."""
    require_right(session)
    mailbox_id = session.mailbox_id
    await session.services.threads.write(
        lambda connection: mailboxes.set_subscribed(
            connection, mailbox_id=mailbox_id, name=command.mailbox, subscribed=command.subscribed
        )
    )
    return Completion("SUBSCRIBE done" if command.subscribed else "UNSUBSCRIBE done")


async def list_(session: Session, command: c.Listing) -> Completion:
    """LIST."""
    if command.patterns == ("",) and not command.extended:
        # RFC 9051 6.3.9: an empty pattern asks for the delimiter.
        session.wire.write(b'* LIST (\\Noselect) "/" ""\r\n')
        return Completion("LIST done")
    rows, counts = await _rows(session, command)
    asked = command.selection | command.returns
    for place, row in enumerate(rows):
        session.wire.write(_list_line(b"LIST", row, recursive="RECURSIVEMATCH" in asked))
        if row.folder is not None and row.folder.id in counts:
            session.wire.write(_status_line(row.name, command.status, counts[row.folder.id]))
        if place % 512 == 511:
            await session.wire.breathe()
    return Completion("LIST done")


async def _rows(session: Session, command: c.Listing) -> tuple[list[hierarchy.Row], dict[int, Counts]]:
    mailbox_id = session.mailbox_id
    matches = hierarchy.matchers(command.reference, command.patterns)

    def unit(connection: Connection) -> tuple[list[hierarchy.Row], dict[int, Counts]]:
        rows = hierarchy.rows(
            mailboxes.folders(connection, mailbox_id=mailbox_id),
            matches=matches,
            selection=command.selection,
            returns=command.returns,
            lapsed=mailboxes.lapsed(connection, mailbox_id=mailbox_id),
        )
        if not command.status:
            return rows, {}
        ids = [row.folder.id for row in rows if row.folder is not None]
        return rows, {each: mailboxes.counts(connection, folder_id=each) for each in ids}

    return await session.services.threads.read(unit)


async def list_subscribed(session: Session, command: c.SubscribedListing) -> Completion:
    """LSUB; a '%' that ends above a subscribed name shows the parent as \\Noselect (RFC 3501 6.3.9)."""
    mailbox_id = session.mailbox_id
    (matches,) = hierarchy.matchers(command.reference, (command.pattern,))
    folders, lapsed = await session.services.threads.read(
        lambda connection: (
            mailboxes.folders(connection, mailbox_id=mailbox_id),
            mailboxes.lapsed(connection, mailbox_id=mailbox_id),
        )
    )
    names: dict[str, Folder | None] = dict.fromkeys(lapsed)
    names |= {folder.name: folder for folder in folders if folder.subscribed}
    shown = {name: True for name in names if matches(name)}
    if command.pattern.endswith("%"):
        for name in names:
            for parent in hierarchy.parents(name):
                if matches(parent):
                    shown.setdefault(parent, parent in names)
    for name in sorted(shown, key=lambda name: (name != INBOX, name)):
        attributes = () if shown[name] else ("\\Noselect",)
        session.wire.write(
            _list_line(b"LSUB", hierarchy.Row(name, attributes, names.get(name)), recursive=False)
        )
    return Completion("LSUB done")


def _list_line(kind: bytes, row: hierarchy.Row, *, recursive: bool) -> bytes:
    childinfo = b' ("CHILDINFO" ("SUBSCRIBED"))' if recursive and row.subscribed_below else b""
    attributes = " ".join(row.attributes).encode()
    return b'* %b (%b) "/" %b%b\r\n' % (kind, attributes, wire.mailbox(row.name), childinfo)


async def namespace(session: Session, _command: c.Namespace) -> Completion:
    """NAMESPACE: one personal namespace."""
    session.wire.write(b'* NAMESPACE (("" "/")) NIL NIL\r\n')
    return Completion("NAMESPACE done")


async def status(session: Session, command: c.Status) -> Completion:
    """STATUS."""
    folder = await find(session, command.mailbox)
    counts = await session.services.threads.read(
        lambda connection: mailboxes.counts(connection, folder_id=folder.id)
    )
    session.wire.write(_status_line(command.mailbox, command.items, counts))
    return Completion("STATUS done")


def _status_line(name: str, items: Sequence[str], counts: Counts) -> bytes:
    values = {
        "MESSAGES": counts.messages,
        "RECENT": counts.recent,
        "UIDNEXT": counts.uidnext,
        "UIDVALIDITY": counts.uidvalidity,
        "UNSEEN": counts.unseen,
        "HIGHESTMODSEQ": counts.highestmodseq,
        "SIZE": counts.octets,
        "DELETED": counts.deleted,
    }
    listed = " ".join(f"{item} {values[item]}" for item in items).encode()
    return b"* STATUS %b (%b)\r\n" % (wire.mailbox(name), listed)
