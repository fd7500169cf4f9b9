"""The end of one connection: its states, the flush before the close frame, the close frame, and what is counted.

    joining -> open -> draining -> closing -> closed

A connection goes through these states in this order. It can skip any of them, and never goes back.

Every end is a verb of `CloseSequence`: `close` (now), `close_after_flush` and `close_in_turn` (after what waits, now or
later), `abort` (without a close frame), `transport_closed` and `disconnected` (the client is gone). Of several the
first one decides the code and what is counted. The end of the handler is `finish`, or `abandon` where it is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal

from backplane.close_codes import CloseCode, close_reason
from backplane.concurrency.context import task_in
from backplane.connection.ending import Ending, reasons
from backplane.errors import LifecycleError
from backplane.fanout.backlog import TOO_SLOW
from backplane.journal.events import CLIENT_CLOSED, CLIENT_ENDED, CLIENT_FAILED, CLIENT_UNREAD, HANDLER_OVERSTAYED

if TYPE_CHECKING:
    from contextvars import Context

    from backplane.connection.driver import ConnectionDriver

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
        driver: The connection.
        context: Its Context, in which all of this runs, from wherever it is caused.

    Attributes:
        state: Where the connection is; see `ConnectionState`.
        requested: With which code and reason it is closed, once that is decided.
    """

    __slots__ = ("_closing", "_context", "_driver", "_is_stopped", "_turn", "requested", "state")

    def __init__(self, driver: ConnectionDriver, context: Context) -> None:
        self._driver = driver
        self._context = context
        self._is_stopped = driver.has_ended
        # First its place in `policy.turns`, if it waits for its turn, then the task that flushes.
        self._turn: int | asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self.state: ConnectionState = driver.state
        self.requested: tuple[int, str] | None = None

    @property
    def closed_with(self) -> tuple[int, str] | None:
        """The code and reason of the close frame, once `close` has decided them."""
        return self.requested if self._is_stopped else None

    def accepted(self) -> None:
        """The handshake is done: send the close frame if `close` came before; count a client that left before."""
        if (closed_with := self.closed_with) is not None:
            self._begin_close_frame(*closed_with)
        elif self._is_stopped:
            self._driver.policy.statistics.count_end("closed_by_client", self._driver.transport)
            self._log_ended("client")
        elif self.state == "joining":
            self.state = "open"

    def close(self, code: int, reason: str) -> None:
        """Drop what waits and send the close frame; before the handshake is done, once it is. Does not wait."""
        if not self._enter_closing():
            return
        self.requested = code, reason
        if self._driver.is_accepted:
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
        if self._turn is not None and delay is not None:
            return
        self._give_up_turn()
        if self.state != "closing":
            self.state = "draining"
        self.requested = code, reason
        if delay is None:
            self._begin_flush(code, reason)
        else:
            self._turn = self._driver.policy.turns.put(self, delay)

    def close_in_turn(self, code: int, reason: str) -> None:
        """Close after a flush, in this connection's turn: clients that are closed together reconnect together."""
        self.close_after_flush(code, reason, self._driver.policy.reload_delay())

    def task_failed(self, error: BaseException) -> None:
        """Close because of what a task beside the handler raised, as the handler would."""
        driver = self._driver
        end = driver.ending(error) or Ending(CloseCode.INTERNAL_ERROR, "", error, is_fault=True)
        self._log_end(end)
        if end.is_fault:
            words = "a task of connection %(connection)s failed: closing it"
            driver.log(logger, CLIENT_FAILED, words, exc_info=error)
        if end.code == CloseCode.TRY_AGAIN_LATER:
            self.close_in_turn(end.code, end.reason)
        elif end.code != CloseCode.NORMAL_CLOSURE or end.reason:
            self.close(end.code, end.reason)

    def transport_closed(self) -> None:
        """Nothing can be sent any more, and what the client sent before can still be received."""
        if self.state != "closed":
            self.state = "closing"

    def disconnected(self) -> None:
        """The client is gone and everything it sent is received."""
        if not self._enter_closing():
            return
        self.state = "closed"
        self.requested = None
        if not self._driver.is_accepted:
            return
        lane, statistics = self._driver.socket.lane, self._driver.policy.statistics
        if lane is not None and lane.close_code == CloseCode.MESSAGE_TOO_BIG:  # the server applied `max_message_bytes`
            statistics.count_close(CloseCode.MESSAGE_TOO_BIG, "lane")
            self._log_ended("server", CloseCode.MESSAGE_TOO_BIG)
        else:
            statistics.count_end("closed_by_client", self._driver.transport)
            self._log_ended("client", None if lane is None else lane.close_code)

    def abort(self) -> None:
        """Close without a close frame, and stop sending one that is under way."""
        if self._enter_closing() and self._driver.is_accepted:
            self._driver.policy.statistics.count_end("closed_cancelled", self._driver.transport)
            self._log_ended("worker")
        self.state = "closed"
        if self._closing is not None:
            self._closing.cancel()

    async def closed(self) -> None:
        """Wait until the close frame is sent, or the attempt was given up."""
        if self._closing is not None:
            await asyncio.wait([self._closing])

    async def finish(self, end: Ending) -> None:
        """End the tasks beside the handler, flush what waits, close, and await all of it: the handler has ended.

        With `TRY_AGAIN_LATER`, as many handlers end by the same failure of the broker, the close waits for its turn.
        Until then the client receives what is published; what it sends is received, so that its leaving is noticed,
        and dropped.

        Args:
            end: How the client is closed.
        """
        driver = self._driver
        try:
            await driver.end_tasks()
            if driver.is_accepted:
                self._log_end(end)
                if end.code == CloseCode.TRY_AGAIN_LATER:
                    self.close_in_turn(end.code, end.reason)
                    await self._drop_incoming()
            if driver.is_over and not self._is_stopped:  # the client is gone, and nothing has received that
                self.disconnected()
            if not self._is_stopped and driver.sender.is_waiting:
                await self._flush()
            code, reason = end.code, end.reason
            if code == CloseCode.NORMAL_CLOSURE and self.state == "draining" and self.requested is not None:
                code, reason = self.requested  # the reason why it drains, which its client must still receive
            self.close(code, reason)
            tasks = [task for task in (self._turn, self._closing) if isinstance(task, asyncio.Task)]
            if tasks:
                await asyncio.wait(tasks)
            self.state = "closed"
            await driver.sender.drained()
        except asyncio.CancelledError:
            await self.abandon()
            raise

    async def abandon(self) -> None:
        """End at once, without a close frame: the handler was cancelled."""
        self.abort()
        await self._driver.end_tasks()

    async def _flush(self) -> None:
        """Wait until nothing waits for the client any more, for `policy.close_seconds` at most."""
        try:
            async with asyncio.timeout(self._driver.policy.close_seconds):
                while self._driver.sender.is_waiting:
                    await self._driver.sender.drained()
        except TimeoutError:
            self._driver.log(logger, CLIENT_UNREAD, "connection %(connection)s does not read what waits for it")

    async def _drop_incoming(self) -> None:
        driver = self._driver
        try:
            await driver.receiver.drop()
        except LifecycleError:  # a task that the handler did not end receives still: the close will wake it
            words = "connection %(connection)s is received from after the end of its handler"
            driver.log(logger, HANDLER_OVERSTAYED, words, level=logging.DEBUG)
        except Exception as error:  # the handler may have received the client's end from the socket itself
            if not driver.socket.is_gone(error):
                driver.log(logger, CLIENT_FAILED, "connection %(connection)s failed to receive", exc_info=error)
            self.disconnected()

    def _log_end(self, end: Ending) -> None:
        if end.is_logged:
            level = logging.WARNING if end.is_for_operators else None
            words = "closing connection %(connection)s: %(reason)s"
            if end.is_broker_failure:
                words = "connection %(connection)s ends, the broker failed: %(reason)s"
            reason = reasons(end.raised)
            of_many = end.is_broker_failure
            self._driver.log(
                logger, CLIENT_CLOSED, words, level=level, of_many=of_many, code=int(end.code), reason=reason
            )

    def _enter_closing(self) -> bool:
        """Stop everything else of the connection; return whether that is new."""
        if self._is_stopped:
            return False
        self._is_stopped = True
        self.state = "closing"
        self._give_up_turn()
        self._driver.stop()
        return True

    def turn_has_come(self) -> None:
        """Flush and close: called by `policy.turns`."""
        assert self.requested is not None
        self._begin_flush(*self.requested)

    def _give_up_turn(self) -> None:
        """Wait for no turn any more, and end the flush that it may have begun."""
        if isinstance(self._turn, int):
            self._driver.policy.turns.remove(self, self._turn)
        elif self._turn is not None:
            self._turn.cancel()

    def _begin_flush(self, code: int, reason: str) -> None:
        self._turn = task_in(self._context, self._flush_then_close(code, reason), asyncio.get_running_loop())

    async def _flush_then_close(self, code: int, reason: str) -> None:
        await self._flush()
        self._turn = None  # this task, which `close` would cancel otherwise
        self.close(code, reason)

    def _begin_close_frame(self, code: int, reason: str) -> None:
        self._log_ended("worker", code, reason)
        statistics = self._driver.policy.statistics
        if (code, reason) == (CloseCode.TRY_AGAIN_LATER, TOO_SLOW):
            statistics.count_end("closed_slow", self._driver.transport)
        else:
            statistics.count_close(code, self._driver.transport)
        self._closing = task_in(self._context, self._send_close_frame(code, reason), asyncio.get_running_loop())

    async def _send_close_frame(self, code: int, reason: str) -> None:
        try:
            # A client that does not read does not read a close frame either.
            async with asyncio.timeout(self._driver.policy.close_seconds):
                code, reason = self._driver.close_frame(code, reason)
                await self._driver.socket.close(code, close_reason(code, reason))
        except TimeoutError:
            self._driver.log(logger, CLIENT_UNREAD, "connection %(connection)s does not read its close frame")
            self._close_lane()
        except Exception as error:
            self._driver.log(logger, CLIENT_FAILED, "connection %(connection)s failed to close", exc_info=error)
            self._close_lane()
        finally:
            self.state = "closed"

    def _log_ended(self, by: str, code: int | None = None, reason: str = "") -> None:
        """Log and keep how the connection has ended: called once for each that was accepted."""
        driver = self._driver
        driver.log(
            logger,
            CLIENT_ENDED,
            "connection %(connection)s is closed by the %(by)s",
            by=by,
            code=None if code is None else int(code),
            reason=reason or None,
            seconds=asyncio.get_running_loop().time() - driver.timers.opened_at,
        )

    def _close_lane(self) -> None:
        """Close without a close frame where the server offers it; elsewhere the server does when the handler ends."""
        if self._driver.socket.lane is not None:
            with suppress(Exception):  # the server failed before, and nothing is left to be tried
                self._driver.socket.lane.close()
