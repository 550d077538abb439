"""What lines say of trouble, and what they do not."""

import errno
from typing import Any

import pytest

from server.logs import hide_addresses, name_storage_trouble
from storage.errors import Full, StorageError


@pytest.mark.parametrize(
    "error", [StorageError("the disk is gone"), Full("no room"), OSError(errno.EIO, "Input/output error")]
)
def test_trouble_of_store_and_disk_is_said_in_a_line(error):
    for found in (error, (type(error), error, None)):
        line: dict[str, Any] = {"event": "message not taken in", "exc_info": found}
        assert name_storage_trouble(None, "error", line) == {
            "event": "message not taken in",
            "problem": str(error),
        }


def test_trouble_that_is_being_handled_is_found():
    try:
        raise StorageError("closed")
    except StorageError:
        assert name_storage_trouble(None, "error", {"exc_info": True}) == {"problem": "closed"}


def test_faults_of_ours_keep_their_traceback():
    line: dict[str, Any] = {"exc_info": KeyError("x")}
    assert name_storage_trouble(None, "error", dict(line)) == line
    refused: dict[str, Any] = {"exc_info": OSError(errno.EBADF, "Bad file descriptor")}
    assert name_storage_trouble(None, "error", dict(refused)) == refused


def test_addresses_are_taken_out():
    line = {"event": "x", "text": "from a@b.test to <c.d@e.test>"}
    assert hide_addresses(None, "info", line)["text"] == "from <address> to <<address>>"
