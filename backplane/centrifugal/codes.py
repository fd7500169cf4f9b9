"""The answers to commands that fail, of which the RPCs of an application need these."""

from __future__ import annotations

from typing import Final

from backplane.errors import ConfigurationError

__all__ = ["BAD_REQUEST", "INTERNAL", "METHOD_NOT_FOUND", "UNAVAILABLE", "CommandError", "ProtocolError"]

_OF_APPLICATIONS: Final = range(400, 2000)


class CommandError(Exception):
    """The answer to a command that fails, for a hook or an RPC to raise.

    Args:
        code: 400 to 1999: the application's own.
        message: Why, for the client.
        temporary: Whether the client should try again. A subscription is tried again by the SDK itself, with back-off.

    Raises:
        ConfigurationError: The code is not one of an application.
    """

    def __init__(self, code: int, message: str, *, temporary: bool = False) -> None:
        if isinstance(code, bool) or not isinstance(code, int) or code not in _OF_APPLICATIONS:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"the code of an error of the application is 400 to 1999, not {code!r:.100}")
        super().__init__(message)
        self.code: int = code
        self.message: str = message
        self.temporary: bool = temporary


class ProtocolError(CommandError):
    """An answer that the protocol itself defines."""

    def __init__(self, code: int, message: str, *, temporary: bool = False) -> None:
        Exception.__init__(self, message)
        self.code = code
        self.message = message
        self.temporary = temporary


INTERNAL: Final = ProtocolError(100, "internal server error", temporary=True)
UNAVAILABLE: Final = ProtocolError(100, "not available at present: try again later", temporary=True)
METHOD_NOT_FOUND: Final = ProtocolError(104, "method not found")
BAD_REQUEST: Final = ProtocolError(107, "bad request")
