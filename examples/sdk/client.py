"""Follow a room with centrifuge-python: lines from stdin are posted, and what was missed is restored.

Run rooms.py, then `pip install centrifuge-python`, and in this folder:

    python client.py http://127.0.0.1:8000 ada kitchen
"""

import asyncio
import json
import sys
from urllib.parse import quote
from urllib.request import Request, urlopen

from centrifuge import (  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
    CentrifugeError,
    Client,
    ClientEventHandler,
    DisconnectedContext,
    PublicationContext,
    SubscribedContext,
    SubscriptionEventHandler,
    UnsubscribedContext,
)


def show(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class ClientEvents(ClientEventHandler):  # type: ignore[misc]
    """Shows the end of a client that does not come back."""

    async def on_disconnected(self, ctx: DisconnectedContext) -> None:
        """Show why."""
        show(f"disconnected: {ctx.reason}")


class RoomEvents(SubscriptionEventHandler):  # type: ignore[misc]
    """Shows a room."""

    async def on_subscribed(self, ctx: SubscribedContext) -> None:
        """Show whether messages may be missing: then an application loads its state again."""
        if not ctx.was_recovering:
            show("subscribed")
        else:
            show("restored" if ctx.recovered else "missed: load again")

    async def on_publication(self, ctx: PublicationContext) -> None:
        """Show a message; what was missed comes in the same way, in order and once."""
        show(f"{ctx.pub.data['author']}: {ctx.pub.data['text']}")

    async def on_unsubscribed(self, ctx: UnsubscribedContext) -> None:
        """Show why the SDK does not subscribe again."""
        show(f"unsubscribed: {ctx.reason}")


async def follow(server: str, user: str, room: str) -> None:
    """Follow a room until stdin ends."""

    async def get_token() -> str:
        request = Request(f"{server}/tokens?user={quote(user)}", method="POST")  # noqa: S310 - the address is the user's own
        with await asyncio.to_thread(urlopen, request, timeout=5) as answer:
            return str(json.load(answer)["token"])

    url = f"{server.replace('http', 'ws', 1)}/connection/websocket"
    client = Client(url, events=ClientEvents(), get_token=get_token)
    subscription = client.new_subscription(f"room:{room}", events=RoomEvents())
    await client.connect()
    await subscription.subscribe()
    while text := (await asyncio.to_thread(sys.stdin.readline)).strip():
        try:
            await client.rpc("post", {"room": room, "text": text})
        except CentrifugeError as error:
            show(f"not posted: {error}")  # no SDK sends anything twice
    await client.disconnect()


if __name__ == "__main__":
    asyncio.run(follow(*sys.argv[1:4]))
