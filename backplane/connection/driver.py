"""What runs one client: receive, send, limits, timers, its tasks, its end. Knows no web framework.

The hub, the sender, the receiver, the timers, the handshake and the worker talk to a `ConnectionDriver`; the
application has its `Connection`. The end, with its states, is `backplane.connection.close_sequence`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from backplane.close_codes import CloseCode, close_reason
from backplane.concurrency.context import run_in
from backplane.connection.close_sequence import CloseSequence, ConnectionState
from backplane.connection.connection import Connection
from backplane.connection.ending import TOO_SLOW, Ending, ending, reasons
from backplane.connection.handler import Handler
from backplane.connection.keepalive import ConnectionTimers
from backplane.connection.policy import ConnectionPolicy, SlowConsumer
from backplane.connection.receiver import Receiver
from backplane.connection.sender import AsgiSender, LaneSender, Sender
from backplane.connection.tasks import Tasks
from backplane.errors import InvalidMessageError, LifecycleError
from backplane.fanout.batch import Batch
from backplane.fanout.codec import to_client_data
from backplane.fanout.subscriber import BaseSubscriber
from backplane.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.concurrency.affinity import LoopAffinity
    from backplane.connection.socket import Socket
    from backplane.fanout.hub import Hub
    from backplane.fanout.outbox import Outbox
    from backplane.message import Gap
    from backplane.statistics import DropReason

__all__ = ["ConnectionDriver"]

logger: Final = logging.getLogger("backplane.connection.driver")

# How soon it is checked for the first time, and how often at least, that something receives from the client: where
# nothing does, the end of the client would go unnoticed.
_FIRST_CHECK_SECONDS: Final = 1.0
_CHECK_SECONDS: Final = 15.0


class ConnectionDriver(BaseSubscriber):
    """One client, from its joins to its close.

    Args:
        socket: The client's.
        hub: Where it subscribes.
        outbox: What waits for it.
        policy: What it has in common with the other clients. Defaults to one of its own.
        context: The application's own, such as the user.

    Attributes:
        connection: What the application has of it.
        affinity: The event loop it belongs to, which each verb of the application checks first.
        outbox: As above.
        sender: From the outbox to the socket.
        receiver: From the socket to the handler.
        timers: Its times; `backplane.connection.keepalive` calls `check_timers` by them.
    """

    __slots__ = (
        "_close_sequence",
        "_handler",
        "_is_accepted",
        "_policy",
        "_socket",
        "_tasks",
        "affinity",
        "connection",
        "outbox",
        "receiver",
        "sender",
        "timers",
    )

    def __init__(
        self, socket: Socket, hub: Hub, outbox: Outbox, policy: ConnectionPolicy | None = None, *, context: Any = None
    ) -> None:
        # It is its own rules: `check_join` asks the policy about `connection`, which is what the application knows.
        super().__init__(hub, self, context=context)
        self.connection: Connection = Connection(self)
        self.affinity: LoopAffinity = hub.affinity
        self._policy: ConnectionPolicy = policy or ConnectionPolicy()
        self._socket = socket
        self.outbox = outbox
        lane = socket.lane
        self.sender: Sender = (
            AsgiSender(outbox, self, socket.send, self._context)
            if lane is None
            else LaneSender(outbox, self, lane, self._context)
        )
        outbox.on_drop = self._dropped
        self.timers: ConnectionTimers = ConnectionTimers(asyncio.get_running_loop().time())
        limits = self._policy.limits
        if lane is not None and limits.max_message_bytes is not None:
            lane.limit_messages(limits.max_message_bytes)
        self.receiver: Receiver = Receiver(socket.receive, limits, self)
        socket.on_bypass(self.receiver)
        self._is_accepted = False
        self._close_sequence: CloseSequence | None = None
        self._tasks: Tasks | None = None
        self._handler: Handler | None = None

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return "connection"

    @property
    def state(self) -> ConnectionState:
        """Where it is between its handshake and its end."""
        if self._close_sequence is not None:
            return self._close_sequence.state
        return "open" if self._is_accepted else "joining"

    @property
    def closed_with(self) -> tuple[int, str] | None:
        """The code and reason of a close that was requested before the handshake was done."""
        sequence = self._close_sequence
        return sequence.requested if sequence is not None and sequence.state == "closing" else None

    @property
    def tasks(self) -> Tasks:
        """Its tasks beside the handler."""
        if self._tasks is None:
            self._tasks = Tasks(self._task_failed, self._policy.handler_grace_seconds)
        return self._tasks

    # --- what the application's verbs need beside the parts ---

    async def check_join(self, _: BaseSubscriber, channel: str, /) -> None:
        """Check that the client may join `channel`; see `ConnectionPolicy.check_join`."""
        await self._policy.check_join(self.connection, channel)

    def check_channels(self, _: BaseSubscriber, count: int, /) -> None:
        """Check that the client may join `count` channels; see `ConnectionPolicy.check_channels`."""
        self._policy.check_channels(self.connection, count)

    def check_attached(self) -> None:
        """Check that the client still receives.

        Raises:
            ClosedError: It does not.
        """
        self._check_attached()

    def check_not_ended(self) -> None:
        """Check that the connection has not ended.

        Raises:
            ClosedError: It has.
        """
        self._check_not_ended()

    def expire_at(self, moment: float | None) -> None:
        """Let its permission run out at `moment`, in seconds since the epoch; `None`: never."""
        now = asyncio.get_running_loop().time()
        self.timers.expires_at = None if moment is None else now + moment - time.time()
        if self.state in ("open", "draining"):
            self.timers.due = self.timers.next_due(now, self._policy.limits)
            self._policy.keepalive.put(self)

    def count_invalid(self, error: InvalidMessageError) -> None:
        """Count a message that does not validate, and log it without its content."""
        self._policy.statistics.invalid_messages += 1
        self._log(logging.INFO, "connection %s sent an invalid message: %s", self.id, error.details[0]["type"])

    # --- called by the hub and the sender ---

    def offer(self, batch: Batch, /) -> None:
        """Take messages for the client. Does not raise: where it fails the client is closed."""
        try:
            self.sender.offer(batch)
        except Exception as error:
            self._failed(error)

    def gap(self, gap: Gap) -> None:
        """Notify the client that messages may be missing: by a close or in the words of the application."""
        if self.state not in ("joining", "open"):
            return
        on_gap = self._policy.on_gap
        if on_gap == "close":
            return self._reload(gap)
        try:
            data = run_in(self._context, _answer, on_gap, gap)
        except Exception as error:
            words = "on_gap failed for channel %r: closing connection %s"
            self._log(logging.ERROR, words, gap.channel, self.id, exc_info=error)
            return self._reload(gap)
        if data is not None:
            self.offer(Batch(Message(channel="", data=data)))

    def outbox_full(self, item: Message | Gap) -> None:
        """Close the client, which is too slow and whose policy is `close`."""
        self._log(logging.WARNING, "connection %s is too slow for channel %r: closing it", self.id, item.channel)
        self._notify_slow(item, "closed")
        self.closing.close(CloseCode.TRY_AGAIN_LATER, TOO_SLOW)

    def send_failed(self, error: Exception) -> None:
        """End: the client is gone, or the server failed to send, which is logged and closes the client."""
        if self._socket.is_gone(error):
            self.disconnected()
        else:
            self._failed(error)

    def transport_closed(self) -> None:
        """Leave the channels: nothing can be sent any more. What the client sent before can still be received."""
        self.closing.transport_closed()
        self._detach()
        self._policy.keepalive.remove(self)

    # --- called by the receiver and the timers ---

    def message_received(self, now: float, /) -> None:
        """Note when the client sent its last message."""
        self.timers.last_received_at = now

    def disconnected(self) -> None:
        """End: the client is gone, and what it sent is received."""
        self.closing.disconnected()

    def limit_exceeded(self, code: CloseCode, reason: str, /) -> None:
        """Close the client, which did more than it may."""
        self._log(logging.INFO, "closing connection %s: %s", self.id, reason)
        self.closing.close(code, reason)

    def check_timers(self, now: float, /) -> None:
        """Do what is due: close it at a limit, send a heartbeat, receive for a handler that does not."""
        limits = self._policy.limits
        self._ensure_receiving()
        code = self.timers.ended_by(now, limits)
        if code is not None:
            self.timers.due = float("inf")
            return self.limit_exceeded(code, close_reason(code))
        if limits.heartbeat_seconds is not None:
            try:
                self._heartbeat(now, limits.heartbeat_seconds)
            except Exception as error:  # of the server: the timer serves all other connections too
                self._failed(error)
        self.timers.due = (
            float("inf") if self._detached else min(self.timers.next_due(now, limits), now + _CHECK_SECONDS)
        )

    # --- called by the handshake and the worker ---

    def handler_entered(self) -> None:
        """The block is about to be entered, by the task that calls."""
        self._handler = Handler(self._policy.handler_grace_seconds, self._handler_cancelled)

    def handler_left(self, error: BaseException | None) -> bool:
        """The block is left; return whether `error` is the cancellation of a handler that outlived its connection."""
        handler, self._handler = self._handler, None
        return handler is not None and handler.left(error)

    def accepted(self) -> None:
        """The handshake is done: send what waits since the joins, or the close frame that was requested meanwhile."""
        self._is_accepted = True
        self._policy.statistics.connections_opened += 1
        if self._close_sequence is not None:
            self._close_sequence.accepted()
        if self.closed_with is not None:
            return
        self.sender.open()
        if self._ended:  # the first message found that the client is gone
            return
        now = asyncio.get_running_loop().time()
        self.timers.begin(now, self._policy.limits)
        self.timers.due = min(self.timers.due, now + _FIRST_CHECK_SECONDS)
        self._policy.keepalive.put(self)

    async def close(self, code: int, reason: str) -> None:
        """Close, and return when the close frame is sent or the attempt was given up."""
        self.closing.close(code, reason)
        await self.closing.closed()

    def retire(self, code: int, reason: str) -> None:
        """Send what waits, then close; until then the client receives what is published."""
        self.closing.close_after_flush(code, reason)

    def ending(self, error: BaseException | None) -> Ending | None:
        """Return how the client is closed because of `error`, and `None` where it gets no close frame."""
        return ending(error, is_over=self.is_over, of_framework=self._socket.ending)

    async def finish(self, end: Ending) -> None:
        """End the tasks beside the handler, flush what waits, close, and await all of it: the handler has ended.

        With `TRY_AGAIN_LATER`, as many handlers end by the same failure of the broker, the close waits for its turn.
        Until then the client receives what is published; what it sends is received, so that its leaving is noticed,
        and dropped.

        Args:
            end: How the client is closed.
        """
        closing = self.closing
        try:
            await self._end_tasks()
            if self._is_accepted:
                self._log_end(end)
                if end.code == CloseCode.TRY_AGAIN_LATER:
                    self._close_in_turn(end.code, end.reason)
                    await self._drop_incoming()
            if self._detached and not self._ended:  # the client is gone, and nothing has received that
                closing.disconnected()
            if not self._ended and self.sender.is_waiting:
                await closing.flush()
            code, reason = end.code, end.reason
            if code == CloseCode.NORMAL and closing.state == "draining" and closing.requested is not None:
                code, reason = closing.requested  # the reason why it drains, which its client must still receive
            closing.close(code, reason)
            await closing.finished()
            await self.sender.drained()
        except asyncio.CancelledError:
            await self.abandon()
            raise

    async def abandon(self) -> None:
        """End at once, without a close frame: the handler was cancelled."""
        self.closing.abort()
        await self._end_tasks()

    # --- the end ---

    @property
    def closing(self) -> CloseSequence:
        """Its end, made when it is first needed."""
        if self._close_sequence is None:
            self._close_sequence = CloseSequence(
                self.id,
                self._socket,
                self.sender,
                policy=self._policy,
                context=self._context,
                stop=self._stop,
                is_accepted=self._is_accepted,
            )
        return self._close_sequence

    def _stop(self) -> None:
        """Receive and send nothing more."""
        self._leave_all()
        self.sender.close()
        self._policy.keepalive.remove(self)
        self.receiver.close()
        if self._tasks is not None:
            self._tasks.cancel()

    def _detach(self) -> None:
        super()._detach()
        if self._handler is not None:
            self._handler.connection_ended()

    def _close_in_turn(self, code: int, reason: str) -> None:
        """Close when it is this connection's turn: what concerns all clients must not bring all back at once."""
        self.closing.close_after_flush(code, reason, self._policy.reload_delay())

    def _reload(self, gap: Gap) -> None:
        self._log(logging.INFO, "closing connection %s, to reload: %s", self.id, gap.reason)
        self._close_in_turn(CloseCode.MESSAGES_MISSED, "messages may have been missed: reload")

    def _failed(self, error: Exception) -> None:
        """Close: the server, or what it wraps, raised where nothing may, and the client would miss what follows."""
        self._log(logging.ERROR, "connection %s failed: closing it", self.id, exc_info=error)
        self.closing.close(CloseCode.INTERNAL_ERROR, "")

    def _task_failed(self, error: BaseException) -> None:
        end = self.ending(error) or Ending(CloseCode.INTERNAL_ERROR, "", error, is_fault=True)
        self._log_end(end)
        if end.is_fault:
            self._log(logging.ERROR, "a task of connection %s failed: closing it", self.id, exc_info=error)
        if end.code == CloseCode.TRY_AGAIN_LATER:
            self._close_in_turn(end.code, end.reason)
        elif end.code != CloseCode.NORMAL or end.reason:
            self.closing.close(end.code, end.reason)

    async def _drop_incoming(self) -> None:
        try:
            while await self.receiver.next() is not None:
                pass
        except LifecycleError:  # a task that the handler did not end receives still: the close will wake it
            logger.debug("connection %s is received from after the end of its handler", self.id)
        except Exception as error:  # the handler may have received the client's end from the socket itself
            if not self._socket.is_gone(error):
                self._log(logging.ERROR, "connection %s failed to receive", self.id, exc_info=error)
            self.disconnected()

    async def _end_tasks(self) -> None:
        if self._tasks is not None:
            await self._tasks.end()

    def _handler_cancelled(self, is_cancelled: bool) -> None:
        if is_cancelled:
            self._policy.statistics.cancelled_handlers += 1
            words = "the handler of connection %s did not end with it: cancelled after %g s"
            self._log(logging.INFO, words, self.id, self._policy.handler_grace_seconds)
        else:
            words = "the handler of connection %s did not end with it within %g s, and its server cannot cancel it"
            self._log(logging.WARNING, words, self.id, self._policy.handler_grace_seconds)

    # --- heartbeats ---

    def _ensure_receiving(self) -> None:
        """Receive for a handler that does not; on a lane only where the server waits for that, and reads nothing."""
        lane = self._socket.lane
        if self._detached or self._handler is None or self.receiver.is_waiting or (lane is not None and lane.reading):
            return
        reading = self._socket.read_ahead(self.message_received, self._client_vanished)
        if reading is not None:
            self.tasks.spawn(reading, f"backplane-read-ahead-{self.id}", context=self._context)

    def _client_vanished(self) -> None:
        self.sender.close()
        self.transport_closed()

    def _heartbeat(self, now: float, interval: float) -> None:
        lane, timers = self._socket.lane, self.timers
        message = self._policy.limits.heartbeat_message
        if lane is not None:
            last_received_at, is_read = lane.last_received_at, lane.reading
        else:  # without a handler that receives, an answer would not be seen
            last_received_at, is_read = timers.last_received_at, message is not None and self.receiver.is_waiting
        match timers.heartbeat(now, interval, last_received_at=last_received_at, is_read=is_read):
            case "ping" if lane is not None:
                lane.ping()
            case "ping":
                self.offer(Batch(Message(channel="", data=to_client_data(message))))
            case "silent":
                self.limit_exceeded(CloseCode.SILENT, "no answer to heartbeats")
                if lane is not None:
                    lane.abort()
            case "alive" if lane is not None and not is_read:
                lane.ping()  # not for an answer: where nothing is read, only a write finds that a client is gone
            case "alive":
                pass

    # --- a slow client, and the log ---

    def _dropped(self, item: Message | Gap, reason: DropReason) -> None:
        self._policy.statistics.count_drop(reason)
        if reason != "replaced" and not self.outbox.behind:  # once for each stretch
            self._notify_slow(item, reason)

    def _notify_slow(self, item: Message | Gap, action: str) -> None:
        slow = SlowConsumer(
            connection=self.connection,
            channel=item.channel,
            action=action,
            waiting_messages=len(self.outbox),
            waiting_bytes=self.outbox.size_bytes,
        )
        run_in(self._context, self._policy.notify_slow, slow)

    def _log_end(self, end: Ending) -> None:
        line = end.log_line()
        if line is not None:
            self._log(*line, self.id, reasons(end.raised))

    def _log(self, level: int, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        run_in(self._context, partial(self._policy.bursts.log, logger, level, message, *args, exc_info=exc_info))


def _answer(on_gap: Callable[[Gap], object], gap: Gap) -> str | bytes | None:
    answer = on_gap(gap)
    return None if answer is None else to_client_data(answer)
