"""One client from its handshake to the end of its handler: what `async with backplane.connect(...)` enters."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from backplane.connection.callback_handler import call, call_on_close
from backplane.connection.connection import Connection
from backplane.connection.ending import has_a_line, refusal, what_was_refused
from backplane.connection.expiry import check_permission
from backplane.errors import (
    BrokerError,
    ClosedError,
    OriginRefusedError,
    PermissionExpiredError,
)
from backplane.journal.events import CLIENT_REFUSED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from types import TracebackType

    from backplane.connection.callback_handler import OnConnection, OnMessage
    from backplane.connection.client_protocol import ClientProtocol
    from backplane.connection.driver import ConnectionDriver
    from backplane.connection.socket import ServerSocket
    from backplane.presence_types import Who
    from backplane.web.origin import OriginRule
    from backplane.worker.runtime import Runtime

__all__ = ["ConnectionScope"]

logger: Final = logging.getLogger("backplane.web.handshake")


class ConnectionScope(AbstractAsyncContextManager[Connection]):
    """Joins a client, accepts it, and closes it with the block. Used once.

    Some errors of a block are ordinary ends and go no further; `backplane.connection.ending` decides which, and with
    which code the client is closed. Where the broker failed, many blocks end at once: their clients are closed one
    after the other.

    A class and no generator: a suspended generator would be the largest part of an idle connection.

    Args:
        runtime: The started backplane.
        socket: The client.
        driver: Its connection.
        origins: Pages of which origins may connect.
        channels: What the client receives.
        client_key: Whose connection it is.
        max_per_client: How many clients may have the same key.
        subprotocol: What to accept with.
        headers: What to accept with.
        after_accept: Whether a client is refused after it was accepted, by a close code and a reason that a page can
            read.
        watch_after_seconds: How long the joins may take until a task begins to watch whether the client leaves
            meanwhile: most joins are over before.
    """

    __slots__ = (
        "_after_accept",
        "_channels",
        "_client_key",
        "_driver",
        "_headers",
        "_is_handed_over",
        "_max_per_client",
        "_on_close",
        "_origins",
        "_runtime",
        "_socket",
        "_subprotocol",
        "_watch_after_seconds",
    )

    def __init__(
        self,
        runtime: Runtime,
        socket: ServerSocket,
        driver: ConnectionDriver,
        *,
        origins: OriginRule,
        channels: tuple[str, ...],
        client_key: str | None,
        max_per_client: int | None,
        subprotocol: str | None,
        headers: Iterable[tuple[bytes, bytes]] | None,
        after_accept: bool = False,
        watch_after_seconds: float = 0.5,
    ) -> None:
        self._runtime = runtime
        self._socket = socket
        self._driver = driver
        self._origins = origins
        self._channels = channels
        self._client_key = client_key
        driver.client_key = client_key
        self._max_per_client = max_per_client
        self._subprotocol = subprotocol
        self._headers = headers
        self._after_accept = after_accept
        self._watch_after_seconds = watch_after_seconds
        self._is_handed_over = False
        self._on_close: OnConnection | None = None

    def speak(self, protocol: ClientProtocol) -> None:
        """Serve the client in a protocol; to be called before it is entered."""
        self._driver.speak(protocol)

    @property
    def identify(self) -> Callable[[Who], Awaitable[None]]:
        """Takes the user of a client that names it after its handshake.

        It may be kept as long as the client: the request, and what the server has of that, are freed all the same.

        Raises:
            TooManyConnectionsError: The user has as many connections as `max_connections_per_user`.
        """
        return partial(_identify, self._runtime, self._driver)

    async def serve(
        self, *, on_open: OnConnection | None, on_message: OnMessage | None, on_close: OnConnection | None
    ) -> None:
        """Serve the client by callbacks: return at once where the server can hand it over, else when it has ended."""
        async with self as connection:
            self._is_handed_over = self._driver.hand_over(
                self._socket, self._runtime.clients, on_open=on_open, on_message=on_message, on_close=on_close
            )
            if not self._is_handed_over:
                self._on_close = on_close
                await call(on_open, connection)
                async for data in connection:
                    await call(on_message, connection, data)

    async def __aenter__(self) -> Connection:
        self._driver.handler_entered()
        try:
            try:
                await self._admit()
            except asyncio.CancelledError as error:
                if not self._driver.handler_left(error):
                    raise
                await self._refuse(ClosedError("the connection has ended during its handshake"))
            except Exception as error:
                await self._refuse(error)
            await self._socket.accept(self._subprotocol, self._headers)
            self._driver.accepted()
        except BaseException as error:
            if await self.__aexit__(type(error), error, None) and isinstance(error, asyncio.CancelledError):
                raise ClosedError("the connection has ended during its handshake") from None
            raise
        return self._driver.connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        is_outlived = self._driver.handler_left(error)
        if self._is_handed_over:
            return False
        if is_outlived:  # the handler stayed after the end of its connection, and was cancelled
            error = None
        ending = self._driver.ending(error)
        try:
            if ending is None:
                await self._driver.closing.abandon()
            else:
                await self._driver.closing.finish(ending)
            await call_on_close(self._on_close, self._driver)
        finally:
            self._runtime.clients.unregister(self._driver, self._socket.when_gone)
        return ending is not None and not ending.is_fault

    async def _admit(self) -> None:
        self._check_origin()
        key = self._client_key or self._socket.address_key
        self._runtime.clients.register(self._driver, key, self._max_per_client)
        await self._runtime.admit(self._driver, self._driver.policy.limits)
        self._check_permission()
        if self._channels:
            await self._join_while_connected()
        self._check_permission()  # `authorize` may have set it, or taken long

    async def _join_while_connected(self) -> None:
        """Join, unless the client leaves meanwhile: it would count for as long as `authorize` and the broker take."""
        loop = asyncio.get_running_loop()
        joining = asyncio.timeout(None)
        watching: asyncio.Task[None] | None = None

        def watch() -> None:
            nonlocal watching
            watching = asyncio.create_task(self._socket.left())
            watching.add_done_callback(interrupt_joins)

        def interrupt_joins(task: asyncio.Task[None]) -> None:
            if _has_left(task):
                joining.reschedule(loop.time())

        timer = loop.call_later(self._watch_after_seconds, watch)
        try:
            async with joining:
                try:
                    for channel in self._channels:
                        await self._driver.join_at_handshake(channel)
                finally:
                    timer.cancel()
                    if watching is not None:
                        watching.cancel()
                        await asyncio.wait([watching])
        except TimeoutError:
            if not joining.expired():  # raised by the application, in `authorize`
                raise
        if watching is not None and _has_left(watching):
            raise ClosedError("the client left before it was accepted")

    async def _refuse(self, error: Exception) -> NoReturn:
        refused = refusal(error, self._socket.ending, self._driver.closed_with)
        if refused is None:
            raise error
        runtime = self._runtime
        runtime.statistics.connections_refused += 1
        if not refused.is_fault and not has_a_line(refused.error):
            self._log_refusal(refused.error)
        # A page of another site must not read anything of this one, not even a reason.
        may_read = not isinstance(refused.error, OriginRefusedError)
        if self._after_accept and may_read and runtime.clients.reserve_refusal():
            try:
                answer = await self._socket.refuse_after_accept(refused, self._subprotocol)
            finally:
                self._socket.when_gone(runtime.clients.release_refusal)
        else:
            answer = await self._socket.refuse(refused)
        raise error if refused.is_fault else answer

    def _check_permission(self) -> None:
        check_permission(has_expired=self._driver.timers.has_expired(asyncio.get_running_loop().time()))

    def _check_origin(self) -> None:
        refusal = self._origins.refusal(self._socket.origin, self._socket.host)
        if refusal is not None:
            self._runtime.statistics.refused_origins += 1
            error = OriginRefusedError(refusal)
            self._log_refusal(error)
            raise error

    def _log_refusal(self, error: BaseException | None) -> None:
        level = logging.INFO if isinstance(error, PermissionExpiredError) else None  # the client gets a new token
        self._runtime.journal.log(
            logger,
            CLIENT_REFUSED,
            "refused a WebSocket: %(reason)s",
            level=level,
            of_many=isinstance(error, BrokerError),
            what=what_was_refused(error),
            reason=error,
            **self._driver.named,
        )


async def _identify(runtime: Runtime, driver: ConnectionDriver, who: Who) -> None:
    if runtime.cluster is None:  # there is no presence, and commands are not applied
        return
    driver.identify(runtime.attendance(who))
    runtime.clients.identify(driver)
    await runtime.admit(driver, driver.policy.limits)


def _has_left(watching: asyncio.Task[None]) -> bool:
    return watching.done() and not watching.cancelled() and watching.exception() is None
