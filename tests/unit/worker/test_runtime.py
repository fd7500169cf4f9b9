"""`backplane.worker.runtime`: the drain, the stop and the health of a worker; `test_core.py` has the rest."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest

from backplane.connection.limits import Limits
from backplane.errors import ClosedError, TooManyConnectionsError
from backplane.fanout.backlog import Backlog
from backplane.fanout.outbox import Outbox
from backplane.message import Message
from backplane.settings import Settings
from backplane.worker.runtime import Runtime
from tests.unit.doubles import ControlledBroadcaster, FakeClient

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio


async def test_drain_waits_for_no_transport() -> None:
    """A drain is over when every handler has ended, whatever the clients have not read; health counts them longer."""
    worker, client = Runtime(ControlledBroadcaster(), Settings()), FakeClient()
    gone: list[Callable[[], None]] = []
    worker.clients.register(client, "alice", None)
    asyncio.get_running_loop().call_soon(worker.clients.unregister, client, gone.append)
    async with asyncio.timeout(30):
        await worker.drain()
    health = worker.health()
    assert (health.draining, health.ready, health.connections) == (True, False, 1)
    gone[0]()
    assert worker.health().connections == 0


async def test_drain_of_a_client_that_stays(caplog: pytest.LogCaptureFixture) -> None:
    """A drain closes each client after what waits for it, and reports the handlers that do not end in time."""
    worker = Runtime(
        ControlledBroadcaster(), Settings(drain_seconds=0.01, handler_grace_seconds=0.01), close_seconds=0.01
    )
    client = FakeClient()
    worker.clients.register(client, "alice", None)
    async with asyncio.timeout(30):
        await worker.drain()
    assert client.closes == [("after", 1012, "restart")]
    assert "1 handlers did not end with their connection" in caplog.messages
    with pytest.raises(ClosedError):
        worker.clients.register(FakeClient(), "bob", None)


async def test_collections_of_a_drain() -> None:
    """From a drain with clients to the stop, garbage collections leave out what existed."""
    worker, client = Runtime(ControlledBroadcaster(), Settings()), FakeClient()
    await worker.supervisor.start()
    await worker.drain()
    assert gc.get_freeze_count() == 0
    await worker.stop()
    worker = Runtime(ControlledBroadcaster(), Settings(drain_seconds=0.01))
    await worker.supervisor.start()
    worker.clients.register(client, "alice", None)
    asyncio.get_running_loop().call_soon(worker.clients.unregister, client)
    async with asyncio.timeout(30):
        await worker.drain()
    assert gc.get_freeze_count() > 1_000
    await worker.stop()
    assert gc.get_freeze_count() == 0


async def test_stop_closes_at_once() -> None:
    """A stop without a drain closes the clients that are left at once."""
    worker, client = Runtime(ControlledBroadcaster(), Settings()), FakeClient()
    await worker.supervisor.start()
    worker.clients.register(client, "alice", None)
    await worker.stop()
    assert client.closes == [("at once", 1012, "restart")]


async def test_stop_flushes_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """What was counted and not logged yet is logged at the stop."""
    worker = Runtime(ControlledBroadcaster(), Settings())
    await worker.supervisor.start()
    worker.clients.register(FakeClient(), "alice", 1)
    for _ in range(6):
        with pytest.raises(TooManyConnectionsError):
            worker.clients.register(FakeClient(), "alice", 1)
    await worker.stop()
    assert [text for text in caplog.messages if text.startswith("1 more within 10 s")] != []


async def test_policy_of_the_application() -> None:
    """The policy of all connections is made once, with the application's options and the parts of the worker."""
    limits = Limits(max_channels=7)
    worker = Runtime(
        ControlledBroadcaster(),
        Settings(handler_grace_seconds=3, authorize_timeout_seconds=4),
        limits=limits,
        authorize=lambda _, __: True,
    )
    policy = worker.policy
    assert (policy.limits, policy.handler_grace_seconds, policy.authorize_timeout_seconds) == (limits, 3, 4)
    assert (policy.statistics is worker.statistics, policy.keepalive is worker.keepalive) == (True, True)
    assert policy.with_options(None, None) is policy
    other = policy.with_options(Limits(max_channels=1), None)
    assert (other.limits.max_channels, other.on_gap, other.statistics is worker.statistics) == (1, "close", True)


async def test_health_with_many_clients() -> None:
    """What waits, the closes whose turn is to come, and stalls are stated; at the stop no timer of them is left."""
    worker = Runtime(ControlledBroadcaster(), Settings(drain_seconds=60.0))
    await worker.start()
    before = worker.health()
    assert (before.closing, before.slow_subscribers, before.waiting_messages, before.waiting_bytes) == (0, 0, 0, 0)
    outbox = Outbox(Backlog(), waiting=worker.waiting)
    outbox.offer(Message(channel="a", data="four"))
    worker.clients.handed_over = 2
    close = WaitingTurn()
    place = worker.policy.turns.put(close, 60.0)
    for _ in range(500):
        worker.clients.register(FakeClient(), None, None)
    worker.clients.retire_all(60.0)
    worker.stalls._longest = 0.25  # pyright: ignore[reportPrivateUsage]
    health = worker.health()
    assert (health.handed_over, health.closing) == (2, 501)
    assert (health.slow_subscribers, health.waiting_messages, health.waiting_bytes) == (1, 1, 4)
    assert (health.fan_outs, health.resting_channels, health.longest_stall_seconds >= 0.25) == (0, 0, True)
    worker.policy.turns.remove(close, place)
    await worker.stop()
    assert worker.stalls._timer is None  # pyright: ignore[reportPrivateUsage]


class WaitingTurn:
    """A close that waits."""

    def turn_has_come(self) -> None:
        """Do nothing."""
