"""Golden dialogues, one file each: what a client sends and what must come back."""

import re
from pathlib import Path

import pytest

from tests.imap.appliance import Appliance, Inbox, Wire

TRANSCRIPTS = sorted((Path(__file__).parents[1] / "transcripts" / "imap").glob("*.txt"))


def octets(text: str) -> bytes:
    return text.encode().replace(b"\\r", b"\r").replace(b"\\n", b"\n")


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_dialogue_goes_as_written(path: Path, appliance: Appliance, inbox: Inbox):
    client = Wire(appliance).login(inbox)
    for number, line in enumerate(path.read_text().splitlines(), 1):
        kind, _, text = line.partition(":")
        if kind == "C":
            client.send(octets(text.removeprefix(" ")) + b"\r\n")
        elif kind == "S":
            pieces = [re.escape(octets(piece)) for piece in text.removeprefix(" ").split("<any>")]
            found = client.line()
            assert re.fullmatch(b"[^\r\n]*".join(pieces), found), f"{path.name}:{number}: {found!r}"
        else:
            assert line.startswith("#") or not line, f"{path.name}:{number} is neither C:, S: nor a comment"


def test_there_are_transcripts():
    assert len(TRANSCRIPTS) >= 3
