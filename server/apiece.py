"""A message taken in recipient by recipient: whom it cannot reach keeps it from nobody else.

Owns the split of one envelope for doors that owe each recipient an answer of its own
(RFC 2033 4.2). What leads nowhere is answered at once; the rest goes to intake as a
message for each organization, and one for each inbox whose owner's acts the rules ask about,
all in one batch of the journal. Decides nothing itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from server.refusal import Refusal
from server.routing import Group, sort
from storage.errors import Full
from storage.records import Spooled

if TYPE_CHECKING:
    from server.arrival import Arrival, Receipt
    from server.routing import Routing
    from server.threads import Threads
    from storage.records import Recipient

log = structlog.get_logger("intake")

INBOXES_APART = 50  # of one message; what is beyond them is judged together

Take = Callable[["Arrival"], Awaitable["Receipt"]]


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom a recipient belongs to. mailbox_id: the inbox that is judged alone, '' with its organization."""

    organization_id: str
    mailbox_id: str = ""


@dataclass(frozen=True, slots=True)
class Apiece:
    """Takes in by `take`, which accepts a whole envelope or refuses it.

    is_apart: whether rules may rule otherwise for an inbox than for its neighbours.
    """

    take: Take
    routing: Routing
    threads: Threads
    is_apart: Callable[[str], bool] = lambda _mailbox_id: False

    async def accept(self, arrival: Arrival) -> tuple[Receipt | Refusal, ...]:
        """Return an answer for each recipient of the envelope, in its order.

        Spooled content is taken over, as by `take`. Raises nothing but what ends a task.
        """
        recipients = arrival.envelope.recipients
        owners = _together([await self._owner(recipient) for recipient in recipients])
        shares = list(dict.fromkeys(owner for owner in owners if isinstance(owner, Owner)))
        contents = await self._contents(arrival.content, len(shares))
        taken = await asyncio.gather(
            *(
                self._take_share(
                    arrival, [r for r, o in zip(recipients, owners, strict=True) if o == owner], content
                )
                for owner, content in zip(shares, contents, strict=True)
            )
        )
        by_share = dict(zip(shares, map(iter, taken), strict=True))
        return tuple(next(by_share[owner]) if isinstance(owner, Owner) else owner for owner in owners)

    async def _owner(self, recipient: Recipient) -> Owner | Refusal:
        """Return whom a recipient belongs to, or why no mail is taken for it."""
        groups: dict[str, Group] = {}
        try:
            sort(groups, recipient, await self.routing.resolve(recipient.address))
        except Refusal as refusal:
            return refusal
        except Exception:  # the same as at the top of a session: one recipient's fault
            log.exception("recipient not resolved")
            return _broken()
        ((organization_id, group),) = groups.items()
        inboxes = [local.mailbox.id for _, local in group.local if self.is_apart(local.mailbox.id)]
        return Owner(organization_id, inboxes[0] if inboxes else "")

    async def _contents(self, content: bytes | Spooled, count: int) -> Sequence[bytes | Spooled | Refusal]:
        """Return the content once for each share: a spool file goes away with the record that names it."""
        if isinstance(content, bytes):
            return [content] * count
        store = self.threads.store
        if count == 0:
            await self.threads.run(store.discard, content)
        contents: list[bytes | Spooled | Refusal] = [content] * min(count, 1)
        for _ in range(count - 1):
            try:
                contents.append(await self.threads.run(store.duplicate, content))
            except Full:
                contents.append(Refusal(452, "4.3.1", "Insufficient system storage, try again later"))
            except Exception:
                log.exception("content not duplicated")
                contents.append(_broken())
        return contents

    async def _take_share(
        self, arrival: Arrival, recipients: list[Recipient], content: bytes | Spooled | Refusal
    ) -> list[Receipt | Refusal]:
        if isinstance(content, Refusal):
            return [content] * len(recipients)
        share = replace(
            arrival, envelope=replace(arrival.envelope, recipients=tuple(recipients)), content=content
        )
        try:
            return [await self.take(share)] * len(recipients)
        except Refusal as refusal:
            return await self._told_apart(recipients, refusal)
        except Exception:
            # The file stays: what failed may have failed behind the commit, and recovery tells.
            log.exception("message not taken in")
            return [_broken()] * len(recipients)

    async def _told_apart(self, recipients: list[Recipient], refusal: Refusal) -> list[Receipt | Refusal]:
        """Answer a refused share: who was closed meanwhile is the only one refused for it."""
        owners = [await self._owner(recipient) for recipient in recipients]
        if all(isinstance(owner, Owner) for owner in owners):
            return [refusal] * len(recipients)
        return [_broken() if isinstance(owner, Owner) else owner for owner in owners]


def _together(owners: list[Owner | Refusal]) -> list[Owner | Refusal]:
    """Leave those beyond the first inboxes to their organizations: each share is a record of its own."""
    inboxes = dict.fromkeys(one.mailbox_id for one in owners if isinstance(one, Owner) and one.mailbox_id)
    apart = set(list(inboxes)[:INBOXES_APART])
    return [
        replace(one, mailbox_id=one.mailbox_id if one.mailbox_id in apart else "")
        if isinstance(one, Owner)
        else one
        for one in owners
    ]


def _broken() -> Refusal:
    return Refusal(451, "4.3.0", "Local error, try again later")
