"""Writers that append to one log, beside each other."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backplane.adapters.ipc.log_files import LogFiles
from backplane.adapters.ipc.log_reader import LogReader
from backplane.adapters.ipc.log_record import build_record, build_seal
from backplane.adapters.ipc.log_writer import LogWriter
from backplane.errors import PublishError
from tests.unit.adapters.ipc.processes import MEBIBYTE

if TYPE_CHECKING:
    from collections.abc import Generator

    from backplane.adapters.ipc.log_record import Record


@pytest.fixture
def files(directory: Path) -> LogFiles:
    """A new log."""
    files = LogFiles(directory)
    files.open()
    return files


def _writer(files: LogFiles) -> LogWriter:
    return LogWriter(files, max_bytes=MEBIBYTE)  # with segments of 64 KiB


def _record(files: LogFiles, payload: bytes) -> bytes:
    return build_record(files.mark, b"a", b"", payload, time=1.0)[0]


def _read(files: LogFiles) -> list[tuple[int, bytes]]:
    read: list[tuple[int, bytes]] = []

    def take(record: Record, offset: int, _before: int, _check: int) -> None:
        read.append((offset, record.payload))

    reader = LogReader(files, take)
    while reader.read():
        pass
    reader.close()
    return read


@contextmanager
def _file_size_limit(size: int) -> Generator[None]:
    """No file of this process can grow beyond `size`: a full disk, as a write experiences it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_two_writers_fill_segments_in_one_order(files: LogFiles) -> None:
    """Whichever seals a segment, both go on in the same next one, and no record is after a SEAL."""
    writers = [_writer(files), _writer(files)]
    payloads = [b"%d " % number + bytes(number * 37 % 5000) for number in range(300)]
    offsets = [writers[number % 7 % 2].append(_record(files, payload)) for number, payload in enumerate(payloads)]
    assert _read(files) == list(zip(offsets, payloads, strict=True))
    assert len(files.bases()) > 5
    for writer in writers:
        writer.close()


def test_a_record_after_a_seal_is_written_again(files: LogFiles) -> None:
    """A writer that had not seen the SEAL of another one writes its record into the next segment."""
    first, second = _writer(files), _writer(files)
    first.append(_record(files, b"one"))
    second.append(_record(files, bytes(70_000)))  # seals the segment
    assert (first.switched, second.switched) == (False, True)
    offset = first.append(_record(files, b"two"))
    assert offset >= files.bases()[1]
    assert [payload for _, payload in _read(files)] == [b"one", bytes(70_000), b"two"]
    first.close()
    second.close()


def test_the_first_of_two_seals_counts(files: LogFiles) -> None:
    """Two that seal at once agree on the next segment, and what stands between their SEALs does not exist."""
    writer = _writer(files)
    offset = writer.append(_record(files, b"one"))
    descriptor = files.open_segment(files.bases()[0], os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, build_seal(files.mark) + _record(files, b"between") + build_seal(files.mark))
    os.close(descriptor)
    following = writer.append(_record(files, b"two"))
    assert _read(files) == [(offset, b"one"), (following, b"two")]
    writer.close()


def test_a_writer_that_was_killed_between_seal_and_segment_stops_no_other(files: LogFiles) -> None:
    """The next one begins the segment, whether it had the log open or not."""
    for number in range(2):
        descriptor = files.open_segment(files.bases()[-1], os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, build_seal(files.mark))
        os.close(descriptor)
        writer = _writer(files)
        writer.append(_record(files, b"%d" % number))
        writer.close()
    assert [payload for _, payload in _read(files)] == [b"0", b"1"]


def test_a_writer_whose_segments_are_gone_never_makes_them_again(files: LogFiles) -> None:
    """After hours without a publish, a process goes on in the newest segment, however many were removed meanwhile."""
    sleeper, busy = _writer(files), _writer(files)
    sleeper.append(_record(files, b"early"))
    for _ in range(5):
        busy.append(_record(files, bytes(70_000)))
    left = files.trim(1, 10_000)
    sleeper.append(_record(files, b"late"))
    assert files.bases() == left
    assert _read(files)[-1][1] == b"late"
    sleeper.close()
    busy.close()


def test_a_full_disk_refuses_the_record_and_hides_no_other(files: LogFiles) -> None:
    """A record that does not fit is an error, whether nothing or a part of it was written; no reader takes it."""
    writer = _writer(files)
    writer.append(_record(files, b"before"))
    size = len(_record(files, b"before"))
    for limit in (size, size + 10, size + 1000):
        with _file_size_limit(limit), pytest.raises(PublishError, match="make room in"):
            writer.append(_record(files, bytes(2000)))
    writer.append(_record(files, b"after"))
    assert [payload for _, payload in _read(files)] == [b"before", b"after"]
    writer.close()


def test_a_segment_that_cannot_be_sealed_is_sealed_by_the_next_record(files: LogFiles) -> None:
    """The record is in the log although the disk was full for the SEAL."""
    writer, large = _writer(files), _record(files, bytes(70_000))
    with _file_size_limit(len(large) + 5):
        offset = writer.append(large)
    assert len(files.bases()) == 1
    following = writer.append(_record(files, b"next"))
    assert len(files.bases()) == 2
    assert _read(files) == [(offset, bytes(70_000)), (following, b"next")]
    writer.close()


def test_a_descriptor_of_a_removed_segment_is_released(files: LogFiles) -> None:
    """An idle process does not keep the space of a segment that was removed."""
    writer = _writer(files)
    writer.append(_record(files, b"one"))
    writer.release_removed()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    (files.path / f"{files.epoch.hex()}-{files.bases()[0]:016x}.log").unlink()
    writer.release_removed()
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors - 1
