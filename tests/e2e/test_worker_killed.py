"""A worker that is killed costs the others nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack, suppress
from itertools import chain, count
from typing import TYPE_CHECKING

import pytest

from tests.e2e.brokers import by_default_on
from tests.e2e.clients import ClientGroup, HttpPublisher, open_clients, open_publisher, publish_from_outside
from tests.servers import serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(150)]

ROOM = "lobby"

# As in test_fanout.py.
BY_HTTP = {"http": 168}
BY_SOCKET = {f"socket-{number}": 42 for number in range(4)}
FROM_OUTSIDE = {f"outside-{number}": 82 for number in range(2)}
ALL = BY_HTTP | BY_SOCKET | FROM_OUTSIDE


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested runs in other processes."""
    return "asyncio", {"use_uvloop": True}


class WorkerKill:
    """Kills a worker under load; other publishers wait halfway until that has happened."""

    def __init__(self, victim: HttpPublisher) -> None:
        self.victim = victim
        self.confirmed = 0
        self._killed = asyncio.Event()

    async def publish_until_it_dies(self) -> None:
        """Publish through the worker, kill it under load, and return when its connection has ended."""
        with suppress(ConnectionError, EOFError):
            for sequence in count():
                await self.victim.publish([sequence])
                self.confirmed = sequence + 1
                if self.confirmed == 40:
                    os.kill(self.victim.pid, signal.SIGKILL)
                    self._killed.set()

    async def publish_beside(self, publisher: HttpPublisher, size: int) -> None:
        """Publish one half before or during the kill, and the other half after it."""
        await publisher.publish(range(size // 2))
        await self._killed.wait()
        await publisher.publish(range(size // 2, size))


@by_default_on("ipc", "redis")
async def test_a_killed_worker_costs_the_others_nothing(broker_url: str, tmp_path: Path) -> None:
    """Clients of other workers lose nothing, a new worker joins, and the killed one's clients receive again."""
    with serving("gunicorn", broker_url, tmp_path) as server:
        async with open_clients(f"{server.ws_url}/rooms/{ROOM}", 200) as group, AsyncExitStack() as stack:
            await group.spread(workers=3)
            idle = server.pids - set(group.pids)
            victim = await stack.enter_async_context(open_publisher(server.port, ROOM, "victim", without=idle))
            beside = open_publisher(server.port, ROOM, "http", without=[victim.pid])
            publisher = await stack.enter_async_context(beside)
            kill = WorkerKill(victim)
            ended, spared = group.on([victim.pid]), group.on(server.pids - {victim.pid})

            async with asyncio.TaskGroup() as tasks:
                reopened = tasks.create_task(ended.reopen_when_closed())
                tasks.create_task(spared.receive(ALL))
                tasks.create_task(kill.publish_until_it_dies())
                tasks.create_task(kill.publish_beside(publisher, ALL["http"]))
                for client, name in zip(spared.clients, BY_SOCKET, strict=False):
                    tasks.create_task(client.publish(name, ALL[name]))
                for name in FROM_OUTSIDE:
                    tasks.create_task(publish_from_outside(broker_url, ROOM, name, ALL[name]))
            assert spared.delivery_errors(ALL)[:5] == []

            # What the killed worker had confirmed was not lost either; what it had not may have been sent.
            await spared.receive({"victim": kill.confirmed})
            for client in spared.clients:
                received = client.received["victim"]
                assert received == list(range(len(received)))
                assert len(received) - kill.confirmed in (0, 1)

            # Its clients received everything up to some message, and again everything from a later message on.
            for received in chain.from_iterable(before.values() for before in reopened.result()):
                assert received == list(range(len(received)))
            for client in ended.clients:
                begun = {name: size for name, size in ALL.items() if client.received[name]}
                await ClientGroup([client]).receive(begun)
                assert all(client.received[name] == list(range(client.received[name][0], ALL[name])) for name in begun)
            await spared.clients[0].publish("again", 20)
            await group.receive({"again": 20})
            assert group.delivery_errors({"again": 20})[:5] == []

            [new_pid] = await asyncio.to_thread(server.wait_for_workers, without=[victim.pid]) - server.pids
            newcomers = await ended.move_to(new_pid)
            await newcomers.clients[0].publish("newcomer", 20)
            await group.receive({"newcomer": 20})
            assert group.delivery_errors({"newcomer": 20})[:5] == []
