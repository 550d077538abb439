"""MIME structure by octets: which part lies where.

Owns the scanner that turns a message into a frozen tree of parts with offsets
of header and body. One pass in linear time, at most MAX_PARTS parts and
MAX_DEPTH levels; it decodes nothing and never raises: a multipart without
usable parts is plain text (RFC 2045 5.2), and so is one nested too deep.

RFC 2046 5.1 (multipart) and 5.2.1 (message/rfc822), RFC 6532 3.7
(message/global), RFC 9051 7.5.2 (what IMAP wants to know of a part).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from mmap import mmap

from server.mail.content import EMBEDDED, OPAQUE, PLAIN_TEXT, Content, Media, read_content

MAX_DEPTH = 50
MAX_PARTS = 10_000
MAX_FALSE_DELIMITERS = 200_000  # lines beginning with '--' that are looked at in vain
MAX_DELIMITER_OCTETS = 300
COUNT_OCTETS = 1_048_576  # of a mapped file, looked at as one piece

Octets = bytes | mmap


@dataclass(frozen=True, slots=True)
class Part:
    """One entity and what it holds, by octets from the start of the message.

    Its header with blank line is [header_start, body_start), its body
    [body_start, body_end). lines: line ends in the body, counted for text and embedded
    messages, else 0. parts: of a multipart its parts, one at least; of an embedded
    message that message alone; else empty.
    """

    header_start: int
    body_start: int
    body_end: int
    lines: int
    content: Content
    parts: tuple["Part", ...] = ()

    @property
    def kind(self) -> str:
        """`type/subtype` in lower case."""
        return self.content.media.kind

    @property
    def octets(self) -> int:
        """Octets of the body as it lies, undecoded."""
        return self.body_end - self.body_start

    @property
    def is_multipart(self) -> bool:
        """Whether the part holds parts, one at least (RFC 2046 5.1)."""
        return bool(self.parts) and self.content.media.is_multipart

    @property
    def is_message(self) -> bool:
        """Whether the part holds one whole message, `parts[0]`."""
        return bool(self.parts) and not self.content.media.is_multipart

    @property
    def is_text(self) -> bool:
        """Whether the body is text (RFC 2046 4.1)."""
        return self.content.media.type.lower() == b"text"

    @property
    def is_attachment(self) -> bool:
        """Whether a reader lists it beside the text instead of showing it as text."""
        if self.is_multipart:
            return False
        disposition = self.content.disposition
        shown = disposition[0].lower() if disposition else b""
        if shown == b"attachment" or not self.is_text:
            return True
        return shown != b"inline" and self.content.filename is not None

    def walk(self) -> Iterator["Part"]:
        """This part and all below it, in the order of their octets."""
        waiting = [self]
        while waiting:
            part = waiting.pop()
            yield part
            waiting.extend(reversed(part.parts))


def scan(message: Octets) -> Part:
    """The structure of a message; all octets have one, so nothing is ever refused."""
    root = _Scanner(message).run()
    if not root.parts and _has_lines(root.content.media) and not root.content.media.is_message:
        return _single(message, root)
    return _freeze(root, _count_lines(message, root))


@dataclass(slots=True)
class _Entity:
    """A part while its end is not yet known. boundary: None when it is no open multipart."""

    header_start: int
    depth: int
    body_start: int
    content: Content
    boundary: bytes | None = None
    body_end: int = -1
    parts: list["_Entity"] = field(default_factory=list)


class _Scanner:
    """Goes from delimiter line to delimiter line, with the open entities on a stack."""

    __slots__ = (
        "active",
        "bare_from",
        "blank_bare",
        "blank_crlf",
        "budget",
        "count",
        "end",
        "message",
        "open",
    )

    def __init__(self, message: Octets) -> None:
        self.message = message
        self.end = len(message)
        self.budget = MAX_FALSE_DELIMITERS
        self.count = 0
        self.open: list[_Entity] = []
        # Boundary to the places on the stack of the multiparts that use it, innermost last.
        self.active: dict[bytes, list[int]] = {}
        # The next blank line of either kind: looked for once, not once a part.
        self.blank_crlf = self.blank_bare = -1
        self.bare_from = 0

    def run(self) -> _Entity:
        """The whole message as a tree whose ends are all known."""
        position = self._descend(0)
        root = self.open[0]
        while self.active and (found := self._next_delimiter(position, self.end)):
            position = self._take(*found)
        self._close_above(-1, self.end)
        return root

    def _descend(self, start: int) -> int:
        """Open the entity that begins here and the messages in it; where to look for delimiters then."""
        while True:
            entity = self._open_entity(start)
            media, inside = entity.content.media, entity.depth < MAX_DEPTH and self.count < MAX_PARTS
            if media.is_message and inside:
                start = entity.body_start
                continue
            if media.is_multipart and inside and (boundary := media.boundary) is not None:
                entity.boundary = boundary
                self.active.setdefault(boundary, []).append(len(self.open) - 1)
                self._end_header_at_own_delimiter(entity)
            # The line end before the body may begin a delimiter.
            return max(entity.body_start - 1, 0)

    def _end_header_at_own_delimiter(self, entity: _Entity) -> None:
        """Where a multipart's header runs into its first delimiter, the blank line was forgotten."""
        found = self._next_delimiter(entity.header_start, max(entity.body_start - 1, 0))
        if found is None or found[2] != len(self.open) - 1:
            return
        content = read_content(self.message[entity.header_start : found[0] + 1])
        if content.media.boundary == entity.boundary:
            entity.content, entity.body_start = content, found[0] + 1

    def _open_entity(self, start: int) -> _Entity:
        parent = self.open[-1] if self.open else None
        in_digest = parent is not None and parent.content.media.is_multipart and _is_digest(parent)
        body_start = self._end_of_header(start)
        content = read_content(self.message[start:body_start], default=EMBEDDED if in_digest else PLAIN_TEXT)
        entity = _Entity(start, 0 if parent is None else parent.depth + 1, body_start, content)
        if parent is not None:
            parent.parts.append(entity)
        self.open.append(entity)
        self.count += 1
        return entity

    def _end_of_header(self, start: int) -> int:
        """Behind the blank line, or where a delimiter or the end of the message cuts the header short."""
        if start and self.message[start - 1 : start] != b"\n":
            return start  # the header of the message around it was cut short: it has no octets
        ahead = self.message[start : start + 2]
        if ahead[:1] == b"\n":
            return start + 1
        if ahead == b"\r\n":
            return start + 2
        blank = self._next_blank(max(start - 1, 0))
        if self.active and (found := self._next_delimiter(max(start - 1, 0), blank)):
            return max(self._before_line_end(found[0]), start)
        return blank

    def _next_blank(self, position: int) -> int:
        """Behind the first blank line at or after the position; the end where there is none."""
        message, end = self.message, self.end
        if self.blank_crlf < position:
            found = message.find(b"\n\r\n", position)
            self.blank_crlf = end if found < 0 else found
        if self.blank_bare < position:
            start = max(position, self.bare_from)
            self.blank_bare = message.find(b"\n\n", start, min(self.blank_crlf + 1, end))
            self.bare_from = self.blank_crlf if self.blank_bare < 0 else self.blank_bare
        if self.blank_bare >= 0:
            return self.blank_bare + 2
        return self.blank_crlf + 3 if self.blank_crlf < end else end

    def _next_delimiter(self, position: int, end: int) -> tuple[int, int, int, bool] | None:
        """The next delimiter line of an open multipart that begins before `end`.

        Gives where the line end before it is, where the line behind it begins, the place of
        its multipart on the stack, and whether it closes it.
        """
        message, active = self.message, self.active
        while self.budget > 0:
            at = message.find(b"\n--", position, end)
            if at < 0:
                return None
            stop = message.find(b"\n", at + 3, at + 3 + MAX_DELIMITER_OCTETS)
            if stop < 0 and at + 3 + MAX_DELIMITER_OCTETS < self.end:
                self.budget -= 1
                position = at + 3
                continue
            stop = self.end if stop < 0 else stop
            # RFC 2046 5.1.1: white space may follow, nothing else.
            line = message[at + 3 : stop].rstrip(b" \t\r")
            places = active.get(line)
            if places:
                return at, min(stop + 1, self.end), places[-1], False
            places = active.get(line[:-2]) if line.endswith(b"--") else None
            if places:
                return at, min(stop + 1, self.end), places[-1], True
            self.budget -= 1
            position = stop
        return None

    def _take(self, at: int, behind: int, place: int, closing: bool) -> int:
        """Act on a delimiter line: what is open inside its multipart ends, a new part may begin."""
        if self.count >= MAX_PARTS:
            self.active.clear()
            return self.end
        self._close_above(place, self._before_line_end(at))
        if closing:
            self._deactivate(place)
            return behind - 1
        return self._descend(behind)

    def _before_line_end(self, at: int) -> int:
        # The line end in front of a delimiter belongs to it (RFC 2046 5.1.1).
        return at - 1 if at > 0 and self.message[at - 1 : at] == b"\r" else at

    def _close_above(self, place: int, end: int) -> None:
        """End all entities above a place on the stack, the innermost first."""
        while len(self.open) > place + 1:
            self._deactivate(len(self.open) - 1)
            entity = self.open.pop()
            last = entity.parts[-1].body_end if entity.parts else 0
            entity.body_end = max(end, entity.body_start, last)

    def _deactivate(self, place: int) -> None:
        entity = self.open[place]
        if entity.boundary is not None:
            places = self.active.get(entity.boundary)
            if places and places.pop() is not None and not places:
                del self.active[entity.boundary]
            entity.boundary = None


