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
from backplane.connection.callback_handler import CallbackHandler
from backplane.connection.close_sequence import CloseSequence, ConnectionState
from backplane.connection.connection import Connection
from backplane.connection.ending import Ending, ending
from backplane.connection.handler import Handler
from backplane.connection.keepalive import ConnectionTimers
from backplane.connection.policy import ConnectionPolicy, SlowConsumer
from backplane.connection.receiver import Receiver
from backplane.connection.sender import AsgiSender, LaneSender, Sender
from backplane.connection.tasks import Tasks
from backplane.errors import ConfigurationError
from backplane.fanout.backlog import TOO_SLOW
from backplane.fanout.batch import Batch
from backplane.fanout.codec import to_client_data
from backplane.fanout.subscriber import BaseSubscriber
from backplane.fanout.subscriber_options import SubscriberOptions
from backplane.journal.events import (
    CLIENT_ACCEPTED,
    CLIENT_CLOSED,
    CLIENT_FAILED,
    CLIENT_SLOW,
    HANDLER_OVERSTAYED,
    HOOK_FAILED,
    MESSAGE_INVALID,
)
from backplane.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.concurrency.affinity import LoopAffinity
    from backplane.connection.callback_handler import Clients, OnConnection, OnMessage
    from backplane.connection.client_protocol import ClientProtocol
    from backplane.connection.socket import OpenSocket, Socket
    from backplane.errors import InvalidMessageError
    from backplane.fanout.hub import Hub
    from backplane.fanout.outbox import Outbox
    from backplane.fanout.subscriber_options import ChannelPresence
    from backplane.journal.events import Event
    from backplane.message import Gap, Joined, Position
    from backplane.statistics import DropReason, LossReason, Transport

__all__ = ["ConnectionDriver"]

logger: Final = logging.getLogger("backplane.connection.driver")

# How soon it is checked for the first time, and how often at least, that something receives from the client: where
# nothing does, the end of the client would go unnoticed.
_FIRST_CHECK_SECONDS: Final = 1.0
_CHECK_SECONDS: Final = 15.0


