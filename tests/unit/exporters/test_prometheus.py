"""`backplane.exporters.prometheus`: families as prometheus-client has them, for a registry of the application."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from backplane import Backplane, BackplaneCollector, MissingDependencyError
from backplane.exporters.prometheus import families, families_of_scrape
from backplane.metrics.metric import Distribution, Metric
from backplane.metrics.siblings import Scrape
from backplane.metrics.snapshot import snapshot
from backplane.metrics.table import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric as Family

pytestmark = pytest.mark.anyio


def values(shown: Iterable[Family]) -> dict[tuple[str, ...], float]:
    """Return the value of each sample, by its name and the values of its labels."""
    return {(sample.name, *sample.labels.values()): sample.value for family in shown for sample in family.samples}


async def test_own_registry() -> None:
    """A registry of the application shows this process, with the state that it has at the moment."""
    registry = CollectorRegistry()
    backplane, pid = Backplane("memory://"), str(os.getpid())
    registry.register(BackplaneCollector(backplane))
    before = generate_latest(registry).decode()
    assert f'backplane_link_up{{worker="{pid}"}} 0.0' in before
    async with backplane:
        await backplane.publish("a", "b")
        shown = values(registry.collect())
    assert shown["backplane_link_up", pid] == 1
    assert shown["backplane_publishes_total", pid, "ok"] == 1
    assert shown["backplane_publishes_total", pid, "unavailable"] == 0
    assert f'backplane_link_up{{worker="{pid}"}} 0.0' in generate_latest(registry).decode()


async def test_in_another_thread() -> None:
    """A framework may call the registry in a thread."""
    registry = CollectorRegistry()
    async with Backplane("memory://") as backplane:
        registry.register(BackplaneCollector(backplane))
        text = await asyncio.to_thread(generate_latest, registry)
    assert f'backplane_link_up{{worker="{os.getpid()}"}} 1.0'.encode() in text


def test_names_are_described() -> None:
    """Registering it does not read it, and a second one in the same registry is refused by the registry."""
    collector = BackplaneCollector(Backplane("memory://"))
    described = list(collector.describe())
    assert [family.samples for family in described] == [[] for _ in METRICS]
    registry = CollectorRegistry()
    registry.register(collector)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(BackplaneCollector(Backplane("memory://")))


def test_every_metric_is_shown() -> None:
    """Each metric of the table is a family with its own name, kind, help and unit, and `worker` first."""
    shown = {
        family.name + "_total" * (family.type == "counter"): family
        for family in families([snapshot(Backplane("memory://"))])
    }
    assert list(shown) == [metric.name for metric in METRICS]
    for metric in METRICS:
        family = shown[metric.name]
        assert (family.type, family.documentation, family.unit) == (metric.kind, metric.help, metric.unit)
        for sample in family.samples:
            extra = ("le",) if sample.name.endswith("_bucket") else ()
            assert tuple(sample.labels) == ("worker", *metric.labels, *extra)


def test_histogram(monkeypatch: pytest.MonkeyPatch) -> None:
    """The buckets are cumulative, and the last one holds all."""
    row = Metric(
        name="backplane_round_seconds",
        kind="histogram",
        help="How long.",
        unit="seconds",
        labels=("stage",),
        read=lambda _: [(("received",), Distribution((0.001, 0.1, 1.0), (3, 2, 0, 1), 4.5))],
    )
    for name in ("snapshot", "table"):
        monkeypatch.setattr(f"backplane.metrics.{name}.METRICS", (row,))
    monkeypatch.setattr("backplane.exporters.prometheus.METRICS", (row,))
    assert values(families([{**snapshot(Backplane("memory://")), "worker": "7"}])) == {
        ("backplane_round_seconds_bucket", "7", "received", "0.001"): 3,
        ("backplane_round_seconds_bucket", "7", "received", "0.1"): 5,
        ("backplane_round_seconds_bucket", "7", "received", "1.0"): 5,
        ("backplane_round_seconds_bucket", "7", "received", "+Inf"): 6,
        ("backplane_round_seconds_count", "7", "received"): 6,
        ("backplane_round_seconds_sum", "7", "received"): 4.5,
    }


def test_missing_workers() -> None:
    """Workers that did not answer are named and counted; the others are there with their numbers."""
    taken = [{**snapshot(Backplane("memory://")), "worker": pid} for pid in ("1", "2")]
    shown = values(families_of_scrape(Scrape(taken, ["3"])))
    assert [shown["backplane_worker_up", pid] for pid in ("1", "2", "3")] == [1, 1, 0]
    assert shown["backplane_scrape_workers_missing",] == 1
    assert [shown["backplane_link_up", pid] for pid in ("1", "2")] == [0, 0]
    assert ("backplane_link_up", "3") not in shown
    assert values(families_of_scrape(Scrape(taken, [])))["backplane_scrape_workers_missing",] == 0


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the command that installs it."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fastapi-backplane\[prometheus\]'"):
        BackplaneCollector(Backplane("memory://"))
