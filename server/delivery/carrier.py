"""What an attempt is, whatever the hop: checked, opened, carried, with an outcome for each recipient.

Owns the reading of the message's file, the choice among SMTP, the lane home and
the outbox, and what is known to be under way. Turns faults of this machine into
deferrals, and a suppression found at the last moment into its outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from server.delivery import outbox, outcome
from server.delivery.ledger import Suppressed
from server.delivery.letter import Letter, letter_of, read_letter, recoded
from server.delivery.route import Home
from server.mail.recoding import Unencodable
from server.next_hop import NextHopKind
from storage.errors import StorageError
from storage.records import DeliveryState, Outcome

if TYPE_CHECKING:
    from server.delivery.attempt import Group, Outcomes, Transmitter
    from server.delivery.home import Homeward
    from server.delivery.ledger import Ledger
    from server.fresh import Fresh
    from server.threads import Threads
    from storage.records import Delivery


class Carrier:
    """Carries groups by their hops."""

    def __init__(
        self,
        *,
        threads: Threads,
        transmitter: Transmitter,
        homeward: Homeward,
        ledger: Ledger,
        outbox: Path,
        fresh: Fresh | None = None,
    ) -> None:
        self._threads = threads
        self._transmitter = transmitter
        self._homeward = homeward
        self._ledger = ledger
        self._outbox = outbox
        self._fresh = fresh
        self._begun: dict[str, Delivery] = {}

    async def carry(self, group: Group, into: Outcomes | None = None) -> Outcomes:
        """Return an outcome for each delivery of a group; raises LeaseLost and Resting.

        into: where outcomes go as they come: what is raised concerns those that have none there.
        """
        path = self._threads.store.message_path(group.message_id)
        found: Outcomes = {} if into is None else into
        try:
            letter = self._at_hand(group.message_id, path)
            if letter is None:
                letter = await self._threads.run(read_letter, path)
            while going := tuple(one for one in group.deliveries if one.id not in found):
                try:
                    found.update(await self._by_hop(group, going, letter, found))
                except Suppressed as stop:
                    # Its connection is gone; the others go again, in a transaction of their own.
                    found.update({key: suppressed(cause) for key, cause in stop.causes.items()})
        except (OSError, StorageError) as error:
            reason = f"this server cannot read or keep the message now: {type(error).__name__}"
            broken = outcome.deferred("policy", reason, enhanced="4.3.0")
            found.update({one.id: broken for one in group.deliveries if one.id not in found})
        return found

    def _at_hand(self, message_id: str, path: Path) -> Letter | None:
        octets = self._fresh.take(message_id) if self._fresh is not None else None
        return None if octets is None else letter_of(octets, path)

    def begun(self, group: Group) -> list[Delivery]:
        """Return, once, those of a group whose transmission began."""
        found = [self._begun.pop(one.id, None) for one in group.deliveries]
        return [one for one in found if one is not None]

    async def _by_hop(
        self, group: Group, going: tuple[Delivery, ...], letter: Letter, found: Outcomes
    ) -> Outcomes:
        hop = group.hop
        if isinstance(hop, Home):
            return {one.id: await self._homeward.deliver(one, letter) for one in going}
        if hop.kind is NextHopKind.CAPTURE:
            return await self._threads.run(outbox.capture, self._outbox, going, letter)
        if hop.kind is NextHopKind.REFUSE:
            text = f"this server sends no mail to {group.domain}"
            return {one.id: outcome.bounced("policy", 550, "5.7.1", text) for one in going}
        if going[0].envelope.body == "BINARYMIME":
            try:
                letter = await self._threads.run(recoded, letter)
            except Unencodable as error:
                text = f"the message is binary and cannot be converted: {error}"
                return {one.id: outcome.bounced("policy", 554, "5.6.3", text) for one in going}
        if letter.bare_ends:
            text = "the message has a CR or LF that stands alone, which no server may send"
            return {one.id: outcome.bounced("policy", 554, "5.6.0", text) for one in going}
        part = _replaced(group, going)
        return await self._transmitter.send(part, letter, begin=self._begin, into=found)

    async def _begin(self, deliveries: Sequence[Delivery]) -> None:
        await self._ledger.begin(deliveries)
        self._begun.update((one.id, one) for one in deliveries)


def suppressed(cause: str) -> Outcome:
    """Return the outcome of a recipient that may not be written to."""
    text = f"the address is suppressed: {cause}"
    return Outcome(DeliveryState.SUPPRESSED, 550, "5.7.1", text, "policy")


def _replaced(group: Group, going: tuple[Delivery, ...]) -> Group:
    return group if len(going) == len(group.deliveries) else replace(group, deliveries=going)
