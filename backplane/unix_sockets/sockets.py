"""Unix sockets of processes of one user: made, found by their names, connected to, and removed where they are stale."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import socket
import stat
import struct
import sys
import time
from typing import TYPE_CHECKING, Final

from backplane.concurrency.fork import close_in_children
from backplane.journal.events import PEER_REFUSED
from backplane.journal.writing import write

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "MAX_NAME_LENGTH",
    "MAX_PATH_BYTES",
    "bind_socket",
    "connect_socket",
    "foreign_peer",
    "is_socket_name",
    "list_sockets",
    "remove_stale",
]

logger: Final = logging.getLogger("backplane.unix_sockets.sockets")

MAX_PATH_BYTES: Final = 107 if sys.platform == "linux" else 103
"""Size of `sun_path`, unix(7), without the terminating NUL."""

MAX_NAME_LENGTH: Final = len("4194304-01234567.sock")  # the largest pid of Linux
"""Length of the longest name of a socket that belongs to no group."""

_SOCKET_NAME: Final = re.compile(r"\d{1,10}-[0-9a-f]{8}\.sock")

# Set on a socket once it listens. It distinguishes a socket that refuses because its process is gone (stale, to be
# removed) from one whose process has not called listen() yet. systemd-tmpfiles leaves such a file alone too: the XDG
# base directory specification names the sticky bit as the mark of a file that must not be cleaned up.
_LISTENING: Final = stat.S_ISVTX

_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid

# A process killed between bind() and listen(), which are microseconds apart, leaves a socket without the mark.
_MAX_BINDING_SECONDS: Final = 60.0


def is_socket_name(name: str, group: str = "") -> bool:
    """Whether `name` is that of a socket of `group` as `bind_socket` gives it: no path that leads out of the folder."""
    return name.startswith(group) and _SOCKET_NAME.fullmatch(name, len(group)) is not None


def list_sockets(folder: Path, group: str = "") -> list[str]:
    """Return the names of the sockets of `group` in `folder`.

    Raises:
        OSError: It cannot be read.
    """
    return sorted(path.name for path in folder.iterdir() if is_socket_name(path.name, group))


def bind_socket(folder: Path, backlog: int, group: str = "") -> tuple[socket.socket, str]:
    """Listen on a new socket of this process; return it and its name.

    Args:
        folder: Where it is made.
        backlog: How many connections may wait to be accepted.
        group: What its name begins with: the sockets of several groups can share a folder.

    Raises:
        OSError: It cannot be created.
    """
    name = f"{group}{os.getpid()}-{secrets.token_hex(4)}.sock"
    path = folder / name
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        close_in_children(listener)
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen(backlog)
        path.chmod(0o600 | _LISTENING)
    except OSError:
        listener.close()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    return listener, name


def connect_socket(path: Path) -> socket.socket:
    """Connect to the socket of a process of this user.

    Raises:
        ConnectionRefusedError: No process listens on it, or one of another user does, which is logged.
        OSError: As `socket.connect`.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.connect(str(path))  # a Unix socket connects at once or not at all
        user = foreign_peer(connection)
    except BaseException:
        connection.close()
        raise
    if user is None:
        return connection
    connection.close()
    write(logger, PEER_REFUSED, "ignored the socket %(peer)s of user %(user)d", peer=path, user=user)
    raise ConnectionRefusedError


def foreign_peer(connection: socket.socket) -> int | None:
    """Return the user at the other end of a Unix socket where that is not this one, else `None`.

    The folder is private, so this is a second check, in case the folder was replaced. Only Linux provides the user
    (`SO_PEERCRED`, unix(7)); elsewhere the result is always `None`.

    Raises:
        OSError: The connection has ended.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    _pid, uid, _gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    return None if uid == os.geteuid() else int(uid)


def remove_stale(path: Path) -> None:
    """Remove a socket that refused a connection, unless its process may be about to listen."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        if found.st_mode & _LISTENING or time.time() - found.st_mtime > _MAX_BINDING_SECONDS:
            path.unlink(missing_ok=True)
