"""Measures of what the DNS says of clients, and of greylisting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from server.http.metrics import Measure, MeasureKind

if TYPE_CHECKING:
    from server.greylist import Greylist
    from server.names.zones import Zones


def measures_of(zones: Zones, greylist: Greylist) -> Sequence[Measure]:
    """Return what /metrics tells of DNS lists and greylisting; there is nothing where neither is used."""

    def answers() -> Mapping[tuple[str, ...], float]:
        return {labels: float(count) for labels, count in tuple(zones.counts.items())}

    def greylisted() -> Mapping[tuple[str, ...], float]:
        return {(what,): float(count) for what, count in tuple(greylist.counts.items())}

    return (
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
