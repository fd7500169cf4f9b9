"""Outbox to socket: what is sent to one client, by ASGI or by the server's direct lane.

Both keep the order, make no caller wait, and have no task while there is nothing to send.
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
    from backplane.statistics import LossReason

__all__ = ["AsgiSender", "LaneSender", "Sender", "SenderCallbacks", "SocketGoneError"]

# So many bytes of what waits are written at once: about as many as make a transport pause.
_JOIN_BYTES: Final = 64 * 1024

# An event loop that cancels its tasks has ended after this time.
_LOOP_END_SECONDS: Final = 0.1

_NOTHING: Final[Iterator[Message]] = iter(())


class SocketGoneError(Exception):
    """The client is gone. Never raised to an application: a client that leaves is an ordinary end."""


class SenderCallbacks(Protocol):
    """Callbacks of the sender."""

    def outbox_full(self, item: Message | Gap) -> None:
        """The outbox is full and its policy is `close`."""

    def send_failed(self, error: Exception) -> None:
        """The client is gone (`SocketGoneError`), or the server failed."""

    def transport_closed(self) -> None:
        """Nothing can be sent any more; what the client sent before can still be received."""

    def client_has_read(self) -> None:
        """The client has read after it had not: what was held up goes on."""

    def messages_lost(self, reason: LossReason, count: int, /) -> None:
        """So many messages were offered, and are not sent."""


class Sender(ABC):
    """Sends what is offered for one client, and what waits in its outbox, to its socket.

    Before `open` and while the client does not read, messages wait in the outbox; after `close` they are dropped.

    Args:
        outbox: What waits, with its bound and policy.
        callbacks: What is notified.
        context: The Context of the connection, in which the application's functions and the sends run.
    """

    __slots__ = ("_callbacks", "_closed", "_context", "_outbox")

    def __init__(self, outbox: Outbox, callbacks: SenderCallbacks, context: Context) -> None:
        self._outbox = outbox
        self._callbacks = callbacks
        self._context = context
        self._closed = False

    @abstractmethod
    def open(self) -> None:
        """The handshake is done: send what waits."""

    @abstractmethod
    def offer(self, batch: Batch, /) -> None:
        """Send messages, after what waits. Calls `outbox_full` where the client is too slow."""

    def offer_missed(self, batch: Batch, /) -> None:
        """Send what a join gives back, after what waits: however much it is, it makes no client too slow."""
        self._outbox.allow(batch[0].channel, len(batch), batch.size_bytes)
        self.offer(batch)
        self._outbox.settle()

    @abstractmethod
    async def drained(self) -> None:
        """Return when nothing waits any more. Cancelling changes nothing."""

    @abstractmethod
    def close(self) -> None:
        """Drop what waits, and send nothing more."""

    def release(self) -> None:
        """Drop the reference to the connection, after `close`."""
        del self._callbacks

    @property
    @abstractmethod
    def is_waiting(self) -> bool:
        """Whether something is not sent yet."""

    def _queue(self, messages: Sequence[Message]) -> None:
        """Put messages into the outbox; in the connection's Context, as the policy may call the application."""
        run_in(self._context, self._put_into_outbox, messages)

    def _put_into_outbox(self, messages: Sequence[Message]) -> None:
        for place, message in enumerate(messages):
            if not self._outbox.offer(message):
                self._callbacks.messages_lost("overrun", len(messages) - place)
                return self._callbacks.outbox_full(message)
            if self._closed:  # by the application, which is called when a message is dropped
                return self._discard(len(messages) - place - 1)

    def _discard(self, others: int = 0) -> None:
        """Drop what waits, and count it, together with so many messages that do not wait yet."""
        if count := self._outbox.clear() + others:
            self._callbacks.messages_lost("discarded", count)


