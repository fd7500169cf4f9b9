"""Outbox to socket: what goes out to one client, by ASGI or by the server's direct lane.

Both ways keep the order, wait for nobody, and use no task while nothing waits.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, Protocol

from backplane.frames import encode_frame
from backplane.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Sequence

    from backplane.batch import Batch
    from backplane.lane import Lane
    from backplane.message import Gap
    from backplane.outbox import Outbox

__all__ = ["LaneOutgoing", "Outgoing", "Owner", "PlainOutgoing", "SocketGoneError"]

# What waited is joined for the transport up to so many bytes at once: about what makes it pause.
_JOIN_BYTES: Final = 64 * 1024


class SocketGoneError(Exception):
    """The client is gone. Never leaves this package: a client that went away is an ordinary end."""


class Owner(Protocol):
    """Who has the client."""

    def too_slow(self, item: Message | Gap) -> None:
        """The outbox is full and its policy is `close`."""

    def send_failed(self, error: Exception) -> None:
        """The client is gone (`SocketGoneError`), or the server failed."""

    def client_gone(self) -> None:
        """Nothing can be sent any more; what the client said before may still be received."""


class Outgoing(ABC):
    """One client's outbox, and the way from there to its socket.

    Before `open` and while the client does not read, what comes waits in the outbox; after `close` it is dropped.
    """

    __slots__ = ("_closed", "_outbox", "_owner")

    def __init__(self, outbox: Outbox, owner: Owner) -> None:
        self._outbox = outbox
        self._owner = owner
        self._closed = False

    @abstractmethod
    def open(self) -> None:
        """The handshake is done: what waits may go."""

    @abstractmethod
    def offer(self, batch: Batch, /) -> None:
        """Send messages, behind what waits. Tells the owner if it is too slow."""

    @abstractmethod
    async def sent(self) -> None:
        """Wait until nothing waits any more. Cancelling changes nothing."""

    @abstractmethod
    def close(self) -> None:
        """Drop what waits, and send nothing more."""

    @property
    @abstractmethod
    def is_waiting(self) -> bool:
        """Whether something is not sent yet."""

    def _queue(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if self._closed:  # by what the application does when one is dropped
                return self._outbox.clear()
            if not self._outbox.offer(message):
                return self._owner.too_slow(message)


class PlainOutgoing(Outgoing):
    """Sends by ASGI, on any server.

    A send is begun in the pass of the event loop that brought the message, and is mostly over at once; a task exists
    only for one that the server makes wait. So a middleware that wraps `send` runs up to its first wait outside any
    task of its own: it must not begin a timeout or a task group there.
    """

    __slots__ = ("_open", "_send", "_task")

    def __init__(self, outbox: Outbox, owner: Owner, send: Callable[[str | bytes], Coroutine[Any, Any, None]]) -> None:
        super().__init__(outbox, owner)
        self._send = send
        self._open = False
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """The handshake is done."""
        self._open = True
        self._send_waiting()

    def offer(self, batch: Batch, /) -> None:
        """Begin to send, or queue behind what waits."""
        if self._closed:
            return
        if self._task is not None or not self._open or self._outbox:
            return self._queue(batch)
        for index, message in enumerate(batch):
            if (rest := self._begin(message)) is not None:
                self._queue(batch[index + 1 :])
                self._go_on(rest)
            if rest is not None or self._closed:
                return

    async def sent(self) -> None:
        """Wait for the task that sends, if there is one."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def close(self) -> None:
        """Drop what waits."""
        self._closed = True
        self._outbox.clear()
        if self._task is not None:
            self._task.cancel()

    @property
    def is_waiting(self) -> bool:
        """Whether the task is there."""
        return self._task is not None and not self._closed

    def _send_waiting(self) -> None:
        while not self._closed and (item := self._outbox.take()) is not None:
            if isinstance(item, Message) and (rest := self._begin(item)) is not None:
                return self._go_on(rest)

    def _begin(self, message: Message) -> _Rest | None:
        """Send as far as it goes without waiting; return what is left of it."""
        sending = self._send(message.data)
        try:
            first = sending.send(None)
        except StopIteration:
            return None
        except asyncio.CancelledError:
            self._fail(SocketGoneError())
            return None
        except Exception as error:
            self._fail(error)
            return None
        return _Rest(sending, first)

    def _go_on(self, rest: _Rest) -> None:
        if self._closed:
            return rest.close()
        self._task = asyncio.create_task(self._finish(rest))
        self._task.add_done_callback(lambda _: rest.close())  # a task can be cancelled before it has begun

    async def _finish(self, rest: _Rest) -> None:
        try:
            await rest
            while (item := self._outbox.take()) is not None:
                if isinstance(item, Message):
                    await self._send(item.data)
        except Exception as error:
            self._task = None
            self._fail(error)
        finally:
            self._task = None

    def _fail(self, error: Exception) -> None:
        self._closed = True
        self._outbox.clear()
        self._owner.send_failed(error)


