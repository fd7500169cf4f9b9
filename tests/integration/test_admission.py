"""`backplane.web.handshake` on a real server, with the direct lane and without: how a client is refused or closed."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from starlette.exceptions import WebSocketException
from starlette.websockets import WebSocket  # noqa: TC002  # FastAPI reads it
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from backplane import (
    Backplane,
    ConfigurationError,
    Connection,
    Limits,
    Settings,
    SubscribeError,
)
from backplane.adapters.memory import MemoryBroadcaster
from backplane.server.uvicorn import DirectLaneProtocol
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection

    from websockets.asyncio.client import ClientConnection

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0
PROTOCOLS = {"lane": DirectLaneProtocol, "asgi": WebSocketsSansIOProtocol}
LANES = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
BOTH_WAYS = pytest.mark.parametrize("hands_over", [False, True], ids=["connect", "hand_over"])
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Order(BaseModel):
    """What a client may send."""

    amount: int


@pytest.fixture
def anyio_backend() -> str:
    """One event loop: what a client receives does not depend on it."""
    return "asyncio"


@asynccontextmanager
async def serving(
    backplane: Backplane, handle: Callable[[WebSocket], Awaitable[None]], protocol: type[asyncio.Protocol]
) -> AsyncGenerator[str]:
    """Serve one WebSocket route on this loop; yield its URL."""
    app = FastAPI(lifespan=backplane.lifespan)
    app.add_api_websocket_route("/", handle)
    async with serving_in_loop(app, ws=protocol) as server:
        yield f"{server.ws_url}/"


async def close_of(client: ClientConnection) -> tuple[int, str]:
    """Return code and reason of the server's close frame."""
    async with asyncio.timeout(WAIT_SECONDS):
        with suppress(ConnectionClosed):
            async for _ in client:
                pass
        await client.wait_closed()
    assert client.close_code is not None
    assert client.close_reason is not None
    return client.close_code, client.close_reason


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the log records with a traceback."""
    return [record for record in caplog.records if record.exc_info]


# --- ends ----------------------------------------------------------------------------------------------------------


async def raise_websocket_exception(_: Connection, __: Backplane) -> None:
    """End by the framework's WebSocket exception."""
    raise WebSocketException(1008, "not you")


async def raise_http_exception(_: Connection, __: Backplane) -> None:
    """End by the framework's HTTP exception."""
    raise HTTPException(404, "no such room")


async def join_secret_in_group(connection: Connection, _: Backplane) -> None:
    """Join a refused channel in a task group."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(connection.join("secret"))
        await connection.receive()


async def join_illegal_in_anyio_group(connection: Connection, _: Backplane) -> None:
    """Join an illegal channel name in a task group of anyio."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.join, "")
        await connection.receive()


async def spawn(connection: Connection, backplane: Backplane) -> None:
    """End by a spawned task."""
    connection.spawn(raise_websocket_exception(connection, backplane))
    await connection.receive()


async def receive_order(connection: Connection, _: Backplane) -> None:
    """Receive an invalid message."""
    await connection.receive(Order)


async def publish_too_much(_: Connection, backplane: Backplane) -> None:
    """Publish more than the broker accepts."""
    await backplane.publish("a", "x" * 2_000)


async def close_with_a_long_reason(connection: Connection, _: Backplane) -> None:
    """Close with a longer reason than a close frame allows."""
    await connection.close(4321, "€" * 100)


async def close_without_a_reason(connection: Connection, _: Backplane) -> None:
    """Close without a reason."""
    await connection.close(4503)


async def close_and_use(connection: Connection, _: Backplane) -> None:
    """Use the WebSocket itself after the close."""
    await connection.close(4700, "banned")
    websocket: WebSocket = connection.context
    await websocket.send_text("late")


async def close_with_invalid_codes(connection: Connection, _: Backplane) -> None:
    """Close with invalid codes, and go on."""
    for code in (1005, 1006, 999, 5000, 1004, 1015, "1000", True):
        with pytest.raises(ConfigurationError, match="a close code is"):
            await connection.close(code)  # type: ignore[arg-type]
    await connection.send("alive")


ENDS = {
    "WebSocketException": (raise_websocket_exception, (1008, "not you")),
    "HTTPException": (raise_http_exception, (4503, "no such room")),
    "TaskGroup": (join_secret_in_group, (4503, "this client may not join channel 'secret'")),
    "anyio": (join_illegal_in_anyio_group, (4503, "a channel name cannot be empty")),
    "spawn": (spawn, (1008, "not you")),
    "invalid": (receive_order, (1007, "invalid message: amount: Field required")),
    "payload": (publish_too_much, (1009, "a message may take 1,000 bytes on the broker")),
    "long": (close_with_a_long_reason, (4321, "€" * 40 + "…")),
    "silent": (close_without_a_reason, (4503, "forbidden")),
    "late": (close_and_use, (4700, "banned")),
    "wrong": (close_with_invalid_codes, (1000, "normal closure")),
}


