"""How one connection is closed: in its turn, after what waits for its client, with a close frame."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from backplane.close_codes import CloseCode, close_reason
from backplane.concurrency.context import task_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from backplane.connection.sender import Sender
    from backplane.connection.socket import Socket
    from backplane.log_bursts import LogBursts

__all__ = ["CloseSequence", "flush"]

logger = logging.getLogger("backplane.connection.connection")

# A client that does not read does not read a close frame either.
_CLOSE_SECONDS: Final = 1.0


async def flush(sender: Sender, connection_id: str) -> None:
    """Wait until nothing waits for the client any more, for a second at most; what is published meanwhile goes too."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            while sender.is_waiting:
                await sender.sent()
    except TimeoutError:
        logger.debug("connection %s does not read what waits for it", connection_id)


class CloseSequence:
    """The end of one connection. Made when it begins, for an idle connection must not pay for it.

    `retire` and `retire_in` let the connection receive until `end` is called; `close` sends the close frame.

    Args:
        connection_id: For the log.
        socket: What is closed.
        outgoing: What is flushed before.
        end: Ends the connection with a code and a reason; called when its turn has come and it is flushed.
        bursts: For the log.
        context: The connection's, in which all of it runs, whoever ends it.

    Attributes:
        code: With which code the connection is about to be closed, while `is_pending`.
        reason: In which words.
    """

    __slots__ = (
        "_bursts",
        "_closing",
        "_context",
        "_end",
        "_id",
        "_retiring",
        "_sender",
        "_socket",
        "code",
        "reason",
    )

    def __init__(
        self,
        connection_id: str,
        socket: Socket,
        sender: Sender,
        *,
        end: Callable[[int, str], None],
        bursts: LogBursts,
        context: Context,
    ) -> None:
        self._id = connection_id
        self._socket = socket
        self._sender = sender
        self._end = end
        self._bursts = bursts
        self._context = context
        self._retiring: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self.code: int = CloseCode.NORMAL
        self.reason = ""

    @property
    def is_pending(self) -> bool:
        """Whether the connection is about to be closed, and still receives."""
        return self._retiring is not None

    def retire_in(self, seconds: float, code: int, reason: str) -> None:
        """Retire later. Where a close is pending already it stands: a second turn would only delay it."""
        if self._retiring is None:
            self.code, self.reason = code, reason
            self._retiring = asyncio.get_running_loop().call_later(
                seconds, self.retire, code, reason, context=self._context
            )

    def retire(self, code: int, reason: str) -> None:
        """Flush what waits, then end the connection. Takes precedence over a turn that has not come."""
        if isinstance(self._retiring, asyncio.Task):
            return
        if self._retiring is not None:
            self._retiring.cancel()
        self.code, self.reason = code, reason
        self._retiring = task_in(self._context, self._retire(code, reason), asyncio.get_running_loop())

    def close(self, code: int, reason: str) -> None:
        """Send the close frame."""
        self._closing = task_in(self._context, self._close(code, reason), asyncio.get_running_loop())

    def cancel_turn(self) -> None:
        """The connection has ended: nothing is pending any more."""
        if self._retiring is not None:
            self._retiring.cancel()

    def abandon(self) -> None:
        """Stop sending the close frame."""
        if self._closing is not None:
            self._closing.cancel()

    async def closed(self) -> None:
        """Wait until the close frame is sent, or the attempt was given up."""
        if self._closing is not None:
            await asyncio.wait([self._closing])

    async def finished(self) -> None:
        """Wait for everything that was begun."""
        tasks = [task for task in (self._retiring, self._closing) if isinstance(task, asyncio.Task)]
        if tasks:
            await asyncio.wait(tasks)

    async def _retire(self, code: int, reason: str) -> None:
        await flush(self._sender, self._id)
        self._retiring = None  # nothing waits any more: `cancel_turn` must not cancel what calls it
        self._end(code, reason)

    async def _close(self, code: int, reason: str) -> None:
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._socket.close(code, close_reason(code, reason))
        except TimeoutError:
            logger.debug("connection %s does not read its close frame", self._id)
            self._cut()
        except Exception as error:
            self._bursts.log(logger, logging.ERROR, "connection %s failed to close", self._id, exc_info=error)
            self._cut()

    def _cut(self) -> None:
        """Close without a close frame, where the server has a way; elsewhere it does so when the handler ends."""
        if self._socket.lane is not None:
            with suppress(Exception):  # a server that failed before; nothing is left to be tried
                self._socket.lane.close()
