"""The command line: `mailagents serve`, `dev`, and the operator's acts.

Owns arguments, tables and exit codes: 0 done, 1 the act was refused or found a
fault, 2 wrong usage, 3 the store is in use or out of reach, 4 the configuration
is faulty. Acts go to the running daemon over its control socket, and straight to
the store when no daemon runs. `--json` prints one JSON value and nothing else.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from server.cli import dkim, output, policy, queue, suppression
from server.cli.options import (
    EXIT_CONFIGURATION,
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    ConfigOption,
    JsonOption,
    load,
    perform,
    show,
)
from server.control import DaemonDown, ask_daemon
from server.operations import OperationFailed

VERSION = "0.1.0"  # a test holds it to pyproject.toml

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
domain_app = typer.Typer(no_args_is_help=True, help="Domains and their DNS records.")
inbox_app = typer.Typer(no_args_is_help=True, help="Inboxes.")
key_app = typer.Typer(no_args_is_help=True, help="API keys.")
grant_app = typer.Typer(no_args_is_help=True, help="Who may send as an address that is not its own.")
config_app = typer.Typer(no_args_is_help=True, help="The configuration file.")
transport_app = typer.Typer(no_args_is_help=True, help="TLS with other servers.")
organization_app = typer.Typer(no_args_is_help=True, help="Organizations.")
for name, group in {
    "organization": organization_app,
    "domain": domain_app,
    "transport": transport_app,
    "inbox": inbox_app,
    "key": key_app,
    "grant": grant_app,
    "queue": queue.app,
    "suppression": suppression.app,
    "policy": policy.app,
    "config": config_app,
}.items():
    app.add_typer(group, name=name)
domain_app.add_typer(dkim.app, name="dkim")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"mailagents {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which this is.")
    ] = False,
) -> None:
    """A mail server appliance for transactional mail and programmatic inboxes."""


@app.command()
def serve(
    config: ConfigOption = None,
    role: Annotated[
        list[str] | None,
        typer.Option(help="smtp, imap, http or delivery, a number behind it at will; may be given again."),
    ] = None,
) -> None:
    """Run the daemon until SIGTERM; SIGHUP reloads certificates and policies."""
    from server import app as appliance

    settings = load(config)
    if role:
        roles = {"roles": _roles(role)}
        settings = settings.model_copy(update={"server": settings.server.model_copy(update=roles)})
    status = appliance.run(settings)
    if status:
        raise typer.Exit(EXIT_UNREACHABLE)


def _roles(named: list[str]) -> tuple[str, ...]:
    """Return roles; a number tells systemd's instances of one apart: smtp-2 is smtp."""
    known = {"smtp", "imap", "http", "delivery"}
    roles = dict.fromkeys(re.sub(r"-[0-9]+$", "", one, flags=re.ASCII) for one in named)
    if set(roles) - known:
        raise typer.BadParameter(f"a role is one of {', '.join(sorted(known))}", param_hint="--role")
    return tuple(roles)


@app.command()
def dev(
    directory: Annotated[Path, typer.Option(help="Where everything of this mode lies.")] = Path("var/dev"),
    once: Annotated[bool, typer.Option(help="Stop after the demonstration instead of staying up.")] = False,
    port_base: Annotated[int, typer.Option(help="First of the high ports that are used.")] = 2500,
) -> None:
    """Try everything on this machine alone: no root, no DNS, no configuration."""
    from server.cli import dev as mode

    raise typer.Exit(mode.run(directory.absolute(), once=once, port_base=port_base))


