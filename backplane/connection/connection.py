"""One client: receive, limits, its tasks, its end. Knows no web framework."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

from backplane.close_codes import CloseCode, check_close, close_reason
from backplane.concurrency.context import run_in
from backplane.connection.close_sequence import CloseSequence, flush
from backplane.connection.ending import Ending, ending, reasons
from backplane.connection.expiry import moment_of
from backplane.connection.handler import Handler
from backplane.connection.keepalive import ConnectionTimers
from backplane.connection.policy import ConnectionPolicy, SlowConsumer
from backplane.connection.receiver import Receiver
from backplane.connection.sender import AsgiSender, LaneSender, Sender
from backplane.connection.tasks import Tasks
from backplane.connection.validation import parse
from backplane.errors import BrokerError, ClosedError, InvalidMessageError, LifecycleError
from backplane.fanout.batch import Batch
from backplane.fanout.codec import to_client_data
from backplane.fanout.outbox import Rule
from backplane.fanout.subscriber import BaseSubscriber
from backplane.message import Message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from datetime import datetime

    from pydantic import TypeAdapter

    from backplane.connection.socket import Socket
    from backplane.fanout.hub import Hub
    from backplane.fanout.outbox import FullPolicy, Outbox
    from backplane.message import Gap
    from backplane.statistics import DropReason

__all__ = ["Connection"]

logger = logging.getLogger("backplane.connection.connection")

_ModelT = TypeVar("_ModelT")
_ResultT = TypeVar("_ResultT")

_TOO_SLOW: Final = "too slow"
# What points at a bound that does not fit: of the broker, of `authorize`.
_FOR_OPERATORS: Final = frozenset({CloseCode.TOO_BIG, CloseCode.TRY_AGAIN_LATER})

# When it is looked whether anyone receives, for the first time and then at least: else a client's end goes unnoticed.
_FIRST_LOOK_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 15.0

# So many sends that wait for nothing, and the other connections get a turn.
_SENDS: Final = 32


class Connection(BaseSubscriber):
    """One client, for as long as `Backplane.connect` is entered.

    Iterating yields what the client says, `str` or `bytes`, and ends when either side closed. What is published to its
    channels is sent to it in order per channel, whether the handler iterates or not. One task receives at a time, by
    iterating, `iter` or `receive`: a second one that waits at the same moment raises `LifecycleError`.

    Used from another event loop, thread or process than the one it was made in, each of its methods raises
    `WrongLoopError`; what only reads (`id`, `channels`, `is_over`, `context`) is safe anywhere.

    Attributes:
        context: What `connect(context=...)` was given: the application's own, such as the user.
        closed_with: The code and reason of a close that was asked for before the handshake was done.
        timers: Its times; `backplane.connection.keepalive` looks at them.
    """

    __slots__ = (
        "_close_sequence",
        "_handler",
        "_open",
        "_outbox",
        "_policy",
        "_receiver",
        "_sender",
        "_sends",
        "_socket",
        "_tasks",
        "closed_with",
        "timers",
    )

    def __init__(
        self, socket: Socket, hub: Hub, outbox: Outbox, policy: ConnectionPolicy | None = None, *, context: Any = None
    ) -> None:
        self._policy = policy or ConnectionPolicy()
        super().__init__(hub, self._policy, context=context)
        self._socket = socket
        self._outbox = outbox
        lane = socket.lane
        self._sender: Sender = (
            AsgiSender(outbox, self, socket.send, self._context)
            if lane is None
            else LaneSender(outbox, self, lane, self._context)
        )
        outbox.on_drop = self._dropped
        self.timers = ConnectionTimers(asyncio.get_running_loop().time())
        limits = self._policy.limits
        if lane is not None and limits.max_message_bytes is not None:
            lane.limit_messages(limits.max_message_bytes)
        self._receiver = Receiver(socket.receive, limits, self)
        socket.on_bypass(self._receiver.bypass)
        self._open = False
        self.closed_with: tuple[int, str] | None = None
        self._close_sequence: CloseSequence | None = None
        self._tasks: Tasks | None = None
        self._handler: Handler | None = None
        self._sends = 0

    def __repr__(self) -> str:
        state = "ended" if self._ended else "open" if self._open else "joining"
        return f"<Connection {self.id} {state} channels={list(self._channels)}>"

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return "connection"

    async def join(
        self,
        channel: str,
        *,
        when_full: FullPolicy | None = None,
        latest_by: Callable[[Message], object] | None = None,
    ) -> None:
        """Receive what is published to `channel`; once this returns no later publish is missed without a gap.

        Joining again changes nothing but the policy. Cancelling leaves the channel unjoined.

        Args:
            channel: What to hear.
            when_full: What happens to this channel's messages when the client is too slow; defaults to what the
                connection was made with.
            latest_by: With `latest`, what tells the messages of the channel apart; see `backplane.fanout.outbox.Rule`.

        Raises:
            InvalidChannelError: The name is not legal.
            JoinRefusedError: The application's `authorize` said no.
            TooManyChannelsError: It has joined as many as are allowed.
            SubscribeError: The broker refused it.
            BrokerUnavailableError: The broker did not confirm in time.
            ClosedError: It has ended.
        """
        rule = (
            None
            if when_full is None and latest_by is None
            else Rule(when_full=when_full or "latest", latest_by=latest_by)
        )
        await super().join(channel)
        self._outbox.set_rule(channel, rule)

    async def leave(self, channel: str) -> None:
        """Receive nothing more of `channel`; what waits still comes. Leaving what was not joined changes nothing."""
        await super().leave(channel)
        self._outbox.set_rule(channel, None)

    async def send(self, data: object) -> None:
        """Send `data` to this client alone, behind what already waits for it; returns when the server has taken it.

        `str` goes as text, `bytes` as binary, anything else as JSON text. A client that does not read makes it wait;
        the outbox's bound counts here too.

        Raises:
            InvalidDataError: `data` is none of these.
            ClosedError: The connection is over: the client is gone or was cut, perhaps while this waited. An ordinary
                end, which goes no further than the `connect` block.
        """
        self._hub.affinity.check()
        if self._detached:
            await asyncio.sleep(0)  # who ignores the error must leave others, and its own cancellation, a turn
        self._check_attached()
        self.offer(Batch(Message(channel="", data=to_client_data(data))))
        await self._sender.sent()
        self._sends += 1
        if not self._sends % _SENDS:
            await asyncio.sleep(0)
        self._check_attached()

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close with `code`; iteration ends, what still waits is dropped. Closing again changes nothing.

        Args:
            code: See `CloseCode`. A code of the application's own says by its range whether the client comes back by
                itself: after 4000 to 4499 it does, after 4500 to 4999 it stays away.
            reason: Why, in words; cut after 123 bytes of UTF-8, as a close frame takes no more. Defaults to the name of
                the code.

        Raises:
            ConfigurationError: A close frame cannot carry `code` (1005, 1006, 5000, no number), or `reason` is no text;
                the connection stays as it is.
        """
        self._hub.affinity.check()
        check_close(code, reason)
        self.end(code, reason)
        await self._closing.closed()

    def expire_at(self, moment: float | datetime | None) -> None:
        """Close with code 4001 at `moment`; `None`: never. Call it again when the client has shown a new token.

        Args:
            moment: In seconds since the epoch, as in a token's `exp`, or a `datetime` with a time zone.

        Raises:
            ConfigurationError: It is no such moment (a duration, milliseconds, a `datetime` without a time zone).
        """
        self._hub.affinity.check()
        loop, seconds = asyncio.get_running_loop(), moment_of(moment)
        self.timers.expires_at = None if seconds is None else loop.time() + seconds - time.time()
        if self._open and not self._ended:
            self.timers.due = self.timers.next_due(loop.time(), self._policy.limits)
            self._policy.keepalive.put(self)

    def spawn(self, work: Coroutine[Any, Any, _ResultT], *, name: str | None = None) -> asyncio.Task[_ResultT]:
        """Run `work` beside the handler until it is done or the connection ends; then it is cancelled and awaited.

        Where it swallows that, it is cancelled again, every `handler_grace_seconds`. An error in it closes the
        connection as it would in the handler: with code 1011, and logged, where it is no ordinary end (see
        `Backplane.connect`).
        """
        try:
            self._hub.affinity.check()
            self._check_not_ended()
        except BaseException:
            work.close()
            raise
        return self._own_tasks.spawn(work, name or f"backplane-connection-{self.id}")

    @overload
    async def receive(self) -> str | bytes | None: ...
    @overload
    async def receive(self, model: type[_ModelT] | TypeAdapter[_ModelT]) -> _ModelT | None: ...
    @overload
    async def receive(self, model: object) -> Any: ...
    async def receive(self, model: Any = None) -> Any:
        """Return the client's next message, as it is or as `model`; `None` when the connection has ended.

        Args:
            model: Anything pydantic can validate, such as a class, `Join | Leave` or a `TypeAdapter`. A type checker
                knows what a class or a `TypeAdapter` returns; anything else is `Any` to it.

        Raises:
            InvalidMessageError: It does not validate; `error.answer` is fit to be sent back. The connection lives on.
            LifecycleError: Another task receives.
        """
        self._hub.affinity.check()
        data = await self._receiver.next()
        if model is None or data is None:
            return data
        try:
            return parse(model, data)
        except InvalidMessageError as error:
            self._note_invalid(error)
            raise

    @overload
    def iter(
        self, model: type[_ModelT] | TypeAdapter[_ModelT], *, on_invalid: Literal["answer", "close"] = "answer"
    ) -> AsyncIterator[_ModelT]: ...
    @overload
    def iter(self, model: object, *, on_invalid: Literal["answer", "close"] = "answer") -> AsyncIterator[Any]: ...
    async def iter(self, model: Any, *, on_invalid: Literal["answer", "close"] = "answer") -> AsyncIterator[Any]:
        """Yield what the client says as `model`, until either side closes.

        Args:
            model: Anything pydantic can validate, as in `receive`.
            on_invalid: What happens to a message that does not validate: `answer` sends back what is wrong and goes on,
                `close` ends the connection with code 1007.
        """
        while (data := await self.receive()) is not None:
            try:
                parsed = parse(model, data)
            except InvalidMessageError as error:
                self._note_invalid(error)
                if on_invalid == "close":
                    await self.close(CloseCode.INVALID_DATA, "invalid message")
                else:
                    with suppress(ClosedError):  # what the client said before it left is still yielded
                        await self.send(error.answer)
            else:
                yield parsed

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        return self

    def __anext__(self) -> Awaitable[str | bytes]:
        self._hub.affinity.check()
        return self._receiver.iterate()

    def offer(self, batch: Batch, /) -> None:
        """Take messages for the client: the hub's side. Does not raise: where it fails the client is closed."""
        try:
            self._sender.offer(batch)
        except Exception as error:
            self._failed(error)

    def gap(self, gap: Gap) -> None:
        """Learn that messages may be missing: the hub's side."""
        if self._ended or self._is_about_to_end:
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

    def too_slow(self, item: Message | Gap) -> None:
        """The outbox is full: cut the client."""
        self._log(logging.WARNING, "connection %s is too slow for channel %r: closing it", self.id, item.channel)
        self._notify_slow(item, "closed")
        self.end(CloseCode.TRY_AGAIN_LATER, _TOO_SLOW)

    def send_failed(self, error: Exception) -> None:
        """A message could not be sent: the end, and where the client is not gone, a fault that closes it."""
        if self._socket.is_gone(error):
            self.client_left()
        else:
            self._failed(error)

    def client_gone(self) -> None:
        """Nothing can be sent any more; what the client has said before is still there to be received."""
        self._detach()
        self._policy.keepalive.remove(self)

    def handler_entered(self) -> None:
        """The block is about to be entered, by the task that calls."""
        self._handler = Handler(self._policy.handler_grace_seconds, self._handler_cancelled)

    def handler_left(self, error: BaseException | None) -> bool:
        """The block is left; return whether `error` is the cancellation of a handler that outlived its connection."""
        handler, self._handler = self._handler, None
        return handler is not None and handler.left(error)

    def client_sent(self, now: float, /) -> None:
        """Something came from the client."""
        self.timers.last_received_at = now

    def client_left(self) -> None:
        """Nothing more will come: the end."""
        if not self._end() or not self._open:
            return
        lane = self._socket.lane
        if lane is not None and lane.close_code == CloseCode.TOO_BIG:  # refused by the server, for `max_message_bytes`
            self._policy.statistics.count_close(CloseCode.TOO_BIG)
        else:
            self._policy.statistics.closed_by_client += 1

    def limit_reached(self, code: CloseCode, reason: str, /) -> None:
        """The client did more than it may: end it."""
        self._log(logging.INFO, "closing connection %s: %s", self.id, reason)
        self.end(code, reason)

    def check_timers(self, now: float, /) -> None:
        """Do what is due: end it at a limit, or ask for a sign."""
        limits = self._policy.limits
        self._notice_end()
        code = self.timers.ended_by(now, limits)
        if code is not None:
            self.timers.due = float("inf")
            return self.limit_reached(code, close_reason(code))
        if limits.heartbeat_seconds is not None:
            try:
                self._heartbeat(now, limits.heartbeat_seconds)
            except Exception as error:  # of the server: the watch must go on, for all others
                self._failed(error)
        self.timers.due = (
            float("inf") if self._detached else min(self.timers.next_due(now, limits), now + _LOOK_SECONDS)
        )

    def opened(self) -> None:
        """The handshake is done: what waited since the joins may go, a close too."""
        self._open = True
        self._policy.statistics.connections_opened += 1
        if self.closed_with is not None:
            return self._begin_close(*self.closed_with)
        self._sender.open()
        if self._ended:  # its first message found it gone
            return
        now = asyncio.get_running_loop().time()
        self.timers.begin(now, self._policy.limits)
        self.timers.due = min(self.timers.due, now + _FIRST_LOOK_SECONDS)
        self._policy.keepalive.put(self)

    def end(self, code: int, reason: str) -> None:
        """Close without waiting: iteration ends, and the close frame is sent if the client still reads."""
        if not self._end():
            return
        if self._open:
            self._begin_close(code, reason)
        else:
            self.closed_with = (code, reason)

    def retire(self, code: int, reason: str) -> None:
        """Send what waits, for a second at most, then close: an end that is nobody's fault.

        Until it is closed the client receives what is published, as before.
        """
        if not self._ended:
            self._closing.retire(code, reason)

    def retire_in_turn(self, code: int, reason: str) -> None:
        """Do that when it is this connection's turn: what concerns all clients must not bring all back at once."""
        if not self._ended:
            self._closing.retire_in(self._policy.reload_delay(), code, reason)

    def ending(self, error: BaseException | None) -> Ending | None:
        """Return how the client is closed because of `error`, and `None` where it is not notified."""
        return ending(error, is_over=self.is_over, of_framework=self._socket.ending)

    async def finish(self, code: int, error: BaseException | None = None) -> None:
        """End the tasks beside the handler, flush what waits, close, and await all of it: the end of the handler.

        With `TRY_AGAIN_LATER`, as many handlers end by the same failure of the broker, the close waits for its turn.
        Until then the client receives what is published; what it sends is received, so that its leaving is noticed,
        and dropped.

        Args:
            code: What the client is closed with.
            error: What the handler raised.
        """
        end = self.ending(error)
        reason = "" if end is None else end.reason
        try:
            await self._end_tasks()
            if self._open and end is not None:
                self._log_end(end, error)
            if self._open and code == CloseCode.TRY_AGAIN_LATER:
                self.retire_in_turn(code, reason)
                await self._drop_incoming()
            if self._detached and not self._ended:  # gone, and nobody received that
                self.client_left()
            if not self._ended and self._sender.is_waiting:
                await flush(self._sender, self.id)
            if code == CloseCode.NORMAL and self._is_about_to_end:  # its client must still learn why
                code, reason = self._closing.code, self._closing.reason
            self.end(code, reason)
            await self._closing.finished()
            await self._sender.sent()
        except asyncio.CancelledError:
            await self.abandon()
            raise

    async def abandon(self) -> None:
        """End at once, without a word to the client: the handler was cancelled."""
        if self._end() and self._open:
            self._policy.statistics.closed_cancelled += 1
        self._closing.abandon()
        await self._end_tasks()

    @property
    def _closing(self) -> CloseSequence:
        if self._close_sequence is None:
            self._close_sequence = CloseSequence(
                self.id,
                self._socket,
                self._sender,
                end=self.end,
                bursts=self._policy.bursts,
                context=self._context,
            )
        return self._close_sequence

    @property
    def _own_tasks(self) -> Tasks:
        if self._tasks is None:
            self._tasks = Tasks(self._task_failed, self._policy.handler_grace_seconds)
        return self._tasks

    @property
    def _is_about_to_end(self) -> bool:
        return self._close_sequence is not None and self._close_sequence.is_pending

    def _detach(self) -> None:
        super()._detach()
        if self._handler is not None:
            self._handler.connection_ended()

    def _handler_cancelled(self, is_cancelled: bool) -> None:
        if is_cancelled:
            self._policy.statistics.cancelled_handlers += 1
            words = "the handler of connection %s did not end with it: cancelled after %g s"
            self._log(logging.INFO, words, self.id, self._policy.handler_grace_seconds)
        else:
            words = "the handler of connection %s did not end with it within %g s, and its server lets no one cancel it"
            self._log(logging.WARNING, words, self.id, self._policy.handler_grace_seconds)

    def _notice_end(self) -> None:
        """Receive for a handler that does not; on a lane only where the server waits for that, and reads nothing."""
        lane = self._socket.lane
        if self._detached or self._handler is None or self._receiver.is_waiting or (lane is not None and lane.reading):
            return
        if (reading := self._socket.read_ahead(self.client_sent, self._client_vanished)) is not None:
            self._own_tasks.spawn(reading, f"backplane-read-ahead-{self.id}", context=self._context)

    def _client_vanished(self) -> None:
        self._sender.close()
        self.client_gone()

    def _heartbeat(self, now: float, interval: float) -> None:
        lane, timers = self._socket.lane, self.timers
        message = self._policy.limits.heartbeat_message
        if lane is not None:
            heard, listening = lane.last_received_at, lane.reading
        else:  # without a handler that receives, nothing a client says is seen
            heard, listening = timers.last_received_at, message is not None and self._receiver.is_waiting
        match timers.heartbeat(now, interval, heard=heard, listening=listening):
            case "ask" if lane is not None:
                lane.ping()
            case "ask":
                self.offer(Batch(Message(channel="", data=to_client_data(message))))
            case "vanished":
                self.limit_reached(CloseCode.SILENT, "no answer to heartbeats")
                if lane is not None:
                    lane.abort()
            case "there" if lane is not None and not listening:
                lane.ping()  # not for an answer: where nothing is read, only a write finds that a client is gone
            case "there":
                pass

    def _dropped(self, item: Message | Gap, reason: DropReason) -> None:
        self._policy.statistics.count_drop(reason)
        if reason != "replaced" and not self._outbox.behind:  # once for each stretch
            self._notify_slow(item, reason)

    def _notify_slow(self, item: Message | Gap, action: str) -> None:
        waiting = {"waiting_messages": len(self._outbox), "waiting_bytes": self._outbox.size_bytes}
        slow = SlowConsumer(connection=self, channel=item.channel, action=action, **waiting)
        run_in(self._context, self._policy.notify_slow, slow)

    def _note_invalid(self, error: InvalidMessageError) -> None:
        self._policy.statistics.invalid_messages += 1
        self._log(logging.INFO, "connection %s sent an invalid message: %s", self.id, error.details[0]["type"])

    def _end(self) -> bool:
        """Receive and send nothing more; return whether that is new."""
        if self._ended:
            return False
        self._leave_all()
        self._sender.close()
        self._policy.keepalive.remove(self)
        if self._close_sequence is not None:
            self._close_sequence.cancel_turn()
        self._receiver.close()
        if self._tasks is not None:
            self._tasks.cancel()
        return True

    def _begin_close(self, code: int, reason: str) -> None:
        statistics = self._policy.statistics
        if (code, reason) == (CloseCode.TRY_AGAIN_LATER, _TOO_SLOW):
            statistics.closed_slow += 1
        else:
            statistics.count_close(code)
        self._closing.close(code, reason)

    def _reload(self, gap: Gap) -> None:
        self._log(logging.INFO, "closing connection %s, to reload: %s", self.id, gap.reason)
        self.retire_in_turn(CloseCode.MESSAGES_MISSED, "messages may have been missed: reload")

    async def _drop_incoming(self) -> None:
        try:
            while await self._receiver.next() is not None:
                pass
        except LifecycleError:  # a task that the handler left behind receives still: the close will wake it
            logger.debug("connection %s is received from after the end of its handler", self.id)
        except Exception as error:  # the handler may have taken the client's end from the socket itself
            if not self._socket.is_gone(error):
                self._log(logging.ERROR, "connection %s failed to receive", self.id, exc_info=error)
            self.client_left()

    async def _end_tasks(self) -> None:
        if self._tasks is not None:
            await self._tasks.end()

    def _task_failed(self, error: BaseException) -> None:
        end = self.ending(error) or Ending(CloseCode.INTERNAL_ERROR, "", error, is_fault=True)
        self._log_end(end, error)
        if end.is_fault:
            self._log(logging.ERROR, "a task of connection %s failed: closing it", self.id, exc_info=error)
        if end.code == CloseCode.TRY_AGAIN_LATER:
            self.retire_in_turn(end.code, end.reason)
        elif end.code != CloseCode.NORMAL or end.reason:
            self.end(end.code, end.reason)

    def _failed(self, error: Exception) -> None:
        """Close: the server, or what it wraps, raised where nothing may, and the client would miss what follows."""
        self._log(logging.ERROR, "connection %s failed: closing it", self.id, exc_info=error)
        self.end(CloseCode.INTERNAL_ERROR, "")

    def _log_end(self, end: Ending, error: BaseException | None) -> None:
        if end.is_fault or end.code == CloseCode.NORMAL:
            return
        if isinstance(end.error, BrokerError) and end.code == CloseCode.TRY_AGAIN_LATER:
            return self._log(logging.WARNING, "connection %s ends, the broker failed: %s", self.id, reasons(error))
        level = logging.WARNING if end.code in _FOR_OPERATORS else logging.INFO
        self._log(level, "closing connection %s: %s", self.id, reasons(error))

    def _log(self, level: int, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        run_in(self._context, partial(self._policy.bursts.log, logger, level, message, *args, exc_info=exc_info))


def _answer(on_gap: Callable[[Gap], object], gap: Gap) -> str | bytes | None:
    answer = on_gap(gap)
    return None if answer is None else to_client_data(answer)
