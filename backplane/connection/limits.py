"""How a client's connection is kept alive, and what a client may do."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from backplane.errors import ConfigurationError, InvalidDataError
from backplane.fanout.codec import to_client_data
from backplane.option_checks import check_number, refuse_unknown_options

__all__ = ["Limits"]


@refuse_unknown_options
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How a client is kept alive and what it may do, for each connection; `None` switches a limit off.

    Of these `max_channels`, `max_age_seconds`, `max_connections_per_client` and `max_connections_per_user` apply to an
    event stream too (`Backplane.sse`), whose client sends nothing.

    Attributes:
        heartbeat_seconds: After how long a silence a client is asked for an answer; after two such times without one
            it is closed with 4011. Asked by a WebSocket ping on the direct lane; elsewhere by `heartbeat_message`, and
            without one by what the server does itself, which is nothing on some: that is logged once. Defaults to 30.
        heartbeat_message: What is sent as a heartbeat where the server gives no access to pings: text, bytes, or
            anything JSON. Clients must answer it, with any message. Defaults to none.
        idle_timeout_seconds: How long a client may send nothing (pongs do not count) until it is closed with 4508.
            Defaults to none.
        max_age_seconds: How long a connection may last until it is closed with 4010, or an event stream until it ends.
            Defaults to none.
        max_message_bytes: Largest message a client may send, a text in UTF-8; above it the connection is closed with
            1009, on the direct lane before the message is assembled or inflated. A lower limit of the server's own
            applies first. Defaults to 64 KiB: a client can make each of its connections hold as much.
        max_messages_per_second: How many messages a client may send per second, in the long run; above it the
            connection is closed with 4029. Defaults to none.
        max_burst: How many messages it may send at once for that. Defaults to twice a second's worth, at least 1.
        max_channels: How many channels a client may join; one more raises `TooManyChannelsError`. A client of the
            Centrifugal endpoint may also ask for the presence of so many within 30 s. Defaults to 1,000.
        max_running_commands: How many commands of a client of the Centrifugal endpoint run at a time: publishes, RPCs,
            messages, refreshes, reads of history, and subscribes that recover. More of them wait, each for 4 s at most;
            then it is answered with a temporary error. Other subscribes, and presence, are not counted. Whatever this
            is, no more than 1,024 commands of a client run or wait, and then nothing more is read from it. Defaults to
            32.
        max_connections_per_client: How many connections and event streams of this worker may have the same
            `client_key` (`Backplane.connect`, `Backplane.sse`); one more is refused with 429. If the application gives
            no key, it is the client's address, of IPv6 the first 64 bits. Clients whose address the server does not
            know, such as those of a proxy over a Unix socket, are not counted for it; the first one logs a warning
            with the remedy. All connections of the key count, the limit of the one that comes decides. Each worker
            counts its own: with four workers a client can have up to four times as many. Defaults to none.
        max_connections_per_user: How many connections and event streams a user may have on all workers together; one
            more is refused with 429. The user is that of `presence=Who(user=...)`, else the `client_key`, if the
            application gives one; a client without either is not counted. Needs `Backplane(cluster=True)`. At the
            handshake every worker is asked: it takes one way over the broker and back, and one command and an answer of
            each worker. Of several that connect at the same time as many are admitted as there is room for. A worker
            that does not answer within a second, or that the broker cannot reach, does not count, which is logged: so
            the limit can be exceeded while a worker hangs or a link is lost. For 1.1 heartbeats after the start of a
            worker its handshakes wait the whole second, as not all others are known. Defaults to none.

    Raises:
        ConfigurationError: A limit is not known; a value is not a number (of messages, bytes, channels, connections: a
            whole one), or not more than 0; or `heartbeat_message` cannot be sent.
    """

    heartbeat_seconds: float | None = 30.0
    heartbeat_message: object = None
    idle_timeout_seconds: float | None = None
    max_age_seconds: float | None = None
    max_message_bytes: int | None = 64 * 1024
    max_messages_per_second: float | None = None
    max_burst: int | None = None
    max_channels: int | None = 1000
    max_running_commands: int | None = 32
    max_connections_per_client: int | None = None
    max_connections_per_user: int | None = None

    def __post_init__(self) -> None:
        try:
            to_client_data(self.heartbeat_message)
        except InvalidDataError as error:
            raise ConfigurationError(f"heartbeat_message cannot be sent: {error}") from error
        for option in fields(Limits):  # a subclass checks its own
            if option.name != "heartbeat_message":
                check_number(option.name, getattr(self, option.name), whole=option.name in _COUNTS, optional=True)


# A burst of half a message would let none through.
_COUNTS: Final = frozenset(
    {
        "max_message_bytes",
        "max_burst",
        "max_channels",
        "max_running_commands",
        "max_connections_per_client",
        "max_connections_per_user",
    }
)
