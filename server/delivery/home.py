"""The lane home: queued mail for the appliance's own domains goes back through intake.

Owns the making of one arrival a recipient, whose message id follows from the
delivery's, so that a retry after a crash never doubles it. What intake refuses
becomes an outcome as from any other server. The DSN parameters end here with an
inbox and go on with a forward: a recipient is never confirmed twice (RFC 3461 5.2.7).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from server.arrival import Arrival
from server.delivery import outcome
from server.refusal import Refusal
from server.routing import Forward
from storage.records import DeliveryState, Envelope, Handover, Outcome, Peer, Recipient, Source, Spooled

if TYPE_CHECKING:
    from server.clock import Clock
    from server.delivery.letter import Letter
    from server.intake import Intake
    from server.routing import Routing
    from server.threads import Threads
    from storage.records import Delivery

COPY_OCTETS = 1024 * 1024


class Homeward:
    """Delivers to inboxes of this appliance."""

    def __init__(
        self, *, intake: Intake, routing: Routing, threads: Threads, clock: Clock, hostname: str
    ) -> None:
        self._intake = intake
        self._routing = routing
        self._threads = threads
        self._clock = clock
        self._hostname = hostname

    async def deliver(self, delivery: Delivery, letter: Letter) -> Outcome:
        """Hand one recipient's message to intake and return how that ended."""
        started = self._clock.monotonic()
        resolution = await self._routing.resolve(delivery.recipient.address)
        goes_on = isinstance(resolution, Forward)
        arrival = Arrival(
            source=Source.LOCAL,
            peer=Peer(address="", helo=self._hostname),
            envelope=delivery.envelope if goes_on else without_parameters(delivery.envelope),
            content=await self._content(letter),
            message_id=derived_id(delivery.id),
        )
        try:
            await self._intake.accept(arrival)
        except Refusal as refusal:
            state = DeliveryState.DEFERRED if refusal.temporary else DeliveryState.BOUNCED
            found = Outcome(state, refusal.code, refusal.enhanced, refusal.public, "policy", self._hostname)
        else:
            handover = Handover.PASSED if goes_on else Handover.DELIVERED
            text = "forwarded" if goes_on else "delivered to the inbox"
            found = outcome.delivered(text, handover=handover, host=self._hostname)
        seconds = self._clock.monotonic() - started
        return replace(found, duration=round(seconds * 1_000_000))

    async def _content(self, letter: Letter) -> bytes | Spooled:
        if letter.whole is not None:
            return letter.whole
        return await self._threads.run(_copy, letter, self._intake)


def without_parameters(envelope: Envelope) -> Envelope:
    """Return an envelope without NOTIFY, ORCPT, RET and ENVID."""
    recipients = tuple(Recipient(one.address) for one in envelope.recipients)
    return replace(envelope, recipients=recipients, ret=None, envid=None)


def derived_id(identifier: str) -> str:
    """Return the message id that belongs to a delivery's or an event's id, always the same."""
    return "msg_" + identifier.partition("_")[2]


def _copy(letter: Letter, intake: Intake) -> Spooled:
    writer = intake.spool()
    try:
        with letter.path.open("rb") as file:
            while chunk := file.read(COPY_OCTETS):
                writer.write(chunk)
        return writer.finish()
    except BaseException:
        writer.discard()
        raise
