"""The harness measures the longest time that a server's event loop is blocked."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from benchmarks.harness.candidate import Serving, backplane, floors
from benchmarks.harness.run import Options
from benchmarks.harness.server import serving
from benchmarks.scenarios import fanout
from benchmarks.servers import stall

if TYPE_CHECKING:
    from pathlib import Path

SMALL = Options(connections=2, rate=20, seconds=0.2, warm_up_seconds=0.0)


def test_a_blocked_loop_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that is blocked for a tenth of a second has that as its longest stall, until it is reset."""
    monkeypatch.setenv("BENCH_STALLS", str(tmp_path))

    async def block() -> float:
        stall.watch()
        await asyncio.sleep(0)
        time.sleep(0.1)
        while not (found := stall.longest(tmp_path)):
            await asyncio.sleep(0)
        return found

    assert asyncio.run(block()) >= 0.09
    stall.reset(tmp_path)
    assert stall.longest(tmp_path) == 0


def test_nothing_is_watched_unless_the_harness_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the harness a server watches nothing, and there is no figure, not a zero."""
    monkeypatch.delenv("BENCH_STALLS", raising=False)
    asyncio.run(_watch())
    assert stall.longest(tmp_path) is None


@pytest.mark.timeout(60)
def test_the_servers_of_this_folder_measure_it() -> None:
    """Backplane and the floors on an event loop have the figure; the one in C has none."""
    c, *on_loops = floors()
    for candidate in (backplane("memory://", Serving(workers=1)), *on_loops):
        with serving(candidate, stalls=True) as server:
            assert fanout.run(server, SMALL).figures["stall_ms"] > 0
    with serving(c, stalls=True) as server:
        assert "stall_ms" not in fanout.run(server, SMALL).figures


async def _watch() -> None:
    stall.watch()
