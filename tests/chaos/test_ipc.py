"""Processes of `ipc://` that are killed or frozen: there is no broker, so each fault is a peer's."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.brokers.process import end, start, wait_until
from tests.chaos.checker import GAP, GapSeen, check
from tests.chaos.workload import CHANNELS, running_workload

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Generator

    from tests.chaos.case_table import CaseRecorder
    from tests.chaos.checker import Event
    from tests.chaos.workload import Workload

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

_ROOT = Path(__file__).parents[2]


class Peer:
    """A peer process, and what it printed."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def seen(self) -> dict[str, list[Event]]:
        """For each channel messages and gaps in the order of arrival."""
        seen: dict[str, list[Event]] = {channel: [] for channel in CHANNELS}
        for line in self._lines()[1:]:
            if not line.startswith("["):  # of its log
                continue
            channel, *message = json.loads(line)
            seen[channel].append((message[0], message[1]) if message else GAP)
        return seen

    async def ready(self) -> None:
        """Wait until it is subscribed."""
        await asyncio.to_thread(wait_until, lambda: bool(self._lines()), "the peer is subscribed")

    async def receives_all(self, workload: Workload) -> None:
        """Wait until it has received, of every publisher on every channel, the last message or a later one."""
        last = {(one.name, name): len(one.outcomes[name]) - 1 for one in workload.publishers for name in CHANNELS}

        def has_received() -> bool:
            latest = {
                (event[0], channel): event[1]
                for channel, seen in self.seen.items()
                for event in seen
                if not isinstance(event, GapSeen)
            }
            return all(latest.get(source, -1) >= number for source, number in last.items())

        await asyncio.to_thread(wait_until, has_received, "the peer receives every publisher")

    def _lines(self) -> list[str]:
        whole, _, _ = self._log.read_text().rpartition("\n")
        return whole.splitlines()


class Storm:
    """What the processes of `tests.chaos.log_storm` wrote.

    Attributes:
        received: For each process channel, offset, offset before it, name and size of each message, in order.
        acknowledged: Channel, offset and name of each message that was acknowledged to a process.
        faults: Every other line: gaps, messages that are not what was published.
    """

    def __init__(self, folder: Path) -> None:
        self.received: dict[int, list[tuple[str, ...]]] = {}
        self.acknowledged: set[tuple[str, ...]] = set()
        self.faults: list[str] = []
        for path in folder.iterdir():
            received = self.received[int(path.name)] = []
            whole, _, _ = path.read_text().rpartition("\n")  # a killed process may have written half a line
            for line in whole.splitlines():
                kind, *values = line.split(" ")
                if kind == "r":
                    received.append(tuple(values))
                elif kind == "a":
                    self.acknowledged.add(tuple(values))
                elif kind not in ("ready", "done"):
                    self.faults.append(f"{path.name}: {line}")


@contextmanager
def peer_process(url: str, folder: Path) -> Generator[Peer]:
    """Start a peer process on `url`."""
    log = folder / "peer.log"
    process = start([sys.executable, "-m", "tests.chaos.peer", url], cwd=_ROOT, log=log)
    try:
        yield Peer(process, log)
    finally:
        end(process)


@pytest.fixture
def url(ipc_url: str) -> str:
    """With a small bound, which the backlog of a frozen peer soon exceeds."""
    return f"{ipc_url}&max_peer_backlog_bytes=65536"


@pytest.mark.parametrize("seconds", [2, pytest.param(5, marks=pytest.mark.full)])
async def test_a_frozen_peer_costs_the_others_nothing(
    seconds: float, url: str, tmp_path: Path, record_case: CaseRecorder
) -> None:
    """While one process is frozen the others receive everything, without a gap; it receives a gap, and goes on."""
    with peer_process(url, tmp_path) as peer:
        await peer.ready()
        async with running_workload(url, filler="x" * 20_000) as workload:
            peer.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            peer.process.send_signal(signal.SIGCONT)
            await peer.receives_all(workload)
            recovered = await workload.recovered()
            await peer.receives_all(workload)
        seen = peer.seen
    record_case(f"peer under SIGSTOP for {seconds} s", "ipc", workload, recovered=recovered)
    assert workload.unknown == 0
    lost = 0
    for channel in CHANNELS:
        published = {publisher.name: publisher.outcomes[channel] for publisher in workload.publishers}
        # Each publisher is a separate peer, which may have cut it.
        result = check(published, seen[channel], max_gaps=len(workload.publishers))
        assert result.faults == []
        lost += result.lost
    assert lost > 0  # at a lower rate the kernel's buffers may hold everything


@pytest.mark.parametrize("seconds", [0.2, pytest.param(3, marks=pytest.mark.full)])
async def test_a_peer_that_is_killed_costs_the_others_nothing(
    seconds: float, url: str, tmp_path: Path, record_case: CaseRecorder
) -> None:
    """A process killed under load costs the others nothing; the next one receives everything from its start on."""
    with peer_process(url, tmp_path) as peer:
        await peer.ready()
        async with running_workload(url, pattern="*") as workload:
            peer.process.kill()
            await asyncio.to_thread(peer.process.wait)
            await asyncio.sleep(seconds)
            again = tmp_path / "again"
            again.mkdir()
            with peer_process(url, again) as successor:
                await successor.ready()
                recovered = await workload.recovered()
                await successor.receives_all(workload)
                seen = successor.seen
    record_case(f"peer killed, back after {seconds:g} s", "ipc", workload, recovered=recovered)
    assert workload.unknown == 0
    for channel in CHANNELS:
        for publisher in workload.publishers:
            numbers = [event[1] for event in seen[channel] if isinstance(event, tuple) and event[0] == publisher.name]
            assert numbers == list(range(numbers[0], len(publisher.outcomes[channel])))


@pytest.mark.parametrize("seconds", [4, pytest.param(20, marks=pytest.mark.full)])
async def test_processes_that_are_killed_while_they_write_cost_the_history_nothing(
    seconds: float, ipc_url: str, tmp_path: Path
) -> None:
    """All processes receive the same messages in the same order, each acknowledged one, none twice, without a hole."""
    folder = tmp_path / "storm"
    folder.mkdir()
    command = [sys.executable, "-m", "tests.chaos.log_storm", ipc_url, str(folder), str(seconds), str(time.time_ns())]
    log = tmp_path / "storm.log"
    process = start(command, cwd=_ROOT, log=log)
    try:
        assert await asyncio.to_thread(process.wait, seconds + 40) == 0, log.read_text()
    finally:
        end(process)
    assert int(log.read_text().splitlines()[-1]) > 0  # killed
    storm = Storm(folder)
    assert storm.faults == []
    first, second = storm.received[0], storm.received[1]
    assert first == second
    names = [received[3] for received in first]
    assert len(names) == len(set(names))
    assert storm.acknowledged <= {(channel, offset, name) for channel, offset, _before, name, _size in first}
    for received in storm.received.values():
        if received:  # from its subscription to its end, everything
            begin = first.index(received[0])
            assert received == [*first[begin : begin + len(received)]]
    last: dict[str, str] = {}
    for channel, offset, before, _name, _size in first:
        assert last.get(channel, "0") == before
        last[channel] = offset