@organization_app.command("add")
def organization_add(name: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Create an organization."""
    result = perform(config, "organization-add", {"name": name}, as_json=as_json)
    show(result, as_json=as_json, how=output.facts)


@domain_app.command("add")
def domain_add(
    name: str,
    organization: Annotated[str, typer.Option(help="Name or id; not needed where there is one.")] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a domain with its DKIM keys and print the DNS records to publish."""
    arguments = {"name": name, "organization": organization}
    result = perform(config, "domain-add", arguments, as_json=as_json)
    show(result, as_json=as_json, how=output.records)


@domain_app.command("dns")
def domain_dns(name: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the DNS records of a domain."""
    result = perform(config, "domain-dns", {"name": name}, as_json=as_json)
    show(result, as_json=as_json, how=output.records)


@domain_app.command("dmarc")
def domain_dmarc(
    name: str,
    days: Annotated[int, typer.Option(min=1, max=3660, help="How far back sources are added up.")] = 30,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who sent in a domain's name, as other servers' DMARC reports tell."""
    arguments = {"name": name, "days": days, "limit": limit}
    result = perform(config, "domain-dmarc", arguments, as_json=as_json)
    show(result, as_json=as_json, how=output.dmarc)


@domain_app.command("tls")
def domain_tls(
    name: str,
    days: Annotated[int, typer.Option(min=1, max=3660, help="How far back results are added up.")] = 30,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how TLS with a domain went, as other servers' reports tell."""
    arguments = {"name": name, "days": days, "limit": limit}
    result = perform(config, "domain-tls", arguments, as_json=as_json)
    show(result, as_json=as_json, how=output.tls)


@transport_app.command("policies")
def transport_policies(
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the MTA-STS policies of other domains that this server holds on to."""
    result = perform(config, "transport-policies", {"limit": limit}, as_json=as_json)
    show(result, as_json=as_json, how=output.policies)


@inbox_app.command("add")
def inbox_add(
    address: str,
    display_name: Annotated[str, typer.Option(help="Shown with the address.")] = "",
    quota_octets: Annotated[int, typer.Option(min=0, help="0 is unlimited.")] = 0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create an inbox; prints its app password this once."""
    arguments = {"address": address, "display_name": display_name, "quota_octets": quota_octets}
    result = perform(config, "inbox-add", arguments, as_json=as_json)
    show(result, as_json=as_json, how=output.facts)


@key_app.command("add")
def key_add(
    *,
    inbox: Annotated[str, typer.Option(help="Address of the inbox that the key is bound to.")] = "",
    organization: Annotated[str, typer.Option(help="Or the organization, by name or id.")] = "",
    name: Annotated[str, typer.Option(help="What the key is for.")] = "key",
    scope: Annotated[list[str] | None, typer.Option(help="May be given again.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create an API key; prints its secret this once."""
    arguments = {"inbox": inbox, "organization": organization, "name": name, "scopes": scope}
    result = perform(config, "key-add", arguments, as_json=as_json)
    show(result, as_json=as_json, how=output.facts)


@grant_app.command("add")
def grant_add(
    address: Annotated[str, typer.Argument(help="local@domain, or *@domain for all of a domain.")],
    inbox: Annotated[str, typer.Option(help="Address of the inbox that may send as it.")] = "",
    key: Annotated[str, typer.Option(help="Or the API key, by id.")] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let an inbox or a key send as an address of its organization."""
    arguments = {"address": address, "inbox": inbox, "key": key}
    result = perform(config, "grant-add", arguments, as_json=as_json)
    show(result, as_json=as_json, how=output.facts)


@grant_app.command("list")
def grant_list(
    organization: Annotated[str, typer.Option(help="Name or id; not needed where there is one.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show an organization's grants."""
    arguments = {"organization": organization, "limit": limit}
    result = perform(config, "grant-list", arguments, as_json=as_json)
    show(result, as_json=as_json, how=output.grants)


@grant_app.command("remove")
def grant_remove(
    identifier: str,
    organization: Annotated[str, typer.Option(help="Name or id; not needed where there is one.")] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a grant back."""
    arguments = {"id": identifier, "organization": organization}
    result = perform(config, "grant-remove", arguments, as_json=as_json)
    show(result, as_json=as_json, how=output.facts)


@app.command()
def explain(identifier: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Say what happened to a message, by the id of the message or of a delivery."""
    result = perform(config, "explain", {"id": identifier}, as_json=as_json)
    show(result, as_json=as_json, how=output.explanation)


@app.command()
def trace(
    address: Annotated[str, typer.Argument(help="A mail address.")],
    days: Annotated[int, typer.Option(min=1, max=366, help="How far back to look.")] = 7,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the messages to and from an address, newest first, and what became of each."""
    result = perform(config, "trace", {"address": address, "days": days, "limit": limit}, as_json=as_json)
    show(result, as_json=as_json, how=output.traced)


@app.command()
def case(
    delivery: Annotated[str, typer.Argument(help="Id of a delivery.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print all that is known of a delivery as one document, to be sent to the other side's postmaster."""
    result = perform(config, "case", {"id": delivery}, as_json=as_json)
    show(result, as_json=as_json, how=output.case)


@app.command()
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the queue's counts, the journal's backlog, and which processes serve."""
    result = perform(config, "status", {}, as_json=as_json)
    show(result, as_json=as_json, how=output.status)


@app.command()
def reconcile(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Heal differences between mail files and database, and say what was done."""
    result = perform(config, "reconcile", {}, as_json=as_json)
    show(result, as_json=as_json, how=output.facts)


@config_app.command("check")
def config_check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check the configuration and the policies; each fault is named with file, line and key."""
    from policies.compile import PolicyError
    from server.rulebook import Rulebook

    settings = load(config)
    try:
        rules = Rulebook(settings.policy.directory, settings.limits.figures).rules
    except PolicyError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        raise typer.Exit(EXIT_CONFIGURATION) from None
    result = {"configuration": "good", "rules": len(rules.rules)}
    with suppress(DaemonDown, OperationFailed):
        # Whether an inbox is there only the running server knows.
        postmaster = settings.server.postmaster
        answer = ask_daemon(settings.control.socket, "operator-check", {"postmaster": postmaster})
        if answer["fault"]:
            print(f"warning: {answer['fault']}", file=sys.stderr)
    show(result, as_json=as_json, how=output.facts)


@config_app.command("show")
def config_show(config: ConfigOption = None) -> None:
    """Print all settings in force, annotated, with secrets masked."""
    print(load(config).show())


@config_app.command("defaults")
def config_defaults() -> None:
    """Print the annotated configuration file with every default."""
    from server.config import generate

    print(generate(), end="")


def main() -> None:
    """Run the command line."""
    try:
        app(prog_name="mailagents")
    except BrokenPipeError:
        # Whoever read the output has enough; the interpreter's own flush at the end must not fail on it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_REFUSED)
