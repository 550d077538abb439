"""`mailagents suppression …`: the addresses that mail may not go to.

Owns the arguments alone. What is done is the server's.
"""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli import output
from server.cli.options import ConfigOption, JsonOption, perform, show

app = typer.Typer(no_args_is_help=True, help="Addresses that mail may not go to.")
OrganizationOption = Annotated[str, typer.Option(help="By name or id; needed where there are several.")]
ReasonOption = Annotated[str, typer.Option(help="Why, for the audit log and whoever looks later.")]
SenderOption = Annotated[str, typer.Option(help="Hold back mail of this sender alone.")]


@app.command("list")
def suppression_list(
    organization: OrganizationOption = "",
    address: Annotated[str, typer.Option(help="Only what holds mail to this address back.")] = "",
    cause: Annotated[
        str, typer.Option(help="hard_bounce, soft_bounce, complaint, manual, unsubscribe.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who is suppressed and why."""
    arguments = {"organization": organization, "address": address, "cause": cause, "limit": limit}
    result = perform(config, "suppression-list", arguments, as_json=as_json)
    show(result, as_json=as_json, how=output.suppressions)


@app.command("add")
def suppression_add(
    address: str,
    reason: ReasonOption = "",
    organization: OrganizationOption = "",
    sender: SenderOption = "",
    appliance: Annotated[bool, typer.Option("--appliance", help="For every organization.")] = False,
    days: Annotated[int, typer.Option(min=0, max=3660, help="How long; 0: for ever.")] = 0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let no more mail go to an address; says which transmissions had begun before."""
    scope = "appliance" if appliance else "sender" if sender else "organization"
    arguments = {
        "address": address,
        "reason": reason,
        "organization": organization,
        "sender": sender,
        "scope": scope,
        "days": days,
    }
    result = perform(config, "suppression-add", arguments, as_json=as_json)
    show(result, as_json=as_json, how=output.suppressed)


@app.command("remove")
def suppression_remove(
    address: str,
    reason: ReasonOption = "",
    organization: OrganizationOption = "",
    sender: SenderOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let mail go to an address again."""
    arguments = {"address": address, "reason": reason, "organization": organization, "sender": sender}
    result = perform(config, "suppression-remove", arguments, as_json=as_json)
    show(result, as_json=as_json, how=output.unsuppressed)
