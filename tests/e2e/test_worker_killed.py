"""A worker that dies takes nothing from anyone else."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack, suppress
from itertools import chain, count
from typing import TYPE_CHECKING

import pytest

from tests.e2e.clients import Audience, HttpPublisher, open_audience, open_publisher, publish_from_outside
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


class Killing:
    """Kills a worker in the middle of the load; publishers beside it wait halfway until that has happened."""

    def __init__(self, victim: HttpPublisher) -> None:
        self.victim = victim
        self.answered = 0
        self._killed = asyncio.Event()

    async def publish_until_it_dies(self) -> None:
        """Publish through the victim; kill it while others are busy, and see that it is gone."""
        with suppress(ConnectionError, EOFError):
            for sequence in count():
                await self.victim.publish([sequence])
                self.answered = sequence + 1
                if self.answered == 40:
                    os.kill(self.victim.pid, signal.SIGKILL)
                    self._killed.set()

    async def publish_beside(self, publisher: HttpPublisher, size: int) -> None:
        """Publish one half before, or while, the victim is killed and the other half after."""
        await publisher.publish(range(size // 2))
        await self._killed.wait()
        await publisher.publish(range(size // 2, size))


async def test_a_killed_worker_costs_nobody_else_anything(broker_url: str, tmp_path: Path) -> None:
    """The other workers' clients lose nothing, a new worker joins, and the killed one's clients hear again."""
    with serving("gunicorn", broker_url, tmp_path) as server:
        async with open_audience(f"{server.ws_url}/rooms/{ROOM}", 200) as audience, AsyncExitStack() as stack:
            await audience.spread(workers=3)
            idle = server.pids - set(audience.pids)
            victim = await stack.enter_async_context(open_publisher(server.port, ROOM, "victim", without=idle))
            beside = open_publisher(server.port, ROOM, "http", without=[victim.pid])
            publisher = await stack.enter_async_context(beside)
            killing = Killing(victim)
            cut, spared = audience.on([victim.pid]), audience.on(server.pids - {victim.pid})

            async with asyncio.TaskGroup() as tasks:
                reopened = tasks.create_task(cut.reopen_when_cut())
                tasks.create_task(spared.hear(ALL))
                tasks.create_task(killing.publish_until_it_dies())
                tasks.create_task(killing.publish_beside(publisher, ALL["http"]))
                for client, name in zip(spared.clients, BY_SOCKET, strict=False):
                    tasks.create_task(client.publish(name, ALL[name]))
                for name in FROM_OUTSIDE:
                    tasks.create_task(publish_from_outside(broker_url, ROOM, name, ALL[name]))
            assert spared.misheard(ALL)[:5] == []

            # What the victim had confirmed was not lost either; what it had not may or may not have gone out.
            await spared.hear({"victim": killing.answered})
            for client in spared.clients:
                heard = client.heard["victim"]
                assert heard == list(range(len(heard)))
                assert len(heard) - killing.answered in (0, 1)

            # The killed worker's clients heard everything up to some point, and again everything from another point on.
            for heard in chain.from_iterable(before.values() for before in reopened.result()):
                assert heard == list(range(len(heard)))
            for client in cut.clients:
                begun = {name: size for name, size in ALL.items() if client.heard[name]}
                await Audience([client]).hear(begun)
                assert all(client.heard[name] == list(range(client.heard[name][0], ALL[name])) for name in begun)
            await spared.clients[0].publish("again", 20)
            await audience.hear({"again": 20})
            assert audience.misheard({"again": 20})[:5] == []

            [new_pid] = await asyncio.to_thread(server.wait_for_workers, without=[victim.pid]) - server.pids
            newcomers = await cut.move_to(new_pid)
            await newcomers.clients[0].publish("newcomer", 20)
            await audience.hear({"newcomer": 20})
            assert audience.misheard({"newcomer": 20})[:5] == []
