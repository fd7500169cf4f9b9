"""Faults of the network: a proxy breaks the links of some workers, others bypass it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import pytest

from tests.chaos.target import FaultTarget
from tests.chaos.workload import QUICK, running_workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane import Settings
    from tests.chaos.case_table import CaseRecorder
    from tests.chaos.workload import Participant

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of the network.

    Attributes:
        name: Its name in the table.
        inject: Causes it.
        found: `soon` by the end of the connection, `by probe`, `never`, or, where either is correct, `perhaps`.
        by_publishers: Only a publisher can detect it.
        settings: Of the workers.
        filler: Appended to each message to make it longer.
    """

    name: str
    inject: Callable[[FaultTarget], None]
    found: Literal["soon", "by probe", "never", "perhaps"] = "soon"
    by_publishers: bool = False
    settings: Settings = QUICK
    filler: str = ""


def accept_and_silence(target: FaultTarget) -> None:
    """Cut every connection; new ones are accepted and receive nothing."""
    target.proxy.silence()
    target.proxy.cut()


SHORT = [
    Fault(name="RST", inject=lambda target: target.proxy.cut()),
    Fault(name="black hole", inject=lambda target: target.proxy.silence(), found="by probe"),
    Fault(
        name="reply swallowed after publish",
        inject=lambda target: target.proxy.silence("to_client", after=target.publishes),
        found="by probe",
        by_publishers=True,
    ),
]
FULL = [
    Fault(name="FIN", inject=lambda target: target.proxy.finish()),
    Fault(name="connection refused", inject=lambda target: target.proxy.refuse()),
    Fault(
        name="black hole to the broker",
        inject=lambda target: target.proxy.silence("to_broker"),
        found="by probe",
        by_publishers=True,  # a worker that only subscribes still receives everything
    ),
    Fault(name="black hole to the client", inject=lambda target: target.proxy.silence("to_client"), found="by probe"),
    Fault(name="cut in the middle of a frame", inject=lambda target: target.proxy.cut_after(101)),
    Fault(name="accepted, then silence", inject=accept_and_silence),
    Fault(
        name="200 ms latency",
        inject=lambda target: target.proxy.slow(latency_seconds=0.2),
        found="never",
        settings=replace(QUICK, probe_interval_seconds=2.0, publish_timeout_seconds=5.0),
    ),
    Fault(
        name="50 kB/s under 300",
        inject=lambda target: target.proxy.slow(bytes_per_second=50_000),
        found="perhaps",
        filler="x" * 400,
    ),
]


@pytest.mark.parametrize(
    "fault",
    [
        *(pytest.param(fault, id=fault.name) for fault in SHORT),
        *(pytest.param(fault, id=fault.name, marks=pytest.mark.full) for fault in FULL),
    ],
)
async def test_a_network_fault_costs_one_gap_per_channel(
    fault: Fault, target: FaultTarget, record_case: CaseRecorder
) -> None:
    """Workers that the fault hits detect it and recover with one gap per channel; the others are not affected."""
    lossless, settings, filler = target.lossless, fault.settings, fault.filler
    async with (
        target.proxy,
        running_workload(target.proxy.url, target.url, lossless=lossless, settings=settings, filler=filler) as workload,
    ):
        injected_at = asyncio.get_running_loop().time()
        fault.inject(target)
        if fault.found in ("never", "perhaps"):
            detected = None
            await asyncio.sleep(3)
        else:
            detected = await workload.detected(injected_at, workload.near[:1] if fault.by_publishers else None)
        target.proxy.heal()
        recovered = await workload.recovered()
    record_case(
        fault.name, target.name, workload, detected=detected, silent=fault.found == "by probe", recovered=recovered
    )
    if fault.found == "never":
        assert [participant.degraded_at for participant in workload.participants if participant.degraded_at] == []


@pytest.mark.alone("it measures within how many seconds a fault is detected", waits=True)
@pytest.mark.parametrize("name", ["redis", "nats"])
async def test_a_join_detects_a_dead_outbound_direction(name: str, request: pytest.FixtureRequest) -> None:
    """A worker that still receives detects by an unconfirmed join that nothing it sends arrives any more."""
    target = FaultTarget.of(name, request.getfixturevalue(f"{name}_broker"))
    async with target.proxy, running_workload(target.proxy.url, target.url) as workload:
        subscriber = workload.near[1]
        target.proxy.silence("to_broker")
        join = asyncio.create_task(_join(subscriber, "another"))
        detected = workload.detected(asyncio.get_running_loop().time(), [subscriber])
        assert await detected <= 2 * QUICK.probe_interval_seconds + 0.3 + workload.delay.seconds
        target.proxy.heal()
        await join
        await workload.recovered()
    assert workload.check().faults == []


async def _join(participant: Participant, channel: str) -> None:
    async with participant.backplane.subscribe(channel):
        pass
