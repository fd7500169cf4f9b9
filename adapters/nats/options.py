"""Options of the NATS adapter."""

from __future__ import annotations

import re
from typing import Final, Literal

from pydantic import Field

from backplane.adapters.shared.credentials import CREDENTIALS_PATTERN
from backplane.broadcaster import BrokerUrl, Options
from backplane.errors import ConfigurationError

__all__ = ["NatsOptions", "check_options"]

_MEBIBYTE: Final = 1024 * 1024
_PREFIX: Final = re.compile(r"([A-Za-z0-9_-]+\.)*")


class NatsOptions(Options):
    """Options of `nats://` and `tls://`."""

    prefix: str = ""
    """Tokens before every subject, each ended by a dot (`shop.`): to share the server, or to match a permission."""
    connect_timeout_seconds: float = Field(default=3.0, gt=0)
    """How long connecting to one server, TLS and authentication may take."""
    max_payload_bytes: int = Field(default=_MEBIBYTE, gt=0, le=64 * _MEBIBYTE)
    """Largest payload, in bytes. A server, or an account, that allows less (`max_payload`) lowers it."""
    max_pending_bytes: int = Field(default=64 * _MEBIBYTE, gt=0)
    """Most bytes published and not yet confirmed; one message is always accepted. Over it `publish` raises."""
    history_storage: Literal["file", "memory"] = "file"
    """Where the server keeps the messages of channels with a history: `memory` is lost when it ends."""
    history_replicas: int = Field(default=1, ge=1, le=5)
    """How many servers of a cluster keep them: 3 survive the loss of one. An existing stream stays as it is."""
    history_max_bytes: int = Field(default=0, ge=0)
    """Most bytes of each stream, which then drops its oldest messages, of whichever channel. Defaults to no limit.
    An account can demand one (`max_bytes_required`). An existing stream stays as it is."""
    client_name: str | None = None
    """Name in the server's monitoring."""
    password_file: str | None = None
    """File with the password of the URL's user, or with a token where the URL names none. Read at each login."""
    credentials: str | None = Field(default=None, pattern=CREDENTIALS_PATTERN)
    """`package.module:callable`, called at each login for what expires: returns a token, `(username, password)`, or the
    text of a `.creds` file; async, or run in a thread."""
    user_credentials: str | None = None
    """File with a user's JWT and NKey (`.creds`). Read at each login."""
    nkeys_seed: str | None = None
    """File with an NKey seed. Read at each login."""
    tls_ca_certs: str | None = None
    """File of the authorities to trust. Defaults to the system's. Each TLS option requires TLS, as `tls://` does."""
    tls_certfile: str | None = None
    """File of the client's certificate."""
    tls_keyfile: str | None = None
    """File of the client's key. Defaults to the certificate's file."""
    tls_first: bool = False
    """Start with the TLS handshake, as a server with `handshake_first` expects. Defaults to false."""


def check_options(url: BrokerUrl, options: NatsOptions) -> None:
    """Check the URL, and that the options agree with each other.

    Raises:
        ConfigurationError: The URL is malformed, or the options contradict each other.
    """
    if "//" in url.path:
        raise ConfigurationError(f"nats: all servers of a URL have its scheme: {url.scheme}://one:4222,two:4222")
    if url.path.strip("/"):
        raise ConfigurationError(f"nats: a URL has no path, this one has {url.path!r}")
    if not _PREFIX.fullmatch(options.prefix):
        raise ConfigurationError(
            f"nats: a prefix is made of tokens, each ended by a dot (shop.), not {options.prefix!r}"
        )
    if options.tls_keyfile and not options.tls_certfile:
        raise ConfigurationError("nats: tls_keyfile needs tls_certfile")
