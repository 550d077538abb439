"""Header fields: where they begin and end, their values, encoded words.

Owns splitting a message into header and body, splitting a header into fields,
unfolding, folding, and RFC 2047 in both directions. Reading never raises and
takes what strangers send; writing refuses control characters with ValueError.

RFC 5322 2.2 and 2.1.1 (folding at 78, limit of 998), RFC 2047, RFC 2231 5.
"""

import re
from binascii import Error as BinasciiError
from binascii import a2b_base64, b2a_base64
from functools import lru_cache
from typing import NamedTuple

from server.mail.charset import decode_text

MAX_FIELDS = 10_000
MAX_DECODED_OCTETS = 65_536
MAX_NAME_PADDING = 80  # white space in front of the colon (RFC 5322 4.5)
FOLD_COLUMN = 78  # RFC 5322 2.1.1, without CRLF
MAX_LINE_OCTETS = 998  # RFC 5322 2.1.1, without CRLF
MAX_WORD_OCTETS = 75  # RFC 2047 2
MAX_ATOM_OCTETS = 500  # longer runs without a space are encoded, so that they can be folded

# Continuation lines begin with white space; a line without a colon is passed over.
_FIELD = re.compile(rb"([!-9;-~\x80-\xff]+)[ \t]{0,80}:([^\n]*(?:\n[ \t][^\n]*)*)(?:\n|\Z)")
# As _FIELD, but found from any line's start: possessive, so that a line is looked at once.
_NAMED = re.compile(rb"(?:\A|(?<=\n))([!-9;-~\x80-\xff]++)[ \t]{0,80}+:([^\n]*+(?:\n[ \t][^\n]*+)*+)")
_INDEXED_OCTETS = 65_536  # a header up to here is split once, of a longer one each name is looked for
_WHITE = (b" ", b"\t")
_CONTINUED = re.compile(rb"\r?\n(?=[ \t])")
_ENCODED_WORD = re.compile(r"=\?([^?\s]{1,80})\?([bBqQ])\?([^?]*)\?=")
_HEX_PAIR = re.compile(rb"=([0-9A-Fa-f]{2})")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")
_Q_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")
_PLAIN_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_Q_CODE = tuple(
    b"_" if octet == 32 else bytes((octet,)) if octet in _Q_SAFE else b"=%02X" % octet for octet in range(256)
)
_FIELD_NAME = re.compile(r"[!-9;-~]+")
_FIELD_NAME_OCTETS = re.compile(rb"[!-9;-~\x80-\xff]+")


class HeaderField(NamedTuple):
    """One field. raw: every octet of it with line ends; value: unfolded, outer white space gone."""

    name: bytes
    raw: bytes
    value: bytes


def split(message: bytes) -> int:
    """Octets of the header with its blank line; the whole length where there is no blank line."""
    if message[:1] == b"\n":
        return 1
    if message[:2] == b"\r\n":
        return 2
    crlf = message.find(b"\n\r\n")
    bare = message.find(b"\n\n") if crlf < 0 else message.find(b"\n\n", 0, crlf + 1)
    if bare >= 0:
        return bare + 2
    return crlf + 3 if crlf >= 0 else len(message)


def fields(header: bytes) -> list[HeaderField]:
    """The fields in order, at most MAX_FIELDS; lines that are no field are left out."""
    found: list[HeaderField] = []
    position, end = 0, len(header)
    match = _FIELD.match
    while position < end and len(found) < MAX_FIELDS:
        field = match(header, position)
        if field is None:
            position = header.find(b"\n", position) + 1 or end
            continue
        name, value = field.groups()
        position = field.end()
        found.append(HeaderField(name, field.group(), unfold(value)))
    return found


