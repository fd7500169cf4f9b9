"""One client from its handshake to the end of its handler: what `async with backplane.connect(...)` enters."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from backplane.closing import CloseCode
from backplane.connection import Connection
from backplane.ending import close_code
from backplane.errors import BackplaneError, BrokerError, ClosedError, OriginRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from backplane.origins import OriginRule
    from backplane.running import Running
    from backplane.sockets import ServerSocket

__all__ = ["Admission"]

logger = logging.getLogger("backplane.admission")


class Admission(AbstractAsyncContextManager[Connection]):
    """Joins a client, accepts it, and ends it with the block. Used once.

    Some errors of a block are ordinary ends and go no further; `backplane.ending` decides which, and with what code the
    client is closed. Where the broker failed, many blocks end at once: their clients are closed one after the other.

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
    """

    __slots__ = (
        "_channels",
        "_client_key",
        "_connection",
        "_headers",
        "_origins",
        "_running",
        "_socket",
        "_subprotocol",
    )

    def __init__(
        self,
        running: Running,
        socket: ServerSocket,
        connection: Connection,
        *,
        origins: OriginRule,
        channels: tuple[str, ...],
        client_key: str | None,
        subprotocol: str | None,
        headers: Iterable[tuple[bytes, bytes]] | None,
    ) -> None:
        self._running = running
        self._socket = socket
        self._connection = connection
        self._origins = origins
        self._channels = channels
        self._client_key = client_key
        self._subprotocol = subprotocol
        self._headers = headers

    async def __aenter__(self) -> Connection:
        self._connection.handler_entered()
        try:
            async with self._socket.refusing_on_error():
                await self._let_in()
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
        code = CloseCode.NORMAL if is_ours else close_code(error, is_over=self._connection.is_over)
        try:
            if code is None:
                await self._connection.abandon()
            else:
                await self._connection.finish(code, error)
        finally:
            self._running.dismiss(self._connection, self._socket.when_gone)
        return code is not None and code != CloseCode.INTERNAL_ERROR

    async def _let_in(self) -> None:
        try:
            self._check_origin()
            self._running.admit(self._connection, self._client_key or self._socket.client_host)
            for channel in self._channels:
                await self._connection.join(channel)
        except BackplaneError as error:
            self._running.statistics.connections_refused += 1
            if isinstance(error, BrokerError):
                self._running.bursts.log(logger, logging.WARNING, "refused a WebSocket: %s", error)
            raise
        await self._socket.accept(self._subprotocol, self._headers)

    def _check_origin(self) -> None:
        refusal = self._origins.refusal(self._socket.origin, self._socket.host)
        if refusal is not None:
            self._running.statistics.refused_origins += 1
            self._running.bursts.log(logger, logging.WARNING, "refused a WebSocket: %s", refusal)
            raise OriginRefusedError(refusal)
