"""Settings as text: problems, `config show`, the annotated file and the documentation.

Owns how a value, its limits and a mistake are written for a reader, and the
masking of secrets. Reads nothing and knows no setting by name.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, cast, get_args, get_origin

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

WIDTH = 100
FOUND_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in the configuration. line 0: none; key, found, allowed: '' where there is none."""

    file: str
    line: int = 0
    key: str = ""
    found: str = ""
    allowed: str = ""
    message: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        details = [f"found {self.found}"] * bool(self.found) + [f"allowed: {self.allowed}"] * bool(
            self.allowed
        )
        tail = f" ({'; '.join(details)})" if details else ""
        return f"{place}: {self.key + ': ' if self.key else ''}{self.message}{tail}"


class ConfigError(Exception):
    """The configuration cannot be used; problems holds every mistake, in the order of lines."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


def setting(
    default: object,
    documentation: str,
    *,
    unit: str = "",
    allowed: str = "",
    example: str = "",
    at_least: float | None = None,
    at_most: float | None = None,
    masks: Literal["", "url", "file"] = "",
) -> Any:
    """Declare a setting: default, documentation and limits, the unit where the name does not say it.

    allowed: in words, where type and limits do not say it. example: what the annotated file
    sets, for a setting that every server must set. masks: a URL whose
    password is masked, or the name of a secret's file, where the secret itself may stand by mistake.
    """
    extra: dict[str, Any] = {"unit": unit, "allowed": allowed, "example": example, "masks": masks}
    return Field(default, description=documentation, ge=at_least, le=at_most, json_schema_extra=extra)


def toml_value(value: object) -> str:
    """Return a value in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, tuple | list):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{_quoted(str(key))} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return _quoted(str(value))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def found_text(value: object, field: FieldInfo | None = None) -> str:
    """Return a value for an error message: short, on one line, without any secret."""
    if field is not None and _extra(field, "masks") == "file" and not _is_reference(value):
        return f"a text of {len(str(value))} characters"  # perhaps the secret itself
    text = toml_value(_masked(value, field))
    return text if len(text) <= FOUND_CHARACTERS else text[: FOUND_CHARACTERS - 1] + "…"


def _is_reference(value: object) -> bool:
    text = str(value)
    return not text or (len(text) <= FOUND_CHARACTERS and text.startswith(("/", "credential:")))


def _masked(value: object, field: FieldInfo | None) -> object:
    """Hide the password of a URL, and everything behind its '?'."""
    if field is None or _extra(field, "masks") != "url" or not isinstance(value, str):
        return value
    value = re.sub(r"://.*:.*@", "://***@", value, flags=re.DOTALL)
    return re.sub(r"\?.+", "?***", value, flags=re.DOTALL)


def allowed_text(field: FieldInfo) -> str:
    """Return what a setting may hold, in words."""
    words = _extra(field, "allowed")
    if words:
        return words
    kind = field.annotation
    if get_origin(kind) is Literal:
        return ", ".join(str(choice) for choice in get_args(kind))
    if kind is bool:
        return "true or false"
    name = "a whole number" if kind is int else "a number" if kind is float else "text"
    low, high = _limit(field, "ge"), _limit(field, "le")
    return f"{name} from {_number(low)} to {_number(high)}" if low is not None and high is not None else name


def unit_text(name: str, field: FieldInfo) -> str:
    """Return the unit of a setting: as declared, or as its name ends; '' where it has none."""
    ends = {"_octets": "octets", "_seconds": "seconds"}
    return _extra(field, "unit") or next((unit for end, unit in ends.items() if name.endswith(end)), "")


def _extra(field: FieldInfo, name: str) -> str:
    extra = cast(dict[str, Any], field.json_schema_extra or {})
    return extra.get(name) or ""


def _limit(field: FieldInfo, name: str) -> float | None:
    return next((getattr(item, name) for item in field.metadata if hasattr(item, name)), None)


def _number(value: float | None) -> str:
    return f"{value:.0f}" if value == int(value or 0) else str(value)


def _sections(settings: BaseModel) -> Iterator[tuple[str, BaseModel]]:
    for name in type(settings).model_fields:
        yield name, getattr(settings, name)


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _notes(name: str, field: FieldInfo) -> list[str]:
    unit = unit_text(name, field)
    facts = [f"Unit: {unit}."] if unit else []
    facts.append(f"Allowed: {allowed_text(field)}.")
    return [*_paragraph(field.description or ""), *_paragraph(" ".join(facts))]


def render(settings: BaseModel) -> str:
    """Return settings as an annotated TOML file in which each value stands, secrets masked."""
    lines: list[str] = []
    for section, table in _sections(settings):
        lines += [*_paragraph(type(table).__doc__ or ""), f"[{section}]", ""]
        for name, field in type(table).model_fields.items():
            value = _masked(getattr(table, name), field)
            default = (
                "" if value == field.get_default() else f"  # default: {toml_value(field.get_default())}"
            )
            lines += [*_notes(name, field), f"{name} = {toml_value(value)}{default}", ""]
    return "\n".join(lines).rstrip() + "\n"


def generate_from(defaults: BaseModel) -> str:
    """Return the annotated file: each setting commented out at its default, but for those with an example."""
    lines = [
        "# Settings of Mailagents. Generated from server/sections.py; `mailagents config check` reads it.",
        "# A line that begins with '#' and a name shows a default: take the '#' away to change it.",
        "# A variable MAILAGENTS__SECTION__NAME overrides a setting. Secrets stand in files of their own.",
        "",
    ]
    for section, table in _sections(defaults):
        lines += [*_paragraph(type(table).__doc__ or ""), f"[{section}]", ""]
        for name, field in type(table).model_fields.items():
            default = toml_value(getattr(table, name))
            example = _extra(field, "example")
            lines += _notes(name, field)
            lines += _paragraph(f"Default: {default}.") if example else []
            lines += [f"{name} = {toml_value(example)}" if example else f"#{name} = {default}", ""]
    return "\n".join(lines).rstrip() + "\n"


def generate_docs_from(defaults: BaseModel) -> str:
    """Return the settings as a Markdown page, a table a section."""
    lines = [
        "# Configuration",
        "",
        "<!-- Generated from server/sections.py. -->",
        "",
        "The server reads one TOML file, `/etc/mailagents/mailagents.toml` unless `--config` names another.",
        "A variable `MAILAGENTS__SECTION__NAME` overrides a setting of the file; a list or a number is",
        "written there as in TOML. `mailagents config check` reports every mistake with file, line, key,",
        "what was found and what is allowed; `mailagents config show` prints the settings in effect.",
        "",
        "No secret is a value in the file. A setting whose name ends in `_file` holds the absolute path of a",
        "file, or `credential:NAME` for a credential that systemd passes (`LoadCredential=`).",
        "",
    ]
    for section, table in _sections(defaults):
        lines += [f"## [{section}]", "", (type(table).__doc__ or "").strip(), ""]
        lines += ["| setting | default | unit | allowed | meaning |", "|---|---|---|---|---|"]
        for name, field in type(table).model_fields.items():
            cells = [
                f"`{name}`",
                f"`{toml_value(getattr(table, name))}`",
                unit_text(name, field),
                allowed_text(field),
                field.description or "",
            ]
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
