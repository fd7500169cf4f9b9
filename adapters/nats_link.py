"""One connection to a NATS server, spoken to without nats-py: what happens per message.

nats-py has connected and authenticated it; here its socket is taken over. The protocol is
https://docs.nats.io/reference/reference-protocols/nats-protocol.

What was asked in one pass of the event loop leaves in one write with a PING after it, a burst in several. The server
works in order, so its PONG says that it has done all of it, and what it refused it has said before.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backplane.broadcaster import Sink
    from backplane.errors import BrokerError

__all__ = ["NatsLink", "unavailable"]

_REFUSED: Final = re.compile(r'Permissions Violation for (?:Publish|Subscription) to "([^"]*)"', re.IGNORECASE)

# A burst is confirmed piece by piece: one answer for all of it would look like silence until it comes.
_MAX_COMMANDS: Final = 500


class NatsLink(asyncio.Protocol):
    """One authenticated connection.

    Args:
        sink: Where messages go.
        on_lost: Called once when it ends.
        max_pending_bytes: Most bytes published and not yet confirmed.
    """

    def __init__(self, sink: Sink, on_lost: Callable[[BrokerError], None], max_pending_bytes: int) -> None:
        self._sink = sink
        self._on_lost = on_lost
        self._max_pending_bytes = max_pending_bytes
        self._pending_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._owner: object = None
        self._asked = _Asked()
        self._unconfirmed: deque[_Asked] = deque()
        self._channels: dict[bytes, str] = {}
        self._ids: dict[str, bytes] = {}
        self._last_id = 0
        self._chunks: list[bytes] = []
        self._missing = 0
        self._last_words = ""
        self.closed = asyncio.Event()
        self.closed.set()

    @property
    def is_open(self) -> bool:
        """Whether it was taken over and has not ended."""
        return not self.closed.is_set()

    def take_over(self, transport: asyncio.BaseTransport, received: bytes, owner: object) -> None:
        """Make `transport` ours, with what was `received` on it and not looked at yet.

        Its former `owner` is kept: collected, it would close the transport.
        """
        self._owner = owner
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_protocol(self)
        self.closed.clear()
        if received:
            self.data_received(received)

    def abort(self) -> None:
        """End it at once; `closed` tells when that is done."""
        if self._transport is not None:
            self._transport.abort()

    async def publish(self, subject: bytes, payload: bytes) -> None:
        """Send PUB and wait for the confirmation."""
        size = len(subject) + len(payload)
        if self._pending_bytes and self._pending_bytes + size > self._max_pending_bytes:
            raise PublishError(
                f"{self._pending_bytes:,} bytes await the server; publish slower, or raise max_pending_bytes",
                adapter="nats",
                retriable=True,
            )
        asked = self._ask(b"PUB %b %d\r\n%b\r\n" % (subject, len(payload), payload))
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asked.publishes.append((subject, future))
        asked.size_bytes += size
        self._pending_bytes += size
        await future

    async def subscribe(self, subjects: dict[bytes, str]) -> dict[bytes, str]:
        """Subscribe to `subjects`, each for a channel; return those the server refused, with its words."""
        commands: list[bytes] = []
        for subject, channel in subjects.items():
            if channel not in self._ids:
                self._last_id += 1
                number = self._ids[channel] = b"%d" % self._last_id
                self._channels[number] = channel
                commands.append(b"SUB %b %b\r\n" % (subject, number))
        refused = await self._confirmed(b"".join(commands))
        for subject in refused.keys() & subjects.keys():
            self._forget([subjects[subject]])
        return {subject: words for subject, words in refused.items() if subject in subjects}

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        """Drop `channels`, here at once and then at the server."""
        await self._confirmed(b"".join(b"UNSUB %b\r\n" % number for number in self._forget(channels)))

    def data_received(self, data: bytes) -> None:
        """Parse what came; a message that is cut is gathered without looking at it again and again."""
        if self._chunks:
            self._chunks.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        try:
            done, self._missing = self._parse(data)
        except (ValueError, IndexError):
            self._last_words = "the server sent what is not NATS"
            self.abort()
            return
        if done < len(data):
            self._chunks.append(data[done:])

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail whoever waits, and report the end."""
        words = f"the connection ended: {self._last_words or exc or 'closed by the server'}"
        self.closed.set()
        while self._unconfirmed:
            self._unconfirmed.popleft().fail(words, sent=True)
        self._asked.fail(words, sent=False)
        self._on_lost(unavailable(words))

    def _parse(self, data: bytes) -> tuple[int, int]:
        """Return how far `data` is done with, and how many bytes are missing at least."""
        position, size = 0, len(data)
        while True:
            end = data.find(b"\r\n", position)
            if end < 0:
                return position, 1
            if data.startswith((b"MSG ", b"HMSG "), position):
                words = data[position:end].split()
                start = end + 2
                stop = start + int(words[-1])
                if stop + 2 > size:
                    return position, stop + 2 - size
                if words[0] == b"HMSG":  # ... header bytes, all bytes
                    start += int(words[-2])
                channel = self._channels.get(words[2])
                if channel is not None:
                    self._sink.deliver(channel, data[start:stop])
                position = stop + 2
            else:
                self._control(data[position:end])
                position = end + 2

    def _control(self, line: bytes) -> None:
        if line == b"PONG":
            self._pending_bytes -= self._unconfirmed[0].size_bytes
            self._unconfirmed.popleft().confirm()
        elif line == b"PING":
            self._write(b"PONG\r\n")
        elif line.startswith(b"-ERR"):
            words = line[4:].decode(errors="replace").strip(" '")
            refused = _REFUSED.search(words)
            if refused is not None and self._unconfirmed:
                self._unconfirmed[0].refused[refused[1].encode()] = words
            else:  # the server closes the connection behind it
                self._last_words = words
        elif not line.startswith((b"INFO", b"+OK")):
            raise ValueError(line)

    async def _confirmed(self, commands: bytes) -> dict[bytes, str]:
        asked = self._ask(commands)
        if asked.confirmed is None:
            asked.confirmed = asyncio.get_running_loop().create_future()
        return await asyncio.shield(asked.confirmed)

    def _ask(self, commands: bytes) -> _Asked:
        if not self.is_open:
            raise unavailable("the link is lost")
        if not self._asked.commands:
            asyncio.get_running_loop().call_soon(self._flush)
        asked = self._asked
        asked.commands.append(commands)
        if len(asked.commands) >= _MAX_COMMANDS:
            self._flush()
        return asked

    def _flush(self) -> None:
        if self.is_open and self._asked.commands:
            asked, self._asked = self._asked, _Asked()
            self._unconfirmed.append(asked)
            self._write(b"".join((*asked.commands, b"PING\r\n")))

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def _forget(self, channels: Iterable[str]) -> list[bytes]:
        numbers = [self._ids.pop(channel) for channel in channels if channel in self._ids]
        for number in numbers:
            del self._channels[number]
        return numbers


