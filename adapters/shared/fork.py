"""What a forked child inherits of an adapter's connections: nothing.

Were they open in a child too, the end of its parent would not be their end: the broker, or the peers, would go on with
a process that is dead, for as long as the child lives. Nothing is sent on them by the child, no QUIT, no end of TLS, no
`shutdown`: the parent goes on with them.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import asyncio

__all__ = ["close_in_children"]

_held: WeakKeyDictionary[object, asyncio.BaseTransport | None] = WeakKeyDictionary()


def close_in_children(owner: object, transport: asyncio.BaseTransport | None = None) -> None:
    """Close a connection in each process that is forked from this one; here it stays as it is.

    Args:
        owner: A socket, or what uses `transport`: it ends with either of them.
        transport: The connection, where it is not the socket itself.
    """
    _held[owner] = transport


def _forked() -> None:
    descriptors = {_descriptor(owner, transport) for owner, transport in list(_held.items())} - {-1}
    _held.clear()
    # First of all, for it makes room where the process has as many files open as it may. No other thread runs here.
    for descriptor in descriptors:
        with suppress(OSError):  # somebody closed it by its number
            os.close(descriptor)
    if not descriptors:
        return
    # In its place, for what owns the descriptor's number, uvloop's C for one, may close it once more here, and must not
    # meet a file that was opened since.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors - {null}:
        os.dup2(null, descriptor, inheritable=False)
    if null not in descriptors:
        os.close(null)


def _descriptor(owner: Any, transport: asyncio.BaseTransport | None) -> int:
    connection: Any = owner if transport is None else transport.get_extra_info("socket")
    return -1 if connection is None else int(connection.fileno())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
