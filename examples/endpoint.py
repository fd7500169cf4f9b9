"""Class-based: Starlette's `WebSocketEndpoint`, whose methods stay what they were, on a backplane connection.

Run it in this folder:

    BACKPLANE_URL=ipc://endpoint uvicorn endpoint:app --workers 2
"""

from typing import Any

from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.routing import Mount, WebSocketRoute
from starlette.websockets import WebSocket

from backplane import Backplane, Connection
from backplane.health_routes import health_routes

backplane = Backplane()


class ConnectedEndpoint(WebSocketEndpoint):
    """A `WebSocketEndpoint` that receives through the backplane, which accepts, keeps alive and limits.

    `on_connect` comes behind the handshake, with the channels joined. A close code of the client is not known.
    """

    connection: Connection

    def channels(self, websocket: WebSocket) -> list[str]:
        """Return what the client hears."""
        return []

    async def dispatch(self) -> None:
        """Call `on_connect`, `on_receive` and `on_disconnect` as Starlette's own loop does."""
        websocket = WebSocket(self.scope, self.receive, self.send)
        async with backplane.connect(websocket, *self.channels(websocket)) as self.connection:
            try:
                await self.on_connect(websocket)
                async for data in self.connection:
                    await self.on_receive(websocket, data)
            finally:
                await self.on_disconnect(websocket, 1000)

    async def on_connect(self, websocket: WebSocket) -> None:
        """Override to greet; the client is accepted already."""


class Room(ConnectedEndpoint):
    """A room in which everybody hears everybody else."""

    def channels(self, websocket: WebSocket) -> list[str]:
        """Join the room that the path names."""
        return [websocket.path_params["room"]]

    async def on_connect(self, websocket: WebSocket) -> None:
        """Greet the client alone."""
        await self.connection.send(f"welcome to {websocket.path_params['room']}")

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        """Pass on what the client says to all others."""
        await backplane.publish(websocket.path_params["room"], data, exclude=self.connection)


app = Starlette(
    routes=[WebSocketRoute("/rooms/{room}", Room), Mount("/health", health_routes(backplane))],
    lifespan=backplane.lifespan,
)
