"""The public keys of an identity provider, from the URL of its JSON Web Key Set (RFC 7517)."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from time import monotonic
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from backplane.concurrency.threads import start_thread
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import ConfigurationError, InvalidTokenError, TokenCheckUnavailableError
from backplane.journal.events import TOKEN_KEYS
from backplane.journal.writing import write

if TYPE_CHECKING:
    from jwt import PyJWK

__all__ = ["KeySet"]

logger: Final = logging.getLogger("backplane.centrifugal.key_set")

_FRESH_SECONDS: Final = 300.0
_USABLE_SECONDS: Final = 3_600.0
# Of a token any client can make up the name of a key: so many seconds pass between two fetches, whatever comes.
_PAUSE_SECONDS: Final = 5.0
# A command of a client is answered within 4 s.
_WAIT_SECONDS: Final = 3.0


class KeySet:
    """The keys at a URL. They are fetched in a thread of its own, when a token needs them, once for all that wait.

    Keys are used for 5 minutes; after that they are used while they are fetched again, and while that fails, up to an
    hour. So neither a slow endpoint nor one that is down delays clients whose key is known. A key that is not known is
    fetched at most every 5 s.

    Args:
        url: `https://...`, or `http://...` where the network between is trusted.

    Raises:
        ConfigurationError: It is no such URL, or holds a password.
    """

    def __init__(self, url: str) -> None:
        from jwt import PyJWKClient

        self._host = _host(url)
        self._client = PyJWKClient(url, cache_jwk_set=False, timeout=_WAIT_SECONDS)
        self._keys: list[PyJWK] = []
        self._fetched_at = float("-inf")
        self._asked_at = float("-inf")
        self._has_failed = False
        self._fetch: Future[bool] = Future()
        self._fetch.set_result(False)

    async def key_of(self, token: str) -> PyJWK:
        """Return the key that a token names. The token is not checked.

        Raises:
            InvalidTokenError: There is no such key.
            TokenCheckUnavailableError: The keys are not known at the moment.
            jwt.PyJWTError: It is no token.
        """
        from jwt import get_unverified_header

        kid: str | None = get_unverified_header(token).get("kid")
        key = self._find(kid)
        if key is not None:
            if monotonic() >= self._fetched_at + _FRESH_SECONDS:
                self._started()  # and is not waited for
            return key
        if not await self._fetched():
            raise TokenCheckUnavailableError(f"the keys of {self._host} are not known at the moment")
        key = self._find(kid)
        if key is None:
            raise InvalidTokenError("the token names no key of its issuer")
        return key

    def _find(self, kid: str | None) -> PyJWK | None:
        if monotonic() >= self._fetched_at + _USABLE_SECONDS:
            return None
        found = [key for key in self._keys if kid is None or key.key_id == kid]
        return found[0] if len(found) == 1 else None

    async def _fetched(self) -> bool:
        """Wait for a fetch; return whether it brought the keys."""
        fetch = self._started()
        if fetch is None:
            return False
        try:
            async with PatientTimeout(_WAIT_SECONDS):
                return await asyncio.wrap_future(fetch)
        except TimeoutError:
            return False

    def _started(self) -> Future[bool] | None:
        """Return the fetch that runs, or a new one; `None` within the pause after the last one."""
        if not self._fetch.done():
            return self._fetch
        if monotonic() < self._asked_at + _PAUSE_SECONDS:
            return None
        self._asked_at = monotonic()
        self._fetch = Future()
        self._fetch.set_running_or_notify_cancel()  # from now on a cancelled caller does not cancel it
        try:
            start_thread(self._run, "backplane-jwks")
        except RuntimeError as error:
            self._failed(error)
        return self._fetch

    def _run(self) -> None:
        try:
            keys = self._client.get_jwk_set().keys
        except Exception as error:
            return self._failed(error)
        self._keys = [key for key in keys if key.public_key_use in ("sig", None)]
        self._fetched_at = monotonic()
        if self._has_failed:
            self._has_failed = False
            write(logger, TOKEN_KEYS, "the keys of %(host)s are fetched again", level=logging.INFO, host=self._host)
        self._fetch.set_result(True)

    def _failed(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            words = "the keys of %(host)s cannot be fetched: %(reason)s"
            write(logger, TOKEN_KEYS, words, host=self._host, reason=_reason(error))
        self._fetch.set_result(False)


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.username is None and url.isprintable() and " " not in url else None
    except ValueError:
        host = None
    if not host:
        raise ConfigurationError("the URL of a JWKS is https://host/path, without a user name and a password")
    return host


def _reason(error: Exception) -> str:
    """Return the error in words; the words of others than of the connection could quote the answer."""
    from jwt import PyJWKClientConnectionError

    return str(error) if isinstance(error, PyJWKClientConnectionError) else type(error).__name__