class _Rest:
    """A coroutine that was begun outside any task, and what it waits for: awaited, it goes on."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], first: Any) -> None:
        self._coroutine = coroutine
        self._first = first

    def __await__(self) -> Generator[Any, Any, None]:
        waits_for = self._first
        try:
            while True:
                try:
                    sent = yield waits_for
                except GeneratorExit:
                    self._coroutine.close()
                    raise
                except BaseException as error:  # a cancellation, mostly
                    waits_for = self._coroutine.throw(error)
                else:
                    waits_for = self._coroutine.send(sent)
        except StopIteration:
            return

    def close(self) -> None:
        """End it where it stands, if it has not ended."""
        self._coroutine.close()


class LaneOutgoing(Outgoing):
    """Writes frames to the server's transport, around ASGI; is the `LaneUser` of its lane."""

    __slots__ = ("_bits", "_lane", "_nothing_waits", "_write")

    def __init__(self, outbox: Outbox, owner: Owner, lane: Lane) -> None:
        super().__init__(outbox, owner)
        self._lane = lane
        self._bits: int | None = None
        self._write: Callable[[bytes], object] | None = None  # only while nothing waits and the transport takes more
        self._nothing_waits: asyncio.Future[None] | None = None

    def open(self) -> None:
        """The handshake is done."""
        if not self._closed:
            self._bits = self._lane.deflate_window_bits
            self._lane.attach(self)

    def offer(self, batch: Batch, /) -> None:
        """Write, or queue behind what waits."""
        write = self._write
        if write is not None:
            write(batch.frames if self._bits is None else batch.compressed(self._bits))
        elif not self._closed:
            self._queue(batch)

    async def sent(self) -> None:
        """Wait until the transport has taken everything."""
        while self._outbox and not self._closed:
            if self._nothing_waits is None:
                self._nothing_waits = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._nothing_waits])

    def close(self) -> None:
        """Drop what waits."""
        self._closed = True
        self._write = None
        self._outbox.clear()
        self._tell_who_waits()

    @property
    def is_waiting(self) -> bool:
        """Whether the transport has not taken everything."""
        return bool(self._outbox)

    def lane_writable(self, writable: bool, /) -> None:
        """The transport takes more, and gets what waits; or it takes no more."""
        if not writable or self._closed:
            self._write = None
            return
        self._write = write = self._lane.write
        try:
            while self._outbox and self._write is not None:  # a write can make the transport pause
                write(self._joined())
        except Exception as error:  # the server calls this, which must not pay for its transport
            return self._owner.send_failed(error)
        if not self._outbox:
            self._tell_who_waits()

    def lane_closed(self) -> None:
        """The connection is no longer open."""
        if not self._closed:
            self.close()
            self._owner.client_gone()

    def _joined(self) -> bytes:
        frames: list[bytes] = []
        size = 0
        while size < _JOIN_BYTES and (item := self._outbox.take()) is not None:
            if isinstance(item, Message):
                frames.append(encode_frame(item.data))
                size += len(frames[-1])
        return b"".join(frames)

    def _tell_who_waits(self) -> None:
        if self._nothing_waits is not None:
            if not self._nothing_waits.done():
                self._nothing_waits.set_result(None)
            self._nothing_waits = None
