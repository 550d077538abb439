"""Measures of strangers: what the DNS says of them, greylisting, what the SMTP door refused them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from server.http.metrics import Measure, MeasureKind

if TYPE_CHECKING:
    from server.greylist import Greylist
    from server.names.zones import Zones
    from server.smtp.strangers import Strangers


def measures_of(zones: Zones, greylist: Greylist, strangers: Strangers | None) -> Sequence[Measure]:
    """Return what /metrics tells of them; there is nothing of what is not used, or is another process's."""

    def answers() -> Mapping[tuple[str, ...], float]:
        return {labels: float(count) for labels, count in tuple(zones.counts.items())}

    def greylisted() -> Mapping[tuple[str, ...], float]:
        return {(what,): float(count) for what, count in tuple(greylist.counts.items())}

    def refused() -> Mapping[tuple[str, ...], float]:
        return {(why,): float(count) for why, count in tuple(strangers.refused.items())} if strangers else {}

    return (
        Measure(
            "mailagents_smtp_strangers_refused",
            "Connections, messages and recipients refused, or kept waiting (tarpit), by the reason.",
            MeasureKind.COUNTER,
            refused,
            ("reason",),
        ),
        Measure(
            "mailagents_dns_list_answers",
            "Questions to DNS lists, by what came of them.",
            MeasureKind.COUNTER,
            answers,
            ("zone", "answer"),
        ),
        Measure(
            "mailagents_dns_list_usable",
            "Whether a DNS list passed its last test and is asked.",
            MeasureKind.GAUGE,
            zones.usable,
            ("zone", "of"),
        ),
        Measure(
            "mailagents_greylisted",
            "Messages and recipients that the action greylist was asked about, by what it said.",
            MeasureKind.COUNTER,
            greylisted,
            ("answer",),
        ),
    )
