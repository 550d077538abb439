"""Rule files into a rule set, or every mistake at once with its file and line.

Owns the form of a rule in TOML and the checks beside those of its condition:
unknown keys, actions at stages that cannot carry them, reply codes, names that
are used twice. Opens no file: the texts are given.
RFC 5321 4.2 (replies), RFC 3463 (enhanced status codes), RFC 9051 9 (keywords).
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from policies import library, plain
from policies.check import check
from policies.expression import Expression, ExpressionError, canonical, parse
from policies.facts import DEFAULT_LIMITS, FACTS, SCANNERS, SERVICES, STAGES, USUAL, Kind
from policies.lines import Positions, positions
from policies.listing import read_list
from policies.rules import (
    ACTION_STAGES,
    FINAL_ACTIONS,
    Action,
    Derived,
    Function,
    ListDeclaration,
    ListSource,
    OnError,
    PlainTest,
    Rule,
    RuleSet,
    StageIndex,
    TestKind,
)

MAX_FILE_OCTETS = 1 << 20
MAX_RULES = 5000
TEXT_CHARACTERS = 300
REASONED = frozenset({"rcpt", "message"})

KEYS: Mapping[str, tuple[type, str]] = {
    "name": (str, "Identifies the rule in traces: lower-case letters, digits and hyphens. Required."),
    "description": (str, "Why the rule is there."),
    "stage": (str, "The stage, or a list of stages, at which the rule is asked. Required."),
    "when": (str, "The condition. Required; `true` always holds."),
    "action": (str, "What is done when the condition holds. Required."),
    "code": (
        int,
        "Reply code of reject and pause (550 unless given), defer, limit and greylist (451), require_tls "
        "(530).",
    ),
    "enhanced": (str, "Enhanced status code that goes with code (5.7.1, 4.7.1, 5.7.0 unless given)."),
    "text": (str, "What the client is told, in ASCII. It should reveal no configuration."),
    "keyword": (str, "IMAP keyword that tag and quarantine set."),
    "header": (str, "Field `Name: value` that tag, quarantine and redirect put on top of the message."),
    "target": (str, "Address that redirect, copy and forward send the message to."),
    "to": (str, "Where quarantine puts the message: `junk` (unless given) or `held`."),
    "priority": (int, "Priority in the queue, -9 to 9; 0 is ordinary, higher goes first."),
    "limit": (int, "How often the condition of limit may hold in a period."),
    "period_seconds": (int, "The period of limit, 86400 at most."),
    "per": (str, "The fact, a text, for each of whose values limit counts."),
    "reason": (
        str,
        "`reputation`: reject or defer goes by who the sender is and not by what the message is.",
    ),
    "subject": (str, "Whom pause stops: `identity`, the credential or key, or `organization`."),
    "url": (str, "Where webhook posts to: `https://…`; `http://` to private addresses alone, if allowed."),
    "content": (bool, "true: webhook sends the message itself too, in base64."),
    "needs": (
        str,
        "`clamav`, `rspamd` or `scanner` (either): the rule is off unless that is configured in [scanners]; "
        "`blocklists` or `domain-blocklists`: unless [dns_lists] names some.",
    ),
    "stop": (
        bool,
        "Whether later rules of the stage are passed over; always so for accept, reject and defer.",
    ),
    "enabled": (bool, "false keeps the rule, checked, out of judging."),
    "on_error": (
        str,
        "What happens if the condition cannot be evaluated: `skip` passes the rule over, `defer` answers "
        "451. Unless given, accept and tag skip, the others defer where their stage has a client to answer.",
    ),
}
_REFUSALS = {
    Action.REJECT: (550, "5.7.1", "Refused by the policy of this server"),
    Action.DEFER: (451, "4.7.1", "Deferred by the policy of this server, try again later"),
    Action.LIMIT: (451, "4.7.1", "Too much at once, try again later"),
    Action.GREYLIST: (451, "4.7.1", "Greylisted: this sender is new here, please try again in some minutes"),
    Action.REQUIRE_TLS: (530, "5.7.0", "Use STARTTLS first"),
    Action.PAUSE: (550, "5.7.1", "Sending is paused, ask the operator of this server"),
}
_REFUSING = set(_REFUSALS)
_NOTHING: frozenset[object] = frozenset()
_TARGETED = {Action.REDIRECT, Action.COPY, Action.FORWARD}
_ONLY: Mapping[str, set[Action]] = {
    "code": _REFUSING,
    "enhanced": _REFUSING,
    "text": _REFUSING,
    "keyword": {Action.TAG, Action.QUARANTINE},
    "header": {Action.TAG, Action.QUARANTINE, Action.REDIRECT},
    "target": _TARGETED,
    "to": {Action.QUARANTINE},
    "priority": {Action.PRIORITY},
    "limit": {Action.LIMIT},
    "period_seconds": {Action.LIMIT},
    "per": {Action.LIMIT},
    "subject": {Action.PAUSE},
    "reason": {Action.REJECT, Action.DEFER},
    "url": {Action.WEBHOOK},
    "content": {Action.WEBHOOK},
    "stop": set(Action) - FINAL_ACTIONS,
}
# What is lost with these, where their condition cannot be evaluated, is no one's safety.
_LENIENT = {
    Action.ACCEPT,
    Action.STOP,
    Action.TAG,
    Action.PRIORITY,
    Action.LIMIT,
    Action.GREYLIST,
    Action.WEBHOOK,
}
_NEEDED = {
    Action.PRIORITY: ("priority",),
    Action.LIMIT: ("limit", "period_seconds", "per"),
    Action.PAUSE: ("subject",),
    Action.WEBHOOK: ("url",),
}
# RFC 3986 3: no user information, which would be a secret, and no fragment, which nobody is sent.
_URL = re.compile(
    r"(?=.{1,1000}\Z)https?://([a-z0-9_]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:[0-9]{1,5})?"
    r"([/?][!$%&'()*+,./0-9:;=?@A-Z_a-z~-]*)?"
)
# Fields that say where a message comes from and what it holds are not a rule's to write.
_PROTECTED = re.compile(
    r"(?i)(from|sender|to|cc|bcc|reply-to|date|subject|message-id|in-reply-to|references|received|return-path"
    r"|delivered-to|dkim-signature|authentication-results|received-spf|mime-version|arc-.*|content-.*|resent-.*)"
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in the rules. line 0: it concerns the file as a whole."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


class PolicyError(Exception):
    """The rules cannot be used; problems holds every mistake, file by file, in order of lines."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


