"""`mailagents queue …`: what waits and why, and hold, release, retry, cancel with a way back.

Owns the asking before many deliveries are changed at once. What is done is the server's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli import output
from server.cli.options import EXIT_REFUSED, ConfigOption, JsonOption, failure, perform, show

app = typer.Typer(no_args_is_help=True, help="The delivery queue.")
IdentifierArgument = Annotated[str, typer.Argument(help="Id of a delivery or a message.")]
DomainOption = Annotated[str, typer.Option(help="All deliveries to this domain.")]
OrganizationOption = Annotated[str, typer.Option(help="All of this organization, by name or id.")]
AllOption = Annotated[bool, typer.Option("--all", help="All there are.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
PreviewOption = Annotated[bool, typer.Option("--preview", help="Only say what would be changed.")]


@app.command("list")
def queue_list(
    state: Annotated[str, typer.Option(help="Only deliveries in this state.")] = "",
    domain: Annotated[str, typer.Option(help="Only deliveries to this domain.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what waits in the queue and why."""
    arguments = {"state": state, "domain": domain, "limit": limit}
    result = perform(config, "queue-list", arguments, as_json=as_json)
    show(result, as_json=as_json, how=output.queue)


@app.command("show")
def queue_show(identifier: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show one delivery, or all of a message, with each attempt in the remote's words."""
    result = perform(config, "queue-show", {"id": identifier}, as_json=as_json)
    show(result, as_json=as_json, how=output.queue_story)


@app.command("stats")
def queue_stats(
    limit: Annotated[int, typer.Option(min=1, max=100, help="Domains that are shown.")] = 20,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how much waits in which state, and for which domains most."""
    result = perform(config, "queue-stats", {"limit": limit}, as_json=as_json)
    show(result, as_json=as_json, how=output.queue_stats)


VERBS = {
    "hold": "Keep what waits from being tried until it is released.",
    "release": "Let what is held go.",
    "retry": "Try deferred deliveries now instead of at their time.",
    "cancel": "End what waits or is held; the sender is told nothing.",
}


def _command(verb: str) -> Callable[..., None]:
    def command(
        identifier: IdentifierArgument = "",
        domain: DomainOption = "",
        organization: OrganizationOption = "",
        everything: AllOption = False,
        yes: YesOption = False,
        preview: PreviewOption = False,
        config: ConfigOption = None,
        as_json: JsonOption = False,
    ) -> None:
        chosen = {
            "id": identifier,
            "domain": domain,
            "organization": organization,
            "everything": everything,
        }
        _act(verb, chosen, yes=yes, preview=preview, config=config, as_json=as_json)

    return command


for _verb, _help in VERBS.items():
    app.command(_verb, help=_help)(_command(_verb))


@app.command("doubts")
def doubts(
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what may have been sent and waits for a verdict."""
    result = perform(config, "queue-doubts", {"limit": limit}, as_json=as_json)
    show(result, as_json=as_json, how=output.queue_doubts)


@app.command("verdict")
def verdict(
    delivery: Annotated[str, typer.Argument(help="Id of a delivery in doubt.")],
    said: Annotated[str, typer.Argument(metavar="sent|not-sent", help="What is true of it.")],
    reason: Annotated[str, typer.Option(help="How you know; kept with the event.")] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether a delivery in doubt was sent: sent ends it, not-sent tries it again at once."""
    arguments = {"id": delivery, "verdict": said, "reason": reason}
    result = perform(config, "queue-verdict", arguments, as_json=as_json)
    show(result, as_json=as_json, how=output.facts)


@app.command("reroute")
def reroute(
    hop: Annotated[str, typer.Argument(help="Next hop, as in delivery.default_route; '' takes it back.")],
    identifier: Annotated[str, typer.Option("--id", help="Of a delivery or a message.")] = "",
    domain: DomainOption = "",
    organization: OrganizationOption = "",
    everything: AllOption = False,
    reason: Annotated[str, typer.Option(help="Kept with the route.")] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a delivery, a message, a domain's, an organization's or all mail by another next hop."""
    arguments = {
        "hop": hop,
        "id": identifier,
        "domain": domain,
        "organization": organization,
        "everything": everything,
        "reason": reason,
    }
    result = perform(config, "queue-reroute", arguments, as_json=as_json)
    show(result, as_json=as_json, how=output.facts)


@app.command("routes")
def routes(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the routes that were set at run time, by people and by refusals for our reputation."""
    result = perform(config, "queue-routes", {}, as_json=as_json)
    show(result, as_json=as_json, how=output.queue_routes)


@app.command("undo")
def undo(action: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Take an action back, by the id that it printed, as far as no delivery has gone on since."""
    result = perform(config, "queue-undo", {"action": action}, as_json=as_json)
    show(result, as_json=as_json, how=output.facts)


@app.command("actions")
def actions(
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the last actions on the queue."""
    result = perform(config, "queue-actions", {"limit": limit}, as_json=as_json)
    show(result, as_json=as_json, how=output.queue_actions)


def _act(
    verb: str, chosen: dict[str, Any], *, yes: bool, preview: bool, config: Path | None, as_json: bool
) -> None:
    arguments = {"verb": verb, **chosen}
    if preview or not (yes or chosen["id"]):
        found = perform(config, "queue-act", {**arguments, "preview": True}, as_json=as_json)
        if preview:
            show(found, as_json=as_json, how=output.queue_preview)
            return
        if as_json:
            raise failure("not_confirmed", "say --yes, or --preview", EXIT_REFUSED, as_json=True)
        output.queue_preview(found)
        if not found["deliveries"] or not typer.confirm(f"{verb} them?"):
            raise typer.Exit(EXIT_REFUSED)
    result = perform(config, "queue-act", arguments, as_json=as_json)
    show(result, as_json=as_json, how=output.queue_acted)
