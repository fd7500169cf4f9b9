"""One connection to a NATS server, from its login to its end.

nats-py has connected it and logged in; here its socket is taken over. The protocol is
https://docs.nats.io/reference/reference-protocols/nats-protocol. Commands are sent in groups, each confirmed by one
PONG (`command_queue`). Publishes of one pass of the event loop share a group, because the refusal of a publish names
its subject. Every subscription is a group of its own, because the refusal of a subscription does not always name one.
"""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from backplane.adapters.nats.command_groups import LINE_TOO_LONG, PublishGroup, RoundTrip, SubscribeGroup
from backplane.adapters.nats.command_queue import CommandQueue
from backplane.adapters.nats.errors import line_too_long, outcome_unknown, unavailable
from backplane.adapters.nats.parser import MAX_LINE_BYTES, MAX_PAYLOAD_BYTES, NatsParser
from backplane.adapters.nats.requests import Requests
from backplane.adapters.nats.server_info import ServerInfo, read_info
from backplane.adapters.nats.subjects import decode_channel
from backplane.adapters.nats.wildcard import Wildcard
from backplane.concurrency.fork import close_in_children
from backplane.errors import BrokerError, PublishError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from backplane.adapters.nats.channel_log import ChannelLog, ChannelLogs
    from backplane.adapters.nats.requests import Reply, Request
    from backplane.adapters.nats.servers import Server
    from backplane.broadcaster import Sink

__all__ = ["NatsLink", "SubscribeResult"]

_DENIED: Final = re.compile(
    r'Permissions Violation for (Publish|Subscription) to "([^"]*)"(?:.*\(sid "(\d+)"\))?', re.IGNORECASE
)
# Load balancers and NATs drop a connection that is idle for some minutes.
_KEEPALIVE_SECONDS: Final = 30
_MAX_REASON_CHARACTERS: Final = 300


@dataclass(slots=True)
class SubscribeResult:
    """The result of one call of `subscribe`.

    Attributes:
        refused: The channels that the server refused, each with its error.
        unconfirmed: The channels without a final answer, each with the server's error.
    """

    refused: dict[str, str] = field(default_factory=dict[str, str])
    unconfirmed: dict[str, str] = field(default_factory=dict[str, str])


class _Subscription(NamedTuple):
    channel: str
    subject: bytes
    log: ChannelLog | None  # where the channel has a history
    is_shared: bool = False  # in the group of the wildcard


