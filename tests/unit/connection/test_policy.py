"""`backplane.connection.policy`: every way on which a client gets to a channel asks the same rule."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse

from backplane import Backplane, JoinRefusedError
from backplane import Client as Asked
from backplane.connection.connection import Connection
from backplane.connection.limits import Limits
from backplane.connection.policy import ConnectionPolicy
from backplane.web.sse import EventStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket


def site(backplane: Backplane) -> Starlette:
    """Return an application that lets a client ask for any channel, on every way there is."""

    async def connect(websocket: WebSocket) -> None:
        async with backplane.connect(websocket, websocket.path_params["channel"]) as connection:
            await connection.send("200")

    async def hand_over(websocket: WebSocket) -> None:
        async def answer(connection: Connection, _: str) -> None:
            await connection.send("200")

        await backplane.hand_over(websocket, websocket.path_params["channel"], on_message=answer)

    async def join(websocket: WebSocket) -> None:
        async with backplane.connect(websocket) as connection:
            try:
                await connection.join(websocket.path_params["channel"])
            except JoinRefusedError:
                await connection.send("403")
            await connection.send("200")

    async def sse(request: Request) -> Response:
        return backplane.sse(request, request.path_params["channel"])

    routes = [
        WebSocketRoute("/connect/{channel}", connect),
        WebSocketRoute("/hand_over/{channel}", hand_over),
        WebSocketRoute("/join/{channel}", join),
        Route("/sse/{channel}", sse),
    ]
    return Starlette(routes=routes, lifespan=backplane.lifespan)


def websocket(client: TestClient, path: str) -> int:
    """Return the status of a handshake, or what the handler then sends."""
    try:
        with client.websocket_connect(path) as session:
            session.send_text("which status?")
            return int(session.receive_text())
    except WebSocketDenialResponse as denial:
        return denial.status_code


# Each has a route of its name above.
WAYS: dict[str, Callable[[TestClient, str], int]] = {
    "connect": websocket,
    "hand_over": websocket,
    "join": websocket,
    "sse": lambda client, path: client.head(path).status_code,
}
# What takes away, and what the application calls on its own account.
NO_WAYS = {"leave_now", "leave", "note_invalid", "position", "update_presence"}


def test_every_way_is_known() -> None:
    """What serves a client's request, and what takes a channel for one, is listed here; a new one has to be added."""
    serving = {
        name
        for name, method in inspect.getmembers(Backplane, inspect.isfunction)
        if {"WebSocket", "Request"} & {each.annotation for each in inspect.signature(method).parameters.values()}
    }
    taking = {
        name
        for kind in (Connection, EventStream)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") and "channel" in inspect.signature(method).parameters
    }
    assert (serving | taking) - NO_WAYS == WAYS.keys()


@pytest.mark.parametrize("way", WAYS)
def test_every_way_asks(way: str) -> None:
    """A channel that `authorize` refuses is refused on each of them, and one that it allows is not."""
    backplane, asked = Backplane("memory://"), list[tuple[str, str]]()

    @backplane.authorize
    def may_join(client: Asked, channel: str) -> bool:
        asked.append((client.kind, channel))
        return channel != "secret"

    with TestClient(site(backplane)) as client:
        assert [WAYS[way](client, f"/{way}/{channel}") for channel in ("secret", "public")] == [403, 200]
        kind = "event stream" if way == "sse" else "connection"
        assert asked == [(kind, "secret"), (kind, "public")]
        assert backplane.statistics().refused_joins == 1


def test_clients_with_the_same_options_share_a_policy() -> None:
    """Those that are given the same `limits` do, of which the last is kept; one with an `on_gap` does not."""
    policy, limits = ConnectionPolicy(), Limits(max_channels=3)
    assert policy.with_options(None, None) is policy
    shared = policy.with_options(limits, None)
    assert policy.with_options(limits, None) is shared
    assert (shared.limits, shared.statistics) == (limits, policy.statistics)
    assert policy.with_options(Limits(), None) is not shared
    assert policy.with_options(limits, None) is not shared
    own = policy.with_options(limits, "close")
    assert (own.limits, own.on_gap) == (limits, "close")
    assert policy.with_options(None, "close").limits is policy.limits
