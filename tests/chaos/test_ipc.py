"""Processes of `ipc://` that die or stand still: there is no broker, so each fault is a peer's."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.brokers.process import end, start, wait_until
from tests.chaos.checker import GAP, GapSeen, check
from tests.chaos.crew import CHANNELS, talking

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Generator

    from tests.chaos.checker import Event
    from tests.chaos.crew import Crew
    from tests.chaos.judge import Judge

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

_ROOT = Path(__file__).parents[2]


class Peer:
    """Another process, and what it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def seen(self) -> dict[str, list[Event]]:
        """For each channel messages and gaps as they came."""
        seen: dict[str, list[Event]] = {channel: [] for channel in CHANNELS}
        for line in self._lines()[1:]:
            channel, *message = json.loads(line)
            seen[channel].append((message[0], message[1]) if message else GAP)
        return seen

    async def ready(self) -> None:
        """Wait until it hears."""
        await asyncio.to_thread(wait_until, lambda: bool(self._lines()), "the peer hears")

    async def hears_all(self, crew: Crew) -> None:
        """Wait until it has heard, of every speaker on every channel, what was said last or something later."""
        last = {(who.name, name): len(who.outcomes[name]) - 1 for who in crew.speakers for name in CHANNELS}

        def has_heard() -> bool:
            latest = {
                (event[0], channel): event[1]
                for channel, seen in self.seen.items()
                for event in seen
                if not isinstance(event, GapSeen)
            }
            return all(latest.get(who, -1) >= number for who, number in last.items())

        await asyncio.to_thread(wait_until, has_heard, "the peer hears everyone")

    def _lines(self) -> list[str]:
        whole, _, _ = self._log.read_text().rpartition("\n")
        return whole.splitlines()


@contextmanager
def peer_process(url: str, folder: Path) -> Generator[Peer]:
    """Start another process on `url`."""
    log = folder / "peer.log"
    process = start([sys.executable, "-m", "tests.chaos.peer", url], cwd=_ROOT, log=log)
    try:
        yield Peer(process, log)
    finally:
        end(process)


@pytest.fixture
def url(ipc_url: str) -> str:
    """With a small bound, so that a peer that stands still is soon further behind."""
    return f"{ipc_url}&max_peer_backlog_bytes=65536"


@pytest.mark.parametrize("seconds", [2, pytest.param(5, marks=pytest.mark.full)])
async def test_a_peer_that_stands_still_costs_the_others_nothing(
    seconds: float, url: str, tmp_path: Path, judge: Judge
) -> None:
    """While one process stands still the others hear everything, without a gap; it has a gap itself, and goes on."""
    with peer_process(url, tmp_path) as peer:
        await peer.ready()
        async with talking(url, filler="x" * 20_000) as crew:
            peer.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            peer.process.send_signal(signal.SIGCONT)
            await peer.hears_all(crew)
            recovered = await crew.recovered()
            await peer.hears_all(crew)
        seen = peer.seen
    judge(f"peer under SIGSTOP for {seconds} s", "ipc", crew, recovered=recovered)
    assert crew.unknown == 0
    lost = 0
    for channel in CHANNELS:
        published = {speaker.name: speaker.outcomes[channel] for speaker in crew.speakers}
        # Each speaker is a process of its own to it, and may have cut it.
        verdict = check(published, seen[channel], max_gaps=len(crew.speakers))
        assert verdict.faults == []
        lost += verdict.lost
    assert lost > 0  # of a channel that is published to slowly the kernel may hold everything


@pytest.mark.parametrize("seconds", [0.2, pytest.param(3, marks=pytest.mark.full)])
async def test_a_peer_that_is_killed_costs_the_others_nothing(
    seconds: float, url: str, tmp_path: Path, judge: Judge
) -> None:
    """A process that dies under load is not missed by the others; the next one hears everything from its start on."""
    with peer_process(url, tmp_path) as peer:
        await peer.ready()
        async with talking(url) as crew:
            peer.process.kill()
            await asyncio.to_thread(peer.process.wait)
            await asyncio.sleep(seconds)
            again = tmp_path / "again"
            again.mkdir()
            with peer_process(url, again) as successor:
                await successor.ready()
                recovered = await crew.recovered()
                await successor.hears_all(crew)
                seen = successor.seen
    judge(f"peer killed, back after {seconds:g} s", "ipc", crew, recovered=recovered)
    assert crew.unknown == 0
    for channel in CHANNELS:
        for speaker in crew.speakers:
            numbers = [event[1] for event in seen[channel] if isinstance(event, tuple) and event[0] == speaker.name]
            assert numbers == list(range(numbers[0], len(speaker.outcomes[channel])))
