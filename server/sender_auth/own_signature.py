"""DKIM signatures of our own on the header of a message that came back.

Owns telling whether one still fits: a notice returns the header, often without the body, so that the
body's hash is not asked. Keys are those of the database; no DNS is asked. RFC 6376 3.7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from server.mail.header import fields as fields_of
from server.sender_auth.dkim_tags import signatures
from server.sender_auth.dkim_verify import try_key, value_of

if TYPE_CHECKING:
    from storage.records import DkimKey

SIGNATURES_LIMIT = 10


def signed_domain(
    header: bytes,
    *,
    keys_of: Callable[[str], Sequence[DkimKey]],
    is_ours: Callable[[str], bool],
) -> str | None:
    """Return the domain of ours whose signature over a header with its Message-ID fits; None for none.

    is_ours is asked before keys_of, with lower-case A-labels.
    """
    fields = fields_of(header)
    pairs = [(field.name, value_of(field.raw)) for field in fields]
    for signature in signatures(fields)[:SIGNATURES_LIMIT]:
        if signature.fault is not None or b"message-id" not in signature.names:
            continue
        if not is_ours(signature.domain):
            continue
        for key in keys_of(signature.domain):
            if key.selector == signature.selector:
                result, _ = try_key(pairs, signature, key.public_record.encode())
                if result == "pass":
                    return signature.domain
    return None
