"""One connection to a Redis server: commands, and the replies that belong to them.

RESP2 (https://redis.io/docs/latest/develop/reference/protocol-spec/), parsed by hiredis. Every server speaks it, and in
it a server replies in the order of the commands, so the oldest command without a reply is the one that is answered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

import hiredis

from backplane.adapters.redis.errors import unavailable
from backplane.adapters.redis.server_info import Address, ServerInfo
from backplane.concurrency.fork import close_in_children
from backplane.concurrency.shared_future import outcome_of
from backplane.errors import PublishError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from backplane.errors import BrokerError

__all__ = ["RedisLink", "pack_arguments", "pack_command", "settle"]

# Replies that arrived while the process was paused are read within this time.
_GRACE_SECONDS: Final = 0.05


class RedisLink(asyncio.Protocol):
    """One connection. Its owner is notified of its end from `adopt` on.

    Attributes:
        address: Where it is connected to.
        server: What the server reported when it was opened.
        loss: Why it ended; `None` before it is connected and while it is.
        closed: Set while it holds no socket.
        streams: What opened the socket. Kept, because its collection would close the socket.
    """

    def __init__(self) -> None:
        self.address: Address = ""
        self.server: ServerInfo = ServerInfo()
        self.loss: BrokerError | None = None
        self.closed: asyncio.Event = asyncio.Event()
        self.closed.set()
        self.streams: object = None
        self._parser: hiredis.Reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._on_lost: Callable[[BrokerError], None] | None = None
        # Commands without a reply, oldest first, each with a number: bytes to publish, or names to subscribe to.
        self._unanswered: deque[tuple[asyncio.Future[Any], int]] = deque()
        self._last_check: asyncio.Future[Any] | None = None
        # A server that refuses the client ("max number of clients reached") sends the error before the first command,
        # and closes. It is the reply to the first command, which may be sent only then.
        self._greeting: hiredis.ReplyError | None = None

    @property
    def oldest_unanswered(self) -> asyncio.Future[Any] | None:
        """The reply that has been awaited for the longest time; `None` where none is."""
        return self._unanswered[0][0] if self._unanswered else None

    def adopt(self, on_lost: Callable[[BrokerError], None]) -> None:
        """Take it into use; `on_lost` is called once, at its end.

        Raises:
            BrokerUnavailableError: It has ended already.
        """
        if self.loss is not None:
            raise self.loss
        self._on_lost = on_lost

    async def ask(self, *parts: bytes) -> Any:
        """Send a command and return the reply.

        Args:
            parts: The command and its arguments.

        Raises:
            hiredis.ReplyError: The reply is an error.
            BrokerUnavailableError: The link ended.
        """
        return await self._reply_to(parts[0], self.send(pack_command(parts)))

    async def check(self, *parts: bytes) -> Any:
        """Send a command as `ask` does, and end the link where the previous check has no reply yet.

        Called once per probe interval. Cancelled, it leaves the command without a reply for the next check to find.

        Raises:
            hiredis.ReplyError: The reply is an error.
            BrokerUnavailableError: The link ended, or is ended now.
        """
        if self._last_check is not None and not self._last_check.done():
            await asyncio.wait([self._last_check], timeout=_GRACE_SECONDS)
            if not self._last_check.done():
                self.end("no answer from one check to the next")
        self._last_check = self.send(pack_command(parts))
        return await self._reply_to(parts[0], outcome_of(self._last_check))

    def send(self, command: bytes, count: int = 0) -> asyncio.Future[Any]:
        """Send a packed command at once; the reply is the result of the future.

        Args:
            command: What `pack_command` returned.
            count: Names to subscribe to, or to unsubscribe from: each is confirmed by a reply of its own.

        Raises:
            BrokerUnavailableError: The link ended.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._greeting is not None:
            settle(future, self._greeting)
            return future
        if self.loss is not None or self._transport is None:
            raise self.loss or unavailable("the link is not connected")
        self._unanswered.append((future, count))
        self._transport.write(command)
        return future

    def end(self, reason: str) -> None:
        """End it at once and fail every command without a reply; `closed` is set when the socket is closed."""
        if self.loss is not None:
            return
        self.loss = unavailable(reason)
        if self._transport is not None:
            self._transport.abort()
        # The owner is notified before the publishes fail: it can move those that were not sent to another connection.
        if self._on_lost is not None:
            self._on_lost(self.loss)
        self.fail_pending(reason)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket."""
        self._transport = cast("asyncio.Transport", transport)
        close_in_children(self, transport)
        self.closed.clear()
        if self.loss is not None:  # ended while it was connecting
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what was received."""
        parser = self._parser
        parser.feed(data)
        try:
            while self.loss is None and (reply := parser.gets()) is not False:
                self.reply_received(reply)
        except hiredis.ProtocolError as error:
            self.end(f"the server sent what is not RESP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end of the connection."""
        self.end(f"the connection ended{f': {exc}' if exc else ''}")
        self.closed.set()

    def reply_received(self, reply: Any) -> None:
        """Answer the oldest command; a reply without a command ends the link: it may answer any of them."""
        if not self._unanswered:
            if self._on_lost is None and isinstance(reply, hiredis.ReplyError):
                self._greeting = reply
            self.end(f"the server sent an unsolicited reply: {str(reply)[:200]}")
            return
        future, _ = self._unanswered.popleft()
        settle(future, reply)

    def fail_pending(self, reason: str) -> None:
        """Fail every command without a reply."""
        while self._unanswered:
            future, _ = self._unanswered.popleft()
            if not future.done():
                future.set_exception(unavailable(reason))

    @staticmethod
    async def _reply_to(command: bytes, reply: Awaitable[Any]) -> Any:
        try:
            return await reply
        except PublishError as error:  # `PublisherLink.fail_pending` fails every command as if it were a publish
            raise unavailable(f"the link ended before the server answered {command.decode()}") from error


def settle(future: asyncio.Future[Any], reply: Any) -> None:
    """End a future by a reply, unless the caller that waited for it was cancelled."""
    if future.done():
        return
    if isinstance(reply, hiredis.ReplyError):
        future.set_exception(reply)
    else:
        future.set_result(reply)


def pack_command(parts: Sequence[bytes]) -> bytes:
    """Return a command and its arguments as they are sent."""
    return b"*%d\r\n%b" % (len(parts), pack_arguments(parts))


def pack_arguments(parts: Sequence[bytes]) -> bytes:
    """Return arguments of a command as they are sent."""
    return b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
