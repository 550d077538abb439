"""rspamd asked over its HTTP protocol: POST /checkv2, the session in headers.

Owns the request's headers and the reading of the JSON answer; takes the advice and
none of the changes that rspamd would make to a message.
rspamd's protocol description, `checkv2`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from server.http_client import HttpFault, exchange
from server.scanners import findings
from server.scanners.request import ScannerFault

if TYPE_CHECKING:
    from server.scanners.place import Place
    from server.scanners.request import Request
    from storage.records import Verdict

ANSWER_OCTETS = 1 << 20
RECIPIENTS_LIMIT = 100  # header lines; rspamd looks at few of them
VALUE_OCTETS = 1000
ACTION_CHARACTERS = 40


class Rspamd:
    """A normal or proxy worker of rspamd at an address."""

    name = findings.RSPAMD

    def __init__(self, place: Place, *, hostname: str) -> None:
        self._place = place
        self._hostname = hostname

    async def scan(self, request: Request) -> Verdict:
        """Return the action with score and symbols; OSError, ScannerFault."""
        reader, writer = await self._place.connect(limit=64 << 10)
        try:
            answer = await exchange(
                reader,
                writer,
                target="/checkv2",
                headers=list(headers(request, hostname=self._hostname)),
                octets=request.octets.count,
                body=request.octets.pieces(),
                limit_octets=ANSWER_OCTETS,
            )
        except HttpFault as fault:
            raise ScannerFault(f"rspamd: {fault}") from None
        finally:
            writer.transport.abort()
        if answer.status != 200:
            raise ScannerFault(f"rspamd answers with HTTP status {answer.status}")
        found = read_answer(answer.body)
        # What rspamd's own log calls this message.
        return replace(found, properties={**found.properties, "queue_id": request.queue_id})


def headers(request: Request, *, hostname: str) -> Iterator[tuple[str, bytes]]:
    """Yield the header fields that tell rspamd of a message's session."""
    peer, envelope = request.peer, request.envelope
    recipients = [one.address for one in envelope.recipients[:RECIPIENTS_LIMIT]]
    told = [
        ("Host", hostname),
        ("MTA-Name", hostname),
        ("Queue-Id", request.queue_id),
        ("IP", peer.address),
        ("Hostname", peer.reverse_name or ""),
        ("Helo", peer.helo),
        ("User", request.user),
        ("TLS-Cipher", peer.tls_cipher or ""),
        ("TLS-Version", peer.tls_version or ""),
        # rspamd takes '<>' for the null reverse-path, and nothing for not known.
        ("From", envelope.reverse_path if envelope.reverse_path is not None else "<>"),
        *(("Rcpt", one) for one in recipients),
    ]
    for name, text in told:
        value = _value(text)
        if value:
            yield name, value


def _value(text: str) -> bytes:
    """Return a text as a field's value: a stranger's line ends and other controls are left out."""
    kept = "".join(one for one in text[:VALUE_OCTETS] if one.isprintable()).strip()
    return kept.encode("utf-8", "replace")


def read_answer(body: bytes) -> Verdict:
    """Return what the JSON of an answer says; ScannerFault for what is none."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise ScannerFault("rspamd answers no JSON") from None
    if not isinstance(answer, dict):
        raise ScannerFault("rspamd answers no JSON object")
    action = answer.get("action")
    if answer.get("is_skipped") is True and not isinstance(action, str):
        action = "no action"
    if not isinstance(action, str) or not 0 < len(action) <= ACTION_CHARACTERS:
        raise ScannerFault(f"rspamd answers without an action: {str(answer.get('error', ''))[:100]!r}")
    symbols = answer.get("symbols")
    names = [one for one in symbols if isinstance(one, str)] if isinstance(symbols, dict) else []
    return findings.scored(
        action.lower(), _number(answer.get("score")), _number(answer.get("required_score")), names
    )


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    if isinstance(value, int):
        return float(max(-1_000_000, min(1_000_000, value)))
    return value if math.isfinite(value) else 0.0
