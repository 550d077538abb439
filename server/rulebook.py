"""The policy rules in force: read from a directory, replaced whole on reload.

Owns the files' reading, the lists as they stand now, and the
turning of an engine's ruling into a decision record. A directory with a faulty rule
or list changes nothing: the old ones stay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies import lists
from policies.compile import PolicyError, Problem, compile_rules
from policies.engine import ACCEPTED, judge, wanted
from policies.facts import DEFAULT_LIMITS
from policies.rules import ListSource, RuleSet, Ruling
from server.clock import SystemClock
from server.greylist import Greylist, GreylistSettings, bringer
from server.limits import Limits
from server.refusal import Refusal
from storage.records import Action, Decision, RuleTrace

if TYPE_CHECKING:
    from policies.lists import Entries
    from policies.rules import Derived, ListDeclaration, Rule
    from server.clock import Clock

LIST_FILE_OCTETS = 64 << 20
UNRULED = Decision()
Stamp = tuple[int, int, int]


Loaded = tuple[RuleSet, "dict[str, Entries]", dict[Path, Stamp]]


class Rulebook:
    """Holds the compiled rules and judges facts by them."""

    def __init__(
        self,
        directory: Path,
        limits: Mapping[str, int] = DEFAULT_LIMITS,
        clock: Clock | None = None,
        *,
        services: Collection[str] = (),
        greylist: GreylistSettings | None = None,
    ) -> None:
        self._directory = directory
        self._figures = limits
        self._services = frozenset(services)
        self._clock = clock or SystemClock()
        self._database: Mapping[str, Sequence[str]] = {}
        self._is_outdated = True
        self.limits = Limits(self._clock)
        self.greylist = Greylist(self._clock, greylist or GreylistSettings())
        self._rules, self._lists, self._stamps = self._read()

    def _read(self) -> Loaded:
        if not self._directory.is_dir():
            # Without this a mistyped path would switch every rule off.
            raise _faulty(self._directory, "there is no such directory of rules")
        files = sorted(self._directory.glob("*.toml"))
        rules = compile_rules([(str(path), _text(path)) for path in files], self._figures, self._services)
        return rules, *self._read_lists(rules)

    def _read_lists(self, rules: RuleSet) -> tuple[dict[str, Entries], dict[Path, Stamp]]:
        found: dict[str, Entries] = {}
        stamps: dict[Path, Stamp] = {}
        problems: list[Problem] = []
        for declared in rules.lists.values():
            if declared.source is ListSource.DNS:
                continue
            lines: Sequence[str] = declared.values
            if declared.source is ListSource.DATABASE:
                lines = self._database.get(declared.name, ())
            elif declared.source is ListSource.FILE:
                path = _path_of(declared)
                stamps[path] = _stamp(path)
                lines = _list_text(path).split("\n")
            found[declared.name], faults = lists.read(declared.kind, lines)
            if declared.source is ListSource.FILE:
                problems += [Problem(str(path), line, message) for line, message in faults]
        if problems:
            raise PolicyError(tuple(problems))
        return found, stamps

    def read(self) -> Loaded:
        """Read rules and lists anew, off the loop where they may be long; PolicyError. Changes nothing."""
        return self._read()

    def put(self, loaded: Loaded) -> None:
        """Have what was read in force, from one judging to the next."""
        self._rules, self._lists, self._stamps = loaded
        self._is_outdated = True

    def reload(self) -> None:
        """Read the rules again at once; raises policies.compile.PolicyError and keeps the old ones."""
        self.put(self.read())

    def read_lists(self) -> Loaded | None:
        """Read the lists again where a file of theirs changed, else None; PolicyError. Changes nothing."""
        rules = self._rules
        if all(_stamp(path) == stamp for path, stamp in self._stamps.items()):
            return None
        return rules, *self._read_lists(rules)

    def put_lists(self, loaded: Loaded | None) -> bool:
        """Put lists that were read in force, unless the rules changed since; return whether it did."""
        if loaded is None:
            return False
        rules, found, stamps = loaded
        if rules is self._rules:
            self._lists, self._stamps = found, stamps
            self._is_outdated = True
        return True

    def refresh_lists(self) -> bool:
        """Read the lists again at once where a file changed; raises PolicyError and keeps the old ones."""
        return self.put_lists(self.read_lists())

    @property
    def wants_database_lists(self) -> bool:
        """Whether a list of the database is declared and may have changed."""
        return self._is_outdated and any(
            one.source is ListSource.DATABASE for one in self._rules.lists.values()
        )

    def outdate_lists(self) -> None:
        """Take note that lists of the database changed."""
        self._is_outdated = True

    def read_database_lists(self, entries: Mapping[str, Sequence[str]]) -> tuple[RuleSet, dict[str, Entries]]:
        """Return the lists of what the database keeps, whatever is of no use to a list left out."""
        rules = self._rules
        found = {
            name: lists.read(declared.kind, entries.get(name, ()))[0]
            for name, declared in rules.lists.items()
            if declared.source is ListSource.DATABASE
        }
        return rules, found

    def put_database_lists(
        self, entries: Mapping[str, Sequence[str]], loaded: tuple[RuleSet, dict[str, Entries]]
    ) -> None:
        """Have these lists in force, unless the rules changed meanwhile."""
        rules, found = loaded
        self._database = entries
        if rules is self._rules:
            self._is_outdated = False
            self._lists = {**self._lists, **found}

    def take_database_lists(self, entries: Mapping[str, Sequence[str]]) -> None:
        """Take the entries of all lists that the database keeps, at once."""
        self.put_database_lists(entries, self.read_database_lists(entries))

    @property
    def entries(self) -> Mapping[str, Entries]:
        """The lists as they stand now, but for those of the DNS."""
        return self._lists

    def bundle(self) -> dict[str, object]:
        """Return the rules as texts with the entries of their lists of files, and the figures, JSON-able.

        Lists of the database are left to whoever has it.
        """
        files = sorted(self._directory.glob("*.toml"))
        listed: dict[str, Sequence[str]] = {}
        for name, declared in self._rules.lists.items():
            if declared.source is ListSource.FILE:
                listed[name] = _list_text(_path_of(declared)).split("\n")
            elif declared.source is ListSource.VALUES:
                listed[name] = declared.values
        rules = [[str(path), _text(path)] for path in files]
        return {
            "rules": rules,
            "lists": listed,
            "limits": dict(self._figures),
            "services": sorted(self._services),
        }

    @property
    def rules(self) -> RuleSet:
        """The rules in force now."""
        return self._rules

    def asks(self, stage: str) -> bool:
        """Whether any rule stands at a stage, so that facts need be gathered for it."""
        return bool(self._rules.by_stage.get(stage))

    def wanted(self, stage: str, facts: Mapping[str, object]) -> set[str]:
        """Return what the rules of a stage want to know ahead over these facts; empty in the usual case."""
        index = self._rules.by_stage.get(stage)
        if index is None or not index.ahead:
            return set()
        return wanted(self._rules, stage, facts)

    def derived(self, names: Iterable[str]) -> list[Derived]:
        """Return those of names that the DNS answers."""
        rules = self._rules
        return [rules.derived[name] for name in names if name in rules.asked_ahead]

    def decide(self, stage: str, facts: Mapping[str, object]) -> Decision:
        """Return the decision of a stage's rules over facts."""
        ruling = judge(self._rules, stage, facts, self)
        return UNRULED if ruling is ACCEPTED else decision_of(ruling)

    def is_listed(self, name: str, value: str) -> bool:
        """Return whether a value is in a list; LookupError where the list has no entries to hand."""
        return lists.is_listed(self._lists, name, value)

    def spend(self, rule: Rule, value: str) -> bool:
        """Count one event for a limit and a value of its fact; return whether it is still within."""
        return self.limits.spend(rule.name, value, limit=rule.limit, period_seconds=rule.period_seconds)

    def has_returned(self, stage: str, facts: Mapping[str, Any]) -> bool:
        """Note that mail comes, and return whether its client need not come back for it."""
        return self.greylist.passes(**bringer(stage, facts))


