"""A rendering as the rows that keep it, and the one of a message that could not be rendered.

Owns what every database takes of a message's texts, the form of Message-IDs, and
the fallback: one text part without any known header field, whose octets are
untouched and can still be fetched whole.

RFC 9051 7.5.2 (ENVELOPE, BODY, BODYSTRUCTURE), RFC 5256 3 (references).
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from storage.records import Rendered, Spooled

Render = Callable[[bytes], Rendered]

REFERENCES = 20
HEADER_ID_CHARACTERS = 500
_ID = re.compile(r"<[^<>\s]{1,498}>")

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Prepared:
    """A rendering made ready for its rows, out of the way of whoever writes them.

    rendition: the columns of `renditions` behind the message's id. described: of `messages`,
    from message_id_header to sent_at. references: Message-IDs it refers to, nearest first.
    """

    rendition: tuple[Any, ...]
    described: tuple[str, str, str, str, int]
    references: list[str]


def prepare(rendered: Rendered) -> Prepared:
    """Return a rendering as rows hold it."""
    return Prepared(
        rendition=(
            rendered.header_octets,
            rendered.envelope,
            rendered.body,
            rendered.bodystructure,
            rendered.parts,
            clean(rendered.preview),
            rendered.attachments,
            clean(rendered.text),
        ),
        described=(
            header_id(rendered.message_id),
            clean(rendered.subject),
            clean(rendered.from_),
            clean(rendered.to),
            rendered.sent_at,
        ),
        references=_references(rendered),
    )


def clean(text: str) -> str:
    """Return text as every database takes it: without NUL, unpaired surrogates replaced."""
    if text.isascii():
        return text.replace("\0", "") if "\0" in text else text
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def header_id(text: str) -> str:
    """Return a Message-ID as it is stored and looked up: bracketed, bounded, '' for none."""
    found = _ID.search(text)
    if found is not None:
        return clean(found[0])
    bare = clean(text).strip().strip("<>")[: HEADER_ID_CHARACTERS - 2]
    return f"<{bare}>" if bare else ""


def _references(rendered: Rendered) -> list[str]:
    """Return what a message refers to, nearest first (RFC 5256 3: the last reference is the parent)."""
    if not rendered.references and not rendered.in_reply_to:
        return []
    nearest = _ID.findall(rendered.in_reply_to)[:1]
    others = _ID.findall(rendered.references)[-REFERENCES:]
    return [header_id(name) for name in dict.fromkeys(chain(reversed(others), nearest))]


_ENVELOPE = b"(" + b" ".join([b"NIL"] * 10) + b")"


def plain(content: bytes) -> Rendered:
    """Return a rendering of content as one opaque text part."""
    end = content.find(b"\r\n\r\n")
    header_octets = len(content) if end < 0 else end + 4
    octets = len(content) - header_octets
    lines = content.count(b"\n", header_octets)
    body = b'"TEXT" "PLAIN" ("CHARSET" "US-ASCII") NIL NIL "8BIT" %d %d' % (octets, lines)
    parts = {"type": "text/plain", "header": [0, header_octets], "body": [header_octets, len(content)]}
    return Rendered(
        envelope=_ENVELOPE,
        body=b"(" + body + b")",
        bodystructure=b"(" + body + b" NIL NIL NIL NIL)",
        parts=json.dumps(parts, separators=(",", ":")).encode("ascii"),
        header_octets=header_octets,
        subject="",
        from_="",
        to="",
        message_id="",
        in_reply_to="",
        references="",
        sent_at=0,
        preview="",
        text="",
        attachments=0,
    )


def content_digest(kept: bytes | Spooled, octets: bytes) -> bytes:
    """Return the SHA-256 of a content, which is known already where it was spooled."""
    return bytes.fromhex(kept.sha256) if isinstance(kept, Spooled) else hashlib.sha256(octets).digest()


def render_safely(render: Render, content: bytes) -> tuple[Rendered, str | None]:
    """Return a content's rendering, or the plain one and why there is no better."""
    try:
        return render(content), None
    except Exception as error:  # noqa: BLE001 - rendering must not stand before delivery
        _log.exception("a message cannot be rendered")
        return plain(content), type(error).__name__
