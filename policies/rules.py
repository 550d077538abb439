"""Rules, rule sets and rulings: the frozen shapes that compile makes and engine returns.

Owns the actions and where each may be used. Does nothing: no parsing, no judging.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Protocol


class Action(str, Enum):
    """What a rule does when its condition holds."""

    ACCEPT = "accept"
    REJECT = "reject"
    DEFER = "defer"
    DISCARD = "discard"
    QUARANTINE = "quarantine"
    HOLD = "hold"
    TAG = "tag"
    REDIRECT = "redirect"
    COPY = "copy"
    FORWARD = "forward"
    PRIORITY = "priority"
    LIMIT = "limit"
    GREYLIST = "greylist"
    REQUIRE_TLS = "require_tls"
    ASK_IN_DOUBT = "ask_in_doubt"
    WEBHOOK = "webhook"
    PAUSE = "pause"
    STOP = "stop"


class OnError(str, Enum):
    """What becomes of a rule whose condition cannot be evaluated."""

    SKIP = "skip"
    DEFER = "defer"


FINAL_ACTIONS = frozenset(
    {Action.ACCEPT, Action.REJECT, Action.DEFER, Action.DISCARD, Action.PAUSE, Action.STOP}
)

_DOORS = ("connect", "helo", "mail", "rcpt", "message", "submit", "send")
_EVERYWHERE = (*_DOORS[:5], "deliver", "submit", "send", "bounce")
_MESSAGES = ("message", "submit", "send")

ACTION_STAGES: Mapping[Action, tuple[str, ...]] = MappingProxyType(
    {
        Action.ACCEPT: _EVERYWHERE,
        Action.REJECT: (*_DOORS, "bounce"),
        Action.DEFER: _DOORS,
        Action.DISCARD: ("message", "deliver", "submit", "send"),
        Action.QUARANTINE: ("message", "deliver"),
        Action.HOLD: _MESSAGES,
        Action.TAG: ("message", "deliver", "submit", "send"),
        Action.REDIRECT: _MESSAGES,
        Action.COPY: _MESSAGES,
        Action.FORWARD: _MESSAGES,
        Action.PRIORITY: _MESSAGES,
        Action.LIMIT: _DOORS,
        Action.GREYLIST: ("rcpt", "message"),
        Action.ASK_IN_DOUBT: _MESSAGES,
        Action.REQUIRE_TLS: ("mail", "rcpt", "message", "submit", "send"),
        Action.WEBHOOK: _MESSAGES,
        Action.PAUSE: ("submit", "send"),
        Action.STOP: _EVERYWHERE,
    }
)

ACTION_MEANINGS: Mapping[Action, str] = MappingProxyType(
    {
        Action.ACCEPT: "No later rule is asked at this stage. What earlier rules did stays.",
        Action.REJECT: "The command or message is refused for good with code, enhanced and text. At bounce "
        'no notice is made. With `reason = "reputation"` the sender is refused all the same, and the message '
        "is kept for some days in the folder Rejects of its inboxes (`[rejects]`), if no later rule "
        "refuses, discards or holds it for another reason. Mail for postmaster or abuse goes to Junk "
        "instead.",
        Action.DEFER: "It is refused for now with code, enhanced and text: the client will try again.",
        Action.DISCARD: "The message is taken and thrown away; its timeline says so. At deliver this one "
        "inbox does not get it.",
        Action.QUARANTINE: "The message is taken and placed into Junk of its local recipients, or, with "
        '`to = "held"`, kept in the queue as by hold.',
        Action.HOLD: "The message is taken and kept in the queue until a person releases or cancels it "
        "(`mailagents queue release`). Mail on its way from one inbox of this server to another is held at "
        "submit and send alone, so that what was released is not held again.",
        Action.TAG: "The message gets the IMAP keyword (a label, in the API), the header field, or both.",
        Action.REDIRECT: "The message goes to target instead of its recipients. The first such rule wins.",
        Action.COPY: "The inbox target, of the same organization, gets the message too. The sender never "
        "hears of it.",
        Action.FORWARD: "The message goes on to target too, by the queue, with its reverse-path. The sender "
        "never hears of it.",
        Action.PRIORITY: "What the queue has to deliver of the message goes at this priority. The last such "
        "rule wins.",
        Action.LIMIT: "The rule's condition may hold `limit` times in `period_seconds` for each value of the "
        "fact `per`; beyond that the command or message is refused as by defer. The count outlives a "
        "restart; several processes on one PostgreSQL hear of each other's within half a minute.",
        Action.GREYLIST: "Who is new is asked to come back (RFC 6647): client, sender and recipient that are "
        "seen for the first time are refused as by defer. A retry after `greylist.delay_seconds` and within "
        "`greylist.window_seconds` is let through, and from then on whatever the client sends for the "
        "sender's domain, for `greylist.keep_days`. A client is its network or, at message, the domain "
        "that SPF passes for.",
        Action.ASK_IN_DOUBT: "Where it is in doubt whether another server has the message (the "
        "connection broke after all of it was sent), it is not sent again before a person has said what is "
        'true, as with delivery.in_doubt = "ask".',
        Action.REQUIRE_TLS: "An SMTP client without TLS is refused (530 5.7.0 unless given), so that it "
        "comes back under TLS. At message, submit and send it binds the way onward too: what the queue has "
        "to deliver of the message goes only under TLS, to a host whose certificate is valid for its name, "
        "and bounces with 5.7.30 where there is none.",
        Action.WEBHOOK: "Once the message is taken, `url` is told of it by a signed POST: ids, envelope, "
        "verdicts and decision, with `content = true` the message as well. It is tried again for "
        "`webhooks.expiry_hours`; the message never waits for it.",
        Action.PAUSE: "The message is refused as by reject, and the login or its organization may send "
        "nothing more until an operator lifts it (`mailagents policy resume`); an event says so.",
        Action.STOP: "No later rule is asked at this stage, and nothing else is done.",
    }
)


class TestKind(str, Enum):
    """The tests that are decided without CEL, since a dictionary can answer them."""

    __test__ = False  # no test case, whatever its name begins with

    ANY_OF = "any_of"
    NONE_OF = "none_of"
    HAS = "has"
    LACKS = "lacks"


@dataclass(frozen=True, slots=True)
class PlainTest:
    """A fact is one of values or none of them; or a list fact has or lacks the one value."""

    fact: str
    kind: TestKind
    values: frozenset[object]


class Program(Protocol):
    """A compiled CEL expression."""

    def execute(self, context: Any) -> object:
        """Return the expression's value over a context."""
        ...


