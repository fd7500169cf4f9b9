"""What a forked child inherits of the sockets: nothing.

Were they open in a child too, the end of its parent would not be their end: the peers would go on with a process that
is dead, for as long as the child lives.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    import socket

__all__ = ["close_in_children"]

_sockets: WeakSet[socket.socket] = WeakSet()


def close_in_children(sock: socket.socket) -> None:
    """Close `sock` in each process that is forked from this one; here it stays as it is."""
    _sockets.add(sock)


def _forked() -> None:
    for sock in list(_sockets):
        descriptor = sock.detach()  # `close` would wait for an event loop that does not run here
        if descriptor >= 0:
            os.close(descriptor)
    _sockets.clear()


os.register_at_fork(after_in_child=_forked)
