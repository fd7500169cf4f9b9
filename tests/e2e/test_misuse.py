"""A worker whose `def` endpoints use the backplane in ways that cannot work: each is refused, and all else goes on."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest

from tests.e2e.clients import open_audience
from tests.servers import serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

# More than the 40 threads that Starlette runs `def` endpoints in: were they held, nothing else would get one.
REQUESTS = 45


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested runs in other processes."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(params=["memory", "ipc", "redis", "nats", "kafka"])
def url(request: pytest.FixtureRequest) -> str:
    """Every adapter: what goes wrong in a foreign event loop differs between them."""
    match request.param:
        case "memory":
            return "memory://"
        case "ipc":
            return str(request.getfixturevalue("ipc_url"))
        case name:
            return str(request.getfixturevalue(f"{name}_broker").own_url)


def post(port: int, path: str) -> str:
    """Return what is answered, within five seconds."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("POST", path)
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, text
        return text
    finally:
        connection.close()


async def test_misuse_in_def_endpoints(url: str, tmp_path: Path) -> None:
    """45 misuses at once end with the cure; sockets receive before and after; SIGTERM ends the server."""
    with serving("uvicorn", url, tmp_path, workers=1) as server:
        async with open_audience(f"{server.ws_url}/rooms/lobby", 20) as audience:
            await audience.clients[0].publish("before", 5)
            ways = ["asyncio.run"] * REQUESTS + ["async_to_sync", "thread", "process"]
            paths = [f"/misuse/{way}/lobby" for way in ways]
            with ThreadPoolExecutor(len(paths)) as threads:
                refused = await asyncio.to_thread(lambda: list(threads.map(partial(post, server.port), paths)))
            for way, words in zip(ways, refused, strict=True):
                assert "backplane.sync.publish" in words, way
            for number in range(5):
                await asyncio.to_thread(post, server.port, f"/sync/lobby?text=sync%20{number}")
            await audience.clients[0].publish("after", 5)
            await audience.hear({"before": 5, "sync": 5, "after": 5})
            assert audience.misheard({"before": 5, "sync": 5, "after": 5}) == []
            assert all("misuse" not in client.heard for client in audience.clients)
        server.terminate()
        await asyncio.to_thread(server.wait_for_end)
