"""A hub that keeps the messages of some channels in memory, for tests of what joins it: it never misses a message."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from backplane.errors import InvalidPositionError
from backplane.fanout.batch import Batch
from backplane.fanout.codec import decode, encode
from backplane.fanout.hub import Hub
from backplane.history_rules import History, HistoryRules
from backplane.message import Gap, Joined, Message, Place, Position
from tests.unit.doubles import RecordingSubscriber

if TYPE_CHECKING:
    from backplane.fanout.broker_subscriptions import BrokerSubscriptions
    from backplane.fanout.delivery import Subscriber

__all__ = ["KeepingHub"]

EPOCH = b"an epoch"
_RULES = HistoryRules({"kept*": History()})


class KeepingHub(Hub):
    """Keeps channels whose names begin with `kept`.

    Attributes:
        first: The offset of the oldest message that is kept, by channel; set by the test.
        joins: What each join of a kept channel passed: channel, since, rewind.
    """

    def __init__(self, broker_subscriptions: BrokerSubscriptions) -> None:
        super().__init__(broker_subscriptions)
        self.first: dict[str, int] = {}
        self.joins: list[tuple[str, str | None, int]] = []
        self._logs: dict[str, list[Message]] = {}

    @property
    def rules(self) -> HistoryRules:
        """Which channels are kept."""
        return _RULES

    def keep(self, channel: str, data: object, excluded: bytes | None = None) -> Position:
        """Keep a message and deliver it; return its position."""
        payload = encode(data, origin=b"a worker", published_at=1.0, excluded=excluded, states_json=True)
        log = self._logs.setdefault(channel, [])
        place = Place(EPOCH, len(log) + 1, crc32(payload))
        message = decode(channel, payload, place)
        assert message is not None
        log.append(message)
        self.deliver(channel, payload, place)
        return place

    def position(self, channel: str) -> Position | None:
        """Return the position of the newest message."""
        if not channel.startswith("kept"):
            return super().position(channel)
        self._flush()
        return self._before(channel, len(self._logs.get(channel, ())))

    async def join(self, channel: str, subscriber: Subscriber, *, since: str | None = None, rewind: int = 0) -> None:
        """Add a subscriber, with what it missed."""
        if not channel.startswith("kept"):
            return await super().join(channel, subscriber, since=since, rewind=rewind)
        self.joins.append((channel, since, rewind))
        holder = RecordingSubscriber()
        await self._add(channel, holder)
        self._flush()
        log = self._logs.get(channel, [])
        found = None if since is None else self._found(channel, since)
        start = len(log) - min(rewind, len(log)) if found is None else found
        gap = None
        if since is not None and found is None:
            gap = Gap(channel=channel, reason="the broker's own text", position=self._before(channel, len(log)))
        position = self._before(channel, start)
        if subscriber not in self._subscribers[channel]:
            self._subscribers[channel][subscriber] = 1
            subscriber.joined(Joined(channel=channel, position=position, resumed=found is not None, gap=gap))
            if log[start:]:
                subscriber.offer_missed(Batch(*log[start:]))
        self.leave(channel, holder)

    def _found(self, channel: str, since: str) -> int | None:
        try:
            position = Position.parse(since)
        except InvalidPositionError:
            return None
        is_kept = self.first.get(channel, 0) <= position.offset <= len(self._logs.get(channel, ()))
        return position.offset if is_kept and position == self._before(channel, position.offset) else None

    def _before(self, channel: str, offset: int) -> Position:
        if not offset:
            return Position(EPOCH, 0, crc32(channel.encode()))
        position = self._logs[channel][offset - 1].position
        assert position is not None
        return position
