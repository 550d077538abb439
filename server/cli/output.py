"""How results look in a terminal: facts, tables and the timeline of a message.

Owns presentation alone. Text from outside is printed without its control
characters, so that no message can steer the terminal.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

MICROSECONDS = 1_000_000
PIPED_COLUMNS = 240


class Unreachable(Exception):
    """Neither the daemon nor the store can be reached; the text says why."""


def console() -> Console:
    """Return the console on stdout; what is no terminal gets lines long enough for whole ids."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_COLUMNS)


def plain(value: object) -> str:
    """Return a value as text that cannot steer a terminal."""
    return "".join(letter if letter.isprintable() else "·" for letter in str(value))


def moment(micros: int) -> str:
    """Return a time as people read it, in UTC with milliseconds."""
    at = datetime.datetime.fromtimestamp(micros / MICROSECONDS, datetime.UTC)
    return at.strftime("%Y-%m-%d %H:%M:%S.") + f"{at.microsecond // 1000:03d}"


def facts(result: Mapping[str, Any]) -> None:
    """Print names and values, one a line."""
    grid = Table.grid(padding=(0, 2))
    for name, value in result.items():
        shown = ", ".join(plain(one) for one in value) if isinstance(value, list) else plain(value)
        grid.add_row(Text(name.replace("_", " "), style="bold"), Text(shown, overflow="fold"))
    console().print(grid)


def status(result: Mapping[str, Any]) -> None:
    """Print the counts, and which processes serve which roles."""
    serving = [f"{', '.join(one['roles'])} (pid {one['pid']})" for one in result["processes"]]
    facts({**result, "processes": serving or "none"})


def records(result: Mapping[str, Any]) -> None:
    """Print DNS records as a zone file takes them, each with its reason."""
    for record in result["records"]:
        print(f"; {record['why']}")
        print(f"{record['name']}. IN {record['type']} {_zone_value(record['type'], record['value'])}")


def _zone_value(kind: str, value: str) -> str:
    if kind != "TXT":
        return value
    # RFC 1035 3.3.14: strings of 255 octets at most, joined by the reader.
    parts = [value[start : start + 255] for start in range(0, len(value), 255)]
    return " ".join(f'"{part}"' for part in parts)


def dmarc(result: Mapping[str, Any]) -> None:
    """Print the sources that DMARC reports tell of, and the reports."""
    if not result["reports"]:
        console().print(Text(f"no DMARC report about {plain(result['domain'])} has come"))
        return
    print_table(
        ("source", "messages", "DMARC", "DKIM", "SPF", "disposition"),
        [
            (row["source_ip"], row["messages"], row["dmarc"], row["dkim"], row["spf"], row["disposition"])
            for row in result["sources"]
        ],
    )
    print_table(
        ("from", "reporter", "messages", "passed", "report"),
        [
            (moment(row["begin_at"])[:16], row["reporter"], row["messages"], row["passed"], row["report_id"])
            for row in result["reports"]
        ],
    )


def tls(result: Mapping[str, Any]) -> None:
    """Print the results that TLS reports tell of, and the reports."""
    if not result["reports"]:
        console().print(Text(f"no TLS report about {plain(result['domain'])} has come"))
        return
    print_table(
        ("policy", "result", "host", "sessions"),
        [(row["policy"], row["result"], row["host"], row["sessions"]) for row in result["results"]],
    )
    print_table(
        ("from", "reporter", "good", "failed", "report"),
        [
            (
                moment(row["begin_at"])[:16],
                row["reporter"],
                row["successes"],
                row["failures"],
                row["report_id"],
            )
            for row in result["reports"]
        ],
    )


def policies(result: Mapping[str, Any]) -> None:
    """Print the MTA-STS policies that are kept."""
    if not result["policies"]:
        print("no MTA-STS policy is kept")
    print_table(
        ("domain", "policy", "id", "fetched", "until"),
        [
            (
                row["domain"],
                "; ".join(row["policy"].split("\r\n")[1:]).strip("; "),
                row["record_id"],
                moment(row["fetched_at"])[:16],
                moment(row["expires_at"])[:16],
            )
            for row in result["policies"]
        ],
    )


