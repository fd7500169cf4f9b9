"""`backplane.lifespan`: the application's `Backplane` in its routes, with every way to start it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient

from backplane import Backplane, BrokerAuthenticationError, BrokerUnavailableError, NotStartedError, Settings
from backplane.adapters.memory import MemoryBroadcaster
from backplane.dependencies import get_backplane

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from starlette.types import ASGIApp

Injected = Annotated[Backplane, Depends(get_backplane)]

router = APIRouter()


@router.post("/rooms/{room}")
async def announce(room: str, text: str, backplane: Injected) -> str:
    """Publish from an HTTP route."""
    await backplane.publish(room, text)
    return backplane.state


@router.websocket("/rooms/{room}")
async def room_socket(websocket: WebSocket, room: str, backplane: Injected) -> None:
    """Connect in a WebSocket route."""
    async with backplane.connect(websocket, room) as connection:
        async for message in connection:
            await backplane.publish(room, message)


@pytest.fixture
def backplane() -> Backplane:
    """A backplane as it stands at module level: not started."""
    return Backplane("memory://")


def yielding(*states: dict[str, Any]) -> Any:
    """Return a lifespan of the user's own that yields `states` together, and starts no backplane."""

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncGenerator[dict[str, Any]]:
        yield {name: value for state in states for name, value in state.items()}

    return lifespan


def application(lifespan: Any) -> FastAPI:
    """Return an application with the router, which knows no global."""
    app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    return app


def reaches_the_room(app: ASGIApp) -> None:
    """Publish over HTTP and over a socket, and hear both on a socket."""
    with TestClient(app) as client, client.websocket_connect("/rooms/a") as one:
        assert client.post("/rooms/a?text=hello").json() == "live"
        assert one.receive_text() == "hello"
        one.send_text("said")
        assert one.receive_text() == "said"


def test_dependency_with_the_lifespan(backplane: Backplane) -> None:
    """`lifespan=backplane.lifespan` starts it, and the dependency finds it in HTTP and WebSocket routes."""
    reaches_the_room(application(backplane.lifespan))
    assert backplane.state == "closed"


def test_dependency_with_a_lifespan_of_ones_own(backplane: Backplane) -> None:
    """A lifespan that starts it and yields it as state, beside other state, works the same."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[dict[str, Any]]:
        async with backplane:
            yield {"backplane": backplane, "pool": object()}

    reaches_the_room(application(lifespan))
    assert backplane.state == "closed"


def test_same_object_in_every_route(backplane: Backplane) -> None:
    """The dependency is the application's own object, in HTTP and WebSocket routes."""
    found: list[Backplane] = []
    app = FastAPI(lifespan=backplane.lifespan)

    @app.get("/")
    async def http(injected: Injected) -> None:
        found.append(injected)

    @app.websocket("/")
    async def socket(websocket: WebSocket, injected: Injected) -> None:
        found.append(injected)
        async with injected.connect(websocket):
            pass

    with TestClient(app) as client:
        client.get("/")
        with client.websocket_connect("/"):
            pass
    assert found == [backplane, backplane]


def test_application_started_again(backplane: Backplane) -> None:
    """One application can run through its lifespan more than once."""
    app = application(backplane.lifespan)
    reaches_the_room(app)
    reaches_the_room(app)


def test_plain_starlette(backplane: Backplane) -> None:
    """Without FastAPI it is a plain call with the request, or the socket."""

    async def announce(request: Request) -> PlainTextResponse:
        await get_backplane(request).publish("a", request.query_params["text"])
        return PlainTextResponse("done")

    async def socket(websocket: WebSocket) -> None:
        async with get_backplane(websocket).connect(websocket, "a") as connection:
            async for _ in connection:
                pytest.fail("the client said nothing")

    routes = [Route("/", announce, methods=["POST"]), WebSocketRoute("/", socket)]
    with (
        TestClient(Starlette(routes=routes, lifespan=backplane.lifespan)) as client,
        client.websocket_connect("/") as one,
    ):
        assert client.post("/?text=hello").text == "done"
        assert one.receive_text() == "hello"


def test_mounted_application(backplane: Backplane) -> None:
    """A mounted application finds the one of the application around it."""
    inner = FastAPI()
    inner.include_router(router)
    outer = Starlette(routes=[Mount("/inner", inner)], lifespan=backplane.lifespan)
    with TestClient(outer) as client:
        assert client.post("/inner/rooms/a?text=hello").json() == "live"


def over_http(client: TestClient) -> None:
    """Use the dependency in an HTTP route."""
    client.post("/rooms/a?text=hello")


def over_websocket(client: TestClient) -> None:
    """Use the dependency in a WebSocket route."""
    with client.websocket_connect("/rooms/a"):
        pytest.fail("the client was accepted")


@pytest.mark.parametrize("state", [{}, {"backplane": "redis://"}, {"other": 1}], ids=str)
@pytest.mark.parametrize("use", [over_http, over_websocket])
def test_missing_state(state: dict[str, Any], use: Callable[[TestClient], None]) -> None:
    """Where the lifespan state holds none, the error says what to write."""
    cure = r'pass lifespan=backplane\.lifespan, or yield \{"backplane": backplane\} from your own'
    with TestClient(application(yielding(state))) as client, pytest.raises(NotStartedError, match=cure):
        use(client)


def test_no_lifespan_at_all() -> None:
    """A server that runs no lifespan has no state either."""
    with pytest.raises(NotStartedError, match="no Backplane in the lifespan state"):
        get_backplane(HTTPConnection({"type": "http", "headers": []}))


def test_yielded_without_being_started(backplane: Backplane) -> None:
    """One that is yielded and was never started is found, and says at its first use that it is not started."""
    app = application(yielding({"backplane": backplane}))
    with TestClient(app) as client, pytest.raises(NotStartedError, match="this Backplane is not started"):
        client.post("/rooms/a?text=hello")


def test_failed_start_fails_the_application(backplane: Backplane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that refuses ends the startup with its error: the server does not come up half."""

    async def refuse(*_: object) -> None:
        raise BrokerAuthenticationError("wrong password", adapter="memory")

    monkeypatch.setattr(MemoryBroadcaster, "start", refuse)
    with (
        pytest.raises(BrokerAuthenticationError, match="memory: wrong password"),
        TestClient(application(backplane.lifespan)),
    ):
        pytest.fail("the application came up")
    assert backplane.state == "closed"


def test_broker_that_stays_away_fails_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not answer ends the startup after the start timeout."""

    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(MemoryBroadcaster, "start", hang)
    backplane = Backplane("memory://", settings=Settings(start_timeout_seconds=0.05))
    with (
        pytest.raises(BrokerUnavailableError, match="no answer from memory://"),
        TestClient(application(backplane.lifespan)),
    ):
        pytest.fail("the application came up")


def test_error_in_the_lifespan_stops_it(backplane: Backplane) -> None:
    """What fails behind it in the user's own lifespan goes on, and the backplane is stopped."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[dict[str, Any]]:
        async with backplane:
            raise KeyError("the database is away")
            yield {}

    with pytest.raises(KeyError, match="the database is away"), TestClient(application(lifespan)):
        pytest.fail("the application came up")
    assert backplane.state == "closed"
