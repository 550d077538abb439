"""Console sessions: who is signed in, until when, and the mark that forms carry.

Owns the table of sessions, in memory alone: a restart signs everybody out. The
cookie's value is random and only its hash is kept. RFC 6265 (cookies).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

LIFETIME_SECONDS = 12 * 3600
IDLE_SECONDS = 3600
SESSIONS_LIMIT = 1000
_SECOND = 1_000_000


@dataclass(slots=True)
class Session:
    """One signed-in key. form_mark: what each form of this session sends back."""

    organization_id: str
    key_id: str
    began_at: int
    seen_at: int
    form_mark: str


class Sessions:
    """The sessions of one process; the one longest unseen goes when there are too many."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, Session] = {}

    def open(self, *, organization_id: str, key_id: str, at: int) -> str:
        """Begin a session and return the cookie's value."""
        if len(self._sessions) >= SESSIONS_LIMIT:
            del self._sessions[min(self._sessions, key=lambda one: self._sessions[one].seen_at)]
        token = secrets.token_urlsafe(32)
        self._sessions[_hash(token)] = Session(organization_id, key_id, at, at, secrets.token_urlsafe(24))
        return token

    def find(self, token: str, *, at: int) -> Session | None:
        """Return the session of a cookie's value and note that it was seen; None once it is over."""
        mark = _hash(token)
        session = self._sessions.get(mark)
        if session is None:
            return None
        if (
            at >= session.began_at + LIFETIME_SECONDS * _SECOND
            or at >= session.seen_at + IDLE_SECONDS * _SECOND
        ):
            del self._sessions[mark]
            return None
        session.seen_at = at
        return session

    def close(self, token: str) -> None:
        """End a session."""
        self._sessions.pop(_hash(token), None)


def is_form_of(session: Session, mark: str) -> bool:
    """Return whether a form was made for this session."""
    return hmac.compare_digest(session.form_mark.encode(), mark.encode("utf-8", "replace"))


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
