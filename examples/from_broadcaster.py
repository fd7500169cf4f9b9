"""The chat example of encode/broadcaster (archived), moved to backplane.

| broadcaster | backplane |
|---|---|
| `Broadcast("redis://localhost:6379")` | `Backplane("redis://localhost:6379")` |
| `on_startup=[broadcast.connect], on_shutdown=[broadcast.disconnect]` | `lifespan=backplane.lifespan` |
| `await websocket.accept()` | `backplane.connect(websocket, "chatroom")` accepts, when the client is joined |
| a task per client: `subscribe(channel=...)`, `websocket.send_text(event.message)` | none: what is published is sent |
| a task per client: `websocket.iter_text()` | `async for message in connection` |
| `await broadcast.publish(channel="chatroom", message=message)` | `await backplane.publish("chatroom", message)` |
| `broadcast.subscribe(channel="orders")`, elsewhere | `backplane.subscribe("orders")` |
| `event.channel`, `event.message` | `message.channel`, `message.data`; a `Gap` where messages may be missing |

On the broker a message of backplane has a short header in front, and the listener of a worker that still runs
broadcaster ends with the first one. For a rolling move start the new workers with `wire_format=plain` in the URL
(`redis://localhost:6379?wire_format=plain`), which leaves the header out; when the last old worker has ended, take it
off. Until then publish text, without `exclude` (docs/wire-format.md). What broadcaster publishes is received as it is.

Run it in this folder:

    BACKPLANE_URL=ipc://moved uvicorn from_broadcaster:app --workers 2
"""

from starlette.applications import Starlette
from starlette.routing import Mount, WebSocketRoute
from starlette.websockets import WebSocket

from backplane import Backplane
from backplane.health_routes import health_routes

backplane = Backplane()  # BACKPLANE_URL, or the URL that Broadcast had


async def chatroom(websocket: WebSocket) -> None:
    """Pass on what a client says to everybody, the one who said it included."""
    async with backplane.connect(websocket, "chatroom") as connection:
        async for message in connection:
            await backplane.publish("chatroom", message)


app = Starlette(
    routes=[WebSocketRoute("/", chatroom), Mount("/health", health_routes(backplane))], lifespan=backplane.lifespan
)
