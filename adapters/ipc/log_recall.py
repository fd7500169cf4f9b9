"""What one channel of the log still has after a position."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from backplane.broadcaster import KeptMessage, Recalled
from backplane.message import Place, Position

if TYPE_CHECKING:
    from array import array

    from backplane.adapters.ipc.log_index import ChannelRecords
    from backplane.adapters.ipc.log_reader import LogLookup, LogReader, StoredRecord
    from backplane.history_rules import History

__all__ = ["recall"]

_SLICE_SECONDS: Final = 0.002


async def recall(
    reader: LogReader,
    epoch: bytes,
    channel: bytes,
    rule: History,
    *,
    after: Position | None,
    limit: int,
    max_bytes: int,
) -> Recalled:
    """Read the messages of `channel` after a position, or the newest ones; let other tasks run every 2 ms.

    Args:
        reader: Has read to the end of the log.
        epoch: The epoch of the channel.
        channel: The channel's name in UTF-8.
        rule: How many messages count, and how old they may be.
        after: As for `SupportsHistory.recall`.
        limit: As for `SupportsHistory.recall`.
        max_bytes: As for `SupportsHistory.recall`.

    Raises:
        FileNotFoundError: A segment was removed meanwhile.
        OSError: The log cannot be read.
    """
    index, end = reader.index, reader.offset
    records = index.channels.get(channel) or index.without_records(end)
    records.drop_before(index.oldest)
    top = Position(epoch, records.last, records.check)
    if after == top:
        return Recalled(top=top)
    if after is not None and after.epoch != epoch:
        return Recalled(top=top, found=False)
    lookup = reader.lookup
    first = _first_kept(lookup, records.offsets, rule)
    start, stop = first, len(records.offsets)
    if after is not None:
        place = records.after(after, lambda offset: lookup.read(offset, header_only=True).check, index.oldest, end)
        # What follows the position must be there, all of it: of a message that is not, none is returned.
        if place is None or place < first:
            return Recalled(top=top, found=False)
        start = place
        chosen = records.offsets[start : start + limit]
    else:
        chosen = records.offsets[max(start, stop - limit) : stop]
    more = stop - start > len(chosen)
    first_chosen = bisect_left(records.offsets, chosen[0]) if chosen else 0
    before = _before(records, lookup, first_chosen, after, index.oldest)
    read, complete = await _read(lookup, chosen if after is not None else chosen[::-1], max_bytes)
    if after is None:
        read.reverse()
        if not complete:
            before = None, None
    items: list[KeptMessage] = []
    for offset, stored in read:
        items.append(KeptMessage(stored.payload, Place(epoch, offset, stored.check, *before)))
        before = offset, stored.check
    return Recalled(items=items, top=top, more=more or not complete)


def _before(
    records: ChannelRecords, lookup: LogLookup, first: int, after: Position | None, oldest: int
) -> tuple[int | None, int | None]:
    """Return offset and check of what comes before the first record that is read, as far as they are known.

    The check is a whole one, also where the position `after` is compact.
    """
    if after is not None and not after.is_compact:
        return after.offset, after.check
    if first:
        offset = records.offsets[first - 1]
        return offset, lookup.read(offset, header_only=True).check
    if after is not None:
        return records.before or (None, None)
    return (None, None) if oldest else (0, 0)


def _first_kept(lookup: LogLookup, offsets: array[int], rule: History) -> int:
    """Return which of the offsets is the first that the rule keeps: one more than `max_messages`, none too old."""
    first, stop, outdated = (
        max(0, len(offsets) - rule.max_messages - 1),
        len(offsets),
        time.time() - rule.max_age_seconds,
    )
    if first < stop and lookup.read(offsets[first], header_only=True).time < outdated:
        while first < stop:
            middle = (first + stop) // 2
            if lookup.read(offsets[middle], header_only=True).time < outdated:
                first = middle + 1
            else:
                stop = middle
    return first


async def _read(lookup: LogLookup, offsets: array[int], max_bytes: int) -> tuple[list[tuple[int, StoredRecord]], bool]:
    """Read records until their payloads exceed `max_bytes`; return them, and whether they are all."""
    read: list[tuple[int, StoredRecord]] = []
    size, deadline = 0, time.monotonic() + _SLICE_SECONDS
    for offset in offsets:
        if size > max_bytes:
            return read, False
        if time.monotonic() > deadline:
            await asyncio.sleep(0)
            deadline = time.monotonic() + _SLICE_SECONDS
        stored = lookup.read(offset)
        size += len(stored.payload)
        read.append((offset, stored))
    return read, True
