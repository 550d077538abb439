"""Prometheus metrics: a registry of our own, fed by callables and by HTTP itself.

Owns the exposition and the counters of HTTP requests. The other parts hand in
measures, functions that are asked at each scrape; nothing of theirs is pushed
here. Labels are bounded: routes by template, never by path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

log = structlog.get_logger("metrics")


class MeasureKind(Enum):
    """What a measure's number does: a counter only grows, a gauge goes both ways, a histogram has buckets."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Measure:
    """One number or family of numbers that a part of the appliance can tell.

    read: returns values by label values, `{(): 3.0}` where there are no labels; it is
    called in a thread and may read the database. buckets: of a histogram, upper bounds with how many came
    no higher; its number is the sum.
    """

    name: str
    help: str
    kind: MeasureKind
    read: Callable[[], Mapping[tuple[str, ...], float]]
    labels: tuple[str, ...] = ()
    buckets: Callable[[], Sequence[tuple[str, float]]] | None = None


class _Measures(Collector):
    """Asks each measure at each scrape; one that fails is left out and logged."""

    def __init__(self, measures: Sequence[Measure]) -> None:
        self._measures = measures

    def describe(self) -> Iterable[Metric]:
        """Return nothing: so that registering asks nobody."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield what the measures tell now."""
        for measure in self._measures:
            try:
                values = measure.read()
                if measure.buckets is not None:
                    yield _histogram(measure, values[()], measure.buckets())
                    continue
            except Exception:
                log.exception("a measure failed", measure=measure.name)
                continue
            family = _FAMILIES[measure.kind](measure.name, measure.help, labels=measure.labels)
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family


def _histogram(measure: Measure, total: float, buckets: Sequence[tuple[str, float]]) -> Metric:
    family = HistogramMetricFamily(measure.name, measure.help)
    family.add_metric((), list(buckets), total)
    return family


_FAMILIES: dict[MeasureKind, Callable[..., CounterMetricFamily | GaugeMetricFamily]] = {
    MeasureKind.COUNTER: CounterMetricFamily,
    MeasureKind.GAUGE: GaugeMetricFamily,
}


class Metrics:
    """The registry with the counters of HTTP."""

    def __init__(self, measures: Sequence[Measure] = ()) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Measures(measures))
        self._requests = Counter(
            "mailagents_http_requests",
            "Requests answered, by route and status.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "mailagents_http_request_seconds",
            "Time from request to the end of its answer.",
            buckets=BUCKETS_SECONDS,
            registry=self._registry,
        )
        self._open = Gauge(
            "mailagents_http_requests_open", "Requests being answered now.", registry=self._registry
        )
        self._children: dict[tuple[str, str, int], Counter] = {}

    def began(self) -> None:
        """Count a request that begins."""
        self._open.inc()

    def ended(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered; route: its template."""
        self._open.dec()
        self._seconds.observe(seconds)
        child = self._children.get((method, route, status))
        if child is None:
            child = self._requests.labels(method, route, str(status))
            self._children[method, route, status] = child
        child.inc()

    def expose(self) -> bytes:
        """Return all metrics in the text format; blocking, since measures may read."""
        return generate_latest(self._registry)
