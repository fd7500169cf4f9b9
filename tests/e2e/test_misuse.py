"""`def` endpoints that use the backplane in ways that cannot work: each is refused, and the worker goes on."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest

from tests.e2e.clients import open_clients
from tests.servers import serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

# More than the 40 threads in which Starlette runs `def` endpoints: none would be free if these did not return.
REQUESTS = 45


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested runs in other processes."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(params=["memory", "ipc", "redis", "nats", "kafka"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of every adapter: in a foreign event loop each fails in a different way."""
    match request.param:
        case "memory":
            return "memory://"
        case "ipc":
            return str(request.getfixturevalue("ipc_url"))
        case name:
            return str(request.getfixturevalue(f"{name}_broker").own_url)


def post(port: int, path: str) -> str:
    """Return the response's text, in bounded time."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path)
        response = connection.getresponse()
        text = response.read().decode()
        assert response.status == 200, text
        return text
    finally:
        connection.close()


async def test_misuse_in_def_endpoints(url: str, tmp_path: Path) -> None:
    """45 misuses at once raise an error that names the remedy; sockets receive on; SIGTERM ends the server."""
    with serving("uvicorn", url, tmp_path, workers=1) as server:
        async with open_clients(f"{server.ws_url}/rooms/lobby", 20) as group:
            await group.clients[0].publish("before", 5)
            kinds = ["asyncio.run"] * REQUESTS + ["async_to_sync", "thread", "process"]
            paths = [f"/misuse/{kind}/lobby" for kind in kinds]
            with ThreadPoolExecutor(len(paths)) as threads:
                errors = await asyncio.to_thread(lambda: list(threads.map(partial(post, server.port), paths)))
            for kind, text in zip(kinds, errors, strict=True):
                assert "backplane.sync.publish" in text, kind
            for number in range(5):
                await asyncio.to_thread(post, server.port, f"/sync/lobby?text=sync%20{number}")
            await group.clients[0].publish("after", 5)
            await group.receive({"before": 5, "sync": 5, "after": 5})
            assert group.delivery_errors({"before": 5, "sync": 5, "after": 5}) == []
            assert all("misuse" not in client.received for client in group.clients)
        server.terminate()
        await asyncio.to_thread(server.wait_for_end)
