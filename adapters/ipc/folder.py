"""The private folder of sockets in which the processes of one application find each other."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import socket
import stat
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from backplane.adapters.shared.fork import close_in_children
from backplane.errors import BrokerError, BrokerUnavailableError, ConfigurationError

__all__ = [
    "bind_socket",
    "connect_socket",
    "foreign_peer",
    "is_socket_name",
    "list_sockets",
    "open_folder",
    "remove_stale",
]

logger: Final = logging.getLogger("backplane.adapters.ipc.folder")

_MAX_PATH_BYTES: Final = 107 if sys.platform == "linux" else 103
"""Size of `sun_path`, unix(7), without the terminating NUL."""

_MAX_SLUG_LENGTH: Final = 24
_MAX_SOCKET_NAME_LENGTH: Final = len("4194304-01234567.sock")  # the largest pid of Linux
_SOCKET_NAME: Final = re.compile(r"\d{1,10}-[0-9a-f]{8}\.sock")

# Set on a socket once it listens. It distinguishes a socket that refuses because its process is gone (stale, to be
# removed) from one whose process has not called listen() yet. systemd-tmpfiles leaves such a file alone too: the XDG
# base directory specification names the sticky bit as the mark of a file that must not be cleaned up.
_LISTENING: Final = stat.S_ISVTX

_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid

# A process killed between bind() and listen(), which are microseconds apart, leaves a socket without the mark.
_MAX_BINDING_SECONDS: Final = 60.0


def open_folder(application: str, directory: Path | None) -> Path:
    """Return the folder of `application`, created if it does not exist, after checking that it is private to this user.

    Args:
        application: Name of the application. Two different names never share a folder.
        directory: The directory that holds the folder, instead of `$XDG_RUNTIME_DIR/backplane` or `<temporary
            directory>/backplane-<uid>`.

    Raises:
        ConfigurationError: The path is too long for a Unix socket.
        BrokerError: The folder cannot be created, is not private, or another user could replace it.
    """
    base = directory or _default_directory()
    folder = base / _folder_name(application, base)
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_ancestors(base if directory is not None else base.parent)
        if directory is None:
            _check_private(base)
        folder.mkdir(mode=0o700, exist_ok=True)
        _check_private(folder)
    except OSError as error:
        raise BrokerError(
            f"cannot use the folder {str(folder)!r} ({error.strerror}): name another one with ?directory=",
            adapter="ipc",
        ) from error
    return folder


def is_socket_name(name: str) -> bool:
    """Whether `name` is the name of a socket as `bind_socket` gives it, and not a path that leads out of the folder."""
    return _SOCKET_NAME.fullmatch(name) is not None


def list_sockets(folder: Path) -> list[str]:
    """Return the names of the sockets in `folder`.

    Raises:
        BrokerUnavailableError: It cannot be read.
    """
    try:
        return sorted(path.name for path in folder.iterdir() if is_socket_name(path.name))
    except OSError as error:
        raise BrokerUnavailableError(f"cannot list {str(folder)!r}: {error.strerror}", adapter="ipc") from error


def bind_socket(folder: Path, backlog: int) -> tuple[socket.socket, str]:
    """Listen on a new socket of this process; return it and its name.

    Raises:
        BrokerUnavailableError: It cannot be created.
    """
    name = f"{os.getpid()}-{secrets.token_hex(4)}.sock"
    path = folder / name
    listener: socket.socket | None = None
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        close_in_children(listener)
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen(backlog)
        path.chmod(0o600 | _LISTENING)
    except OSError as error:
        if listener is not None:
            listener.close()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise BrokerUnavailableError(f"cannot listen on {str(path)!r}: {error.strerror}", adapter="ipc") from error
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
    logger.warning("ignored the socket %s of user %d", path, user)
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


def _default_directory() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "backplane"
    return Path(tempfile.gettempdir()) / f"backplane-{os.geteuid()}"


def _folder_name(application: str, base: Path) -> str:
    digest = hashlib.sha256(application.encode(errors="surrogatepass")).hexdigest()[:12]
    room = _MAX_PATH_BYTES - len(os.fsencode(base)) - len(digest) - _MAX_SOCKET_NAME_LENGTH - len("//")
    if room < 0:
        raise ConfigurationError(
            f"{str(base)!r} is {-room} bytes too long for a Unix socket in it: name a shorter one with ?directory="
        )
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", application).strip("-.")[: min(_MAX_SLUG_LENGTH, max(room - 1, 0))]
    return f"{slug}-{digest}" if slug else digest


def _check_ancestors(base: Path) -> None:
    """Refuse a path in which another user could replace the folder, as OpenSSH does (sshd_config(5), StrictModes)."""
    resolved = base.resolve()
    trusted = {os.geteuid(), Path("/").stat().st_uid}  # root, or the user that root is mapped to in a user namespace
    for folder in (resolved, *resolved.parents):
        found = folder.stat()
        if found.st_uid not in trusted:
            problem = f"belongs to user {found.st_uid}, who could replace what is in it"
        elif found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            problem = f"can be written by other users (mode {stat.S_IMODE(found.st_mode):04o})"
        else:
            continue
        raise BrokerError(f"{str(folder)!r} {problem}: name another folder with ?directory=", adapter="ipc")


def _check_private(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        problem = "is not a directory (a symbolic link is not followed)"
    elif found.st_uid != os.geteuid():
        problem = f"belongs to user {found.st_uid}, and this process runs as {os.geteuid()}: remove it as that user"
    elif found.st_mode & 0o077:
        problem = f"is open to other users (mode {stat.S_IMODE(found.st_mode):04o}): chmod 700 it"
    else:
        return
    raise BrokerError(f"{str(folder)!r} {problem}, or name another one with ?directory=", adapter="ipc")