class NatsLink(asyncio.Protocol):
    """One connection.

    Args:
        sink: Where messages and revoked subscriptions are reported.
        server: Where it is connected to.
        on_lost: Called once, when it ends after `take_over` has returned.
        on_info: Called after every INFO.
        max_pending_bytes: Most bytes published and not yet confirmed.
        line_limits: The longest arguments of a command, in bytes, by the id of the server: of servers that ended a
            connection over longer ones. The link adds to it.
        prefix: That of every subject.
        logs: Which channels have a history, where any has.

    Attributes:
        server: Where it is connected to.
        info: The server's last INFO.
        is_encrypted: Whether TLS protects it.
        is_up: Whether `take_over` has returned; it stays so after the end.
        closed: Set while it is not connected.
    """

    def __init__(
        self,
        sink: Sink,
        server: Server,
        *,
        on_lost: Callable[[NatsLink, BrokerError], None],
        on_info: Callable[[NatsLink], None],
        max_pending_bytes: int,
        line_limits: dict[str, int],
        prefix: str = "",
        logs: ChannelLogs | None = None,
    ) -> None:
        self._sink = sink
        self._on_lost = on_lost
        self._on_info = on_info
        self._max_pending_bytes = max_pending_bytes
        self._line_limits = line_limits
        self._transport: asyncio.Transport | None = None
        self._login: object = None
        self._parser = NatsParser(self._message_received, self._line_received)
        self._queue = CommandQueue()
        self._logs = logs
        self._prefix = prefix
        self._wildcard = Wildcard(prefix, logs, self._drop_number)
        self._requests = Requests(prefix)
        self._reply_id: bytes | None = None  # of the subscription to replies
        self._channels: dict[bytes, _Subscription] = {}  # by their ids
        self._ids: dict[str, bytes] = {}
        self._last_id = 0
        self._max_line_bytes = MAX_LINE_BYTES
        self._last_error = ""
        self.server: Server = server
        self.info: ServerInfo = ServerInfo()
        self.is_encrypted: bool = False
        self.is_up: bool = False
        self.closed: asyncio.Event = asyncio.Event()
        self.closed.set()

    @property
    def is_open(self) -> bool:
        """Whether it is connected."""
        return not self.closed.is_set()

    @property
    def max_payload_bytes(self) -> int:
        """Largest payload that the server accepts."""
        return self.info.max_payload if self.info.max_payload > 0 else MAX_PAYLOAD_BYTES

    @property
    def synced_at(self) -> float:
        """What the server had sent by then is received: by the monotonic clock, minus infinity at first."""
        return self._queue.synced_at

    async def take_over(self, transport: asyncio.WriteTransport, received: bytes, login: object) -> None:
        """Become the protocol of a connection that is logged in; return when the limits of its account are known.

        Where it fails, or is cancelled, the caller has to abort the connection.

        Args:
            transport: The connection.
            received: What was received on it and not read.
            login: What opened it. Kept as long as this link, because its collection would close the transport.

        Raises:
            BrokerUnavailableError: The connection has ended.
        """
        self._login = login
        self._transport = cast("asyncio.Transport", transport)
        if transport.is_closing():
            raise unavailable("the connection ended: closed by the server")
        transport.set_protocol(self)
        # The reader of the login may have paused it, or have been notified of its end: resuming reports the end again.
        self._transport.pause_reading()
        self._transport.resume_reading()
        self._keep_alive()
        close_in_children(self, transport)
        self.closed.clear()
        self._queue.open(self._transport.write)
        self.data_received(received)
        await self._round_trip(b"")  # an INFO with the limits of the account follows the PONG of the login
        self.is_up = True

    def _keep_alive(self) -> None:
        """Turn TCP keepalive on: a worker that only publishes may do so rarely, and no probe runs then."""
        connection: socket.socket = self._require_transport().get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):  # otherwise the two hours of the system
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_SECONDS)

    def abort(self) -> None:
        """End it at once; `closed` is set when that is done."""
        if self._transport is not None:
            self._transport.abort()

    def inform(self, info: ServerInfo) -> None:
        """Take an INFO of the server."""
        self.info = info
        self._max_line_bytes = self._line_limits.get(info.server_id, MAX_LINE_BYTES)
        self._on_info(self)

    async def settle(self) -> None:
        """Return when the server has confirmed every command and replied to every request, or the connection ended."""
        try:
            await self._round_trip(b"")
        except BrokerError:
            return
        await self._requests.settle()

    async def publish(self, subject: bytes, payload: bytes) -> None:
        """Send PUB and wait for the confirmation.

        Raises:
            PublishError: The server refuses it, or too much awaits its confirmation (`retriable`).
            PublishOutcomeUnknownError: The connection ended, or the server sent an error that names no command.
        """
        line = b"%b %d" % (subject, len(payload))
        group = self._publish_group(line, len(subject) + len(payload))
        answer = group.add(subject, len(line), len(payload))
        self._queue.pending_bytes += len(subject) + len(payload)
        self._queue.send(b"PUB %b\r\n%b\r\n" % (line, payload))
        await answer

    async def request(self, subject: bytes, payload: bytes, headers: bytes = b"") -> list[Reply]:
        """Send a publish with a reply subject, in one order with `publish`; return the messages of the reply.

        A server without a receiver for `subject` replies with status 503.

        Args:
            subject: Where to.
            payload: What follows the headers.
            headers: With their first line and their last empty one; or none.

        Raises:
            PublishError: As for `publish`.
            PublishOutcomeUnknownError: The connection ended before the reply.
            BrokerError: The server refuses the subscription to replies.
        """
        request = self._send_request(subject, payload, headers)
        try:
            return await request.future
        finally:
            self._requests.close(request)

    async def request_each(self, subject: bytes, payloads: Iterable[bytes]) -> list[list[Reply]]:
        """Send several requests at once, as `request` does; return their replies when all are there.

        Raises:
            BrokerError: As for `request`, for the first that failed.
        """
        requests: list[Request] = []
        try:
            for payload in payloads:
                requests.append(self._send_request(subject, payload, b""))  # noqa: PERF401  # closed if one fails
            await asyncio.wait([request.future for request in requests])
            errors = [error for request in requests if (error := request.future.exception()) is not None]
            if errors:
                raise errors[0]
            return [request.future.result() for request in requests]
        finally:
            for request in requests:
                request.future.cancel()  # where it has no reply: no one asks for its outcome any more
                self._requests.close(request)

    def _send_request(self, subject: bytes, payload: bytes, headers: bytes) -> Request:
        """Send a request; it is to be closed."""
        content = headers + payload
        if self._reply_id is None:
            self._subscribe_to_replies()
        size = len(subject) + len(content)
        request = self._requests.open(size)
        try:
            sizes = b"%d %d" % (len(headers), len(content)) if headers else b"%d" % len(content)
            line = b"%b %b %b" % (subject, request.reply_to, sizes)
            group = self._publish_group(line, size)
            group.add_request(subject, len(line), len(content), request.future)
            self._queue.pending_bytes += size
            self._queue.send(b"%b %b\r\n%b\r\n" % (b"HPUB" if headers else b"PUB", line, content))
        except BaseException:
            self._requests.close(request)
            raise
        return request

    def _publish_group(self, line: bytes, size: int) -> PublishGroup:
        """Return the group for a publish with these arguments.

        Raises:
            PublishError: The line is too long, or too much awaits the server's answer (`retriable`).
        """
        queue = self._queue
        pending = max(queue.pending_bytes, self._requests.pending_bytes)
        if pending + size > self._max_pending_bytes and pending:
            raise PublishError(
                f"{pending:,} bytes await the server; publish slower, or raise max_pending_bytes",
                adapter="nats",
                retriable=True,
            )
        if len(line) > self._max_line_bytes:
            raise PublishError(line_too_long(len(line)), adapter="nats")
        group = queue.unsent[-1] if queue.unsent else None
        return group if isinstance(group, PublishGroup) else queue.begin(PublishGroup())

    async def subscribe(self, subjects: Mapping[bytes, str]) -> SubscribeResult:
        """Subscribe to `subjects`, each the subject of a channel."""
        answers = _ChannelAnswers(self)
        result = answers.result
        for subject, channel in subjects.items():
            if channel not in self._ids:
                self._subscribe(subject, channel, answers)
        await self._round_trip(b"")
        for channel in subjects.values():
            if channel not in self._ids and channel not in result.refused:
                result.unconfirmed.setdefault(channel, "the server took the subscription away")
        return result

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        """Drop `channels`, here at once and then at the server."""
        await self._leave(self.forget(channels, linger=True))

    async def subscribe_prefixes(self, prefixes: Collection[str]) -> SubscribeResult:
        """Subscribe to every channel that begins with one of `prefixes`: one wildcard serves them all."""
        wildcard, result = self._wildcard, SubscribeResult()
        wildcard.prefixes.add(prefixes)
        number: bytes | None = None
        while prefixes and (number is None or number != wildcard.number):
            if wildcard.number is None:
                self._subscribe_wildcard()
            number = wildcard.number
            await self._round_trip(b"")
            if wildcard.number is None:
                reason, is_refused = wildcard.failure
                (result.refused if is_refused else result.unconfirmed).update(dict.fromkeys(prefixes, reason))
                await self.unsubscribe_prefixes(prefixes)
                break
        return result

    async def unsubscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Drop `prefixes`, here at once and then, with the last one, at the server."""
        wildcard = self._wildcard
        wildcard.prefixes.remove(prefixes)
        unwanted = [channel for channel in wildcard.lingering if not wildcard.prefixes.covers(channel)]
        try:
            # The other members of its group are at the server before the wildcard leaves the group.
            await self._leave([self._end_lingering(channel) for channel in unwanted])
        finally:
            commands = wildcard.end_unwanted() if self.is_open else []
            if commands:
                self._queue.begin(RoundTrip())
                self._queue.send(b"".join(commands))
        if commands:
            await self._leave(())

    def data_received(self, data: bytes) -> None:
        """Parse what was received."""
        try:
            self._parser.feed(data)
        except ValueError as error:
            self._end(f"the server sent what is not NATS: {error}"[:200])

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail every command that is not confirmed, and report the end."""
        reason = f"the connection ended: {self._last_error or exc or 'closed by the server'}"
        self.closed.set()
        group = self._queue.awaited
        if group is not None and self._last_error.lower() == LINE_TOO_LONG:
            # The line that the server refused is in this group. From now on longer lines are refused here, before they
            # end another connection.
            limit = max(self._queue.longest_confirmed, _power_of_two_below(group.longest_line))
            self._line_limits[self.info.server_id] = limit
        self._queue.close(reason, self._last_error)
        self._requests.fail(lambda: outcome_unknown(f"{reason}, before the server replied"))
        if self.is_up:
            self._on_lost(self, unavailable(reason))

    def _message_received(self, number: bytes, subject: bytes, headers: bytes, payload: bytes) -> None:
        found = self._channels.get(number)
        if found is None:
            if number == self._reply_id:
                self._requests.receive(subject, headers, payload)
            elif number == self._wildcard.number or number in self._wildcard.leaving:
                self._received_by_wildcard(subject, headers, payload)
        elif found.log is None or not headers:
            self._sink.deliver(found.channel, payload)
        else:
            self._sink.deliver(found.channel, payload, found.log.place_of(headers, payload))

    def _received_by_wildcard(self, subject: bytes, headers: bytes, payload: bytes) -> None:
        channel = decode_channel(self._prefix, subject)
        if channel is None or channel in self._wildcard.lingering:
            return
        number = self._ids.get(channel)
        if number is not None:
            found = self._channels[number]
            if not found.is_shared:
                return  # it is received by its own subscription as well
            log = found.log
        elif self._wildcard.prefixes.covers(channel):
            log = self._wildcard.log_of(channel)
        else:
            return
        place = None if log is None or not headers else log.place_of(headers, payload)
        self._sink.deliver(channel, payload, place)

    def _line_received(self, line: bytes) -> None:
        if line == b"PONG":
            self._last_error = ""
            self._queue.confirm()
        elif line == b"PING":
            self._require_transport().write(b"PONG\r\n")
        elif line.startswith(b"-ERR"):
            self._error_received(line[4:].decode(errors="replace").strip(" '"))
        elif line.startswith(b"INFO"):
            self.inform(read_info(line[4:]))
        elif line != b"+OK":
            raise ValueError("an unknown command")

    def _error_received(self, error: str) -> None:
        """Attribute an error: to the group that awaits its PONG, to a standing subscription, or to the whole link."""
        denied = _DENIED.match(error)
        reason = error[:_MAX_REASON_CHARACTERS]
        self._last_error = reason  # the reason of the end, where the server now closes the connection
        group = self._queue.awaited
        if denied is not None and denied[1].lower() == "subscription":
            if not (isinstance(group, SubscribeGroup) and group.refuse(denied[2].encode(), denied[3], reason)):
                self._revoke(denied[2].encode(), denied[3], reason)
        elif isinstance(group, PublishGroup) and denied is not None and group.refuse(denied[2].encode(), reason):
            pass
        elif group is None or not group.refuse_unattributed(reason):
            self._end(reason)

    def _revoke(self, subject: bytes, number: str | None, reason: str) -> None:
        """Report a subscription that the server has removed, unless it was dropped here before."""
        if number is not None:
            found = self._channels.get(number.encode())
        else:
            found = next((known for known in self._channels.values() if known.subject == subject), None)
        if found is not None and found.channel in self._wildcard.lingering:
            self._end_lingering(found.channel)
            self._sink.gap([found.channel], reason)
        elif found is not None:
            self.drop(found.channel)
            self._sink.revoked([found.channel], reason)
        elif self._reply_id is not None and subject == self._requests.subject:
            self._end(reason)  # no reply would be received any more
        elif self._wildcard.number is not None and subject == self._wildcard.subject:
            self._end(reason)  # a prefix cannot be revoked alone

    def _end(self, reason: str) -> None:
        self._last_error = reason
        self.abort()

    def _subscribe(self, subject: bytes, channel: str, answers: _ChannelAnswers) -> None:
        number, is_shared = b"%d" % (self._last_id + 1), self._wildcard.number is not None
        line = b"%b %b %b" % (subject, self._wildcard.group, number) if is_shared else b"%b %b" % (subject, number)
        if len(line) > self._max_line_bytes:
            answers.result.refused[channel] = line_too_long(len(line))
            return
        lingering = self._wildcard.lingering.pop(channel, None)
        if lingering is None:
            self._last_id += 1
            self._queue.begin(SubscribeGroup(subject, number, len(line), answers))
            answers.channels[number] = channel
            self._queue.send(b"SUB %b\r\n" % line)
        else:
            number, is_shared = lingering, False
        self._ids[channel] = number
        log = None if self._logs is None else self._logs.subscribed(channel)
        self._channels[number] = _Subscription(channel, subject, log, is_shared)

    def _subscribe_wildcard(self) -> None:
        self._last_id += 1
        wildcard = self._wildcard
        number = wildcard.number = b"%d" % self._last_id
        line = b"%b %b %b" % (wildcard.subject, wildcard.group, number)
        self._queue.begin(SubscribeGroup(wildcard.subject, number, len(line), wildcard))
        self._queue.send(b"SUB %b\r\n" % line)

    def _end_lingering(self, channel: str) -> bytes:
        """Return the command that drops a lingering subscription at the server."""
        number = self._wildcard.lingering.pop(channel)
        del self._channels[number]
        return b"UNSUB %b\r\n" % number

    def _subscribe_to_replies(self) -> None:
        self._last_id += 1
        number = self._reply_id = b"%d" % self._last_id
        line = b"%b %b" % (self._requests.subject, number)
        self._queue.begin(SubscribeGroup(self._requests.subject, number, len(line), _ReplyAnswers(self._no_replies)))
        self._queue.send(b"SUB %b\r\n" % line)

    def _no_replies(self, error: Callable[[], BrokerError]) -> None:
        self._reply_id = None
        self._requests.fail(error)

    def has_subscribed(self, channel: str, number: bytes) -> bool:
        """Whether the subscription to a channel has this id."""
        return self._ids.get(channel) == number

    def drop(self, channel: str) -> None:
        """Drop a subscription of which it is unknown whether the server has it."""
        for command in self.forget([channel]):
            self._queue.begin(RoundTrip())
            self._queue.send(command)

    def _drop_number(self, number: bytes) -> None:
        self._queue.begin(RoundTrip())
        self._queue.send(b"UNSUB %b\r\n" % number)

    def forget(self, channels: Iterable[str], *, linger: bool = False) -> list[bytes]:
        """Deliver nothing more for `channels`; return the commands that drop them at the server.

        Args:
            channels: The channels.
            linger: Keep those that a prefix wants, and that have a subscription without the group of the wildcard.
        """
        commands: list[bytes] = []
        for channel in channels:
            number = self._ids.pop(channel, None)
            if number is None:
                continue
            dropped = self._channels.pop(number)
            if dropped.log is not None and self._logs is not None:
                self._logs.unsubscribed(channel)
            if dropped.is_shared:
                self._wildcard.leaving.add(number)
            elif linger and self._wildcard.number is not None and self._wildcard.prefixes.covers(channel):
                self._wildcard.lingering[channel] = number
                self._channels[number] = dropped._replace(log=self._wildcard.log_of(channel))
                continue
            commands.append(b"UNSUB %b\r\n" % number)
        return commands

    async def _leave(self, commands: Iterable[bytes]) -> None:
        """Send commands that drop subscriptions; return when nothing is received by them any more."""
        left = frozenset(self._wildcard.leaving)
        await self._round_trip(b"".join(commands))
        self._wildcard.leaving -= left

    async def _round_trip(self, commands: bytes) -> None:
        group = self._queue.begin(RoundTrip())
        self._queue.send(commands)
        await group.confirmed()

    def _require_transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport


