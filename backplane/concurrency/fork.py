"""A forked child closes the connections of the adapters that it inherits.

If they stayed open in a child, they would not end with its parent: the broker, or the peers, would go on with a dead
process for as long as the child lives. The child sends nothing on them (no QUIT, no end of TLS, no `shutdown`), because
the parent goes on using them.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import asyncio

__all__ = ["close_in_children"]

_connections: WeakKeyDictionary[object, asyncio.BaseTransport | None] = WeakKeyDictionary()


def close_in_children(owner: object, transport: asyncio.BaseTransport | None = None) -> None:
    """Close a connection in each process that is forked from this one; in this process it is not changed.

    Args:
        owner: The socket, or the object that uses `transport`. The entry is removed with its last reference.
        transport: The connection, where it is not the socket itself.
    """
    _connections[owner] = transport


def _close_connections() -> None:
    descriptors = {_descriptor(owner, transport) for owner, transport in list(_connections.items())} - {-1}
    _connections.clear()
    # First close them all: that makes room where the limit of open files is reached. No other thread runs in the child.
    for descriptor in descriptors:
        with suppress(OSError):  # closed by its number before
            os.close(descriptor)
    if not descriptors:
        return
    # Then put /dev/null in their place: the owner of a descriptor, such as the C code of uvloop, may close the number
    # once more in the child, and must not close a file that was opened since.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors - {null}:
        os.dup2(null, descriptor, inheritable=False)
    if null not in descriptors:
        os.close(null)


def _descriptor(owner: Any, transport: asyncio.BaseTransport | None) -> int:
    connection: Any = owner if transport is None else transport.get_extra_info("socket")
    return -1 if connection is None else int(connection.fileno())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_connections)
