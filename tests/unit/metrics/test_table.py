"""`backplane.metrics.table`: names as Prometheus wants them, all series from the start, labels of a bounded number."""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient

from backplane import Backplane
from backplane.metrics.metric import Distribution
from backplane.metrics.table import METRICS, Metric
from backplane.metrics.view import view_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

    from backplane.metrics.metric import Value

pytestmark = pytest.mark.anyio

UNBOUNDED = {"channel", "client", "client_key", "user", "address", "host", "url", "id", "reason_text"}


def samples(backplane: Backplane) -> dict[tuple[str, ...], Value]:
    """Return the value of each series of this worker, by the name of the metric and the values of its labels."""
    view = view_of(backplane)
    return {(metric.name, *labels): value for metric in METRICS for labels, value in metric.read(view)}


def test_names_are_unique() -> None:
    """Each metric is in the table once."""
    names = [metric.name for metric in METRICS]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_conventions(metric: Metric) -> None:
    """Names have the prefix, the unit last, and `_total` after it where they are counters; help is a sentence."""
    assert re.fullmatch(r"backplane_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    stem = metric.name.removesuffix("_total")
    for unit in ("seconds", "bytes"):
        assert stem.endswith(f"_{unit}") == (metric.unit == unit)
    assert metric.help.endswith(".")
    assert "\n" not in metric.help


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_labels(metric: Metric) -> None:
    """No label can have a value for each channel, client or address, and `worker` is added to all by the exporters."""
    assert not UNBOUNDED & set(metric.labels)
    assert "worker" not in metric.labels
    assert all(re.fullmatch(r"[a-z_]+", label) for label in metric.labels)


async def test_every_series_is_there_from_the_start() -> None:
    """The series of a worker that has done nothing are those of one that has worked: each at 0 and none twice."""
    backplane = Backplane("memory://")
    stopped = samples(backplane)
    async with backplane:
        idle = samples(backplane)
        async with backplane.subscribe("news") as messages:
            await backplane.publish("news", "hello")
            await anext(aiter(messages))
            busy = samples(backplane)
    unlabelled = {key for key in idle if key[0] != "backplane_info"}
    assert {key for key in stopped if key[0] != "backplane_info"} == unlabelled
    assert {key for key in busy if key[0] != "backplane_info"} == unlabelled
    counters = {metric.name for metric in METRICS if metric.kind == "counter"} - {"backplane_worker_cpu_seconds_total"}
    assert {key: value for key, value in stopped.items() if key[0] in counters and not _is_zero(value)} == {}
    assert busy["backplane_publishes_total", "ok"] == 1
    assert busy["backplane_deliveries_total", ""] == 1
    assert (stopped["backplane_link_up",], busy["backplane_link_up",]) == (0, 1)


async def test_groups_of_channels() -> None:
    """Messages and joins are separated by the group of their channel, and add up to the figures of `statistics`."""
    async with (
        Backplane("memory://", cluster=True, channel_group={"room:*": "rooms", "ops:*": "ops"}) as backplane,
        backplane.subscribe("room:1", "room:2", "news") as messages,
    ):
        idle = samples(backplane)
        for channel in ("room:1", "news"):
            await backplane.publish(channel, "four")
            await anext(aiter(messages))
        busy, statistics = samples(backplane), backplane.statistics()
    groups = ("other", "rooms", "ops")
    assert [idle["backplane_deliveries_total", group] for group in groups] == [0, 0, 0]
    assert [busy["backplane_deliveries_total", group] for group in groups] == [1, 1, 0]
    assert [busy["backplane_delivered_bytes_total", group] for group in groups] == [4, 4, 0]
    assert [busy["backplane_messages_received_total", group] for group in groups] == [1, 1, 0]
    assert [busy["backplane_received_bytes_total", group] for group in groups] == [4, 4, 0]
    assert [busy["backplane_joins", group] for group in groups] == [1, 2, 0]
    assert (statistics.delivered, statistics.offered, statistics.offered_bytes) == (2, 2, 8)
    assert busy.keys() == idle.keys()


def test_open_connections() -> None:
    """They are counted by how they are served, from their accept until they end."""
    backplane = Backplane("memory://")

    async def serve(websocket: WebSocket) -> None:
        async with backplane.connect(websocket) as connection:
            async for _ in connection:
                pass

    async def read(_: Request) -> Response:
        found = samples(backplane)
        names = ("lane", "asgi", "sse")
        return JSONResponse({name: found["backplane_open_connections", name] for name in names})

    app = Starlette(lifespan=backplane.lifespan, routes=[WebSocketRoute("/", serve), Route("/read", read)])
    with TestClient(app) as client:
        assert client.get("/read").json() == {"lane": 0, "asgi": 0, "sse": 0}
        with client.websocket_connect("/"):
            assert client.get("/read").json() == {"lane": 0, "asgi": 1, "sse": 0}
        while client.get("/read").json()["asgi"]:
            pass


def _is_zero(value: Value) -> bool:
    return not any(value.counts) if isinstance(value, Distribution) else not value


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
async def test_samples_fit_their_labels(metric: Metric) -> None:
    """Each sample has a value for each label, and each series is there once."""
    async with Backplane("memory://") as backplane:
        found = [labels for labels, _ in metric.read(view_of(backplane))]
    assert found
    assert len(set(found)) == len(found)
    assert {len(labels) for labels in found} == {len(metric.labels)}


async def test_no_secret_is_read() -> None:
    """The worker is described without URL, password or channel."""
    backplane = Backplane("redis://someone:secret@broker.example:6379/?prefix=shop:")
    text = repr(samples(backplane))
    assert "backplane_info" in text
    assert re.findall("secret|someone|broker.example|shop:", text) == []


async def test_another_thread_reads() -> None:
    """A collector of an own registry is called by a thread of the web framework."""
    async with Backplane("memory://") as backplane:
        read = await asyncio.to_thread(samples, backplane)
        assert read["backplane_link_up",] == 1


async def test_wire_of_a_plain_backplane() -> None:
    """`info` names the format in which the worker writes."""
    async with Backplane("memory://?wire_format=plain") as backplane:
        assert [key[-1] for key in samples(backplane) if key[0] == "backplane_info"] == ["plain"]


async def test_worker_figures() -> None:
    """What the process uses is of the right order."""
    read = samples(Backplane("memory://"))
    assert read["backplane_worker_max_fds",] == os.sysconf("SC_OPEN_MAX")
    open_fds, resident = read["backplane_worker_open_fds",], read["backplane_worker_resident_bytes",]
    assert isinstance(open_fds, int | float)
    assert isinstance(resident, int | float)
    assert 3 <= open_fds < os.sysconf("SC_OPEN_MAX")
    assert 5e6 < resident < 5e9