@LANES
async def test_end_of_the_block(protocol: type[asyncio.Protocol], caplog: pytest.LogCaptureFixture) -> None:
    """The error of a block reaches the client as code and reason, and leaves no traceback."""
    backplane = Backplane("memory://?max_payload_bytes=1000")
    backplane.authorize(lambda _, channel: channel != "secret")

    async def handle(websocket: WebSocket) -> None:
        async with backplane.connect(websocket, context=websocket) as connection:
            await ENDS[websocket.query_params["end"]][0](connection, backplane)

    ends: dict[str, tuple[int, str]] = {}
    async with serving(backplane, handle, protocol) as url:
        for name in ENDS:
            async with connect(f"{url}?end={name}") as client:
                with suppress(ConnectionClosed):
                    await client.send("{}")
                ends[name] = await close_of(client)
        statistics = backplane.statistics()
    assert ends == {name: end for name, (_, end) in ENDS.items()}
    assert statistics.connections_opened == len(ENDS)
    assert sum(count for name, count in statistics.as_dict().items() if name.startswith("closed_")) == len(ENDS)
    assert tracebacks(caplog) == []


# --- refusals ------------------------------------------------------------------------------------------------------


async def refuse_to_subscribe(_: MemoryBroadcaster, channels: Collection[str]) -> None:
    """Refuse one channel as a broker with an access list, and never confirm another one."""
    if "theirs" in channels:
        raise SubscribeError({"theirs": "ACL of user bob"})
    if "away" in channels:
        await asyncio.Event().wait()


LONG = "x" * 256
REFUSALS: dict[str, tuple[dict[str, Any], int, tuple[int, str]]] = {
    "authorize": ({"channel": "secret"}, 403, (4503, "this client may not join channel 'secret'")),
    "name": (
        {"channel": LONG},
        400,
        (4503, f"a channel name takes at most 255 bytes in UTF-8 and this one 256: '{LONG[:40]}'…"),
    ),
    "broker": ({"channel": "theirs"}, 403, (4503, "this channel is not allowed")),
    "away": ({"channel": "away"}, 503, (1013, "the broker is not available: try again later")),
    "slow": (
        {"channel": "slow"},
        503,
        (1013, "whether this client may join was not decided in time: try again later"),
    ),
    "HTTPException": ({"channel": "unpaid"}, 402, (4503, "pay first")),
    "WebSocketException": ({"channel": "chosen"}, 403, (4444, "not you")),
    "channels": (
        {"channel": "a", "limits": Limits(max_channels=1)},
        403,
        (4513, "a client may join 1 channels: Limits(max_channels=...)"),
    ),
    "expired": (
        {"expires_at": datetime.now(UTC) - timedelta(seconds=1)},
        401,
        (4001, "the permission has run out: get a new one"),
    ),
    "client": ({"client_key": "there"}, 429, (1013, "a client may have 1 connections")),
}


async def decide(_: Connection, channel: str) -> bool:
    """Decide, wait for ever, or fail."""
    match channel:
        case "slow":
            await asyncio.Event().wait()
        case "unpaid":
            raise HTTPException(402, "pay first")
        case "chosen":
            raise WebSocketException(4444, "not you")
        case "broken":
            raise KeyError("a fault")
        case _:
            pass
    return channel != "secret"


@asynccontextmanager
async def refusing(
    protocol: type[asyncio.Protocol], monkeypatch: pytest.MonkeyPatch, hands_over: bool = False, **settings: Any
) -> AsyncGenerator[tuple[Backplane, str]]:
    """Serve a route that refuses clients by every rule."""
    monkeypatch.setattr(MemoryBroadcaster, "subscribe", refuse_to_subscribe)
    backplane = Backplane(
        "memory://",
        settings=Settings(authorize_timeout_seconds=0.1, subscribe_timeout_seconds=0.1, **settings),
        limits=Limits(max_connections_per_client=1),
    )
    backplane.authorize(decide)

    async def handle(websocket: WebSocket) -> None:
        name = websocket.query_params.get("refusal", "")
        options: dict[str, Any] = dict(REFUSALS[name][0]) if name in REFUSALS else {"channel": name} if name else {}
        channel = options.pop("channel", None)
        options.setdefault("client_key", str(websocket.client))
        channels = () if channel is None else ("first", channel)
        if hands_over:
            return await backplane.hand_over(websocket, *channels, **options)
        async with backplane.connect(websocket, *channels, **options) as connection:
            async for _ in connection:
                pass
        return None

    async with serving(backplane, handle, protocol) as url:
        yield backplane, url


