"""A corpus of bounces, read: whom each speaks of, and of which class it is.

A folder holds messages and `expected.json`, which names for each of them who is expected, as a list of
`{"recipient": …, "reason": …}`; a reason is a class of ours, or a word of Sisimai's tables. An empty list
expects no bounce. Without that file everything in the folder is ordinary mail, and none may be a bounce.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from server.mail.bounce_reader import Bounce, read_bounce

# What Sisimai's reasons are here; more than one where its reason says what failed and not whose fault it is.
REASONS: Mapping[str, frozenset[str]] = {
    "userunknown": frozenset({"hard"}),
    "hostunknown": frozenset({"hard"}),
    "hasmoved": frozenset({"hard"}),
    "suspend": frozenset({"hard"}),
    "filtered": frozenset({"hard", "policy"}),
    "notaccept": frozenset({"hard", "soft", "block"}),
    "mailboxfull": frozenset({"mailbox_full"}),
    "expired": frozenset({"soft"}),
    "networkerror": frozenset({"soft"}),
    "systemerror": frozenset({"soft", "unknown"}),
    "systemfull": frozenset({"soft", "mailbox_full"}),
    "mailererror": frozenset({"soft", "unknown", "hard"}),
    "toomanyconn": frozenset({"soft", "block"}),
    "speeding": frozenset({"soft", "block"}),
    "syntaxerror": frozenset({"soft", "unknown", "policy"}),
    "rejected": frozenset({"block", "policy"}),
    "blocked": frozenset({"block", "policy"}),
    "badreputation": frozenset({"block"}),
    "requireptr": frozenset({"block"}),
    "authfailure": frozenset({"block"}),
    "norelaying": frozenset({"block", "policy"}),
    "securityerror": frozenset({"block", "policy", "soft"}),
    "policyviolation": frozenset({"policy", "content", "block"}),
    "spamdetected": frozenset({"content", "block"}),
    "virusdetected": frozenset({"content"}),
    "contenterror": frozenset({"content"}),
    "mesgtoobig": frozenset({"content"}),
    "exceedlimit": frozenset({"content"}),
    "notcompliantrfc": frozenset({"content"}),
}
_ANY = frozenset({"hard", "soft", "block", "content", "mailbox_full", "policy", "unknown"})


def run(folder: Path) -> dict[str, str]:
    """Return what is wrong about each message, '' for nothing; raises OSError where the corpus is absent."""
    listed = folder / "expected.json"
    expected = json.loads(listed.read_text("utf-8")) if listed.exists() else None
    outcomes: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path == listed:
            continue
        name = path.relative_to(folder).as_posix()
        if expected is not None and name not in expected:
            continue
        found = read_bounce(path.read_bytes())
        outcomes[name] = judge(found, expected[name] if expected is not None else [])
    return outcomes


def judge(found: Bounce | None, expected: list[dict[str, str]]) -> str:
    """Return what is wrong, '' for nothing."""
    got = {one.recipient.lower(): one.judged.bounce_class.value for one in found.failures} if found else {}
    wanted = {str(one["recipient"]).lower(): str(one.get("reason", "")) for one in expected}
    if set(got) != set(wanted):
        return f"recipients {sorted(got)} instead of {sorted(wanted)}"
    wrong = [
        f"{recipient} is {got[recipient]} instead of {reason}"
        for recipient, reason in wanted.items()
        if got[recipient] not in REASONS.get(reason, frozenset({reason}) if reason in _ANY else _ANY)
    ]
    return "; ".join(wrong)
