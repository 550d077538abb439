"""What an operator asks of the queue: lists, one delivery's story, counts, and acts that can be undone.

Owns these as operations over the open store; arguments and results are JSON-able.
An act is done in short units, so that a million deliveries hold up nobody, and each
is in the audit log with the id that takes it back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from server.arguments import WrongArguments
from server.next_hop import NextHopSyntax, parse_next_hop
from server.policy_acts import Context, note
from storage import accounts, doubt, events, queue_acts, queue_view, rerouting, undoing
from storage.errors import Missing
from storage.queue_acts import ACTS, LIMIT, Selection, Verb

if TYPE_CHECKING:
    from sqlalchemy import Connection

STORY_LIMIT = 1000
REASON_CHARACTERS = 500


def queue_list(context: Context, *, limit: int = 50, state: str = "", domain: str = "") -> dict[str, Any]:
    """Return the oldest deliveries of a state, or of all that are not final, with the queue's counts."""
    rows = context.store.database.read(
        lambda c: queue_view.inspect(c, states=[state] if state else None, domain=domain or None, limit=limit)
    )
    counts = context.store.database.read(queue_view.counts)
    return {"counts": counts, "deliveries": rows}


def queue_show(context: Context, *, id: str) -> dict[str, Any]:
    """Return a delivery, or all of a message, each with what happened to it."""

    def unit(connection: Connection) -> dict[str, Any]:
        message = events.message_facts(connection, message_or_delivery_id=id)
        if message is None:
            raise Missing(f"{id}: no message or delivery has this id")
        owner, message_id = str(message["organization_id"]), str(message["id"])
        rows = queue_view.of_message(connection, organization_id=owner, message_id=message_id)
        steps = events.timeline(connection, organization_id=owner, message_id=message_id)
        chosen = [row for row in rows if id in (row["id"], message_id)]
        return {
            "message": message,
            "deliveries": [
                {
                    **row,
                    "events": [
                        {"at": step.at, "kind": step.kind, "data": dict(step.data)}
                        for step in steps[:STORY_LIMIT]
                        if step.delivery_id == row["id"]
                    ],
                }
                for row in chosen
            ],
        }

    found: dict[str, Any] = context.store.database.read(unit)
    return found


def queue_stats(context: Context, *, limit: int = 20) -> dict[str, Any]:
    """Return counts by state, and by domain those with most that waits."""

    def unit(connection: Connection) -> dict[str, Any]:
        return {
            "counts": queue_view.counts(connection),
            "domains": queue_view.domain_counts(connection, limit=limit),
        }

    found: dict[str, Any] = context.store.database.read(unit)
    return found


def queue_act(
    context: Context,
    *,
    verb: str,
    id: str = "",
    domain: str = "",
    organization: str = "",
    everything: bool = False,
    preview: bool = False,
) -> dict[str, Any]:
    """Hold, release, retry or cancel what is chosen; with `preview` say what that would change.

    The answer's `action` takes it back (queue-undo) until its time is over or a delivery has gone on.
    """
    act, selection = _verb(verb), _selection(context, id, domain, organization, everything=everything)
    if preview:
        now = context.clock.now()
        found = context.store.database.read(
            lambda c: queue_acts.preview(c, selection=selection, verb=act, at=now)
        )
        return {"verb": act.value, **asdict(found)}
    action, number = _begin(context, act, selection)
    changed = number
    while number == LIMIT:
        number = context.store.database.write(partial(_act, context, act, selection, action))
        changed += number
    return {"action": action, "verb": act.value, "changed": changed}


def queue_doubts(context: Context, *, limit: int = 50, organization: str = "") -> dict[str, Any]:
    """Return the deliveries in doubt that wait for a verdict, the oldest first."""
    owner = _owner(context, organization) if organization else None
    found = context.store.database.read(lambda c: doubt.waiting(c, organization_id=owner, limit=limit))
    return {"deliveries": found}


def queue_verdict(
    context: Context, *, id: str, verdict: str, reason: str = "", organization: str = ""
) -> dict[str, Any]:
    """Say of a delivery in doubt whether it was sent; what evidence contradicts is refused.

    organization: whose delivery alone it may be.
    """
    try:
        said = doubt.Verdict(verdict.replace("-", "_"))
    except ValueError:
        raise WrongArguments("the verdict is sent or not-sent") from None
    owner = _owner(context, organization) if organization else None

    def unit(connection: Connection) -> tuple[str, ...]:
        finished = doubt.decide(
            connection,
            delivery_id=id,
            verdict=said,
            actor=context.actor,
            reason=reason[:REASON_CHARACTERS],
            at=context.clock.now(),
            organization_id=owner,
        )
        note(connection, context, owner=owner, action="queue.verdict", thing=id, verdict=said.value)
        return finished

    for message_id in context.store.database.write(unit):
        context.store.message_path(message_id).unlink(missing_ok=True)
    return {"delivery": id, "verdict": said.value}


