"""Values with parameters: Content-Type and Content-Disposition.

Owns the tolerant reader of `value; name=text; …` with comments, quoted strings
and RFC 2231 continuations, and the decoding of extended values. Never raises;
linear time; at most MAX_PARAMETERS parameters of MAX_VALUE_OCTETS altogether.

RFC 2045 5.1, RFC 2183 2, RFC 2231 3 and 4.
"""

import re
from collections.abc import Sequence

from server.mail.charset import decode_text
from server.mail.header import decode
from server.mail.lexis import read_comment, read_quoted

MAX_PARAMETERS = 100
MAX_VALUE_OCTETS = 16_384

Parameters = tuple[tuple[bytes, bytes], ...]

_PLAIN = re.compile(
    rb'([^\s;()"\\=]+)[ \t]*(?:;[ \t]*([^\s;()"\\=*]+)=(?:"([^"\\]*)"|([^\s;()"\\]+))[ \t]*;?)?'
)
_TOKEN = re.compile(rb'[ \t\r\n]+|[^ \t\r\n"();\\=]+|.', re.DOTALL)
_SECTION = re.compile(rb"([^*]+)\*([0-9]{1,3})(\*?)")
_NOT_EXTENDED = re.compile(rb"[^A-Za-z0-9!#$&+.^_`{|}~-]")
_PERCENT_PAIR = re.compile(rb"%([0-9A-Fa-f]{2})")


def parse_parameters(value: bytes) -> tuple[bytes, Parameters]:
    """The main value and its parameters from an unfolded field value; never raises.

    Names are as written. Continued parameters are put together under their plain name;
    where a section was extended the name keeps one '*' and the value its encoded form.
    """
    value = value[:MAX_VALUE_OCTETS]
    plain = _PLAIN.fullmatch(value)
    if plain is not None:
        main, name, quoted, token = plain.groups()
        return main, () if name is None else ((name, token if quoted is None else quoted),)
    main, found = _Reader(value).read()
    return main, tuple(_join_sections(found)) if any(b"*" in name for name, _ in found) else tuple(found)


def parameter(parameters: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The raw value of a parameter by its lower-case name, extended or not; the first one counts."""
    for key, value in parameters:
        if key.lower().rstrip(b"*") == name:
            return value
    return None


def parameter_text(parameters: Sequence[tuple[bytes, bytes]], name: bytes) -> str | None:
    """The decoded text of a parameter: RFC 2231 where it is used, encoded words where they are misused."""
    extended = [value for key, value in parameters if key.lower() == name + b"*"]
    if extended:
        return _decode_extended(extended[0])
    plain = [value for key, value in parameters if key.lower() == name]
    return decode(plain[0]) if plain else None


class _Reader:
    """One pass over a value."""

    __slots__ = ("position", "value")

    def __init__(self, value: bytes) -> None:
        self.value = value
        self.position = 0

    def read(self) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        main = self._read_main()
        found: list[tuple[bytes, bytes]] = []
        while self.position < len(self.value) and len(found) < MAX_PARAMETERS:
            name = self._read_name()
            if self._take_if(b"="):
                text = self._read_text()
                if name:
                    found.append((name, text))
            self._take_if(b";")
        return main, found

    def _read_main(self) -> bytes:
        """Up to the first semicolon, or to white space where a parameter follows without one."""
        main = b""
        while token := self._take():
            if token == b";":
                break
            if token == b"(":
                self._skip_comment()
            elif token.isspace():
                ahead = self.value[self.position : self.position + 1]
                if b"/" in main and main[-1:] != b"/" and ahead not in (b"/", b";", b"("):
                    break
            else:
                main += self._read_quoted() if token == b'"' else token
        return main

    def _read_name(self) -> bytes:
        """A parameter's name; stands then before '=', ';' or the end."""
        name = b""
        while token := self._take():
            if token in (b"=", b";"):
                self.position -= 1
                break
            if token == b"(":
                self._skip_comment()
            elif not token.isspace():
                name += self._read_quoted() if token == b'"' else token
        return name

    def _read_text(self) -> bytes:
        """A parameter's value; unquoted ones keep their inner white space, as senders of file names mean."""
        text, spaced, quoted = b"", False, False
        while token := self._take():
            if token == b";" or (quoted and spaced and token not in (b'"', b"(")):
                self.position -= len(token)
                break
            if token == b"(":
                self._skip_comment()
            elif token.isspace():
                spaced = True
                continue
            elif token == b'"':
                text, quoted = text + self._read_quoted(), True
            else:
                text += b" " + token if spaced and text else token
            spaced = False
        return text

    def _take_if(self, wanted: bytes) -> bool:
        if self.value[self.position : self.position + 1] == wanted:
            self.position += 1
            return True
        return False

    def _take(self) -> bytes:
        found = _TOKEN.match(self.value, self.position)
        if found is None:
            return b""
        self.position = found.end()
        return found.group()

    def _read_quoted(self) -> bytes:
        text, self.position = read_quoted(self.value, self.position)
        return text

    def _skip_comment(self) -> None:
        _, self.position = read_comment(self.value, self.position)


def _join_sections(found: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """RFC 2231 3 continuations brought together where their first section stood."""
    joined: list[tuple[bytes, bytes]] = []
    sections: dict[bytes, dict[int, tuple[bytes, bool]]] = {}
    for name, value in found:
        section = _SECTION.fullmatch(name)
        if section is None:
            joined.append((name, value))
            continue
        key = section.group(1).lower()
        if key not in sections:
            sections[key] = {}
            joined.append((section.group(1), b""))
        sections[key].setdefault(int(section.group(2)), (value, bool(section.group(3))))
    return [
        _assemble(name, sections[name.lower()]) if not value and name.lower() in sections else (name, value)
        for name, value in joined
    ]


def _assemble(name: bytes, sections: dict[int, tuple[bytes, bool]]) -> tuple[bytes, bytes]:
    """One parameter of its sections, numbered from 0 without a gap."""
    ordered = [sections[number] for number in range(len(sections)) if number in sections]
    if not any(extended for _, extended in ordered):
        return name, b"".join(value for value, _ in ordered)
    prefix = b"" if ordered[0][1] else b"''"
    return name + b"*", prefix + b"".join(
        value if extended else _percent(value) for value, extended in ordered
    )


def _percent(value: bytes) -> bytes:
    return _NOT_EXTENDED.sub(lambda octet: b"%%%02X" % octet.group()[0], value)


def _decode_extended(value: bytes) -> str:
    charset, tick, rest = value.partition(b"'")
    _, second, text = rest.partition(b"'")
    if not (tick and second):
        charset, text = b"", value
    octets = _PERCENT_PAIR.sub(lambda pair: bytes((int(pair.group(1), 16),)), text)
    return decode_text(octets, charset.decode("ascii", "replace"))