class _ChannelAnswers:
    """The answers to the subscriptions of one call.

    A channel may have been dropped, and subscribed again, before the PONG arrives: then it has another id.

    Args:
        link: The link.

    Attributes:
        result: Where they are noted.
        channels: The channels, by the ids of their subscriptions.
    """

    def __init__(self, link: NatsLink) -> None:
        self._link = link
        self.result: SubscribeResult = SubscribeResult()
        self.channels: dict[bytes, str] = {}

    def refused(self, number: bytes, /, reason: str) -> None:
        """Forget the subscription."""
        channel = self.channels[number]
        if self._link.has_subscribed(channel, number):
            self._link.forget([channel])
        self.result.refused[channel] = reason

    def unconfirmed(self, number: bytes, /, reason: str) -> None:
        """Drop the subscription, which the server may have."""
        channel = self.channels[number]
        if self._link.has_subscribed(channel, number):
            self._link.drop(channel)
        self.result.unconfirmed[channel] = reason


class _ReplyAnswers:
    """The answer to the subscription to replies.

    Args:
        no_replies: Called with what makes the error for each request without a reply.
    """

    def __init__(self, no_replies: Callable[[Callable[[], BrokerError]], None]) -> None:
        self._no_replies = no_replies

    def refused(self, _: bytes, /, reason: str) -> None:
        """Fail every request."""
        self._no_replies(lambda: BrokerError(reason, adapter="nats"))

    def unconfirmed(self, _: bytes, /, reason: str) -> None:
        """Fail every request; the next one subscribes again."""
        self._no_replies(lambda: unavailable(reason))


def _power_of_two_below(size: int) -> int:
    """Return a guess at the limit of a server that has refused `size`: limits usually are such numbers."""
    return 1 << ((size - 1).bit_length() - 1)
