"""The newest messages of channels with a history, kept in memory: no I/O.

The reader receives every record of the topic, so it knows what a client that comes back has missed, if it was not away
for long. What is older is read from the log (`history`) and added before.

Of each channel a ring knows everything from one offset on, `since`. Channels without a ring have no record from the
`floor` of their partition on. So no message is taken for missing that was never published, and the reverse.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import islice, takewhile
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

from backplane.adapters.kafka.records import partition_hash
from backplane.broadcaster import KeptMessage, Recalled
from backplane.header import path_test_id
from backplane.message import Place, Position

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from backplane.adapters.kafka.answers import Topology
    from backplane.adapters.kafka.records import Record
    from backplane.history_rules import History, HistoryRules

__all__ = ["HistoryRings", "Item", "LogIdentity", "Query", "Ring", "channel_epoch"]

# What an item and a ring take beside the payload, measured with `tracemalloc`.
_ITEM_BYTES: Final = 170
_RING_BYTES: Final = 900
# Keys without a rule, which other programs may choose, must not grow a set without bound.
_MAX_UNRULED: Final = 10_000


class LogIdentity(NamedTuple):
    """What a position belongs to, beside its partition and channel.

    Attributes:
        cluster: Id of the cluster; empty where the broker provides none.
        topic_id: Id of the topic: another topic of the same name has another one. Zeros from brokers before Kafka 3.1;
            there the checks of the positions alone show that a topic was created anew.
        topic: Name of the topic.
        partitions: Number of partitions: with another one, channels move.
    """

    cluster: str
    topic_id: bytes
    topic: str
    partitions: int

    @classmethod
    def of(cls, topology: Topology, topic: str) -> LogIdentity:
        """Return the identity of a topic, as brokers describe it."""
        return cls(topology.cluster or "", topology.topic_id, topic, len(topology.leaders))

    def partition_of(self, key: bytes) -> int:
        """Return the partition of a channel."""
        return partition_hash(key) % self.partitions

    def epoch(self, partition: int, key: bytes) -> bytes:
        """Return the epoch of the positions of a channel."""
        return channel_epoch(self.cluster, self.topic_id, self.topic, partition, key)


@lru_cache(maxsize=65_536)
def channel_epoch(cluster: str, topic_id: bytes, topic: str, partition: int, key: bytes) -> bytes:
    """Return 8 bytes that differ for every cluster, topic, partition and channel.

    With the channel, because channels share a partition: a position of another one must not be found, not even one
    before its first message.
    """
    parts = (cluster.encode(), topic_id.hex().encode(), topic.encode(), b"%d" % partition, key)
    return blake2b(b"\0".join(parts), digest_size=8).digest()


Item = tuple[int, int, bytes]
"""Offset, time in milliseconds since the Unix epoch (-1 for none), and payload. Not a class: one is made per record."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question to the history of a channel, as of `SupportsHistory.recall`.

    Attributes:
        key: The channel.
        rule: Its rule.
        after: The position to begin after; `None` for the newest messages.
        limit: Most messages.
        max_bytes: Most bytes of payloads, but for the last message.
    """

    key: bytes
    rule: History
    after: Position | None
    limit: int
    max_bytes: int

    @property
    def oldest_milliseconds(self) -> float:
        """The time before which messages are too old, by this machine's clock."""
        return (time() - self.rule.max_age_seconds) * 1000


