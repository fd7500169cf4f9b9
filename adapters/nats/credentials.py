"""The credentials of a login: those of the URL, of a file, or of a callable of the application."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nats.aio.client import RawCredentials

from backplane.adapters.shared.credentials import ask_credentials
from backplane.errors import BrokerError, ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backplane.adapters.nats.options import NatsOptions
    from backplane.broadcaster import BrokerUrl

__all__ = ["NatsCredentials"]

_CREDENTIALS: Final = re.compile(r"-{3,}BEGIN (NATS USER JWT|USER NKEY SEED)-{3,}\n\S+\n-{3,}END")


class NatsCredentials:
    """The credentials that a URL or its options give, of one kind.

    Files are read, and the callable is called, at each login, so that a rotated secret needs no restart.

    Args:
        url: User name and password; a user name without a password is a token.
        options: Files, or a callable, in their place.

    Raises:
        ConfigurationError: More than one kind of credentials.
        MissingDependencyError: NKeys need a package that is not installed.
    """

    def __init__(self, url: BrokerUrl, options: NatsOptions) -> None:
        self._username, self._password = url.username, url.password
        self._options = options
        given = {
            "a password in the URL": url.password is not None or (url.username and not options.password_file),
            "password_file": options.password_file,
            "user_credentials": options.user_credentials,
            "nkeys_seed": options.nkeys_seed,
            "credentials": options.credentials,
        }
        if len(kinds := [kind for kind, value in given.items() if value]) > 1:
            raise ConfigurationError(f"nats: {' and '.join(kinds)} are given, and a login takes one of them")
        if options.user_credentials or options.nkeys_seed:
            try:
                import_module("nkeys")  # without this check nats-py would fail at the login only
            except ImportError as error:
                raise MissingDependencyError(
                    f"nats: NKeys need a package that is not installed ({error}): pip install 'fastapi-backplane[nats]'"
                ) from error

    async def read(self) -> Mapping[str, Any]:
        """Return them as arguments of `nats.aio.client.Client.connect`.

        Raises:
            ConfigurationError: The callable that `credentials` names is missing, or returned something else.
            BrokerError: A file cannot be read or holds no credentials, or the callable failed.
        """
        options = self._options
        if options.credentials:
            return await self._from_callable(options.credentials)
        if options.user_credentials:
            return _user_credentials(_read(options.user_credentials), options.user_credentials)
        if options.nkeys_seed:
            return {"nkeys_seed_str": _read(options.nkeys_seed)}
        password = _read(options.password_file) if options.password_file else self._password
        if self._username is not None and password is not None:
            return {"user": self._username, "password": password}
        token = password or self._username
        return {"token": token} if token else {}

    async def _from_callable(self, path: str) -> Mapping[str, Any]:
        match await ask_credentials(path, adapter="nats", seconds=self._options.connect_timeout_seconds):
            case (str() as username, str() as password):
                return {"user": username, "password": password}
            case str() as text if _CREDENTIALS.search(text):
                return _user_credentials(text, path)
            case str() as token:
                return {"token": token}
            case other:
                raise ConfigurationError(
                    f"nats: {path} must return a token, (username, password), or the text of a .creds file, "
                    f"not {type(other).__name__}"
                )


def _user_credentials(text: str, place: str) -> Mapping[str, Any]:
    # Without this check nats-py would search without end for a JWT that is missing.
    if set(_CREDENTIALS.findall(text)) != {"NATS USER JWT", "USER NKEY SEED"}:
        raise BrokerError(f"{place} holds no JWT and NKey seed of a user", adapter="nats")
    return {"user_credentials": RawCredentials(text)}


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError) as error:
        raise BrokerError(f"cannot read the credentials: {error}", adapter="nats") from error
