"""A Socket.IO server as users run it: its handlers do for a client what the client asks for."""

from __future__ import annotations

# python-socketio has no types:
# pyright: reportUnknownMemberType=false, reportUntypedFunctionDecorator=false
import os
from typing import TYPE_CHECKING, Any

import socketio  # type: ignore[import-untyped]

from backplane.integrations.socketio import BackplaneManager

if TYPE_CHECKING:
    from backplane import Gap


async def notify(gap: Gap) -> None:
    """Notify the clients of this worker that they may have missed something."""
    await sio.emit("gap", gap.channel, ignore_queue=True)


manager = BackplaneManager(os.environ["BACKPLANE_URL"], on_gap=notify)
sio: Any = socketio.AsyncServer(async_mode="asgi", client_manager=manager)
app: Any = socketio.ASGIApp(sio, on_shutdown=manager.stop)


@sio.event  # type: ignore[untyped-decorator]
async def connect(sid: str, environ: dict[str, Any]) -> None:
    """Accept each client."""


@sio.event  # type: ignore[untyped-decorator]
async def call(sid: str, method: str, arguments: dict[str, Any]) -> str:
    """Call a method of the server, such as `emit` or `enter_room`, and acknowledge that."""
    try:
        await getattr(sio, method)(**arguments)
    except Exception as error:
        return type(error).__name__
    return "done"


@sio.event  # type: ignore[untyped-decorator]
async def ask(sid: str, other: str, question: str) -> Any:
    """Ask another client, on any worker, and return its answer."""
    return await sio.call("question", question, to=other, timeout=60)
