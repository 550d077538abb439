"""What is kept of a message that could not be rendered: true, and as little as IMAP allows.

Owns that one fallback. The message is one text part without any known header
field; its octets are untouched and can still be fetched whole.

RFC 9051 7.5.2 (ENVELOPE, BODY, BODYSTRUCTURE).
"""

import json

from storage.records import Rendered

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
