"""Fuzz targets of mail itself: any octets in, an invariant out.

`check_address`: a mailbox is refused with AddressSyntax or is stable: it formats to
text that parses back to it, its normal form is its own normal form, and it holds no
control character. A header's address list never raises and is linear in its input.
`check_structure`: every message has parts that lie inside one another in order, counts
and depths within their limits, the same parts that a plain line-by-line reader finds,
and text that can be stored. `check_recoding`: a message becomes lines, all within
998 octets where a part says it is binary, or it is refused; lines stay as they are.
"""

from collections.abc import Iterator

from server.mail.address import (
    MAX_MAILBOX_OCTETS,
    AddressSyntax,
    Mailbox,
    domain_of,
    normalise,
    parse_domain,
    parse_mailbox,
)
from server.mail.address_list import MAX_ADDRESSES, parse_address_list
from server.mail.compose import NamedAddress, format_address
from server.mail.content import EMBEDDED, PLAIN_TEXT, read_content
from server.mail.dates import format_date, parse_date
from server.mail.dsn_reader import parse_notification
from server.mail.envelope import read_envelope
from server.mail.header import Header, decode, encode, fields, split
from server.mail.recoding import Unencodable, recode
from server.mail.structure import MAX_DEPTH, MAX_PARTS, Part, scan
from server.mail.text import (
    MAX_TEXT_CHARACTERS,
    PREVIEW_CHARACTERS,
    extract,
    part_octets,
    preview,
)

Outline = tuple[int, int, int, tuple["Outline", ...]]

_MODEL_OCTETS = 20_000


def check_address(data: bytes) -> None:
    """Any octets are a stable mailbox or an AddressSyntax, and a bounded list of addresses."""
    text = data.decode("utf-8", "surrogateescape")
    narrow, wide = _parse(text, smtputf8=False), _parse(text, smtputf8=True)
    if narrow is not None:
        assert narrow == wide
        assert text.isascii()
    if wide is not None:
        _check_mailbox(wide)
    _check_list(data)


def check_recoding(data: bytes) -> None:
    """Any octets become lines or are refused, and once encoded stay so."""
    try:
        made = b"".join(recode(data))
    except Unencodable:
        assert not _has_lines_only(data) or b"binary" in data.lower()
        return
    assert _has_lines_only(made)
    if b"binary" not in data.lower():
        assert made == data
    assert len(made) <= 3 * len(data) + 100 * data.lower().count(b"binary") + 100


def _has_lines_only(octets: bytes) -> bool:
    rest = octets.replace(b"\r\n", b"")
    return not any(mark in rest for mark in (b"\r", b"\n", b"\0"))


def check_structure(data: bytes) -> None:
    """Any octets are a message with parts in bounds and text that can be stored."""
    root = scan(data)
    assert (root.header_start, root.body_end) == (0, len(data))
    assert root.body_start <= split(data)
    _check_parts(root, data)
    if len(data) <= _MODEL_OCTETS:
        assert outline(root) == model(data)
    _check_text(root, data)
    _check_header(data[: root.body_start])
    notification = parse_notification(data)
    assert notification is None or notification.recipients


def _parse(text: str, *, smtputf8: bool) -> Mailbox | None:
    try:
        return parse_mailbox(text, smtputf8=smtputf8)
    except AddressSyntax:
        return None


def _check_mailbox(mailbox: Mailbox) -> None:
    written = str(mailbox)
    assert len(written.encode()) <= MAX_MAILBOX_OCTETS
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in written)
    assert parse_mailbox(written, smtputf8=True) == mailbox
    assert parse_domain(mailbox.domain, smtputf8=True) == mailbox.domain
    assert normalise(written) == mailbox.normal == normalise(mailbox.normal)
    assert domain_of(written).isascii()
    (read,) = parse_address_list(format_address(NamedAddress(mailbox, "Some, One")))
    assert (read.display, read.local) == (b"Some, One", mailbox.local.encode())


def _check_list(data: bytes) -> None:
    addresses = parse_address_list(data)
    assert len(addresses) <= MAX_ADDRESSES
    octets = sum(len(part or b"") for a in addresses for part in (a.display, a.route, a.local, a.domain))
    # A '[' that is never closed is closed, and words are parted by spaces.
    assert octets <= 3 * len(data)
    inside = 0
    for address in addresses:
        if address.domain is None:
            inside += 1 if address.local is not None else -1
        assert inside in (0, 1)
        assert (address.local is None) == (address.domain is None and address.display is None and not inside)
    assert inside == 0


def _check_parts(root: Part, data: bytes) -> None:
    mark = b"\r\n" if b"\r\n" in data else b"\n"
    parts = list(_with_depth(root, 0))
    assert len(parts) <= MAX_PARTS
    for part, depth in parts:
        assert depth <= MAX_DEPTH
        assert 0 <= part.header_start <= part.body_start <= part.body_end <= len(data)
        assert not (part.is_multipart and part.is_message)
        assert bool(part.parts) == (part.is_multipart or part.is_message)
        if part.is_text or part.is_message:
            assert part.lines == data.count(mark, part.body_start, part.body_end)
        edge = part.body_start
        for inner in part.parts:
            assert edge <= inner.header_start
            edge = inner.body_end
        assert edge <= part.body_end
        assert len(part_octets(part, data)) <= max(part.octets, 0)
        assert part.content.media.type
        assert part.content.media.subtype


