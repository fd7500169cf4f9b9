"""`backplane.control.user_cap`: of those that connect at the same time as many are admitted as there is room for."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from backplane import BrokerUnavailableError
from backplane.cluster.topics import CONTROL
from backplane.cluster_types import Worker
from backplane.control.messages import Selector
from tests.unit.control.world import ControlWorker, control_workers
from tests.unit.doubles import until_idle
from tests.unit.kit import WAIT_SECONDS, warnings_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio


@pytest.fixture
async def workers() -> AsyncGenerator[list[ControlWorker]]:
    """Two workers."""
    async with control_workers(2) as made:
        yield made


async def admits(worker: ControlWorker, client_id: str, most: int = 1, user: str | None = "ada") -> bool:
    """Connect, and return whether the client is admitted; one that is not is removed."""
    client = worker.add(client_id, user)
    async with asyncio.timeout(WAIT_SECONDS):
        has_room = await worker.cap.has_room(client_id, most)
    if not has_room:
        worker.clients.discard(client)
    return has_room


def nothing_is_left(workers: list[ControlWorker]) -> bool:
    """Return whether no handshake is in progress."""
    return all(vars(worker.cap)["_asking"] == {} for worker in workers)


async def test_one_after_the_other(workers: list[ControlWorker]) -> None:
    """Connections on any worker count; those of other users, and clients without a user, do not."""
    one, other = workers
    assert await admits(one, "05", 2)
    assert await admits(other, "04", 2)
    assert not await admits(one, "03", 2)
    assert not await admits(other, "09", 2)
    assert await admits(one, "06", 2, "bob")
    assert await admits(one, "07", 1, None)
    assert await admits(other, "08", 1, None)
    assert nothing_is_left(workers)


async def test_a_client_without_a_user_costs_nothing(workers: list[ControlWorker]) -> None:
    """No worker is asked, nor for one that this worker alone refuses."""
    assert await admits(workers[0], "01", 1, None)
    assert workers[0].broker.published == []
    assert await admits(workers[0], "02")
    published = len(workers[0].broker.published)
    assert not await admits(workers[0], "03")
    assert len(workers[0].broker.published) == published


async def test_one_that_is_being_closed_does_not_count(workers: list[ControlWorker]) -> None:
    """Its handler may still run."""
    workers[1].add("01", "ada").is_over = True
    assert await admits(workers[0], "02")


@pytest.mark.parametrize("seed", range(150))
async def test_those_that_connect_at_the_same_time(workers: list[ControlWorker], seed: int) -> None:
    """However they interleave, on whichever workers, as many are admitted as there is room for, and not one more."""
    chance = random.Random(seed)
    count, most, broker = chance.randint(2, 6), chance.randint(1, 3), workers[0].broker
    client_ids = [f"{number:02}" for number in chance.sample(range(100), count)]

    async def connect(client_id: str) -> bool:
        for _ in range(chance.randint(0, 12)):
            await asyncio.sleep(0)
        return await admits(chance.choice(workers), client_id, most)

    async def hold() -> None:
        while True:
            (broker.gate.open if chance.random() < 0.5 else broker.gate.close)()
            for _ in range(chance.randint(0, 6)):
                await asyncio.sleep(0)

    holding = asyncio.create_task(hold())
    admitted = sum(await asyncio.gather(*map(connect, client_ids)))
    holding.cancel()
    broker.gate.open()
    assert admitted <= most
    assert admitted > 0
    assert nothing_is_left(workers)


async def test_two_that_ask_before_the_other_is_answered(workers: list[ControlWorker]) -> None:
    """The one with the smaller id is admitted, whichever asks first."""
    for first, second in (("01", "02"), ("12", "11")):
        workers[0].broker.gate.close()
        users = f"user {first}"
        one = asyncio.create_task(admits(workers[0], first, 1, users))
        await until_idle()
        other = asyncio.create_task(admits(workers[1], second, 1, users))
        await until_idle()
        workers[0].broker.gate.open()
        assert {first: await one, second: await other} == {
            client_id: client_id == min(first, second) for client_id in (first, second)
        }


async def test_a_worker_that_does_not_answer(workers: list[ControlWorker], caplog: pytest.LogCaptureFixture) -> None:
    """Then the client is admitted, and it is logged; the others' connections count."""
    for worker in workers:
        worker.alive.append(Worker(id="00000000000000aa"))
        vars(worker.cap)["_seconds"] = 0.05
    assert await admits(workers[0], "01")
    assert not await admits(workers[1], "02")
    line = "max_connections_per_user: 1 workers did not answer; their connections do not count"
    assert warnings_of(caplog) == [line] * 2