def compile_rules(
    sources: Sequence[tuple[str, str]],
    limits: Mapping[str, int] = DEFAULT_LIMITS,
    services: Collection[str] = (),
) -> RuleSet:
    """Return the rule set of (path, text) pairs of TOML, in their order; raises PolicyError.

    limits: the figures that conditions call limit_…, all of facts.LIMITS. services: those of
    facts.SERVICES that are configured; rules that need another are off.
    """
    rules: list[Rule] = []
    problems: list[Problem] = []
    places: dict[str, str] = {}
    files = [_File(path, text) for path, text in sources]
    lists: dict[str, ListDeclaration] = {}
    for reader in files:
        for declared, line in reader.lists():
            if declared.name in lists:
                reader.problem(line, f"the list {declared.name} is there at {lists[declared.name].place}")
            lists.setdefault(declared.name, declared)
    derivations = plain.Derivations(limits)
    for reader in files:
        reader.known_lists, reader.derivations = lists, derivations
        reader.services = services
        for rule, line in reader.rules():
            if rule.name in places:
                reader.problem(line, f"the name {rule.name} is taken by the rule at {places[rule.name]}")
            places.setdefault(rule.name, rule.place)
            rules.append(rule)
        problems += sorted(reader.problems, key=lambda problem: problem.line)
    if len(rules) > MAX_RULES:
        problems.append(Problem(sources[-1][0], 0, f"there are over {MAX_RULES} rules in all files"))
    if problems:
        raise PolicyError(tuple(problems))
    derived = derivations.by_name()
    asked = frozenset(name for name, one in derived.items() if _is_asked_ahead(one, lists))
    ahead = asked | {fact.name for fact in FACTS.values() if fact.ahead}
    stages = {stage: _index(rules, stage, ahead) for stage in STAGES}
    by_stage = {stage: index for stage, index in stages.items() if index.rules}
    return RuleSet(tuple(rules), by_stage, derived, lists, asked)


