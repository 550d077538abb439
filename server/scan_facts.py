"""Which scans a message's rules may ask for, found before its sender is verified.

Owns the beginning of scans beside the DNS' work: facts that are not known yet rule
nothing out, so that what begins here is never less than what rules ask for later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.facts import SCANNER_FACTS
from server import evidence
from server.arrival import STAGES_OF, Arrival
from storage import ids

if TYPE_CHECKING:
    from server.rulebook import Rulebook
    from server.scanners.scanning import Scanning, Scans


async def begin_scans(
    scanning: Scanning, rulebook: Rulebook, arrival: Arrival, letter: evidence.Letter
) -> Scans:
    """Begin what the rules of a message's stages may ask for; OSError where its file is gone."""
    identity = arrival.identity
    case = evidence.Case(
        arrival.peer,
        identity,
        arrival.envelope,
        arrival.source,
        recipient_count=len(arrival.envelope.recipients),
        letter=letter,
    )
    facts = evidence.EarlyFacts(case)
    wanted: set[str] = set()
    for stage in (*STAGES_OF[arrival.source], "deliver"):
        wanted |= rulebook.wanted(stage, facts)
    return await scanning.begin(
        wanted & SCANNER_FACTS.keys(),
        peer=arrival.peer,
        envelope=arrival.envelope,
        content=arrival.content,
        queue_id=arrival.message_id or ids.new("scan"),
        user=identity.id if identity is not None else "",
    )
