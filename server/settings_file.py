"""Reading settings: file, environment and overrides into a model, or every problem at once.

Owns ConfigError with its problems (file, line, key, what was found, what is
allowed) and where secrets are read from. Knows no setting by name. Refuses
unknown keys, values of another type, and a file that is not TOML 1.0.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from policies.lines import KeyPath, positions
from server.settings_text import ConfigError, Problem, allowed_text, found_text

PREFIX = "MAILAGENTS__"
FILE_OCTETS = 4 << 20
SECRET_OCTETS = 1 << 20

ENVIRONMENT = "environment"
COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check across settings found: the key it would change, and why."""

    key: str
    message: str


Check = Callable[[BaseModel], Iterator[Finding]]


def load_model(
    model: type[BaseModel],
    path: Path | None,
    *,
    overrides: Mapping[str, str],
    environment: Mapping[str, str] | None,
    check: Check,
) -> BaseModel:
    """Return the model of sections filled from a file, the environment and overrides, in that order.

    Raises ConfigError with the problems of all of them.
    """
    reading = _Reading(model, path)
    for key, text in _from_environment(os.environ if environment is None else environment):
        reading.override(ENVIRONMENT, key, text)
    for key, text in overrides.items():
        reading.override(COMMAND_LINE, key, text)
    return reading.finish(check)


def locate_secret(reference: str, environment: Mapping[str, str] | None = None) -> Path:
    """Return the file of a `_file` setting: its path, or that of the systemd credential it names.

    Raises LookupError where the service was given no credentials.
    """
    name = reference.removeprefix("credential:")
    if name == reference:
        return Path(reference)
    directory = (os.environ if environment is None else environment).get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise LookupError(f"{reference}: this process was started without systemd credentials")
    return Path(directory) / name


def read_secret(reference: str, environment: Mapping[str, str] | None = None) -> str:
    """Return the first line of a secret's file. Raises LookupError, OSError or UnicodeDecodeError."""
    with locate_secret(reference, environment).open("rb") as file:
        return file.read(SECRET_OCTETS).decode().partition("\n")[0].rstrip("\r")


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in sorted(environment):
        if name.startswith(PREFIX):
            yield name.removeprefix(PREFIX).lower().replace("__", "."), environment[name]


