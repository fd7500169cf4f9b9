"""Litestar's channels plugin on Redis publish/subscribe."""

from __future__ import annotations

import os
from typing import Any

from litestar import Litestar, WebSocket, websocket
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.redis import RedisChannelsPubSubBackend
from redis.asyncio import Redis

redis: Any = Redis.from_url(os.environ["BENCH_REDIS_URL"])
plugin = ChannelsPlugin(backend=RedisChannelsPubSubBackend(redis=redis), arbitrary_channels_allowed=True)


@websocket("/ws/{channel:str}")
async def listen(socket: WebSocket[Any, Any, Any], channel: str, channels: ChannelsPlugin) -> None:
    """Send the channel until the client leaves."""
    await socket.accept()
    async with channels.start_subscription([channel]) as subscriber, subscriber.run_in_background(socket.send_text):
        async for _ in socket.iter_data("text"):
            pass


@websocket("/publish")
async def publish(socket: WebSocket[Any, Any, Any], channels: ChannelsPlugin) -> None:
    """Publish what the client sends."""
    await socket.accept()
    async for text in socket.iter_data("text"):
        await channels.wait_published(str(text), str(text)[8:12])


app = Litestar([listen, publish], plugins=[plugin])