def _is_asked_ahead(derived: Derived, lists: Mapping[str, ListDeclaration]) -> bool:
    return derived.function is Function.IN_LIST and lists[derived.argument].source is ListSource.DNS


class _File:
    """One source; problems grows as its rules are read."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text.replace("\r\n", "\n")
        self.problems: list[Problem] = []
        self.positions = Positions()
        self.known_lists: Mapping[str, ListDeclaration] = {}
        self.derivations = plain.Derivations()
        self.services: Collection[str] = ()
        self._read: dict[str, Any] | None = None

    def problem(self, line: int, message: str) -> None:
        self.problems.append(Problem(self.path, line, message))

    def rules(self) -> Iterator[tuple[Rule, int]]:
        for number, table in enumerate(self._tables("rule")):
            reading = _Reading(self, number, table)
            rule = reading.rule()
            if rule is not None:
                yield rule, reading.line("name")

    def lists(self) -> Iterator[tuple[ListDeclaration, int]]:
        for number, table in enumerate(self._tables("list")):
            declared = read_list(table, path=self.path, line=partial(self._line, number), fault=self.problem)
            if declared is not None:
                yield declared, self._line(number, "name")

    def _line(self, number: int, key: str) -> int:
        lines = self.positions.keys
        return lines.get(("list", number, key), lines.get(("list", number), 0))

    def _tables(self, kind: str) -> list[Mapping[str, Any]]:
        tables = self._whole().get(kind, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.problem(self.positions.keys.get((kind,), 0), f"{kind}s are written as [[{kind}]]")
            return []
        return tables

    def _whole(self) -> dict[str, Any]:
        if self._read is None:
            self._read = self._document()
            for key in self._read:
                if key not in {"rule", "list"}:
                    line = self.positions.keys.get((key,), 0)
                    self.problem(line, f"{key} is unknown: write [[rule]] or [[list]]")
        return self._read

    def _document(self) -> dict[str, Any]:
        if len(self.text) > MAX_FILE_OCTETS:
            self.problem(0, f"the file is over {MAX_FILE_OCTETS} characters")
            return {}
        try:
            document = tomllib.loads(self.text)
            self.positions = positions(self.text)
            return document
        except tomllib.TOMLDecodeError as error:
            found = re.search(r" \(at line (\d+), column \d+\)$", str(error))
            line = int(found[1]) if found else self.text.count("\n") + 1
            self.problem(line, f"this is not TOML: {str(error).partition(' (at ')[0]}")
        except RecursionError:
            self.problem(0, "values are nested too deeply")
        return {}


@dataclass(slots=True)
class _Reading:
    """One [[rule]] table on its way to a rule."""

    file: _File
    number: int
    table: Mapping[str, Any]
    faulty: set[str] = field(default_factory=set)

    def line(self, key: str) -> int:
        lines = self.file.positions.keys
        return lines.get(("rule", self.number, key), lines.get(("rule", self.number), 0))

    def fault(self, key: str, message: str, line: int | None = None) -> None:
        self.faulty.add(key)
        self.file.problem(self.line(key) if line is None else line, message)

    def rule(self) -> Rule | None:
        self._keys()
        name, stages, action = self._name(), self._stages(), self._action()
        tree = self._condition(stages)
        if action is not None:
            self._suits(action, stages)
        reply = self._reply(action)
        keyword, header, target = self._keyword(), self._header(), self._target(action)
        on_error = self._on_error(action, stages)
        self._effect(action)
        figures = self._figures(stages)
        if self.faulty or tree is None or action is None:
            return None
        return self._made(
            tree,
            name=name,
            stages=stages,
            action=action,
            code=reply[0],
            enhanced=reply[1],
            text=reply[2],
            keyword=keyword,
            header=header,
            target=target,
            on_error=on_error,
            **figures,
        )

    def _made(self, tree: Expression, *, action: Action, **values: Any) -> Rule | None:
        tree = plain.derive(tree, self.file.derivations)
        text = canonical(tree)
        parts = plain.cut(tree)
        try:
            # The whole is compiled too, so that what the library dislikes is said here and not later.
            library.program(text)
            program = None if parts.rest is None else library.program(canonical(parts.rest))
        except ValueError as error:
            self.fault("when", f"the condition cannot be compiled: {str(error).partition(chr(10))[0]}")
            return None
        return Rule(
            when=self.table["when"].strip(),
            canonical=text,
            action=action,
            place=f"{self.file.path}:{self.line('name')}",
            tests=parts.tests,
            choices=parts.choices,
            program=program,
            facts=plain.names(tree),
            program_facts=plain.names(parts.rest),
            description=self.table.get("description", ""),
            # What is refused for reputation is still asked about: another reason would outweigh it.
            stop=(action in FINAL_ACTIONS and not values["reason"]) or self.table.get("stop", False),
            enabled=self.table.get("enabled", True) and self._is_served(),
            **values,
        )

    def _is_served(self) -> bool:
        """Whether what the rule needs is there."""
        needs, services = self.table.get("needs", ""), self.file.services
        if needs == "scanner":
            return not set(SCANNERS).isdisjoint(services)
        return not needs or needs in services

    def _keys(self) -> None:
        for key, value in self.table.items():
            if key not in KEYS:
                near = difflib.get_close_matches(key, list(KEYS), n=1)
                self.fault(key, f"{key} is unknown" + (f": did you mean {near[0]}?" if near else ""))
            elif type(value) is not KEYS[key][0] and not (key == "stage" and isinstance(value, list)):
                wanted = {str: "a text", int: "a whole number", bool: "true or false"}[KEYS[key][0]]
                self.fault(key, f"{key} is {wanted}")
        for key in ("name", "stage", "when", "action"):
            if key not in self.table:
                self.fault(key, f"the rule lacks {key}")

    def _text(self, key: str) -> str:
        """The value of a text key; '' where it is absent or faulty."""
        return "" if key in self.faulty else self.table.get(key, "")

    def _name(self) -> str:
        name = self._text("name")
        if "name" not in self.faulty and not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", name):
            self.fault("name", f"{name!r} is no name: lower-case letters, digits and hyphens, 64 at most")
        return name

    def _stages(self) -> tuple[str, ...]:
        if "stage" in self.faulty:
            return ()
        given = self.table["stage"]
        stages = given if isinstance(given, list) else [given]
        if not stages or len(set(map(str, stages))) != len(stages):
            self.fault("stage", "stage names one or more stages, each once")
        for stage in stages:
            if stage not in STAGES:
                near = difflib.get_close_matches(str(stage), list(STAGES), n=1)
                hint = f": did you mean {near[0]}?" if near else f": there are {', '.join(STAGES)}"
                self.fault("stage", f"there is no stage {stage}{hint}")
        return () if "stage" in self.faulty else tuple(stages)

    def _action(self) -> Action | None:
        word = self._text("action")
        if word in {action.value for action in Action}:
            return Action(word)
        if "action" not in self.faulty:
            names = [action.value for action in Action]
            near = difflib.get_close_matches(word, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            self.fault("action", f"there is no action {word}: {hint}")
        return None

    def _condition(self, stages: tuple[str, ...]) -> Expression | None:
        text = self._text("when")
        if "when" in self.faulty:
            return None
        try:
            tree = parse(text)
        except ExpressionError as error:
            self._when_fault(text, error.message, error.at)
            return None
        for fault in check(tree, stages, self.file.known_lists):
            self._when_fault(text, fault.message, fault.at)
        return tree

    def _when_fault(self, text: str, message: str, at: int) -> None:
        first = self.file.positions.texts.get(("rule", self.number, "when"), self.line("when"))
        line = first + text.count("\n", 0, at)
        column = at - (text.rfind("\n", 0, at) + 1) + 1
        self.fault("when", f"when, character {column}: {message}", line)

    def _suits(self, action: Action, stages: tuple[str, ...]) -> None:
        for stage in stages:
            if stage not in ACTION_STAGES[action]:
                able = ", ".join(ACTION_STAGES[action])
                self.fault("action", f"{action.value} is not possible at stage {stage}, only at {able}")
        for key, actions in _ONLY.items():
            if key in self.table and action not in actions:
                words = " and ".join(sorted(item.value for item in actions))
                self.fault(key, f"{key} belongs to {words}, not to {action.value}")
        for key in _NEEDED.get(action, ()):
            if key not in self.table:
                self.fault("action", f"{action.value} needs {key}")

    def _reply(self, action: Action | None) -> tuple[int, str, str]:
        if action not in _REFUSALS:
            return 250, "2.0.0", ""
        code, enhanced, text = _REFUSALS[action]
        code = self.table.get("code", code)
        enhanced = self.table.get("enhanced", enhanced)
        text = self.table.get("text", text)
        kind = 4 if action in {Action.DEFER, Action.LIMIT, Action.GREYLIST} else 5
        # RFC 5321 4.2.1: the second digit is 0 to 5. 421 closes the session, which rules do not.
        if "code" not in self.faulty and (code // 100 != kind or code % 100 > 59 or code == 421):
            self.fault("code", f"{code} is no reply code for {action.value}: {kind}00 to {kind}59")
        if "enhanced" not in self.faulty and not re.fullmatch(rf"{kind}\.\d{{1,3}}\.\d{{1,3}}", enhanced):
            self.fault("enhanced", f"{enhanced!r} is no enhanced status code for {action.value}: {kind}.x.y")
        if "text" not in self.faulty and not (
            0 < len(text) <= TEXT_CHARACTERS and text.isascii() and text.isprintable()
        ):
            self.fault("text", f"text is 1 to {TEXT_CHARACTERS} printable ASCII characters")
        return code, enhanced, text

    def _keyword(self) -> str:
        keyword = self._text("keyword")
        # RFC 9051 9: flag-keyword is an atom, or begins with '$'; no backslash, which is a system flag's.
        if "keyword" in self.table and not re.fullmatch(r"[A-Za-z0-9$_.:+-]{1,64}", keyword):
            self.fault("keyword", f"{keyword!r} is no IMAP keyword")
        return keyword

    def _header(self) -> tuple[str, str] | None:
        if "header" not in self.table or "header" in self.faulty:
            return None
        name, colon, value = self.table["header"].partition(":")
        value = value.strip()
        # RFC 5322 2.2: a field name is printable ASCII but for the colon.
        if not colon or not re.fullmatch(r"[!-9;-~]{1,64}", name):
            self.fault("header", "header is written 'Name: value'")
        elif _PROTECTED.fullmatch(name):
            self.fault("header", f"the field {name} is not for rules to write")
        elif not (0 < len(value) <= TEXT_CHARACTERS and value.isascii() and value.isprintable()):
            self.fault("header", f"the value is 1 to {TEXT_CHARACTERS} printable ASCII characters")
        return name, value

    def _target(self, action: Action | None) -> str:
        target = self._text("target")
        if action in _TARGETED and "target" not in self.faulty:
            label = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
            plain_address = rf"[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{label}(\.{label})*"
            if not re.fullmatch(plain_address, target) or len(target) > 254:
                self.fault("target", f"{action.value} needs target, a mail address; {target!r} is none")
        return target

    def _on_error(self, action: Action | None, stages: tuple[str, ...]) -> OnError:
        word = self._text("on_error")
        answerable = all(stage in ACTION_STAGES[Action.DEFER] for stage in stages)
        if word == OnError.DEFER.value and not answerable:
            self.fault("on_error", "defer is not possible at a stage without a client to answer")
        if word in {choice.value for choice in OnError}:
            return OnError(word)
        if "on_error" in self.table and "on_error" not in self.faulty:
            self.fault("on_error", f"there is no {word}: there are skip, defer")
        lenient = action in _LENIENT or not answerable
        return OnError.SKIP if lenient else OnError.DEFER

    def _figures(self, stages: tuple[str, ...]) -> dict[str, Any]:
        """The keys of priority, limit, pause and quarantine."""
        self._within("priority", -9, 9)
        self._within("limit", 1, 10_000_000)
        self._within("period_seconds", 1, 86_400)
        self._one_of("to", "junk", "held")
        if self._text("to") == "held" and "deliver" in stages:
            self.fault("to", "a message can be held at stage message, not at deliver")
        self._one_of("subject", "identity", "organization")
        self._reason(stages)
        self._one_of("needs", *SERVICES, "scanner")
        if "url" in self.table and "url" not in self.faulty and not _URL.fullmatch(self.table["url"]):
            self.fault("url", "url begins with https:// or http:// and has 1000 characters at most")
        per = self._text("per")
        fact = FACTS.get(per)
        if "per" in self.table and "per" not in self.faulty:
            if fact is None or fact.kind is not Kind.STRING:
                near = difflib.get_close_matches(per, [name for name in FACTS if _is_text(name)], n=1)
                self.fault("per", f"there is no text {per}" + (f": did you mean {near[0]}?" if near else ""))
            elif any(stage not in fact.stages for stage in stages):
                self.fault("per", f"{per} exists at {', '.join(fact.stages)} only")
        return {
            "to": self._text("to") or "junk",
            "priority": self.table.get("priority", 0),
            "limit": self.table.get("limit", 0),
            "period_seconds": self.table.get("period_seconds", 0),
            "per": per,
            "pause": self._text("subject"),
            "reason": self._text("reason"),
            "url": self._text("url"),
            "content": self.table.get("content", False),
            "needs": self._text("needs"),
        }

    def _reason(self, stages: tuple[str, ...]) -> None:
        self._one_of("reason", "reputation")
        if self._text("reason") and not set(stages) <= REASONED:
            words = " and ".join(sorted(REASONED))
            self.fault("reason", f"reason is possible at {words}, where it is known whose mail it is")

    def _within(self, key: str, low: int, high: int) -> None:
        if key in self.table and key not in self.faulty and not low <= self.table[key] <= high:
            self.fault(key, f"{key} is {low} to {high}")

    def _one_of(self, key: str, *words: str) -> None:
        if key in self.table and key not in self.faulty and self.table[key] not in words:
            self.fault(key, f"{key} is one of {', '.join(words)}")

    def _effect(self, action: Action | None) -> None:
        if action is Action.TAG and not {"keyword", "header"} & self.table.keys():
            self.fault("action", "tag needs keyword, header or both")


def _is_text(name: str) -> bool:
    return FACTS[name].kind is Kind.STRING


def _index(rules: Sequence[Rule], stage: str, ahead: frozenset[str]) -> StageIndex:
    chosen = tuple(rule for rule in rules if rule.enabled and stage in rule.stages)
    spread: dict[str, set[object]] = {}
    for rule in chosen:
        for test in _lookups(rule):
            spread.setdefault(test.fact, set()).update(test.values)
    always: list[int] = []
    by_fact: dict[str, dict[object, tuple[int, ...]]] = {}
    for position, rule in enumerate(chosen):
        lookups = _lookups(rule)
        if not lookups:
            always.append(position)
            continue
        # What most mail does not have parts best; then the fact with the most values among the rules.
        test = max(lookups, key=lambda test: (not _is_usual(test), len(spread[test.fact]), test.fact))
        table = by_fact.setdefault(test.fact, {})
        for value in test.values:
            table[value] = (*table.get(value, ()), position)
    wanted = frozenset(name for rule in chosen for name in rule.facts if name in ahead)
    return StageIndex(chosen, tuple(always), by_fact, wanted)


def _is_usual(test: PlainTest) -> bool:
    return not USUAL.get(test.fact, _NOTHING).isdisjoint(test.values)


def _lookups(rule: Rule) -> list[PlainTest]:
    return [test for test in rule.tests if test.kind is TestKind.ANY_OF]
