"""`backplane.exporters.opentelemetry`: the table as instruments of a real SDK, read at each export."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, InMemoryMetricReader, NumberDataPoint, Sum

from backplane import Backplane, ConfigurationError, MissingDependencyError, instrument_metrics
from backplane.exporters.opentelemetry import instrument_name
from backplane.metrics.metric import Distribution, Metric
from backplane.metrics.table import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.metrics.export import Metric as Exported

pytestmark = pytest.mark.anyio

PID = str(os.getpid())


@pytest.fixture
def reader() -> InMemoryMetricReader:
    """What a test exports to."""
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    """A real provider of the SDK."""
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    yield provider
    provider.shutdown()


def exported(reader: InMemoryMetricReader) -> dict[str, Exported]:
    """Return what an export sends, by the names of the instruments."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        metric.name: metric
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def points(metric: Exported) -> dict[tuple[tuple[str, Any], ...], float]:
    """Return the points of an instrument by their attributes without the worker, which is this process in each."""
    found: dict[tuple[tuple[str, Any], ...], float] = {}
    for point in metric.data.data_points:
        assert isinstance(point, NumberDataPoint)
        attributes = dict(point.attributes or {})
        assert attributes.pop("worker") == PID
        found[tuple(attributes.items())] = point.value
    return found


async def test_values(reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    """Each export has what the worker has counted so far; series that are known begin at 0."""
    async with Backplane("memory://") as backplane:
        instrument_metrics(backplane, provider)
        first = exported(reader)
        assert points(first["backplane.link.up"]) == {(): 1}
        assert points(first["backplane.publishes"])[("outcome", "ok"),] == 0
        await backplane.publish("a", "b")
        second = await asyncio.to_thread(exported, reader)  # an exporter has a thread
        assert points(second["backplane.publishes"])[("outcome", "ok"),] == 1
        assert points(second["backplane.publishes"])[("outcome", "unknown"),] == 0
    assert points(exported(reader)["backplane.link.up"]) == {(): 0}


async def test_every_metric(reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    """Each metric of the table is an instrument with its kind, unit and description."""
    async with Backplane("memory://") as backplane:
        instrument_metrics(backplane, provider)
        found = exported(reader)
    for metric in METRICS:
        if metric.kind == "histogram":
            assert {f"{instrument_name(metric)}{suffix}" for suffix in (".bucket", ".count", ".sum")} <= found.keys()
            continue
        instrument = found[instrument_name(metric)]
        assert instrument.description == metric.help
        assert instrument.unit == {"": "", "seconds": "s", "bytes": "By"}[metric.unit]
        if metric.kind == "gauge":
            assert isinstance(instrument.data, Gauge)
        else:
            assert isinstance(instrument.data, Sum)
            assert instrument.data.is_monotonic


def test_names_are_unique() -> None:
    """No two metrics become one instrument, and none has characters that OpenTelemetry refuses."""
    names = [instrument_name(metric) for metric in METRICS]
    assert len(set(names)) == len(names)
    assert [name for name in names if not name.replace(".", "").isalnum()] == []


def test_histogram(reader: InMemoryMetricReader, provider: MeterProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """A histogram is three counters, of which the buckets are cumulative; a label without a value is left out."""
    row = Metric(
        name="backplane_round_trip_seconds",
        kind="histogram",
        help="How long.",
        unit="seconds",
        labels=("stage", "group"),
        read=lambda _: [(("received", ""), Distribution((0.1, 1.0), (3, 0, 2), 4.5))],
    )
    monkeypatch.setattr("backplane.exporters.opentelemetry.METRICS", (row,))
    backplane = Backplane("memory://")
    instrument_metrics(backplane, provider)
    found = exported(reader)
    stage = ("stage", "received")
    assert points(found["backplane.round.trip.bucket"]) == {
        (stage, ("le", "0.1")): 3,
        (stage, ("le", "1.0")): 3,
        (stage, ("le", "+Inf")): 5,
    }
    assert points(found["backplane.round.trip.count"]) == {(stage,): 5}
    assert points(found["backplane.round.trip.sum"]) == {(stage,): 4.5}
    assert found["backplane.round.trip.sum"].unit == "s"


async def test_a_backplane_that_is_discarded(reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    """Instruments cannot be removed, so they do not keep a backplane alive, and report nothing after it."""
    backplane = Backplane("memory://")
    instrument_metrics(backplane, provider)
    gone = weakref.ref(backplane)
    del backplane
    gc.collect()
    assert gone() is None
    assert exported(reader) == {}


def test_the_global_provider() -> None:
    """Without a provider the global one is used, which here is that of the API alone: nothing is exported."""
    instrument_metrics(Backplane("memory://"))


def test_no_provider() -> None:
    """Anything else for a provider is refused."""
    wrong: Any = "http://localhost:4318"
    with pytest.raises(ConfigurationError, match="meter_provider must be a MeterProvider"):
        instrument_metrics(Backplane("memory://"), wrong)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the command that installs it."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fastapi-backplane\[otel\]'"):
        instrument_metrics(Backplane("memory://"))
