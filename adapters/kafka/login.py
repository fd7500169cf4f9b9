"""Credentials that the application hands out at each login: tokens that expire, passwords that are rotated."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
# pyright: reportUntypedBaseClass=false
# aiokafka has no types for its users.

from __future__ import annotations

from aiokafka.abc import AbstractTokenProvider  # type: ignore[import-untyped]

from backplane.adapters.shared.credentials import ask_credentials
from backplane.errors import BrokerAuthenticationError

__all__ = ["Token", "ask_password", "ask_token"]


async def ask_token(credentials: str) -> str:
    """Return the token for a login by OAUTHBEARER.

    Raises:
        ConfigurationError: There is no such callable.
        BrokerUnavailableError: It raised.
        BrokerAuthenticationError: It returned no text.
    """
    token = await ask_credentials(credentials, adapter="kafka")
    if not isinstance(token, str) or not token:
        raise BrokerAuthenticationError(
            f"credentials returned {type(token).__name__}, and OAUTHBEARER needs a token: a str", adapter="kafka"
        )
    return token


async def ask_password(credentials: str, mechanism: str) -> tuple[str, str]:
    """Return user name and password for a login by `mechanism`.

    Raises:
        ConfigurationError: There is no such callable.
        BrokerUnavailableError: It raised.
        BrokerAuthenticationError: It returned something else.
    """
    match await ask_credentials(credentials, adapter="kafka"):
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
