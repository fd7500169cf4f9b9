"""The end of one connection: its states, the flush before the close frame, the close frame, and what is counted.

    joining ──> open ──> draining ──> closing ──> closed
       └───────────┴─────────┴───────────┘ (any state can be skipped, none is entered twice)

Every way to an end is a verb of `CloseSequence`: `close` (now), `close_after_flush` (after what waits, perhaps later),
`abort` (without a close frame), `transport_closed` and `disconnected` (the client is gone).
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal

from backplane.close_codes import CloseCode, close_reason
from backplane.concurrency.context import task_in
from backplane.connection.ending import TOO_SLOW

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from backplane.connection.policy import ConnectionPolicy
    from backplane.connection.sender import Sender
    from backplane.connection.socket import Socket

__all__ = ["CloseSequence", "ConnectionState"]

logger: Final = logging.getLogger("backplane.connection.close_sequence")

ConnectionState = Literal["joining", "open", "draining", "closing", "closed"]
"""Where a connection is between its handshake and its end.

- `joining`: its handshake is not answered yet; what is published to the channels it has joined waits for it.
- `open`: accepted.
- `draining`: it will be closed, now that its worker ends or later, in its turn after a gap or a failure of the broker;
  until then it receives what is published, as before.
- `closing`: it receives nothing more: its close frame is being sent, or its client is gone and what the client sent
  before is still to be received.
- `closed`: the close frame is sent, or the client is gone.
"""


class CloseSequence:
    """The end of one connection. Made when the end begins, so that an idle connection does not pay for it.

    Args:
        connection_id: For the log.
        socket: What is closed.
        sender: What is flushed before.
        policy: Its bounds, counters and log.
        context: The Context of the connection, in which all of this runs, from wherever it is caused.
        stop: Ends everything else of the connection (channels, sender, receiver, timers, tasks); called once.
        is_accepted: Whether the handshake is done.

    Attributes:
        state: Where the connection is; see `ConnectionState`.
        requested: With which code and reason it is closed, once that is decided.
    """

    __slots__ = (
        "_closing",
        "_connection_id",
        "_context",
        "_is_accepted",
        "_is_stopped",
        "_policy",
        "_sender",
        "_socket",
        "_stop",
        "_turn",
        "requested",
        "state",
    )

    def __init__(
        self,
        connection_id: str,
        socket: Socket,
        sender: Sender,
        *,
        policy: ConnectionPolicy,
        context: Context,
        stop: Callable[[], None],
        is_accepted: bool,
    ) -> None:
        self._connection_id = connection_id
        self._socket = socket
        self._sender = sender
        self._policy = policy
        self._context = context
        self._stop = stop
        self._is_accepted = is_accepted
        self._is_stopped = False
        # First the timer of its turn, if it has one, then the task that flushes.
        self._turn: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self.state: ConnectionState = "open" if is_accepted else "joining"
        self.requested: tuple[int, str] | None = None

    def accepted(self) -> None:
        """The handshake is done: send the close frame if `close` came before."""
        self._is_accepted = True
        if self.state == "closing" and self.requested is not None:
            self._begin_close_frame(*self.requested)

    def close(self, code: int, reason: str) -> None:
        """Drop what waits and send the close frame; before the handshake is done, once it is. Does not wait."""
        if not self._enter_closing():
            return
        self.requested = code, reason
        if self._is_accepted:
            self._begin_close_frame(code, reason)

    def close_after_flush(self, code: int, reason: str, delay: float | None = None) -> None:
        """Send what waits, for `policy.close_seconds` at most, then close; until then the client receives.

        Args:
            code: The close code.
            reason: Why, in words.
            delay: When to begin. A connection that waits for its turn already keeps that one, since a second one would
                only put it off. Defaults to now, which takes precedence over any turn.
        """
        if self._is_stopped or isinstance(self._turn, asyncio.Task):
            return
        if self._turn is not None:
            if delay is not None:
                return
            self._turn.cancel()
        if self.state != "closing":
            self.state = "draining"
        self.requested = code, reason
        if delay is None:
            self._begin_flush(code, reason)
        else:
            self._turn = asyncio.get_running_loop().call_later(
                delay, self._begin_flush, code, reason, context=self._context
            )

    def transport_closed(self) -> None:
        """Nothing can be sent any more, and what the client sent before can still be received."""
        if self.state != "closed":
            self.state = "closing"

    def disconnected(self) -> None:
        """The client is gone and everything it sent is received."""
        if not self._enter_closing():
            return
        self.state = "closed"
        if not self._is_accepted:
            return
        lane = self._socket.lane
        if lane is not None and lane.close_code == CloseCode.TOO_BIG:  # the server applied `max_message_bytes`
            self._policy.statistics.count_close(CloseCode.TOO_BIG)
        else:
            self._policy.statistics.closed_by_client += 1

    def abort(self) -> None:
        """Close without a close frame, and stop sending one that is under way."""
        if self._enter_closing() and self._is_accepted:
            self._policy.statistics.closed_cancelled += 1
        self.state = "closed"
        if self._closing is not None:
            self._closing.cancel()

    async def closed(self) -> None:
        """Wait until the close frame is sent, or the attempt was given up."""
        if self._closing is not None:
            await asyncio.wait([self._closing])

    async def finished(self) -> None:
        """Wait for everything that was begun."""
        tasks = [task for task in (self._turn, self._closing) if isinstance(task, asyncio.Task)]
        if tasks:
            await asyncio.wait(tasks)
        self.state = "closed"

    async def flush(self) -> None:
        """Wait until nothing waits for the client any more, for `policy.close_seconds` at most."""
        try:
            async with asyncio.timeout(self._policy.close_seconds):
                while self._sender.is_waiting:
                    await self._sender.drained()
        except TimeoutError:
            logger.debug("connection %s does not read what waits for it", self._connection_id)

    def _enter_closing(self) -> bool:
        """Stop everything else of the connection; return whether that is new."""
        if self._is_stopped:
            return False
        self._is_stopped = True
        self.state = "closing"
        if self._turn is not None:
            self._turn.cancel()
        self._stop()
        return True

    def _begin_flush(self, code: int, reason: str) -> None:
        self._turn = task_in(self._context, self._flush_then_close(code, reason), asyncio.get_running_loop())

    async def _flush_then_close(self, code: int, reason: str) -> None:
        await self.flush()
        self._turn = None  # this task, which `close` would cancel otherwise
        self.close(code, reason)

    def _begin_close_frame(self, code: int, reason: str) -> None:
        statistics = self._policy.statistics
        if (code, reason) == (CloseCode.TRY_AGAIN_LATER, TOO_SLOW):
            statistics.closed_slow += 1
        else:
            statistics.count_close(code)
        self._closing = task_in(self._context, self._send_close_frame(code, reason), asyncio.get_running_loop())

    async def _send_close_frame(self, code: int, reason: str) -> None:
        try:
            # A client that does not read does not read a close frame either.
            async with asyncio.timeout(self._policy.close_seconds):
                await self._socket.close(code, close_reason(code, reason))
        except TimeoutError:
            logger.debug("connection %s does not read its close frame", self._connection_id)
            self._close_lane()
        except Exception as error:
            words = "connection %s failed to close"
            self._policy.bursts.log(logger, logging.ERROR, words, self._connection_id, exc_info=error)
            self._close_lane()
        finally:
            self.state = "closed"

    def _close_lane(self) -> None:
        """Close without a close frame where the server offers it; elsewhere the server does when the handler ends."""
        if self._socket.lane is not None:
            with suppress(Exception):  # the server failed before, and nothing is left to be tried
                self._socket.lane.close()