def print_table(titles: Iterable[str], rows: Sequence[Iterable[object]]) -> None:
    """Print rows under their titles, nothing where there are none."""
    if not rows:
        return
    table = Table(box=None, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    console().print(table)


def grants(result: Mapping[str, Any]) -> None:
    """Print grants, one a line."""
    if not result["grants"]:
        console().print(Text("no grants"))
        return
    table = Table(box=None, header_style="bold")
    for title in ("grant", "address", "inbox or key"):
        table.add_column(title, overflow="fold")
    for row in result["grants"]:
        table.add_row(row["id"], plain(row["address"]), row["inbox"] or row["key"])
    console().print(table)


def queue(result: Mapping[str, Any]) -> None:
    """Print the queue's counts and deliveries."""
    counts = ", ".join(f"{count} {state}" for state, count in sorted(result["counts"].items()))
    console().print(Text(counts or "the queue is empty"))
    if not result["deliveries"]:
        return
    table = Table(box=None, header_style="bold")
    for title in ("delivery", "recipient", "state", "tries", "next attempt", "last answer"):
        table.add_column(title, overflow="fold")
    for row in result["deliveries"]:
        outcome = row.get("last_outcome") or {}
        due = row.get("next_attempt_at")
        table.add_row(
            row["id"],
            plain(row["recipient"]),
            row["state"],
            str(row["tries"]),
            moment(due)[:19] if due else "",
            plain(f"{outcome.get('code') or ''} {outcome.get('text') or ''}".strip()),
        )
    console().print(table)


def queue_story(result: Mapping[str, Any]) -> None:
    """Print deliveries with what happened to each."""
    for row in result["deliveries"]:
        shown = {name: row[name] for name in ("id", "recipient", "state", "tries", "priority")}
        for name in ("created_at", "next_attempt_at", "expires_at"):
            if row[name]:
                shown[name] = moment(row[name])[:19]
        facts(shown)
        timeline(row["events"])


def queue_stats(result: Mapping[str, Any]) -> None:
    """Print counts by state, and the domains with most."""
    counts = ", ".join(f"{count} {state}" for state, count in sorted(result["counts"].items()))
    console().print(Text(counts))
    table = Table(box=None, header_style="bold")
    for title in ("domain", "state", "deliveries"):
        table.add_column(title, overflow="fold")
    for row in result["domains"]:
        table.add_row(plain(row["domain"]), row["state"], str(row["count"]))
    if result["domains"]:
        console().print(table)


def suppressions(result: Mapping[str, Any]) -> None:
    """Print who is suppressed and why."""
    if not result["suppressions"]:
        print("nobody is suppressed")
        return
    table = Table(box=None, header_style="bold")
    for title in ("address", "cause", "scope", "since", "until", "evidence"):
        table.add_column(title, overflow="fold")
    for row in result["suppressions"]:
        until = row["expires_at"] or row["probation_at"]
        table.add_row(
            plain(row["address"]),
            row["cause"],
            plain(f"{row['scope']} {row['sender']}".strip()),
            moment(row["created_at"])[:19],
            moment(until)[:19] if until else "",
            plain(row["evidence"]),
        )
    console().print(table)


def suppressed(result: Mapping[str, Any]) -> None:
    """Print a suppression just made, and what had begun before it."""
    print(f"no transaction to {plain(result['address'])} begins from now on")
    for one in result["in_flight"]:
        print(f"  had begun before: {one['delivery_id']} of {one['message_id']}")


def unsuppressed(result: Mapping[str, Any]) -> None:
    """Print who may be written to again."""
    print(f"{plain(result['address'])} may be written to again (it was {result['was']})")


def queue_preview(result: Mapping[str, Any]) -> None:
    """Print what an action would change."""
    number, owners = result["deliveries"], result["organizations"]
    print(f"{result['verb']} would change {number} deliveries of {owners} organizations")
    for row in result["sample"]:
        print(f"  {row['id']}  {row['state']}  {plain(row['recipient'])}")
    if result["deliveries"] > len(result["sample"]):
        print("  …")


def queue_acted(result: Mapping[str, Any]) -> None:
    """Print what an action changed, and what takes it back."""
    print(f"{result['changed']} deliveries; mailagents queue undo {result['action']} takes it back")


def queue_actions(result: Mapping[str, Any]) -> None:
    """Print the last actions."""
    if not result["actions"]:
        print("nobody has done anything")
    for row in result["actions"]:
        chosen = ", ".join(f"{name} {plain(value)}" for name, value in row["selection"].items()) or "all"
        print(f"{row['id']}  {moment(row['at'])[:19]}  {row['kind']}  {row['changed']}  {chosen}")
        print(f"  by {row['actor']}")


def traced(result: Mapping[str, Any]) -> None:
    """Print the messages of an address."""
    if not result["messages"]:
        print(f"no message to or from {plain(result['address'])}")
    for row in result["messages"]:
        who = "from it" if row["is_sender"] else f"from {plain(row['reverse_path'] or '<>')}"
        print(f"{row['id']}  {moment(row['accepted_at'])[:19]}  {row['direction']:3}  {row['source']}, {who}")
        for one in row["deliveries"]:
            last = one["last_outcome"] or {}
            said = " ".join(str(last[name]) for name in ("code", "enhanced", "text") if last.get(name))
            print(f"  {one['id']}  {plain(one['recipient'])}  {one['state']}  {plain(said)[:200]}".rstrip())


def case(result: Mapping[str, Any]) -> None:
    """Print a case file, of which other servers' words are a part."""
    for line in result["text"].splitlines():
        print(plain(line))


def queue_routes(result: Mapping[str, Any]) -> None:
    """Print the routes that were set at run time."""
    if not result["routes"]:
        print("no route is set")
    for row in result["routes"]:
        until = f", until {moment(row['until'])[:19]}" if row["until"] else ""
        print(f"{row['scope']} {plain(row['subject'])} -> {plain(row['hop'])}".replace("  ", " ") + until)
        print(f"  by {row['actor']} {moment(row['at'])[:19]} {plain(row['reason'])}".rstrip())


def queue_doubts(result: Mapping[str, Any]) -> None:
    """Print what waits for a verdict."""
    if not result["deliveries"]:
        print("nothing is in doubt")
    for row in result["deliveries"]:
        print(f"{row['id']}  {plain(row['recipient'])}  attempt {row['tries']}")
        print(f"  begun {moment(row['begun_at'])[:19]}, message {row['message_id']}")


def explanation(result: Mapping[str, Any]) -> None:
    """Print a message's facts, its timeline and its deliveries."""
    message = result["message"]
    shown = {
        name: message[name]
        for name in ("id", "source", "reverse_path", "subject", "octets", "organization_id")
        if message.get(name) not in (None, "")
    }
    facts(shown)
    timeline(result["timeline"])
    protection(result["timeline"])


def protection(steps: Iterable[Mapping[str, Any]]) -> None:
    """Print which policy the TLS of each attempt was held to, and why."""
    attempts = [(step["kind"], step["data"]) for step in steps if step["data"].get("tls_policy")]
    if not attempts:
        return
    print()
    print_table(
        ("attempt", "to", "host", "policy", "TLS", "why"),
        [
            (
                data.get("attempt", ""),
                data.get("recipient", ""),
                data.get("host", ""),
                data["tls_policy"],
                data.get("tls_version", "in clear" if kind == "message.delivered" else "no"),
                data.get("tls_reason", ""),
            )
            for kind, data in attempts
        ],
    )


def timeline(steps: Iterable[Mapping[str, Any]]) -> None:
    """Print each step of a message's life: when, what, and the words that came with it."""
    grid = Table.grid(padding=(0, 2))
    for step in steps:
        grid.add_row(
            Text(moment(step["at"])[11:], style="dim", no_wrap=True),
            Text(step["kind"].partition(".")[2], style="bold", no_wrap=True),
            Text(words(step["kind"], step["data"]), overflow="fold"),
        )
    console().print(grid)


def words(kind: str, data: Mapping[str, Any]) -> str:
    """Return what an event says, as one sentence for people; facts it has no words for follow."""
    used: set[str] = set()

    def take(name: str, form: str = "{}") -> str:
        used.add(name)
        value = data.get(name)
        return form.format(plain(value)) if value not in (None, "", [], {}, 0) else ""

    if kind == "message.accepted":
        parts = [take("source", "by {}"), take("from", "from {}") or "from <>"]
        parts += [take("peer", "at {}"), take("helo", "({})"), take("tls", "over {}")]
        parts += [take("octets", "{} octets"), take("recipients", "for {}"), take("signed", "signed for {}")]
        parts += [take("recoded", "encoded anew for its way"), take("action", "decision: {}")]
    elif kind in ("message.received", "message.kept"):
        parts = [take("recipient", "for {}"), take("folder", "into {}"), take("uid", "as UID {}")]
    else:
        parts = [take("recipient", "to {}"), take("code"), take("enhanced"), take("text", '"{}"')]
        parts += [take("host", "by {}"), take("address", "at {}"), take("tls_version", "over {}")]
        parts += [take("tls_policy", "(policy {})")]
        parts += [take("attempt", "attempt {}"), take("next_attempt_at") and _next(data)]
        if "duration" in data:
            used.add("duration")
            parts.append(f"in {int(data['duration']) / 1000:.0f} ms")
        used |= {"state", "phase", "domain", "tls_cipher", "tls_reason", "passed_over"}
        told = [f"TLS: {plain(data['tls_reason'])}"] if data.get("tls_reason") else []
        told += [f"passed over {plain(one)}" for one in data.get("passed_over") or ()]
        parts = ["; ".join([" ".join(part for part in parts if part), *told])]
    rest = [f"{name}: {_flat(value)}" for name, value in data.items() if name not in used and value]
    return "; ".join([" ".join(part for part in parts if part), *rest])


def _next(data: Mapping[str, Any]) -> str:
    return f"next at {moment(int(data['next_attempt_at']))[:19]}"


def _flat(value: object) -> str:
    if isinstance(value, Mapping):
        value = " ".join(f"{key}={one}" for key, one in value.items())
    elif isinstance(value, list):
        value = ", ".join(str(one) for one in value)
    return plain(value)


def trial(result: Mapping[str, Any]) -> None:
    """Print what the rules do at each stage: the facts that they ask for, each rule, and why."""
    for stage in result["stages"]:
        about = f" {plain(stage['about'])}" if stage["about"] else ""
        print(f"{stage['stage']}{about}: {plain(stage['decision'])}")
        for name, value in stage["facts"].items():
            print(f"    {name} = {plain(_literal(value))}")
        for rule in stage["rules"]:
            outcome = f"matched: {rule['effect']}" if rule["matched"] else f"no: {plain(rule['why'])}"
            print(f"  {rule['rule']} ({rule['place']}) {outcome}")


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def replayed(result: Mapping[str, Any]) -> None:
    """Print the messages that fare otherwise under other rules."""
    words = f"{result['tried']} messages tried, {result['changed']} fare otherwise"
    if result["partly"]:
        words += f"; {result['partly']} are no longer there and were tried by their From, To and Subject"
    if result.get("unscanned"):
        words += f"; {result['unscanned']} were not scanned: to rules about scanners they are unknown"
    print(words)
    if result.get("not_known"):
        print(f"not known of the past, taken as none: {', '.join(result['not_known'])}")
    for row in result["differences"]:
        to = ", ".join(plain(address) for address in row["to"])
        print(f"{row['id']}  {moment(row['at'])[:19]}  {row['source']}  {plain(row['from']) or '<>'} to {to}")
        for name in ("before", "after"):
            rules = ", ".join(row[f"{name}_rules"]) or "no rule"
            print(f"  {name:<6}  {plain(row[name])}  ({rules})")


def pauses(result: Mapping[str, Any]) -> None:
    """Print who may not send."""
    if not result["pauses"]:
        print("nothing is paused")
    for row in result["pauses"]:
        print(f"{row['subject']}  since {moment(row['at'])[:19]}  by rule {row['rule']}")
