"""`backplane.journal` on a real broker and real sockets: what an outage, slow clients and refusals write to the log."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket  # noqa: TC002  # FastAPI reads it
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin

from backplane import Backplane, Connection, Limits, Settings
from backplane.centrifugal.endpoint import Accepted, Centrifugal, ConnectRequest
from backplane.journal.names import show_names
from backplane.server.uvicorn import DirectLaneProtocol
from backplane.testing.proxy import FaultProxy
from tests.brokers.redis import RedisConfig
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from websockets.asyncio.client import ClientConnection

    from backplane.journal.ring import Entry, Kept
    from backplane.worker.runtime import Runtime
    from tests.brokers.broker import Broker
    from tests.conftest import StartRedis

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0
CLIENTS = 1_000
AT_ONCE = 50


@pytest.fixture
def anyio_backend() -> str:
    """One event loop: what is logged does not depend on it."""
    return "asyncio"


def application(backplane: Backplane, **options: Any) -> FastAPI:
    """Return an application whose clients name their user and their channels in the query."""
    app = FastAPI(lifespan=backplane.lifespan)

    @app.websocket("/ws")
    async def serve(websocket: WebSocket, channel: str, user: str | None = None) -> None:
        async with backplane.connect(websocket, channel, client_key=user, **options) as connection:
            async for _ in connection:
                pass

    return app


def running_of(backplane: Backplane) -> Runtime:
    """Return the parts of a started backplane."""
    runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
    assert runtime is not None
    return runtime


def kept(backplane: Backplane, *kinds: Kept) -> list[Entry]:
    """Return the last events of the worker."""
    return running_of(backplane).journal.recent(*kinds)


async def until_closed(client: ClientConnection) -> int:
    """Wait until a client is closed; return the code."""
    with suppress(ConnectionClosed):
        async for _ in client:
            pass
    assert client.close_code is not None
    return client.close_code


async def test_a_gap_of_many_clients_is_few_lines(redis_broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """A lost link with 1,000 clients writes fewer than ten lines at INFO, and its loss and return at one level."""
    caplog.set_level(logging.INFO, "backplane")
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(redis_broker.url))
        backplane = Backplane(proxy.url, settings=Settings(drain_seconds=0.5, max_backoff_seconds=0.2))
        server = await stack.enter_async_context(serving_in_loop(application(backplane)))
        clients: list[ClientConnection] = []
        for _ in range(0, CLIENTS, AT_ONCE):
            url = f"{server.ws_url}/ws?channel=room"
            clients += await asyncio.gather(*(connect(url, ping_interval=None) for _ in range(AT_ONCE)))
        caplog.clear()
        proxy.cut()
        async with asyncio.timeout(WAIT_SECONDS):
            codes = await asyncio.gather(*map(until_closed, clients))
        running_of(backplane).journal.flush()
        assert codes == [4000] * CLIENTS
        lines = [record for record in caplog.records if record.name.startswith("backplane")]
        events = [vars(record)["backplane.event"] for record in lines]
        assert len(lines) < 10
        assert {"link.lost", "link.recovered", "gap.reported", "client.closed"} <= set(events)
        levels = {vars(record)["backplane.event"]: record.levelname for record in lines}
        assert levels["link.lost"] == levels["link.recovered"] == "WARNING"
        assert sum(vars(record).get("backplane.suppressed", 0) for record in lines) == CLIENTS
        assert [entry["event"] for entry in kept(backplane, "states")][-2:] == ["link.lost", "link.recovered"]
        assert {entry["fields"]["code"] for entry in kept(backplane, "ended")} == {4000}
        (gap,) = [entry for entry in kept(backplane, "gaps") if entry["event"] == "gap.reported"]
        assert (gap["fields"]["channel"], gap["fields"]["subscribers"]) == ("room", CLIENTS)


async def authorize(client: Connection, channel: str) -> bool:
    """Allow any channel but one."""
    return channel != "secret"


async def test_every_refusal_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """Each client that is refused is in the log with what was refused, why, and whose it is."""
    caplog.set_level(logging.INFO, "backplane")
    backplane = Backplane("memory://")
    backplane.authorize(authorize)
    limits = Limits(max_connections_per_client=1)
    async with serving_in_loop(application(backplane, limits=limits)) as server:
        url = f"{server.ws_url}/ws?user=ada"
        async with connect(f"{url}&channel=a"):
            for address, origin in (
                (f"{url}&channel=b", None),
                (f"{server.ws_url}/ws?user=bob&channel=secret", None),
                (f"{server.ws_url}/ws?user=cy&channel=a", Origin("https://evil.example")),
                (f"{server.ws_url}/ws?user=dan&channel=%24backplane/x", None),
            ):
                with pytest.raises(InvalidStatus):
                    await connect(address, origin=origin)
            running_of(backplane).clients.is_draining = True
            with pytest.raises(InvalidStatus):
                await connect(f"{server.ws_url}/ws?user=eve&channel=a")
        refusals = [entry["fields"] for entry in kept(backplane, "refusals")]
        assert [(refusal["what"], refusal["client_key"]) for refusal in refusals] == [
            ("connection", "ada"),
            ("join", "bob"),
            ("origin", "cy"),
            ("channel", "dan"),
            ("draining", "eve"),
        ]
        assert all(refusal["reason"] and refusal["connection"] for refusal in refusals)
        running_of(backplane).journal.flush()  # those of the drain are counted
        lines = [record for record in caplog.records if vars(record).get("backplane.event") == "client.refused"]
        assert len(lines) == len(refusals)


KINDS = {"asgi": "connection", "lane": "connection", "handed-over": "connection", "sdk": "connection"} | {
    "sse": "event stream",
    "subscribe": "subscription",
}


@pytest.mark.parametrize("transport", KINDS)
@pytest.mark.parametrize("by", ["client", "worker"])
async def test_an_end_is_kept_with_its_user(transport: str, by: str, caplog: pytest.LogCaptureFixture) -> None:
    """On every transport one line states the begin and one the end, who ended it, and which user it was."""
    caplog.set_level(logging.DEBUG, "backplane")
    backplane = Backplane("memory://", cluster=True)
    centrifugal = Centrifugal(backplane)

    @centrifugal.on_connect
    def accept(_connection: Connection, _request: ConnectRequest) -> Accepted:
        return Accepted(user="ada")

    async def handed_over(websocket: WebSocket) -> None:
        await backplane.hand_over(websocket, "a", client_key="ada")

    async def stream(request: Request) -> Response:
        return backplane.sse(request, "a", client_key="ada")

    app = application(backplane)
    app.router.routes += [
        WebSocketRoute("/handed-over", handed_over),
        WebSocketRoute("/sdk", centrifugal.serve),
        Route("/sse", stream),
    ]
    options: dict[str, Any] = {"ws": DirectLaneProtocol} if transport in ("lane", "handed-over") else {}
    async with serving_in_loop(app, **options) as server:
        async with asyncio.timeout(WAIT_SECONDS), AsyncExitStack() as stack:
            if transport == "subscribe":
                await stack.enter_async_context(backplane.subscribe("a"))
            elif transport == "sse":
                http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
                await stack.enter_async_context(http.stream("GET", f"{server.http_url}/sse"))
            else:
                paths = {"handed-over": "handed-over", "sdk": "sdk"}
                path = paths.get(transport, "ws?user=ada&channel=a")
                client = await stack.enter_async_context(connect(f"{server.ws_url}/{path}", proxy=None))
                if transport == "sdk":
                    await client.send('{"id":1,"connect":{}}')
                    await client.recv()
            if by == "worker":
                await backplane.stop()
        async with asyncio.timeout(WAIT_SECONDS):
            while not (lines := [line for line in caplog.records if event_of(line) == "client.ended"]):
                await asyncio.sleep(0)
    (end,) = map(vars, lines)
    ended_by = "application" if transport == "subscribe" and by == "client" else by
    assert (end["backplane.kind"], end["backplane.by"]) == (KINDS[transport], ended_by)
    assert end.get("backplane.client_key") == (None if transport == "subscribe" else "ada")
    assert end["backplane.seconds"] >= 0
    began = [vars(record) for record in caplog.records if event_of(record) == "client.accepted"]
    assert [line["backplane.connection"] for line in began] == [end["backplane.connection"]]


def event_of(record: logging.LogRecord) -> object:
    """Return the event of a line."""
    return vars(record).get("backplane.event")


async def test_what_adapters_log_is_kept(private_redis: StartRedis) -> None:
    """What an adapter logs is among the events of its worker, without the password."""
    users = ("alice on >s3cret +@all -role -info ~* &*",)
    broker = private_redis(RedisConfig(users=users, login="alice:s3cret"))
    async with Backplane(broker.url, cluster=True) as backplane:
        [found] = (await backplane.recent_events(kinds=["broker", "states"])).by_worker.values()
        assert [event["event"] for event in found] == ["broker.misfit", "link.live"]
        assert "does not grant this user ROLE" in found[0]["text"]
        assert "s3cret" not in str(found)


async def test_hidden_names(caplog: pytest.LogCaptureFixture) -> None:
    """With `log_names=False` neither a channel nor a user is in any line, and the worker still knows both."""
    caplog.set_level(logging.DEBUG, "backplane")
    backplane = Backplane("memory://", settings=Settings(log_names=False))
    backplane.authorize(authorize)
    try:
        async with serving_in_loop(application(backplane)) as server:
            async with connect(f"{server.ws_url}/ws?user=ada%40example.org&channel=room-of-ada"):
                with pytest.raises(InvalidStatus):
                    await connect(f"{server.ws_url}/ws?user=bob%40example.org&channel=secret")
                running_of(backplane).hub.gap(["room-of-ada"], "overrun")
            ours = [record for record in caplog.records if record.name.startswith("backplane")]
            text = "\n".join(str(vars(record)) + record.getMessage() for record in ours)
            assert [word for word in ("room-of-ada", "secret", "example.org") if word in text] == []
            (refused,) = kept(backplane, "refusals")
            assert (refused["fields"]["client_key"], refused["fields"]["channel"]) == ("bob@example.org", "secret")
    finally:
        show_names()
