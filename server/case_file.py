"""All that is known of one delivery as one document, to be sent to the postmaster of the other side.

Owns which facts go into it and how they read: what the message is, what was said at each attempt,
under which TLS, what the DNS said, which rules decided, and the events in order. Other recipients
are not named, and no content is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

SECOND = 1_000_000
_ATTEMPTS = frozenset(
    {"message.delivered", "message.deferred", "message.bounced", "message.expired", "message.held"}
)
# What an event tells beside the words that have a line of their own.
_HIDDEN = frozenset({"dialogue", "recipient", "passed_over", "state", "domain"})


def case_file(
    *,
    message: Mapping[str, Any],
    delivery: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    names: Mapping[str, Sequence[str]],
    hostname: str,
    at: int,
) -> dict[str, Any]:
    """Return the case JSON-able, with the whole of it as text under 'text'.

    steps: the message's events that concern the delivery, in order; names: what the DNS says now, by
    question. at: microseconds.
    """
    attempts = [step for step in steps if step["kind"] in _ATTEMPTS and "attempt" in step["data"]]
    case: dict[str, Any] = {
        "delivery": delivery["id"],
        "message": message["id"],
        "message_id_header": message.get("message_id_header", ""),
        "sender": message["reverse_path"],
        "recipient": delivery["recipient"],
        "accepted_at": message["accepted_at"],
        "octets": message["octets"],
        "digest": message["digest"],
        "state": delivery["state"],
        "attempts": [_attempt(step) for step in attempts],
        "rules": [one for one in message["decision"].get("trace", ()) if one["matched"]],
        "verdicts": message["verdicts"],
        "dns": {question: list(told) for question, told in names.items()},
        "events": [{"at": step["at"], "kind": step["kind"]} for step in steps],
        "server": hostname,
        "made_at": at,
    }
    case["text"] = "\n".join(_lines(case)) + "\n"
    return case


def _attempt(step: Mapping[str, Any]) -> dict[str, Any]:
    data = step["data"]
    return {
        "at": step["at"],
        "kind": step["kind"],
        **{name: value for name, value in data.items() if name not in _HIDDEN},
        "passed_over": list(data.get("passed_over", ())),
        "dialogue": list(data.get("dialogue", ())),
    }


def _moment(at: int) -> str:
    return datetime.fromtimestamp(at / SECOND, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _lines(case: Mapping[str, Any]) -> Iterable[str]:
    yield f"Case {case['delivery']}, made by {case['server']} on {_moment(case['made_at'])}"
    yield ""
    yield f"From (envelope):  <{case['sender'] or ''}>"
    yield f"To (envelope):    <{case['recipient']}>"
    yield f"Message-ID:       {case['message_id_header'] or '(none)'}"
    yield f"Accepted:         {_moment(case['accepted_at'])}, {case['octets']} octets"
    yield f"SHA-256:          {case['digest']}"
    yield f"State:            {case['state']}"
    for number, attempt in enumerate(case["attempts"], 1):
        yield from _attempt_lines(number, attempt)
    told = (f"{key}: {', '.join(found) or 'nothing'}" for key, found in case["dns"].items())
    yield from _section("What the DNS says now", told)
    rules = (f"{one['stage']}: {one['rule']}: {one['effect']}" for one in case["rules"])
    yield from _section("Rules that matched here", rules)
    yield from _section("Events", (f"{_moment(one['at'])}  {one['kind']}" for one in case["events"]))


def _attempt_lines(number: int, attempt: Mapping[str, Any]) -> Iterable[str]:
    yield ""
    yield f"Attempt {number}, {_moment(attempt['at'])}: {attempt['kind'].partition('.')[2]}"
    address = f"[{attempt['address']}]" if attempt.get("address") else ""
    host = " ".join(filter(None, (attempt.get("host"), address)))
    shown = {
        "host": host,
        "phase": attempt.get("phase"),
        "answer": _joined(attempt, "code", "enhanced", "text"),
        "TLS": _joined(attempt, "tls_version", "tls_cipher") or "none",
        "TLS policy": _joined(attempt, "tls_policy", "tls_reason"),
        "took": f"{attempt['duration'] / SECOND:.3f} s" if attempt.get("duration") else "",
        "in doubt": "yes: it may have arrived" if attempt.get("in_doubt") else "",
        "next attempt": _moment(attempt["next_attempt_at"]) if attempt.get("next_attempt_at") else "",
    }
    yield from (f"  {name}: {value}" for name, value in shown.items() if value)
    yield from (f"  passed over: {one}" for one in attempt["passed_over"])
    yield from (f"    {line}" for line in attempt["dialogue"])


def _joined(attempt: Mapping[str, Any], *names: str) -> str:
    return " ".join(str(attempt[name]) for name in names if attempt.get(name))


def _section(title: str, lines: Iterable[str]) -> Iterable[str]:
    found = list(lines)
    if found:
        yield ""
        yield title
        yield from (f"  {line}" for line in found)
