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
    """Of one connection; `None` switches a limit off.

    An event stream (`Backplane.sse`), whose client sends nothing, has `max_channels` and `max_age_seconds` of these.

    Attributes:
        heartbeat_seconds: How often a client that is not heard of is asked whether it is there; it is given up after
            two such times without a sign. By a WebSocket ping on the direct lane; elsewhere by `heartbeat_message`, and
            without one by what the server does itself, which is nothing on some: that is logged once. Defaults to 30.
        heartbeat_message: What is sent as a heartbeat where there is no access to pings: text, bytes, or anything JSON.
            Clients must answer it, with any message. Defaults to none.
        idle_timeout_seconds: How long a client may say nothing (pongs do not count) until it is closed with 4508.
            Defaults to none.
        max_age_seconds: How long a connection may last until it is closed with 4010, or an event stream until it ends.
            Defaults to none.
        max_message_bytes: Largest message a client may send, a text in UTF-8; above it the connection is closed with
            1009, on the direct lane before the message is assembled or inflated. A lower limit of the server's own
            comes first. Defaults to 64 KiB: so much a client can make every one of its connections hold.
        max_messages_per_second: How many messages a client may send per second, in the long run; above it the
            connection is closed with 4029. Defaults to none.
        max_burst: How many messages it may send at once for that. Defaults to twice a second's worth, at least 1.
        max_channels: How many channels a client may join; one more raises `TooManyChannelsError`. Defaults to
            1,000.

    Raises:
        ConfigurationError: A limit is not known; a value is not a number (of messages, bytes, channels: a whole one),
            or not more than 0; or `heartbeat_message` cannot be sent.
    """

    heartbeat_seconds: float | None = 30.0
    heartbeat_message: object = None
    idle_timeout_seconds: float | None = None
    max_age_seconds: float | None = None
    max_message_bytes: int | None = 64 * 1024
    max_messages_per_second: float | None = None
    max_burst: int | None = None
    max_channels: int | None = 1000

    def __post_init__(self) -> None:
        try:
            to_client_data(self.heartbeat_message)
        except InvalidDataError as error:
            raise ConfigurationError(f"heartbeat_message cannot be sent: {error}") from error
        for option in fields(Limits):  # a subclass checks its own
            if option.name != "heartbeat_message":
                check_number(option.name, getattr(self, option.name), whole=option.name in _COUNTS, optional=True)


# A burst of half a message would let none through.
_COUNTS: Final = frozenset({"max_message_bytes", "max_burst", "max_channels"})
