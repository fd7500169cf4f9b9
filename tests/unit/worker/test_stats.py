"""`backplane.worker.stats`: pages of the channels and clients of one worker, of which there can be many."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from backplane import Backlog, Backplane
from backplane.message import Message
from backplane.stats.queries import ChannelQuery, ConnectionQuery
from backplane.worker import stats as module
from backplane.worker.stats import RuntimeStats
from tests.unit.asgi_client import Client
from tests.unit.doubles import FakeClient, RecordingSubscriber, until_idle

if TYPE_CHECKING:
    from backplane.worker.runtime import Runtime

pytestmark = pytest.mark.anyio


def runtime_of(backplane: Backplane) -> Runtime:
    """Return the parts of a started backplane."""
    runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
    assert runtime is not None
    return runtime


def waiting(client: FakeClient, *texts: str) -> FakeClient:
    """Let messages wait for a client."""
    for text in texts:
        client.outbox.offer(Message(channel="a", data=text))
    return client


async def test_ten_thousand_channels() -> None:
    """A page of them fits into a message, without those of this package."""
    async with Backplane("memory://", cluster=True) as backplane:
        runtime = runtime_of(backplane)
        subscriber = RecordingSubscriber()
        await asyncio.gather(*(runtime.hub.join(f"room:{number:05}", subscriber) for number in range(10_000)))
        stats = RuntimeStats(runtime)
        page = stats.channels(ChannelQuery(sort="name", limit=2, after="room:00041"))
        assert page == {
            "total": 9_958,
            "rows": [{"name": "room:00042", "subscribers": 1}, {"name": "room:00043", "subscribers": 1}],
        }
        named = stats.channels(ChannelQuery(names=("room:00007", "room:x")))
        assert named == {"total": 1, "rows": [{"name": "room:00007", "subscribers": 1}]}
        assert stats.channels(ChannelQuery(prefix="$")) == {"total": 0, "rows": []}


async def test_a_snapshot() -> None:
    """It has the channels of the worker, in a bounded size; after a watch nothing is held for the next one."""
    async with Backplane("memory://", cluster=True) as backplane:
        runtime = runtime_of(backplane)
        for number in range(100):
            await runtime.hub.join(f"channel:{number}:{'x' * 200}", RecordingSubscriber())
        await runtime.hub.join("zzz", RecordingSubscriber())
        for _ in range(3):
            await backplane.publish("zzz", "12345")
        await until_idle()
        stats = RuntimeStats(runtime)
        stats.watched(True)
        taken = stats.snapshot(2)
        assert asdict(taken.channels[0]) == {"name": "zzz", "subscribers": 1, "messages": 3, "size_bytes": 15}
        assert (len(taken.channels), len(taken.encode()) < 10_000) == (20, True)
        stats.watched(False)
        assert stats.snapshot(2).channels[0].messages == 3


async def test_five_thousand_clients() -> None:
    """Other work goes on while they are looked at; the page has those for which most waits."""
    async with Backplane("memory://", cluster=True) as backplane:
        runtime, passes = runtime_of(backplane), 0
        for number in range(5_000):
            runtime.clients.register(FakeClient(f"{number:016x}", None, *map(str, range(300))), None, None)
        slow = waiting(FakeClient("ab", "ada"), "x" * 100, "y")
        slower = waiting(FakeClient("cd", "ada"), "x" * 200)
        ended = waiting(FakeClient("ef"), "x" * 300)
        ended.is_over = True
        for client in (slow, slower, ended):
            runtime.clients.register(client, "key", None)
        stats = RuntimeStats(runtime)
        task = asyncio.create_task(stats.connections(ConnectionQuery(limit=200)))
        while not task.done():
            passes += 1
            await asyncio.sleep(0)
        page = task.result()
        assert passes > 5_000 / module._SLICE  # pyright: ignore[reportPrivateUsage]
        assert page["total"] == 5_002
        assert [row["id"] for row in page["rows"][:2]] == ["cd", "ab"]
        assert (page["rows"][1]["waiting_messages"], page["rows"][1]["waiting_bytes"]) == (2, 101)
        assert page["rows"][1]["user"] == "ada"
        assert (page["rows"][2]["channel_count"], len(page["rows"][2]["channels"])) == (300, 5)
        assert len(json.dumps(page)) < 200_000
        few = await stats.connections(ConnectionQuery(limit=1, client=f"{7:016x}"))
        assert (few["total"], len(few["rows"][0]["channels"])) == (1, 100)
        for registered in tuple(runtime.clients.connected):
            runtime.clients.unregister(registered)


async def test_what_is_dropped() -> None:
    """A client whose backlog drops messages comes first in that order, whatever waits now."""
    async with Backplane("memory://", cluster=True) as backplane, AsyncExitStack() as stack:
        for size in (1, 100):
            client = Client()
            backlog = Backlog(when_full="drop_oldest", max_messages=size)
            await stack.enter_async_context(backplane.connect(client.websocket, "a", backlog=backlog))
        runtime = runtime_of(backplane)
        clients: list[Any] = list(runtime.clients.connected)
        for number in range(3):
            for driver in clients:
                driver.outbox.offer(Message(channel="a", data=str(number)))
        page = await RuntimeStats(runtime).connections(ConnectionQuery(sort="dropped"))
        assert [(row["dropped"], row["waiting_messages"]) for row in page["rows"]] == [(2, 1), (0, 3)]
        assert [row["position"].partition(":")[0] for row in page["rows"]] == ["-2", "0"]
