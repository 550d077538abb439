"""What scanners find, as verdicts that are kept with a message and as facts for rules.

Owns both forms and the way from the one to the other, so that a replay sees what the
scan of its day said. Scans nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from policies.facts import SCANNERS
from storage.records import Verdict

CLAMAV, RSPAMD = SCANNERS
CLEAN, INFECTED = "clean", "infected"
TOO_LARGE, ABSENT, OFF, UNKNOWN, SCANNED = "too_large", "absent", "off", "unknown", "scanned"
# What scanner_absence is where several scanners are absent: the first of these that one of them wants.
ABSENCES = ("defer", "tag", "accept")
SYMBOLS_LIMIT = 100
SYMBOL_CHARACTERS = 80
SCORE_LIMIT = 1_000_000  # hundredths

_STATUS = {CLAMAV: "virus_status", RSPAMD: "rspamd_status"}
_BLANK: Mapping[str, Mapping[str, object]] = {
    CLAMAV: {"virus_name": ""},
    RSPAMD: {"rspamd_action": "", "rspamd_score": 0, "rspamd_symbols": []},
}


def blank(scanner: str, status: str) -> dict[str, object]:
    """Return the facts of a scanner that said nothing about a message."""
    return {_STATUS[scanner]: status, **_BLANK[scanner]}


NOT_CONFIGURED: Mapping[str, object] = MappingProxyType(
    {**blank(CLAMAV, OFF), **blank(RSPAMD, OFF), "scanner_absence": ""}
)


def is_scan(verdict: Verdict) -> bool:
    """Whether a verdict is a scanner's and not one of sender authentication."""
    return verdict.method in _STATUS


def facts_of(verdict: Verdict) -> dict[str, object]:
    """Return the facts that a scanner's verdict tells."""
    if verdict.result in (TOO_LARGE, ABSENT):
        return blank(verdict.method, verdict.result)
    properties = verdict.properties
    if verdict.method == CLAMAV:
        return {"virus_status": SCANNED, "virus_name": properties.get("virus", "")}
    return {
        "rspamd_status": SCANNED,
        "rspamd_action": verdict.result,
        "rspamd_score": _hundredths(properties.get("score", "")),
        "rspamd_symbols": [one for one in properties.get("symbols", "").split(",") if one],
    }


def absence_of(verdicts: Collection[Verdict]) -> str:
    """Return what is to be done for the scanners that were absent, '' where none was."""
    wanted = {one.properties.get("absence", "accept") for one in verdicts if one.result == ABSENT}
    return next((one for one in ABSENCES if one in wanted), "")


def recorded(verdicts: Sequence[Verdict]) -> dict[str, object]:
    """Return the facts that stored verdicts tell; 'unknown' is the status of what was not scanned then."""
    found: dict[str, object] = {**blank(CLAMAV, UNKNOWN), **blank(RSPAMD, UNKNOWN)}
    scans = [one for one in verdicts if is_scan(one)]
    for one in scans:
        found |= facts_of(one)
    return {**found, "scanner_absence": absence_of(scans)}


def absent(scanner: str, *, absence: str, reason: str) -> Verdict:
    """Return the verdict of a scanner that did not answer."""
    return Verdict(scanner, ABSENT, reason=reason[:200], properties={"absence": absence})


def too_large(scanner: str, octets: int) -> Verdict:
    """Return the verdict on a message over the limit."""
    return Verdict(scanner, TOO_LARGE, reason=f"{octets} octets are not scanned")


def infected(virus: str) -> Verdict:
    """Return the verdict on a message in which something was found."""
    return Verdict(CLAMAV, INFECTED, properties={"virus": virus[:200]})


def scored(action: str, score: float, required: float, symbols: Sequence[str]) -> Verdict:
    """Return rspamd's verdict."""
    kept = [one for one in symbols if one and len(one) <= SYMBOL_CHARACTERS and "," not in one]
    properties = {
        "score": f"{score:.2f}",
        "required": f"{required:.2f}",
        "symbols": ",".join(sorted(kept)[:SYMBOLS_LIMIT]),
    }
    return Verdict(RSPAMD, action, properties=properties)


def _hundredths(text: str) -> int:
    try:
        found = round(float(text) * 100)
    except (ValueError, OverflowError):  # 'nan' and 'inf' are no scores
        return 0
    return max(-SCORE_LIMIT, min(SCORE_LIMIT, found))
