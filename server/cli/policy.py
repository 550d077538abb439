"""`mailagents policy …`: check rules, explain what they do to a message, replay stored mail, lift pauses.

Owns the reading of a message and of rule directories for these commands. What needs
the store is asked of the running server; a message is explained without one too.
"""

from __future__ import annotations

import asyncio
import datetime
import difflib
import re
import sys
from collections.abc import Collection
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli import output
from server.cli.asking import ask
from server.cli.options import (
    EXIT_CONFIGURATION,
    EXIT_REFUSED,
    ConfigOption,
    JsonOption,
    failure,
    load,
    perform,
    show,
)

if TYPE_CHECKING:
    from policies.facts import Fact
    from server.config import Settings
    from server.evidence import Case
    from server.rulebook import Rulebook
    from storage.records import Verdict

MESSAGE_OCTETS = 256 << 20
_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

app = typer.Typer(no_args_is_help=True, help="Policy rules: check, explain, replay, pauses, lists.")
DirectoryOption = Annotated[
    Path | None, typer.Option("--directory", "-d", help="Rule directory; policy.directory unless given.")
]


@app.command("check")
def check(
    directory: Annotated[Path | None, typer.Argument(help="policy.directory unless given.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check rules and lists; each fault is named with file and line."""
    settings = load(config)
    rulebook = _rulebook(settings, directory)
    stages = {stage: len(index.rules) for stage, index in rulebook.rules.by_stage.items()}
    counted = ", ".join(f"{count} at {stage}" for stage, count in stages.items())
    unserved = [rule.name for rule in rulebook.rules.rules if rule.needs and not rule.enabled]
    result: dict[str, object] = {
        "rules": len(rulebook.rules.rules),
        "lists": len(rulebook.rules.lists),
        "enabled": counted or "none",
        "services": ", ".join(sorted(settings.services)) or "none",
    }
    if unserved:
        result["off, since what they need is not configured"] = ", ".join(unserved)
    show(result, as_json=as_json, how=output.facts)


@app.command("explain")
def explain(
    message: Annotated[Path, typer.Argument(help="The message, as a file; - reads standard input.")],
    sender: Annotated[str, typer.Option("--from", help="Envelope sender; empty is the null one.")] = "",
    to: Annotated[list[str] | None, typer.Option("--to", help="Recipient; may be given again.")] = None,
    ip: Annotated[str, typer.Option("--ip", help="Address of the client.")] = "",
    *,
    helo: Annotated[str, typer.Option(help="What the client says in EHLO.")] = "client.invalid",
    source: Annotated[str, typer.Option(help="mx, submission, lmtp or api.")] = "mx",
    tls: Annotated[bool, typer.Option(help="The client is under TLS.")] = False,
    scope: Annotated[list[str] | None, typer.Option(help="Scope of the sending login.")] = None,
    fact: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE: a fact to take as given, such as spf=pass.")
    ] = None,
    offline: Annotated[
        bool, typer.Option(help="Ask no DNS and no scanner: no sender authentication, no scans.")
    ] = False,
    directory: DirectoryOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what the rules would do with a message at each stage, and why; nothing is stored or sent."""
    from policies.facts import SCANNER_FACTS
    from server import trial
    from server.evidence import Case, Letter
    from server.login import Identity
    from storage.records import Envelope, Peer, Recipient, Source

    settings = load(config)
    rulebook = _rulebook(settings, directory)
    if source not in ("mx", "submission", "lmtp", "api"):
        raise typer.BadParameter("mx, submission, lmtp or api", param_hint="--source")
    given = _given(fact or [])
    content = _content(message)
    recipients = to or ["recipient@example.invalid"]
    envelope = Envelope(sender or None, tuple(map(Recipient, recipients)))
    peer = Peer(ip, helo=helo, extended=True, tls_version="TLSv1.3" if tls else None)
    context = _context(settings, recipients)
    inboxes = context["inboxes"]
    if rulebook.wants_database_lists:
        rulebook.take_database_lists(context["lists"])
    owner = next((one["organization"] for one in inboxes.values()), "")
    sent = source in ("submission", "api")
    login = Identity(owner, None, sender, "key", "", frozenset(scope or [])) if sent else None
    verdicts: tuple[Verdict, ...] = ()
    has_client = source == "mx" or (source == "lmtp" and ip)
    if has_client and not offline and settings.authentication.enabled:
        verdicts = asyncio.run(_verify(settings, peer, envelope, content))
    if settings.scanners.configured and not offline:
        wanted = SCANNER_FACTS.keys() & {name for rule in rulebook.rules.rules for name in rule.facts}
        verdicts += asyncio.run(_scan(settings, peer, envelope, content, wanted))
    case = Case(
        peer,
        login,
        envelope,
        Source(source),
        declared_octets=len(content),
        letter=Letter(content, len(content), lambda: content),
        verdicts=verdicts,
        organization_id=owner,
        scans=trial.Recorded(verdicts) if settings.scanners.configured else None,
    )
    if has_client and not offline:
        given = asyncio.run(_look_up(settings, rulebook, case)) | given
    book = trial.Book(rulebook.rules, rulebook.entries)
    places = [(address, one["inbox"]) for address, one in inboxes.items()]
    result = {"stages": list(trial.explained(book, case, given, places))}
    show(result, as_json=as_json, how=output.trial)


@app.command("replay")
def replay(
    since: Annotated[str, typer.Option(help="How far back: 30m, 12h, 7d, 2w, or a date 2026-01-31.")] = "7d",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Differences that are shown.")] = 100,
    directory: DirectoryOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what other rules would have done to the stored mail: a row for each message that fares otherwise.

    The rules in policy.directory are compared with those in --directory.
    """
    settings = load(config)
    before, after = _rulebook(settings, None), _rulebook(settings, directory)
    arguments = {
        "before": before.bundle(),
        "after": after.bundle(),
        "since": _since(since),
        "limit": limit,
    }
    result = perform(config, "policy-replay", arguments, as_json=as_json)
    show(result, as_json=as_json, how=output.replayed)


@app.command("pauses")
def pauses(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show which logins and organizations were paused, and by which rule."""
    result = perform(config, "policy-pauses", {}, as_json=as_json)
    show(result, as_json=as_json, how=output.pauses)


@app.command("resume")
def resume(subject: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Let a paused login or organization, named by its id, send again; its rates are counted anew."""
    result = perform(config, "policy-resume", {"subject": subject}, as_json=as_json)
    show(result, as_json=as_json, how=output.facts)


@app.command("lists")
def lists(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the lists that the database keeps."""
    result = perform(config, "policy-lists", {}, as_json=as_json)
    show(result, as_json=as_json, how=lambda found: output.facts(found["lists"]))


@app.command("list-add")
def list_add(name: str, entries: list[str], config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Put entries into a list of the database; the rules know it at once."""
    settings = load(config)
    _check_entries(_rulebook(settings, None), name, entries, as_json=as_json)
    arguments = {"name": name, "entries": entries}
    show(perform(config, "policy-list-add", arguments, as_json=as_json), as_json=as_json, how=output.facts)


@app.command("list-remove")
def list_remove(
    name: str, entries: list[str], config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Take entries out of a list of the database."""
    arguments = {"name": name, "entries": entries}
    show(perform(config, "policy-list-remove", arguments, as_json=as_json), as_json=as_json, how=output.facts)


def _check_entries(rulebook: Rulebook, name: str, entries: list[str], *, as_json: bool) -> None:
    from policies.lists import read
    from policies.rules import ListSource

    declared = rulebook.rules.lists.get(name)
    if declared is None or declared.source is not ListSource.DATABASE:
        text = f"{name}: no rule file declares a list of this name with database = true"
        raise failure("no_such_list", text, EXIT_REFUSED, as_json=as_json)
    faults = read(declared.kind, entries)[1]
    if faults:
        number, message = faults[0]
        text = f"{entries[number - 1]}: {message}"
        raise failure("bad_entry", text, EXIT_REFUSED, as_json=as_json)


def _rulebook(settings: Settings, directory: Path | None) -> Rulebook:
    """Return the rules of a directory; ends the program on faults."""
    from policies.compile import PolicyError
    from server.rulebook import Rulebook

    try:
        place = directory or settings.policy.directory
        return Rulebook(place, settings.limits.figures, services=settings.services)
    except PolicyError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        raise typer.Exit(EXIT_CONFIGURATION) from None


def _context(settings: Settings, recipients: list[str]) -> dict[str, Any]:
    """Return what the server knows of the recipients, nothing where it cannot be asked."""
    from server.control import sockets
    from server.operations import OperationFailed

    nothing: dict[str, Any] = {"inboxes": {}, "lists": {}}
    if not any(place.exists() for place in sockets(settings.control.socket)):
        return nothing
    try:
        return ask(settings, "policy-context", {"recipients": recipients})
    except (OperationFailed, output.Unreachable):
        return nothing


def _content(path: Path) -> bytes:
    """Return a message with CRLF line ends."""
    try:
        if str(path) == "-":
            content = sys.stdin.buffer.read(MESSAGE_OCTETS)
        else:
            with path.open("rb") as file:
                content = file.read(MESSAGE_OCTETS)
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}", param_hint="MESSAGE") from None
    return re.sub(rb"\r?\n", b"\r\n", content)


def _given(pairs: list[str]) -> dict[str, object]:
    from policies.facts import FACTS

    given: dict[str, object] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        fact = FACTS.get(name)
        if fact is None or not equals:
            near = difflib.get_close_matches(name, list(FACTS), n=1)
            hint = f": did you mean {near[0]}?" if fact is None and near else ""
            raise typer.BadParameter(f"{pair}: write NAME=VALUE with a fact{hint}", param_hint="--fact")
        given[name] = _value(fact, text)
    return given


def _value(fact: Fact, text: str) -> object:
    from policies.facts import Kind

    try:
        if fact.kind is Kind.INT:
            return int(text)
        if fact.kind is Kind.BOOL:
            return {"true": True, "false": False}[text]
    except (ValueError, KeyError):
        raise typer.BadParameter(f"{fact.name} is {fact.kind.value}", param_hint="--fact") from None
    return text.split(",") if fact.kind is Kind.STRINGS else text


def _since(text: str) -> int:
    """Return the time that '7d' or '2026-01-31' means, in microseconds."""
    now = datetime.datetime.now(datetime.UTC)
    found = re.fullmatch(r"(\d{1,5})([mhdw])", text)
    try:
        if found:
            begun = now - datetime.timedelta(seconds=int(found[1]) * _UNITS[found[2]])
        else:
            begun = datetime.datetime.fromisoformat(text)
            begun = begun if begun.tzinfo else begun.replace(tzinfo=datetime.UTC)
        return max(0, round(begun.timestamp() * 1_000_000))
    except (ValueError, OverflowError):
        raise typer.BadParameter("write 30m, 12h, 7d, 2w or a date", param_hint="--since") from None


class _Threads:
    """What the verifier needs of the server's threads, where no server runs."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool

    async def run(self, function: Any, *arguments: Any, **named: Any) -> Any:
        """Run blocking work."""
        call = partial(function, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    compute = run


async def _verify(settings: Settings, peer: Any, envelope: Any, content: bytes) -> tuple[Verdict, ...]:
    """Return the verdicts of sender authentication, asking the DNS as the server does."""
    from server.clock import SystemClock
    from server.dns import CachingResolver
    from server.sender_auth.verify import Verifier

    resolver = CachingResolver(
        servers=settings.dns.servers,
        timeout_seconds=settings.dns.timeout_seconds,
        cache_entries=settings.dns.cache_entries,
        clock=SystemClock(),
    )
    with ThreadPoolExecutor(1) as pool:
        threads: Any = _Threads(pool)
        verifier = Verifier(
            resolver=resolver,
            threads=threads,
            clock=SystemClock(),
            hostname=settings.server.hostname,
            deadline_seconds=settings.authentication.deadline_seconds,
        )
        try:
            return await verifier.verify(peer=peer, envelope=envelope, content=content)
        finally:
            await resolver.close()


async def _look_up(settings: Settings, rulebook: Rulebook, case: Case) -> dict[str, object]:
    """Return what the DNS says of a client, of the facts that rules ask for."""
    from server import client_facts, logs
    from server.clock import SystemClock
    from server.dns import CachingResolver
    from server.evidence import Facts
    from server.names.zones import Zones

    wanted = client_facts.NAMES & {
        name for rule in rulebook.rules.rules if rule.enabled for name in rule.facts
    }
    if not wanted:
        return {}
    logs.configure(level="warning", form="text", addresses=False)
    dns, lists, clock = settings.dns, settings.dns_lists, SystemClock()
    resolver = CachingResolver(
        servers=dns.servers, timeout_seconds=dns.timeout_seconds, cache_entries=dns.cache_entries, clock=clock
    )
    looking = client_facts.ClientFacts(
        resolver=resolver,
        zones=Zones(resolver, clock, timeout_seconds=lists.timeout_seconds),
        rulebook=rulebook,
        clock=clock,
        lists=lists.lists,
        timeout_seconds=lists.timeout_seconds,
    )
    facts = Facts(case)
    try:
        await looking.look(wanted, facts)
        return {name: facts[name] for name in wanted}
    finally:
        await looking.stop()
        await resolver.close()


async def _scan(
    settings: Settings, peer: Any, envelope: Any, content: bytes, wanted: Collection[str]
) -> tuple[Verdict, ...]:
    """Return what the configured scanners say, asked as the server asks them."""
    from server import logs
    from server.clock import SystemClock
    from server.scanners.made import make_scanning

    logs.configure(level="warning", form="text", addresses=False)
    threads: Any = None  # the content is in memory: no file is read
    scanning = make_scanning(settings.scanners, threads, SystemClock(), settings.server.hostname)
    scans = await scanning.begin(wanted, peer=peer, envelope=envelope, content=content, queue_id="explain")
    try:
        await scans.look(wanted)
        return scans.verdicts
    finally:
        await scans.end()
