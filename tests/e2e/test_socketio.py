"""`backplane.integrations.socketio`: real clients of Socket.IO on two real servers, with each broker between them."""

# python-socketio has no types:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import socketio  # type: ignore[import-untyped]

from backplane.integrations.socketio import BackplaneManager, SyncBackplaneManager
from tests.brokers.broker import ProcessBroker
from tests.e2e.brokers import by_default_on
from tests.e2e.two_servers import SECONDS, two_servers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from pathlib import Path

    from tests.conftest import StartRedis

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested runs in other processes."""
    return "asyncio", {"use_uvloop": True}


@contextmanager
def socketio_servers(url: str, folder: Path) -> Generator[list[str]]:
    """Run two servers, and return their URLs."""
    with two_servers("socketio_app", url, folder) as ports:
        yield [f"http://127.0.0.1:{port}" for port in ports]


class Client:
    """A client of Socket.IO, with the events that it received."""

    def __init__(self) -> None:
        self.io: Any = socketio.AsyncClient(reconnection=False)
        self.events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.disconnected = asyncio.Event()
        self.io.on("*", self._received)
        self.io.on("question", self._answer)
        self.io.on("disconnect", self.disconnected.set)

    @property
    def sid(self) -> str:
        """Its name on its server."""
        return str(self.io.get_sid())

    async def _received(self, event: str, data: Any) -> None:
        self.events.put_nowait((event, data))

    async def _answer(self, question: str) -> str:
        return f"{question} {self.sid}"

    async def received(self) -> tuple[str, Any]:
        """Return the next event."""
        async with asyncio.timeout(SECONDS):
            return await self.events.get()

    async def call(self, method: str, **arguments: Any) -> str:
        """Make the server of this client call one of its methods."""
        return str(await self.io.call("call", (method, arguments), timeout=SECONDS))


@asynccontextmanager
async def clients_of(*urls: str) -> AsyncGenerator[list[Client]]:
    """Connect one client to each URL."""
    async with AsyncExitStack() as stack:
        clients = [Client() for _ in urls]
        for client, url in zip(clients, urls, strict=True):
            await client.io.connect(url, transports=["websocket"], wait_timeout=SECONDS)
            stack.push_async_callback(client.io.shutdown)
        yield clients


@by_default_on("ipc", "redis")
async def test_two_servers(broker_url: str, tmp_path: Path) -> None:
    """Rooms, acknowledgements, disconnects and emits of other processes work on both servers as they do on one."""
    with socketio_servers(broker_url, tmp_path) as (one, two):
        async with clients_of(one, two, two) as (ada, bob, eve):
            # To all, and to all but one.
            assert await ada.call("emit", event="news", data={"id": 1}, skip_sid=ada.sid) == "done"
            assert [await bob.received(), await eve.received()] == [("news", {"id": 1})] * 2
            # A room whose members are on both servers; each join is made on another server than its client's.
            assert await bob.call("enter_room", sid=ada.sid, room="r") == "done"
            assert await ada.call("enter_room", sid=bob.sid, room="r") == "done"
            assert await ada.call("emit", event="in r", data=b"\0\xff", room="r", skip_sid=ada.sid) == "done"
            assert await bob.received() == ("in r", b"\0\xff")
            assert await bob.call("emit", event="in r", data=[1, None], room="r") == "done"
            assert [await ada.received(), await bob.received()] == [("in r", [1, None])] * 2
            # An acknowledgement comes back from the other server.
            assert await ada.io.call("ask", (bob.sid, "who"), timeout=SECONDS) == f"who {bob.sid}"
            # Left on the other server, and closed.
            assert await ada.call("leave_room", sid=bob.sid, room="r") == "done"
            assert await ada.call("emit", event="in r", data=2, room="r", skip_sid=ada.sid) == "done"
            assert await ada.call("emit", event="direct", data=3, to=bob.sid) == "done"
            assert await bob.received() == ("direct", 3)
            assert await bob.call("close_room", room="r") == "done"
            assert await bob.call("emit", event="in r", data=4, room="r") == "done"
            # From other processes, which are no servers.
            writer = BackplaneManager(broker_url, write_only=True)
            await writer.emit("written", 5, namespace="/")
            assert [(await client.received())[1] for client in (ada, bob, eve)] == [5] * 3
            script = SyncBackplaneManager(broker_url)
            await asyncio.to_thread(script.emit, "scripted", 6, to=eve.sid)
            assert await eve.received() == ("scripted", 6)
            # Disconnected by a server that has not the client, and by a process that is no server.
            assert await ada.call("disconnect", sid=bob.sid) == "done"
            await asyncio.to_thread(script.disconnect, eve.sid, "/")
            await writer.disconnect(ada.sid, "/")
            async with asyncio.timeout(SECONDS):
                for client in (ada, bob, eve):
                    await client.disconnected.wait()
            assert [client.events.qsize() for client in (ada, bob, eve)] == [0, 0, 0]
            await writer.stop()
            script.close()


async def test_outage(private_redis: StartRedis, tmp_path: Path) -> None:
    """After a restart of the broker both servers receive again, and their clients are notified of the gap."""
    broker = private_redis()
    assert isinstance(broker, ProcessBroker)
    with socketio_servers(broker.url, tmp_path) as (one, two):
        async with clients_of(one, two) as (ada, bob):
            await asyncio.to_thread(broker.kill9)
            assert await ada.call("emit", event="lost", data=1) in (
                "BrokerUnavailableError",
                "PublishOutcomeUnknownError",
            )
            assert await ada.received() == ("lost", 1)  # python-socketio serves its own clients first
            broker.launch()
            await asyncio.to_thread(broker.wait_until_up)
            assert [await ada.received(), await bob.received()] == [("gap", "socketio")] * 2
            assert await ada.call("emit", event="again", data=2) == "done"
            assert [await ada.received(), await bob.received()] == [("again", 2)] * 2
