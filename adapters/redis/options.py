"""Options of the Redis adapters, and the login and the address of a URL."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field

from backplane.adapters.shared.credentials import CREDENTIALS_PATTERN, ask_credentials
from backplane.adapters.shared.tls import client_context
from backplane.broadcaster import Options, malformed_address
from backplane.errors import ConfigurationError

if TYPE_CHECKING:
    from backplane.broadcaster import BrokerUrl

__all__ = ["Login", "RedisOptions", "check_options", "host_and_port", "login", "speaks_tls", "tls_context"]

Login = tuple[str | None, str | None]
"""User and password, either of which may be missing."""

_VERIFY: Final = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}


class RedisOptions(Options):
    """Options of `redis://`, `rediss://`, `unix://`, `valkey://` and `valkeys://`."""

    prefix: str = Field(default="", max_length=255)
    """Put in front of every channel name on the server, to share it among applications or to fit an ACL."""
    credentials: str | None = Field(default=None, pattern=CREDENTIALS_PATTERN)
    """`package.module:callable`, called at each connect in place of user and password in the URL, for tokens that
    expire. Returns a password, `(password,)` or `(username, password)`; async, or run in a thread."""
    db: int = Field(default=0, ge=0)
    """The database number of other clients' URLs. It has no effect: pub/sub knows no databases."""
    connect_timeout_seconds: float = Field(default=3.0, gt=0)
    """How long connecting to one address, TLS and authentication may take."""
    max_payload_bytes: int = Field(default=16 * 1024 * 1024, gt=0, le=512 * 1024 * 1024)
    """Largest payload, in bytes. Redis itself takes 512 MiB (`proto-max-bulk-len`)."""
    max_pending_bytes: int = Field(default=64 * 1024 * 1024, gt=0)
    """Most bytes published and not yet answered; one message is always taken. Over it `publish` raises."""
    client_name: str | None = None
    """Name in `CLIENT LIST`. Needs the permission for `CLIENT SETNAME`."""
    ssl_ca_certs: str | None = None
    """File of the authorities to trust, for `rediss://`. Defaults to the system's."""
    ssl_certfile: str | None = None
    """File of the client's certificate."""
    ssl_keyfile: str | None = None
    """File of the client's key."""
    ssl_cert_reqs: Literal["required", "optional", "none"] = "required"
    """Whether the server must show a valid certificate."""
    ssl_check_hostname: bool = True
    """Whether its certificate must name the host."""


def speaks_tls(url: BrokerUrl) -> bool:
    """Return whether the scheme asks for TLS."""
    return url.scheme.startswith(("rediss", "valkeys"))


def check_options(url: BrokerUrl, options: RedisOptions) -> None:
    """Refuse options that contradict the URL or each other.

    Raises:
        ConfigurationError: They do.
    """
    given = sorted(name for name in options.model_fields_set if name.startswith("ssl_"))
    if given and not speaks_tls(url):
        raise ConfigurationError(
            f"redis: {', '.join(given)} given, and {url.scheme}:// speaks no TLS: use rediss://, rediss+sentinel:// "
            "or valkeys://"
        )
    if options.ssl_keyfile and not options.ssl_certfile:
        raise ConfigurationError("redis: ssl_keyfile needs ssl_certfile, the certificate of that key")
    if options.credentials and (url.username or url.password):
        raise ConfigurationError("redis: credentials stand in place of user and password in the URL: give one of both")


async def login(url: BrokerUrl, options: RedisOptions) -> Login:
    """Return as whom to log in, asked anew at each connect where a callable provides it.

    Raises:
        ConfigurationError: The callable cannot be imported, or returns something else.
        BrokerUnavailableError: It raised, or did not return in time.
    """
    if options.credentials is None:
        return url.username, url.password
    match await ask_credentials(options.credentials, adapter="redis", seconds=options.connect_timeout_seconds):
        case (str() as password,) | (str() as password):
            return None, password
        case (str() | None as username, str() as password):
            return username, password
        case other:
            raise ConfigurationError(
                f"redis: {options.credentials} must return a password or (username, password), "
                f"not {type(other).__name__}"
            )


def tls_context(options: RedisOptions) -> ssl.SSLContext:
    """Return the settings of TLS; the files are read anew at each connect, for certificates are renewed.

    Raises:
        BrokerError: A file cannot be read, or is none.
    """
    context = client_context(options.ssl_ca_certs, options.ssl_certfile, options.ssl_keyfile, adapter="redis")
    context.check_hostname = options.ssl_check_hostname and options.ssl_cert_reqs != "none"
    context.verify_mode = _VERIFY[options.ssl_cert_reqs]
    return context


def host_and_port(text: str, default_port: int) -> tuple[str, int]:
    """Split `host:port`, either of which may be missing.

    Raises:
        ConfigurationError: It is something else.
    """
    try:
        parts = urlsplit(f"//{text}")
        return parts.hostname or "localhost", parts.port or default_port
    except ValueError:
        raise malformed_address(text, adapter="redis") from None
