"""One connection to a NATS server, from its login to its last byte.

nats-py has connected it and logged in; here its socket is taken over. The protocol is
https://docs.nats.io/reference/reference-protocols/nats-protocol. The server works in order and confirms nothing but a
PING. So commands are sent in groups, each with a PING at its end: the PONG confirms the group, and a refusal that
arrives before it concerns this group. Publishes of one pass of the event loop share a group, for a refused publish is
named; every subscription is a group of its own, for not every refused subscription is.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar, cast

from backplane.adapters.nats.group import Group, Publishes, Round, Subscription, line_refused, unavailable
from backplane.adapters.nats.login import ServerInfo
from backplane.adapters.nats.parser import MAX_LINE_BYTES, MAX_PAYLOAD_BYTES, NatsParser
from backplane.adapters.shared.fork import close_in_children
from backplane.errors import BrokerError, PublishError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from backplane.adapters.nats.servers import Server
    from backplane.broadcaster import Sink

__all__ = ["Answer", "NatsLink"]

_Group = TypeVar("_Group", bound=Group)

_DENIED: Final = re.compile(
    r'Permissions Violation for (Publish|Subscription) to "([^"]*)"(?:.*\(sid "(\d+)"\))?', re.IGNORECASE
)
_LINE_TOO_LONG: Final = "maximum control line exceeded"
# What a burst of publishes adds up to before it is sent, in bytes: the server then works while the rest is prepared.
_WRITE_BYTES: Final = 64 * 1024
# The shortest idle time after which load balancers and NATs forget a connection is some minutes.
_KEEPALIVE_SECONDS: Final = 30
_MAX_WORDS: Final = 300


@dataclass(slots=True)
class Answer:
    """The answer to one call of `subscribe`.

    Attributes:
        refused: The channels that the server refused, with its words.
        unconfirmed: The channels without a final answer, with the server's words.
    """

    refused: dict[str, str] = field(default_factory=dict[str, str])
    unconfirmed: dict[str, str] = field(default_factory=dict[str, str])


class NatsLink(asyncio.Protocol):
    """One connection.

    Args:
        sink: Where messages and revoked subscriptions go.
        server: Where it leads.
        on_lost: Called once, when it ends after `take_over` has returned.
        on_info: Called after every INFO.
        max_pending_bytes: Most bytes published and not yet confirmed.
        line_limits: By the server's id, the most bytes that the arguments of a command may have at a server which ended
            a connection for more. Added to here.

    Attributes:
        server: Where it leads.
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
    ) -> None:
        self._sink = sink
        self._on_lost = on_lost
        self._on_info = on_info
        self._max_pending_bytes = max_pending_bytes
        self._line_limits = line_limits
        self._pending_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._owner: object = None
        self._parser = NatsParser(self._message, self._control)
        self._commands: list[bytes] = []
        self._commands_bytes = 0
        self._flush_is_due = False
        self._unsent: list[Group] = []
        self._unconfirmed: deque[Group] = deque()
        self._channels: dict[bytes, tuple[str, bytes]] = {}  # and their subjects, by the subscription's id
        self._ids: dict[str, bytes] = {}
        self._last_id = 0
        self._max_line_bytes = MAX_LINE_BYTES
        self._longest_confirmed = 0
        self._last_words = ""
        self.server = server
        self.info: ServerInfo = ServerInfo()
        self.is_encrypted = False
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

    async def take_over(self, transport: asyncio.WriteTransport, received: bytes, owner: object) -> None:
        """Go on with a connection that is logged in; return when the limits of its account are known.

        What fails, or is cancelled, leaves a connection that has to be aborted.

        Args:
            transport: The connection.
            received: What was received on it and not read.
            owner: Kept as long as this link: collected, it would close the transport.

        Raises:
            BrokerUnavailableError: The connection has ended.
        """
        self._owner = owner
        self._transport = cast("asyncio.Transport", transport)
        if transport.is_closing():
            raise unavailable("the connection ended: closed by the server")
        transport.set_protocol(self)
        # Its former reader may have paused it, or taken notice of its end.
        self._transport.pause_reading()
        self._transport.resume_reading()
        self._keep_alive()
        close_in_children(self, transport)
        self.closed.clear()
        self.data_received(received)
        await self._confirmed(b"")  # an INFO with the account's own limits follows the first PONG
        self.is_up = True

    def _keep_alive(self) -> None:
        """Keep what lies between alive: a worker that only publishes may do so rarely."""
        connection: socket.socket = self._require_transport().get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):  # else the system's two hours
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_SECONDS)

    def abort(self) -> None:
        """End it at once; `closed` is set when that is done."""
        if self._transport is not None:
            self._transport.abort()

    def inform(self, info: ServerInfo) -> None:
        """Follow an INFO of the server."""
        self.info = info
        self._max_line_bytes = self._line_limits.get(info.server_id, MAX_LINE_BYTES)
        self._on_info(self)

    async def settle(self) -> None:
        """Return when the server has confirmed all that was asked, or the connection has ended."""
        try:
            await self._confirmed(b"")
        except BrokerError:
            return

    async def publish(self, subject: bytes, payload: bytes) -> None:
        """Send PUB and wait for the confirmation.

        Raises:
            PublishError: The server refuses it, or too much awaits its confirmation (`retriable`).
            PublishOutcomeUnknownError: The connection ended, or the server refused something that it did not name.
        """
        size = len(subject) + len(payload)
        if self._pending_bytes + size > self._max_pending_bytes and self._pending_bytes:
            raise PublishError(
                f"{self._pending_bytes:,} bytes await the server; publish slower, or raise max_pending_bytes",
                adapter="nats",
                retriable=True,
            )
        line = b"%b %d" % (subject, len(payload))
        if len(line) > self._max_line_bytes:
            raise PublishError(line_refused(len(line)), adapter="nats")
        group = self._unsent[-1] if self._unsent else None
        if not isinstance(group, Publishes):
            group = self._begin(Publishes())
        answer = group.add(subject, len(line), len(payload))
        self._pending_bytes += size
        self._send(b"PUB %b\r\n%b\r\n" % (line, payload))
        await answer

    async def subscribe(self, subjects: Mapping[bytes, str]) -> Answer:
        """Subscribe to `subjects`, each for a channel."""
        answer = Answer()
        for subject, channel in subjects.items():
            if channel not in self._ids:
                self._subscribe(subject, channel, answer)
        await self._confirmed(b"")
        for channel in subjects.values():
            if channel not in self._ids and channel not in answer.refused:
                answer.unconfirmed.setdefault(channel, "the server took the subscription away")
        return answer

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        """Drop `channels`, here at once and then at the server."""
        await self._confirmed(b"".join(self._forget(channels)))

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        try:
            self._parser.feed(data)
        except ValueError as error:
            self._end(f"the server sent what is not NATS: {error}"[:200])

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail whoever waits, and report the end."""
        words = f"the connection ended: {self._last_words or exc or 'closed by the server'}"
        error = unavailable(words)
        self.closed.set()
        if self._unconfirmed and self._last_words.lower() == _LINE_TOO_LONG:
            too_long = self._unconfirmed[0].longest_line
            self._line_limits[self.info.server_id] = max(self._longest_confirmed, _power_of_two_below(too_long))
        while self._unconfirmed:
            self._unconfirmed.popleft().fail(words, self._last_words)
        while self._unsent:
            self._unsent.pop().fail(words, None)
        if self.is_up:
            self._on_lost(self, error)

    def _message(self, number: bytes, payload: bytes) -> None:
        found = self._channels.get(number)
        if found is not None:
            self._sink.deliver(found[0], payload)

    def _control(self, line: bytes) -> None:
        if line == b"PONG":
            if not self._unconfirmed:
                raise ValueError("a PONG without a PING")
            group = self._unconfirmed.popleft()
            self._pending_bytes -= group.size_bytes
            self._longest_confirmed = max(self._longest_confirmed, group.longest_line)
            self._last_words = ""
            group.confirm()
        elif line == b"PING":
            self._require_transport().write(b"PONG\r\n")
        elif line.startswith(b"-ERR"):
            self._refused(line[4:].decode(errors="replace").strip(" '"))
        elif line.startswith(b"INFO"):
            self.inform(_info(line[4:]))
        elif line != b"+OK":
            raise ValueError("an unknown command")

    def _refused(self, words: str) -> None:
        """Put a refusal into somebody's hands: of what awaits its PONG, of a standing subscription, or of them all."""
        denied = _DENIED.match(words)
        words = words[:_MAX_WORDS]
        self._last_words = words  # where the server now closes the connection
        group = self._unconfirmed[0] if self._unconfirmed else None
        if denied is not None and denied[1].lower() == "subscription":
            if not (isinstance(group, Subscription) and group.refuse(denied[2].encode(), denied[3], words)):
                self._revoke(denied[2].encode(), denied[3], words)
        elif isinstance(group, Publishes) and denied is not None and group.refuse(denied[2].encode(), words):
            pass
        elif group is None or not group.doubt(words):
            self._end(words)

    def _revoke(self, subject: bytes, number: str | None, words: str) -> None:
        """Report a standing subscription that the server has removed; nobody misses one that was given up here."""
        if number is not None:
            found = self._channels.get(number.encode())
        else:
            found = next((known for known in self._channels.values() if known[1] == subject), None)
        if found is not None:
            self._drop(found[0])
            self._sink.revoked([found[0]], words)

    def _end(self, words: str) -> None:
        self._last_words = words
        self.abort()

    def _subscribe(self, subject: bytes, channel: str, answer: Answer) -> None:
        number = b"%d" % (self._last_id + 1)
        line = b"%b %b" % (subject, number)
        if len(line) > self._max_line_bytes:
            answer.refused[channel] = line_refused(len(line))
            return

        def refused(words: str) -> None:
            if self._ids.get(channel) == number:
                self._forget([channel])
            answer.refused[channel] = words

        def doubted(words: str) -> None:
            if self._ids.get(channel) == number:
                self._drop(channel)
            answer.unconfirmed[channel] = words

        self._begin(Subscription(subject, number, len(line), refused, doubted))
        self._send(b"SUB %b\r\n" % line)
        self._last_id += 1
        self._ids[channel] = number
        self._channels[number] = channel, subject

    def _drop(self, channel: str) -> None:
        """Drop a subscription of which nobody knows whether the server has it."""
        for command in self._forget([channel]):
            self._begin(Round())
            self._send(command)

    def _forget(self, channels: Iterable[str]) -> list[bytes]:
        """Deliver nothing more for `channels`; return the commands that drop them at the server."""
        numbers = [self._ids.pop(channel) for channel in channels if channel in self._ids]
        for number in numbers:
            del self._channels[number]
        return [b"UNSUB %b\r\n" % number for number in numbers]

    async def _confirmed(self, commands: bytes) -> None:
        group = self._begin(Round())
        self._send(commands)
        await group.confirmed()

    def _begin(self, group: _Group) -> _Group:
        """Let the next commands belong to `group`."""
        if not self.is_open:
            raise unavailable(f"the link is lost: {self._last_words}" if self._last_words else "the link is lost")
        if self._unsent:
            self._commands.append(b"PING\r\n")
        self._unsent.append(group)
        return group

    def _send(self, command: bytes) -> None:
        self._commands.append(command)
        self._commands_bytes += len(command)
        if self._commands_bytes >= _WRITE_BYTES:
            self._flush()
        elif not self._flush_is_due:
            self._flush_is_due = True
            asyncio.get_running_loop().call_soon(self._flush_at_end)

    def _flush_at_end(self) -> None:
        """Send what is left at the end of a pass of the event loop."""
        self._flush_is_due = False
        if self.is_open and self._unsent:
            self._flush()

    def _flush(self) -> None:
        self._commands.append(b"PING\r\n")
        self._unconfirmed.extend(self._unsent)
        self._unsent.clear()
        data = b"".join(self._commands)
        self._commands.clear()
        self._commands_bytes = 0
        self._require_transport().write(data)

    def _require_transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport


def _info(text: bytes) -> ServerInfo:
    try:
        return ServerInfo.model_validate_json(text)
    except ValueError:
        raise ValueError("an INFO that cannot be read") from None


def _power_of_two_below(size: int) -> int:
    """Guess what a server accepts that has refused `size`: limits are such numbers, and few guesses are needed."""
    return 1 << ((size - 1).bit_length() - 1)
