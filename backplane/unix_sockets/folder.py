"""The private folder of sockets in which the processes of one application find each other."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Final

from backplane.unix_sockets.sockets import MAX_NAME_LENGTH, MAX_PATH_BYTES, list_sockets

__all__ = ["FolderError", "PathTooLongError", "default_directory", "neighbours", "open_folder"]

_MAX_SLUG_LENGTH: Final = 24


class FolderError(Exception):
    """The folder cannot be used. The message names it and the reason."""


class PathTooLongError(FolderError):
    """The path of the folder leaves no room for the name of a Unix socket."""


def default_directory() -> Path:
    """Return the directory that holds the folders where none is named, which may not exist yet.

    Raises:
        FolderError: There is neither a runtime directory nor a temporary one.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "backplane"
    try:
        return Path(tempfile.gettempdir()) / f"backplane-{os.geteuid()}"
    except OSError as error:
        raise FolderError(f"there is no temporary directory ({error.strerror})") from error


def open_folder(application: str, directory: Path, *, shared: bool = False, name_length: int = MAX_NAME_LENGTH) -> Path:
    """Return the folder of `application`, created if it does not exist, after checking that it is private to this user.

    Args:
        application: Name of the application. Two different names never share a folder.
        directory: The directory that holds the folder.
        shared: Other users may look into `directory`, though not write there.
        name_length: Length of the longest name of a socket in it.

    Raises:
        PathTooLongError: The path is too long for a Unix socket.
        FolderError: The folder cannot be created, is not private, or another user could replace it.
    """
    folder = directory / _folder_name(application, directory, name_length)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_ancestors(directory if shared else directory.parent)
        if not shared:
            _check_private(directory)
        folder.mkdir(mode=0o700, exist_ok=True)
        _check_private(folder)
    except OSError as error:
        raise FolderError(f"cannot use the folder {str(folder)!r} ({error.strerror})") from error
    return folder


def neighbours(folder: Path) -> list[str]:
    """Return the other applications that have a folder with a socket beside this one, where a folder states its name.

    A name of other characters than letters, digits, `.`, `_` and `-`, or of more than 24, is not known from its folder.
    """
    base = folder.parent
    names = [(beside, beside.name.rpartition("-")[0]) for beside in base.iterdir() if beside != folder]
    return sorted(
        name
        for beside, name in names
        if name and _folder_name(name, base, MAX_NAME_LENGTH) == beside.name and list_sockets(beside)
    )


def _folder_name(application: str, base: Path, name_length: int) -> str:
    digest = hashlib.sha256(application.encode(errors="surrogatepass")).hexdigest()[:12]
    room = MAX_PATH_BYTES - len(os.fsencode(base)) - len(digest) - name_length - len("//")
    if room < 0:
        raise PathTooLongError(f"{str(base)!r} is {-room} bytes too long for a Unix socket in it")
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
        raise FolderError(f"{str(folder)!r} {problem}")


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
    raise FolderError(f"{str(folder)!r} {problem}")