def _is_digest(entity: _Entity) -> bool:
    return entity.content.media.subtype.lower() == b"digest"


def _media_of(entity: _Entity) -> Media:
    """The type as it can be kept: what should hold parts and holds none is something else."""
    media = entity.content.media
    if entity.parts or not (media.is_multipart or media.is_message):
        return media
    return PLAIN_TEXT if media.is_multipart else OPAQUE


def _single(message: Octets, text: _Entity) -> Part:
    """The part of a message that is one text, as most are."""
    lines = _count(message, _line_end(message, text), text.body_start, text.body_end)
    return Part(text.header_start, text.body_start, text.body_end, lines, text.content)


def _freeze(entity: _Entity, lines: dict[int, int]) -> Part:
    media = _media_of(entity)
    content = entity.content if media is entity.content.media else replace(entity.content, media=media)
    counted = _has_lines(media)
    return Part(
        header_start=entity.header_start,
        body_start=entity.body_start,
        body_end=entity.body_end,
        lines=lines[entity.body_end] - lines[entity.body_start] if counted else 0,
        content=content,
        parts=tuple([_freeze(part, lines) for part in entity.parts]),
    )


def _has_lines(media: Media) -> bool:
    return media.type.lower() == b"text" or media.is_message


def _count_lines(message: Octets, root: _Entity) -> dict[int, int]:
    """Line ends in front of every place where a counted body begins or ends, in one pass."""
    mark = _line_end(message, root)
    if not root.parts:
        # Where the body is empty both ends are one place, in front of which nothing was counted.
        return {root.body_end: _count(message, mark, root.body_start, root.body_end), root.body_start: 0}
    places: set[int] = set()
    waiting = [root]
    while waiting:
        entity = waiting.pop()
        waiting.extend(entity.parts)
        if _has_lines(_media_of(entity)):
            places.update((entity.body_start, entity.body_end))
    counts: dict[int, int] = {}
    position = total = 0
    for place in sorted(places):
        total += _count(message, mark, position, place)
        counts[place] = total
        position = place
    return counts


def _line_end(message: Octets, root: _Entity) -> bytes:
    # The pair is found three times faster than its second half, and intake takes nothing but pairs:
    # only a file that another program delivered has none.
    return b"\r\n" if message.find(b"\r\n", root.header_start) >= 0 else b"\n"


def _count(message: Octets, mark: bytes, start: int, end: int) -> int:
    if isinstance(message, bytes):
        return message.count(mark, start, end)
    total = 0
    for position in range(start, end, COUNT_OCTETS):
        # A pair that the pieces' edge divides is counted with the piece in front.
        total += message[position : min(position + COUNT_OCTETS + len(mark) - 1, end)].count(mark)
    return total
