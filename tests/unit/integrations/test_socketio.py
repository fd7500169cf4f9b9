"""`backplane.integrations.socketio`: what a manager does beside the servers of tests/e2e/test_socketio.py."""

# python-socketio has no types:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import socketio  # type: ignore[import-untyped]

from backplane import Backplane, ClosedError, Gap
from backplane.integrations.socketio import BackplaneManager, SyncBackplaneManager
from tests.unit.controlled_adapter import Adapter

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.brokers.broker import Broker

pytestmark = pytest.mark.anyio


class Server:
    """A server of Socket.IO without a web server: it records what its clients are sent.

    Attributes:
        sent: The packets, after the Engine.IO id of each client.
    """

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self.sent: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.io: Any = socketio.AsyncServer(async_mode="asgi", client_manager=manager)
        self.io._send_eio_packet = self._send
        manager.initialize()

    async def _send(self, eio_sid: str, packet: Any) -> None:
        self.sent.put_nowait((eio_sid, packet.encode()))

    async def received(self) -> tuple[str, str]:
        """Return the next packet."""
        async with asyncio.timeout(10):
            return await self.sent.get()


async def test_gap_in_its_place() -> None:
    """After a lost link `on_gap` is called before the first event that follows it."""
    adapter = Adapter()
    seen: list[Gap] = []
    async with Backplane(adapter) as backplane:
        server = Server(BackplaneManager(backplane, "io", on_gap=seen.append))
        await server.manager.connect("one", "/")
        writer = BackplaneManager(backplane, "io", write_only=True)
        await writer.emit("news", 1)
        assert await server.received() == ("one", '42["news",1]')
        adapter.cut()
        await backplane.wait_for_state("degraded")
        await backplane.wait_for_state("live")
        await writer.emit("news", 2)
        assert await server.received() == ("one", '42["news",2]')
        assert [gap.channel for gap in seen] == ["io"]
        await server.manager.stop()
        assert backplane.state == "live"


async def test_client_waits_for_the_subscription() -> None:
    """The first client is connected when the broker has confirmed the channel, or has failed to."""
    adapter = Adapter()
    async with Backplane(adapter) as backplane:
        adapter.subscribe_gate.close()
        server = Server(BackplaneManager(backplane))
        await adapter.until(lambda: ("subscribe", ("socketio",)) in adapter.calls)
        connecting = asyncio.create_task(server.manager.connect("one", "/"))
        await asyncio.sleep(0)
        assert not server.manager.rooms
        adapter.subscribe_gate.open()
        assert await connecting
        await server.manager.stop()


async def test_refused_channel(caplog: pytest.LogCaptureFixture) -> None:
    """Clients of a server whose channel the broker refuses are served, the log has it, and it is tried again."""
    adapter = Adapter()
    adapter.refusals = {"socketio": "no rights"}
    gaps: asyncio.Queue[Gap] = asyncio.Queue()
    async with Backplane(adapter) as backplane:
        server = Server(BackplaneManager(backplane, on_gap=gaps.put))
        assert await server.manager.connect("one", "/")
        assert any("no rights" in text for text in caplog.messages)
        adapter.refusals = {}
        async with asyncio.timeout(10):
            assert (await gaps.get()).channel == "socketio"
        await server.manager.stop()


async def test_end_of_the_backplane(caplog: pytest.LogCaptureFixture) -> None:
    """The listener ends with the application's backplane, and python-socketio logs no fault; an emit raises."""
    async with Backplane("memory://") as backplane:
        server = Server(BackplaneManager(backplane))
        await server.manager.connect("one", "/")
    async with asyncio.timeout(10):
        await asyncio.wait([server.manager.thread])
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    with pytest.raises(ClosedError):
        await server.io.emit("news", 1)
    await server.manager.stop()


