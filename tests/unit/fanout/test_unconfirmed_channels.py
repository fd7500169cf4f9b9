"""`backplane.fanout.unconfirmed_channels`: when channels without a final answer are subscribed to again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane.fanout.unconfirmed_channels import UnconfirmedChannels

if TYPE_CHECKING:
    from collections.abc import Collection

pytestmark = pytest.mark.anyio


class Due:
    """Unconfirmed channels, and what `on_due` got."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self._called = asyncio.Event()
        self.channels = UnconfirmedChannels(self._on_due)

    def _on_due(self, channels: Collection[str]) -> None:
        self.calls.append(list(channels))
        self._called.set()

    async def next(self) -> list[str]:
        """Wait for the next call."""
        async with asyncio.timeout(30):
            await self._called.wait()
        self._called.clear()
        return self.calls[-1]


async def test_all_are_due_together_after_one_pause() -> None:
    """Channels that are added during a pause are due at its end, with those that began it."""
    due = Due()
    due.channels.add({"a": "busy"})
    due.channels.add({"b": "busy"})
    assert due.calls == []
    assert await due.next() == ["a", "b"]


async def test_channel_remains_until_it_is_answered() -> None:
    """A channel that was due has its last reason until an answer removes it."""
    due = Due()
    due.channels.add({"a": "busy"})
    await due.next()
    due.channels.add({"a": "still busy"})
    assert due.channels.reason("a") == "still busy"
    due.channels.discard("a")
    assert due.channels.reason("a") is None


async def test_answer_to_the_last_channel_cancels_the_pause() -> None:
    """Without any channel left nothing is due; removing an unknown channel changes nothing."""
    due = Due()
    due.channels.add({"a": "busy", "b": "busy"})
    due.channels.discard("a")
    due.channels.discard("unknown")
    due.channels.discard("b")
    await asyncio.sleep(0.1)  # longer than the pause
    assert due.calls == []


async def test_nothing_added_is_no_pause() -> None:
    """Adding no channel to none starts no pause."""
    due = Due()
    due.channels.add({})
    await asyncio.sleep(0.1)  # longer than the pause
    assert due.calls == []


async def test_persistent_after_several_pauses() -> None:
    """The pauses double from 0.05 s; with the fifth the next one is the longest, and the state is no passing one."""
    due, loop = Due(), asyncio.get_running_loop()
    begun = loop.time()
    persistent: list[bool] = []
    for _ in range(5):
        due.channels.add({"a": "busy"})
        persistent.append(due.channels.is_persistent)
        await due.next()
    assert persistent == [False, False, False, False, True]
    assert loop.time() - begun >= 0.05 + 0.1 + 0.2 + 0.4 + 0.8 - 0.05
