"""Credentials that the application hands out at each login: tokens that expire, passwords that are rotated."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
# pyright: reportUntypedBaseClass=false
# aiokafka has no types for its users.

from __future__ import annotations

import asyncio
import importlib
import inspect
from typing import TYPE_CHECKING, Any

from aiokafka.abc import AbstractTokenProvider  # type: ignore[import-untyped]

from backplane.errors import BrokerAuthenticationError, BrokerUnavailableError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Token", "ask_password", "ask_token", "find_callable"]


def find_callable(path: str) -> Callable[[], Any]:
    """Import what `path` names, as `package.module:callable`.

    Raises:
        ConfigurationError: There is no such module, or nothing callable of that name in it.
    """
    module, _, names = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"kafka: credentials={path}: {error}") from error
    if not callable(found):
        raise ConfigurationError(f"kafka: credentials={path} is not callable")
    return found  # type: ignore[no-any-return]


async def ask_token(credentials: Callable[[], Any]) -> str:
    """Return the token for a login by OAUTHBEARER.

    Raises:
        BrokerUnavailableError: The callable raised.
        BrokerAuthenticationError: It returned no text.
    """
    token = await _ask(credentials)
    if not isinstance(token, str) or not token:
        raise BrokerAuthenticationError(
            f"credentials returned {type(token).__name__}, and OAUTHBEARER needs a token: a str", adapter="kafka"
        )
    return token


async def ask_password(credentials: Callable[[], Any], mechanism: str) -> tuple[str, str]:
    """Return user name and password for a login by `mechanism`.

    Raises:
        BrokerUnavailableError: The callable raised.
        BrokerAuthenticationError: It returned something else.
    """
    match await _ask(credentials):
        case (str() as username, str() as password):
            return username, password
        case other:
            raise BrokerAuthenticationError(
                f"credentials returned {type(other).__name__}, and {mechanism} needs (username, password)",
                adapter="kafka",
            )


class Token(AbstractTokenProvider):  # type: ignore[misc]
    """A token as aiokafka asks for it, once for each connection."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  # aiokafka's says None
        """Return it."""
        return self._token


async def _ask(credentials: Callable[[], Any]) -> Any:
    """Call `credentials`: in this event loop where it is async, else in a thread, as it may wait for a network."""
    try:
        if inspect.iscoroutinefunction(credentials):
            return await credentials()
        answer = await asyncio.to_thread(credentials)
        return await answer if inspect.isawaitable(answer) else answer
    except Exception as error:
        raise BrokerUnavailableError(f"no credentials: {type(error).__name__}: {error}", adapter="kafka") from error