def _with_depth(part: Part, depth: int) -> Iterator[tuple[Part, int]]:
    yield part, depth
    for inner in part.parts:
        yield from _with_depth(inner, depth + 1)


def _check_text(root: Part, data: bytes) -> None:
    text, line = extract(root, data), preview(root, data)
    assert len(text) <= MAX_TEXT_CHARACTERS
    assert len(line) <= PREVIEW_CHARACTERS
    assert "\n" not in line
    for found in (text, line):
        assert "\x00" not in found
        found.encode("utf-8")
    for part in root.walk():
        (part.content.filename or "").encode("utf-8")


def _check_header(header: bytes) -> None:
    found = fields(header)
    assert sum(len(field.raw) for field in found) <= len(header)
    for field in found:
        assert b"\n" not in field.value
        text = decode(field.value)
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)
        if len(text) < 1000:
            assert decode(encode(text)).split() == text.split()
        date = parse_date(field.value)
        assert date is None or parse_date(format_date(*date).encode()) == (date[0] // 10**6 * 10**6, date[1])
    index = Header(header)
    for name in {field.name.lower() for field in found}:
        assert index.all(name) == [field.value for field in found if field.name.lower() == name]
    envelope = read_envelope(header)
    assert envelope.subject == index.first(b"subject")


def outline(part: Part) -> Outline:
    """Where the parts lie, and nothing else."""
    return part.header_start, part.body_start, part.body_end, tuple(outline(inner) for inner in part.parts)


def model(message: bytes) -> Outline:
    """What the scanner should find, by a reader that looks at every line: slow and plain."""
    return _Model(message).read()


class _Model:
    """Entities are lists: [header_start, body_start, body_end, inner, boundary, media]."""

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.lines: list[tuple[int, bytes]] = []
        start = 0
        for line in message.split(b"\n"):
            self.lines.append((start, line))
            start += len(line) + 1
        self.stack: list[list] = []
        self.count = 0

    def read(self) -> Outline:
        number = self.enter(0)
        root = self.stack[0]
        while number < len(self.lines):
            found = self.match(number)
            number += 1
            if found is None:
                continue
            place, closing = found
            if self.count >= MAX_PARTS:
                break
            self.close(place, self.before(number - 1))
            if closing:
                self.stack[place][4] = None
            else:
                number = self.enter(number)
        self.close(-1, len(self.message))
        return self.freeze(root)

    def freeze(self, entity: list) -> Outline:
        return entity[0], entity[1], entity[2], tuple(self.freeze(inner) for inner in entity[3])

    def before(self, number: int) -> int:
        end = max(self.lines[number][0] - 1, 0)
        return end - 1 if self.message[max(end - 1, 0) : end] == b"\r" else end

    def match(self, number: int) -> tuple[int, bool] | None:
        line = self.lines[number][1]
        if not line.startswith(b"--") or number == 0 or len(line) > 301:
            return None
        text = line[2:].rstrip(b" \t\r")
        for closing in (False, True):
            if closing and not text.endswith(b"--"):
                break
            for place in reversed(range(len(self.stack))):
                if self.stack[place][4] == (text[:-2] if closing else text):
                    return place, closing
        return None

    def enter(self, number: int) -> int:
        start = self.lines[number][0] if number < len(self.lines) else len(self.message)
        while True:
            body, after = self.header_end(number, start)
            parent = self.stack[-1] if self.stack else None
            digest = parent is not None and parent[5].is_multipart and parent[5].subtype.lower() == b"digest"
            media = read_content(self.message[start:body], default=EMBEDDED if digest else PLAIN_TEXT).media
            depth = len(self.stack)
            entity = [start, body, -1, [], None, media]
            if parent is not None:
                parent[3].append(entity)
            self.stack.append(entity)
            self.count += 1
            if depth >= MAX_DEPTH or self.count >= MAX_PARTS:
                return after
            if media.is_message:
                number, start = after, body
                continue
            if media.is_multipart and media.boundary is not None:
                entity[4] = media.boundary
                return self.own_delimiter(number, after, entity)
            return after

    def header_end(self, number: int, start: int) -> tuple[int, int]:
        if start and self.message[start - 1 : start] != b"\n":
            return start, number
        while number < len(self.lines):
            place, line = self.lines[number]
            last = number == len(self.lines) - 1
            if line in (b"", b"\r") and not last:
                return place + len(line) + 1, number + 1
            if self.match(number) is not None:
                return max(self.before(number), start), number
            number += 1
        return len(self.message), number

    def own_delimiter(self, number: int, after: int, entity: list) -> int:
        for below in range(number + 1, after):
            found = self.match(below)
            if found is not None and self.lines[below][0] < entity[1] - 1:
                content = read_content(self.message[entity[0] : self.lines[below][0]])
                if found[0] == len(self.stack) - 1 and content.media.boundary == entity[4]:
                    entity[1], entity[5] = self.lines[below][0], content.media
                    return below
                return after
        return after

    def close(self, place: int, end: int) -> None:
        while len(self.stack) > place + 1:
            entity = self.stack.pop()
            last = entity[3][-1][2] if entity[3] else 0
            entity[2] = max(end, entity[1], last)
