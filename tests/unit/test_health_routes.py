"""`backplane.health_routes`: what a load balancer is answered, and what a client is where the broker failed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from backplane import (
    Backplane,
    BackplaneError,
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    InvalidChannelError,
    NotStartedError,
    PayloadTooLargeError,
    PublishError,
    PublishOutcomeUnknownError,
    Settings,
    SubscribeError,
)
from backplane.adapters.memory import MemoryBroadcaster
from backplane.health_routes import broker_error_response, health_routes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Message as Event

    from backplane.broadcaster import Sink

pytestmark = pytest.mark.anyio


def fastapi_app(backplane: Backplane) -> FastAPI:
    """Mount the routes as in the documentation."""
    app = FastAPI()
    app.mount("/health", health_routes(backplane))
    return app


def starlette_app(backplane: Backplane) -> Starlette:
    """Mount the routes among Starlette's own."""
    return Starlette(routes=[Mount("/health", health_routes(backplane))])


class Answer:
    """What a route answered.

    Attributes:
        status: Its code.
        headers: Its headers.
        body: Its body.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    async def take(self, event: Event) -> None:
        """Take one ASGI event."""
        if event["type"] == "http.response.start":
            self.status = event["status"]
            self.headers = {name.decode(): value.decode() for name, value in event["headers"]}
        else:
            self.body += event.get("body", b"")

    def json(self) -> dict[str, Any]:
        """Return the body, parsed."""
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed


async def no_body() -> Event:
    """Send a request without a body."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def ask(backplane: Backplane, name: str, make: Callable[[Backplane], Any] = fastapi_app) -> Answer:
    """Return the answer of `/health/<name>`."""
    scope = {"type": "http", "method": "GET", "path": f"/health/{name}", "root_path": "", "query_string": b""}
    answer = Answer()
    await make(backplane)({**scope, "headers": [], "http_version": "1.1"}, no_body, answer.take)
    return answer


async def codes(backplane: Backplane) -> tuple[int, int]:
    """Return the answers of `live` and `ready`."""
    return (await ask(backplane, "live")).status, (await ask(backplane, "ready")).status


def keep_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no start succeed any more."""

    async def start(self: MemoryBroadcaster, sink: Sink) -> None:
        raise BrokerUnavailableError("redis://:secret@somewhere refused")

    monkeypatch.setattr(MemoryBroadcaster, "start", start)


async def started(_: Backplane, __: pytest.MonkeyPatch) -> None:
    """Leave it as it is."""


async def drained(backplane: Backplane, _: pytest.MonkeyPatch) -> None:
    """Drain it."""
    await backplane.drain()


async def lose(backplane: Backplane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lose the link for good."""
    keep_away(monkeypatch)
    supervisor = backplane._lifecycle.running().supervisor  # pyright: ignore[reportPrivateUsage]
    supervisor.status.session.lost(BrokerUnavailableError("redis://:secret@somewhere is gone"))
    await backplane.wait_for_state("degraded")


@pytest.mark.parametrize("make", [fastapi_app, starlette_app])
async def test_live_and_ready(make: Callable[[Backplane], Any]) -> None:
    """A worker whose link is live is both, and its state is the body; no cache may keep the answer."""
    async with Backplane("memory://") as backplane, backplane.subscribe("private-channel"):
        for name in ("live", "ready"):
            answer = await ask(backplane, name, make)
            assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
            body = answer.json()
            assert (body["live"], body["ready"], body["state"], body["channels"]) == (True, True, "live", 1)
            assert (body["subscriptions"], body["connections"], body["draining"]) == (1, 0, False)


