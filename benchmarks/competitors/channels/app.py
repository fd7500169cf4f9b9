"""Django Channels with channels_redis' publish/subscribe layer."""

from __future__ import annotations

import os
from typing import Any

import django
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="a benchmark keeps none",
    INSTALLED_APPS=["channels"],
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [os.environ["BENCH_REDIS_URL"]]},
        }
    },
)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402  # needs the settings
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402


class Listen(AsyncWebsocketConsumer):
    """Receives a channel."""

    async def connect(self) -> None:
        """Join, then accept."""
        await self.channel_layer.group_add(self.scope["url_route"]["kwargs"]["channel"], self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        """Leave."""
        await self.channel_layer.group_discard(self.scope["url_route"]["kwargs"]["channel"], self.channel_name)

    async def chat_message(self, event: dict[str, Any]) -> None:
        """Send what was published."""
        await self.send(text_data=event["text"])


class Publish(AsyncWebsocketConsumer):
    """Publishes what the client sends."""

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Publish."""
        text = text_data or ""
        await self.channel_layer.group_send(text[8:12], {"type": "chat.message", "text": text})


class _Lifespan:
    async def __call__(self, _: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})


app = ProtocolTypeRouter(
    {
        "websocket": URLRouter([path("ws/<str:channel>", Listen.as_asgi()), path("publish", Publish.as_asgi())]),
        "lifespan": _Lifespan(),
    }
)
