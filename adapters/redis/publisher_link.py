"""The connection that publishes."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

import hiredis

from backplane.adapters.redis.errors import is_protocol_error, outcome_unknown, publish_error, unavailable
from backplane.adapters.redis.link import RedisLink, pack_command
from backplane.adapters.redis.scripts import SCRIPTS
from backplane.errors import PublishError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.adapters.redis.scripts import Scripts
    from backplane.errors import BrokerError

__all__ = ["PublisherLink"]


class PublisherLink(RedisLink):
    """Sends what is published in one pass of the event loop in one write; replies arrive in the same order.

    What is published before it is adopted waits until then, in order.

    Where the server has lost the scripts (SCRIPT FLUSH), it refuses every command that runs one. They are loaded and
    the commands repeated when everything sent has been answered, and what is published meanwhile waits. A command is
    not repeated where a later publish was executed, because the order of a channel would change.

    Args:
        max_pending_bytes: Most bytes published and not yet answered.
    """

    scripts: ClassVar[Scripts] = SCRIPTS
    """Those that commands run on it."""

    def __init__(self, max_pending_bytes: int) -> None:
        super().__init__()
        self._max_pending_bytes = max_pending_bytes
        self._pending_bytes = 0
        self._is_adopted = False
        self._stopped_reading = False
        # Each with its size, which is 0 where nothing is published, and whether it runs a script.
        self._unsent: list[tuple[bytes, asyncio.Future[Any], int, bool]] = []
        # Those without a reply that run a script, oldest first, and those that the server refused without its scripts.
        self._scripts: deque[tuple[bytes, asyncio.Future[Any]]] = deque()
        self._refused: list[tuple[bytes, asyncio.Future[Any], int]] = []

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
        self._pending_bytes = sum(size for _, _, size, _ in self._unsent)

    async def publish(self, name: bytes, payload: bytes) -> None:
        """Send PUBLISH and wait for the reply.

        Raises:
            BrokerUnavailableError: The link ended before it was sent.
            PublishError: The server refused it; `retriable` where it accepts none at present, or where too much awaits
                a reply.
            PublishOutcomeUnknownError: The link ended before the reply.
        """
        size = len(name) + len(payload)
        self._require_room(size)
        command = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(payload), payload)
        try:
            await self._queue(command, size)
        except hiredis.ReplyError as error:
            raise publish_error(error) from error

    async def keep(self, command: bytes) -> Any:
        """Send a command that publishes by a script, in one order with `publish`, and return the reply.

        Raises:
            hiredis.ReplyError: The reply is an error: it was not published.
            BrokerUnavailableError: The link ended before it was sent.
            PublishError: Too much awaits a reply.
            PublishOutcomeUnknownError: The link ended before the reply.
        """
        self._require_room(len(command))
        return await self._queue(command, len(command), is_script=True)

    async def recall(self, command: bytes) -> Any:
        """Send a command that reads by a script, and return the reply.

        Raises:
            hiredis.ReplyError: The reply is an error.
            BrokerUnavailableError: The link ended.
        """
        self._require_room(0)
        return await self._reply_to(b"EVALSHA", self._queue(command, 0, is_script=True))

    def reply_received(self, reply: Any) -> None:
        """Answer the oldest command."""
        size = 0
        if self._unanswered:
            future, size = self._unanswered[0]
            if self._scripts and self._scripts[0][1] is future:
                command, _ = self._scripts.popleft()
                if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
                    self._unanswered.popleft()
                    self._refused.append((command, future, size))
                    self._repeat_refused()
                    return
            self._pending_bytes -= size
        super().reply_received(reply)
        if self._refused:
            if size and not isinstance(reply, hiredis.ReplyError):
                self._fail_refused("the server had lost its scripts", at_least_bytes=1)
            self._repeat_refused()
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
        for _, future, _, _ in self._unsent:
            if not future.done():
                future.set_exception(unavailable(reason))
        self._fail_refused(reason)
        self._unsent.clear()
        self._scripts.clear()
        self._refused.clear()
        self._pending_bytes = 0

    def _require_room(self, size: int) -> None:
        """Raise where the link has ended, or too much awaits a reply already."""
        if self.loss is not None:
            raise unavailable("the link is lost")
        if size and self._pending_bytes and self._pending_bytes + size > self._max_pending_bytes:
            raise PublishError(
                f"{self._pending_bytes:,} bytes await the server's answer; publish slower, or raise max_pending_bytes",
                adapter="redis",
                retriable=True,
            )

    def _queue(self, command: bytes, size: int, *, is_script: bool = False) -> asyncio.Future[Any]:
        """Send a command in this pass of the event loop, after those that wait; the reply is the result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self._is_adopted and not self._unsent:
            loop.call_soon(self._flush)
        self._unsent.append((command, future, size, is_script))
        self._pending_bytes += size
        return future

    def _flush(self) -> None:
        if self._refused:  # what was published before is repeated first
            return
        commands: list[bytes] = []
        for command, future, size, is_script in self._unsent:
            if future.done():  # cancelled before it was sent
                self._pending_bytes -= size
            else:
                commands.append(command)
                self._unanswered.append((future, size))
                if is_script:
                    self._scripts.append((command, future))
        self._unsent.clear()
        if commands and self._transport is not None:
            self._transport.write(b"".join(commands))

    def _repeat_refused(self) -> None:
        """Load the scripts and repeat what was refused without them, once everything sent is answered."""
        if self._unanswered or self.loss is not None:
            return
        refused, self._refused = self._refused, []
        for script in self.scripts.all:
            # Where it fails, the repeated command fails again, and with the error that its caller gets.
            self.send(pack_command((b"SCRIPT", b"LOAD", script.text))).cancel()
        commands: list[bytes] = []
        for command, future, size in refused:
            if future.done():
                self._pending_bytes -= size
            else:
                commands.append(command)
                self._unanswered.append((future, size))
        if commands and self._transport is not None:
            self._transport.write(b"".join(commands))
        self._flush()

    def _fail_refused(self, reason: str, *, at_least_bytes: int = 0) -> None:
        """Fail what was refused without the scripts, as certainly not published; a read has no bytes."""
        for _, future, size in self._refused:
            if size >= at_least_bytes and not future.done():
                future.set_exception(unavailable(reason))
