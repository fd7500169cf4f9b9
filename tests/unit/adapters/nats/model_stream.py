"""A stream of NATS as a model: it changes whenever it is asked, and has a replica that lacks its newest messages."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

from backplane.adapters.nats.channel_log import Stream
from backplane.adapters.nats.jetstream import StoredMessage, StreamInfo, StreamState
from backplane.history_rules import History

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backplane.broadcaster import Recalled
    from backplane.message import Position

CHANNELS = ("room", "room-2", "room-3")
RULE = History(max_messages=6)


class ModelStream:
    """A stream that changes whenever it is asked, with a replica that lacks its newest messages.

    Attributes:
        stream: What the reader knows of it.
        is_changing: It changes whenever it is asked.
        has_batches: The server returns several messages at once.
        log: Everything that was ever published, by subject.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._kept: list[StoredMessage] = []
        self._versions: list[list[StoredMessage]] = [[]]
        self._last = 0
        self.is_changing = True
        self.has_batches = True
        self.stream = Stream("*", RULE, "")
        self.stream.created = "now"
        self.stream.replicas = 3
        self.log: dict[bytes, list[StoredMessage]] = {self.stream.subject_of(channel): [] for channel in CHANNELS}

    def change(self) -> None:
        """Publish some messages, and let some expire."""
        for _ in range(self._random.choice((0, 0, 1, 2, 8))):
            self._last += 1
            subject = self._random.choice(list(self.log))
            message = StoredMessage(subject, self._last, 0.0, b"%d" % self._random.randrange(3))
            self.log[subject].append(message)
            self._kept.append(message)
            of_subject = [kept for kept in self._kept if kept.subject == subject]
            if len(of_subject) > self.stream.max_per_subject:
                self._kept.remove(of_subject[0])
        if self._random.random() < 0.1:
            del self._kept[: self._random.randrange(len(self._kept) + 1)]
        self._versions.append(list(self._kept))

    def kept(self, channel: str) -> list[StoredMessage]:
        """Return the messages of a channel that are there."""
        return [message for message in self._kept if message.subject == self.stream.subject_of(channel)]

    @property
    def state(self) -> StreamState:
        """Its first and its last message."""
        first = self._kept[0].sequence if self._kept else self._last + 1
        return StreamState(first_seq=first if self._last else 0, last_seq=self._last)

    async def info(self, _: Stream, subject: bytes) -> StreamInfo:
        """Return its state."""
        await self._asked()
        state = self.state
        state.subjects = {subject.decode(): sum(kept.subject == subject for kept in self._kept)}
        return StreamInfo(created="now", config=cast("Any", {}), state=state)

    async def newest(self, _: Stream, subject: bytes) -> StoredMessage | None:
        """Return the newest message."""
        await self._asked()
        return next((kept for kept in reversed(self._kept) if kept.subject == subject), None)

    async def first(self, _: Stream, subject: bytes) -> StoredMessage | None:
        """Return the oldest message."""
        await self._asked()
        return next((kept for kept in self._kept if kept.subject == subject), None)

    async def at(self, _: Stream, sequence: int) -> StoredMessage | None:
        """Return the message of a number."""
        await self._asked()
        return next((kept for kept in self._kept if kept.sequence == sequence), None)

    async def read(
        self, _: Stream, subject: bytes, sequence: int, *, limit: int, max_bytes: int, by_leader: bool
    ) -> Sequence[StoredMessage]:
        """Return messages, of the leader or of what a replica had earlier."""
        await self._asked()
        version = self._kept if by_leader else self._random.choice(self._versions[-4:])
        is_any = subject == self.stream.subjects.encode()
        found = [kept for kept in version if (is_any or kept.subject == subject) and kept.sequence >= sequence]
        return found[: 1 if by_leader or not self.has_batches else self._random.randint(1, limit)]

    async def between(self, _: Stream, low: int, high: int) -> list[StoredMessage]:
        """Return the messages with these numbers, each as it is when its number is asked for."""
        found: list[StoredMessage] = []
        for number in range(low, high + 1):
            if self._random.random() < 0.1:
                await self._asked()
            found += (kept for kept in self._kept if kept.sequence == number)
        return found

    async def _asked(self) -> None:
        await asyncio.sleep(0)
        if self.is_changing:
            self.change()


def check(model: ModelStream, channel: str, after: Position | None, recalled: Recalled) -> None:
    """Compare what was read with everything that was ever published."""
    subject = model.stream.subject_of(channel)
    log = [(message.sequence, message.payload) for message in model.log[subject]]
    items = [(item.place.offset, item.payload) for item in recalled.items]
    befores = [item.place.before for item in recalled.items]
    assert all(item.place.check == crc32(item.payload) for item in recalled.items)
    if items:
        start = log.index(items[0])
        assert log[start : start + len(items)] == items
        assert befores[1:] == [offset for offset, _ in items[:-1]]
    if after is None or not recalled.found:
        return
    following = [entry for entry in log if after.offset < entry[0]]
    assert following[: len(items)] == items
    if not recalled.more:
        assert [entry for entry in following if entry[0] <= recalled.top.offset] == items
    if items:
        assert befores[0] == after.offset
