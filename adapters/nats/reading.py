"""Reading the history of one channel from its stream.

Nothing is removed from between two messages of a channel: the limit of messages, and age, remove its oldest ones. So
where a message is still there, everything after it is, too.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final
from zlib import crc32

from backplane.broadcaster import KeptMessage, Recalled
from backplane.message import Place, Position

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.adapters.nats.channel_log import ChannelLog, Stream
    from backplane.adapters.nats.jetstream import JetStream, StoredMessage, StreamInfo
    from backplane.adapters.nats.sweep import Sweep

__all__ = ["Reading"]

_MAX_BATCH: Final = 1000
_MAX_BATCH_BYTES: Final = 1024 * 1024


class Reading:
    """One call of `recall`.

    Args:
        jetstream: Where to read.
        stream: The stream.
        channel: The channel.
        info: What the server knew of the stream before.
        log: What is known of the channel, if it is subscribed to, or was on the last link.
        sweep: What was read for all channels. `info` is what the server knew after that.
        high: Up to which number the sweep has read: that of the newest message when this was called.
    """

    def __init__(
        self,
        jetstream: JetStream,
        stream: Stream,
        channel: str,
        info: StreamInfo,
        log: ChannelLog | None,
        sweep: Sweep | None = None,
        high: int = 0,
    ) -> None:
        self._jetstream = jetstream
        self._stream = stream
        self._subject = stream.subject_of(channel)
        self._epoch = stream.epoch_of(self._subject)
        self._state = info.state
        self._now = info.now
        self._log = log
        self._sweep = sweep
        self._high = high
        self._is_cut = False  # there were older messages than those that are given back

    async def recall(self, after: Position | None, limit: int, max_bytes: int) -> Recalled:
        """Return what `SupportsHistory.recall` does."""
        if after is not None and limit and (swept := await self._swept(after, limit, max_bytes)) is not None:
            return swept
        newest = await self._jetstream.newest(self._stream, self._subject)
        if newest is None:
            return self._recall_nothing(after)
        top = Position(self._epoch, newest.sequence, crc32(newest.payload))
        if after is None:
            return await self._newest(top, limit, max_bytes)
        if after == top:
            return Recalled(top=top if after.is_compact else after)  # the object that is held already
        if after.epoch != self._epoch or after.offset > top.offset:
            return Recalled(top=top, found=False)
        named = await self._jetstream.at(self._stream, after.offset) if after.offset else None
        if named is not None and named.subject == self._subject:
            if crc32(named.payload) == after.check:
                return await self._after(after, top, limit, max_bytes)
        elif after == self._known_newest() or self._is_start(after):
            return await self._after_start(after, top, limit, max_bytes)
        return Recalled(top=top, found=False)

    async def _swept(self, after: Position, limit: int, max_bytes: int) -> Recalled | None:
        """Return what the sweep has found, if that is everything after a position; `None` where that is not certain."""
        if self._sweep is None or after.epoch != self._epoch or after.is_compact:
            return None  # a track, for which it was read, never goes on from a compact position
        found = self._sweep.take(self._subject, after.offset, self._high)
        if found is None:
            return None
        # As below, this is judged after everything was read.
        if after.check:
            named = await self._jetstream.at(self._stream, after.offset)
            if named is None or named.subject != self._subject or crc32(named.payload) != after.check:
                return None
        else:
            # Nothing was removed for the limit of messages, if there are fewer: with all that can have come meanwhile.
            most = len(found) + self._state.last_seq - self._high
            if not self._is_start(after) or most >= self._stream.max_per_subject:
                return None
        newest = found[-1] if found else None
        top = after if newest is None else Position(self._epoch, newest.sequence, crc32(newest.payload))
        return Recalled(top=top) if newest is None else self._followed(after, _cut(found, limit, max_bytes), top, limit)

    def _recall_nothing(self, after: Position | None) -> Recalled:
        """Return the answer for a channel of which the stream has no message: none was published, or all are gone.

        Where these two cannot be distinguished, `top` has the number of the newest message of the stream: it is the
        position after which there is none of this channel.
        """
        known = self._known_newest()
        if after is not None and after.epoch == self._epoch:
            if known is not None and after == known:
                return Recalled(top=known)
            if self._is_start(after):
                return Recalled(top=after)
        state = self._state
        top = known or Position(self._epoch, state.last_seq if state.first_seq > 1 else 0, 0)
        return Recalled(top=top, found=after is None)

    def _known_newest(self) -> Position | None:
        state = self._state
        if self._log is None:
            return None
        return self._log.known_newest(first=state.first_seq, last=state.last_seq, now=time.monotonic())

    def _is_start(self, position: Position) -> bool:
        """Whether a position is one without a message, and age has removed no later message of any channel since."""
        state = self._state
        return not position.check and state.first_seq - 1 <= position.offset <= state.last_seq

    async def _newest(self, top: Position, limit: int, max_bytes: int) -> Recalled:
        """Return the newest messages. NATS finds the next message of a subject, not the one before: all are read."""
        if not limit:
            return Recalled(top=top, more=True)
        whole = await self._read(1, top.offset, limit, max_bytes, newest=True)
        while whole and not await self._is_there(whole[0].sequence):
            # What was dropped while this read can have left a hole after it.
            whole.popleft()
            self._is_cut = True
            first = await self._jetstream.first(self._stream, self._subject)
            while whole and (first is None or whole[0].sequence < first.sequence):
                whole.popleft()
        fresh = [message for message in whole if not self._has_expired(message)]
        return Recalled(items=self._kept(fresh, None), top=top, more=self._is_cut and len(fresh) == len(whole))

    async def _after(self, after: Position, top: Position, limit: int, max_bytes: int) -> Recalled:
        """Return what follows a message that was there, if it is there still when all is read."""
        found = await self._read(after.offset + 1, top.offset, limit or 1, max_bytes)
        if not await self._is_there(after.offset):
            return Recalled(top=top, found=False)
        return self._followed(after, found, top, limit)

    async def _after_start(self, after: Position, top: Position, limit: int, max_bytes: int) -> Recalled:
        """Return what follows a position whose message is not there, where nothing after it can have been removed."""
        found = await self._read(after.offset + 1, top.offset, limit or 1, max_bytes)
        self._state = (await self._jetstream.info(self._stream, self._subject)).state
        count = (self._state.subjects or {}).get(self._subject.decode(), 0)
        if count >= self._stream.max_per_subject or not (after == self._known_newest() or self._is_start(after)):
            return Recalled(top=top, found=False)
        return self._followed(after, found, top, limit)

    def _followed(self, after: Position, found: Collection[StoredMessage], top: Position, limit: int) -> Recalled:
        items = self._kept(found, after.offset)
        if any(map(self._has_expired, found)):  # the oldest one first
            return Recalled(top=top, found=False)
        more = not items or items[-1].place.offset < top.offset
        return Recalled(items=items, top=top, more=more) if limit else Recalled(top=top, more=True)

    def _has_expired(self, message: StoredMessage) -> bool:
        """Whether a message is older than the rule permits: the stream keeps some for longer, because of their ids."""
        rule_seconds = self._stream.rule.max_age_seconds
        return rule_seconds < self._stream.max_age_seconds and message.stored_at < self._now - rule_seconds

    async def _is_there(self, sequence: int) -> bool:
        """Whether the stream still has a message of the channel that was read: it costs less than to find the first."""
        return await self._jetstream.at(self._stream, sequence) is not None

    async def _read(
        self, low: int, high: int, limit: int, max_bytes: int, *, newest: bool = False
    ) -> deque[StoredMessage]:
        """Return the oldest messages from number `low` to `high`, or the newest ones, within the limits."""
        kept: deque[StoredMessage] = deque()
        size_bytes, by_leader = 0, False
        while low <= high:
            batch = _MAX_BATCH if newest else min(_MAX_BATCH, limit - len(kept))
            found = await self._jetstream.read(
                self._stream, self._subject, low, limit=batch, max_bytes=_MAX_BATCH_BYTES, by_leader=by_leader
            )
            if not found and by_leader:
                break  # it was removed meanwhile
            by_leader = not found  # a replica can lack the newest
            for message in found:
                if message.sequence > high:
                    return kept
                kept.append(message)
                size_bytes += len(message.payload)
                if newest:
                    while len(kept) > limit or size_bytes - len(kept[0].payload) > max_bytes:
                        size_bytes -= len(kept.popleft().payload)
                        self._is_cut = True
                elif len(kept) >= limit or size_bytes > max_bytes:
                    return kept
                low = message.sequence + 1
        return kept

    def _kept(self, found: Collection[StoredMessage], before: int | None) -> list[KeptMessage]:
        items: list[KeptMessage] = []
        for message in found:
            place = Place(self._epoch, message.sequence, crc32(message.payload), before)
            items.append(KeptMessage(message.payload, place))
            before = message.sequence
        return items


def _cut(found: list[StoredMessage], limit: int, max_bytes: int) -> list[StoredMessage]:
    """Return the first of these messages, within the limits."""
    size_bytes = 0
    for count, message in enumerate(found[:limit], start=1):
        size_bytes += len(message.payload)
        if size_bytes > max_bytes:
            return found[:count]
    return found[:limit]
