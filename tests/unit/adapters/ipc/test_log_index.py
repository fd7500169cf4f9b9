"""The index of the log, without files."""

from __future__ import annotations

from backplane.adapters.ipc.log_index import ChannelRecords, KeyTable, KeyUse, LogIndex
from backplane.message import Position
from backplane.testing.resume_conformance import compacted

_EPOCH = b"epoch..."


def _after(records: ChannelRecords, offset: int, check: int, *, oldest: int = 0, end: int = 1000) -> int | None:
    position = Position(_EPOCH, offset, check)
    found = records.after(position, lambda offset: offset + 1, oldest, end)
    assert records.after(compacted(position), lambda offset: offset + 1, oldest, end) == found
    return found


def test_a_position_is_found_by_offset_and_check() -> None:
    """The record after a position is the next one of its channel; another check, or offset, names nothing."""
    index = LogIndex()
    assert [index.add(b"a", offset, offset + 1) for offset in (10, 20, 30)] == [(0, 0), (10, 11), (20, 21)]
    records = index.channels[b"a"]
    assert [_after(records, offset, offset + 1) for offset in (10, 20, 30)] == [1, 2, 3]
    assert [_after(records, 20, check) for check in (0, 20)] == [None, None]
    assert _after(records, 15, 16) is None


def test_a_place_without_a_message_is_true_of_what_the_log_still_has() -> None:
    """A position without a message is found unless records after it were removed, or it is beyond the end."""
    index = LogIndex()
    index.add(b"a", 500, 501)
    records = index.channels[b"a"]
    assert [_after(records, offset, 0) for offset in (0, 499, 501, 1000, 1001)] == [0, 0, 1, 1, None]
    assert [_after(records, offset, 0, oldest=400) for offset in (0, 399, 400)] == [0, None, 0]


def test_the_newest_position_outlives_its_record() -> None:
    """A quiet channel to which this process is subscribed resumes from its last message after that was removed."""
    index = LogIndex()
    index.add(b"quiet", 10, 11)
    index.add(b"other", 20, 21)
    index.drop_before(100)
    assert not index.sweep(10, {b"quiet"})
    assert set(index.channels) == {b"quiet"}
    records = index.channels[b"quiet"]
    assert _after(records, 10, 11, oldest=100) == 0
    assert index.add(b"quiet", 200, 201) == (10, 11)
    assert _after(records, 10, 11, oldest=100) == 0
    index.add(b"quiet", 300, 301)
    index.drop_before(250)
    assert not index.sweep(10, {b"quiet"})
    assert _after(records, 10, 11, oldest=250) is None
    assert index.add(b"other", 400, 401) == (0, 0)
    assert _after(index.channels[b"other"], 0, 0, oldest=250) is None  # there was one before, which was dropped


def test_channels_are_swept_some_at_a_time() -> None:
    """A sweep looks at no more channels than asked for, and drops what is before the oldest record."""
    index = LogIndex()
    for number in range(10):
        index.add(b"%d" % number, number, 1)
    index.add(b"0", 50, 1)
    index.drop_before(50)
    assert index.sweep(4, ())
    assert len(index.channels) >= 6
    while index.sweep(4, ()):
        pass
    assert set(index.channels) == {b"0"}
    assert list(index.channels[b"0"].offsets) == [50]


def test_a_channel_without_messages_begins_where_it_was_joined() -> None:
    """Where the log was trimmed, "nothing yet" needs a place: something may have been there before."""
    index = LogIndex()
    assert (index.watch(b"a", 70).last, index.watch(b"a", 90).last) == (0, 0)
    index.drop_before(60)
    assert (index.watch(b"b", 70).last, index.watch(b"b", 90).last) == (70, 70)
    index.reset(80)
    assert index.channels == {}
    assert index.watch(b"b", 90).last == 90


def test_a_key_counts_for_300_seconds_of_the_log() -> None:
    """A use within 300 seconds is a repetition; the table drops what is older, or before the first segment."""
    table = KeyTable()
    assert table.add(b"a", b"key", KeyUse(1, 2, 1000.0), 0)
    assert not table.add(b"a", b"key", KeyUse(5, 2, 1299.0), 0)
    assert table.find(b"a", b"key", 1299.0) == KeyUse(1, 2, 1000.0)
    assert table.find(b"b", b"key", 1299.0) is None
    assert table.find(b"a", b"key", 1300.0) is None
    assert table.add(b"a", b"key", KeyUse(9, 2, 1300.0), 0)
    assert table.find(b"a", b"key", 1301.0) == KeyUse(9, 2, 1300.0)
    assert table.add(b"a", b"other", KeyUse(11, 2, 1301.0), 10)
    assert len(table) == 1


def test_a_channel_without_messages_is_forgotten_when_it_is_left() -> None:
    """Names that clients join and leave cost no memory; a channel with messages stays."""
    index = LogIndex()
    index.add(b"used", 10, 11)
    for name in (b"used", b"unused"):
        index.watch(name, 50)
        index.unwatch(name)
    index.unwatch(b"never joined")
    assert set(index.channels) == {b"used"}
