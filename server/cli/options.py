"""What all commands share: the options, the settings, and an operation's way and end.

Owns exit codes and how failures are told.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from server.cli import output
from server.cli.asking import ask
from server.config import ConfigError, Settings
from server.operations import OperationFailed

EXIT_REFUSED = 1
EXIT_UNREACHABLE = 3
EXIT_CONFIGURATION = 4
DEFAULT_CONFIG = Path("/etc/mailagents/mailagents.toml")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="MAILAGENTS_CONFIG",
        help=f"Configuration file; {DEFAULT_CONFIG} where it exists, else the defaults.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def load(path: Path | None) -> Settings:
    """Return the settings of a file or the default place; ends the program on faults."""
    chosen = path or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    try:
        return Settings.load(chosen)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        raise typer.Exit(EXIT_CONFIGURATION) from None
    except OSError as error:
        errors.print(f"{chosen}: {error.strerror}", markup=False)
        raise typer.Exit(EXIT_CONFIGURATION) from None


def perform(
    config: Path | None, operation: str, arguments: dict[str, Any], *, as_json: bool
) -> dict[str, Any]:
    """Do an operation in the daemon or on the store; ends the program where it fails."""
    settings = load(config)
    try:
        return ask(settings, operation, arguments)
    except OperationFailed as error:
        raise failure(error.code, str(error), EXIT_REFUSED, as_json=as_json) from None
    except output.Unreachable as error:
        raise failure("store_unreachable", str(error), EXIT_UNREACHABLE, as_json=as_json) from None


def failure(code: str, text: str, status: int, *, as_json: bool) -> typer.Exit:
    """Print why an act was not done and return what ends the program."""
    if as_json:
        print(json.dumps({"error": {"code": code, "text": text}}))
    else:
        errors.print(text, markup=False)
    return typer.Exit(status)


def show(result: dict[str, Any], *, as_json: bool, how: Callable[[dict[str, Any]], None]) -> None:
    """Print a result, as JSON or as it is for people."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        how(result)