@LANES
@BOTH_WAYS
async def test_refused_by_http(
    protocol: type[asyncio.Protocol],
    hands_over: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By default a refused client gets an HTTP status, without a traceback; it does not count as a connection."""
    statuses: dict[str, int] = {}
    async with refusing(protocol, monkeypatch, hands_over) as (backplane, url), connect(f"{url}?refusal=client"):
        for name in REFUSALS:
            with pytest.raises(InvalidStatus) as caught:
                await connect(f"{url}?refusal={name}")
            statuses[name] = caught.value.response.status_code
        health, statistics = await backplane.health(), backplane.statistics()
    assert statuses == {name: status for name, (_, status, _) in REFUSALS.items()}
    assert (health.connections, statistics.connections_opened) == (1, 1)
    assert statistics.connections_refused == len(REFUSALS)
    assert tracebacks(caplog) == []


@LANES
@BOTH_WAYS
async def test_refused_after_accept(
    protocol: type[asyncio.Protocol],
    hands_over: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With `refuse_after_accept` it is accepted and closed with code and reason; what it sends is not handled."""
    ends: dict[str, tuple[int, str]] = {}
    async with refusing(protocol, monkeypatch, hands_over, refuse_after_accept=True) as (backplane, url):
        async with connect(f"{url}?refusal=client"):
            for name in REFUSALS:
                async with connect(f"{url}?refusal={name}") as client:
                    with suppress(ConnectionClosed):
                        await client.send("early")
                    ends[name] = await close_of(client)
            with pytest.raises(InvalidStatus):  # a page of another site is refused before
                await connect(url, origin="https://evil.example")  # type: ignore[arg-type]
            health, statistics = await backplane.health(), backplane.statistics()
        assert tracebacks(caplog) == []
        async with connect(f"{url}?refusal=broken") as client:
            assert await close_of(client) == (1011, "internal error")
    assert "a fault" in str(tracebacks(caplog)[0].exc_info)  # logged by the server before it ended
    assert ends == {name: end for name, (_, _, end) in REFUSALS.items()}
    assert (health.connections, statistics.connections_opened) == (1, 1)
    assert statistics.connections_refused == len(REFUSALS) + 1


@LANES
@BOTH_WAYS
async def test_worker_that_drains_or_is_full(
    protocol: type[asyncio.Protocol], hands_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of a full or draining worker is closed with code and reason too."""
    async with refusing(protocol, monkeypatch, hands_over, refuse_after_accept=True, max_connections=1) as (
        backplane,
        url,
    ):
        async with connect(url), connect(url) as client:
            assert await close_of(client) == (1013, "this worker has as many connections as it may: try again later")
        draining = asyncio.create_task(backplane.drain())
        await asyncio.sleep(0)
        async with connect(url) as client:
            assert await close_of(client) == (1012, "this worker is about to end: connect again, to another one")
        await draining


async def test_refused_clients_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused clients that do not answer the close frame occupy at most `max_connections`."""
    async with refusing(DirectLaneProtocol, monkeypatch, refuse_after_accept=True, max_connections=3) as (_, url):
        port = int(url.removesuffix("/").rpartition(":")[2])
        writers: list[asyncio.StreamWriter] = []
        responses: list[bytes] = []
        for _ in range(12):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writers.append(writer)
            writer.write(HANDSHAKE.replace(b"GET /", b"GET /?refusal=authorize"))
            async with asyncio.timeout(WAIT_SECONDS):
                responses.append(await reader.readuntil(b"\r\n"))
        for writer in writers:
            writer.close()
    assert [response.split()[1] for response in responses] == [b"101"] * 3 + [b"429"] * 9


@LANES
@BOTH_WAYS
async def test_client_that_disconnects_while_it_joins(
    protocol: type[asyncio.Protocol], hands_over: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that disconnects while `authorize` runs stops counting at once, long before the timeout."""
    backplane = Backplane("memory://", settings=Settings(max_connections=1, authorize_timeout_seconds=30))
    started, cancelled = asyncio.Event(), asyncio.Event()

    @backplane.authorize
    async def wait(_: Connection, channel: str) -> bool:
        if channel == "quick":
            return True
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return True

    async def handle(websocket: WebSocket) -> None:
        channel = websocket.query_params["channel"]
        if hands_over:
            return await backplane.hand_over(websocket, channel, on_open=lambda connection: connection.send("in"))
        async with backplane.connect(websocket, channel) as connection:
            await connection.send("in")
        return None

    async with serving(backplane, handle, protocol) as url:
        started_at = time.monotonic()
        opening = asyncio.create_task(connect(f"{url}?channel=slow").__aenter__())
        await asyncio.wait_for(started.wait(), WAIT_SECONDS)
        opening.cancel()
        await asyncio.wait([opening])
        await asyncio.wait_for(cancelled.wait(), WAIT_SECONDS)
        async with connect(f"{url}?channel=quick") as client:
            assert await client.recv() == "in"
        assert time.monotonic() - started_at < 25
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
