"""User and password of a login: those of the URL, or those that a callable of the application provides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.adapters.shared.credentials import ask_login

if TYPE_CHECKING:
    from backplane.adapters.redis.options import RedisOptions
    from backplane.broadcaster import BrokerUrl

__all__ = ["Credentials", "find_credentials"]

Credentials = tuple[str | None, str | None]
"""User and password, either of which may be missing."""


async def find_credentials(url: BrokerUrl, options: RedisOptions) -> Credentials:
    """Return user and password for a login. A callable is called at each one, because what it returns can expire.

    Raises:
        ConfigurationError: The callable cannot be imported, or returns something else.
        BrokerUnavailableError: It raised, or did not return in time.
    """
    if options.credentials is None:
        return url.username, url.password
    return await ask_login(options.credentials, adapter="redis", seconds=options.connect_timeout_seconds)
