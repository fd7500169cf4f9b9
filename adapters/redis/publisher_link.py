"""The connection that publishes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import hiredis

from backplane.adapters.redis.errors import is_protocol_error, outcome_unknown, publish_error, unavailable
from backplane.adapters.redis.link import RedisLink
from backplane.errors import PublishError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.errors import BrokerError

__all__ = ["PublisherLink"]


class PublisherLink(RedisLink):
    """Sends what is published in one pass of the event loop in one write; replies arrive in the same order.

    What is published before it is adopted waits until then, in order.

    Args:
        max_pending_bytes: Most bytes published and not yet answered.
    """

    def __init__(self, max_pending_bytes: int) -> None:
        super().__init__()
        self._max_pending_bytes = max_pending_bytes
        self._pending_bytes = 0
        self._is_adopted = False
        self._stopped_reading = False
        self._unsent: list[tuple[bytes, asyncio.Future[Any], int]] = []

    @property
    def is_adopted(self) -> bool:
        """Whether it is in use."""
        return self._is_adopted

    def adopt(self, on_lost: Callable[[BrokerError], None]) -> None:
        """Take it into use, and send what was published before."""
        super().adopt(on_lost)
        self._is_adopted = True
        self._flush()

    def inherit(self, other: PublisherLink) -> None:
        """Take over what was published on `other`, which has ended, and was not sent there."""
        self._unsent, other._unsent = other._unsent, []
        self._pending_bytes = sum(size for _, _, size in self._unsent)

    async def publish(self, name: bytes, payload: bytes) -> None:
        """Send PUBLISH and wait for the reply.

        Raises:
            BrokerUnavailableError: The link ended before it was sent.
            PublishError: The server refused it; `retriable` where it accepts none at present, or where too much awaits
                a reply.
            PublishOutcomeUnknownError: The link ended before the reply.
        """
        if self.loss is not None:
            raise unavailable("the link is lost")
        size = len(name) + len(payload)
        if self._pending_bytes and self._pending_bytes + size > self._max_pending_bytes:
            raise PublishError(
                f"{self._pending_bytes:,} bytes await the server's answer; publish slower, or raise max_pending_bytes",
                adapter="redis",
                retriable=True,
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self._is_adopted and not self._unsent:
            loop.call_soon(self._flush)
        command = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(payload), payload)
        self._unsent.append((command, future, size))
        self._pending_bytes += size
        try:
            await future
        except hiredis.ReplyError as error:
            raise publish_error(error) from error

    def reply_received(self, reply: Any) -> None:
        """Answer the oldest command."""
        if self._unanswered:
            self._pending_bytes -= self._unanswered[0][1]
        super().reply_received(reply)
        if isinstance(reply, hiredis.ReplyError) and is_protocol_error(reply):
            # The server reads no further and closes the connection, so later publishes must not be sent on it. Those
            # that were sent after the refused one were certainly not read.
            self._stopped_reading = True
            self.end(f"the server ended the connection: {reply}")

    def fail_pending(self, reason: str) -> None:
        """Fail every publish: with an unknown outcome what was sent, as certainly not published what was not."""
        failure = unavailable if self._stopped_reading else outcome_unknown
        while self._unanswered:
            future, _ = self._unanswered.popleft()
            if not future.done():
                future.set_exception(failure(reason))
        for _, future, _ in self._unsent:
            if not future.done():
                future.set_exception(unavailable(reason))
        self._unsent.clear()
        self._pending_bytes = 0

    def _flush(self) -> None:
        commands: list[bytes] = []
        for command, future, size in self._unsent:
            if future.done():  # cancelled before it was sent
                self._pending_bytes -= size
            else:
                commands.append(command)
                self._unanswered.append((future, size))
        self._unsent.clear()
        if commands and self._transport is not None:
            self._transport.write(b"".join(commands))