async def test_backplane_that_is_not_started(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The log has it, and a later start is found; a client that connects before does not wait."""
    monkeypatch.setattr("backplane.integrations.socketio._PAUSE_SECONDS", 0.05)
    backplane = Backplane("memory://")
    server = Server(BackplaneManager(backplane))
    await server.manager.connect("one", "/")
    async with asyncio.timeout(10):
        while not any("Unexpected Error" in text for text in caplog.messages):
            await asyncio.sleep(0.01)
    async with backplane:
        while not (await backplane.health()).channels:
            await asyncio.sleep(0.01)
        async with backplane.subscribe("socketio"):  # until it is confirmed
            pass
        await BackplaneManager(backplane, write_only=True).emit("news", 1)
        assert await server.received() == ("one", '42["news",1]')
        await server.manager.stop()


async def test_backplane_that_ends_first(caplog: pytest.LogCaptureFixture) -> None:
    """A listener that begins after the end of the application's backplane ends at once, and logs no fault."""
    async with Backplane("memory://") as backplane:
        pass
    server = Server(BackplaneManager(backplane))
    async with asyncio.timeout(10):
        await asyncio.wait([server.manager.thread])
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_own_backplane_of_a_writer() -> None:
    """A URL is opened by the first emit, and closed by `stop`; then an emit raises."""
    writer = BackplaneManager("memory://", write_only=True)
    assert writer.backplane.state == "closed"
    async with Backplane("memory://"):
        await writer.emit("news", 1)
    assert str(writer.backplane) == "<Backplane memory:// live>"
    await writer.disconnect("sid", "/")
    await writer.stop()
    with pytest.raises(ClosedError):
        await writer.emit("news", 2)


async def test_sync_manager_of_a_worker() -> None:
    """With `backplane.sync` a thread of a web worker emits over the worker's own link, which `close` leaves open."""
    async with Backplane("memory://") as backplane, backplane.subscribe("socketio") as messages:
        script = SyncBackplaneManager(backplane.sync)
        await asyncio.to_thread(script.emit, "news", {"id": 1}, room="r")
        message = await anext(messages)
        assert not isinstance(message, Gap)
        emitted = json.loads(message.data)
        assert (emitted["event"], emitted["data"], emitted["room"]) == ("news", [{"id": 1}], "r")
        script.close()
        await asyncio.to_thread(script.disconnect, "sid", "/")
        assert "disconnect" in str(await anext(messages))


@pytest.mark.parametrize("one_is_old", [True, False], ids=["old server", "new server"])
async def test_beside_redis_manager(redis_broker: Broker, one_is_old: bool) -> None:
    """With `wire_format=plain` a server with python-socketio's own manager and one with this one serve all clients."""
    make: list[Callable[[], Any]] = [
        lambda: socketio.AsyncRedisManager(redis_broker.url),
        lambda: BackplaneManager(f"{redis_broker.url}?wire_format=plain"),
    ]
    sender, receiver = (Server(made()) for made in (make if one_is_old else reversed(make)))
    client = await receiver.manager.connect("two", "/")
    if not one_is_old:  # python-socketio's manager does not report when it is subscribed
        await until_subscribed(redis_broker.url)
    await sender.io.emit("news", b"\0", to=client)
    assert await receiver.received() == ("two", '451-["news",{"_placeholder":true,"num":0}]')
    assert str((await receiver.received())[1]) == str(b"\0")
    for server in (sender, receiver):
        server.manager.thread.cancel()
        await asyncio.wait([server.manager.thread])
        if isinstance(server.manager, BackplaneManager):
            await server.manager.stop()
        else:
            await server.manager.pubsub.aclose()
            await server.manager.redis.aclose()


async def until_subscribed(url: str) -> None:
    """Wait until two servers are subscribed."""
    from redis.asyncio import Redis

    client: Any = Redis
    async with client.from_url(url) as link, asyncio.timeout(10):
        while (await link.pubsub_numsub("socketio"))[0][1] < 2:
            await asyncio.sleep(0.01)
