"""Metrics in the form of prometheus-client: families of samples, and a collector for a registry of the application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from backplane.errors import MissingDependencyError
from backplane.metrics.metric import Distribution
from backplane.metrics.snapshot import samples_in, snapshot
from backplane.metrics.table import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.core import Exemplar
    from prometheus_client.metrics_core import Metric as Family

    from backplane.core import Backplane
    from backplane.metrics.metric import Metric
    from backplane.metrics.siblings import Scrape

__all__ = ["BackplaneCollector", "families", "families_of_scrape", "require_prometheus"]

# Scrapes without an answer: what no worker can measure of itself.
_UP: Final = "backplane_worker_up"
_MISSING: Final = "backplane_scrape_workers_missing"


class BackplaneCollector:
    """The metrics of this process, for a registry of prometheus-client that the application serves by itself.

        REGISTRY.register(BackplaneCollector(backplane))

    It shows this process alone, in each sample as the label `worker`; `metrics_routes` shows all workers of a server.
    It can be read in any thread, at any time: before the start and after the stop the counters are 0. It is not part of
    what the multiprocess mode of prometheus-client collects, which knows no collectors.

    Args:
        backplane: What is measured.

    Raises:
        MissingDependencyError: prometheus-client is not installed.
    """

    def __init__(self, backplane: Backplane) -> None:
        require_prometheus("BackplaneCollector")
        self._backplane = backplane

    def collect(self) -> Iterator[Family]:
        """Return every metric with its samples."""
        return families([snapshot(self._backplane)])

    def describe(self) -> Iterator[Family]:
        """Return every metric without samples: a registry asks for the names before the application is started."""
        return families([])


def require_prometheus(user: str) -> None:
    """Check that prometheus-client is installed.

    Args:
        user: What needs it.

    Raises:
        MissingDependencyError: It is not; the message names the command that installs it.
    """
    try:
        import prometheus_client  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise MissingDependencyError(
            f"{user} needs a package that is not installed ({error}): pip install 'fastapi-backplane[prometheus]'"
        ) from error


def families(snapshots: Sequence[dict[str, Any]]) -> Iterator[Family]:
    """Return every metric of the table, with the samples of each of these workers."""
    for metric in METRICS:
        family = _family(metric)
        for taken in snapshots:
            for labels, value in samples_in(taken, metric):
                if isinstance(value, Distribution):
                    family.add_metric((taken["worker"], *labels), _buckets(value), value.total)
                else:
                    family.add_metric((taken["worker"], *labels), value)
        yield family


def families_of_scrape(scrape: Scrape) -> Iterator[Family]:
    """Return what the workers of a server measure, and which of them did not answer."""
    from prometheus_client.core import GaugeMetricFamily

    yield from families(scrape.snapshots)
    up = GaugeMetricFamily(_UP, "Whether the worker answered this scrape, within a second.", labels=("worker",))
    for taken in scrape.snapshots:
        up.add_metric((taken["worker"],), 1)
    for worker in scrape.missing:
        up.add_metric((worker,), 0)
    yield up
    yield GaugeMetricFamily(_MISSING, "Workers of this server that did not answer this scrape.", len(scrape.missing))


def _buckets(value: Distribution) -> list[tuple[str, int, Exemplar | None]]:
    """Return the buckets, with the exemplars, which the text format of Prometheus leaves out and OpenMetrics has."""
    from prometheus_client.core import Exemplar

    exemplars = {
        place: Exemplar({"trace_id": each.trace_id}, each.value, each.at) for place, each in value.exemplars.items()
    }
    return [(bound, count, exemplars.get(place)) for place, (bound, count) in enumerate(value.buckets())]


def _family(metric: Metric) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    kinds = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}
    return kinds[metric.kind](metric.name, metric.help, labels=("worker", *metric.labels), unit=metric.unit)
