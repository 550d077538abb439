"""The octets of stored messages: whole sections for many rows at once, or a piece of one.

Owns opening a message's file though it may be renamed at any moment (flags are
mirrored into names), and reading spans of it. Blocking: called through the
threads' door. Never holds more than it is asked for. Maildir; RFC 9051 4.3.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from server.imap.commands import Section, SectionText
from server.imap.section import Span, choose_fields
from storage.maildir import file_name

SEARCHED = ("cur", "new")


@dataclass(frozen=True, slots=True)
class Place:
    """What a message's file was last known to be called, below its folder's directory."""

    name: str
    subdirectory: str
    mirrored: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """The spans of one file, each with the section that it is for; None where there is no such part."""

    place: Place
    spans: Sequence[Span | None]


def open_message(directory: str, place: Place) -> int:
    """Return a file descriptor of the message; raises FileNotFoundError where no name of it is left."""
    name = file_name(place.name, place.subdirectory, place.mirrored)
    try:
        return os.open(f"{directory}/{place.subdirectory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return _open_renamed(directory, place.name)


def _open_renamed(directory: str, base: str) -> int:
    for _ in range(2):  # it may move from new to cur between the two looks
        for subdirectory in SEARCHED:
            for entry in os.scandir(f"{directory}/{subdirectory}"):
                if entry.name.partition(":")[0] == base:
                    try:
                        return os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
                    except FileNotFoundError:
                        break
    raise FileNotFoundError(base)


def read_sections(
    directory: str, sections: Sequence[Section], wanted: Sequence[Wanted]
) -> list[list[bytes | None] | None]:
    """Return what each section names of each file, None for a file that is gone."""
    found: list[list[bytes | None] | None] = []
    for each in wanted:
        try:
            descriptor = open_message(directory, each.place)
        except OSError:
            found.append(None)
            continue
        try:
            found.append(
                [
                    None if span is None else read_section(descriptor, section, span)
                    for section, span in zip(sections, each.spans, strict=True)
                ]
            )
        finally:
            os.close(descriptor)
    return found


def read_section(descriptor: int, section: Section, span: Span) -> bytes:
    """Return the octets of a span, of a header the chosen fields."""
    data = read_at(descriptor, span.start, span.end)
    if section.text not in (SectionText.HEADER_FIELDS, SectionText.HEADER_FIELDS_NOT):
        return data
    data = choose_fields(data, section)
    if section.partial is None:
        return data
    return data[section.partial[0] : section.partial[0] + section.partial[1]]


def read_at(descriptor: int, start: int, end: int) -> bytes:
    """Return the octets from start to end, fewer where the file ends before."""
    data = os.pread(descriptor, end - start, start) if end > start else b""
    return data.replace(b"\0", b"\x80") if b"\0" in data else data  # RFC 9051 4.3.1: no NUL in a literal
