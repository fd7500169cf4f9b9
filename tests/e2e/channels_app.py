"""A project of Django Channels as users have it: consumers of both kinds, and a synchronous view that sends to them."""

from __future__ import annotations

# Channels has no types:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
import os
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["*"],
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "backplane.integrations.django_channels.BackplaneChannelLayer",
            "CONFIG": {"url": os.environ["BACKPLANE_URL"], "gap_type": "backplane.gap"},
        }
    },
    ROOT_URLCONF=__name__,
    SECRET_KEY="a test",
)
django.setup()

from asgiref.sync import async_to_sync  # noqa: E402
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer  # type: ignore[import-untyped]  # noqa: E402
from channels.layers import get_channel_layer  # type: ignore[import-untyped]  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # type: ignore[import-untyped]  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

if TYPE_CHECKING:
    from django.http import HttpRequest


class Chat(AsyncWebsocketConsumer):  # type: ignore[misc]
    """Sends what its client writes to the room."""

    async def connect(self) -> None:
        """Join the room, and accept."""
        await self.channel_layer.group_add("room", self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        """Leave the room."""
        await self.channel_layer.group_discard("room", self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Send to the room, or where the client asks for its name, to itself alone."""
        if text_data == "name":
            await self.channel_layer.send(self.channel_name, {"type": "chat.message", "text": self.channel_name})
        else:
            await self.channel_layer.group_send("room", {"type": "chat.message", "text": text_data})

    async def chat_message(self, event: dict[str, Any]) -> None:
        """Send to the client."""
        await self.send(text_data=event["text"])

    async def backplane_gap(self, event: dict[str, Any]) -> None:
        """Notify the client that it may have missed something."""
        await self.send(text_data=f"gap {event['group']}")


class SyncChat(WebsocketConsumer):  # type: ignore[misc]
    """The same, as a synchronous consumer."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = ["room"]

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Send to the room."""
        async_to_sync(self.channel_layer.group_send)("room", {"type": "chat.message", "text": text_data})

    def chat_message(self, event: dict[str, Any]) -> None:
        """Send to the client."""
        self.send(text_data=event["text"])


def announce(request: HttpRequest) -> HttpResponse:
    """Send to the room, from a synchronous view."""
    layer: Any = get_channel_layer()
    async_to_sync(layer.group_send)("room", {"type": "chat.message", "text": request.GET["text"]})
    return HttpResponse(status=202)


urlpatterns = [path("announce", announce)]

chat: Any = Chat.as_asgi()
sync_chat: Any = SyncChat.as_asgi()
app: Any = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": URLRouter([path("chat", chat), path("sync", sync_chat)]),
    }
)
