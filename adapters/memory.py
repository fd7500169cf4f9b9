"""`memory://`: one process, no broker.

The reference implementation of the contract, and the default for development and tests.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import OrderedDict, deque
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, ClassVar, Final
from zlib import crc32

from pydantic import Field

from backplane.broadcaster import Broadcaster, Capabilities, KeptMessage, Options, Recalled
from backplane.errors import BrokerUnavailableError
from backplane.message import ALL, Place, Receipt
from backplane.patterns import Prefixes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from backplane.broadcaster import BrokerUrl, Sink
    from backplane.history_rules import History, HistoryRules
    from backplane.message import Position

__all__ = ["MemoryBroadcaster", "MemoryOptions"]

# Limit for messages to an event loop that is busy or not running; each counts more than its payload.
_MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
_MESSAGE_BYTES: Final = 128

# What one kept message takes beside its payload, what one idempotency key takes, and what one channel takes.
_KEPT_BYTES: Final = 350
_KEY_BYTES: Final = 400
_LOG_BYTES: Final = 1600
_KEY_SECONDS: Final = 300.0
# A channel that is not used for so many times `max_age_seconds` is forgotten, with its epoch.
_FORGET_AFTER: Final = 10

# The started adapters of this process. A dict, because its operations are safe in threads.
_started: dict[MemoryBroadcaster, None] = {}
# By name. All event loops use them; the lock also makes one order of what is kept and what is handed over.
_archives: dict[str, _Archive] = {}
_archives_lock = Lock()
_now = time.monotonic


def _forget_all() -> None:
    """Begin anew in a forked process, where neither the event loops run, nor the thread that may hold the lock."""
    global _archives_lock
    _archives_lock = Lock()
    _started.clear()
    _archives.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


class MemoryOptions(Options):
    """Options of `memory://`."""

    max_payload_bytes: int = Field(default=16 * 1024 * 1024, gt=0)
    """Largest payload, in bytes."""
    max_history_bytes: int = Field(default=64 * 1024 * 1024, gt=0)
    """What the histories of all channels of one name may take together, in bytes; a channel takes 1,600, a message
    350 beside its payload, and an idempotency key 400. Above it the oldest messages and keys of the channel that was
    least recently published to are dropped, and channels without a message are forgotten, with their positions and
    keys, the least recently used one first."""


class MemoryBroadcaster(Broadcaster):
    """Delivers to the adapters of this process with the same name, `memory://` or `memory://name`, in any event loop.

    Adapters of the publisher's event loop have the message when `publish` returns. To another event loop it is handed
    over, in order; if more than 64 MiB wait for a busy event loop, further messages are dropped, with a gap.

    The history of a channel begins when the first adapter of its name starts, and is gone when the last one stops. A
    channel that is neither published to nor read for ten times `max_age_seconds` (300 s at least) begins anew.
    """

    options_class: ClassVar[type[Options]] = MemoryOptions
    options: MemoryOptions

    def __init__(self, url: BrokerUrl, options: MemoryOptions) -> None:
        super().__init__(url, options)
        self._name = url.netloc + url.path
        self._channels: set[str] = set()
        self._prefixes: Prefixes[str] = Prefixes()
        self._sink: Sink | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[_Waiting | None] = []  # mostly from other event loops; `None` for a gap
        self._waiting_bytes = 0
        self._waiting_lock = Lock()

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(
            brokered=False,
            reach="process",
            publish_returns="delivered",
            max_payload_bytes=self.options.max_payload_bytes,
            keeps="process",
            deduplicates=True,
            patterns=True,
        )

    async def start(self, sink: Sink) -> None:
        """Keep the sink; there is nothing to connect to."""
        for other in tuple(_started):
            if other._loop is None or other._loop.is_closed():  # it ended without `stop`
                _started.pop(other, None)
        self._take_waiting()  # messages that arrived after the last stop
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        with _archives_lock:
            for name in _archives.keys() - {other._name for other in tuple(_started)}:
                del _archives[name]
            _started[self] = None
            _archives.setdefault(self._name, _Archive())

    async def stop(self) -> None:
        """Forget the sink and every channel; the last adapter of a name forgets the history."""
        with _archives_lock:
            _started.pop(self, None)
            if all(other._name != self._name for other in tuple(_started)):
                _archives.pop(self._name, None)
        self._sink = self._loop = None
        self._channels.clear()
        self._prefixes.clear()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Deliver at once, then let other tasks run: a publisher in a loop must not starve the tasks that send."""
        self._require_sink()
        for other in tuple(_started):
            if other._wants(self._name, channel):
                other._take(channel, payload, self._loop)
        await asyncio.sleep(0)

    async def prepare(self, rules: HistoryRules) -> None:
        """Do nothing: there is no server to prepare."""
        self._require_sink()

    async def keep(self, channel: str, payload: bytes, rule: History, *, key: bytes | None = None) -> Receipt:
        """Store and deliver, in one order for all event loops, then let other tasks run, as `publish` does."""
        self._require_sink()
        with _archives_lock:
            archive = _archives.setdefault(self._name, _Archive())
            place, duplicate = archive.keep(channel, payload, rule, key, self.options.max_history_bytes)
            others = [] if duplicate else [other for other in tuple(_started) if other._wants(self._name, channel)]
            woken = [other for other in others if other._queue(channel, payload, place)]
        for other in others:
            if other._loop is self._loop:
                other._deliver_waiting()  # with what other event loops have kept before
            elif other in woken:
                other._wake()
        await asyncio.sleep(0)
        return Receipt(position=place, duplicate=duplicate)

    async def recall(
        self, channel: str, rule: History, *, after: Position | None, limit: int, max_bytes: int
    ) -> Recalled:
        """Read from the memory of this process."""
        self._require_sink()
        with _archives_lock:
            archive = _archives.setdefault(self._name, _Archive())
            recalled = archive.recall(channel, rule, after, limit, max_bytes, self.options.max_history_bytes)
        await asyncio.sleep(0)
        return recalled

    async def subscribe(self, channels: Collection[str]) -> None:
        """Start delivering `channels`."""
        self._require_sink()
        self._channels.update(channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Stop delivering `channels`."""
        self._require_sink()
        self._channels.difference_update(channels)

    async def subscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Start delivering every channel that begins with one of `prefixes`."""
        self._require_sink()
        self._prefixes.add(prefixes)

    async def unsubscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Stop delivering channels because of `prefixes`."""
        self._require_sink()
        self._prefixes.remove(prefixes)

    async def describe(self) -> str:
        """Return a description: there is no broker."""
        self._require_sink()
        return "the memory of this process"

    def _take(self, channel: str, payload: bytes, publishers_loop: asyncio.AbstractEventLoop | None) -> None:
        sink, loop = self._sink, self._loop
        if sink is None or loop is None:  # stopped by another thread meanwhile
            return
        if loop is publishers_loop:
            return sink.deliver(channel, payload)
        if self._queue(channel, payload, None):
            self._wake()

    def _wants(self, name: str, channel: str) -> bool:
        return self._name == name and (channel in self._channels or self._prefixes.covers(channel))

    def _queue(self, channel: str, payload: bytes, place: Place | None) -> bool:
        """Queue a message, and return whether the event loop must be woken for it."""
        with self._waiting_lock:
            self._waiting_bytes += len(payload) + _MESSAGE_BYTES
            if self._waiting_bytes <= _MAX_WAITING_BYTES or not self._waiting:
                self._waiting.append((channel, payload, place))
            elif self._waiting[-1] is not None:
                self._waiting.append(None)
            return len(self._waiting) == 1

    def _wake(self) -> None:
        loop = self._loop
        if loop is None:  # stopped by another thread meanwhile
            return
        try:
            loop.call_soon_threadsafe(self._deliver_waiting)
        except RuntimeError:  # the event loop has ended without `stop`
            _started.pop(self, None)

    def _take_waiting(self) -> list[_Waiting | None]:
        with self._waiting_lock:
            waiting, self._waiting = self._waiting, []
            self._waiting_bytes = 0
        return waiting

    def _deliver_waiting(self) -> None:
        for item in self._take_waiting():
            if self._sink is None:
                return
            if item is None:
                self._sink.gap(ALL, "this event loop was busy, and more messages waited than the limit")
            elif self._wants(self._name, item[0]):
                self._sink.deliver(*item)

    def _require_sink(self) -> Sink:
        if self._sink is None:
            raise BrokerUnavailableError("the adapter is stopped", adapter="memory")
        return self._sink


_Waiting = tuple[str, bytes, Place | None]


class _Log:
    """The history of one channel: what is kept, and the newest position there ever was."""

    __slots__ = ("epoch", "forget_at", "kept", "keys", "newest", "times")

    def __init__(self) -> None:
        self.epoch = secrets.token_bytes(8)
        self.newest = Place(self.epoch, 0, 0)
        self.kept: deque[KeptMessage] = deque()
        self.times: deque[float] = deque()
        self.keys: OrderedDict[bytes, tuple[float, Place]] = OrderedDict()
        self.forget_at = 0.0

    def append(self, payload: bytes, now: float) -> Place:
        before = self.newest
        place = self.newest = Place(self.epoch, before.offset + 1, crc32(payload), before.offset, before.check)
        self.kept.append(KeptMessage(payload, place))
        self.times.append(now)
        return place

    def pop(self) -> int:
        """Drop the oldest message, and return its size."""
        self.times.popleft()
        return len(self.kept.popleft().payload) + _KEPT_BYTES

    @property
    def oldest_is_key(self) -> bool:
        """Whether a key is older than every message that is kept, or as old as the oldest one."""
        if not self.keys or not self.kept:
            return bool(self.keys)
        _, place = next(iter(self.keys.values()))
        return place.offset <= self.kept[0].place.offset

    def index_after(self, position: Position) -> int | None:
        """Return the index of the message after `position`, which can be that after the last one; or `None`."""
        if position == self.newest:
            return len(self.kept)
        if position.epoch != self.epoch or not self.kept:
            return None
        first = self.kept[0].place
        index = position.offset - first.offset
        if index == -1:  # the oldest one that is kept names its predecessor
            return 0 if position.check == first.before_check else None
        found = 0 <= index < len(self.kept) and self.kept[index].place == position
        return index + 1 if found else None


class _Archive:
    """The histories of the channels of one name."""

    def __init__(self) -> None:
        self._logs: OrderedDict[str, _Log] = OrderedDict()  # the most recently used last
        self._holding: OrderedDict[_Log, None] = OrderedDict()  # with messages or keys, the last published to last
        self._size_bytes = 0

    def keep(
        self, channel: str, payload: bytes, rule: History, key: bytes | None, max_bytes: int
    ) -> tuple[Place, bool]:
        """Return the place of the message, and whether it is a duplicate, which is not kept again."""
        now = _now()
        log = self._log(channel, rule, now)
        while log.keys and next(iter(log.keys.values()))[0] <= now - _KEY_SECONDS:
            self._drop_oldest_key(log)
        if key is not None and (known := log.keys.get(key)) is not None:
            return known[1], True
        place = log.append(payload, now)
        self._size_bytes += len(payload) + _KEPT_BYTES
        if key is not None:
            log.keys[key] = now, place
            self._size_bytes += _KEY_BYTES
        while len(log.kept) > rule.max_messages + 1:
            self._drop_oldest(log)
        self._holding[log] = None
        self._holding.move_to_end(log)
        self._make_room(max_bytes)
        return place, False

    def recall(
        self, channel: str, rule: History, after: Position | None, limit: int, max_bytes: int, max_history_bytes: int
    ) -> Recalled:
        """Return what is kept of a channel; see `SupportsHistory.recall`."""
        log = self._log(channel, rule, _now())
        self._make_room(max_history_bytes)  # reading a channel that was never used makes its log
        if after is None:
            items = _cut(reversed(log.kept), limit, max_bytes)
            items.reverse()
            return Recalled(items=items, top=log.newest, more=len(items) < len(log.kept))
        start = log.index_after(after)
        if start is None:
            return Recalled(top=log.newest, found=False)
        items = _cut(islice(log.kept, start, None), limit, max_bytes)
        return Recalled(items=items, top=log.newest, more=start + len(items) < len(log.kept))

    def _log(self, channel: str, rule: History, now: float) -> _Log:
        """Return the log of a channel, without what is too old; forget channels that are not used."""
        while self._logs and next(iter(self._logs.values())).forget_at < now:
            self._forget_oldest()
        log = self._logs.get(channel)
        if log is None:
            log = self._logs[channel] = _Log()
            self._size_bytes += _LOG_BYTES
        self._logs.move_to_end(channel)
        log.forget_at = now + max(_FORGET_AFTER * rule.max_age_seconds, _KEY_SECONDS)
        while log.times and log.times[0] < now - rule.max_age_seconds:
            self._drop_oldest(log)
        return log

    def _make_room(self, max_bytes: int) -> None:
        """Drop messages, and forget channels that have none, until the limit holds; never the one in use."""
        while self._size_bytes > max_bytes:
            if len(self._logs) > 1 and not next(iter(self._logs.values())).kept:
                self._forget_oldest()
            elif self._holding:
                log = next(iter(self._holding))
                if log.oldest_is_key:
                    self._drop_oldest_key(log)
                else:
                    self._drop_oldest(log)
            else:
                return

    def _forget_oldest(self) -> None:
        """Forget the channel that was least recently used, with its messages."""
        _, forgotten = self._logs.popitem(last=False)
        self._size_bytes -= _LOG_BYTES
        while forgotten.kept:
            self._drop_oldest(forgotten)
        while forgotten.keys:
            self._drop_oldest_key(forgotten)

    def _drop_oldest(self, log: _Log) -> None:
        self._size_bytes -= log.pop()
        self._note_empty(log)

    def _drop_oldest_key(self, log: _Log) -> None:
        log.keys.popitem(last=False)
        self._size_bytes -= _KEY_BYTES
        self._note_empty(log)

    def _note_empty(self, log: _Log) -> None:
        if not log.kept and not log.keys:
            self._holding.pop(log, None)


def _cut(kept: Iterable[KeptMessage], limit: int, max_bytes: int) -> list[KeptMessage]:
    """Return the first messages, up to a number, and up to the one that exceeds the bytes."""
    items: list[KeptMessage] = []
    size = 0
    for item in islice(kept, limit):
        items.append(item)
        size += len(item.payload)
        if size > max_bytes:
            break
    return items
