"""The Received-SPF field, by which older readers learn what SPF found (RFC 7208 9.1).

Owns its form: result, a comment for people, and the pairs of what was checked. What
a stranger chose is written as a dot-atom or a quoted string, and left out where it can be neither.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from server.mail import header
from storage.records import Peer, Verdict

MAX_VALUE_OCTETS = 320
_DOT_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_PRINTABLE = re.compile(r"[ -~]+")
_SAYING = {
    "pass": "is a permitted sender",
    "fail": "is not a permitted sender",
    "softfail": "is probably not a permitted sender",
    "neutral": "is neither permitted nor denied",
    "none": "no policy was found",
    "temperror": "the policy could not be looked up",
    "permerror": "the policy is in error",
}


def field(receiver: str, peer: Peer, verdicts: Sequence[Verdict]) -> bytes:
    """Return the field with CRLF; b'' where SPF said nothing of an IP address. receiver: our own name."""
    verdict = next((one for one in verdicts if one.method == "spf"), None)
    if verdict is None or verdict.result not in _SAYING or not peer.address:
        return b""
    sender = verdict.properties.get("smtp.mailfrom", "")
    pairs = [
        ("receiver", receiver),
        ("identity", "mailfrom" if sender else "helo"),
        ("client-ip", peer.address),
        ("envelope-from", sender),
        ("helo", peer.helo),
    ]
    said = "; ".join(f"{key}={text}" for key, value in pairs if (text := _word(value)))
    return header.fold("Received-SPF", f"{verdict.result} ({_SAYING[verdict.result]}) {said}".encode("ascii"))


def _word(text: str) -> str:
    if _DOT_ATOM.fullmatch(text):
        return text if len(text) <= MAX_VALUE_OCTETS else ""
    if len(text) > MAX_VALUE_OCTETS or not _PRINTABLE.fullmatch(text):
        return ""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
