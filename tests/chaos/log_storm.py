"""Processes of `ipc://` that publish to channels with a history, and are killed or stopped at any moment.

    python -m tests.chaos.log_storm <url> <folder> <seconds> <seed>

Forks its processes, because an import of the package takes longer than most of them live. The first two are never
killed. Each process writes to `<folder>/<number>` what it received, `r <channel> <offset> <before> <id> <size>`, and
what was acknowledged to it, `a <channel> <offset> <id>`. Prints how many were killed.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from backplane.broadcaster import SupportsHistory
from backplane.broker.registry import broadcaster_from_url
from backplane.history_rules import History, HistoryRules

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.errors import BrokerError
    from backplane.message import All, Place

CHANNELS = ["kept-a", "kept-b", "kept-c"]
RULE = History(max_messages=1_000_000)
LAST = "last"
SURVIVORS = 2
PROCESSES = 6
SIZES = [8, *[100] * 20, 1000, 1000, 10_000, 100_000]
LARGE_SIZES = [*SIZES[:8], *[1_500_000] * 4]


class Reporter:
    """A sink that writes what it receives to a file, which survives the process."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.ended = asyncio.Event()

    def write(self, *values: object) -> None:
        """Write one line."""
        os.write(self._descriptor, " ".join(map(str, values)).encode() + b"\n")

    def deliver(self, channel: str, payload: bytes, place: Place | None = None) -> None:
        """Write a message."""
        name = payload[:40].split(b" ")[0].decode()
        if place is None or zlib.crc32(payload) != place.check:
            self.write("broken", channel, name, place)
            return
        self.write("r", channel, place.offset, place.before, name, len(payload))
        if name == LAST:
            self.ended.set()

    def gap(self, channels: Collection[str] | All, reason: str) -> None:
        """Write a gap."""
        self.write("gap", reason.replace(" ", "_"))

    def revoked(self, channels: Collection[str], reason: str) -> None:
        """Nothing is revoked here."""
        self.write("broken", "revoked")

    def lost(self, error: BrokerError) -> None:
        """Nothing is lost here."""
        self.write("broken", "lost")


async def run(url: str, path: Path, number: int, publishes_until: float) -> None:
    """Publish until a moment, and receive until the last message."""
    chance = random.Random(number)
    adapter = broadcaster_from_url(url)
    assert isinstance(adapter, SupportsHistory)
    reporter = Reporter(path)
    may_end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, may_end.set)
    await adapter.start(reporter)
    await adapter.prepare(HistoryRules({"kept-*": RULE}))
    await adapter.subscribe(CHANNELS)
    reporter.write("ready")
    while not all(has_written(path.with_name(str(other)), b"ready") for other in range(SURVIVORS)):
        await asyncio.sleep(0.005)
    count = 0
    while time.monotonic() < publishes_until:
        count += 1
        size = chance.choice(SIZES if number < SURVIVORS else LARGE_SIZES)
        name, channel = f"{number}-{count}", chance.choice(CHANNELS)
        receipt = await adapter.keep(channel, f"{name} ".encode().ljust(size, b"."), RULE)
        assert receipt.position is not None
        reporter.write("a", channel, receipt.position.offset, name)
        if not chance.randrange(8):
            await asyncio.sleep(0.003)
    if number == 0:
        await may_end.wait()
        await adapter.keep(CHANNELS[0], LAST.encode(), RULE)
    reporter.write("done")
    await reporter.ended.wait()
    await adapter.stop()


def fork(url: str, folder: Path, number: int, publishes_until: float) -> int:
    """Start one process."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            asyncio.run(run(url, folder / str(number), number, publishes_until))
            status = 0
        finally:
            os._exit(status)
    return pid


def has_written(path: Path, start: bytes) -> bool:
    """Whether the process that writes to `path` has written a line that starts so."""
    return path.exists() and b"\n" + start in b"\n" + path.read_bytes()


def main(url: str, folder: Path, seconds: float, seed: int) -> NoReturn:
    """Kill and stop processes until the time is over; exit with the status of the survivors."""
    chance = random.Random(seed)
    publishes_until = time.monotonic() + seconds
    numbers, killed = list(range(PROCESSES)), 0
    pids = [fork(url, folder, number, publishes_until) for number in numbers]
    while time.monotonic() < publishes_until - 0.2:
        time.sleep(chance.uniform(0, 0.02))
        publishing = [each for each in range(SURVIVORS, PROCESSES) if has_written(folder / str(numbers[each]), b"a ")]
        if not publishing:
            continue
        victim = chance.choice(publishing)
        if not chance.randrange(8):
            stopped = pids[chance.randrange(PROCESSES)]
            os.kill(stopped, signal.SIGSTOP)
            time.sleep(chance.uniform(0.02, 0.15))
            os.kill(stopped, signal.SIGCONT)
        os.kill(pids[victim], signal.SIGKILL)
        os.waitpid(pids[victim], 0)
        numbers[victim] = PROCESSES + killed
        killed += 1
        pids[victim] = fork(url, folder, numbers[victim], publishes_until)
    while not all(has_written(folder / str(number), b"done") for number in numbers[1:]):
        time.sleep(0.01)
    os.kill(pids[0], signal.SIGUSR1)
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    sys.stdout.write(f"{killed}\n")
    sys.stdout.flush()
    sys.exit(any(statuses))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
