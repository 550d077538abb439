"""Measures of delivery: attempts by result and provider, their time, doubts, how late the queue is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from server.http.metrics import Measure, MeasureKind
from storage import queue_view

if TYPE_CHECKING:
    from server.clock import Clock
    from server.tally import Tally
    from server.threads import Threads

SECOND = 1_000_000


def delivery_measures(threads: Threads, clock: Clock, tally: Tally | None) -> Sequence[Measure]:
    """Return what /metrics tells of delivery; tally: None where another process delivers."""

    def late() -> Mapping[tuple[str, ...], float]:
        now = clock.now()
        oldest = threads.store.database.read(lambda c: queue_view.oldest_due(c, now=now))
        return {(): 0.0 if oldest is None else max(0, now - oldest) / SECOND}

    age = Measure(
        "mailagents_queue_oldest_due_seconds",
        "How long the delivery that is due longest has been waiting for its attempt.",
        MeasureKind.GAUGE,
        late,
    )
    return (age,) if tally is None else (age, *_attempts(tally))


def _attempts(tally: Tally) -> Sequence[Measure]:
    def results() -> Mapping[tuple[str, ...], float]:
        return {labels: float(count) for labels, count in tuple(tally.results.items())}

    return (
        Measure(
            "mailagents_delivery_attempts",
            "Attempts by what they came to and whose host answered, a delivery each.",
            MeasureKind.COUNTER,
            results,
            ("result", "provider"),
        ),
        Measure(
            "mailagents_delivery_attempt_seconds",
            "How long attempts took.",
            MeasureKind.HISTOGRAM,
            lambda: dict.fromkeys(((),), tally.seconds_sum),
            buckets=lambda: tuple(tally.buckets()),
        ),
        Measure(
            "mailagents_delivery_in_doubt",
            "Attempts after which the other server may have the message, and may not.",
            MeasureKind.COUNTER,
            lambda: {(): float(tally.in_doubt)},
        ),
    )
