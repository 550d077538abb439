"""The envelope of a message's header, as IMAP means it: who, when, about what.

Owns picking those ten fields out of a header, undecoded, with the defaults of
sender and reply-to. Not the SMTP envelope, which is `storage.records.Envelope`.
Never raises; absent fields are None, absent lists are empty.

RFC 9051 7.5.2, RFC 5322 3.6.
"""

from dataclasses import dataclass

from server.mail.address_list import MAX_ADDRESSES, HeaderAddress, parse_address_list, read_addresses
from server.mail.header import Header

MAX_HEADER_OCTETS = 1_048_576
MAX_REPEATED_FIELDS = 50


@dataclass(frozen=True, slots=True)
class Envelope:
    """Raw unfolded values and address lists; sender and reply_to are from_ where the header has none."""

    date: bytes | None
    subject: bytes | None
    from_: tuple[HeaderAddress, ...]
    sender: tuple[HeaderAddress, ...]
    reply_to: tuple[HeaderAddress, ...]
    to: tuple[HeaderAddress, ...]
    cc: tuple[HeaderAddress, ...]
    bcc: tuple[HeaderAddress, ...]
    in_reply_to: bytes | None
    message_id: bytes | None


def read_envelope(header: bytes | Header) -> Envelope:
    """The envelope of a header; of repeated fields the first counts, but address lists add up."""
    found = header if isinstance(header, Header) else Header(header[:MAX_HEADER_OCTETS])
    from_ = _addresses(found, b"from")
    # RFC 9051 7.5.2: an absent or empty Sender or Reply-To is the From.
    return Envelope(
        date=found.first(b"date"),
        subject=found.first(b"subject"),
        from_=from_,
        sender=_addresses(found, b"sender") or from_,
        reply_to=_addresses(found, b"reply-to") or from_,
        to=_addresses(found, b"to"),
        cc=_addresses(found, b"cc"),
        bcc=_addresses(found, b"bcc"),
        in_reply_to=found.first(b"in-reply-to"),
        message_id=found.first(b"message-id"),
    )


def _addresses(header: Header, name: bytes) -> tuple[HeaderAddress, ...]:
    values = header.all(name)[:MAX_REPEATED_FIELDS]
    if not values:
        return ()
    if len(values) == 1:
        return read_addresses(values[0])
    # Joined, so that the limits of one list hold for all of them.
    return tuple(parse_address_list(b", ".join(values))[:MAX_ADDRESSES])