class _Reading:
    def __init__(self, model: type[BaseModel], path: Path | None) -> None:
        self.model = model
        self.file = str(path) if path else "defaults"
        self.problems: list[Problem] = []
        self.lines: dict[KeyPath, int] = {}
        self.sources: dict[str, str] = {}
        self.values: dict[str, Any] = self._read(path) if path else {}

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            with path.open("rb") as file:
                octets = file.read(FILE_OCTETS + 1)
            if len(octets) > FILE_OCTETS:
                raise ConfigError((Problem(self.file, message=f"the file is over {FILE_OCTETS} octets"),))
            text = octets.decode()
            values = tomllib.loads(text)
            self.lines = positions(text.replace("\r\n", "\n")).keys
            return values
        except OSError as error:
            fault = Problem(self.file, message=f"the file cannot be read: {error.strerror}")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            fault = Problem(self.file, line, message="the file is not UTF-8 text")
        except tomllib.TOMLDecodeError as error:
            fault = _syntax_problem(self.file, str(error), text)
        except RecursionError:
            fault = Problem(self.file, message="values are nested too deeply")
        raise ConfigError((fault,))

    def override(self, source: str, key: str, text: str) -> None:
        section, _, name = key.partition(".")
        field = self._field(section, name)
        if field is None:
            self.problems.append(self._unknown(source, 0, key))
            return
        table = self.values.setdefault(section, {})
        if isinstance(table, dict):  # else the file's own mistake is reported already
            table[name] = _typed(field, text)
            self.sources[key] = source

    def finish(self, check: Check) -> BaseModel:
        faults: list[KeyPath] = []
        kinds: set[str] = set()
        try:
            made = self.model.model_validate(self.values)
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                faults.append(fault["loc"])
                kinds.add(fault["type"])
                self.problems.append(self._problem(fault["type"], fault["loc"], fault["msg"], fault["input"]))
            made = self._without(faults)
        known = kinds <= {"extra_forbidden"}
        for found in check(made):
            # Beside a faulty setting, only what the file itself says is worth a check.
            if known or self._given(found.key, faults):
                self.problems.append(self._finding(made, found))
        if self.problems:
            raise ConfigError(tuple(sorted(self.problems, key=lambda problem: problem.line)))
        return made

    def _without(self, faults: list[KeyPath]) -> BaseModel:
        """The model with the default in place of each faulty setting."""
        bad = {location[:2] for location in faults}
        kept = {
            section: {name: value for name, value in table.items() if (section, name) not in bad}
            for section, table in self.values.items()
            if isinstance(table, dict) and (section,) not in bad
        }
        return self.model.model_validate(kept)

    def _given(self, key: str, faults: list[KeyPath]) -> bool:
        section, _, name = key.partition(".")
        table = self.values.get(section)
        return (
            (section, name) not in {location[:2] for location in faults}
            and isinstance(table, dict)
            and name in table
        )

    def _field(self, section: str, name: str) -> FieldInfo | None:
        table = self.model.model_fields.get(section)
        if table is None or table.annotation is None:
            return None
        fields: dict[str, FieldInfo] = getattr(table.annotation, "model_fields", {})
        return fields.get(name)

    def _problem(self, kind: str, location: KeyPath, message: str, found: object) -> Problem:
        key = ".".join(str(part) for part in location[:2])
        source, line = self._place(key, location)
        if kind == "extra_forbidden":
            return self._unknown(source, line, key)
        field = self._field(*key.split(".", 1)) if "." in key else None
        if field is None:
            return Problem(source, line, key, found_text(found), "a table", "it is no table of settings")
        message = message.removeprefix("Value error, ")
        reason = message if kind == "value_error" else message[:1].lower() + message[1:]
        return Problem(source, line, key, found_text(found, field), allowed_text(field), reason)

    def _finding(self, made: BaseModel, found: Finding) -> Problem:
        section, _, name = found.key.partition(".")
        source, line = self._place(found.key, (section, name))
        field = self._field(section, name)
        assert field is not None, found.key
        value = getattr(getattr(made, section), name)
        return Problem(source, line, found.key, found_text(value, field), allowed_text(field), found.message)

    def _place(self, key: str, location: KeyPath) -> tuple[str, int]:
        if key in self.sources:
            return self.sources[key], 0
        for length in range(len(location), 0, -1):
            if location[:length] in self.lines:
                return self.file, self.lines[location[:length]]
        return self.file, 0

    def _unknown(self, source: str, line: int, key: str) -> Problem:
        section, _, name = key.partition(".")
        tables = {
            table: list(getattr(field.annotation, "model_fields", {}))
            for table, field in self.model.model_fields.items()
        }
        inside = section in tables and name
        names = tables[section] if inside else list(tables)
        near = difflib.get_close_matches(name if inside else section, names, n=1)
        elsewhere = [f"{table}.{name}" for table, inner in tables.items() if name and name in inner]
        hint = [f"{section}.{near[0]}" if inside else near[0]] if near else elsewhere
        message = f"there is no such {'setting' if inside else 'section'}"
        allowed = f"in [{section}]: {', '.join(names)}" if inside else ", ".join(names)
        return Problem(
            source, line, key, key, allowed, message + (f": did you mean {hint[0]}?" if hint else "")
        )


def _syntax_problem(file: str, message: str, text: str) -> Problem:
    """A TOML mistake with its line, which tomllib writes into its message alone."""
    found = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    line = int(found[1]) if found and found[1] else text.count("\n") + 1
    reason = message[: found.start()] if found else message
    return Problem(file, line, message=f"this is not TOML: {reason[:1].lower()}{reason[1:]}")


def _typed(field: FieldInfo, text: str) -> object:
    """The value that an override's text means for a setting of this type."""
    is_list = get_origin(field.annotation) is tuple
    if field.annotation in {str, Path} or (is_list and not text.lstrip().startswith("[")):
        return ([text] if text else []) if is_list else text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
