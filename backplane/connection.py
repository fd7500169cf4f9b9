"""One client: outbox to socket, receive, close. Knows no web framework; `Socket` is what it needs of one."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from backplane.codec import plain
from backplane.member import Member
from backplane.message import Gap, Message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from backplane.hub import Hub
    from backplane.outbox import Outbox

__all__ = ["CloseCode", "Connection", "Socket", "SocketGoneError"]

logger = logging.getLogger("backplane.connection")

# A client that does not read does not read a close frame either.
_CLOSE_SECONDS: Final = 1.0


class CloseCode:
    """Close codes this package sends (RFC 6455 section 7.4.1 and the IANA registry)."""

    NORMAL: Final = 1000
    """The handler ended."""
    INTERNAL_ERROR: Final = 1011
    """The handler raised."""
    SERVICE_RESTART: Final = 1012
    """The worker ends: reconnect, after a random pause, to another one."""
    TRY_AGAIN_LATER: Final = 1013
    """The client was further behind than its outbox allows: reconnect and reload."""


class SocketGoneError(Exception):
    """The client is gone. Never leaves this package: a client that went away is an ordinary end."""


class Socket(Protocol):
    """An accepted WebSocket, or one about to be."""

    async def send(self, data: str | bytes) -> None:
        """Send one message; waits while the client does not read.

        Raises:
            SocketGoneError: It is gone.
        """
        ...

    async def receive(self) -> str | bytes | None:
        """Return the client's next message, or `None` at its end."""
        ...

    async def close(self, code: int, reason: str) -> None:
        """Close; a client that is gone is no error."""
        ...


class Connection(Member):
    """One client, for as long as `Backplane.connect` is entered.

    Iterating yields what the client says, `str` or `bytes`, and ends when either side closed. What is published to its
    channels is sent to it in order per channel, whether the handler iterates or not, but its end is only noticed while
    iterating or sending.

    Not safe to use from another thread.
    """

    __slots__ = (
        "_close_with",
        "_closing",
        "_open",
        "_outbox",
        "_receiving",
        "_sending",
        "_socket",
    )

    def __init__(self, socket: Socket, hub: Hub, outbox: Outbox) -> None:
        super().__init__(hub)
        self._socket = socket
        self._outbox = outbox
        self._open = False
        self._close_with: tuple[int, str] | None = None  # asked for before the handshake was done
        self._sending: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._receiving: asyncio.Timeout | None = None

    def __repr__(self) -> str:
        state = "ended" if self._ended else "open" if self._open else "joining"
        return f"<Connection {self.id} {state} channels={list(self._channels)}>"

    async def send(self, data: object) -> None:
        """Send `data` to this client alone, behind what already waits for it; returns when the server has taken it.

        `str` goes as text, `bytes` as binary, anything else as JSON text. A client that is gone or was cut is an
        ordinary end: the call returns. A client that does not read makes it wait; the outbox's bound counts here too.

        Raises:
            InvalidDataError: `data` is none of these.
        """
        self.offer([Message(channel="", data=plain(data))])
        if self._sending is not None:
            await asyncio.wait([self._sending])

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close with `code`; iteration ends, what still waits is dropped. Closing again changes nothing."""
        self.end(code, reason)
        if self._closing is not None:
            await asyncio.wait([self._closing])

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        return self

    async def __anext__(self) -> str | bytes:
        data = None if self._ended else await self._receive()
        if data is None:
            self._end()
            raise StopAsyncIteration
        return data

    def offer(self, messages: Sequence[Message]) -> None:
        """Take messages for the client: the hub's side."""
        if self._ended:
            return None
        for message in messages:
            if not self._outbox.offer(message):
                logger.warning("connection %s is too slow for channel %r: closing it", self.id, message.channel)
                return self.end(CloseCode.TRY_AGAIN_LATER, "too slow")
        self._start_sending()

    def gap(self, gap: Gap) -> None:
        """Learn that messages may be missing: the hub's side."""
        logger.debug("gap for connection %s on channel %r: %s", self.id, gap.channel, gap.reason)

    def opened(self) -> None:
        """The handshake is done: what waited since the joins may go, a close too."""
        self._open = True
        if self._close_with is not None:
            self._closing = asyncio.create_task(self._close_socket(*self._close_with))
        self._start_sending()

    def end(self, code: int, reason: str) -> None:
        """Close without waiting: iteration ends, and the close frame is sent if the client still reads."""
        if self._ended:
            return
        self._end()
        if self._open:
            self._closing = asyncio.create_task(self._close_socket(code, reason))
        else:
            self._close_with = (code, reason)

    async def finish(self, code: int) -> None:
        """Flush what waits, close, and await every task: the end of the handler."""
        try:
            if not self._ended and self._sending is not None:
                await asyncio.wait([self._sending], timeout=_CLOSE_SECONDS)
            self.end(code, "")
            tasks = [task for task in (self._sending, self._closing) if task is not None]
            if tasks:
                await asyncio.wait(tasks)
        except asyncio.CancelledError:
            self.abandon()
            raise

    def abandon(self) -> None:
        """End at once, without a word to the client: the handler was cancelled."""
        self._end()
        if self._closing is not None:
            self._closing.cancel()

    def _end(self) -> None:
        if self._ended:
            return
        self._leave_all()
        self._outbox.clear()
        if self._sending is not None:
            self._sending.cancel()
        if self._receiving is not None:
            self._receiving.reschedule(0)

    def _start_sending(self) -> None:
        if self._open and self._sending is None and len(self._outbox):
            self._sending = asyncio.create_task(self._send_waiting())

    async def _send_waiting(self) -> None:
        """Send until nothing waits. A task exists only for as long as this takes."""
        try:
            while (item := self._outbox.take()) is not None:
                if isinstance(item, Message):
                    await self._socket.send(item.data)
        except SocketGoneError:
            self._sending = None
            self._end()
        except Exception:
            logger.exception("connection %s failed to send", self.id)
            self._sending = None
            self._end()
        finally:
            self._sending = None

    async def _receive(self) -> str | bytes | None:
        try:
            # A deadline that only `_end` sets: the one way to wake the handler without a second task.
            async with asyncio.timeout(None) as self._receiving:
                return await self._socket.receive()
        except TimeoutError:
            if self._ended:
                return None
            raise
        finally:
            self._receiving = None

    async def _close_socket(self, code: int, reason: str) -> None:
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._socket.close(code, reason)
        except TimeoutError:
            logger.debug("connection %s does not read its close frame", self.id)
        except Exception:
            logger.exception("connection %s failed to close", self.id)
