"""`backplane.adapters.nats.reading`: what is read while the stream changes, from replicas that lack the newest."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

import pytest

from backplane.adapters.nats.channel_log import ChannelLogs, Session, Stream
from backplane.adapters.nats.jetstream import StoredMessage, StreamInfo, StreamState
from backplane.adapters.nats.reading import Reading
from backplane.history_rules import History, HistoryRules
from backplane.message import Position

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backplane.broadcaster import Recalled

CHANNELS = ("room", "room-2", "room-3")
RULE = History(max_messages=6)


class ModelStream:
    """A stream that changes whenever it is asked, with a replica that lacks its newest messages.

    Attributes:
        stream: What the reader knows of it.
        log: Everything that was ever published, by subject.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._kept: list[StoredMessage] = []
        self._versions: list[list[StoredMessage]] = [[]]
        self._last = 0
        self.is_changing = True
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
        found = [kept for kept in version if kept.subject == subject and kept.sequence >= sequence]
        return found[: 1 if by_leader else self._random.randint(1, limit)]

    async def _asked(self) -> None:
        await asyncio.sleep(0)
        if self.is_changing:
            self.change()


def reading(model: ModelStream, channel: str, log: object = None) -> Reading:
    """Return a reading of a channel."""
    info = StreamInfo(created="now", config=cast("Any", {}), state=model.state)
    return Reading(cast("Any", model), model.stream, channel, info, cast("Any", log))


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


@pytest.mark.parametrize("block", range(20))
def test_what_is_found_has_no_hole(block: int) -> None:
    """Whatever is published, dropped and expires while it is read: what is given back is the log, without a hole."""

    async def run(seed: int) -> int:
        model, chosen = ModelStream(seed), random.Random(seed)
        positions: list[tuple[str, Position]] = []
        found = 0
        for _ in range(40):
            channel = chosen.choice(CHANNELS)
            mine = [position for owner, position in positions[-20:] if owner == channel]
            after = chosen.choice([None, *mine])
            limit = chosen.choice((0, 1, 3, 100))
            recalled = await reading(model, channel).recall(after, limit, chosen.choice((1, 3, 1000)))
            check(model, channel, after, recalled)
            if after is not None:
                wrong = Position(after.epoch, after.offset, after.check ^ 1)
                assert not (await reading(model, channel).recall(wrong, limit, 1000)).found
            found += recalled.found and after is not None
            positions += [(channel, item.place) for item in recalled.items]
            positions.append((channel, recalled.top))
        return found

    assert sum(asyncio.run(run(seed)) for seed in range(block * 50, block * 50 + 50)) > 80


@pytest.mark.parametrize("block", range(10))
def test_what_a_subscribed_worker_knows_is_true(block: int) -> None:
    """Through lost links and expiry, a position that a subscribed worker resumes from misses nothing."""

    async def run(seed: int) -> int:
        model, chosen = ModelStream(seed), random.Random(seed)
        model.is_changing = False
        logs = ChannelLogs(lambda _: None)
        rules = HistoryRules({"*": RULE})
        last: dict[str, Position] = {}
        seen = dict.fromkeys(CHANNELS, 0)
        found = 0
        for _ in range(40):
            session = Session(cast("Any", SimpleNamespace(synced_at=float("inf"))))
            logs.begin(rules, {"*": model.stream}, session)
            for channel in CHANNELS:
                logs.subscribed(channel)
                recalled = await reading(model, channel, logs.get(channel)).recall(last.get(channel), 100, 1000)
                check(model, channel, last.get(channel), recalled)
                if channel in last and recalled.found:
                    found += 1
                    missed = [message.sequence for message in model.log[model.stream.subject_of(channel)]]
                    assert [item.place.offset for item in recalled.items] == [
                        number for number in missed if number > seen[channel]
                    ]
                last[channel] = recalled.items[-1].place if recalled.items else recalled.top
                seen[channel] = max([0, *(message.sequence for message in model.log[model.stream.subject_of(channel)])])
                log = logs.get(channel)
                assert log is not None
                log.recalled(last[channel])
            model.stream.reached = model.state.last_seq
            logs.end()
            for _ in range(chosen.choice((0, 1, 2))):
                model.change()
        return found

    assert sum(asyncio.run(run(seed)) for seed in range(block * 20, block * 20 + 20)) > 300
