"""An application of Litestar whose plugin has the backend of backplane."""

from __future__ import annotations

# What Litestar can publish has no complete type:
# pyright: reportUnknownMemberType=false
import os
from typing import Any

from litestar import Litestar, WebSocket, websocket
from litestar.channels import ChannelsPlugin
from litestar.exceptions import WebSocketDisconnect

from backplane.integrations.litestar import BackplaneChannelsBackend

plugin = ChannelsPlugin(
    BackplaneChannelsBackend(os.environ["BACKPLANE_URL"], gap_message=b"gap"), arbitrary_channels_allowed=True
)


@websocket("/{room:str}")
async def talk(socket: WebSocket[Any, Any, Any], room: str, channels: ChannelsPlugin) -> None:
    """Publish what the client sends to its room, and send it what is published there."""
    await socket.accept()
    async with channels.start_subscription([room]) as subscriber, subscriber.run_in_background(socket.send_text):
        await socket.send_text("subscribed")
        try:
            while True:
                await channels.wait_published(await socket.receive_text(), [room])
        except WebSocketDisconnect:
            pass


app = Litestar([talk], plugins=[plugin])
