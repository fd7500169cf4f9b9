"""One connection to a Redis server: what is asked on it, and what happens per message.

RESP2 (https://redis.io/docs/latest/develop/reference/protocol-spec/), parsed by hiredis: every server speaks it, and a
reply cannot be taken for a message.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import hiredis

from backplane.adapters.redis.error import is_protocol_error, outcome_unknown, publish_error, unavailable
from backplane.adapters.shared.fork import close_in_children
from backplane.errors import PublishError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backplane.broadcaster import Sink
    from backplane.errors import BrokerError

__all__ = ["Address", "PublisherLink", "RedisLink", "Server", "SubscriberLink"]

Address = tuple[str, int] | str
"""An IP address with a port, or the path of a Unix socket."""

# Answers that arrived while the process was paused are read within this time.
_GRACE_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What a server reports about itself when a connection opens.

    Attributes:
        role: The first word of `ROLE`: `master`, `slave`, `sentinel`; empty where an ACL does not grant it.
        primary: Of a replica, whose replica it is.
        run_id: The random name of its process; empty where `INFO` is not granted.
        is_cluster: It is a node of a Redis Cluster, which takes a publish to all nodes.
    """

    role: str = ""
    primary: str = ""
    run_id: str = ""
    is_cluster: bool = False


class RedisLink(asyncio.Protocol):
    """One connection. Its owner is notified of its end once it was adopted.

    Attributes:
        address: Where it was made to.
        server: What the server reported then.
        loss: Why it ended; `None` while it stands, and before it was made.
        closed: Set while it holds no socket.
        streams: What made the socket. Kept: collected, it would close it.
    """

    def __init__(self) -> None:
        self.address: Address = ""
        self.server: Server = Server()
        self.loss: BrokerError | None = None
        self.closed: asyncio.Event = asyncio.Event()
        self.closed.set()
        self.streams: object = None
        self._parser = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._on_lost: Callable[[BrokerError], None] | None = None
        # Each with what it stands for: bytes to publish, or names to subscribe to.
        self._unanswered: deque[tuple[asyncio.Future[Any], int]] = deque()
        self._question: asyncio.Future[Any] | None = None
        self._greeting: hiredis.ReplyError | None = None  # "max number of clients reached": sent unasked, and the end

    def adopt(self, on_lost: Callable[[BrokerError], None]) -> None:
        """Take it into use; `on_lost` is called once, at its end.

        Raises:
            BrokerUnavailableError: It has ended meanwhile.
        """
        if self.loss is not None:
            raise self.loss
        self._on_lost = on_lost

    async def ask(self, *words: bytes) -> Any:
        """Send a command and return its answer.

        Raises:
            hiredis.ReplyError: The answer is an error.
            BrokerUnavailableError: The link ended.
        """
        return await self._answer_of(self.send(_pack(words)), words[0])

    async def check(self, *words: bytes) -> Any:
        """Ask, and end a link whose server still owes the answer to the last check.

        Called once per probe interval. Cancelled, it leaves the question under way.

        Raises:
            hiredis.ReplyError: The answer is an error.
            BrokerUnavailableError: The link ended, or is ended now.
        """
        if self._question is not None and not self._question.done():
            await asyncio.wait([self._question], timeout=_GRACE_SECONDS)
            if not self._question.done():
                self.end("no answer from one check to the next")
        self._question = self.send(_pack(words))
        self._question.add_done_callback(_retrieve)
        return await self._answer_of(asyncio.shield(self._question), words[0])

    def send(self, command: bytes, count: int = 0) -> asyncio.Future[Any]:
        """Send a packed command at once; its answer is the future's result.

        Raises:
            BrokerUnavailableError: The link ended.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._greeting is not None:
            _settle(future, self._greeting)
            return future
        if self.loss is not None or self._transport is None:
            raise self.loss or unavailable("the link is not made")
        self._unanswered.append((future, count))
        self._transport.write(command)
        return future

    def end(self, words: str) -> None:
        """End it at once, and fail all that waits for an answer; `closed` is set when the socket is closed."""
        if self.loss is not None:
            return
        self.loss = unavailable(words)
        if self._transport is not None:
            self._transport.abort()
        if self._on_lost is not None:  # first: what was not sent yet can be taken over
            self._on_lost(self.loss)
        self.fail_pending(words)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket."""
        self._transport = cast("asyncio.Transport", transport)
        close_in_children(self, transport)
        self.closed.clear()
        if self.loss is not None:  # given up while it was being made
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        parser = self._parser
        parser.feed(data)
        try:
            while self.loss is None and (reply := parser.gets()) is not False:
                self.reply_received(reply)
        except hiredis.ProtocolError as error:
            self.end(f"the server sent what is not RESP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end."""
        self.end(f"the connection ended{f': {exc}' if exc else ''}")
        self.closed.set()

    def reply_received(self, reply: Any) -> None:
        """Answer the oldest command."""
        if not self._unanswered:  # whatever it is about, it must not get lost
            if self._on_lost is None and isinstance(reply, hiredis.ReplyError):
                self._greeting = reply
            self.end(f"the server sent what nobody had asked for: {str(reply)[:200]}")
            return
        future, _ = self._unanswered.popleft()
        _settle(future, reply)

    def fail_pending(self, words: str) -> None:
        """Fail every command that waits for its answer."""
        while self._unanswered:
            future, _ = self._unanswered.popleft()
            if not future.done():
                future.set_exception(unavailable(words))

    @staticmethod
    async def _answer_of(future: asyncio.Future[Any], verb: bytes) -> Any:
        try:
            return await future
        except PublishError as error:  # of a link that publishes
            raise unavailable(f"the link ended before the server answered {verb.decode()}") from error


class PublisherLink(RedisLink):
    """Sends what is published in one pass of the event loop in one write; answers come back in order.

    What is published before it is adopted waits for that, in order.
    """

    def __init__(self, max_pending_bytes: int) -> None:
        super().__init__()
        self._max_pending_bytes = max_pending_bytes
        self._pending_bytes = 0
        self._adopted = False
        self._misread = False
        self._unsent: list[tuple[bytes, asyncio.Future[Any], int]] = []

    @property
    def is_adopted(self) -> bool:
        """Whether it is in use."""
        return self._adopted

    def adopt(self, on_lost: Callable[[BrokerError], None]) -> None:
        """Take it into use, and send what waited for it."""
        super().adopt(on_lost)
        self._adopted = True
        self._flush()

    def inherit(self, other: PublisherLink) -> None:
        """Take over what `other`, which has ended, did not send."""
        self._unsent, other._unsent = other._unsent, []
        self._pending_bytes = sum(size for _, _, size in self._unsent)

    async def publish(self, name: bytes, payload: bytes) -> None:
        """Send PUBLISH and wait for its answer.

        Raises:
            BrokerUnavailableError: The link ended before it was sent.
            PublishError: The server refused it; `retriable` where it takes none at present, or where too much awaits
                its answer.
            PublishOutcomeUnknownError: The link ended before the answer.
        """
        if self.loss is not None:
            raise unavailable("the link is lost")
        size = len(name) + len(payload)
        if self._pending_bytes and self._pending_bytes + size > self._max_pending_bytes:
            raise PublishError(
                f"{self._pending_bytes:,} bytes await the server's answer; publish slower, or raise max_pending_bytes",
                adapter="redis",
                retriable=True,
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self._adopted and not self._unsent:
            loop.call_soon(self._flush)
        command = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(payload), payload)
        self._unsent.append((command, future, size))
        self._pending_bytes += size
        try:
            await future
        except hiredis.ReplyError as error:
            raise publish_error(error) from error

    def reply_received(self, reply: Any) -> None:
        """Answer the oldest command."""
        if self._unanswered:
            self._pending_bytes -= self._unanswered[0][1]
        super().reply_received(reply)
        if isinstance(reply, hiredis.ReplyError) and is_protocol_error(reply):
            # The server reads no further, and closes: what is published from now on must not meet that.
            self._misread = True
            self.end(f"the server ended the connection: {reply}")

    def fail_pending(self, words: str) -> None:
        """Fail every publish: what was not carried out for certain, what awaited its answer as unknown."""
        failure = unavailable if self._misread else outcome_unknown
        while self._unanswered:
            future, _ = self._unanswered.popleft()
            if not future.done():
                future.set_exception(failure(words))
        for _, future, _ in self._unsent:
            if not future.done():
                future.set_exception(unavailable(words))
        self._unsent.clear()
        self._pending_bytes = 0

    def _flush(self) -> None:
        commands: list[bytes] = []
        for command, future, size in self._unsent:
            if future.done():  # cancelled
                self._pending_bytes -= size
            else:
                commands.append(command)
                self._unanswered.append((future, size))
        self._unsent.clear()
        if commands and self._transport is not None:
            self._transport.write(b"".join(commands))


class SubscriberLink(RedisLink):
    """Receives messages; SUBSCRIBE and UNSUBSCRIBE are confirmed name by name, in the order they were sent."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink
        self._channels: dict[bytes, str] = {}
        self._abandoned: set[bytes] = set()
        self._confirmed = 0  # names of the oldest command

    async def subscribe(self, names: dict[bytes, str]) -> None:
        """Subscribe to all of `names`, or to none.

        Raises:
            hiredis.ReplyError: The server did not take it.
            BrokerUnavailableError: The link ended.
        """
        self._channels.update(names)
        try:
            await self._ask_for(b"SUBSCRIBE", list(names))
        except hiredis.ReplyError:
            for name in names:
                self._channels.pop(name, None)
            raise

    async def unsubscribe(self, names: Sequence[bytes]) -> None:
        """Drop `names`, here at once and then at the server; what it does not take at present is asked again later.

        Raises:
            BrokerUnavailableError: The link ended.
        """
        for name in names:
            self._channels.pop(name, None)
        try:
            await self._ask_for(b"UNSUBSCRIBE", names)
        except hiredis.ReplyError:
            self._abandoned.update(names)

    async def unsubscribe_abandoned(self) -> None:
        """Ask again for what the server did not take when it was asked."""
        abandoned, self._abandoned = self._abandoned - self._channels.keys(), set()
        await self.unsubscribe(list(abandoned))

    def reply_received(self, reply: Any) -> None:
        """Deliver a message, count a confirmation, or answer the oldest command."""
        kind: Any = reply[0] if reply.__class__ is list else None
        if kind == b"message":
            channel = self._channels.get(reply[1])
            if channel is not None:
                self._sink.deliver(channel, reply[2])
        elif kind in (b"subscribe", b"unsubscribe"):
            self._confirmation_received(kind, reply[1])
        else:
            self._confirmed = 0
            super().reply_received(reply)

    def _confirmation_received(self, kind: bytes, name: bytes) -> None:
        count = self._unanswered[0][1] if self._unanswered else 0
        if count:
            self._confirmed += 1
            if self._confirmed == count:
                self._confirmed = 0
                _settle(self._unanswered.popleft()[0], None)
        elif kind == b"unsubscribe" and (channel := self._channels.pop(name, None)) is not None:
            self._sink.revoked([channel], "the server ended the subscription")

    async def _ask_for(self, verb: bytes, names: Sequence[bytes]) -> None:
        if names:  # a bare UNSUBSCRIBE would drop every channel
            await self.send(_pack([verb, *names]), len(names))
        elif self.loss is not None:
            raise unavailable("the link is lost")


def _settle(future: asyncio.Future[Any], reply: Any) -> None:
    if future.done():  # cancelled
        return
    if isinstance(reply, hiredis.ReplyError):
        future.set_exception(reply)
    else:
        future.set_result(reply)


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Look at the error of a question that nobody waits for any more: it is not a forgotten one."""
    if not future.cancelled():
        future.exception()


def _pack(words: Sequence[bytes]) -> bytes:
    """Return a command as it is sent."""
    return b"*%d\r\n%b" % (len(words), b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
