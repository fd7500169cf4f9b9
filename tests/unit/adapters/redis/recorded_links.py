"""Links whose transport records what they write, and replies as a server sends them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from backplane.adapters.redis.publisher_link import PublisherLink
from backplane.adapters.redis.subscriber_link import SubscriberLink
from backplane.testing import RecordingSink

if TYPE_CHECKING:
    from backplane.adapters.redis.link import RedisLink
    from backplane.errors import BrokerError

__all__ = ["BUSY", "PUBLISHED", "RecordingTransport", "confirmation", "message", "pmessage", "publisher", "subscriber"]

BUSY = b"-BUSY a script runs\r\n"
PUBLISHED = b":0\r\n"


class RecordingTransport(asyncio.Transport):
    """The transport of `link`, without a socket.

    Attributes:
        written: Every write.
        is_aborted: Whether it was aborted.
    """

    def __init__(self, link: RedisLink) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_aborted = False
        link.connection_made(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return itself in place of the socket."""
        return self

    def setsockopt(self, *_: object) -> None:
        """Ignore an option of the socket."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Record what is sent."""
        self.written.append(bytes(data))

    def abort(self) -> None:
        """Record it."""
        self.is_aborted = True


def confirmation(kind: bytes, name: bytes) -> bytes:
    """Return the server's confirmation of one name."""
    return b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n:1\r\n" % (len(kind), kind, len(name), name)


def message(name: bytes, payload: bytes) -> bytes:
    """Return a message as the server sends it."""
    return b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(payload), payload)


def pmessage(pattern: bytes, name: bytes, payload: bytes) -> bytes:
    """Return a message to a pattern as the server sends it."""
    parts = b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in (b"pmessage", pattern, name, payload))
    return b"*4\r\n" + parts


def publisher(max_pending_bytes: int = 1000) -> tuple[PublisherLink, RecordingTransport, list[BrokerError]]:
    """Return an adopted link that publishes, its transport, and the losses that it reports."""
    link = PublisherLink(max_pending_bytes)
    transport, losses = RecordingTransport(link), list[Any]()
    link.adopt(losses.append)
    return link, transport, losses


def subscriber() -> tuple[SubscriberLink, RecordingSink, list[BrokerError]]:
    """Return an adopted link that receives, its sink, and the losses that it reports."""
    sink = RecordingSink()
    link = SubscriberLink(sink)
    RecordingTransport(link)
    losses: list[Any] = []
    link.adopt(losses.append)
    return link, sink, losses
