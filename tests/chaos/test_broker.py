"""The broker itself is killed or frozen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.chaos.workload import running_workload

if TYPE_CHECKING:
    from tests.chaos.case_table import CaseRecorder
    from tests.chaos.target import FaultTarget

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

full = pytest.mark.full


@pytest.mark.parametrize(
    "private_target", ["redis", "nats", "kafka", "postgres", pytest.param("amqp", marks=full)], indirect=True
)
@pytest.mark.parametrize("seconds", [0.2, pytest.param(3, marks=full), pytest.param(12, marks=full)])
async def test_a_broker_that_is_killed_and_comes_back(
    seconds: float, private_target: FaultTarget, record_case: CaseRecorder
) -> None:
    """After SIGKILL and a restart every worker is live again, with one gap on every channel, and on a pattern."""
    async with running_workload(private_target.url, lossless=private_target.lossless, pattern="*") as workload:
        killed_at = asyncio.get_running_loop().time()
        private_target.broker.kill9()
        detected = await workload.detected(killed_at)
        await asyncio.sleep(seconds)
        await private_target.restart_broker()
        recovered = await workload.recovered()
    record_case(
        f"kill -9, back after {seconds:g} s", private_target.name, workload, detected=detected, recovered=recovered
    )


@pytest.mark.parametrize("seconds", [2, pytest.param(5, marks=full)])
async def test_a_broker_that_is_frozen(seconds: float, private_target: FaultTarget, record_case: CaseRecorder) -> None:
    """A broker under SIGSTOP is detected by the probe, and every worker is live again after SIGCONT."""
    async with running_workload(private_target.url, lossless=private_target.lossless, pattern="*") as workload:
        frozen_at = asyncio.get_running_loop().time()
        private_target.broker.freeze()
        detected = await workload.detected(frozen_at)
        await asyncio.sleep(max(0, frozen_at + seconds - asyncio.get_running_loop().time()))
        private_target.broker.thaw()
        recovered = await workload.recovered()
    record_case(
        f"SIGSTOP for {seconds} s", private_target.name, workload, detected=detected, silent=True, recovered=recovered
    )