class Function(str, Enum):
    """The functions that are answered beside CEL, each for a fact and a literal."""

    IN_LIST = "in_list"
    MATCHES = "matches"


class Pattern(Protocol):
    """A compiled pattern."""

    def search(self, text: str, /) -> object:
        """Return what is found anywhere in a text, None if nothing is."""
        ...


@dataclass(frozen=True, slots=True)
class Derived:
    """`fact.in_list("name")` or `fact.matches("pattern")`: a bool under a name of its own.

    argument: the list's name or the pattern; pattern: compiled, for matches alone.
    """

    name: str
    function: Function
    fact: str
    argument: str
    pattern: Pattern | None = None

    @property
    def key(self) -> str:
        """Under what an answer found beforehand stands among the facts, whatever the rule set."""
        return f"{self.function.value} {self.argument} {self.fact}"


class ListKind(str, Enum):
    """What a list holds."""

    DOMAINS = "domains"
    NETWORKS = "networks"
    ADDRESSES = "addresses"
    TEXTS = "texts"


class ListSource(str, Enum):
    """Where a list's entries come from."""

    VALUES = "values"
    FILE = "file"
    DATABASE = "database"
    DNS = "dns"


@dataclass(frozen=True, slots=True)
class ListDeclaration:
    """A [[list]]: what it holds and where from. origin: path or DNS zone; values: for VALUES alone."""

    name: str
    kind: ListKind
    source: ListSource
    origin: str
    values: tuple[str, ...]
    place: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. Its condition holds when all plain tests do, one of each choice, and the program, if any.

    when: the condition as written; canonical: the same, fully in parentheses, as CEL gets it.
    facts: names that the condition asks for; program_facts: those that the program does.
    place: 'file:line'.
    """

    name: str
    stages: tuple[str, ...]
    when: str
    canonical: str
    action: Action
    place: str
    tests: tuple[PlainTest, ...]
    choices: tuple[tuple[PlainTest, ...], ...]
    program: Program | None
    facts: tuple[str, ...]
    program_facts: tuple[str, ...]
    description: str = ""
    code: int = 250
    enhanced: str = "2.0.0"
    text: str = ""
    keyword: str = ""
    header: tuple[str, str] | None = None
    target: str = ""
    to: str = "junk"
    priority: int = 0
    limit: int = 0
    period_seconds: int = 0
    per: str = ""
    pause: str = ""
    reason: str = ""
    url: str = ""
    content: bool = False
    needs: str = ""
    stop: bool = False
    enabled: bool = True
    on_error: OnError = OnError.SKIP


@dataclass(frozen=True, slots=True)
class StageIndex:
    """The enabled rules of one stage in order, and which of them a fact's value can make true.

    always: positions of rules without a plain test. by_fact: fact to its values to positions;
    each rule stands in exactly one of the two. ahead: what must be asked of the DNS or the
    database before the stage is judged.
    """

    rules: tuple[Rule, ...]
    always: tuple[int, ...]
    by_fact: Mapping[str, Mapping[object, tuple[int, ...]]]
    ahead: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules in order, disabled ones too; by_stage has the stages at which enabled rules stand.

    asked_ahead: the derived bools that the DNS answers.
    """

    rules: tuple[Rule, ...] = ()
    by_stage: Mapping[str, StageIndex] = field(default_factory=dict)
    derived: Mapping[str, Derived] = field(default_factory=dict)
    lists: Mapping[str, ListDeclaration] = field(default_factory=dict)
    asked_ahead: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Step:
    """One rule that was asked and mattered: it matched, or could not be evaluated."""

    rule: str
    stage: str
    matched: bool
    effect: str
    place: str


@dataclass(frozen=True, slots=True)
class Webhook:
    """A call that a rule wants made. content: whether the message goes with it."""

    rule: str
    url: str
    content: bool = False


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a stage's rules say, and what goes with it.

    action: 'accept', 'reject', 'defer', 'discard', 'hold' or 'quarantine'. pause: 'identity' or
    'organization', which may send no more; '' for none. priority: None where no rule set it.
    reason: 'reputation' where nothing else spoke against the message.
    require_tls: the way onward is under TLS. ask_in_doubt: not sent twice without a person's word.
    """

    action: str = "accept"
    code: int = 250
    enhanced: str = "2.0.0"
    text: str = ""
    tags: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    redirect: str | None = None
    copies: tuple[str, ...] = ()
    forwards: tuple[str, ...] = ()
    priority: int | None = None
    pause: str = ""
    reason: str = ""
    require_tls: bool = False
    ask_in_doubt: bool = False
    webhooks: tuple[Webhook, ...] = ()
    trace: tuple[Step, ...] = ()
