"""`backplane.web.client_address`: whose connection it is, as far as the server knows the client's address."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from backplane import Backplane, Settings
from backplane.web.client_address import address_key

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


def key(address: object) -> bytes | None:
    """Return the key of a client at this address."""
    return address_key({"client": (address, 4711)})


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"client": None},
        *({"client": (host, 0)} for host in (None, "", " ", "unknown", "Unknown", "unknown:4711", "unix:", "unix:/a")),
    ],
    ids=str,
)
def test_unknown(scope: dict[str, Any]) -> None:
    """What is unknown is no value: neither an empty address, nor what a proxy writes in the place of one."""
    assert address_key(scope) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "::ffff:192.0.2.1"),  # a socket that takes both
        ("192.0.2.1", "192.0.2.1:51234"),  # some proxies write the port
        ("2606:4700::1", "2606:4700::ffff:ffff:ffff:ffff"),
        ("2606:4700::1", "[2606:4700:0:0::2]:51234"),
        ("fd00::1", "fd00:0::1"),
        ("testclient", "testclient"),
        ("_hidden:4711", "_hidden:4712"),
    ],
)
def test_one_client(one: str, other: str) -> None:
    """An IPv4 address is one client however it is written; of IPv6 it is a network of 64 bits."""
    assert key(one) == key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("192.0.2.1", "192.0.2.2"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2"),
        ("64:ff9b::192.0.2.1", "64:ff9b::192.0.2.2"),  # a translator from IPv4
        ("64:ff9b:1::192.0.2.1", "64:ff9b:1::192.0.2.2"),
        ("::ffff:0:192.0.2.1", "::ffff:0:192.0.2.2"),
        ("::192.0.2.1", "::192.0.2.2"),
        ("2606:4700:0:1::1", "2606:4700:0:2::1"),
        ("fe80::1%eth0", "fe80::2%eth0"),  # a private network is not one client
        ("fd00::1", "fd00::2"),
        ("::1", "::2"),
        ("testclient", "other"),
    ],
)
def test_two_clients(one: str, other: str) -> None:
    """Different clients stay different."""
    assert key(one) != key(other)


async def test_over_a_unix_socket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Clients behind a proxy over a Unix socket are not one client: none is refused, and the first logs the cure."""
    backplane = Backplane("memory://", settings=Settings(max_connections_per_client=1))
    app = FastAPI(lifespan=backplane.lifespan)

    @app.get("/events")
    async def events(request: Request, key: str | None = None) -> Response:
        return backplane.sse(request, "a", client_key=key)

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "app.sock"))
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None))
    serve = asyncio.create_task(server.serve(sockets=[listener]))
    transport = httpx2.AsyncHTTPTransport(uds=str(tmp_path / "app.sock"))
    async with httpx2.AsyncClient(transport=transport, base_url="http://site", timeout=5) as client:
        async with client.stream("GET", "/events") as one, client.stream("GET", "/events") as two:
            assert (one.status_code, two.status_code) == (200, 200)
            assert (await backplane.health()).connections == 2
        async with client.stream("GET", "/events?key=alice"):
            assert (await client.get("/events?key=alice")).status_code == 429
        await backplane.drain()
    server.should_exit = True
    await serve
    warnings = [text for text in caplog.messages if "--forwarded-allow-ips" in text]
    assert len(warnings) == 1
    assert "client_key=" in warnings[0]
