"""Reading the log: what is new, and again what is asked for."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from backplane.adapters.ipc.log_files import LogFiles
from backplane.adapters.ipc.log_reader import LogReader
from backplane.adapters.ipc.log_record import Record, build_record, build_seal
from backplane.adapters.ipc.log_writer import LogWriter
from tests.unit.adapters.ipc.processes import MEBIBYTE, no_garbage_collection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Log:
    """A log with one writer and one reader.

    Attributes:
        read: Offset, payload, and offset of the record before it of each record that was read.
    """

    def __init__(self, folder: Path) -> None:
        self.files = LogFiles(folder)
        self.files.open()
        self.writer = LogWriter(self.files, max_bytes=MEBIBYTE)  # with segments of 64 KiB
        self.read: list[tuple[int, bytes, int]] = []
        self.reader = LogReader(self.files, self._take)

    def _take(self, record: Record, offset: int, before: int, _check: int) -> None:
        self.read.append((offset, record.payload, before))

    @property
    def payloads(self) -> list[bytes]:
        """The payloads that were read."""
        return [payload for _, payload, _ in self.read]

    def write(self, payload: bytes, *, key: bytes = b"", channel: bytes = b"a") -> int:
        """Append a record; return its offset."""
        return self.writer.append(build_record(self.files.mark, channel, key, payload, time=time.time())[0])

    def write_raw(self, data: bytes) -> None:
        """Append bytes to the newest segment."""
        descriptor = self.files.open_segment(self.files.bases()[-1], os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, data)
        os.close(descriptor)

    def begin_again(self) -> None:
        """Read from the begin, by a new reader."""
        self.reader.close()
        self.read.clear()
        self.reader = LogReader(self.files, self._take)

    def read_all(self) -> None:
        """Read to the end."""
        while self.reader.read():
            pass


@pytest.fixture
def log(directory: Path) -> Iterator[Log]:
    """A new log."""
    log = Log(directory)
    yield log
    log.reader.close()
    log.writer.close()


def test_every_record_is_read_once_with_the_one_before_it(log: Log) -> None:
    """However the reads fall between the writes, and across segments."""
    offsets: list[int] = []
    for number in range(200):
        offsets.append(log.write(b"%d" % number + bytes(number * 31 % 3000)))
        if not number % 7:
            log.read_all()
    log.read_all()
    assert [offset for offset, _, _ in log.read] == offsets
    assert [before for _, _, before in log.read] == [0, *offsets[:-1]]
    assert len(log.files.bases()) > 3


def test_a_torn_record_holds_up_its_reader_until_the_next_one_only(log: Log) -> None:
    """At a torn record of a megabyte the reader waits without reading it again, and goes on with the next record."""
    torn = build_record(log.files.mark, b"a", b"", bytes(MEBIBYTE), time=1.0)[0]
    for size in (5, 40, 60_000, 200_000, len(torn) - 1):
        log.write_raw(torn[:size])
        for _ in range(3):
            log.read_all()
        log.write(b"after %d" % size)
        log.read_all()
        assert log.payloads[-1] == b"after %d" % size
    assert len(log.read) == 5


def test_a_record_of_its_own_is_passed_over_only_in_its_place(log: Log) -> None:
    """A record that this process has written is taken without a read if nothing is before it."""
    data, check = build_record(log.files.mark, b"a", b"", b"own", time=1.0)
    record = Record(0, len(data), b"a", b"", b"own", 1.0, check)
    offset = log.writer.append(data)
    assert log.reader.pass_over(record, offset)
    other = log.write(b"other")
    assert not log.reader.pass_over(record, log.writer.append(data))
    log.read_all()
    assert log.payloads == [b"own", b"other", b"own"]
    assert log.read[1][0] == other


def test_the_second_record_with_a_key_does_not_exist(log: Log) -> None:
    """Two processes that published one key at once: each reader drops the later record, also from the index."""
    first = log.write(b"one", key=b"key")
    log.write(b"one", key=b"key")
    last = log.write(b"two", key=b"other")
    other = log.write(b"one", key=b"key", channel=b"b")
    log.read_all()
    assert log.read == [(first, b"one", 0), (last, b"two", first), (other, b"one", 0)]
    assert list(log.reader.index.channels[b"a"].offsets) == [first, last]


def test_a_slice_ends_after_a_few_milliseconds(log: Log) -> None:
    """A long log is read in many slices, each of which reports that there is more."""
    for number in range(20_000):
        log.write(b"%d" % number)
    longest: list[float] = []
    while not longest or (min(longest) >= 0.02 and len(longest) < 5):  # a shared processor makes some of them slow
        log.begin_again()
        slices, more = 0, True
        longest.append(0.0)
        with no_garbage_collection():
            while more:
                start = time.thread_time()
                more = log.reader.read()
                longest[-1] = max(longest[-1], time.thread_time() - start)
                slices += 1
        assert log.payloads == [b"%d" % number for number in range(20_000)]
        assert slices > 3
    assert min(longest) < 0.02


def test_a_reader_that_was_overtaken_goes_on_where_the_log_begins(log: Log) -> None:
    """Where segments were removed before they were read, the index forgets what was before them."""
    log.write(b"read")
    log.read_all()
    for _ in range(6):
        log.write(bytes(70_000))
    left = log.files.trim(1, 10_000)
    log.write(b"new")
    log.read_all()
    assert log.reader.sealed
    assert log.reader.resync()
    log.read_all()
    assert not log.reader.resync()
    assert log.payloads == [b"read", bytes(70_000), bytes(70_000), b"new"]
    assert log.reader.index.oldest == left[0]
    assert log.read[2][2] == 0  # what was before it is not known


def test_a_segment_that_lost_its_seal_ends_where_the_next_one_is_there(log: Log) -> None:
    """A file system that lost the end of a segment at a power failure does not hold up its readers."""
    log.write(b"one")
    log.read_all()
    end = log.reader.offset
    descriptor = log.files.open_segment(end + 1000, os.O_WRONLY | os.O_CREAT)
    os.close(descriptor)
    log.writer.close()
    log.write(b"two")
    log.read_all()
    assert log.payloads == [b"one"]
    assert log.reader.resync()
    log.read_all()
    assert log.payloads == [b"one", b"two"]


def test_a_seal_without_a_segment_is_waited_for(log: Log) -> None:
    """Between a SEAL and the next segment nothing is missing."""
    log.write(b"one")
    log.write_raw(build_seal(log.files.mark))
    log.read_all()
    assert (log.reader.sealed, log.reader.resync()) == (True, False)
    log.write(b"two")
    log.read_all()
    assert log.payloads == [b"one", b"two"]


def test_records_are_read_again_by_their_offset(log: Log) -> None:
    """Small and large ones, with or without payload; one whose segment was removed is not there."""
    offsets = {log.write(payload): payload for payload in (b"", b"x", bytes(3000), bytes(70_000), b"y", bytes(70_000))}
    log.write(b"last")
    log.read_all()
    lookup = log.reader.lookup
    assert {offset: lookup.read(offset).payload for offset in offsets} == offsets
    assert {lookup.read(offset, header_only=True).payload for offset in offsets} == {b""}
    left = log.files.trim(1, 10_000)
    assert lookup.read(min(offsets)).payload == b""  # its segment is still open
    lookup.release()
    with pytest.raises(FileNotFoundError):
        lookup.read(min(offsets))
    log.reader.drop_before(left[0])
    with pytest.raises(FileNotFoundError):
        lookup.read(min(offsets))
