"""One more set on a message's Authenticated Received Chain (RFC 8617 5.1).

Owns whether a message may be sealed, the set's number and the three fields as they
are written: tags in the order of their names, relaxed forms. The chain's status and
the results of the checks are the caller's; keys are Signer's. RFC 8617 4.1, 5.1, 8601.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dkim.util import InvalidTagValueList, parse_tag_value

from server.mail.header import HeaderField
from server.sender_auth.arc import NAMES, UNDECIDED
from server.sender_auth.canonical import relaxed_value
from server.sender_auth.results import own_results
from storage.records import Verdict

MAX_INSTANCE = 50  # RFC 8617 4.2.1
LIST_COLUMN = 74
FOLD = b"\r\n "
ROW_OCTETS = 64  # of base64, so that lines stay short
ALGORITHM = b"rsa-sha256"  # what every reader of ARC knows: Ed25519 would end the chain with most
_INSTANCE = re.compile(rb"(?:^|;)\s*i\s*=\s*([0-9]{1,3})\s*(?:;|$)")
_OWN = (b"arc-authentication-results", b"arc-message-signature", b"arc-seal")

Sign = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Seal:
    """Who seals, and how. sign: PKCS#1 v1.5 over SHA-256 of its argument. at: seconds since 1970.

    row_octets: of base64 in a line of the message signature.
    """

    domain: bytes
    selector: bytes
    authserv_id: str
    at: int
    sign: Sign
    row_octets: int = ROW_OCTETS


def status_of(verdicts: Iterable[Verdict]) -> str:
    """Return a chain's status as a seal says it: 'none', 'pass' or 'fail'.

    '' where the check was not finished: a seal that says 'fail' ends a chain for good, which one
    answer of the DNS that did not come is no reason for.
    """
    found = next((one for one in verdicts if one.method == "arc"), None)
    if found is None:
        return "none"
    return "" if found.result == "fail" and found.reason in UNDECIDED else found.result


def make_set(
    fields: Sequence[HeaderField],
    *,
    names: Sequence[bytes],
    signed: bytes,
    body_hash: bytes,
    status: str,
    seal: Seal,
) -> bytes:
    """Return the three fields with CRLF, the seal first; b'' where none may be added.

    fields: of the message as it goes out, our Authentication-Results among them. names: as h=
    lists them; signed: those fields in relaxed form. body_hash: of the relaxed body, in base64.
    """
    chain = _sets(fields)
    number = max(chain, default=0) + 1
    results = own_results(fields, seal.authserv_id)
    if not results or not _may_be_sealed(chain, number, status):
        return b""
    record = b"ARC-Authentication-Results: i=%d; %b\r\n" % (number, _folded(seal.authserv_id, results))
    key = [b"i=%d" % number, b"s=" + seal.selector, b"t=%d" % seal.at]
    place = b"d=" + seal.domain
    tags = [b"bh=" + body_hash, b"c=relaxed/relaxed", place, b"h=" + _listed(names), *key]
    signature = _signed_field(b"ARC-Message-Signature", tags, signed, seal)
    # RFC 8617 5.1.2: the seal of a failed chain covers its own set alone.
    older = b"" if status == "fail" else b"".join(_relaxed(chain[i]) for i in sorted(chain))
    sealed = older + _relaxed_field(record) + _relaxed_field(signature)
    return (
        _signed_field(b"ARC-Seal", [b"cv=" + status.encode(), place, *key], sealed, seal) + signature + record
    )


def _may_be_sealed(chain: Mapping[int, Sequence[HeaderField]], number: int, status: str) -> bool:
    if number > MAX_INSTANCE or status not in ("none", "pass", "fail"):
        return False
    if status == "fail":
        return not _is_ended(chain.get(number - 1, ()))
    return (status == "none") == (number == 1)


def _is_ended(newest: Sequence[HeaderField]) -> bool:
    """Return whether the newest seal says that the chain failed (RFC 8617 5.1): nothing may follow it."""
    for field in newest:
        if field.name.lower() == b"arc-seal":
            try:
                return bool(parse_tag_value(field.value).get(b"cv", b"").lower() == b"fail")
            except InvalidTagValueList:
                return False
    return False


def _sets(fields: Sequence[HeaderField]) -> dict[int, list[HeaderField]]:
    """Return the ARC fields by the number of their set."""
    found: dict[int, list[HeaderField]] = {}
    for field in fields:
        if field.name.lower() not in NAMES:
            continue
        match = _INSTANCE.search(field.value)
        if match is not None:
            found.setdefault(int(match[1]), []).append(field)
    return found


def _relaxed(fields: Sequence[HeaderField]) -> bytes:
    """Return a set in the order that seals sign it in (RFC 8617 5.1.1): results, signature, seal."""
    ordered = sorted(fields, key=lambda field: _OWN.index(field.name.lower()))
    return b"".join(_relaxed_field(field.raw) for field in ordered)


def _relaxed_field(raw: bytes) -> bytes:
    name, _, value = raw.partition(b":")
    return name.lower().rstrip() + b":" + relaxed_value(value)


def _signed_field(name: bytes, tags: Sequence[bytes], signed: bytes, seal: Seal) -> bytes:
    """Return a field of tags with its b= over what is signed and itself (RFC 6376 3.7)."""
    beginning, rest = (
        name + b": a=" + ALGORITHM + b";" + FOLD + b"b=",
        _rows(tags),
    )
    # Without b= and without the line end.
    own = _relaxed_field(beginning + rest).removesuffix(b"\r\n")
    value = b64encode(seal.sign(signed + own))
    chunks = [value[start : start + seal.row_octets] for start in range(0, len(value), seal.row_octets)]
    return beginning + FOLD.join(chunks) + rest + b"\r\n"


def _rows(tags: Sequence[bytes]) -> bytes:
    """Return tags behind a first one, in lines that stay short where tags are."""
    lines = [b""]
    for tag in tags:
        lines[-1] += b";"
        if len(lines) > 1 and len(lines[-1]) + len(tag) < LIST_COLUMN:
            lines[-1] += b" " + tag
        else:
            lines.append(tag)
    return FOLD.join(lines)


def _listed(names: Sequence[bytes]) -> bytes:
    """Return names as h= has them, in lines that stay short."""
    lines = [b""]
    for position, name in enumerate(names):
        word = name + (b":" if position < len(names) - 1 else b"")
        if len(lines[-1]) + len(word) > LIST_COLUMN:
            lines.append(b"")
        lines[-1] += word
    return FOLD.join(lines)


def _folded(authserv_id: str, results: Sequence[bytes]) -> bytes:
    return (b";" + FOLD).join((authserv_id.encode("ascii"), *results))
