"""What an operator asks of policy on a running server: replay, pauses, lists.

Owns these acts as operations over the open store; arguments and results are
JSON-able. Reads no rule file: the command line sends the rules that are to be tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from policies import lists
from policies.compile import compile_rules
from policies.rules import ListKind
from server.arguments import WrongArguments
from server.mail.address import AddressSyntax, normalise
from server.trial import DIFFERENCES_LIMIT, Book, Replay
from storage import accounts, audit, events, ids, sending
from storage.errors import Missing
from storage.records import Event

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.clock import Clock
    from storage.store import Store

CONTEXT_LIMIT = 1000


class Context(Protocol):
    """What an operation works on. actor: who asks, for the audit log."""

    @property
    def store(self) -> Store: ...  # noqa: D102 - as in operations

    @property
    def clock(self) -> Clock: ...  # noqa: D102

    @property
    def actor(self) -> str: ...  # noqa: D102


def make_book(bundle: Mapping[str, Any]) -> Book:
    """Return the rules and lists that were sent: {'rules': [[path, text]], 'lists', 'limits', 'services'}.

    Raises policies.compile.PolicyError.
    """
    sources = [(path, text) for path, text in bundle["rules"]]
    rules = compile_rules(sources, bundle["limits"], bundle.get("services", ()))
    entries = {
        name: lists.read(ListKind(rules.lists[name].kind), lines)[0]
        for name, lines in bundle["lists"].items()
        if name in rules.lists
    }
    return Book(rules, entries)


def policy_context(context: Context, *, recipients: list[str]) -> dict[str, Any]:
    """Return what trying a message needs to know: inboxes of addresses, and the database's lists."""

    def unit(connection: Connection) -> dict[str, Any]:
        found = {}
        for address in recipients[:CONTEXT_LIMIT]:
            try:
                mailbox = accounts.find_mailbox(connection, address=normalise(address))
            except (AddressSyntax, ValueError):
                continue
            if mailbox is not None:
                found[address] = {"inbox": mailbox.id, "organization": mailbox.organization_id}
        return {"inboxes": found, "lists": sending.list_entries(connection)}

    made: dict[str, Any] = context.store.database.read(unit)
    return made


def policy_replay(
    context: Context, *, before: dict[str, Any], after: dict[str, Any], since: int, limit: int = 100
) -> dict[str, Any]:
    """Try two rule sets on the messages accepted since a time; returns those that fare otherwise."""
    stored = context.store.database.read(sending.list_entries)
    books = [_sent_book(one, stored) for one in (before, after)]
    replay = Replay(context.store, *books)
    differences = list(replay.run(since=since, limit=min(limit, DIFFERENCES_LIMIT)))
    return {
        "tried": replay.tried,
        "partly": replay.partly,
        "unscanned": replay.unscanned,
        "not_known": replay.not_known,
        "changed": replay.changed,
        "differences": differences,
    }


def _sent_book(bundle: Mapping[str, Any], stored: Mapping[str, list[str]]) -> Book:
    try:
        return make_book({**bundle, "lists": {**stored, **bundle["lists"]}})
    except (KeyError, TypeError, AttributeError) as error:
        raise WrongArguments(
            "a rule set is {rules: [[path, text]], lists: {name: [line]}, limits}"
        ) from error
    except ValueError as error:
        raise WrongArguments(str(error)) from error


def policy_pauses(context: Context) -> dict[str, Any]:
    """Return who may not send."""
    return {"pauses": [asdict(one) for one in context.store.database.read(sending.pauses)]}


def policy_resume(context: Context, *, subject: str) -> dict[str, Any]:
    """Let a paused login or organization send again; its bounces and complaints count from now on."""
    now = context.clock.now()

    def unit(connection: Connection) -> str:
        lifted = sending.lift(connection, subject=subject, at=now)
        if lifted is None:
            raise Missing(f"{subject}: nothing of this id is paused")
        owner = lifted.organization_id
        kind = "organization.resumed" if subject == owner else "login.resumed"
        data = {"subject": subject, "rule": lifted.rule, "actor": context.actor}
        events.append(connection, [Event(ids.new("evt"), kind, now, owner, data=data)])
        note(connection, context, owner=owner, action="policy.resume", thing=subject)
        return owner

    return {"subject": subject, "organization": context.store.database.write(unit)}


def policy_lists(context: Context) -> dict[str, Any]:
    """Return the lists that the database keeps."""
    return {"lists": context.store.database.read(sending.list_entries)}


def policy_list_add(context: Context, *, name: str, entries: list[str]) -> dict[str, Any]:
    """Put entries into a list of the database."""
    wanted = [entry.strip().lower() for entry in entries if entry.strip()]

    def unit(connection: Connection) -> None:
        sending.add_entries(connection, name=name, entries=wanted, at=context.clock.now())
        note(connection, context, owner=None, action="policy.list_add", thing=name, entries=wanted)

    context.store.database.write(unit)
    return {"list": name, "added": len(wanted)}


def policy_list_remove(context: Context, *, name: str, entries: list[str]) -> dict[str, Any]:
    """Take entries out of a list of the database."""
    wanted = [entry.strip().lower() for entry in entries]

    def unit(connection: Connection) -> int:
        removed = sending.remove_entries(connection, name=name, entries=wanted)
        note(connection, context, owner=None, action="policy.list_remove", thing=name, entries=wanted)
        return removed

    return {"list": name, "removed": context.store.database.write(unit)}


def note(
    connection: Connection, context: Context, *, owner: str | None, action: str, thing: str, **detail: object
) -> None:
    """Write an act of the command line into the audit log, in the act's own unit."""
    audit.append(
        connection,
        organization_id=owner,
        actor=context.actor,
        action=action,
        object=thing,
        detail=json.dumps(detail, sort_keys=True),
        at=context.clock.now(),
    )


ACTS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "policy-context": policy_context,
    "policy-replay": policy_replay,
    "policy-pauses": policy_pauses,
    "policy-resume": policy_resume,
    "policy-lists": policy_lists,
    "policy-list-add": policy_list_add,
    "policy-list-remove": policy_list_remove,
}
