"""Metrics as instruments of OpenTelemetry, read when they are exported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final
from weakref import ref

from backplane.errors import ConfigurationError, MissingDependencyError
from backplane.metrics.metric import Distribution
from backplane.metrics.table import METRICS
from backplane.metrics.view import view_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

    from backplane.core import Backplane
    from backplane.metrics.metric import Metric

__all__ = ["instrument_metrics", "instrument_name"]

_UNITS: Final = {"": "", "seconds": "s", "bytes": "By"}

# A point of an instrument: its value, and the attributes beside `worker`.
_Point = tuple[float, dict[str, str]]


def instrument_metrics(backplane: Backplane, meter_provider: MeterProvider | None = None) -> None:
    """Offer every metric to OpenTelemetry, as an observable instrument that is read at each export, in any thread.

    A name has dots and no unit: `backplane_outbox_bytes` is `backplane.outbox` in `By`, which the exporters to
    Prometheus turn into the same name again. Each point has the attribute `worker`, the process id, so that workers
    which export with one resource do not overwrite each other. A histogram is three counters: `.bucket` with the
    attribute `le`, as Prometheus has it, `.count` and `.sum`, since there are no observable histograms; exemplars are
    left out. A label without a value is no attribute.

    Nothing is added to the path of a message. Call it once for a backplane; before the start of its server's workers
    too, where the SDK is set up before they are forked. It does not keep the backplane alive.

    Args:
        backplane: What is measured, in this process alone.
        meter_provider: Where the instruments are made. Defaults to the global one, which can be set later.

    Raises:
        MissingDependencyError: opentelemetry-api is not installed.
        ConfigurationError: `meter_provider` is none.
    """
    try:
        from opentelemetry import metrics
    except ImportError as error:
        raise MissingDependencyError(
            f"instrument_metrics needs a package that is not installed ({error}): pip install 'fastapi-backplane[otel]'"
        ) from error
    if not isinstance(meter_provider, metrics.MeterProvider | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(
            f"meter_provider must be a MeterProvider of OpenTelemetry, not {meter_provider!r:.100}"
        )
    meter = metrics.get_meter("backplane", meter_provider=meter_provider)
    source = ref(backplane)
    for metric in METRICS:
        for suffix, points in _series_of(metric):
            _create(meter, metric, suffix, _observed(source, metric, points))


def instrument_name(metric: Metric) -> str:
    """Return the name of the instrument of `metric`: with dots, and without what its kind and unit add."""
    stem = metric.name.removesuffix("_total")
    return (stem.removesuffix(f"_{metric.unit}") if metric.unit else stem).replace("_", ".")


def _series_of(metric: Metric) -> Iterable[tuple[str, Callable[[float | Distribution], Iterable[_Point]]]]:
    """Return the instruments of a metric: what its name ends with, and what is read of a value for it."""
    if metric.kind != "histogram":
        return [("", _number)]
    return [(".bucket", _buckets), (".count", _count), (".sum", _sum)]


def _create(
    meter: Meter, metric: Metric, suffix: str, callback: Callable[[CallbackOptions], Iterable[Observation]]
) -> None:
    create = meter.create_observable_gauge if metric.kind == "gauge" else meter.create_observable_counter
    unit = "" if suffix in {".bucket", ".count"} else _UNITS[metric.unit]
    create(instrument_name(metric) + suffix, callbacks=[callback], unit=unit, description=metric.help)


def _observed(
    source: ref[Backplane], metric: Metric, points: Callable[[float | Distribution], Iterable[_Point]]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    from opentelemetry.metrics import Observation

    def observe(_: CallbackOptions) -> Iterator[Observation]:
        backplane = source()
        if backplane is None:
            return
        for labels, value in metric.read(view_of(backplane)):
            named = zip(metric.labels, labels, strict=True)
            attributes = {"worker": str(os.getpid()), **{name: label for name, label in named if label}}
            for number, more in points(value):
                yield Observation(number, {**attributes, **more})

    return observe


def _number(value: float | Distribution) -> Iterable[_Point]:
    assert not isinstance(value, Distribution)
    return [(value, {})]


def _buckets(value: float | Distribution) -> Iterator[_Point]:
    assert isinstance(value, Distribution)
    for bound, count in value.buckets():
        yield count, {"le": bound}


def _count(value: float | Distribution) -> Iterable[_Point]:
    assert isinstance(value, Distribution)
    return [(sum(value.counts), {})]


def _sum(value: float | Distribution) -> Iterable[_Point]:
    assert isinstance(value, Distribution)
    return [(value.total, {})]
