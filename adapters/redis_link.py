"""One connection to a Redis server, spoken to without redis-py: what happens per message.

redis-py has connected and authenticated it; here its socket is taken over. RESP2
(https://redis.io/docs/latest/develop/reference/protocol-spec/), parsed by hiredis.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import hiredis
from redis.exceptions import AuthenticationError

from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import Connection

    from backplane.broadcaster import Sink
    from backplane.errors import BrokerError

__all__ = ["PublisherLink", "RedisLink", "RefusedError", "SubscriberLink", "abort", "unavailable"]


class RefusedError(Exception):
    """The server answered a command with an error."""


class RedisLink(asyncio.Protocol):
    """One authenticated connection, speaking RESP2 without redis-py.

    `_reader` and `_writer` of a redis-py connection are its only private names in use; they are the same from 5.0 to
    8.1.
    """

    def __init__(self, on_lost: Callable[[BrokerError], None]) -> None:
        self._on_lost = on_lost
        self._parser = hiredis.Reader()
        self._connection: Connection | None = None
        self._transport: asyncio.Transport | None = None
        self._checked: asyncio.Future[None] | None = None
        self.closed = asyncio.Event()
        self.closed.set()

    @property
    def is_open(self) -> bool:
        """Whether it was taken over and has not ended."""
        return not self.closed.is_set()

    def take_over(self, connection: Connection) -> None:
        """Make `connection`'s socket ours. The object is kept: collected, it would close the socket."""
        writer = connection._writer  # pyright: ignore[reportPrivateUsage]
        assert writer is not None
        transport = cast("asyncio.Transport", writer.transport)
        transport.set_protocol(self)
        self._connection = connection
        self._transport = transport
        self.closed.clear()

    async def check(self) -> None:
        """Ask for one answer: a server that wants a password nobody gave says so only now.

        Raises:
            AuthenticationError: The server wants one.
        """
        self._checked = asyncio.get_running_loop().create_future()
        self.write(b"*1\r\n$4\r\nPING\r\n")
        await self._checked

    def write(self, data: bytes) -> None:
        """Hand `data` to the transport."""
        assert self._transport is not None
        self._transport.write(data)

    def abort(self) -> None:
        """End it at once; `closed` tells when that is done."""
        if self._connection is not None:
            abort(self._connection)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        parser = self._parser
        parser.feed(data)
        try:
            while (reply := parser.gets()) is not False:
                if self._checked is None:
                    self.reply_received(reply)
                else:
                    self._check_received(reply)
        except hiredis.ProtocolError as error:
            self._end(f"the server sent what is not RESP: {error}")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end."""
        self._end(f"the connection ended{f': {exc}' if exc else ''}")
        self.abort()
        self.closed.set()

    def reply_received(self, reply: Any) -> None:
        """Take one reply, or one message."""
        raise NotImplementedError

    def fail_pending(self, words: str) -> None:
        """Tell whoever waits for a reply that none will come, and why."""
        raise NotImplementedError

    def _check_received(self, reply: Any) -> None:
        checked, self._checked = self._checked, None
        if checked is None or checked.done():
            return
        words = str(reply) if isinstance(reply, hiredis.ReplyError) else ""
        if words.startswith("NOAUTH"):
            checked.set_exception(AuthenticationError(words))
        elif words.startswith(("LOADING", "MASTERDOWN")):
            checked.set_exception(ConnectionRefusedError(words))
        else:  # any other word, a PING that an ACL denies too, is a server that answers
            checked.set_result(None)

    def _end(self, words: str) -> None:
        if self._checked is not None and not self._checked.done():
            self._checked.set_exception(ConnectionResetError(words))
        self.fail_pending(words)
        self._on_lost(unavailable(words))


class PublisherLink(RedisLink):
    """Sends what is published in one pass of the event loop in one write; answers come back in order."""

    def __init__(self, on_lost: Callable[[BrokerError], None], max_pending_bytes: int) -> None:
        super().__init__(on_lost)
        self._max_pending_bytes = max_pending_bytes
        self._pending_bytes = 0
        self._unsent: list[bytes] = []
        self._unanswered: deque[tuple[asyncio.Future[Any], int]] = deque()

    async def publish(self, name: bytes, payload: bytes) -> None:
        """Send PUBLISH and wait for its answer."""
        if not self.is_open:
            raise unavailable("the link is lost")
        size = len(name) + len(payload)
        if self._pending_bytes and self._pending_bytes + size > self._max_pending_bytes:
            raise PublishError(
                f"{self._pending_bytes:,} bytes await the server's answer; publish slower, or raise max_pending_bytes",
                adapter="redis",
                retriable=True,
            )
        await self._send(
            b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(payload), payload), size
        )

    async def server_info(self) -> str:
        """Return what `INFO server` says, or nothing where the server does not say it.

        Raises:
            BrokerUnavailableError: The link ended.
        """
        told = await self._ask(b"INFO", b"server")
        return told.decode(errors="replace") if isinstance(told, bytes) else ""

    async def role(self) -> str:
        """Return the first word of `ROLE`, `master` or `slave`, or nothing where the server does not say it.

        Raises:
            BrokerUnavailableError: The link ended.
        """
        told = await self._ask(b"ROLE")
        return "" if told is None else str(told[0], "ascii")

    async def _ask(self, verb: bytes, *words: bytes) -> Any:
        """Return the answer, `None` where the server refuses: NOPERM, or a command that was renamed."""
        if not self.is_open:
            raise unavailable("the link is lost")
        try:
            return await self._send(_pack(verb, list(words)), 0)
        except PublishOutcomeUnknownError as error:
            raise unavailable(f"the link ended before the server answered {verb.decode()}") from error
        except PublishError:
            return None

    def _send(self, command: bytes, size: int) -> asyncio.Future[Any]:
        """Send `command` with all others of this pass of the event loop; its reply is the future's result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if not self._unsent:
            loop.call_soon(self._flush)
        self._unsent.append(command)
        self._unanswered.append((future, size))
        self._pending_bytes += size
        return future

    def reply_received(self, reply: Any) -> None:
        """Answer the oldest command."""
        if not self._unanswered:  # a word nobody asked for, such as a farewell
            return
        future, size = self._unanswered.popleft()
        self._pending_bytes -= size
        if future.done():  # cancelled
            return
        if isinstance(reply, hiredis.ReplyError):
            future.set_exception(PublishError(str(reply), adapter="redis"))
        else:
            future.set_result(reply)

    def fail_pending(self, words: str) -> None:
        """Fail every publish: what never left for certain, what awaited its answer as unknown."""
        unsent = len(self._unsent)
        self._unsent.clear()
        while self._unanswered:
            future, _ = self._unanswered.popleft()
            if not future.done():
                sent = len(self._unanswered) >= unsent
                future.set_exception(_unknown(words) if sent else unavailable(words))
        self._pending_bytes = 0

    def _flush(self) -> None:
        if self._unsent:
            commands = b"".join(self._unsent)
            self._unsent.clear()
            self.write(commands)


