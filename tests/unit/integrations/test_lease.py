"""`backplane.integrations.lease`: one backplane is started and stopped, another one is left as it is."""

from __future__ import annotations

import asyncio

import pytest

from backplane import Backplane, BrokerUnavailableError, ClosedError, Settings
from backplane.integrations.lease import Lease
from tests.unit.controlled_adapter import Adapter

pytestmark = pytest.mark.anyio


async def test_own_backplane() -> None:
    """It is started once for all that wait, and stopped; then it is not started without being asked to."""
    lease = Lease("memory://")
    first, second = await asyncio.gather(lease.ready(), lease.ready())
    assert first is second is lease.backplane
    assert first.state == "live"
    await lease.start()
    await lease.stop()
    assert (await lease.ready()).state == "closed"
    with pytest.raises(ClosedError):
        await lease.backplane.publish("a", "b")
    await lease.start()
    assert (await lease.ready()).state == "live"
    await lease.stop()


async def test_backplane_of_the_application() -> None:
    """It is neither started nor stopped."""
    async with Backplane("memory://") as backplane:
        lease = Lease(backplane)
        assert await lease.ready() is backplane
        await lease.stop()
        assert str(backplane) == "<Backplane memory:// live>"
    await lease.start()
    assert str(backplane) == "<Backplane memory:// closed>"


async def test_failed_start() -> None:
    """All that wait for a start get its error, and the next one tries again."""
    adapter = Adapter()
    lease = Lease("memory://")
    lease.backplane = Backplane(adapter, settings=Settings(start_timeout_seconds=0.05))
    adapter.start_error = error = BrokerUnavailableError("away")
    adapter.start_gate.close()
    waiting = [asyncio.create_task(lease.ready()) for _ in range(2)]
    await asyncio.sleep(0)
    adapter.start_gate.open()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, BrokerUnavailableError) for outcome in outcomes)
    assert error is adapter.start_error
    adapter.start_error = None
    assert (await lease.ready()).state == "live"
    await lease.stop()
