"""The files of the log: made once, removed by age and size, or by hand."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from backplane.adapters.ipc.log_files import FIRST_OFFSET, LogFiles
from backplane.errors import BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    from pathlib import Path


def _opened(folder: Path) -> LogFiles:
    files = LogFiles(folder)
    files.open()
    return files


def _age(path: Path, seconds: float) -> None:
    changed_at = time.time() - seconds
    os.utime(path, (changed_at, changed_at))


def _make_segment(files: LogFiles, base: int, size: int, age_seconds: float) -> None:
    descriptor = files.open_segment(base, os.O_WRONLY | os.O_CREAT)
    os.truncate(descriptor, size)
    os.close(descriptor)
    path = files.path / f"{files.epoch.hex()}-{base:016x}.log"
    _age(path, age_seconds)


def test_many_that_open_at_once_agree_on_one_log(directory: Path) -> None:
    """The first one makes the log, and nothing else is left in the folder."""
    for number in range(20):
        folder = directory / str(number)
        folder.mkdir()
        with ThreadPoolExecutor(8) as threads:
            opened = list(threads.map(_opened, [folder] * 8))
        assert len({(files.epoch, files.mark) for files in opened}) == 1
        assert all(files.is_current() and files.bases() == [FIRST_OFFSET] for files in opened)
        assert len(list(opened[0].path.iterdir())) == 2


def test_each_channel_has_an_epoch_of_its_own(directory: Path) -> None:
    """Two processes have the same one for a channel; another channel, and another log, have another one."""
    one, two = _opened(directory), _opened(directory)
    assert one.epoch_of(b"a") == two.epoch_of(b"a")
    for path in one.path.glob("*"):
        path.unlink()
    three = _opened(directory)
    assert len({files.epoch_of(channel) for files in (one, three) for channel in (b"a", b"b", b"")}) == 6


def test_a_log_that_is_removed_is_another_one_from_then_on(directory: Path) -> None:
    """Without its segments, its identity or both, the next process begins a log with another epoch."""
    for pattern in ("*.log", "epoch", "*"):
        before = _opened(directory)
        for path in before.path.glob(pattern):
            path.unlink()
        after = _opened(directory)
        assert after.epoch != before.epoch
        assert (before.is_current(), after.is_current()) == (False, True)


def test_an_identity_that_is_cut_is_replaced(directory: Path) -> None:
    """A file system that lost the end of the file at a power failure does not stop the next start."""
    before = _opened(directory)
    (before.path / "epoch").write_bytes(b"short")
    assert _opened(directory).epoch != before.epoch


def test_an_identity_that_has_taken_the_place_of_another_stays(directory: Path) -> None:
    """A process that is late with removing a broken one does not remove what another has made since."""
    late = _opened(directory)
    for path in late.path.iterdir():
        path.unlink()
    made = _opened(directory)
    late._remove_identity()  # pyright: ignore[reportPrivateUsage]
    assert made.is_current()
    assert len(list(made.path.iterdir())) == 2


def test_leftovers_are_removed_when_they_are_old(directory: Path) -> None:
    """What a process left that was killed while it made a log goes after a minute; foreign files stay."""
    files = _opened(directory)
    paths = [files.path / name for name in ("epoch-0011", f"{'0' * 16}-{'0' * 15}1.log", "notes.txt")]
    for path in paths:
        path.touch()
    _opened(directory)
    assert all(path.exists() for path in paths)
    for path in paths:
        _age(path, 61)
    _opened(directory)
    assert [path.exists() for path in paths] == [False, False, True]
    assert files.is_current()


def test_the_oldest_segments_go_by_size_and_by_age(directory: Path) -> None:
    """The oldest are removed until the rest is small and young enough; the two newest always stay."""
    files = _opened(directory)
    for base in (1000, 2000, 3000, 4000):
        _make_segment(files, base, size=1000, age_seconds=(5000 - base) / 10)
    assert files.trim(10_000, 10_000) == [FIRST_OFFSET, 1000, 2000, 3000, 4000]
    assert files.trim(3000, 10_000) == files.bases() == [2000, 3000, 4000]
    assert files.trim(10_000, 250) == files.bases() == [3000, 4000]
    assert files.trim(1, 1) == files.bases() == [3000, 4000]


def test_a_folder_that_cannot_be_used_is_named(directory: Path) -> None:
    """A file in its place is unavailable, and the error names the place and the remedy."""
    (directory / "history").touch()
    with pytest.raises(BrokerUnavailableError, match=r"history.*name another directory") as caught:
        LogFiles(directory).open()
    assert isinstance(caught.value, BrokerError)