async def test_a_worker_that_answers_with_an_error(
    workers: list[ControlWorker], caplog: pytest.LogCaptureFixture
) -> None:
    """A worker of an older version does not know the question: as if it did not answer, and without a wait."""

    async def fail(_: object) -> None:
        raise LookupError

    workers[1].commands.add_kind("others", fail)
    assert await admits(workers[0], "01")
    assert "max_connections_per_user: 1 workers did not answer" in caplog.text


async def test_a_broker_that_is_away(workers: list[ControlWorker], caplog: pytest.LogCaptureFixture) -> None:
    """Only this worker's connections count, and it is logged."""
    workers[0].broker.error = BrokerUnavailableError("away")
    workers[1].add("01", "ada")
    assert await admits(workers[0], "02", 2)
    assert await admits(workers[0], "03", 2)
    assert not await admits(workers[0], "04", 2)
    assert warnings_of(caplog) == [
        "max_connections_per_user: a client was admitted without the answers of other workers: away"
    ]


async def test_a_cancelled_handshake_leaves_nothing(workers: list[ControlWorker]) -> None:
    """A client that leaves meanwhile does not count, nor does its question."""
    workers[0].broker.gate.close()
    asking = asyncio.create_task(workers[0].cap.has_room("01", 1))
    client = workers[0].add("01", "ada")
    another = asyncio.create_task(admits(workers[0], "02"))
    await until_idle()
    asking.cancel()
    await asyncio.wait([asking])
    workers[0].clients.discard(client)
    workers[0].broker.gate.open()
    assert not await another  # the smaller id was there when it asked
    assert nothing_is_left(workers)
    assert await admits(workers[0], "03")


@pytest.mark.parametrize(
    ("selector", "arguments"),
    [
        ({"user": "ada"}, {"most": 1}),
        ({"user": "ada", "exclude": "02"}, {}),
        ({"user": "ada", "exclude": "02"}, {"most": True}),
        ({"user": "ada", "exclude": "02"}, {"most": 1.5}),
        ({"user": "ada", "exclude": "02"}, {"most": -1}),
    ],
)
async def test_questions_that_are_none(
    workers: list[ControlWorker], selector: dict[str, str], arguments: dict[str, Any]
) -> None:
    """They are dropped and counted."""
    await workers[0].receives(json.dumps(["command", "1", "others", selector, arguments, None, time.time()]))
    assert workers[0].commands.rejected == 1


@pytest.mark.parametrize("value", [None, 5, {"01": 1}, [1, None, ["01"]]])
async def test_answers_that_are_none(workers: list[ControlWorker], value: object) -> None:
    """They count as no connections."""
    workers[1].commands.add_kind("others", lambda _: answered(value))
    assert await admits(workers[0], "01")


async def answered(value: object) -> object:
    """Return a value."""
    return value


async def test_an_answer_is_no_longer_than_needed(workers: list[ControlWorker]) -> None:
    """Of ten thousand connections no more are named than the limit."""
    for number in range(10_000):
        workers[1].add(f"{number:05}", "ada")
    selector = Selector(user="ada", exclude="x")
    answer = await workers[1].asked("others", selector=selector, arguments={"most": 3})
    assert answer.value == ["00000", "00001", "00002"]
    assert not await admits(workers[0], "y", 3)
    await workers[1].receives(json.dumps(["command", "9", "others", {"exclude": "x"}, {"most": 3}, None, time.time()]))
    assert CONTROL in {channel for channel, _ in workers[0].broker.published}
