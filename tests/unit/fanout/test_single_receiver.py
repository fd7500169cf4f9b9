"""`backplane.fanout.single_receiver`: one task waits at a time; its use: test_receiver.py and test_subscription.py."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from backplane.errors import LifecycleError
from backplane.fanout.single_receiver import SingleReceiver
from tests.unit.doubles import until_idle

pytestmark = pytest.mark.anyio


class Source:
    """A source without messages, whose receivers wait.

    Attributes:
        receiver: What lets one wait at a time.
    """

    def __init__(self) -> None:
        self.receiver = SingleReceiver()
        self._message = asyncio.Event()

    async def receive(self) -> None:
        """Wait for a message."""
        self.receiver.check_single("this source", "receive in one task")
        task = self.receiver.begin_waiting()
        try:
            await self._message.wait()
        finally:
            self.receiver.end_waiting(task)

    def send(self) -> None:
        """Let a message come."""
        self._message.set()


async def test_second_task_is_refused() -> None:
    """A second task raises, with the name of the first one and what to do instead; afterwards any task may wait."""
    source = Source()
    assert not source.receiver.is_waiting
    first = asyncio.create_task(source.receive(), name="first")
    await until_idle()
    assert source.receiver.is_waiting
    with pytest.raises(LifecycleError, match=r"^task 'first' receives from this source already: receive in one task$"):
        await source.receive()
    source.send()
    await first
    assert not source.receiver.is_waiting
    await source.receive()


async def test_successor_of_a_cancelled_task() -> None:
    """A task may begin to wait before a cancelled one has ended, whose end does not end its wait."""
    source = Source()
    cancelled = asyncio.create_task(source.receive())
    await until_idle()
    successor = asyncio.create_task(source.receive())  # is to run before the cancellation arrives
    cancelled.cancel()
    await until_idle()
    assert (cancelled.cancelled(), source.receiver.is_waiting) == (True, True)
    source.send()
    await successor


async def test_task_that_went_on_after_a_cancellation() -> None:
    """A task that was cancelled before it began to wait waits as any other: a second one is refused."""
    source = Source()

    async def receive_after_a_cancellation() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await source.receive()

    first = asyncio.create_task(receive_after_a_cancellation())
    await until_idle()
    first.cancel()
    await until_idle()
    with pytest.raises(LifecycleError):
        await source.receive()
    source.send()
    await first