class Header:
    """A header that a few named fields are wanted of: cheaper than reading all of them."""

    __slots__ = ("_index", "_lowered", "octets")

    def __init__(self, octets: bytes) -> None:
        self.octets = octets
        # Values as they lie, by lower-case name; None where the header is too long for it.
        self._index: dict[bytes, list[bytes]] | None = None
        self._lowered = b""
        if len(octets) > _INDEXED_OCTETS:
            self._lowered = b"\n" + octets.lower()
            return
        index: dict[bytes, list[bytes]] = {}
        for name, value in _NAMED.findall(octets):
            index.setdefault(name.lower(), []).append(value)
        self._index = index

    @staticmethod
    def of(octets: bytes) -> "Header":
        """The header of these octets, split once where two readers of one message ask in turn."""
        return _lately_split(octets) if len(octets) <= _INDEXED_OCTETS else Header(octets)

    def group(self, prefix: bytes) -> dict[bytes, bytes]:
        """The first value of each field whose lower-case name begins with the prefix, by that name."""
        if self._index is not None:
            return {
                name: unfold(values[0]) for name, values in self._index.items() if name.startswith(prefix)
            }
        wanted, lowered, position = b"\n" + prefix, self._lowered, 0
        found: dict[bytes, bytes] = {}
        for _ in range(MAX_FIELDS):
            start = lowered.find(wanted, position)
            if start < 0:
                break
            position = start + 1
            colon = lowered.find(b":", position, position + MAX_NAME_PADDING)
            name = lowered[position:colon].rstrip(b" \t") if colon >= 0 else b""
            if _FIELD_NAME_OCTETS.fullmatch(name):
                position = self._end_of_value(colon)
                found.setdefault(name, unfold(self.octets[colon:position]))
        return found

    def first(self, name: bytes) -> bytes | None:
        """The unfolded value of the first field of that lower-case name, or None."""
        if self._index is not None:
            values = self._index.get(name)
            return None if values is None else unfold(values[0])
        start, end = self._locate(name, 0)
        return None if start < 0 else unfold(self.octets[start:end])

    def all(self, name: bytes) -> list[bytes]:
        """The unfolded values of all fields of that lower-case name, in order."""
        if self._index is not None:
            return [unfold(value) for value in self._index.get(name, ())[:MAX_FIELDS]]
        values: list[bytes] = []
        start, end = self._locate(name, 0)
        while start >= 0 and len(values) < MAX_FIELDS:
            values.append(unfold(self.octets[start:end]))
            start, end = self._locate(name, end)
        return values

    def _locate(self, name: bytes, position: int) -> tuple[int, int]:
        """Where the value of the next such field begins and ends; (-1, -1) when there is none."""
        wanted, lowered = b"\n" + name, self._lowered
        for _ in range(MAX_FIELDS):
            found = lowered.find(wanted, position)
            if found < 0:
                break
            # The lowered copy is one octet longer, so its colon's index is the value's in ours.
            behind = colon = found + len(wanted)
            if lowered[colon : colon + 1] != b":":
                colon = lowered.find(b":", behind, behind + MAX_NAME_PADDING + 1)
            if colon >= 0 and (colon == behind or not lowered[behind:colon].strip(b" \t")):
                return colon, self._end_of_value(colon)
            position = found + 1
        return -1, -1

    def _end_of_value(self, position: int) -> int:
        octets = self.octets
        end = octets.find(b"\n", position)
        while end >= 0 and octets[end + 1 : end + 2] in _WHITE:
            end = octets.find(b"\n", end + 1)
        return end if end >= 0 else len(octets)


@lru_cache(maxsize=2)
def _lately_split(octets: bytes) -> Header:
    return Header(octets)


def unfold(value: bytes) -> bytes:
    """A field's value on one line, without white space around it (RFC 5322 2.2.3)."""
    if b"\n" in value:
        lines = value.count(b"\n")
        if lines == value.count(b"\n ") + value.count(b"\n\t"):
            value = value.replace(b"\r\n", b"").replace(b"\n", b"")  # a fifth of what the pattern takes
        else:
            value = _CONTINUED.sub(b"", value)
    return value.strip(b" \t\r\n")


def decode(value: bytes) -> str:
    """An unfolded value as text: encoded words decoded, raw octets guessed, controls made spaces."""
    text = decode_text(value[:MAX_DECODED_OCTETS])
    if "=?" in text:
        text = _decode_words(text)
    return text if text.isprintable() else _CONTROLS.sub(" ", text)


def encode(text: str) -> bytes:
    """Unstructured text as ASCII, in encoded words where it needs them; controls raise ValueError.

    Words are separated by single spaces; `fold` puts the line ends in.
    """
    refuse_controls(text)
    if text.isascii() and "=?" not in text and max(map(len, text.split(" "))) <= MAX_ATOM_OCTETS:
        return text.encode("ascii")
    return b" ".join(_encoded_words(text))


def encode_phrase(text: str) -> bytes:
    """A display name: atoms as they are, else a quoted string, else encoded words."""
    refuse_controls(text)
    if not text.isascii() or "=?" in text or len(text) > MAX_WORD_OCTETS:
        return b" ".join(_encoded_words(text))
    if _PLAIN_PHRASE.fullmatch(text):
        return text.encode("ascii")
    return b'"%b"' % text.replace("\\", "\\\\").replace('"', '\\"').encode("ascii")