class SubscriberLink(RedisLink):
    """Receives messages; SUBSCRIBE and UNSUBSCRIBE are confirmed name by name, in the order they were sent."""

    def __init__(self, on_lost: Callable[[BrokerError], None], sink: Sink) -> None:
        super().__init__(on_lost)
        self._sink = sink
        self._channels: dict[bytes, str] = {}
        self._asked: deque[_Asked] = deque()

    async def subscribe(self, names: dict[bytes, str]) -> None:
        """Subscribe to all of `names`, or to none.

        Raises:
            RefusedError: The server refused.
        """
        self._channels.update(names)
        try:
            await self._ask(b"SUBSCRIBE", list(names))
        except RefusedError:
            for name in names:
                self._channels.pop(name, None)
            raise

    async def unsubscribe(self, names: list[bytes]) -> None:
        """Drop `names`, here at once and then at the server."""
        for name in names:
            self._channels.pop(name, None)
        await self._ask(b"UNSUBSCRIBE", names)

    async def _ask(self, verb: bytes, names: list[bytes]) -> None:
        if not self.is_open:
            raise unavailable("the link is lost")
        if not names:  # a bare UNSUBSCRIBE would drop every channel
            return
        asked = _Asked(len(names))
        self._asked.append(asked)
        self.write(_pack(verb, names))
        await asked.answered

    def reply_received(self, reply: Any) -> None:
        """Deliver a message, or count a confirmation."""
        if isinstance(reply, hiredis.ReplyError):
            if self._asked:
                self._asked.popleft().refuse(RefusedError(str(reply)))
        elif reply[0] == b"message":
            channel = self._channels.get(reply[1])
            if channel is not None:
                self._sink.deliver(channel, reply[2])
        elif self._asked and self._asked[0].confirm():
            self._asked.popleft()

    def fail_pending(self, words: str) -> None:
        """Fail every SUBSCRIBE and UNSUBSCRIBE on its way."""
        while self._asked:
            self._asked.popleft().refuse(unavailable(words))


class _Asked:
    """One SUBSCRIBE or UNSUBSCRIBE on its way."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def confirm(self) -> bool:
        """Count one confirmed name; returns whether it was the last."""
        self._left -= 1
        if self._left == 0 and not self.answered.done():
            self.answered.set_result(None)
        return self._left == 0

    def refuse(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)


def _pack(verb: bytes, names: list[bytes]) -> bytes:
    words = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in (verb, *names))
    return b"*%d\r\n%b" % (len(names) + 1, words)


def abort(connection: Connection) -> None:
    """Close the socket at once, and leave redis-py nothing to warn about."""
    writer = connection._writer  # pyright: ignore[reportPrivateUsage]
    if writer is not None:
        writer.transport.abort()
    connection._reader = connection._writer = None  # pyright: ignore[reportPrivateUsage]


def unavailable(words: str) -> BrokerUnavailableError:
    """Return the error for a link that is not there."""
    return BrokerUnavailableError(words, adapter="redis")


def _unknown(words: str) -> PublishOutcomeUnknownError:
    return PublishOutcomeUnknownError(
        f"{words}, before the server's answer; it may have been published", adapter="redis"
    )
