"""Who asks, and what their key lets them do.

Owns the scopes, and the caller that a route gets. A key sees
its own organization, a key bound to an inbox sees that inbox alone, and only
the scope `operator` looks over organizations. What a caller may not see is 404,
what it may see but not do is 403. RFC 6750 (bearer tokens), RFC 9110 11.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request

from server.http.problems import Problem, not_found
from server.login import KEY_MARK, Identity, Login
from server.refusal import Refusal
from storage import accounts

if TYPE_CHECKING:
    from server.clock import Clock
    from server.threads import Hub, Threads
    from storage.db import Notice

SCOPES = {
    "inbox:read": "List inboxes and their folders, names of app passwords.",
    "inbox:write": "Create inboxes, change their state, make and revoke app passwords.",
    "message:read": "Read messages, their attachments and timelines.",
    "message:send": "Send and reply.",
    "message:delete": "Delete messages.",
    "domain:admin": "See the organization's domains and the records to publish.",
    "event:read": "Read the organization's events.",
    "suppression:write": "See and change the suppression list.",
    "org:admin": "See the organization; list, create and revoke its keys.",
    "operator": "Create organizations and domains, issue any organization's keys, open the console.",
}
OPERATOR = "operator"
# What an operator may do in any case; reading and sending mail is not among it.
_IMPLIED = {OPERATOR: frozenset({"org:admin", "domain:admin"})}
TOKEN_LIMIT = 256
TOUCH_SECONDS = 30
TOUCH_LIMIT = 10_000
STATES_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated key on one request."""

    identity: Identity
    peer: str

    @property
    def scopes(self) -> frozenset[str]:
        """What the key may do, with what its scopes imply."""
        held = self.identity.scopes
        return held | _IMPLIED[OPERATOR] if OPERATOR in held else held

    @property
    def organization_id(self) -> str:
        """The organization whose key it is."""
        return self.identity.organization_id

    @property
    def key_id(self) -> str:
        """The key's id, which the audit log names as the actor."""
        return self.identity.id

    @property
    def bound_to(self) -> str | None:
        """The inbox that the key is bound to, None for an organization's key."""
        return self.identity.mailbox_id

    @property
    def is_operator(self) -> bool:
        """Whether the key looks over organizations; one that is bound to an inbox never does."""
        return OPERATOR in self.identity.scopes and self.bound_to is None

    def reach(self, mailbox_id: str) -> None:
        """Raise 404 if the key is bound to another inbox; storage judges the organization."""
        if self.bound_to not in (None, mailbox_id):
            raise not_found()

    def require_unbound(self) -> None:
        """Raise 403 for a key that is bound to an inbox."""
        if self.bound_to is not None:
            raise Problem(
                403,
                "key_bound_to_inbox",
                "This key is bound to one inbox and can't do this for the organization.",
                fix="Use a key of the organization.",
            )

    def require_held(self, scopes: frozenset[str]) -> None:
        """Raise 403 unless the key itself holds all that it wants to hand out."""
        lacking = scopes - self.scopes
        if lacking:
            raise _scope_missing(sorted(lacking), "A key hands out no more than it holds.")


def _scope_missing(scopes: list[str], sentence: str) -> Problem:
    header = f'Bearer error="insufficient_scope", scope="{" ".join(scopes)}"'  # RFC 6750 3.1
    return Problem(
        403,
        "scope_missing",
        sentence,
        fix=f"Use a key with {', '.join(scopes)}.",
        headers={"WWW-Authenticate": header},
        extra={"scopes": scopes},
    )


def _unauthenticated(sentence: str) -> Problem:
    return Problem(
        401,
        "unauthenticated",
        sentence,
        fix="Send 'Authorization: Bearer mak_…' with a key that is in force.",
        headers={"WWW-Authenticate": 'Bearer realm="mailagents"'},
    )


class Access:
    """Turns requests into callers; one per process.

    Notes when keys were last used, in memory, for `take_used` to be written in batches.
    """

    def __init__(self, *, login: Login, threads: Threads, hub: Hub, clock: Clock) -> None:
        self._login = login
        self._clock = clock
        self._threads = threads
        self._states: dict[str, str] = {}
        self._generation = 0
        self._used: dict[str, int] = {}
        hub.subscribe("accounts", None, self._forget)

    def _forget(self, _notice: Notice) -> None:
        self._generation += 1
        self._states.clear()

    async def caller(self, request: Request) -> Caller:
        """Return who asks; Problem 401, 403 for a suspended organization, Refusal 454 after many failures."""
        peer = request.client.host if request.client else ""
        return await self.check(_token(request), peer=peer)

    async def admit(self, request: Request, scope: str) -> Caller:
        """Return who asks if its key has a scope; raises as `caller`, and Problem 403 where it has not."""
        caller = await self.caller(request)
        if scope not in caller.scopes:
            raise _scope_missing([scope], "This key lacks a scope.")
        if scope == OPERATOR:
            caller.require_unbound()
        self.note_use(caller.key_id, at=self._clock.now())
        return caller

    async def check(self, token: str, *, peer: str) -> Caller:
        """Return the caller of a key's secret; raises as `caller`."""
        try:
            identity = await self._login.bearer(token, peer=peer)
        except Refusal as refusal:
            if refusal.temporary:
                raise
            raise _unauthenticated("The key is unknown, expired or revoked.") from None
        if await self._state(identity.organization_id) != "active":
            raise Problem(403, "organization_suspended", "The organization of this key is suspended.")
        return Caller(identity, peer)

    async def _state(self, organization_id: str) -> str:
        state = self._states.get(organization_id)
        if state is None:
            generation = self._generation
            found = await self._threads.read(
                lambda c: accounts.organization(c, organization_id=organization_id)
            )
            state = found.state if found is not None else "gone"
            if len(self._states) >= STATES_LIMIT:
                self._states.clear()
            if generation == self._generation:  # else what was read may be from before the change
                self._states[organization_id] = state
        return state

    def note_use(self, key_id: str, *, at: int) -> None:
        """Remember that a key was used; past TOUCH_LIMIT keys nothing more is remembered."""
        if key_id in self._used or len(self._used) < TOUCH_LIMIT:
            self._used[key_id] = at

    async def write_use(self) -> None:
        """Write when keys were last used since the last call."""
        used, self._used = self._used, {}
        if used:
            await self._threads.write(lambda c: accounts.touch_api_keys(c, used=used))


def _token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise _unauthenticated("This needs a key.")
    if len(token) > TOKEN_LIMIT or not token.startswith(KEY_MARK) or not token.isascii():
        raise _unauthenticated("The key is unknown, expired or revoked.")
    return token
