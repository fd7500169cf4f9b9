"""Options of the Redis adapters, and their TLS settings."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final, Literal

from pydantic import Field

from backplane.adapters.shared.credentials import CREDENTIALS_PATTERN
from backplane.adapters.shared.tls import client_context
from backplane.broadcaster import Options
from backplane.errors import ConfigurationError

if TYPE_CHECKING:
    from backplane.broadcaster import BrokerUrl

__all__ = ["MAX_PREFIX", "RedisOptions", "check_options", "speaks_tls", "tls_context"]

MAX_PREFIX: Final = 255
"""Longest prefix, in characters."""

_VERIFY: Final = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}


class RedisOptions(Options):
    """Options of `redis://`, `rediss://`, `unix://`, `valkey://` and `valkeys://`."""

    prefix: str = Field(default="", max_length=MAX_PREFIX)
    """Text before every channel name at the server, to share it among applications or to match an ACL."""
    credentials: str | None = Field(default=None, pattern=CREDENTIALS_PATTERN)
    """`package.module:callable`, called at each connect in place of user and password in the URL, for tokens that
    expire. Returns a password, `(password,)` or `(username, password)`; async, or run in a thread."""
    db: int = Field(default=0, ge=0)
    """The database number of other clients' URLs. It has no effect: pub/sub has no databases."""
    connect_timeout_seconds: float = Field(default=3.0, gt=0)
    """How long connecting to one address, TLS and authentication may take."""
    max_payload_bytes: int = Field(default=16 * 1024 * 1024, gt=0, le=512 * 1024 * 1024)
    """Largest payload, in bytes. Redis itself accepts 512 MiB (`proto-max-bulk-len`)."""
    max_pending_bytes: int = Field(default=64 * 1024 * 1024, gt=0)
    """Most bytes published and not yet answered; one message is always accepted. Over it `publish` raises."""
    client_name: str | None = None
    """Name in `CLIENT LIST`. Requires the permission for `CLIENT SETNAME`."""
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
    """Check that the options agree with the URL and with each other.

    Raises:
        ConfigurationError: They do not.
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
        raise ConfigurationError("redis: credentials replace user and password of the URL: give one of both")


def tls_context(options: RedisOptions) -> ssl.SSLContext:
    """Return the TLS settings. The files are read at each connect, because certificates are renewed.

    Raises:
        BrokerError: A file cannot be read, or is malformed.
    """
    context = client_context(options.ssl_ca_certs, options.ssl_certfile, options.ssl_keyfile, adapter="redis")
    context.check_hostname = options.ssl_check_hostname and options.ssl_cert_reqs != "none"
    context.verify_mode = _VERIFY[options.ssl_cert_reqs]
    return context
