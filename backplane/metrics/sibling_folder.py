"""The private folder in which the workers of one server find each other's sockets."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backplane.unix_sockets.folder import FolderError, default_directory, open_folder
from backplane.unix_sockets.sockets import MAX_NAME_LENGTH, connect_socket, is_socket_name, remove_stale

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["GROUP_LENGTH", "namespace", "open_sibling_folder", "remove_stale_sockets"]

GROUP_LENGTH: Final = 13
"""What the name of a socket begins with: twelve digits of the group, and what separates them from the pid."""

_LAST_RESORT: Final = Path("/tmp")  # noqa: S108  # with a private folder in it


def open_sibling_folder() -> Path:
    """Open the folder in the first directory that can be used: all workers of a server find the same one."""
    reasons: list[str] = []
    for directory in _directories():
        try:
            return open_folder(f"metrics {socket.gethostname()}", directory, name_length=GROUP_LENGTH + MAX_NAME_LENGTH)
        except FolderError as error:
            reasons.append(str(error))
    raise FolderError("; ".join(reasons))


def _directories() -> Iterator[Path]:
    """The runtime directory may belong to the user that started the server, and a temporary one may be too long."""
    own = f"backplane-{os.geteuid()}"
    with suppress(FolderError):
        yield default_directory()
    with suppress(OSError):
        yield Path(tempfile.gettempdir()) / own
    yield _LAST_RESORT / own


def namespace() -> str:
    """Return what distinguishes containers that share a folder: in each of them pids begin anew."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def remove_stale_sockets(folder: Path) -> None:
    """Remove what workers that were killed have left, of whichever server."""
    for path in folder.iterdir():
        if is_socket_name(path.name, path.name[:GROUP_LENGTH]):
            try:
                connect_socket(path).close()
            except ConnectionRefusedError:
                remove_stale(path)
            except OSError:
                continue
