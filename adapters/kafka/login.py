"""How connections are secured, and the credentials for each login: tokens expire, passwords are rotated."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
# pyright: reportUntypedBaseClass=false
# aiokafka has no types for its users.

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backplane.adapters.shared.credentials import ask_credentials
from backplane.errors import BrokerAuthenticationError

if TYPE_CHECKING:
    import ssl

    class AbstractTokenProvider:
        """aiokafka's base class, which has no types."""

else:
    from aiokafka.abc import AbstractTokenProvider

__all__ = ["Security", "Token", "ask_password", "ask_token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """How a connection is secured, and the credentials of its login; `repr` shows no secret."""

    ssl_context: ssl.SSLContext | None
    mechanism: str
    username: str | None
    password: str | None = field(repr=False)
    token: Token | None = field(default=None, repr=False)

    @property
    def protocol(self) -> str:
        """Kafka's name for the combination of TLS and login."""
        logs_in = self.username is not None or self.token is not None
        return ("SASL_" if logs_in else "") + ("SSL" if self.ssl_context else "PLAINTEXT")


async def ask_token(credentials: str) -> str:
    """Return the token for a login by OAUTHBEARER.

    Raises:
        ConfigurationError: The callable does not exist.
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
        ConfigurationError: The callable does not exist.
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


class Token(AbstractTokenProvider):
    """A token for aiokafka, which calls `token` once for each connection."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self) -> str:
        """Return the token."""
        return self._token
