"""Channels with a history on `ipc://`: processes die while they write, and the disk is full."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.brokers.process import end, start
from tests.chaos.kept import KEPT, running_kept

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.chaos.checker import Outcome
    from tests.chaos.kept import KeptCaseRecorder

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kills", [8, pytest.param(60, marks=pytest.mark.full)])
async def test_workers_that_are_killed_while_they_write(
    kills: int, ipc_url: str, tmp_path: Path, record_kept: KeptCaseRecorder
) -> None:
    """The others receive everything that was confirmed, in one order, and at most the last message of each."""
    folder = tmp_path / "writers"
    folder.mkdir()
    command = [sys.executable, "-m", "tests.chaos.kept_writers", ipc_url, str(folder), str(kills), str(time.time_ns())]
    log = tmp_path / "writers.log"
    async with running_kept(ipc_url) as workload:
        process = start(command, cwd=_ROOT, log=log)
        try:
            assert await asyncio.to_thread(process.wait, 120) == 0, log.read_text()
        finally:
            end(process)
        await workload.recovered()
    others: dict[str, dict[str, list[Outcome]]] = {channel: {} for channel in KEPT}
    for path in folder.iterdir():
        confirmed = Counter(line.split()[0] for line in path.read_text().splitlines())
        for channel in KEPT:
            outcomes = others[channel][path.name] = []
            outcomes += ["ok"] * confirmed[channel]
            outcomes += ["unknown"]
    result = workload.judge(others=others)
    record_kept(f"{kills} workers killed while they write", "ipc", result)
    assert len(others[KEPT[0]]) == kills


@contextmanager
def full_disk(log: Path) -> Generator[None]:
    """Let no file grow by more than 3 kB over the size of the newest segment, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 3000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk(ipc_url: str, record_kept: KeptCaseRecorder) -> None:
    """What cannot be written is refused and delivered to no worker; everything else is received, without a gap."""
    async with running_kept(ipc_url) as workload:
        publisher = workload.publishers[1]
        await workload.go_on(publisher)
        (log,) = Path(ipc_url.partition("directory=")[2]).glob("**/*.log")
        with full_disk(log):
            while publisher.outcomes[KEPT[0]].count("refused") < 20:
                await publisher.publish(KEPT[0])
        await workload.go_on(publisher)
        await workload.recovered()
    record_kept("disk full", "ipc", workload.judge())
