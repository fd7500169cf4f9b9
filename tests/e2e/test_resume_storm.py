"""Thousands of clients that come back at once cost the broker one read for each room and worker."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from backplane import Backplane
from tests.e2e.app import HISTORY
from tests.servers import serving

if TYPE_CHECKING:
    from tests.conftest import StartRedis

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(200),
    pytest.mark.alone("five thousand handshakes at once take both cores, and must not be refused for time"),
]

logger = logging.getLogger(__name__)

CLIENTS = 5000
ROOMS = [f"kept-{number}" for number in range(10)]
MESSAGES = 30
WORKERS = 2
SECONDS = 90


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested runs in other processes."""
    return "asyncio", {"use_uvloop": True}


async def test_clients_share_the_reads_at_the_broker(private_redis: StartRedis, tmp_path: Path) -> None:
    """5,000 clients that come back at once to 10 rooms on two workers get exactly their rest, by at most 20 reads."""
    broker = private_redis()
    with serving("uvicorn", broker.url, tmp_path, workers=WORKERS, environment={"TEST_HISTORY": "1"}) as server:
        async with Backplane(broker.url, history=HISTORY) as backplane, _redis(broker.url) as redis:
            positions = {room: [await _publish(backplane, room, str(n)) for n in range(MESSAGES)] for room in ROOMS}
            # Client n has received its room up to some message, each of a room up to another one.
            returning = [(ROOMS[n % 10], n // 10 % (MESSAGES - 1)) for n in range(CLIENTS)]
            paths = [f"/resumed/{room}?since={positions[room][last]}" for room, last in returning]
            plan = {"port": server.port, "clients": [(path, str(MESSAGES - 1)) for path in paths]}

            await redis.config_resetstat()
            begun = monotonic()
            program = await asyncio.create_subprocess_exec(
                *(sys.executable, str(Path(__file__).with_name("returning_clients.py"))),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 26,
            )
            assert program.stdin is not None
            assert program.stdout is not None
            try:
                program.stdin.write(json.dumps(plan).encode())
                program.stdin.close()
                assert await asyncio.wait_for(program.stdout.readline(), SECONDS) == b"rest received\n"
                seconds = monotonic() - begun
                reads = await _scripts_run(redis)
                for room in ROOMS:
                    await _publish(backplane, room, "end")
                received: list[Any] = json.loads(await asyncio.wait_for(program.stdout.readline(), SECONDS))
            finally:
                if program.returncode is None:
                    program.terminate()
                await program.wait()

    numbers = [*map(str, range(MESSAGES)), "end"]
    expected = [[numbers[last + 1 :], [["joined", True]]] for _, last in returning]
    assert [n for n in range(CLIENTS) if received[n] != expected[n]] == []
    assert 10 <= reads <= 10 * WORKERS
    logger.info("%d clients had their rest after %.1f s, by %d reads", CLIENTS, seconds, reads)


async def _publish(backplane: Backplane, room: str, text: str) -> str:
    return str((await backplane.publish(room, text)).position)


def _redis(url: str) -> Any:
    client: Any = Redis
    return client.from_url(url)


async def _scripts_run(redis: Any) -> int:
    """Return how often a script was run since the statistics were reset."""
    statistics = await redis.info("commandstats")
    return sum(int(statistics.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in ("eval", "evalsha"))
