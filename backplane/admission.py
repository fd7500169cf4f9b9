"""One client from its handshake to the end of its handler: what `async with backplane.connect(...)` enters."""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from backplane.closing import CloseCode
from backplane.connection import Connection
from backplane.errors import ClosedError, JoinRefusedError, OriginRefusedError, TooManyChannelsError

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

    Two errors of a block are ordinary ends and go no further: a `ClosedError` when its client is gone or its worker
    ends, and a join that was refused, which closes the client with the code that says so.

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
        try:
            async with self._socket.refusing_on_error():
                self._check_origin()
                self._running.admit(self._connection, self._client_key or self._socket.client_host)
                for channel in self._channels:
                    await self._connection.join(channel)
                await self._socket.accept(self._subprotocol, self._headers)
            self._connection.opened()
        except BaseException as error:
            await self.__aexit__(type(error), error, None)
            raise
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        code = self._close_code(error)
        try:
            if code is None:
                await self._connection.abandon()
            else:
                await self._connection.finish(code)
        finally:
            self._running.dismiss(self._connection, self._socket.when_gone)
        return code is not None and code != CloseCode.INTERNAL_ERROR

    def _close_code(self, error: BaseException | None) -> CloseCode | None:
        """Tell what the client is told; `None`: nothing, the handler was cancelled."""
        match error:
            case None:
                return CloseCode.NORMAL
            case ClosedError() if self._connection.is_over:
                return CloseCode.NORMAL
            case JoinRefusedError():
                return CloseCode.FORBIDDEN
            case TooManyChannelsError():
                return CloseCode.TOO_MANY_CHANNELS
            case Exception():
                return CloseCode.INTERNAL_ERROR
            case _:
                return None

    def _check_origin(self) -> None:
        refusal = self._origins.refusal(self._socket.origin, self._socket.host)
        if refusal is not None:
            self._running.counts["refused_origins"] += 1
            logger.warning("refused a WebSocket: %s", refusal)
            raise OriginRefusedError(refusal)
