"""Options of the PostgreSQL adapter, and the servers of its URL."""

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

__all__ = ["PostgresOptions", "Server", "check_options", "servers_of", "tls_settings"]

_DEFAULT_PORT: Final = 5432
_MEBIBYTE: Final = 1024 * 1024

Server = tuple[str, int]
"""Host, or the folder of its socket, and port."""


class PostgresOptions(Options):
    """Options of `postgres://` and `postgresql://`."""

    notify: str = Field(default="backplane", pattern=r"^[a-z_][a-z0-9_]{0,62}$")
    """The PostgreSQL channel of `NOTIFY`, which carries all channels: another one for each application."""
    host: str | None = Field(default=None, pattern=r"^/")
    """Folder of the server's Unix socket, such as `/var/run/postgresql`, in place of a host in the URL."""
    target_session_attrs: Literal["primary", "read-write"] = "primary"
    """Which of several servers is used: the primary, or only one whose sessions may write by default."""
    credentials: str | None = Field(default=None, pattern=CREDENTIALS_PATTERN)
    """`package.module:callable`, called at each connect in place of the URL's password, for tokens that expire. Returns
    a password, `(password,)` or `(username, password)`; async, or run in a thread."""
    connect_timeout_seconds: float = Field(default=3.0, gt=0)
    """How long connecting to one server, TLS and authentication may take."""
    max_payload_bytes: int = Field(default=_MEBIBYTE, gt=0, le=64 * _MEBIBYTE)
    """Largest payload, in bytes. Above about 5,900 it takes several notifications of one transaction."""
    max_pending_bytes: int = Field(default=64 * _MEBIBYTE, gt=0)
    """Most bytes published and not yet answered; one message is always accepted. Over it `publish` raises."""
    durable: bool = False
    """Messages are rows of a table (`backplane schema postgres` prints its SQL), and a worker goes on after a lost link
    where it was. Defaults to false. All processes need the same."""
    retention_seconds: float = Field(default=600.0, gt=0)
    """With `durable`: how long a message is kept at least, in seconds; it is deleted within twice that time."""
    max_resume_messages: int = Field(default=50_000, gt=0)
    """With `durable`: most messages that are read after a lost link; where more were missed it is a `Gap`."""
    application_name: str = Field(default="backplane", max_length=63)
    """Name in `pg_stat_activity`."""
    sslmode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] | None = None
    """As libpq's. Defaults to `verify-full` where `sslrootcert` is given, `require` where `sslcert` is, else `prefer`,
    which goes on in the clear where the server offers no TLS."""
    sslrootcert: str | None = None
    """File of the authorities to trust. Defaults to the system's."""
    sslcert: str | None = None
    """File of the client's certificate."""
    sslkey: str | None = None
    """File of the client's key. Defaults to the certificate's file."""


def check_options(url: BrokerUrl, options: PostgresOptions) -> None:
    """Check that the options agree with the URL and with each other.

    Raises:
        ConfigurationError: They do not.
    """
    if options.host and url.netloc and not url.netloc.startswith(":"):
        raise ConfigurationError("postgres: the option host replaces the host of the URL: give one of both")
    if options.credentials and url.password is not None:
        raise ConfigurationError("postgres: credentials replace the password of the URL: give one of both")
    if options.sslkey and not options.sslcert:
        raise ConfigurationError("postgres: sslkey needs sslcert, the certificate of that key")
    if options.sslmode in ("disable", "prefer") and (options.sslrootcert or options.sslcert):
        raise ConfigurationError(
            f"postgres: sslmode={options.sslmode} takes a server without TLS, so sslrootcert and sslcert protect "
            "nothing: use require, verify-ca or verify-full"
        )
    if url.netloc[:3].lower() == "%2f":  # libpq takes it
        raise ConfigurationError(
            "postgres: the folder of a Unix socket is an option: postgres:///db?host=/run/postgresql"
        )
    if "/" in url.path.strip("/"):
        raise ConfigurationError(f"postgres: the path of the URL is the name of a database, not {url.path!r}")


def servers_of(url: BrokerUrl, options: PostgresOptions) -> list[Server]:
    """Return the servers of the URL, in its order.

    Raises:
        ConfigurationError: One is not `host:port`.
    """
    servers = url.servers(_DEFAULT_PORT, adapter="postgres")
    return [(options.host, port) for _, port in servers] if options.host else servers


def tls_settings(options: PostgresOptions) -> ssl.SSLContext | Literal["prefer", False]:
    """Return what asyncpg takes. The files are read at each connect, because certificates are renewed.

    Raises:
        BrokerError: A file cannot be read, or is malformed.
    """
    mode = options.sslmode or ("verify-full" if options.sslrootcert else "require" if options.sslcert else "prefer")
    if mode == "prefer":
        return "prefer"
    if mode == "disable":
        return False
    context = client_context(options.sslrootcert, options.sslcert, options.sslkey, adapter="postgres")
    context.check_hostname = mode == "verify-full"
    if mode == "require" and not options.sslrootcert:  # as libpq: the server is not checked
        context.verify_mode = ssl.CERT_NONE
    return context
