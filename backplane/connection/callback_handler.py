"""The handler of a client that was handed over: callbacks instead of a task that waits.

While a client is silent there is neither a task nor a coroutine for it. A task exists while messages of it are handled,
one after the other, and at its end. It goes the way of a handler of the application: what it raises closes the client
with the same code, and it is cancelled if it stays after the end of its connection.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from backplane.concurrency.context import task_in
from backplane.connection.receiver import bucket_of, exceeded_limit
from backplane.errors import LifecycleError
from backplane.journal.events import CLIENT_FAILED, HOOK_FAILED

if TYPE_CHECKING:
    from contextvars import Context

    from backplane.connection.connection import Connection
    from backplane.connection.driver import ConnectionDriver
    from backplane.connection.rate import TokenBucket
    from backplane.lane import HandedOverLane

__all__ = ["CallbackHandler", "Clients", "OnConnection", "OnMessage", "call", "call_on_close"]

logger: Final = logging.getLogger("backplane.connection.callback_handler")

OnMessage = Callable[["Connection", Any], Awaitable[object] | None]
"""Called with each message of a client, `str` or `bytes`, one after the other in the order in which they were sent.

A function or a coroutine function; a plain function must not block. It runs in a task, in the Context of the client.
"""

OnConnection = Callable[["Connection"], Awaitable[object] | None]
"""Called once with a connection: before its first message is handled, or after its end.