def _path_of(declared: ListDeclaration) -> Path:
    return Path(declared.place.rpartition(":")[0]).parent / declared.origin


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino


def _list_text(path: Path) -> str:
    try:
        if path.stat().st_size > LIST_FILE_OCTETS:
            raise _faulty(path, f"the list is over {LIST_FILE_OCTETS} octets")
    except OSError as error:
        raise _faulty(path, error.strerror or str(error)) from None
    return _text(path)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise _faulty(path, error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise _faulty(path, f"the file is not UTF-8: octet {error.start} cannot be read") from None


def _faulty(path: Path, message: str) -> PolicyError:
    return PolicyError((Problem(str(path), 0, message),))


def decision_of(ruling: Ruling) -> Decision:
    """Turn an engine's ruling into the record that intake keeps."""
    return Decision(
        action=Action(ruling.action),
        code=ruling.code,
        enhanced=ruling.enhanced,
        text=ruling.text,
        tags=tuple(ruling.tags),
        headers=tuple(ruling.headers),
        redirect=ruling.redirect,
        trace=tuple(
            RuleTrace(step.rule, step.stage, step.matched, step.effect, step.place) for step in ruling.trace
        ),
        copies=ruling.copies,
        forwards=ruling.forwards,
        priority=ruling.priority or 0,
        pause=ruling.pause,
        reason=ruling.reason,
        require_tls=ruling.require_tls,
        ask_in_doubt=ruling.ask_in_doubt,
        webhooks=tuple((one.rule, one.url, one.content) for one in ruling.webhooks),
    )


# What two stages' decisions come to: the heavier one; among equals the later.
_WEIGHTS = {
    Action.ACCEPT: 0,
    Action.QUARANTINE: 1,
    Action.HOLD: 2,
    Action.DISCARD: 3,
    Action.DEFER: 4,
    Action.REJECT: 4,
}


def merge(first: Decision, second: Decision) -> Decision:
    """Return what two stages' decisions say together: the heavier action, and all that goes with both."""
    if second is UNRULED:
        return first
    source = second if _WEIGHTS[second.action] >= _WEIGHTS[first.action] else first
    return Decision(
        action=source.action,
        code=source.code,
        enhanced=source.enhanced,
        text=source.text,
        tags=tuple(dict.fromkeys((*first.tags, *second.tags))),
        headers=(*first.headers, *second.headers),
        redirect=first.redirect or second.redirect,
        trace=(*first.trace, *second.trace),
        copies=tuple(dict.fromkeys((*first.copies, *second.copies))),
        forwards=tuple(dict.fromkeys((*first.forwards, *second.forwards))),
        priority=second.priority or first.priority,
        pause=second.pause or first.pause,
        reason=source.reason,
        require_tls=first.require_tls or second.require_tls,
        ask_in_doubt=first.ask_in_doubt or second.ask_in_doubt,
        webhooks=tuple(dict.fromkeys((*first.webhooks, *second.webhooks))),
    )


def refuse(decision: Decision) -> None:
    """Raise the Refusal of a decision that rejects or defers; return for any other."""
    if decision.action in (Action.REJECT, Action.DEFER):
        raise refusal_of(decision)


def refusal_of(decision: Decision) -> Refusal:
    """Return the Refusal of a decision that rejects or defers."""
    # What refused came last, the rules before it may have matched too; behind reputation others were asked.
    steps = [step for step in decision.trace if step.matched]
    if decision.reason:
        steps = [step for step in steps if step.effect.startswith(("reject", "defer"))][:1]
    rule = steps[-1].rule if steps else ""
    return Refusal(decision.code, decision.enhanced, decision.text, f"rule {rule}")