def queue_reroute(
    context: Context,
    *,
    hop: str,
    id: str = "",
    domain: str = "",
    organization: str = "",
    everything: bool = False,
    reason: str = "",
) -> dict[str, Any]:
    """Send what is chosen by another next hop from now on; hop '' takes that back."""
    scope, subject = _scope(context, id, domain, organization, everything=everything)
    try:
        parsed = parse_next_hop(hop) if hop else None
    except NextHopSyntax as error:
        raise WrongArguments(str(error)) from None
    now = context.clock.now()

    def unit(connection: Connection) -> None:
        if parsed is None:
            rerouting.remove(connection, scope=scope, subject=subject, at=now)
        else:
            said = reason[:REASON_CHARACTERS]
            rerouting.put(connection, rerouting.Rerouted(scope, subject, hop, context.actor, said, now))
        note(connection, context, owner=None, action="queue.reroute", thing=subject or "queue", hop=hop)

    context.store.database.write(unit)
    return {"scope": scope.value, "subject": subject, "hop": hop}


def queue_routes(context: Context) -> dict[str, Any]:
    """Return the routes that were set at run time, the latest first."""
    now = context.clock.now()
    found = context.store.database.read(lambda c: rerouting.routes(c, at=now))
    return {"routes": [{**asdict(one), "scope": one.scope.value} for one in found]}


def _scope(
    context: Context, id: str, domain: str, organization: str, *, everything: bool
) -> tuple[rerouting.Scope, str]:
    given = [name for name in (id, domain, organization, everything) if name]
    if len(given) != 1:
        raise WrongArguments("say one of: an id, a domain, an organization, or everything")
    if id:
        is_one = id.startswith("dlv_")
        if context.store.database.read(lambda c: events.message_facts(c, message_or_delivery_id=id)) is None:
            raise Missing(f"{id}: no message or delivery has this id")
        return (rerouting.Scope.DELIVERY if is_one else rerouting.Scope.MESSAGE), id
    if domain:
        return rerouting.Scope.DOMAIN, domain.lower()
    if organization:
        return rerouting.Scope.ORGANIZATION, _owner(context, organization)
    return rerouting.Scope.ALL, ""


def queue_undo(context: Context, *, action: str, organization: str = "") -> dict[str, Any]:
    """Give the deliveries of an action back what they were, as far as nothing happened to them since.

    organization: whose actions alone may be taken back.
    """
    owner = _owner(context, organization) if organization else None

    def unit(connection: Connection) -> undoing.Undone:
        now = context.clock.now()
        return undoing.undo(connection, action=action, actor=context.actor, at=now, organization_id=owner)

    restored = looked_at = 0
    found = context.store.database.write(unit)
    while found.looked_at:
        restored += len(found.restored)
        looked_at += found.looked_at
        found = context.store.database.write(unit)
    if not looked_at:
        raise Missing(f"{action}: nothing of it can be taken back any more")

    def written(connection: Connection) -> None:
        note(connection, context, owner=owner, action="queue.undo", thing=action, restored=restored)

    context.store.database.write(written)
    return {"action": action, "restored": restored, "gone_on": looked_at - restored}


def queue_actions(context: Context, *, limit: int = 20) -> dict[str, Any]:
    """Return the last acts on the queue, the newest first."""
    return {"actions": context.store.database.read(lambda c: undoing.recent(c, limit=limit))}


def _verb(text: str) -> Verb:
    try:
        return Verb(text)
    except ValueError:
        raise WrongArguments(f"verb is one of {', '.join(one.value for one in Verb)}") from None


def _selection(context: Context, id: str, domain: str, organization: str, *, everything: bool) -> Selection:
    given = [name for name in (id, domain, organization) if name]
    if not given and not everything:
        raise WrongArguments("say which deliveries: an id, a domain, an organization, or everything")
    owner = _owner(context, organization) if organization else None
    return Selection(
        delivery_id=id if id.startswith("dlv_") else None,
        message_id=None if not id or id.startswith("dlv_") else id,
        domain=domain.lower() or None,
        organization_id=owner,
    )


def _owner(context: Context, wanted: str) -> str:
    if context.store.database.read(lambda c: accounts.organization(c, organization_id=wanted)) is not None:
        return wanted
    known = context.store.database.read(lambda c: accounts.organizations(c, limit=1000))
    for one in known:
        if wanted in (one.id, one.name):
            return one.id
    raise Missing(f"{wanted}: there is no such organization")


def _begin(context: Context, verb: Verb, selection: Selection) -> tuple[str, int]:
    """Do the first unit, which records the action too; Missing where there is nothing to do."""

    def unit(connection: Connection) -> tuple[str, int]:
        now = context.clock.now()
        action = undoing.begin(connection, verb=verb, selection=selection, actor=context.actor, at=now)
        changed = _act(context, verb, selection, action, connection)
        if not changed:
            raise Missing("nothing of this waits for it")
        note(
            connection,
            context,
            owner=selection.organization_id,
            action=f"queue.{verb.value}",
            thing=selection.delivery_id or selection.message_id or "queue",
            undo=action,
            **selection.given(),
        )
        return action, changed

    return context.store.database.write(unit)


def _act(context: Context, verb: Verb, selection: Selection, action: str, connection: Connection) -> int:
    acted = ACTS[verb](
        connection, selection=selection, actor=context.actor, at=context.clock.now(), action=action
    )
    undoing.count(connection, action=action, changed=len(acted.changed))
    return len(acted.changed)


QUEUE_OPERATIONS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "queue-list": queue_list,
    "queue-show": queue_show,
    "queue-stats": queue_stats,
    "queue-act": queue_act,
    "queue-doubts": queue_doubts,
    "queue-verdict": queue_verdict,
    "queue-reroute": queue_reroute,
    "queue-routes": queue_routes,
    "queue-undo": queue_undo,
    "queue-actions": queue_actions,
}
