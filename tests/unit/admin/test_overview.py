"""`backplane.admin.overview`: what the page shows of all workers, and of one that knows no others."""

from __future__ import annotations

import os
from contextlib import aclosing

import pytest

from backplane import Backplane
from backplane.admin.overview import overviews
from tests.unit.admin.kit import browsing
from tests.unit.asgi_client import Client

pytestmark = pytest.mark.anyio


async def test_of_all_workers() -> None:
    """The overview of the cluster, with the broker, this worker's link and its id, and the visitor's rights."""
    async with (
        Backplane("memory://", cluster=True) as backplane,
        browsing(backplane, allow={"tail"}) as client,
        backplane.connect(Client().websocket, "a"),
    ):
        (me,) = await backplane.workers()
        seen = (await client.get("api/overview")).json()
        assert [(worker["id"], worker["state"], worker["connections"]) for worker in seen["workers"]] == [
            (me.id, "live", 1)
        ]
        assert (seen["broker"], seen["link"], seen["is_cluster"], seen["asked_worker"]) == (
            "memory://",
            "live",
            True,
            me.id,
        )
        assert seen["you"] == {"name": "Ada", "allow": ["tail"]}


async def test_of_one_worker() -> None:
    """Without `cluster` the worker shows itself, with rates from the second one on, until it drains."""
    async with Backplane("memory://") as backplane, aclosing(overviews(backplane)) as seen:
        async with backplane.connect(Client().websocket, "a"):
            first = await anext(seen)
            assert (first["is_cluster"], first["verdict"], first["problems"]) == (False, "The worker is live.", ())
            (worker,) = first["workers"]
            assert (worker["pid"], worker["connections"], worker["rates"]) == (os.getpid(), 1, None)
            await backplane.publish("a", "b")
            (worker,) = (await anext(seen))["workers"]
            assert worker["rates"]["deliveries"] > 0
            assert worker["cpu"] is not None
        await backplane.drain()
        with pytest.raises(StopAsyncIteration):
            await anext(seen)


@pytest.mark.parametrize("cluster", [True, False])
async def test_not_started(cluster: bool) -> None:
    """A worker that is not started, or has drained, answers 503, and its files are served all the same."""
    backplane = Backplane("memory://", cluster=cluster)
    async with browsing(backplane) as client:
        if cluster:
            assert (await client.get("api/overview")).status_code == 503
        assert (await client.get("")).status_code == 200
        async with backplane:
            await backplane.drain()
            assert (await client.get("api/overview")).status_code == 503
