"""One client from its handshake to the end of its handler: what `async with backplane.connect(...)` enters."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final, NoReturn

from backplane.connection.connection import Connection
from backplane.connection.ending import refusal
from backplane.errors import (
    BrokerError,
    ClosedError,
    InvalidChannelError,
    OriginRefusedError,
    PermissionExpiredError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from backplane.connection.socket import ServerSocket
    from backplane.web.origin import OriginRule
    from backplane.worker.runtime import Runtime

__all__ = ["ConnectionScope"]

logger: Final = logging.getLogger("backplane.web.handshake")

# Joins that take no longer are not worth a task that looks whether the client is still there.
_QUICK_SECONDS: Final = 0.5


class ConnectionScope(AbstractAsyncContextManager[Connection]):
    """Joins a client, accepts it, and ends it with the block. Used once.

    Some errors of a block are ordinary ends and go no further; `backplane.connection.ending` decides which, and with
    what code the client is closed. Where the broker failed, many blocks end at once: their clients are closed one after
    the other.

    A class and no generator: a suspended generator would be the largest part of an idle connection.

    Args:
        running: The started backplane.
        socket: The client.
        connection: What the block gets.
        origins: Which pages may come in.
        channels: What the client hears.
        client_key: Whose connection it is.
        subprotocol: What to accept with.
        headers: What to accept with.
        after_accept: Whether a client is refused after it was accepted, by a close code and words that a page can read.
    """

    __slots__ = (
        "_after_accept",
        "_channels",
        "_client_key",
        "_connection",
        "_headers",
        "_origins",
        "_runtime",
        "_socket",
        "_subprotocol",
    )

    def __init__(
        self,
        runtime: Runtime,
        socket: ServerSocket,
        connection: Connection,
        *,
        origins: OriginRule,
        channels: tuple[str, ...],
        client_key: str | None,
        subprotocol: str | None,
        headers: Iterable[tuple[bytes, bytes]] | None,
        after_accept: bool = False,
    ) -> None:
        self._runtime = runtime
        self._socket = socket
        self._connection = connection
        self._origins = origins
        self._channels = channels
        self._client_key = client_key
        self._subprotocol = subprotocol
        self._headers = headers
        self._after_accept = after_accept

    async def __aenter__(self) -> Connection:
        self._connection.handler_entered()
        try:
            try:
                await self._let_in()
            except asyncio.CancelledError as error:
                if not self._connection.handler_left(error):
                    raise
                await self._refuse(ClosedError("the connection has ended during its handshake"))
            except Exception as error:
                await self._refuse(error)
            await self._socket.accept(self._subprotocol, self._headers)
            self._connection.opened()
        except BaseException as error:
            if await self.__aexit__(type(error), error, None) and isinstance(error, asyncio.CancelledError):
                raise ClosedError("the connection has ended during its handshake") from None
            raise
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        is_ours = self._connection.handler_left(error)
        if is_ours:  # its handler outlived the connection, and was cancelled
            error = None
        ending = self._connection.ending(error)
        try:
            if ending is None:
                await self._connection.abandon()
            else:
                await self._connection.finish(ending.code, error)
        finally:
            self._runtime.unregister_client(self._connection, self._socket.when_gone)
        return ending is not None and not ending.is_fault

    async def _let_in(self) -> None:
        self._check_origin()
        self._runtime.register_client(self._connection, self._client_key or self._socket.address_key)
        self._check_permission()
        if self._channels:
            await self._join_while_there()
        self._check_permission()  # `authorize` may have set it, or taken its time

    async def _join_while_there(self) -> None:
        """Join, unless the client leaves: it would keep its place for as long as `authorize` and the broker take."""
        loop = asyncio.get_running_loop()
        joining = asyncio.timeout(None)
        watching: asyncio.Task[None] | None = None

        def watch() -> None:
            nonlocal watching
            watching = asyncio.create_task(self._socket.left())
            watching.add_done_callback(give_up)

        def give_up(task: asyncio.Task[None]) -> None:
            if _has_left(task):
                joining.reschedule(loop.time())

        timer = loop.call_later(_QUICK_SECONDS, watch)
        try:
            async with joining:
                try:
                    for channel in self._channels:
                        await self._connection.join(channel)
                finally:
                    timer.cancel()
                    if watching is not None:
                        watching.cancel()
                        await asyncio.wait([watching])
        except TimeoutError:
            if not joining.expired():  # the application's own, in `authorize`
                raise
        if watching is not None and _has_left(watching):
            raise ClosedError("the client left before it was let in")

    async def _refuse(self, error: Exception) -> NoReturn:
        refused = refusal(error, self._socket.ending, self._connection.closed_with)
        if refused is None:
            raise error
        runtime = self._runtime
        runtime.statistics.connections_refused += 1
        if isinstance(refused.error, BrokerError | InvalidChannelError):  # of any other there is a line already
            runtime.bursts.log(logger, logging.WARNING, "refused a WebSocket: %s", refused.error)
        # A page of another site is not the application's: it reads nothing.
        if self._after_accept and not isinstance(refused.error, OriginRefusedError) and runtime.reserve_refusal():
            try:
                answer = await self._socket.refuse_after_accept(refused, self._subprotocol)
            finally:
                self._socket.when_gone(runtime.release_refusal)
        else:
            answer = await self._socket.refuse(refused)
        raise error if refused.is_fault else answer

    def _check_permission(self) -> None:
        if self._connection.timers.has_expired(asyncio.get_running_loop().time()):
            raise PermissionExpiredError("the permission has run out: get a new one")

    def _check_origin(self) -> None:
        refusal = self._origins.refusal(self._socket.origin, self._socket.host)
        if refusal is not None:
            self._runtime.statistics.refused_origins += 1
            self._runtime.bursts.log(logger, logging.WARNING, "refused a WebSocket: %s", refusal)
            raise OriginRefusedError(refusal)


def _has_left(watching: asyncio.Task[None]) -> bool:
    return watching.done() and not watching.cancelled() and watching.exception() is None