class AsgiSender(Sender):
    """Sends by ASGI, on any server.

    A send begins in the pass of the event loop that delivered the message, and has mostly returned before that pass
    ends. It runs in the connection's Context and in a task: a middleware that wraps `send` finds the variables of its
    own client, and may use timeouts, cancel scopes, locks and task groups. A task exists for longer than one pass only
    where the send suspends.
    """

    __slots__ = ("_direct", "_loop", "_open", "_send", "_sending", "_task")

    def __init__(
        self,
        outbox: Outbox,
        callbacks: SenderCallbacks,
        send: Callable[[str | bytes], Coroutine[Any, Any, None]],
        context: Context,
    ) -> None:
        super().__init__(outbox, callbacks, context)
        self._send = send
        self._loop = asyncio.get_running_loop()  # asking for it costs a system call on Python 3.11
        self._open = False
        self._sending = False
        self._direct: Iterator[Message] = _NOTHING  # the batch being sent, which has not waited in the outbox
        self._task: asyncio.Task[None] | None = None  # of a send that has suspended

    def open(self) -> None:
        """The handshake is done."""
        self._open = True
        self._send_all()

    def offer(self, batch: Batch, /) -> None:
        """Begin to send, or queue after what waits."""
        if self._closed:
            return self._discard(len(batch))
        if self._sending or not self._open:
            return self._queue((*self._direct, *batch))
        self._direct = iter(batch)
        self._send_all()

    async def drained(self) -> None:
        """Return when no send is suspended, which is when nothing waits."""
        while self._task is not None and self._task is not asyncio.current_task():  # a middleware may send too
            await asyncio.wait([self._task])

    def close(self) -> None:
        """Drop what waits."""
        self._closed = True
        self._discard()
        if self._task is not None:
            self._task.cancel()

    @property
    def is_waiting(self) -> bool:
        """Whether a send is suspended."""
        return self._task is not None and not self._closed

    def _send_all(self) -> None:
        """Send what is direct, then what waits, until nothing is left or a send suspends."""
        self._sending = True
        send = self._send  # on Python 3.11 this is faster than to call the attribute
        try:
            for message in self._direct:
                if (task := begin(send(message.data), self._context, self._loop)) is not None:
                    return self._continue_in_task(task)
                if self._closed:
                    break
            while not self._closed and (item := self._outbox.take()) is not None:
                if isinstance(item, Message):
                    task = begin(send(item.data), self._context, self._loop)
                    if task is not None:
                        return self._continue_in_task(task)
        except asyncio.CancelledError as error:
            self._fail(_cancelled_by_another(error))
        except Exception as error:
            self._fail(error)
        self._sending = False
        self._discard_direct()

    def _discard_direct(self) -> None:
        """Count what is left of a batch whose send failed, or closed the client."""
        direct, self._direct = self._direct, _NOTHING
        if left := sum(1 for _ in direct):
            self._discard(left)

    def _continue_in_task(self, task: asyncio.Task[None]) -> None:
        """A send has suspended: what is left waits in the outbox until `task` is done."""
        self._task = task
        task.add_done_callback(self._task_done)
        if self._closed:
            task.cancel()
            self._discard_direct()
        elif rest := tuple(self._direct):
            self._queue(rest)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        try:
            task.result()
        except asyncio.CancelledError as error:
            fault = _cancelled_by_another(error)
            # At its end an event loop cancels all tasks, which is no fault: the report comes too late then.
            if task.cancelling():
                self._loop.call_later(_LOOP_END_SECONDS, self._fail, fault)
            else:
                self._fail(fault)
        except Exception as error:
            self._fail(error)
        else:
            self._callbacks.client_has_read()
            self._send_all()

    def _fail(self, error: Exception) -> None:
        if not self._closed:
            self._closed = True
            self._discard()
            self._callbacks.send_failed(error)


def _cancelled_by_another(error: asyncio.CancelledError) -> RuntimeError:
    """Return the fault: something other than `close` cancelled the send, or what the send waited for."""
    fault = RuntimeError("a send was cancelled, or waited for what was")
    fault.__cause__ = error
    return fault


class LaneSender(Sender):
    """Writes frames to the server's transport, past ASGI; is the `LaneWriter` of its lane."""

    __slots__ = ("_drained", "_lane", "_window_bits", "_write")

    def __init__(self, outbox: Outbox, callbacks: SenderCallbacks, lane: Lane, context: Context) -> None:
        super().__init__(outbox, callbacks, context)
        self._lane = lane
        self._window_bits: int | None = None
        self._write: Callable[[bytes], object] | None = None  # `None` while something waits or the transport is paused
        self._drained: asyncio.Future[None] | None = None

    def open(self) -> None:
        """The handshake is done."""
        if not self._closed:
            self._window_bits = self._lane.deflate_window_bits
            self._lane.attach(self)

    def continue_on(self, lane: Lane) -> None:
        """Write to the lane that replaces the present one, which was handed over: the transport is the same."""
        self._lane = lane

    def offer(self, batch: Batch, /) -> None:
        """Write, or queue after what waits."""
        write = self._write
        if write is not None:
            write(batch.frames if self._window_bits is None else batch.compressed(self._window_bits))
        elif not self._closed:
            self._queue(batch)
        else:
            self._discard(len(batch))

    def offer_missed(self, batch: Batch, /) -> None:
        """Write, or queue after what waits; of much, only what the transport takes is written."""
        if self._write is None or batch.size_bytes <= _JOIN_BYTES:
            return super().offer_missed(batch)
        self._outbox.allow(batch[0].channel, len(batch), batch.size_bytes)
        self._queue(batch)
        self.lane_writable(True)

    async def drained(self) -> None:
        """Return when the transport has taken everything."""
        while self._outbox and not self._closed:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._drained])

    def close(self) -> None:
        """Drop what waits."""
        self._closed = True
        self._write = None
        self._discard()
        self._notify_drained()

    @property
    def is_waiting(self) -> bool:
        """Whether the transport has not taken everything."""
        return bool(self._outbox)

    def lane_writable(self, writable: bool, /) -> None:
        """The transport takes more, and what waits is written; or it takes no more."""
        if not writable or self._closed:
            self._write = None
            return
        self._write = write = self._lane.write
        self._callbacks.client_has_read()
        try:
            while self._outbox and self._write is not None:  # a write can make the transport pause
                write(self._joined())
        except Exception as error:  # may not be raised to the server, which calls this
            return self._callbacks.send_failed(error)
        if not self._outbox:
            self._notify_drained()

    def lane_closed(self) -> None:
        """The connection is no longer open."""
        if not self._closed:
            self.close()
            self._callbacks.transport_closed()

    def _joined(self) -> bytes:
        """Take what waits from the outbox, up to `_JOIN_BYTES`, as frames in one piece."""
        frames: list[bytes] = []
        size = 0
        while size < _JOIN_BYTES and (item := self._outbox.take()) is not None:
            if isinstance(item, Message):
                frames.append(encode_frame(item.data))
                size += len(frames[-1])
        return b"".join(frames)

    def _notify_drained(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.set_result(None)