A function or a coroutine function, as `OnMessage`.
"""


class Clients(Protocol):
    """Where a client is removed once nothing of it runs any more.

    Attributes:
        handed_over: How many clients have such a handler.
    """

    handed_over: int

    def unregister(self, client: ConnectionDriver, when_gone: Callable[[Callable[[], None]], None], /) -> None:
        """Remove a client; it counts until `when_gone` has called its argument."""


class CallbackHandler:
    """Receives from one lane that was handed over, in place of the connection's `Receiver`.

    Args:
        driver: The connection.
        context: Its Context, in which the callbacks run.
        on_open: What is called first.
        on_message: What handles the client's messages; with `None` they are dropped.
        on_close: What is called after the end.
        clients: Where the client is removed at the end.
    """

    __slots__ = (
        "_bucket",
        "_clients",
        "_context",
        "_driver",
        "_dropping",
        "_has_ended",
        "_is_closed",
        "_lane",
        "_on_close",
        "_on_message",
        "_on_open",
        "_task",
    )

    is_waiting: Final = True
    """Whether something receives from the client: the server always does."""

    def __init__(
        self,
        driver: ConnectionDriver,
        context: Context,
        on_open: OnConnection | None,
        on_message: OnMessage | None,
        on_close: OnConnection | None,
        clients: Clients,
    ) -> None:
        self._driver = driver
        self._context = context
        self._on_open = on_open
        self._on_message = on_message
        self._on_close = on_close
        self._clients = clients
        self._lane: HandedOverLane | None = None
        self._bucket: TokenBucket | None = None
        self._task: asyncio.Task[None] | None = None
        self._has_ended = False  # the client sends nothing more
        self._is_closed = False
        self._dropping: asyncio.Event | None = None  # set at the end; until then what the client sends is dropped

    def begin(self, lane: HandedOverLane) -> None:
        """Receive from `lane`."""
        self._lane = lane
        self._clients.handed_over += 1
        if self._on_open is not None:
            self._start()

    # --- called by the lane ---

    def message_arrived(self) -> None:
        """Handle what has arrived in a task, or go on in the one that runs."""
        if self._on_message is None or self._dropping is not None:
            self._drop_waiting()
        elif self._task is None:
            self._start()

    def receiving_ended(self) -> None:
        """The client is gone: the connection ends once its messages are handled."""
        self._has_ended = True
        if self._task is None or self._dropping is not None:
            self._driver.disconnected()

    # --- called by the connection ---

    def close(self) -> None:
        """The connection ends: handle no further message, and finish in a task."""
        self._is_closed = True
        if self._dropping is not None:
            self._dropping.set()
        if self._task is None:
            self._start()

    async def drop(self) -> None:
        """Drop what the client sends until the connection ends."""
        if self._has_ended and not self._is_closed:
            self._driver.disconnected()
        if not self._is_closed:
            self._dropping = asyncio.Event()
            self._drop_waiting()
            await self._dropping.wait()

    async def next(self) -> NoReturn:
        """Refuse: the messages go to the callback.

        Raises:
            LifecycleError: Always.
        """
        raise LifecycleError("this connection was handed over: what its client sends is passed to on_message")

    async def iterate(self) -> NoReturn:
        """Refuse, as `next`."""
        await self.next()

    def release(self) -> None:
        """Drop the references of a connection that is finished: nothing of it is called any more."""
        self._dropping = None
        del self._driver, self._on_open, self._on_message, self._on_close

    # --- its task ---

    def _start(self) -> None:
        name = f"backplane-callbacks-{self._driver.id}"
        self._task = task_in(self._context, self._run(), asyncio.get_running_loop(), name=name)

    async def _run(self) -> None:
        """Handle what has arrived; finish if the connection ends meanwhile, or has ended."""
        # `on_open` is called also for a client that is closed already: what it acquires, `on_close` releases.
        error = await self._handle_messages() if self._on_open is not None or not self._is_closed else None
        if error is None and self._has_ended:
            self._driver.disconnected()
        if error is None and not self._is_closed:
            self._task = None
        else:
            await self._finish(error)

    async def _handle_messages(self) -> BaseException | None:
        """Return what the callback raised; `None` also where it was cancelled because its connection has ended."""
        driver, on_message = self._driver, self._on_message
        on_open, self._on_open = self._on_open, None
        error: BaseException | None = None
        driver.handler_entered()
        try:
            await call(on_open, driver.connection)
            while not self._is_closed and (data := self._next()) is not None:
                await call(on_message, driver.connection, data)
        except BaseException as raised:
            error = raised
        return None if driver.handler_left(error) else error

    def _next(self) -> str | bytes | None:
        """Return the next message; `None` where none waits, or it is over a limit, which closes the client."""
        assert self._lane is not None
        data = self._lane.take()
        if data is None:
            return None
        limits, now = self._driver.policy.limits, asyncio.get_running_loop().time()
        self._driver.message_received(now, data)
        if self._bucket is None:
            self._bucket = bucket_of(limits)
        exceeded = exceeded_limit(data, now, limits.max_message_bytes, self._bucket)
        if exceeded is None:
            return data
        self._driver.limit_exceeded(*exceeded)
        return None

    def _drop_waiting(self) -> None:
        while self._next() is not None:
            pass

    async def _finish(self, error: BaseException | None) -> None:
        """Close as after a handler, call `on_close`, and remove the client."""
        driver, lane = self._driver, self._lane
        assert lane is not None
        try:
            ending = driver.ending(error)
            if ending is None:
                await driver.closing.abandon()
            else:
                if ending.is_fault:
                    words = "a callback of connection %(connection)s raised: closing it"
                    driver.log(logger, CLIENT_FAILED, words, exc_info=error)
                await driver.closing.finish(ending)
            await call_on_close(self._on_close, driver)
        finally:
            if lane.close_code is None:  # no close frame was sent, whose answer could come
                lane.close()
            self._clients.handed_over -= 1
            self._clients.unregister(driver, lane.when_gone)
            driver.release()
        if error is not None and not isinstance(error, Exception):  # ends the process, or is a cancellation
            raise error


async def call(callback: Callable[..., Awaitable[object] | None] | None, *args: object) -> None:
    """Call a callback of the application, a function or a coroutine function; with `None` do nothing."""
    if callback is not None:
        answer = callback(*args)
        if inspect.isawaitable(answer):
            await answer


async def call_on_close(on_close: OnConnection | None, driver: ConnectionDriver) -> None:
    """Call `on_close`, and cancel it after the grace; what it raises is logged: there is no client to be closed."""
    if on_close is None:
        return
    driver.handler_entered()
    error: BaseException | None = None
    try:
        await call(on_close, driver.connection)
    except BaseException as raised:
        error = raised
    if driver.handler_left(error) or error is None:
        return
    if not isinstance(error, Exception):
        raise error
    words = "%(hook)s of connection %(connection)s failed"
    driver.log(logger, HOOK_FAILED, words, hook="on_close", exc_info=error)