class Ring:
    """The newest messages of one channel.

    Attributes:
        partition: Its partition.
        epoch: The epoch of its positions.
        since: Every record of the channel from this offset on is in `items`.
        items: The messages, oldest first.
        anchor: Where no message is known: the position that was given out in place of the newest message's.
        max_items: How many it holds.
        is_full: A message before `since` was left out.
        is_used: It was used since it was last considered for eviction.
        size_bytes: What it takes, about.
    """

    __slots__ = ("anchor", "epoch", "is_full", "is_used", "items", "max_items", "partition", "since", "size_bytes")

    def __init__(self, partition: int, epoch: bytes, since: int, max_items: int) -> None:
        self.partition: int = partition
        self.epoch: bytes = epoch
        self.since: int = since
        self.items: deque[Item] = deque()
        self.anchor: Position | None = None
        self.is_full: bool = False
        self.is_used: bool = True
        self.size_bytes: int = _RING_BYTES
        self.max_items: int = max_items

    def extend(self, newest: Sequence[Item]) -> int:
        """Add the newest messages; return by how much the size has changed."""
        items, before = self.items, self.size_bytes
        for item in newest[-self.max_items :]:
            items.append(item)
            self.size_bytes += len(item[2]) + _ITEM_BYTES
        while len(items) > self.max_items:
            self.drop_oldest()
        if len(newest) > self.max_items:
            self.since, self.is_full = newest[-self.max_items - 1][0] + 1, True
        self.is_used = True
        return self.size_bytes - before

    def prepend(self, records: Iterable[Record], since: int) -> int:
        """Add the records from `since` to those that it has, newest first; return by how much the size has changed."""
        if self.is_full:
            return 0
        known, self.since, before = self.since, min(self.since, since), self.size_bytes
        for _, value, offset, milliseconds in records:
            if value is None or offset >= known or path_test_id(value) is not None:
                continue
            if len(self.items) >= self.max_items:
                self.since, self.is_full = self.items[0][0], True
                break
            self.items.appendleft((offset, milliseconds, value))
            self.size_bytes += len(value) + _ITEM_BYTES
        return self.size_bytes - before

    def records(self) -> Iterable[Record]:
        """Return the messages as records, newest first."""
        return ((None, payload, offset, milliseconds) for offset, milliseconds, payload in reversed(self.items))

    def drop_oldest(self) -> int:
        """Drop the oldest message; return its size."""
        offset, _, payload = self.items.popleft()
        self.since, self.is_full = offset + 1, True
        size = len(payload) + _ITEM_BYTES
        self.size_bytes -= size
        return size


