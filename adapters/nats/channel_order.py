"""The order of kept and other messages of one channel.

The server republishes a kept message when its stream has stored it. A publish that is sent before that overtakes it.
"""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["ChannelOrder"]


class _Turns:
    """One channel.

    Attributes:
        keeps: How many kept messages are sent and not answered.
        waiting: The calls that wait, in order: whether it is a publish, and what ends its waiting.
        waking: How many of them may go on, and have not run since.
    """

    __slots__ = ("keeps", "waiting", "waking")

    def __init__(self) -> None:
        self.keeps = 0
        self.waiting: deque[tuple[bool, asyncio.Future[None]]] = deque()
        self.waking = 0


class ChannelOrder:
    """Lets a publish wait for the kept messages before it, and kept messages for the publishes before them."""

    def __init__(self) -> None:
        self._channels: dict[str, _Turns] = {}

    def __contains__(self, channel: str) -> bool:
        """Whether a publish has to wait for anything."""
        return channel in self._channels

    async def enter_keep(self, channel: str) -> None:
        """Return when a message to be kept may be sent: at once, before anything else is awaited.

        Each call that returns is to be followed by `leave_keep`.
        """
        turns = self._channels.get(channel)
        if turns is None:
            turns = self._channels[channel] = _Turns()
        if turns.waiting or turns.waking:
            await self._wait(channel, turns, is_publish=False)
        else:
            turns.keeps += 1

    def leave_keep(self, channel: str) -> None:
        """Note that the server has answered, or will not."""
        turns = self._channels[channel]
        turns.keeps -= 1
        self._wake(channel, turns)

    async def enter_publish(self, channel: str) -> None:
        """Return when a publish may be sent: at once, before anything else is awaited."""
        turns = self._channels.get(channel)
        if turns is not None:
            await self._wait(channel, turns, is_publish=True)

    async def _wait(self, channel: str, turns: _Turns, *, is_publish: bool) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        turns.waiting.append((is_publish, turn))
        try:
            await turn
            turns.keeps += not is_publish
        finally:
            if not turn.cancelled():
                turns.waking -= 1
            self._wake(channel, turns)

    def _wake(self, channel: str, turns: _Turns) -> None:
        """Let those go on whose turn it is; forget a channel on which nothing is in progress."""
        while turns.waiting:
            is_publish, turn = turns.waiting[0]
            if is_publish and not turn.cancelled() and (turns.keeps or turns.waking):
                return
            turns.waiting.popleft()
            if not turn.cancelled():
                turns.waking += 1
                turn.set_result(None)
        if not (turns.keeps or turns.waking) and self._channels.get(channel) is turns:
            del self._channels[channel]