def fold(name: str, value: bytes) -> bytes:
    """A whole field with CRLF, folded at spaces so that lines stay within 78 octets if they can.

    Raises ValueError for a bad name, for line ends and NUL in the value, and for a
    value that cannot be brought under 998 octets a line.
    """
    if _FIELD_NAME.fullmatch(name) is None:
        raise ValueError("header field name is not valid")
    if b"\r" in value or b"\n" in value or b"\x00" in value:
        raise ValueError("header field value holds a control character")
    first, *words = value.split(b" ")
    lines = [b"%b: %b" % (name.encode("ascii"), first)]
    for word in words:
        # A line may not be white space alone, so only before a word.
        if word and len(lines[-1]) + 1 + len(word) > FOLD_COLUMN and lines[-1].strip():
            lines.append(b" " + word)
        else:
            lines[-1] += b" " + word
    if max(map(len, lines)) > MAX_LINE_OCTETS:
        raise ValueError("header field line too long")
    return b"\r\n".join(lines) + b"\r\n"


def refuse_controls(text: str) -> None:
    """Raise ValueError for a control character other than tab, above all CR, LF and NUL."""
    if _CONTROLS.search(text.replace("\t", " ")):
        raise ValueError("text for a header field holds a control character")


def _encoded_words(text: str) -> list[bytes]:
    """UTF-8 encoded words of at most 75 octets, cut between characters (RFC 2047 5)."""
    octets = text.encode("utf-8")
    quoted = sum(1 if octet in _Q_SAFE or octet == 32 else 3 for octet in octets)
    if quoted <= len(octets) * 4 // 3 + 3:
        return [b"=?utf-8?q?%b?=" % piece for piece in _q_pieces(text)]
    return [b"=?utf-8?b?%b?=" % b2a_base64(piece, newline=False) for piece in _b_pieces(text)]


def _q_pieces(text: str) -> list[bytes]:
    pieces = [b""]
    for character in text:
        coded = b"".join(_Q_CODE[octet] for octet in character.encode("utf-8"))
        if len(pieces[-1]) + len(coded) > MAX_WORD_OCTETS - 12:
            pieces.append(b"")
        pieces[-1] += coded
    return pieces


def _b_pieces(text: str) -> list[bytes]:
    pieces = [b""]
    for character in text:
        octets = character.encode("utf-8")
        if len(pieces[-1]) + len(octets) > (MAX_WORD_OCTETS - 12) // 4 * 3:
            pieces.append(b"")
        pieces[-1] += octets
    return pieces


def _decode_words(text: str) -> str:
    """Every encoded word decoded; neighbours of one charset as one run of octets (RFC 2047 6.2)."""
    out: list[str] = []
    run, charset, done = b"", "", 0
    for word in _ENCODED_WORD.finditer(text):
        between = text[done : word.start()]
        name = word.group(1).partition("*")[0].lower()
        if run and (between.strip(" \t") or name != charset):
            out.append(decode_text(run, charset))
            run = b""
        if between.strip(" \t") or not done:
            out.append(between)
        run, charset, done = run + _decode_word(word), name, word.end()
    if run:
        out.append(decode_text(run, charset))
    out.append(text[done:])
    return "".join(out)


def _decode_word(word: re.Match[str]) -> bytes:
    # What stands in the word may itself be raw text: read once already, it has the word's charset no more.
    octets = _octets_of(word.group(3), word.group(1).partition("*")[0])
    if word.group(2) in "bB":
        return decode_base64(octets)
    return _HEX_PAIR.sub(_octet_of_pair, octets.replace(b"_", b" "))


def _octets_of(text: str, charset: str) -> bytes:
    if not text.isascii():
        try:
            return text.encode(charset)
        except (LookupError, UnicodeError):
            pass
    return text.encode("utf-8", "replace")


def _octet_of_pair(pair: re.Match[bytes]) -> bytes:
    return bytes((int(pair.group(1), 16),))


def decode_base64(octets: bytes) -> bytes:
    """The octets of base64 text up to its padding; what is not in its alphabet is passed over."""
    try:
        return a2b_base64(octets)
    except BinasciiError:
        # The padding is wrong, or something follows it: take all whole groups there are.
        digits = _NOT_BASE64.sub(b"", octets)
        return a2b_base64(digits[: len(digits) - (len(digits) % 4 == 1)] + b"=" * (-len(digits) % 4))
