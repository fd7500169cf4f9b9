"""What the brokers' own tools publish reaches the sockets unchanged."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import nats
import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from websockets.asyncio.client import connect

from tests.servers import serving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop: the application runs in other processes."""
    return ("asyncio", {"use_uvloop": False})


async def redis_cli(url: str) -> None:
    """Publish with `redis-cli`."""
    program = shutil.which("redis-cli")
    if program is None:
        pytest.skip("no redis-cli")
    host, _, port = urlsplit(url).netloc.partition(":")
    command = [program, "-h", host, "-p", port, "PUBLISH", "chat", "hello"]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)


async def bare_nats_py(url: str) -> None:
    """Publish with a bare nats-py client."""
    module: Any = nats
    client = await module.connect(url)
    await client.publish("chat", b"hello")
    await client.close()


async def bare_aiokafka(url: str) -> None:
    """Publish with a bare aiokafka producer."""
    parts = urlsplit(url)
    producer: Any = AIOKafkaProducer(bootstrap_servers=parts.netloc)
    await producer.start()
    await producer.send_and_wait(parts.query.removeprefix("topic="), b"hello", key=b"chat")
    await producer.stop()


@pytest.mark.parametrize(
    ("broker", "publish"),
    [("redis", redis_cli), ("nats", bare_nats_py), ("kafka", bare_aiokafka)],
    ids=["redis-cli", "nats-py", "aiokafka"],
)
async def test_a_foreign_publish_reaches_the_sockets(
    request: pytest.FixtureRequest, tmp_path: Path, broker: str, publish: Callable[[str], Awaitable[None]]
) -> None:
    """Sockets on several workers receive what a tool of the broker publishes, as text and unchanged."""
    url: str = request.getfixturevalue(f"{broker}_broker").own_url
    with serving("gunicorn", url, tmp_path) as server:
        clients = [await connect(f"{server.ws_url}/rooms/chat", open_timeout=30) for _ in range(8)]
        for client in clients:
            await client.recv()  # the pid of its worker: it has joined
        await publish(url)
        assert [await client.recv() for client in clients] == ["hello"] * 8
        await asyncio.gather(*(client.close() for client in clients))
