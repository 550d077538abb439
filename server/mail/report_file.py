"""The file of a report in the mail that brings it.

Owns the choice of the part: by its type, or by its name where the type says nothing.
Opens no part that is larger than its limit and raises nothing. RFC 9990 3.5.2, RFC 8460 5.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.mail import structure
from server.mail.transfer import decode_transfer

MAX_PARTS_TRIED = 20
_PACKED = frozenset(
    {
        "application/gzip", "application/x-gzip", "application/zip", "application/x-zip",
        "application/x-zip-compressed", "application/x-compressed", "application/gzip-compressed",
    }
)  # fmt: skip
_JSON = frozenset({"application/json"})
_NAMELESS = frozenset({"application/octet-stream", "text/plain"})


@dataclass(frozen=True, slots=True)
class Form:
    """What a report's file may be called. packed, plain: media types; endings: of names that tell it."""

    packed: frozenset[str]
    plain: frozenset[str]
    endings: tuple[str, ...]
    not_endings: tuple[str, ...] = ()


DMARC = Form(
    _PACKED, frozenset({"text/xml", "application/xml"}), (".xml", ".xml.gz", ".gz", ".zip"), (".json.gz",)
)
# RFC 8460 6.4 and 6.5; what is packed counts only where its name or the mail says that it is one.
TLS = Form(
    frozenset({"application/tlsrpt+gzip"}),
    # The last one is nobody's in the RFC, and sent.
    frozenset({"application/tlsrpt+json", "application/tlsrpt"}),
    (".json", ".json.gz", ".json.zip"),
)


def find_report(message: bytes, *, limit_octets: int, form: Form = DMARC) -> bytes | None:
    """Return the decoded octets of the first part that may be a report of a form, None without one."""
    parts = [part for part in structure.scan(message).walk() if _is_candidate(part, form)]
    # A plain part is taken only where nothing is packed.
    for part in sorted(parts[:MAX_PARTS_TRIED], key=lambda one: one.kind in form.plain):
        if part.octets <= limit_octets * 2:
            body = message[part.body_start : part.body_end]
            return decode_transfer(body, part.content.encoding)
    return None


def _is_candidate(part: structure.Part, form: Form) -> bool:
    if part.is_multipart or part.is_message:
        return False
    name = (part.content.filename or "").lower()
    if name.endswith(form.not_endings or "\0"):
        return False
    if part.kind in form.packed or part.kind in form.plain:
        return True
    return part.kind in _NAMELESS | _PACKED | _JSON and name.endswith(form.endings)
