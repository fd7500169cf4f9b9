"""Reading what a stream has stored since a lost link once, for all the channels that missed something.

Of each channel by itself, a server before 2.11 returns one message for each request, and searches for it in all that
the stream has stored since: ten thousand channels with three missed messages each take it 13 seconds.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from backplane.adapters.nats.jetstream import StoredMessage
from backplane.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping

    from backplane.adapters.nats.channel_log import Stream
    from backplane.adapters.nats.jetstream import JetStream

__all__ = ["Sweep", "worthwhile_start"]

# Below that many channels the requests for each of them are few.
_LEAST_CHANNELS: Final = 64
# The numbers that are read for each channel which is served: its own requests would cost the server as much.
_MAX_PER_CHANNEL: Final = 32
# What was stored before the link was lost is read too, as far back as the newest message of a channel is: that much of
# it, as a multiple of what was stored since.
_MAX_BEFORE: Final = 4
_MAX_BYTES: Final = 16 * 1024 * 1024
# Few enough that their objects do not lead to a garbage collection.
_BATCH: Final = 64
_BATCH_BYTES: Final = 1024 * 1024
# A channel that has waited for so long is read by itself, before its read takes too long.
_PATIENCE_SECONDS: Final = 0.5


def worthwhile_start(offsets: Collection[int], *, reached: int, last: int) -> int | None:
    """Return after which number a sweep should begin; `None` where reading each channel by itself costs less.

    Args:
        offsets: The number of the newest message of each channel that was received.
        reached: Number of the newest message of the stream on the last link.
        last: Number of its newest message.
    """
    missed = last - reached
    if len(offsets) < _LEAST_CHANNELS or missed * _MAX_BEFORE * 2 < len(offsets):
        return None
    lowest = last - (1 + _MAX_BEFORE) * missed
    served = [offset for offset in offsets if lowest <= offset <= last]
    if len(served) < _LEAST_CHANNELS or last - min(served) > _MAX_PER_CHANNEL * len(served):
        return None
    return min(served)


class Sweep:
    """What one stream has stored after a number, by channel.

    It reads as far as it is asked to. What it has read is held until the channel takes it, 16 MiB at most: a sweep that
    finds more is given up.

    Args:
        jetstream: Where to read.
        stream: The stream.
        start: The number after which it begins.
        wanted: The subjects of the channels, each with the number after which its messages are wanted.
        run: Runs a coroutine as a task.

    Attributes:
        reached: Everything up to this number was read, after it had been stored.
        is_usable: It was not given up, and channels are left that have taken nothing.
    """

    __slots__ = (
        "_high",
        "_is_broken",
        "_jetstream",
        "_last",
        "_messages",
        "_run",
        "_size_bytes",
        "_stream",
        "_task",
        "_wanted",
        "reached",
    )

    def __init__(
        self,
        jetstream: JetStream,
        stream: Stream,
        start: int,
        wanted: Mapping[bytes, int],
        *,
        run: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        self._jetstream = jetstream
        self._stream = stream
        self._wanted = {subject: after for subject, after in wanted.items() if after >= start}
        self._run = run
        self._task: asyncio.Task[None] | None = None
        self._high = start
        self._is_broken = False
        # Payload, time and the number of the message before it on its channel, by number; and the newest number of each
        # channel. Values that no garbage collection visits.
        self._messages: dict[int, tuple[bytes, float, int]] = {}
        self._last: dict[bytes, int] = {}
        self._size_bytes = 0
        self.reached: int = start

    @property
    def is_usable(self) -> bool:
        """See above."""
        return not self._is_broken and bool(self._wanted)

    async def reach(self, high: int) -> bool:
        """Read up to number `high`, for all callers at once; return whether that is done, soon or not at all."""
        self._high = max(self._high, high)
        if self.reached < high and not self._is_broken:
            if self._task is None or self._task.done():
                self._task = self._run(self._read())
            await asyncio.wait([self._task], timeout=_PATIENCE_SECONDS)
        return self.reached >= high and not self._is_broken

    def take(self, subject: bytes, after: int, high: int) -> list[StoredMessage] | None:
        """Return the messages of a channel after a number, up to another one, which was reached; oldest first, once.

        `None` where they are not known, as the second time.
        """
        begin = self._wanted.get(subject)
        if begin is None or after < begin:
            return None
        del self._wanted[subject]
        found: list[StoredMessage] = []
        number = self._last.pop(subject, 0)
        while number:
            payload, stored_at, before = self._messages.pop(number)
            self._size_bytes -= len(payload)
            if after < number <= high:
                found.append(StoredMessage(subject, number, stored_at, payload))
            number = before
        return found[::-1]

    async def _read(self) -> None:
        """Read up to the highest number that was asked for."""
        jetstream, stream = self._jetstream, self._stream
        is_whole, has_batches = False, True
        try:
            while self.reached < self._high:
                low, found = self.reached + 1, list[StoredMessage]()
                if has_batches:
                    found = await jetstream.read(
                        stream, stream.subjects.encode(), low, limit=_BATCH, max_bytes=_BATCH_BYTES, by_leader=False
                    )
                    has_batches = len(found) > 1  # not of a server before 2.11; nor where a replica lacks the newest
                high = found[-1].sequence if has_batches else min(low + _BATCH - 1, self._high)
                for message in found if has_batches else await jetstream.between(stream, low, high):
                    self._add(message)
                if self._size_bytes > _MAX_BYTES:
                    return
                self.reached = high
            is_whole = True
        except BrokerError:  # each channel is read by itself, and fails by itself
            return
        finally:
            self._is_broken = not is_whole

    def _add(self, message: StoredMessage) -> None:
        subject, number, stored_at, payload = message
        if number > self._wanted.get(subject, number):
            self._messages[number] = (payload, stored_at, self._last.get(subject, 0))
            self._last[subject] = number
            self._size_bytes += len(payload)