class ConnectionDriver(BaseSubscriber):
    """One client, from its joins to its close.

    Args:
        socket: The client.
        hub: Where it subscribes.
        outbox: What waits for it.
        policy: What it has in common with the other clients. Defaults to one of its own.
        context: The application's own, such as the user.
        options: What only some clients are given.

    Attributes:
        connection: What the application has of it.
        affinity: The event loop it belongs to, which each verb of the application checks first.
        socket, outbox, policy: As above.
        sender: From the outbox to the socket.
        receiver: From the socket to the handler.
        is_accepted: Whether the handshake is done.
        timers: Its times; `backplane.connection.keepalive` calls `check_timers` by them.
    """

    __slots__ = (
        "_close_sequence",
        "_handler",
        "_protocol",
        "_tasks",
        "affinity",
        "connection",
        "is_accepted",
        "outbox",
        "policy",
        "receiver",
        "sender",
        "socket",
        "timers",
    )

    def __init__(
        self,
        socket: Socket,
        hub: Hub,
        outbox: Outbox,
        policy: ConnectionPolicy | None = None,
        *,
        context: Any = None,
        options: SubscriberOptions | None = None,
    ) -> None:
        self.policy: ConnectionPolicy = policy or ConnectionPolicy()
        super().__init__(hub, self.policy, context=context, options=options)
        self.connection: Connection = Connection(self)
        self.affinity: LoopAffinity = hub.affinity
        self.socket: OpenSocket = socket
        self.outbox: Outbox = outbox
        lane = socket.lane
        self.sender: Sender = (
            AsgiSender(outbox, self, socket.send, self._context)
            if lane is None
            else LaneSender(outbox, self, lane, self._context)
        )
        outbox.on_drop = self._dropped
        self.timers: ConnectionTimers = ConnectionTimers(asyncio.get_running_loop().time())
        limits = self.policy.limits
        if lane is not None and limits.max_message_bytes is not None:
            lane.limit_messages(limits.max_message_bytes)
        self.receiver: Receiver | CallbackHandler = Receiver(socket.receive, limits, self)
        socket.on_bypass(self.receiver)
        self.is_accepted: bool = False
        self._close_sequence: CloseSequence | None = None
        self._tasks: Tasks | None = None
        self._handler: Handler | None = None
        self._protocol: ClientProtocol | None = None

    def speak(self, protocol: ClientProtocol) -> None:
        """Serve the client in a protocol, from its handshake on."""
        self._protocol = protocol
        if self._options is None:
            self._options = SubscriberOptions()
        self._options.envelope = protocol.envelope
        self._options.held = protocol.held
        protocol.begin(self)

    @property
    def user(self) -> str | None:
        """The user of it: who is present, or whom the protocol of the client names."""
        user = super().user
        return user if user is not None or self._protocol is None else self._protocol.user

    @property
    def kind(self) -> str:
        """`connection`: what it is in logs and errors."""
        return "connection"

    @property
    def _client(self) -> Connection:
        """What the application knows of it."""
        return self.connection

    @property
    def _is_admitted(self) -> bool:
        return self.is_accepted

    @property
    def state(self) -> ConnectionState:
        """Where it is between its handshake and its end."""
        if self._close_sequence is not None:
            return self._close_sequence.state
        return "closed" if self._ended else "open" if self.is_accepted else "joining"

    @property
    def has_ended(self) -> bool:
        """Whether nothing is received or sent any more, and the close frame is sent or on its way."""
        return self._ended

    @property
    def transport(self) -> Transport:
        """How it is served."""
        return "asgi" if self.socket.lane is None else "lane"

    @property
    def closed_with(self) -> tuple[int, str] | None:
        """The code and reason of a close that was requested before the handshake was done."""
        return None if self._close_sequence is None else self._close_sequence.closed_with

    @property
    def tasks(self) -> Tasks:
        """Its tasks beside the handler."""
        if self._tasks is None:
            self._tasks = Tasks(self._task_failed, self.policy.handler_grace_seconds)
        return self._tasks

    # --- what the application's verbs need beside the parts ---

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
        if self.is_accepted and self.state in ("open", "draining"):
            self.timers.due = self.timers.next_due(self.policy.limits)
            self.policy.keepalive.put(self)

    def count_invalid(self, error: InvalidMessageError) -> None:
        """Count a message that does not validate, and log it without its content."""
        self.policy.statistics.invalid_messages += 1
        words = "connection %(connection)s sent an invalid message: %(reason)s"
        self.log(logger, MESSAGE_INVALID, words, level=logging.INFO, reason=error.details[0]["type"])

    def position(self, channel: str) -> Position | None:
        """Return up to where the client was sent `channel`, once all that was received of it is on its way."""
        return self._hub.position(channel) if channel in self._channels else None

    def presence(self, channel: str) -> ChannelPresence:
        """Return what this client has of the presence of a channel.

        Raises:
            ConfigurationError: The channel has no presence.
        """
        if self._presence is None:
            raise ConfigurationError(f"channel {channel!r} has no presence: pass Backplane(presence={{...}})")
        self._presence.check(channel)
        return self._presence

    def presence_frames(self, channel: str) -> ChannelPresence:
        """Return what sends this client the users of a channel.

        Raises:
            ConfigurationError: The channel has no presence, or the protocol of the client has no such frames.
        """
        if self._protocol is not None:
            raise ConfigurationError("an SDK client is notified where it subscribes with joinLeave: omit presence=True")
        return self.presence(channel)

    async def join_pattern(self, pattern: str) -> None:
        """Join a pattern, which the client of a protocol would not know what to do with.

        Raises:
            ConfigurationError: It is such a client; else as `BaseSubscriber.join_pattern`.
        """
        if self._protocol is not None:
            raise ConfigurationError("an SDK client subscribes to channels by their names: it can be in no pattern")
        await super().join_pattern(pattern)

    async def join_at_handshake(self, channel: str) -> None:
        """Join, from where the client was before."""
        options = self._options
        if options is None:
            await self.join(channel)
        else:
            await self.join(channel, since=options.since, rewind=options.rewind)

    async def join_permitted(self, channel: str, since: str | None) -> None:
        """Join a channel that a token permits: the application is not asked."""
        await self._join(channel, since, 0, is_permitted=True)

    async def leave(self, channel: str) -> None:
        """Receive nothing more of `channel`, except what waits. Leaving a channel twice changes nothing."""
        self._hub.affinity.check()
        if self.leave_now(channel) and self._protocol is not None:
            self._protocol.left(channel)

    def leave_now(self, channel: str) -> bool:
        """Leave a channel, of which a protocol is not notified; return whether it was joined."""
        was_joined = super().leave_now(channel)
        self.outbox.disallow(channel)
        return was_joined

    def identify(self, presence: ChannelPresence | None) -> None:
        """Take the user of a client of a protocol that names it after its handshake: it is present where that is."""
        assert self._options is not None, "a client of a protocol has options"
        if (former := self._options.presence) is not None:
            for channel in self._channels:
                former.left(self, channel)
        self._options.presence = presence
        self._enter_channels()

    def send(self, data: str | bytes) -> None:
        """Send what the application itself sends, after what waits, without an envelope. Does not raise."""
        try:
            message = data if self._protocol is None else self._protocol.message(data)
            if message is not None:
                self.transmit(message)
        except Exception as error:
            self._failed(error)

    def transmit(self, data: str | bytes) -> None:
        """Send one WebSocket message, after what waits."""
        self.policy.statistics.sent += 1
        self.sender.offer(Batch(Message(channel="", data=data)))

    # --- called by the hub and the sender ---

    def offer(self, batch: Batch, /) -> None:
        """Take messages for the client. Does not raise: where it fails the client is closed."""
        try:
            if self._options is not None:
                batch = self._options.apply(batch)
            self.sender.offer(batch)
        except Exception as error:
            self._failed(error)

    def offer_missed(self, batch: Batch, /) -> None:
        """Take what is given back, at a join or after a loss. Does not raise: where it fails the client is closed."""
        try:
            batch = batch.for_token(self.token) if batch.excludes else batch
            if batch and self._protocol is not None and batch[0].channel in self._protocol.held:
                return self._protocol.missed(batch)
            if self._options is not None:
                batch = self._options.apply(batch)
            if batch:
                self.sender.offer_missed(batch)
        except Exception as error:
            self._failed(error)

    def _take_joined(self, joined: Joined) -> None:
        """Notify the client, where it has an envelope, of its join and of a gap; the application of a gap.

        A join never closes a client: it would come back with the same position, and be closed again.
        """
        if self._protocol is not None:
            return self._protocol.joined(joined)
        self._send_at_join(self._enveloped(joined), joined.channel)
        gap, on_gap = joined.gap, self.policy.on_gap
        if gap is None:
            return
        self._send_at_join(self._enveloped(gap), gap.channel)
        if on_gap == "close":
            return
        try:
            data = run_in(self._context, _answer, on_gap, gap)
        except Exception as error:
            words = "%(hook)s failed for channel %(channel)r at a join of connection %(connection)s"
            self.log(logger, HOOK_FAILED, words, hook="on_gap", channel=gap.channel, exc_info=error)
        else:
            self._send_at_join(data, gap.channel)

    def _enveloped(self, event: Gap | Joined) -> str | bytes | None:
        """Return what a client with an envelope is sent for a gap or a join; close it where the envelope fails."""
        envelope = None if self._options is None else self._options.envelope
        if envelope is None:
            return None
        try:
            data = envelope(event)
            return None if data is None else to_client_data(data)
        except Exception as error:
            self._failed(error)
            return None

    def _send_at_join(self, data: str | bytes | None, channel: str) -> None:
        """Send what belongs to a join of `channel`: like what is given back, it makes no client too slow."""
        if data is not None:
            self.outbox.allow(channel, 1, len(data))
            self.send(data)
            self.outbox.settle()

    def gap(self, gap: Gap) -> None:
        """Notify the client that messages may be missing: by a close or in the words of the application.

        A client with an envelope gets the gap in it too, so that it has the position at which the channel goes on. So
        does one that is about to be closed: it comes back with the position of what it received last.
        """
        if self._detached:
            return
        if self._protocol is not None:
            return self._notify_of_gap(self._protocol, gap)
        if (event := self._enveloped(gap)) is not None:
            self.send(event)
        on_gap = self.policy.on_gap
        if on_gap == "close":
            return self._reload(gap)
        try:
            data = run_in(self._context, _answer, on_gap, gap)
        except Exception as error:
            words = "%(hook)s failed for channel %(channel)r: closing connection %(connection)s"
            self.log(logger, HOOK_FAILED, words, hook="on_gap", channel=gap.channel, exc_info=error)
            return self._reload(gap)
        if data is not None:
            self.send(data)

    def _notify_of_gap(self, protocol: ClientProtocol, gap: Gap) -> None:
        try:
            protocol.gap(gap)
        except Exception as error:  # the others are still notified
            self._failed(error)

    def outbox_full(self, item: Message | Gap) -> None:
        """Close the client, which is too slow and whose policy is `close`."""
        self._log_slow(item, "closed")
        self._notify_slow(item, "closed")
        self.closing.close(CloseCode.TRY_AGAIN_LATER, TOO_SLOW)

    def send_failed(self, error: Exception) -> None:
        """End: the client is gone, or the server failed to send, which is logged and closes the client."""
        if self.socket.is_gone(error):
            self.disconnected()
        else:
            self._failed(error)

    def transport_closed(self) -> None:
        """Leave the channels: nothing can be sent any more. What the client sent before can still be received."""
        self.closing.transport_closed()
        self._detach()
        self.policy.keepalive.remove(self)

    def messages_lost(self, reason: LossReason, count: int, /) -> None:
        """Count messages that the client was offered and does not get."""
        self.policy.statistics.count_loss("websocket", reason, count)

    def client_has_read(self) -> None:
        """Take it for the answer to a heartbeat: a ping waits after everything else, or is not sent at all.

        What a join gives back can take a slow client longer than the time between two heartbeats.
        """
        self.timers.pinged_at = None

    # --- called by the receiver and the timers ---

    def message_received(self, now: float, data: str | bytes, /) -> None:
        """Count a message of the client, and note when it came."""
        self.timers.last_received_at = now
        statistics = self.policy.statistics
        statistics.client_messages += 1
        statistics.client_bytes += len(data)

    def message_arrived(self, now: float, /) -> None:
        """Note when the client sent a message that is received later."""
        self.timers.last_received_at = now

    def disconnected(self) -> None:
        """End: the client is gone, and what it sent is received."""
        self.closing.disconnected()

    def limit_exceeded(self, code: CloseCode, reason: str, /) -> None:
        """Close the client, which did more than it may."""
        self.log(logger, CLIENT_CLOSED, "closing connection %(connection)s: %(reason)s", code=int(code), reason=reason)
        self.closing.close(code, reason)

    def check_timers(self, now: float, /) -> None:
        """Do what is due: close it at a limit, send a heartbeat, receive for a handler that does not."""
        limits = self.policy.limits
        self._ensure_receiving()
        code = self.timers.ended_by(now, limits)
        if code is not None:
            self.timers.due = float("inf")
            return self.limit_exceeded(code, close_reason(code))
        if limits.heartbeat_seconds is not None and now >= self.timers.heartbeat_at:
            try:
                self._heartbeat(now, limits.heartbeat_seconds)
            except Exception as error:  # of the server: the timer serves all other connections too
                self._failed(error)
        due = float("inf") if self._detached else self.timers.next_due(limits)
        # Without a handler the server receives by itself: nothing is to be looked after.
        self.timers.due = due if self._handler is None else min(due, now + _CHECK_SECONDS)

    # --- called by the handshake and the worker ---

    def handler_entered(self) -> None:
        """The block is about to be entered, by the task that calls."""
        self._handler = Handler(self.policy.handler_grace_seconds, self._handler_cancelled)
        if self._detached:  # as for a callback whose message came together with the end of the client
            self._handler.connection_ended()

    def handler_left(self, error: BaseException | None) -> bool:
        """The block is left; return whether `error` is the cancellation of a handler that outlived its connection."""
        handler, self._handler = self._handler, None
        return handler is not None and handler.left(error)

    def accepted(self) -> None:
        """The handshake is done: send what waits since the joins, or the close frame that was requested meanwhile."""
        self.is_accepted = True
        if self._options is not None:
            self._options.since = None  # the joins of the handshake are over
        self._count_opened()
        if self._close_sequence is not None:
            self._close_sequence.accepted()
        if self.closed_with is not None:
            return
        if logger.isEnabledFor(logging.DEBUG):
            self.log(logger, CLIENT_ACCEPTED, "connection %(connection)s is accepted")
        self.sender.open()
        if self._ended:  # the first message found that the client is gone
            return
        self._enter_channels()
        now = asyncio.get_running_loop().time()
        self.timers.begin(now, self.policy.limits)
        self.timers.due = min(self.timers.due, now + _FIRST_CHECK_SECONDS)
        self.policy.keepalive.put(self)

    def _count_opened(self) -> None:
        statistics = self.policy.statistics
        statistics.connections_opened += 1
        statistics.connections_on_lane += self.socket.lane is not None
        statistics.connections_of_sdks += self._protocol is not None

    def hand_over(
        self,
        socket: Socket,
        clients: Clients,
        *,
        on_open: OnConnection | None,
        on_message: OnMessage | None,
        on_close: OnConnection | None,
    ) -> bool:
        """Go on by callbacks, without the handler and its task; return whether the server can do that."""
        if self.is_over:
            return False
        handler = CallbackHandler(self, self._context, on_open, on_message, on_close, clients)
        handed_over = socket.hand_over(handler)
        if handed_over is None:
            return False
        assert isinstance(self.sender, LaneSender)
        self.sender.continue_on(handed_over.lane)
        self.socket, self.receiver = handed_over, handler
        handler.begin(handed_over.lane)
        return True

    def release(self) -> None:
        """Drop what refers back to this, once a client without a handler is finished.

        A cycle is freed by the garbage collector alone, and where thousands of clients leave its passes are long.
        """
        self.outbox.on_drop = None
        self.sender.release()
        assert isinstance(self.receiver, CallbackHandler)
        self.receiver.release()
        self._close_sequence = None
        self._tasks = None
        self._protocol = None
        del self.connection

    async def close(self, code: int, reason: str) -> None:
        """Close, and return when the close frame is sent or the attempt was given up."""
        if self._close_sequence is not None or not self._ended:
            self.closing.close(code, reason)
            await self.closing.closed()

    def retire(self, code: int, reason: str) -> None:
        """Send what waits, then close; until then the client receives what is published."""
        self.closing.close_after_flush(code, reason)

    def ending(self, error: BaseException | None) -> Ending | None:
        """Return how the client is closed because of `error`, and `None` where it gets no close frame."""
        return ending(error, is_over=self.is_over, of_framework=self.socket.ending)

    # --- the end ---

    @property
    def closing(self) -> CloseSequence:
        """Its end, made when it is first needed."""
        if self._close_sequence is None:
            self._close_sequence = CloseSequence(self, self._context)
        return self._close_sequence

    def stop(self) -> None:
        """Receive and send nothing more; called once, by `closing`."""
        self._leave_all()
        self.sender.close()
        self.policy.keepalive.remove(self)
        self.receiver.close()
        if self._tasks is not None:
            self._tasks.cancel()

    def _detach(self) -> None:
        super()._detach()
        if self._handler is not None:
            self._handler.connection_ended()

    def _reload(self, gap: Gap) -> None:
        if self.state not in ("joining", "open"):  # it is about to be closed, and then reloads
            return
        words = "closing connection %(connection)s, to reload: %(reason)s"
        code = CloseCode.MESSAGES_MISSED
        self.log(logger, CLIENT_CLOSED, words, of_many=True, code=int(code), channel=gap.channel, reason=gap.reason)
        self.closing.close_in_turn(CloseCode.MESSAGES_MISSED, "messages may have been missed: reload")

    def _failed(self, error: Exception) -> None:
        """Close: the server, or what it wraps, raised where nothing may, and the client would miss what follows."""
        self.log(logger, CLIENT_FAILED, "connection %(connection)s failed: closing it", exc_info=error)
        self.closing.close(CloseCode.INTERNAL_ERROR, "")

    def _task_failed(self, error: BaseException) -> None:
        self.closing.task_failed(error)

    def close_frame(self, code: int, reason: str) -> tuple[int, str]:
        """Return with which code and reason the client is closed, in its protocol."""
        return (code, reason) if self._protocol is None else self._protocol.close_frame(code, reason)

    async def end_tasks(self) -> None:
        """Cancel the tasks beside the handler, and return when they have ended."""
        if self._tasks is not None:
            await self._tasks.end()

    def _handler_cancelled(self, is_cancelled: bool) -> None:
        if is_cancelled:
            self.policy.statistics.cancelled_handlers += 1
            words = "the handler of connection %(connection)s did not end with it: cancelled after %(seconds)g s"
            self.log(logger, HANDLER_OVERSTAYED, words, level=logging.INFO, seconds=self.policy.handler_grace_seconds)
        else:
            words = (
                "the handler of connection %(connection)s did not end with it within %(seconds)g s, and its server "
                "cannot cancel it"
            )
            self.log(logger, HANDLER_OVERSTAYED, words, seconds=self.policy.handler_grace_seconds)

    # --- heartbeats ---

    def _ensure_receiving(self) -> None:
        """Receive for a handler that does not; on a lane only where the server waits for that, and reads nothing."""
        lane = self.socket.lane
        if self._detached or self._handler is None or self.receiver.is_waiting or (lane is not None and lane.reading):
            return
        reading = self.socket.read_ahead(self.message_arrived, self._client_vanished)
        if reading is not None:
            self.tasks.spawn(reading, f"backplane-read-ahead-{self.id}", context=self._context)

    def _client_vanished(self) -> None:
        self.sender.close()
        self.transport_closed()

    def _heartbeat(self, now: float, interval: float) -> None:
        lane, timers = self.socket.lane, self.timers
        message = self.policy.limits.heartbeat_message
        if self._protocol is not None and self._protocol.pings:
            return self._ping_of_protocol(self._protocol, now, interval)
        if lane is not None:
            last_received_at, is_read = lane.last_received_at, lane.reading
        else:  # without a handler that receives, an answer would not be seen
            last_received_at, is_read = timers.last_received_at, message is not None and self.receiver.is_waiting
        found = timers.heartbeat(now, interval, last_received_at=last_received_at, is_read=is_read)
        if found == "silent":
            self.limit_exceeded(CloseCode.SILENT, "no answer to heartbeats")
            if lane is not None:
                lane.abort()
        elif lane is None:
            if found == "ping":
                self.send(to_client_data(message))
        elif found == "ping" or not is_read:
            # Where nothing is read it is not for an answer: only a write finds there that the client is gone.
            lane.ping()

    def _ping_of_protocol(self, protocol: ClientProtocol, now: float, interval: float) -> None:
        """Ping, whatever the client has sent: it expects that. Or see whether it has answered the last ping."""
        lane, timers = self.socket.lane, self.timers
        pinged_at, timers.pinged_at = timers.pinged_at, None
        pong_seconds = min(protocol.pong_seconds, interval)
        if pinged_at is None:
            timers.pinged_at, timers.heartbeat_at = now, now + pong_seconds
            self.transmit(protocol.ping())
            return
        timers.heartbeat_at = now + interval - pong_seconds
        is_read = self.receiver.is_waiting if lane is None else lane.reading
        if is_read and (timers.last_received_at if lane is None else lane.last_received_at) < pinged_at:
            self.limit_exceeded(CloseCode.SILENT, "no answer to a ping")

    # --- a slow client, and the log ---

    def _dropped(self, item: Message | Gap, reason: DropReason) -> None:
        self.policy.statistics.count_loss("websocket", reason)
        if reason != "replaced" and not self.outbox.is_overflowing:  # once for each stretch
            self._log_slow(item, reason)
            self._notify_slow(item, reason)

    def _notify_slow(self, item: Message | Gap, action: str) -> None:
        slow = SlowConsumer(
            connection=self.connection,
            channel=item.channel,
            action=action,
            waiting_messages=len(self.outbox),
            waiting_bytes=self.outbox.size_bytes,
        )
        run_in(self._context, self.policy.notify_slow, slow)

    def _log_slow(self, item: Message | Gap, action: str) -> None:
        words = (
            "connection %(connection)s is too slow for channel %(channel)r: closing it"
            if action == "closed"
            else "connection %(connection)s is too slow for channel %(channel)r: messages are dropped (%(action)s)"
        )
        self.log(
            logger,
            CLIENT_SLOW,
            words,
            channel=item.channel,
            action=action,
            messages=len(self.outbox),
            bytes=self.outbox.size_bytes,
        )

    def log(
        self,
        logger: logging.Logger,
        event: Event,
        message: str,
        *,
        level: int | None = None,
        exc_info: BaseException | None = None,
        of_many: bool = False,
        **fields: object,
    ) -> None:
        """Log an event of the connection, in its Context, with the names of it; see `Journal.log`."""
        write_it = partial(self.policy.journal.log, logger, event, message, level=level, exc_info=exc_info)
        run_in(self._context, partial(write_it, of_many=of_many, **self.named, **fields))


def _answer(on_gap: Callable[[Gap], object], gap: Gap) -> str | bytes | None:
    answer = on_gap(gap)
    return None if answer is None else to_client_data(answer)
