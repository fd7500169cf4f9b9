"""Faults of the network on channels with a history: what the broker has is given back, and no gap is reported."""

from __future__ import annotations

import asyncio
import random
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from backplane import Backplane, History
from tests.chaos.kept import KEPT, KEPT_QUICK, running_kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.kept import KeptCaseRecorder
    from tests.chaos.target import FaultTarget

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


# NATS before 2.11 reads one message per request.
PATIENT: Final = replace(KEPT_QUICK, recall_timeout_seconds=20, repair_timeout_seconds=30)


def accept_and_silence(target: FaultTarget) -> None:
    """Cut every connection; new ones are accepted and receive nothing."""
    target.proxy.silence()
    target.proxy.cut()


FAULTS: Final[dict[str, Callable[[FaultTarget], None]]] = {
    "RST": lambda target: target.proxy.cut(),
    "FIN": lambda target: target.proxy.finish(),
    "mid-frame": lambda target: target.proxy.cut_after(random.randrange(1, 400)),
    "refused": lambda target: target.proxy.refuse(),
    "silent": lambda target: target.proxy.silence("to_client"),
    "accepted, then silent": accept_and_silence,
    "RST again": lambda target: target.proxy.cut(),
}


@pytest.mark.parametrize("target", ["redis", "nats", "kafka"], indirect=True)
@pytest.mark.parametrize("rounds", [1, pytest.param(6, marks=pytest.mark.full)])
async def test_cuts_of_every_kind(rounds: int, target: FaultTarget, record_kept: KeptCaseRecorder) -> None:
    """Through cuts of every kind, some during the repair of the one before, no subscriber notices anything."""
    async with (
        target.proxy,
        running_kept(target.proxy.url, target.url, plain_lossless=target.lossless) as workload,
    ):
        chance = random.Random(rounds)
        loop = asyncio.get_running_loop()
        for _ in range(rounds):
            for inject in chance.sample(list(FAULTS.values()), len(FAULTS)):
                injected_at = loop.time()
                inject(target)
                await workload.lost(injected_at)
                await workload.go_on(workload.publishers[1])
                target.proxy.heal()
                await workload.all_live()
                await asyncio.sleep(chance.choice([0, 0.005, 0.02, 0.2]))  # the repair may be in progress
        await workload.recovered()
    result = workload.judge(more_plain_gaps=workload.failed_openings)
    record_kept(f"{rounds * len(FAULTS)} cuts of every kind", target.name, result)
    assert result.links > rounds * len(FAULTS)


@pytest.fixture(params=["redis", "nats"])
def bounded_target(request: pytest.FixtureRequest) -> FaultTarget:
    """The brokers that keep as many messages as the rule permits; of Kafka the retention of the topic decides."""
    from tests.chaos.target import FaultTarget

    return FaultTarget.of(request.param, request.getfixturevalue(f"{request.param}_broker"))


async def test_more_is_missed_than_is_kept(bounded_target: FaultTarget, record_kept: KeptCaseRecorder) -> None:
    """Workers that missed more than the broker keeps get one gap on each channel; the others get everything."""
    target = bounded_target
    rules = {"kept-*": History(max_messages=20)}
    async with (
        target.proxy,
        running_kept(target.proxy.url, target.url, rules=rules) as workload,
    ):
        injected_at = asyncio.get_running_loop().time()
        target.proxy.refuse()
        await workload.detected(injected_at)
        await workload.go_on(workload.publishers[1], 30)
        target.proxy.heal()
        await workload.recovered()
    gaps = {one.name: int(one in workload.near) for one in workload.subscribers}
    result = workload.judge(gaps=gaps, more_plain_gaps=workload.failed_openings)
    record_kept("more missed than kept", target.name, result)
    assert result.lost >= len(KEPT)


async def test_more_is_missed_than_a_backlog_holds(bounded_target: FaultTarget) -> None:
    """What a repair gives back ends no consumer as too slow, however much it is."""
    target = bounded_target
    rules = {"kept-*": History(max_messages=1000)}
    name = f"kept-{uuid.uuid4()}"
    async with (
        target.proxy,
        Backplane(target.proxy.url, settings=PATIENT, history=rules) as near,
        Backplane(target.url, history=rules) as far,
        near.subscribe(name) as messages,
    ):
        target.proxy.refuse()
        await near.wait_for_state("degraded")
        texts = [f"{number} ".ljust(2000, ".") for number in range(900)]
        for text in texts:
            await far.publish(name, text)
        target.proxy.heal()
        async with asyncio.timeout(30):
            assert [(await anext(messages)).data for _ in texts] == texts  # type: ignore[union-attr]
