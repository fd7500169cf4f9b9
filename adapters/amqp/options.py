"""Options of the RabbitMQ adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import Field

from backplane.adapters.shared.credentials import CREDENTIALS_PATTERN
from backplane.adapters.shared.tls import client_context
from backplane.broadcaster import Options
from backplane.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl

    from backplane.broadcaster import BrokerUrl

__all__ = ["AmqpOptions", "check_options", "default_port", "tls_settings", "virtual_host"]

_MEBIBYTE: Final = 1024 * 1024


class AmqpOptions(Options):
    """Options of `amqp://` and `amqps://`."""

    exchange: str = Field(default="backplane", pattern=r"^[A-Za-z0-9_.:-]{1,100}$")
    """The fanout exchange, which carries all channels: another one for each application. It is created if missing."""
    queue_max_bytes: int = Field(default=64 * _MEBIBYTE, gt=0)
    """Most bytes that RabbitMQ keeps for a worker that does not read. Over it the oldest are dropped: a gap."""
    durable: bool = False
    """Messages are stored in a stream (RabbitMQ 3.9 or newer), and a worker goes on after a lost link where it was.
    Defaults to false."""
    retention_seconds: int = Field(default=600, gt=0)
    """With `durable`: how long a message is kept, in seconds. It applies when the stream is created, `exchange` with
    `.stream` after it; RabbitMQ deletes what is older in parts of a tenth of `retention_bytes`."""
    retention_bytes: int = Field(default=1024 * _MEBIBYTE, ge=10 * _MEBIBYTE)
    """With `durable`: most bytes that the stream keeps."""
    credentials: str | None = Field(default=None, pattern=CREDENTIALS_PATTERN)
    """`package.module:callable`, called at each connect in place of the URL's password, for tokens that expire. Returns
    a password, `(password,)` or `(username, password)`; async, or run in a thread."""
    connect_timeout_seconds: float = Field(default=3.0, gt=0)
    """How long connecting to one server, TLS and authentication may take."""
    heartbeat_seconds: int = Field(default=10, ge=1, le=600)
    """Each side sends something at least this often; a server that is silent for twice as long is given up."""
    max_payload_bytes: int = Field(default=_MEBIBYTE, gt=0, le=64 * _MEBIBYTE)
    """Largest payload, in bytes. RabbitMQ has a limit of its own: 16 MiB from version 4 on."""
    max_pending_bytes: int = Field(default=64 * _MEBIBYTE, gt=0)
    """Most bytes published and not yet confirmed; one message is always accepted. Over it `publish` raises."""
    connection_name: str = Field(default="backplane", max_length=100)
    """Name in the list of connections of RabbitMQ."""
    tls_ca_certs: str | None = None
    """File of the authorities to trust. Defaults to the system's. The TLS options need `amqps://`."""
    tls_certfile: str | None = None
    """File of the client's certificate."""
    tls_keyfile: str | None = None
    """File of the client's key. Defaults to the certificate's file."""


def check_options(url: BrokerUrl, options: AmqpOptions) -> None:
    """Check that the options agree with the URL and with each other.

    Raises:
        ConfigurationError: They do not.
    """
    given = [name for name in ("tls_ca_certs", "tls_certfile", "tls_keyfile") if getattr(options, name)]
    if given and url.scheme != "amqps":
        raise ConfigurationError(f"amqp: {', '.join(given)} given, and amqp:// speaks no TLS: use amqps://")
    if options.tls_keyfile and not options.tls_certfile:
        raise ConfigurationError("amqp: tls_keyfile needs tls_certfile, the certificate of that key")
    if options.credentials and url.password is not None:
        raise ConfigurationError("amqp: credentials replace the password of the URL: give one of both")
    if options.exchange.startswith("amq."):
        raise ConfigurationError("amqp: exchanges with amq. in front of their names belong to RabbitMQ itself")
    if options.max_payload_bytes > options.queue_max_bytes:
        raise ConfigurationError("amqp: a message larger than queue_max_bytes would be dropped: raise queue_max_bytes")


def default_port(url: BrokerUrl) -> int:
    """Return the port of a server without one."""
    return 5671 if url.scheme == "amqps" else 5672


def virtual_host(url: BrokerUrl) -> str:
    """Return the virtual host: `amqp://host/shop` is `shop`; without a name it is `/`, as with other clients."""
    return url.path.removeprefix("/") or "/"


def tls_settings(url: BrokerUrl, options: AmqpOptions) -> ssl.SSLContext | None:
    """Return the TLS settings, or `None` for `amqp://`. The files are read at each connect: certificates are renewed.

    Raises:
        BrokerError: A file cannot be read, or is malformed.
    """
    if url.scheme != "amqps":
        return None
    return client_context(options.tls_ca_certs, options.tls_certfile, options.tls_keyfile, adapter="amqp")
