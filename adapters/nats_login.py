"""The first lines of a NATS connection: what the server announces, and the CONNECT that answers it."""

from __future__ import annotations

import base64
import json
import re
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from backplane.errors import BrokerError, ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backplane.adapters.nats import NatsOptions
    from backplane.broadcaster import BrokerUrl

__all__ = ["NatsLogin", "ServerInfo"]

_CREDENTIALS: Final = re.compile(r"-{3,}BEGIN ([A-Z ]+)-{3,}\s+(\S+)\s+-{3,}END")


class ServerInfo(BaseModel):
    """What a server announces in INFO, as far as it is of use here.

    Attributes:
        server_id: Another one after each start of the server.
        version: As `2.10.29`.
        max_payload: Largest payload for this connection, in bytes; no bound where it is not more than 0.
        nonce: What an NKey has to sign.
        tls_required: Whether it expects a TLS handshake next.
        tls_available: Whether it accepts one.
        connect_urls: `host:port` of the servers of its cluster.
        ldm: Whether it is in lame duck mode, about to close its connections.
    """

    server_id: str = ""
    version: str = ""
    max_payload: int = 0
    nonce: str | None = None
    tls_required: bool = False
    tls_available: bool = False
    connect_urls: list[str] | None = None
    ldm: bool = False


class NatsLogin:
    """Who this client is. Files are read at each login, so that a rotated secret needs no restart.

    Args:
        url: User name and password; a lone user name is a token.
        options: Files in their place.

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
        }
        if len(kinds := [kind for kind, value in given.items() if value]) > 1:
            raise ConfigurationError(f"nats: {' and '.join(kinds)} are given, and a login takes one of them")
        self._nkeys: Any = None
        if options.user_credentials or options.nkeys_seed:
            try:
                self._nkeys = import_module("nkeys")
            except ImportError as error:
                raise MissingDependencyError(
                    f"nats: NKeys need a package that is not installed ({error}): pip install 'fastapi-backplane[nats]'"
                ) from error

    def command(self, info: ServerInfo, over_tls: bool) -> bytes:
        """Return the CONNECT that answers `info`.

        Raises:
            BrokerError: A file cannot be read, or holds no credentials.
        """
        fields = {
            "verbose": False,
            "pedantic": False,
            "tls_required": over_tls,
            "lang": "python",
            "version": version("fastapi-backplane"),
            "protocol": 1,  # takes an INFO at any time
            "headers": True,
            **({"name": self._options.client_name} if self._options.client_name else {}),
            **self._credentials(info),
        }
        return b"CONNECT %b\r\n" % json.dumps(fields).encode()

    def _credentials(self, info: ServerInfo) -> Mapping[str, str]:
        options = self._options
        if options.user_credentials:
            parts = dict(_CREDENTIALS.findall(_read(options.user_credentials)))
            if not parts.keys() >= {"NATS USER JWT", "USER NKEY SEED"}:
                raise BrokerError(f"{options.user_credentials} holds no JWT and NKey seed of a user", adapter="nats")
            _, signature = self._sign(parts["USER NKEY SEED"], info.nonce)
            return {"jwt": parts["NATS USER JWT"], "sig": signature}
        if options.nkeys_seed:
            public_key, signature = self._sign(_read(options.nkeys_seed), info.nonce)
            return {"nkey": public_key, "sig": signature}
        password = _read(options.password_file) if options.password_file else self._password
        if self._username is not None and password is not None:
            return {"user": self._username, "pass": password}
        token = password or self._username
        return {"auth_token": token} if token else {}

    def _sign(self, seed: str, nonce: str | None) -> tuple[str, str]:
        """Return the public key, and the signature under the server's nonce."""
        try:
            keys = self._nkeys.from_seed(bytearray(seed.encode()))
            signature = keys.sign((nonce or "").encode())
            return keys.public_key.decode(), base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
        except Exception as error:  # of nkeys, of base64, of PyNaCl: none of them a secret's place
            raise BrokerError(f"the NKey seed is none ({type(error).__name__})", adapter="nats") from None


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError) as error:
        raise BrokerError(f"cannot read the credentials: {error}", adapter="nats") from error
