"""Outbox to socket: what goes out to one client, by ASGI or by the server's direct lane.

Both ways keep the order, wait for nobody, and have no task while there is nothing to send.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, Protocol

from backplane.concurrency.context import begin, run_in
from backplane.fanout.frames import encode_frame
from backplane.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from contextvars import Context

    from backplane.fanout.batch import Batch
    from backplane.fanout.outbox import Outbox
    from backplane.lane import Lane
    from backplane.message import Gap

__all__ = ["AsgiSender", "LaneSender", "Sender", "SenderCallbacks", "SocketGoneError"]

# What waited is joined for the transport up to so many bytes at once: about what makes it pause.
_JOIN_BYTES: Final = 64 * 1024

# Within this time an event loop that cancels its tasks has ended.
_LOOP_END_SECONDS: Final = 0.1

_NOTHING: Final[Iterator[Message]] = iter(())


class SocketGoneError(Exception):
    """The client is gone. Never leaves this package: a client that went away is an ordinary end."""


class SenderCallbacks(Protocol):
    """Who has the client."""

    def too_slow(self, item: Message | Gap) -> None:
        """The outbox is full and its policy is `close`."""

    def send_failed(self, error: Exception) -> None:
        """The client is gone (`SocketGoneError`), or the server failed."""

    def client_gone(self) -> None:
        """Nothing can be sent any more; what the client said before may still be received."""


class Sender(ABC):
    """One client's outbox, and the way from there to its socket.

    Before `open` and while the client does not read, what comes waits in the outbox; after `close` it is dropped.
    """

    __slots__ = ("_closed", "_context", "_outbox", "_owner")

    def __init__(self, outbox: Outbox, owner: SenderCallbacks, context: Context) -> None:
        self._outbox = outbox
        self._owner = owner
        self._context = context
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
        """Let messages wait, by the policy; in the connection's Context, as the application's functions have a say."""
        run_in(self._context, self._queue_here, messages)

    def _queue_here(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if self._closed:  # by what the application does when one is dropped
                return self._outbox.clear()
            if not self._outbox.offer(message):
                return self._owner.too_slow(message)


class AsgiSender(Sender):
    """Sends by ASGI, on any server.

    A send is begun in the pass of the event loop that brought the message, and is mostly over at once. It runs in the
    connection's Context and in a task: whatever wraps `send` in a middleware finds the variables of its own client, and
    may use timeouts, cancel scopes, locks and task groups. A task is there for longer than a pass only for a send that
    the server makes wait.
    """

    __slots__ = ("_direct", "_loop", "_open", "_send", "_sending", "_task")

    def __init__(
        self,
        outbox: Outbox,
        owner: SenderCallbacks,
        send: Callable[[str | bytes], Coroutine[Any, Any, None]],
        context: Context,
    ) -> None:
        super().__init__(outbox, owner, context)
        self._send = send
        self._loop = asyncio.get_running_loop()  # to ask for it costs a system call on Python 3.11
        self._open = False
        self._sending = False
        self._direct: Iterator[Message] = _NOTHING  # what is being sent without having waited in the outbox
        self._task: asyncio.Task[None] | None = None  # of a send that waits

    def open(self) -> None:
        """The handshake is done."""
        self._open = True
        self._send_on()

    def offer(self, batch: Batch, /) -> None:
        """Begin to send, or queue behind what waits."""
        if self._closed:
            return
        if self._sending or not self._open:
            return self._queue((*self._direct, *batch))
        self._direct = iter(batch)
        self._send_on()

    async def sent(self) -> None:
        """Wait for the sends that wait, if there is one."""
        while self._task is not None and self._task is not asyncio.current_task():  # a middleware may send too
            await asyncio.wait([self._task])

    def close(self) -> None:
        """Drop what waits."""
        self._closed = True
        self._outbox.clear()
        if self._task is not None:
            self._task.cancel()

    @property
    def is_waiting(self) -> bool:
        """Whether a send waits."""
        return self._task is not None and not self._closed

    def _send_on(self) -> None:
        """Send until nothing is left, or a send waits."""
        self._sending = True
        try:
            for message in self._direct:
                if (task := begin(self._send(message.data), self._context, self._loop)) is not None:
                    return self._wait_for(task)
                if self._closed:
                    break
            while not self._closed and (item := self._outbox.take()) is not None:
                if isinstance(item, Message):
                    task = begin(self._send(item.data), self._context, self._loop)
                    if task is not None:
                        return self._wait_for(task)
        except asyncio.CancelledError as error:
            self._fail(_cancelled_by_another(error))
        except Exception as error:
            self._fail(error)
        self._sending = False
        self._direct = _NOTHING

    def _wait_for(self, task: asyncio.Task[None]) -> None:
        self._task = task
        task.add_done_callback(self._waited)
        if self._closed:
            task.cancel()
        elif rest := tuple(self._direct):
            self._queue(rest)

    def _waited(self, task: asyncio.Task[None]) -> None:
        self._task = None
        try:
            task.result()
        except asyncio.CancelledError as error:
            fault = _cancelled_by_another(error)
            if task.cancelling():  # as all tasks are at the end of the event loop, which is nobody's fault
                self._loop.call_later(_LOOP_END_SECONDS, self._fail, fault)
            else:
                self._fail(fault)
        except Exception as error:
            self._fail(error)
        else:
            self._send_on()

    def _fail(self, error: Exception) -> None:
        if not self._closed:
            self._closed = True
            self._outbox.clear()
            self._owner.send_failed(error)


def _cancelled_by_another(error: asyncio.CancelledError) -> RuntimeError:
    """Return what it is where `close` has not cancelled the send: a fault of who has cancelled it, or its own."""
    fault = RuntimeError("a send was cancelled, or waited for what was")
    fault.__cause__ = error
    return fault


class LaneSender(Sender):
    """Writes frames to the server's transport, around ASGI; is the `LaneWriter` of its lane."""

    __slots__ = ("_bits", "_lane", "_nothing_waits", "_write")

    def __init__(self, outbox: Outbox, owner: SenderCallbacks, lane: Lane, context: Context) -> None:
        super().__init__(outbox, owner, context)
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
