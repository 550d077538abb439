"""What the Content- fields say of one part: type, encoding, disposition and the rest.

Owns reading them from a part's header into frozen facts, as written, for IMAP
and for whoever decodes the part. Never raises: a missing or unreadable type is
plain text, of repeated fields the first one counts.

RFC 2045 5 and 6, RFC 2183, RFC 1864, RFC 3282, RFC 2557, RFC 2046 5.1.5.
"""

from dataclasses import dataclass
from functools import lru_cache

from server.mail.header import Header
from server.mail.parameter import Parameters, parameter, parameter_text, parse_parameters

MAX_HEADER_OCTETS = 262_144  # of one part's header, as far as Content- fields are looked for
MAX_BOUNDARY_OCTETS = 255  # RFC 2046 5.1.1 says 70; senders say more
MAX_LANGUAGES = 50
KIND_OCTETS = 127  # of a type that is remembered


@dataclass(frozen=True, slots=True)
class Media:
    """A content type as written: `type/subtype; parameters`."""

    type: bytes
    subtype: bytes
    parameters: Parameters = ()

    @property
    def kind(self) -> str:
        """`type/subtype` in lower case."""
        return _kind(self.type, self.subtype)

    @property
    def is_multipart(self) -> bool:
        """Whether the type is of those that hold parts."""
        return self.type.lower() == b"multipart"

    @property
    def is_message(self) -> bool:
        """Whether the type is one that holds a whole message (RFC 2046 5.2.1, RFC 6532 3.7)."""
        return self.type.lower() == b"message" and self.subtype.lower() in (b"rfc822", b"global")

    @property
    def boundary(self) -> bytes | None:
        """What stands behind '--' on a multipart's delimiter lines; None where it is unusable."""
        value = parameter(self.parameters, b"boundary")
        if value is not None and any(name.endswith(b"*") for name, _ in self.parameters):
            value = (parameter_text(self.parameters, b"boundary") or "").encode("utf-8", "replace")
        # RFC 2046 5.1.1: a boundary cannot end with white space.
        value = value.rstrip(b" \t") if value is not None else b""
        return value if 0 < len(value) <= MAX_BOUNDARY_OCTETS and b"\n" not in value else None


@dataclass(frozen=True, slots=True)
class Content:
    """The facts of one part. encoding: as written; the other fields: unfolded, None where absent.

    disposition: its value as written and its parameters.
    """

    media: Media
    encoding: bytes = b"7bit"
    id: bytes | None = None
    description: bytes | None = None
    md5: bytes | None = None
    disposition: tuple[bytes, Parameters] | None = None
    language: tuple[bytes, ...] = ()
    location: bytes | None = None

    @property
    def charset(self) -> str:
        """The charset parameter in lower case, '' where there is none."""
        value = parameter(self.media.parameters, b"charset")
        return "" if value is None else value.decode("ascii", "replace").strip().lower()

    @property
    def filename(self) -> str | None:
        """The name that the sender gave, decoded: the disposition's, else the type's (RFC 2183 2.3)."""
        named = parameter_text(self.disposition[1], b"filename") if self.disposition else None
        return named if named is not None else parameter_text(self.media.parameters, b"name")


def _kind(type_: bytes, subtype: bytes) -> str:
    return (
        _known_kind(type_, subtype) if len(type_) + len(subtype) <= KIND_OCTETS else _written(type_, subtype)
    )


def _written(type_: bytes, subtype: bytes) -> str:
    return f"{type_.decode('latin-1')}/{subtype.decode('latin-1')}".lower()


_known_kind = lru_cache(maxsize=256)(_written)
PLAIN_TEXT = Media(b"text", b"plain", ((b"charset", b"us-ascii"),))  # RFC 2045 5.2
EMBEDDED = Media(b"message", b"rfc822")  # RFC 2046 5.1.5: what a digest holds
OPAQUE = Media(b"application", b"octet-stream")

UNSAID = Content(PLAIN_TEXT)
_UNSAID_IN_DIGEST = Content(EMBEDDED)


def read_content(header: bytes, *, default: Media = PLAIN_TEXT) -> Content:
    """The facts in a part's header; default: the type of parts that do not say theirs."""
    found = Header.of(header[:MAX_HEADER_OCTETS]).group(b"content-")
    if not found:
        return UNSAID if default is PLAIN_TEXT else _UNSAID_IN_DIGEST
    disposition = found.get(b"content-disposition")
    encoding = found.get(b"content-transfer-encoding")
    return Content(
        media=_read_media(found.get(b"content-type"), default),
        encoding=(parse_parameters(encoding)[0] if encoding else b"") or b"7bit",
        id=found.get(b"content-id"),
        description=found.get(b"content-description"),
        md5=found.get(b"content-md5"),
        disposition=_read_disposition(disposition) if disposition else None,
        language=_read_languages(found.get(b"content-language")),
        location=found.get(b"content-location"),
    )


def _read_media(value: bytes | None, default: Media) -> Media:
    if not value:
        return default
    main, parameters = parse_parameters(value)
    type_, slash, subtype = main.partition(b"/")
    if type_ and slash and subtype:
        return Media(type_, subtype, parameters)
    return Media(PLAIN_TEXT.type, PLAIN_TEXT.subtype, parameters or PLAIN_TEXT.parameters)


def _read_disposition(value: bytes) -> tuple[bytes, Parameters] | None:
    main, parameters = parse_parameters(value)
    return (main or b"attachment", parameters) if main or parameters else None


def _read_languages(value: bytes | None) -> tuple[bytes, ...]:
    if not value:
        return ()
    tags = (tag.strip() for tag in value.split(b",", MAX_LANGUAGES))
    return tuple(tag for tag in tags if tag)[:MAX_LANGUAGES]