class _Asked:
    """What was asked in one pass of the event loop, and who waits for it."""

    __slots__ = ("commands", "confirmed", "publishes", "refused", "size_bytes")

    def __init__(self) -> None:
        self.commands: list[bytes] = []
        self.publishes: list[tuple[bytes, asyncio.Future[None]]] = []
        self.confirmed: asyncio.Future[dict[bytes, str]] | None = None
        self.refused: dict[bytes, str] = {}
        self.size_bytes = 0

    def confirm(self) -> None:
        for subject, future in self.publishes:
            if future.done():  # cancelled
                continue
            if subject in self.refused:
                future.set_exception(PublishError(self.refused[subject], adapter="nats"))
            else:
                future.set_result(None)
        if self.confirmed is not None:
            self.confirmed.set_result(self.refused)

    def fail(self, words: str, *, sent: bool) -> None:
        for _, future in self.publishes:
            if not future.done():
                future.set_exception(_unknown(words) if sent else unavailable(words))
        if self.confirmed is not None:
            self.confirmed.set_exception(unavailable(words))
            self.confirmed.exception()  # whoever asked may have been cancelled


def unavailable(words: str) -> BrokerUnavailableError:
    """Return the error for a link that is not there."""
    return BrokerUnavailableError(words, adapter="nats")


def _unknown(words: str) -> PublishOutcomeUnknownError:
    return PublishOutcomeUnknownError(
        f"{words}, before the server confirmed; it may have been published", adapter="nats"
    )
