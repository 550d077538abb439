"""How a command ends: the completion that goes behind its tag, and the failures that become one.

Owns the exceptions that handlers raise, and the translation of what intake,
login and storage raise into response codes. Texts are for a human and reveal
no configuration. RFC 9051 7.1, RFC 5530 (response codes), 3463 by way of Refusal.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.refusal import Refusal
from storage.errors import BadName, Conflict, Full, Missing, StorageError


@dataclass(frozen=True, slots=True)
class Completion:
    """The tagged response: status OK, NO or BAD; code with its brackets, or b''."""

    text: str
    status: bytes = b"OK"
    code: bytes = b""

    def line(self, tag: bytes) -> bytes:
        """Return the response line for a tag."""
        code = self.code + b" " if self.code else b""
        return b"%b %b %b%b\r\n" % (tag, self.status, code, self.text.encode("ascii", "replace"))


class Failed(Exception):
    """A command that is not done: NO, or BAD where it should not have been sent."""

    def __init__(self, text: str, *, status: bytes = b"NO", code: bytes = b"") -> None:
        super().__init__(text)
        self.completion = Completion(text, status, code)


class Disconnected(Exception):
    """The client is gone, or was sent away."""


def nonexistent(name: str = "Mailbox") -> Failed:
    """Return the failure of a command that names what is not there."""
    return Failed(f"{name} does not exist", code=b"[NONEXISTENT]")


def of_refusal(refusal: Refusal) -> Completion:
    """Return the completion for a refusal of login or intake."""
    if refusal.enhanced == "5.7.8":
        code = b"[AUTHENTICATIONFAILED]"
    elif refusal.enhanced in ("4.2.2", "5.2.2"):
        code = b"[OVERQUOTA]"
    elif refusal.enhanced in ("5.3.4", "5.2.3"):
        code = b"[TOOBIG]"
    elif refusal.enhanced.startswith(("4.7", "5.7")):
        code = b"[UNAVAILABLE]" if refusal.temporary else b"[NOPERM]"
    else:
        code = b"[UNAVAILABLE]" if refusal.temporary else b"[CANNOT]"
    return Completion(refusal.public, b"NO", code)


def of_storage(error: StorageError) -> Completion | None:
    """Return the completion for a failure of storage that a client may meet, None for one that is ours."""
    match error:
        case BadName():
            return Completion("Mailbox name is not allowed", b"NO", b"[CANNOT]")
        case Conflict():
            return Completion("Mailbox exists already", b"NO", b"[ALREADYEXISTS]")
        case Missing():
            return Completion("Mailbox does not exist", b"NO", b"[NONEXISTENT]")
        case Full():
            return Completion("There is no room", b"NO", b"[OVERQUOTA]")
        case _:
            return None