class HistoryRings:
    """The rings of all channels with a rule.

    Args:
        max_bytes: Most bytes of all rings together: above it the ring goes that was not used for longest.
        rules: Which channels have a ring.

    Attributes:
        size_bytes: What the rings take, about.
        forgotten: How often something known was forgotten: a ring was evicted, or a partition was reset.
    """

    def __init__(self, max_bytes: int, rules: HistoryRules) -> None:
        self.size_bytes: int = 0
        self.forgotten: int = 0
        self._max_bytes = max_bytes
        self._rules = rules
        self._identity: LogIdentity | None = None
        self._rings: OrderedDict[bytes, Ring] = OrderedDict()
        self._unruled: set[bytes] = set()
        self._floors: dict[int, int] = {}
        self._scan_limits: dict[int, int] = {}
        self._aged: dict[int, tuple[int, float]] = {}
        self._ends: dict[int, tuple[int, bytes | None]] = {}

    @property
    def max_bytes(self) -> int:
        """Most bytes of all rings together."""
        return self._max_bytes

    def follow(self, identity: LogIdentity, positions: Mapping[int, int]) -> None:
        """Note what is read, and from which offset of each partition on. Of another log everything is forgotten."""
        if identity != self._identity:
            self._identity = identity
            self._rings.clear()
            self.size_bytes = 0
            self.forgotten += 1
            for known in (self._floors, self._scan_limits, self._aged, self._ends):
                known.clear()
        for partition, offset in positions.items():
            self._floors.setdefault(partition, offset)

    def reset(self, partition: int, floor: int) -> None:
        """Forget a partition: records before `floor` are missing, or are not those that were read."""
        if self._identity is None:
            return
        self.forgotten += 1
        for key in [key for key, ring in self._rings.items() if ring.partition == partition]:
            self.size_bytes -= self._rings.pop(key).size_bytes
        self._floors[partition] = floor
        self._aged.pop(partition, None)
        self._ends.pop(partition, None)

    def rule_of(self, key: bytes) -> History | None:
        """Return the rule of the channel with this key."""
        if key in self._unruled:
            return None
        try:
            rule = self._rules.rule_of(key.decode())
        except UnicodeDecodeError:
            rule = None
        if rule is None:
            if len(self._unruled) >= _MAX_UNRULED:
                self._unruled.clear()
            self._unruled.add(key)
        return rule

    def add(self, partition: int, key: bytes, newest: Sequence[Item]) -> bytes | None:
        """Add the records with one key that were read last; return the epoch of their positions.

        `None` for a channel without a rule, and in a partition that is not the channel's, into which other producers
        may put its key: it has no order with the others of the channel.
        """
        ring = self._rings.get(key)
        if ring is None:
            rule = self.rule_of(key)
            if rule is None or self.partition_of(key) != partition:
                return None
            ring = self._make(key, rule)
            self.size_bytes += ring.extend(newest)
            ring.is_used = len(newest) > 1  # a channel with one message goes before one with two
        elif ring.partition != partition:
            return None
        else:
            self.size_bytes += ring.extend(newest)
        if self.size_bytes > self._max_bytes:
            self._evict()
        return ring.epoch

    def note_end(self, partition: int, end: int, last: Record | None) -> None:
        """Note how far a partition was read, and the last record."""
        self._ends[partition] = (end, last[1] if last is not None and last[2] == end - 1 else None)

    def partition_of(self, key: bytes) -> int:
        """Return the partition of a channel."""
        assert self._identity is not None
        return self._identity.partition_of(key)

    def epoch_of(self, key: bytes) -> bytes:
        """Return the epoch of the positions of a channel."""
        assert self._identity is not None
        return self._identity.epoch(self._identity.partition_of(key), key)

    def epoch_in(self, partition: int, key: bytes) -> bytes | None:
        """Return the epoch of the position of a record with this key in a partition, as `add` does."""
        if self.rule_of(key) is None or self.partition_of(key) != partition:
            return None
        return self.epoch_of(key)

    def note_first_end(self, partition: int, end: int, last: Record | None) -> None:
        """Note the last record before the first one that was read, unless others were read since."""
        if partition not in self._ends:
            self.note_end(partition, end, last)

    def known_from(self, key: bytes) -> int:
        """Return the offset from which on everything of a channel is known."""
        ring = self._rings.get(key)
        return self._floors[self.partition_of(key)] if ring is None else ring.since

    def needed_from(self, query: Query) -> int | None:
        """Return the offset from which on the log must be read to answer; `None` where it need not, or no more can."""
        key, after, rule = query.key, query.after, query.rule
        partition, known = self.partition_of(key), self.known_from(key)
        ring = self._rings.get(key)
        items = ring.items if ring is not None else ()
        if known <= self._scan_limits.get(partition, 0):
            return None
        if after is not None:
            if after.epoch != self.epoch_of(key) or known <= after.offset or self._is_too_old(query):
                return None
            return after.offset
        wanted = min(query.limit, rule.max_messages + 1) if query.limit else 1
        oldest = query.oldest_milliseconds
        aged_from, aged_milliseconds = self._aged.get(partition, (-1, 0.0))
        if len(items) >= wanted or (items and _is_older(items[0], oldest)):
            return None
        return None if known <= aged_from and aged_milliseconds < oldest else 0

    def needs_check(self, query: Query) -> bool:
        """Whether the record at `query.after` must be read from the log to answer."""
        key, after = query.key, query.after
        if after is None or not after.offset or after.epoch != self.epoch_of(key):
            return False
        return self.known_from(key) <= after.offset and self._check_of(self._rings.get(key), after.offset) is None

    def is_found(self, query: Query, check: int | None) -> bool:
        """Whether the position `query.after` can be resumed; arguments as for `answer`."""
        return query.after is None or self._found(query, query.after, check) is not None

    def answer(self, query: Query, check: int | None) -> Recalled:
        """Answer from what is known.

        Args:
            query: The question.
            check: The check of the record at `query.after` in the log, where that was needed.
        """
        key, rule = query.key, query.rule
        ring = self._rings.get(key)
        if ring is None:
            ring = self._make(key, rule)
        ring.is_used = True
        if query.after is None:
            recalled = self._newest(ring, query, self._top(ring))
        elif (found := self._found(query, query.after, check)) is None:
            recalled = Recalled(top=self._top(ring), found=False)
        elif not ring.items and ring.since:  # what it names is the newest, and need not be read
            recalled = Recalled(top=found)
        else:
            recalled = self._following(ring, query, found, self._top(ring))
        if self.size_bytes > self._max_bytes:
            self._evict()
        return recalled

    # What was read from the log.

    def backfill(self, key: bytes, rule: History, records: Iterable[Record], since: int, until: int) -> None:
        """Add what was read of a channel from `since` until `until`, newest first."""
        ring = self._rings.get(key) or self._make(key, rule)
        if ring.since <= until:
            self.size_bytes += ring.prepend(records, since)
            ring.is_used = True
        if self.size_bytes > self._max_bytes:
            self._evict()

    def adopt(
        self, partition: int, others: Mapping[bytes, Ring], since: int, until: int, forgotten: int
    ) -> Iterator[None]:
        """Add what was read of all other channels of a partition, if there is room for it.

        Iterate over it: records can be added between the steps.

        Args:
            partition: The partition.
            others: The rings of all channels with records there, but for those that `backfill` had.
            since: What was read begins here.
            until: It ends here.
            forgotten: What `self.forgotten` was when reading began. If anything was forgotten since, whether a channel
                without a ring has a record is not known.
        """
        needed = sum(ring.size_bytes for ring in others.values())
        for key, other in others.items():
            if not self._may_adopt(partition, until, forgotten) or self.size_bytes + needed > self._max_bytes:
                return
            needed -= other.size_bytes
            other.prepend((), since)
            ring = self._rings.get(key)
            if ring is None:
                self._rings[key] = other
                self._rings.move_to_end(key, last=False)
                other.is_used = False
                self.size_bytes += other.size_bytes
            elif ring.since <= until:
                self.size_bytes += ring.prepend(other.records(), other.since)
            yield
        if self._may_adopt(partition, until, forgotten):
            self._floors[partition] = min(self._floors[partition], since)

    def _may_adopt(self, partition: int, until: int, forgotten: int) -> bool:
        return self.forgotten == forgotten and self._floors[partition] <= until

    def ring_aside(self, partition: int, key: bytes, until: int) -> Ring | None:
        """Return a new ring for a channel that is read beside others, for `adopt`; `None` where `add` returns that."""
        rule = self.rule_of(key)
        if rule is None or self.partition_of(key) != partition:
            return None
        return Ring(partition, self.epoch_of(key), until, rule.max_messages + 1)

    def end_scan(self, partition: int, offset: int) -> None:
        """Note that the log before `offset` cannot be read, or not within the bounds."""
        self._scan_limits[partition] = max(offset, self._scan_limits.get(partition, 0))

    def note_age(self, partition: int, offset: int, milliseconds: float) -> None:
        """Note that no record before `offset` is newer than this."""
        self._aged[partition] = (offset, milliseconds)

    def scan_limit(self, partition: int) -> int:
        """Return the offset before which the log cannot be read."""
        return self._scan_limits.get(partition, 0)

    # Parts of these.

    def _found(self, query: Query, after: Position, check: int | None) -> Position | None:
        """Return the position `query.after` with its whole check where it can be resumed; `None` otherwise."""
        key = query.key
        if after.epoch != self.epoch_of(key) or self.known_from(key) > after.offset or self._is_too_old(query):
            return None
        known = self._check_of(self._rings.get(key), after.offset) if after.offset else 0
        known = check if known is None else known
        if known is None or after.check != known:
            return None
        return Position(after.epoch, after.offset, known) if after.is_compact else after

    def _check_of(self, ring: Ring | None, offset: int) -> int | None:
        """Return the check of a position; `None` if it is not known here."""
        if ring is None:
            return None
        if ring.anchor is not None and ring.anchor.offset == offset:
            return ring.anchor.check
        for item in reversed(ring.items):
            if item[0] < offset:
                return crc32(item[2]) if item[0] == offset - 1 else None
        return None

    def _make(self, key: bytes, rule: History) -> Ring:
        partition = self.partition_of(key)
        ring = self._rings[key] = Ring(partition, self.epoch_of(key), self._floors[partition], rule.max_messages + 1)
        self.size_bytes += ring.size_bytes
        return ring

    def _evict(self) -> None:
        """Drop rings, about the one first that was not used for longest; of the last one the oldest messages.

        The rings take turns, and one that was used since its last turn is spared: to note each use is much cheaper than
        to keep them in the order of use.
        """
        while self.size_bytes > self._max_bytes and len(self._rings) > 1:
            key, ring = next(iter(self._rings.items()))
            if ring.is_used:
                ring.is_used = False
                self._rings.move_to_end(key)
                continue
            del self._rings[key]
            self.forgotten += 1
            self.size_bytes -= ring.size_bytes
            after_last = ring.items[-1][0] + 1 if ring.items else ring.since
            self._floors[ring.partition] = max(self._floors[ring.partition], after_last)
        for ring in self._rings.values():
            while self.size_bytes > self._max_bytes and len(ring.items) > 1:
                self.size_bytes -= ring.drop_oldest()

    def _top(self, ring: Ring) -> Position:
        """Return the position of the newest message.

        If none is known, and older ones may exist, the end of what was read takes its place: a client that comes back
        with it has missed what was published from there on, and nothing older has to be read.
        """
        if ring.items:
            item = ring.items[-1]
            return Position(ring.epoch, item[0] + 1, crc32(item[2]))
        if ring.since == 0:
            return Position(ring.epoch, 0, 0)
        if ring.anchor is None:
            end, last = self._ends.get(ring.partition, (ring.since, None))
            ring.anchor = Position(ring.epoch, end, crc32(last or b""))
        return ring.anchor

    def _is_too_old(self, query: Query) -> bool:
        """Whether more messages follow the position than the rule keeps, or older ones."""
        assert query.after is not None
        ring = self._rings.get(query.key)
        if ring is None:
            return False
        newer = [item for item in ring.items if item[0] >= query.after.offset]
        oldest = query.oldest_milliseconds
        return len(newer) > query.rule.max_messages or any(_is_older(item, oldest) for item in newer)

    def _newest(self, ring: Ring, query: Query, top: Position) -> Recalled:
        items, oldest, size = list(ring.items), query.oldest_milliseconds, 0
        kept = len(items) - sum(1 for _ in takewhile(lambda item: not _is_older(item, oldest), reversed(items)))
        kept = max(kept, len(items) - query.rule.max_messages - 1)
        first = len(items)
        while first > kept and len(items) - first < query.limit and size <= query.max_bytes:
            first -= 1
            size += len(items[first][2])
        return Recalled(items=_kept(ring, items, first, len(items)), top=top, more=first > kept)

    def _following(self, ring: Ring, query: Query, after: Position, top: Position) -> Recalled:
        items, size = list(ring.items), 0
        first = sum(1 for _ in takewhile(lambda item: item[0] < after.offset, items))
        end = first
        while end < len(items) and end - first < query.limit and size <= query.max_bytes:
            size += len(items[end][2])
            end += 1
        return Recalled(items=_kept(ring, items, first, end), top=top, more=end < len(items))


def _kept(ring: Ring, items: Sequence[Item], first: int, end: int) -> list[KeptMessage]:
    """Return messages of a ring with their places."""
    before: int | None = None
    before_check: int | None = None
    if first:
        offset, _, payload = items[first - 1]
        before, before_check = offset + 1, crc32(payload)
    elif not ring.since:
        before, before_check = 0, 0
    kept: list[KeptMessage] = []
    for offset, _, payload in islice(items, first, end):
        place = Place(ring.epoch, offset + 1, crc32(payload), before, before_check)
        kept.append(KeptMessage(payload, place))
        before, before_check = place.offset, place.check
    return kept


def _is_older(item: Item, milliseconds: float) -> bool:
    """Whether a message is older than this; one without a time is not."""
    return 0 <= item[1] < milliseconds
