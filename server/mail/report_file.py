"""The file of a report in the mail that brings it.

Owns the choice of the part: by its type, or by its name where the type says nothing.
Opens no part that is larger than its limit and raises nothing. RFC 9990 3.5.2.
"""

from __future__ import annotations

from server.mail import structure
from server.mail.transfer import decode_transfer

MAX_PARTS_TRIED = 20
_PACKED = frozenset(
    {
        "application/gzip", "application/x-gzip", "application/zip", "application/x-zip",
        "application/x-zip-compressed", "application/x-compressed", "application/gzip-compressed",
    }
)  # fmt: skip
_XML = frozenset({"text/xml", "application/xml"})
_NAMELESS = frozenset({"application/octet-stream", "text/plain"})
_ENDINGS = (".xml", ".xml.gz", ".gz", ".zip")


def find_report(message: bytes, *, limit_octets: int) -> bytes | None:
    """Return the decoded octets of the first part that may be an aggregate report, None without one."""
    parts = [part for part in structure.scan(message).walk() if _is_candidate(part)]
    # A plain text/xml part is taken only where nothing is packed.
    for part in sorted(parts[:MAX_PARTS_TRIED], key=lambda one: one.kind in _XML):
        if part.octets <= limit_octets * 2:
            body = message[part.body_start : part.body_end]
            return decode_transfer(body, part.content.encoding)
    return None


def _is_candidate(part: structure.Part) -> bool:
    if part.is_multipart or part.is_message:
        return False
    if part.kind in _PACKED or part.kind in _XML:
        return True
    return part.kind in _NAMELESS and (part.content.filename or "").lower().endswith(_ENDINGS)