@pytest.mark.parametrize(("act", "expected"), [(started, (200, 200)), (drained, (200, 503)), (lose, (200, 503))])
async def test_codes(
    act: Callable[[Backplane, pytest.MonkeyPatch], Awaitable[None]],
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A drain, or a broker that is away, sends new clients elsewhere; neither is a reason for a restart."""
    async with Backplane("memory://") as backplane:
        await act(backplane, monkeypatch)
        assert await codes(backplane) == expected


async def test_codes_before_the_start_and_after_the_stop() -> None:
    """A worker that is not started, or not any more, takes no clients."""
    backplane = Backplane("memory://")
    assert await codes(backplane) == (200, 503)
    async with backplane:
        assert await codes(backplane) == (200, 200)
    assert await codes(backplane) == (200, 503)


async def test_codes_of_a_lazy_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that came up without its broker is not ready."""
    keep_away(monkeypatch)
    async with Backplane("memory://", settings=Settings(start="lazy")) as backplane:
        assert await codes(backplane) == (200, 503)
        assert (await ask(backplane, "ready")).json()["state"] == "degraded"


async def test_dead_owner_is_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the supervisor of the link has ended, only a restart helps: the liveness probe fails."""
    async with Backplane("memory://") as backplane:
        supervisor = backplane._lifecycle.running().supervisor  # pyright: ignore[reportPrivateUsage]
        monkeypatch.setattr(type(supervisor), "is_alive", property(lambda _: False))
        assert (await ask(backplane, "live")).status == 503


@pytest.mark.parametrize("name", ["live", "ready"])
async def test_body_names_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer holds no URL, no channel and no text of the broker, not even after a gap."""
    async with Backplane("memory://") as backplane, backplane.subscribe("private-channel") as messages:
        running = backplane._lifecycle.running()  # pyright: ignore[reportPrivateUsage]
        running.hub.gap(["private-channel"], "redis://:secret@somewhere is gone")
        await anext(messages)
        await lose(backplane, monkeypatch)
        body = (await ask(backplane, name)).json()
        assert (body["gaps"], body["last_gap_seconds_ago"] >= 0, "last_gap_reason" in body) == (1, True, False)
        words = json.dumps(body)
        assert [word for word in ("private", "secret", "somewhere", "memory:", "redis:") if word in words] == []


async def test_only_these_two() -> None:
    """Nothing else is served there."""
    assert (await ask(Backplane("memory://"), "metrics")).status == 404


# --- where the broker failed ---------------------------------------------------------------------------------------

LATER = "not available, try again later"
PERHAPS = "it is unknown whether this was published: sending it again can publish it twice"
REFUSED = "refused by the message broker"


def failing_app(error: BackplaneError, framework: str) -> FastAPI | Starlette:
    """Serve a route that raises, and WebSockets that raise before and after they are accepted."""

    async def fail(_: Request) -> Response:
        raise error

    async def fail_before(_: WebSocket) -> None:
        raise error

    async def fail_after(websocket: WebSocket) -> None:
        await websocket.accept()
        raise error

    async def fail_at_the_end(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close(1000)
        raise error

    routes = [
        Route("/", fail, methods=["POST"]),
        WebSocketRoute("/before", fail_before),
        WebSocketRoute("/after", fail_after),
        WebSocketRoute("/end", fail_at_the_end),
    ]
    if framework == "fastapi":
        return FastAPI(routes=list(routes), exception_handlers={BackplaneError: broker_error_response})
    return Starlette(routes=routes, exception_handlers={BackplaneError: broker_error_response})


@pytest.mark.parametrize("framework", ["fastapi", "starlette"])
@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (BrokerUnavailableError("secret"), 503, LATER),
        (PublishOutcomeUnknownError("secret"), 503, PERHAPS),
        (SubscribeError({}, unconfirmed={"a": "secret"}), 503, LATER),
        (SubscribeError({"a": "secret"}), 502, REFUSED),
        (PublishError("secret"), 502, REFUSED),
        (BrokerAuthenticationError("secret"), 502, REFUSED),
        (BrokerError("secret", retriable=True), 503, LATER),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_broker_error_in_a_request(framework: str, error: BrokerError, status: int, words: str) -> None:
    """An outage is a 503 with when to try again, a refusal a 502; neither repeats the broker's words."""
    with TestClient(failing_app(error, framework)) as client:
        answer = client.post("/")
    assert (answer.status_code, answer.json()) == (status, {"detail": words})
    assert ("retry-after" in answer.headers) == (status == 503)


@pytest.mark.parametrize("framework", ["fastapi", "starlette"])
def test_broker_error_in_a_websocket(framework: str) -> None:
    """Outside of `connect` it answers the handshake, or closes with 1013; a client that is closed stays so."""
    with TestClient(failing_app(BrokerUnavailableError("away"), framework)) as client:
        with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/before"):
            pytest.fail("the client was accepted")
        assert (denied.value.status_code, denied.value.json()) == (503, {"detail": LATER})
        for path, code in (("/after", 1013), ("/end", 1000)):
            with client.websocket_connect(path) as session, pytest.raises(WebSocketDisconnect) as closed:
                session.receive_text()
            assert closed.value.code == code


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(InvalidChannelError("no name"), 400, 4503), (PayloadTooLargeError(2_000, 1_000), 413, 1009)],
    ids=["channel", "payload"],
)
def test_what_the_client_asked_for(error: BackplaneError, status: int, code: int) -> None:
    """A channel name, or a message, that cannot be is the client's: 400, 413, or the code of `connect`."""
    with TestClient(failing_app(error, "fastapi")) as client:
        assert client.post("/").status_code == status
        with client.websocket_connect("/after") as session, pytest.raises(WebSocketDisconnect) as closed:
            session.receive_text()
        assert closed.value.code == code


def test_other_error_is_raised() -> None:
    """Any other error of this package is raised, because it is a mistake of the application."""
    with TestClient(failing_app(NotStartedError("not started"), "fastapi")) as client:
        with pytest.raises(NotStartedError):
            client.post("/")
        with pytest.raises(NotStartedError), client.websocket_connect("/after"):
            pass
