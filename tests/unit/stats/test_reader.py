"""`backplane.stats.reader`: it asks for figures while it is held, merges them, and names the workers without."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from backplane import BrokerUnavailableError
from backplane.cluster.topics import STATS, inbox_of
from backplane.cluster_types import Worker
from backplane.control.messages import Answer, parse_command
from backplane.fanout.codec import decode
from backplane.stats.publisher import WATCH
from backplane.stats.reader import StatsReader
from tests.unit.control.world import control_workers
from tests.unit.doubles import until_idle
from tests.unit.kit import AT_ONCE, WAIT_SECONDS
from tests.unit.stats.world import ADA, BOB, EVE, snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.stats.snapshot import WorkerSnapshot
    from tests.unit.control.world import ControlWorker

pytestmark = pytest.mark.anyio


def worker(id: str, **about: Any) -> Worker:  # noqa: A002
    """Return a worker as its heartbeats describe it."""
    return Worker(id=id, host="web-1", pid=31, **about)


class World:
    """A process that watches; the workers are played by the test.

    Attributes:
        is_live: Whether its link is live.
        own: Its own snapshot, where it is a worker.
    """

    def __init__(self, process: ControlWorker, *, is_worker: bool) -> None:
        self.process = process
        self.is_live = True
        self.own = snapshot(ADA)
        process.alive = [worker(ADA), worker(BOB)]
        self.reader = StatsReader(
            process.bus,
            process.requests,
            workers=lambda: list(process.alive),
            knows_all=lambda: process.knows_all,
            is_live=lambda: self.is_live,
            rejected=lambda: process.bus.rejected,
            url="redis://host",
            own=(lambda _: self.own) if is_worker else None,
            down_seconds=10,
            journal=process.bus_worker.journal,
        )

    def send(self, *snapshots: WorkerSnapshot) -> None:
        """Receive snapshots."""
        for each in snapshots:
            self.reader.received(STATS, each.encode())

    async def asked(self) -> str:
        """Wait until the workers are asked; return the id of the command."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                for channel, payload in self.process.broker.published:
                    message = decode(channel, payload)
                    command = None if message is None else parse_command(str(message.data))
                    if command is not None and command.kind == WATCH:
                        return command.id
                await self.process.broker.until_published(len(self.process.broker.published) + 1)

    async def answer(self, command: str, **values: Any) -> None:
        """Let workers answer: a value each, or an error where it is a text."""
        for name, value in values.items():
            answer = Answer(
                id=command, worker={"ada": ADA, "bob": BOB}[name], succeeded=not isinstance(value, str), value=value
            )
            self.process.requests.received(inbox_of(self.process.name), answer.encode())
        await until_idle()


@asynccontextmanager
async def watching(*, is_worker: bool = False) -> AsyncGenerator[World]:
    """A process that holds its reader for the block."""
    async with control_workers() as (process,):
        world = World(process, is_worker=is_worker)
        world.reader.hold()
        try:
            yield world
        finally:
            world.reader.release()
            await until_idle()


async def test_it_asks_only_while_it_is_held() -> None:
    """Once for all that hold it; after the last one it is not subscribed any more and remembers nothing."""
    async with control_workers() as (process,):
        world = World(process, is_worker=False)
        topics = process.bus.topics
        world.reader.hold()
        world.reader.hold()
        await world.asked()
        assert process.bus.topics == topics + 1
        assert len(process.broker.published) == 1
        world.send(snapshot(ADA), snapshot(BOB))
        world.reader.release()
        assert world.reader.overview().answered == 2
        world.reader.release()
        await until_idle()
        assert process.bus.topics == topics
        process.alive = []
        assert world.reader.overview().answered == 0


async def test_workers_without_figures_are_missing() -> None:
    """One that was not asked yet is named, and no problem; one that did not answer is the worst problem."""
    async with watching() as world:
        world.send(snapshot(ADA))
        overview = world.reader.overview()
        assert (overview.asked, overview.answered, overview.missing) == (2, 1, ("web-1/31-bbbb",))
        assert (overview.problems, overview.verdict) == (
            (),
            "1 of 2 workers have answered so far: web-1/31-bbbb not yet.",
        )
        command = await world.asked()
        await world.answer(command, ada={"at": 0})
        world.process.alive.pop()  # it is not waited for any more: the time is up for it
        world.process.requests.workers_changed()
        await until_idle()
        world.process.alive.append(worker(BOB))
        (problem, *_) = world.reader.overview().problems
        assert (problem.kind, problem.worker) == ("receives_nothing", "web-1/31-bbbb")


async def test_a_worker_that_cannot_be_watched() -> None:
    """An older version answers that it does not know the command: that is what is shown, and no silence."""
    async with watching() as world:
        await world.answer(await world.asked(), ada={"at": 0}, bob="this worker does not know the command 'watch'")
        world.send(snapshot(ADA))
        problems = {problem.kind: problem for problem in world.reader.overview().problems}
        assert "receives_nothing" not in problems
        assert "does not know the command 'watch'" in problems["not_watchable"].text


