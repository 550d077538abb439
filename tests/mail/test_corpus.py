"""Real and malformed messages with the parse that another parser expects of them.

The corpus lies beside the checkout, or where MAILAGENTS_CORPORA says; without it
these tests are skipped. Its expectations were made of messages with bare LF.
"""

import json
import os
from pathlib import Path

import pytest

from server.mail.structure import scan
from tests.mail import mime_suite
from tests.mail.mime_suite import name_of

REPOSITORY = Path(__file__).resolve().parents[2]
CORPORA = Path(os.environ.get("MAILAGENTS_CORPORA", REPOSITORY / ".." / "shared" / "corpora"))
MESSAGES = sorted((CORPORA / "mime").rglob("*.eml"))

if not MESSAGES:
    pytest.skip("no corpus: set MAILAGENTS_CORPORA to the folder that holds mime/", allow_module_level=True)


@pytest.mark.parametrize("path", [pytest.param(path, id=name_of(path)) for path in MESSAGES])
def test_message_is_read_as_the_corpus_expects(path):
    assert mime_suite.judge(path) == ""


@pytest.mark.parametrize("name", mime_suite.STRUCTURES)
def test_what_is_read_otherwise_is_still_another_reading(name):
    path = CORPORA / "mime" / "mail-parser" / f"{name}.eml"
    ours = [mime_suite.form_of(part) for part in mime_suite.flatten(scan(mime_suite.message_of(path)))]
    theirs = json.loads(path.with_suffix(".json").read_text())["parts"]
    assert ours != [mime_suite.outline(part) for part in theirs], "no longer different: take it off the list"
