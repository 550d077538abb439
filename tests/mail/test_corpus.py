"""Real and malformed messages with the parse that another parser expects of them.

The corpus lies beside the checkout, or where MAILAGENTS_CORPORA says; without it
these tests are skipped. Its expectations were made of messages with bare LF.
"""

import json
import os
from pathlib import Path

import pytest

from server.mail.structure import scan
from tests.fuzz.targets_mail import check_structure

REPOSITORY = Path(__file__).resolve().parents[2]
CORPORA = Path(os.environ.get("MAILAGENTS_CORPORA", REPOSITORY / ".." / "shared" / "corpora"))
MESSAGES = sorted((CORPORA / "mime").rglob("*.eml"))

# Where we read otherwise than the corpus expects, and why.
DIFFERENT = {
    "malformed/000": "parts whose header has no blank line are parts",
    "malformed/007": "a multipart's header may run into its first delimiter",
    "malformed/008": "a boundary that begins another one does not end it",
    "malformed/011": "an outer delimiter ends the inner multipart",
    "malformed/012": "an outer delimiter ends the inner multipart",
    "malformed/013": "a delimiter at the very end begins an empty part",
    "malformed/014": "a delimiter at the very end begins an empty part",
    "malformed/016": "a closed multipart's boundary means nothing any more",
    "thirdparty/015": "delimiters behind an embedded message are seen",
}

if not MESSAGES:
    pytest.skip("no corpus: set MAILAGENTS_CORPORA to the folder that holds mime/", allow_module_level=True)


def name_of(path):
    return f"{path.parent.name}/{path.stem}"


def pairs():
    beside = [(path, path.with_suffix(".json")) for path in MESSAGES]
    return [pytest.param(path, expected, id=name_of(path)) for path, expected in beside if expected.exists()]


@pytest.mark.parametrize("path", [pytest.param(path, id=name_of(path)) for path in MESSAGES])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_every_message_keeps_the_invariant(path, end):
    check_structure(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", end))


@pytest.mark.parametrize(("path", "expected"), pairs())
def test_parts_are_those_that_the_corpus_expects(path, expected):
    message = path.read_bytes()
    if path.parent.name != "malformed":
        message = message.replace(b"\r\n", b"\n")
    ours = list(flatten(scan(message)))
    theirs = [outline(part) for part in json.loads(expected.read_text())["parts"]]
    if name_of(path) in DIFFERENT:
        assert ours != theirs, "no longer different: take it off the list"
    else:
        assert ours == theirs


def flatten(part):
    """Parts in the order of their octets, embedded messages not opened, as the corpus has them."""
    form = "Multipart" if part.is_multipart else "Message" if part.is_message else "Leaf"
    yield form, part.header_start, part.body_start
    if part.is_multipart:
        for inner in part.parts:
            yield from flatten(inner)


def outline(part):
    form = next(iter(part["body"])) if isinstance(part["body"], dict) else part["body"]
    known = form if form in ("Multipart", "Message") else "Leaf"
    return known, part["offset_header"], part["offset_body"]
