"""The socket to which other processes of this user connect."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Final

from backplane.journal.events import PEER_LOST
from backplane.journal.writing import write
from backplane.unix_sockets.sockets import bind_socket

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Listener"]

logger: Final = logging.getLogger("backplane.unix_sockets.listener")

_BACKLOG: Final = 1024
_PAUSE_SECONDS: Final = 1.0


class Listener:
    """Listens on a new socket in `folder` from construction to `close`.

    Args:
        loop: The running event loop.
        folder: Where the socket is made.
        accepted: Called with each connection, which does not block.
        group: What the name of the socket begins with.

    Attributes:
        name: Name of the socket.

    Raises:
        OSError: The socket cannot be made.
    """

    __slots__ = ("_accepted", "_closed", "_listener", "_loop", "_path", "_pause", "name")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        folder: Path,
        accepted: Callable[[socket.socket], None],
        *,
        group: str = "",
    ) -> None:
        self._loop = loop
        self._accepted = accepted
        self.name: str
        self._listener, self.name = bind_socket(folder, _BACKLOG, group)
        self._path = folder / self.name
        self._closed = False
        self._pause: asyncio.TimerHandle | None = None
        self._open()

    def close(self) -> None:
        """Remove the socket; connections that are not accepted yet are refused. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        if self._pause is not None:
            self._pause.cancel()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._listener)
        self._listener.close()

    def _open(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_BACKLOG):
            if self._closed:
                return
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of file descriptors: the socket stays readable, so the loop would spin
                words = "cannot accept on %(peer)s (%(reason)s), trying again in a second"
                write(logger, PEER_LOST, words, peer=self.name, reason=error.strerror)
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(_PAUSE_SECONDS, self._open)
                return
            connection.setblocking(False)
            self._accepted(connection)
