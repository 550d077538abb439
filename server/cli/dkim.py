"""`mailagents domain dkim …`: new keys for a domain's signatures, and how far they are.

Owns how that is shown. What is done is the server's, and the daemon's in its own time.
"""

from __future__ import annotations

from typing import Any

import typer
from rich.text import Text

from server.cli import output
from server.cli.options import ConfigOption, JsonOption, perform, show

app = typer.Typer(no_args_is_help=True, help="Keys of DKIM signatures, and their rotation.")


@app.command("rotate")
def dkim_rotate(name: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Make the next keys of a domain and print their records; they sign once the DNS has them."""
    result = perform(config, "domain-dkim-rotate", {"name": name}, as_json=as_json)
    show(result, as_json=as_json, how=output.records)


@app.command("status")
def dkim_status(name: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the keys of a domain, and what each waits for."""
    result = perform(config, "domain-dkim-status", {"name": name}, as_json=as_json)
    show(result, as_json=as_json, how=_print_keys)


@app.command("cancel")
def dkim_cancel(name: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Give up a rotation whose keys do not sign yet."""
    result = perform(config, "domain-dkim-cancel", {"name": name}, as_json=as_json)
    show(result, as_json=as_json, how=output.facts)


def _print_keys(result: dict[str, Any]) -> None:
    if not result["keys"]:
        output.console().print(Text(f"{output.plain(result['domain'])} has no key"))
        return
    output.print_table(
        ("selector", "state", "since", "last look", "next", "what"),
        [
            (
                key["selector"],
                key["state"],
                _moment(key["since"]),
                _moment(key["looked_at"]),
                _moment(key["next_at"]),
                key["what"],
            )
            for key in result["keys"]
        ],
    )


def _moment(at: int | None) -> str:
    return "-" if at is None else output.moment(at)[:16]