@pytest.mark.parametrize(("at", "known"), [({"at": 5.0}, True), ({"at": "x"}, False), ({}, False), (5, False)])
async def test_clocks(at: Any, known: bool) -> None:
    """The answer of a worker states its time; what is no time leaves the offset unknown."""
    async with watching() as world:
        command = await world.asked()
        await world.answer(command, ada=at, bob={"at": 0})
        world.send(snapshot(ADA))
        (row,) = world.reader.overview().workers
        assert (row.clock_offset is not None) == known
        if known:
            assert row.clock_offset is not None
            assert row.clock_offset < -1e9  # 1970 is long ago


async def test_a_worker_that_is_killed() -> None:
    """It is missing as soon as its figures are old, and then it has vanished; one that ends in order has not."""
    async with watching() as world:
        world.send(snapshot(ADA, interval_seconds=-1), snapshot(BOB))
        world.reader.overview()
        assert world.reader.overview().missing == ("web-1/31-aaaa",)
        world.process.alive = [
            worker(ADA, is_alive=False, last_seen_seconds_ago=10.5),
            worker(BOB, is_alive=False, last_seen_seconds_ago=2),
        ]
        overview = world.reader.overview()
        assert (overview.asked, overview.missing, overview.workers) == (0, (), ())
        assert [problem.text for problem in overview.problems if problem.kind == "vanished"] == [
            "Worker web-1/31-aaaa vanished 10 s ago, without a goodbye: it was killed, or its link is lost."
        ]
        world.process.alive = [worker(ADA)]
        assert "vanished" not in {problem.kind for problem in world.reader.overview().problems}


async def test_control_messages_and_gaps_are_compared() -> None:
    """Workers are compared over as many snapshots as all have; one that receives less than the others is named."""
    async with watching() as world:
        world.process.alive.append(worker(EVE))
        for number in range(12):
            world.send(
                *(
                    snapshot(
                        name,
                        clock=100 + 2 * number,
                        pid=pid,
                        control_received=received * number,
                        health={"gaps": 0 if name != EVE or number < 6 else 2},
                    )
                    for pid, (name, received) in enumerate([(ADA, 1), (BOB, 1), (EVE, 0)], 1)
                )
            )
        problems = {problem.kind: problem for problem in world.reader.overview().problems}
        assert problems.keys() == {"receives_less", "gaps"}
        assert problems["receives_less"].worker == "web-1/3-eeee"
        assert problems["gaps"].text.startswith("Worker web-1/3-eeee reported 2 gaps")


async def test_while_the_link_is_lost() -> None:
    """A worker shows itself, and that this is all; a process that is none shows nothing."""
    async with watching(is_worker=True) as world:
        world.is_live = False
        overview = world.reader.overview()
        assert [row.id for row in overview.workers] == [ADA]
        assert overview.missing == ("web-1/31-bbbb",)
        assert overview.verdict.startswith("The link of this process to redis://host is lost")
    async with watching() as world:
        world.is_live = False
        assert world.reader.overview().workers == ()


async def test_while_the_link_is_lost_among_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker shows itself however many others have sent figures, of which it keeps a bounded number."""
    monkeypatch.setattr("backplane.stats.reader._MAX_WORKERS", 1)
    async with watching(is_worker=True) as world:
        world.send(snapshot(BOB), snapshot(EVE))
        assert [row.id for row in world.reader.overview().workers] == [BOB]
        world.is_live = False
        assert [row.id for row in world.reader.overview().workers] == [ADA, BOB]


async def test_what_others_publish_there() -> None:
    """Nonsense is dropped; invented workers are kept in a bounded number."""
    async with watching() as world:
        for text in ("", "{}", json.dumps({"worker": "x"})):
            world.reader.received(STATS, text)
        for number in range(2_100):
            world.send(replace(world.own, worker=f"{number:016x}"))
        world.reader.gap(STATS)
        assert world.reader.overview().answered == 2_000


async def test_until_complete() -> None:
    """It returns once every worker has sent so many snapshots; those that do not answer are not waited for."""
    async with watching() as world:
        complete = asyncio.create_task(world.reader.until_complete(WAIT_SECONDS, snapshots=2))
        await world.answer(await world.asked(), ada={"at": 0}, bob="an error")
        world.send(snapshot(ADA))
        await until_idle()
        assert not complete.done()
        world.send(snapshot(ADA, clock=102))
        await asyncio.wait_for(complete, WAIT_SECONDS)


@pytest.mark.parametrize("knows_all", [True, False])
async def test_until_complete_takes_no_longer(knows_all: bool) -> None:
    """With a worker that does not answer, or before all workers are known, it returns when the time is up."""
    async with watching() as world:
        world.process.knows_all = knows_all
        world.send(snapshot(ADA))
        await world.reader.until_complete(AT_ONCE, snapshots=1)
        assert world.reader.overview().answered == 1


async def test_the_broker_refuses() -> None:
    """It asks again later; until then workers are missing, and no fault of theirs."""
    async with control_workers() as (process,):
        world = World(process, is_worker=False)
        process.broker.error = BrokerUnavailableError("no broker")
        world.reader.hold()
        await until_idle()
        assert world.reader.overview().problems == ()
        world.reader.release()
        await until_idle()


async def test_the_interval_grows() -> None:
    """It is that of the workers."""
    async with watching() as world:
        assert world.reader.interval_seconds == 2
        world.process.alive = [worker(f"{number:016x}") for number in range(100)]
        world.reader.overview()
        assert world.reader.interval_seconds == 4
