"""The folder of the application that the URL names, with the errors of an adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backplane.errors import BrokerError, ConfigurationError
from backplane.unix_sockets import folder as folders

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["open_folder"]

_CURE: Final = "name another one with ?directory="


def open_folder(application: str, directory: Path | None) -> Path:
    """Return the private folder of `application`, created if it does not exist.

    Args:
        application: Name of the application. Two different names never share a folder.
        directory: The directory that holds the folder, instead of `$XDG_RUNTIME_DIR/backplane` or `<temporary
            directory>/backplane-<uid>`.

    Raises:
        ConfigurationError: The path is too long for a Unix socket.
        BrokerError: The folder cannot be created, is not private, or another user could replace it.
    """
    try:
        base = folders.default_directory() if directory is None else directory
        return folders.open_folder(application, base, shared=directory is not None)
    except folders.PathTooLongError as error:
        raise ConfigurationError(f"{error}: name a shorter one with ?directory=") from error
    except folders.FolderError as error:
        raise BrokerError(f"{error}: {_CURE}", adapter="ipc") from error
