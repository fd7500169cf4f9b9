"""Which channel names are valid.

A channel name is any text of 1 to 255 bytes in UTF-8. Wildcards of a broker, blanks, control characters and braces are
plain characters here: an adapter encodes what has a meaning for its broker.
"""

from __future__ import annotations

import logging
from typing import Final

from backplane.errors import InvalidChannelError
from backplane.journal.events import CHANNEL_PATTERN
from backplane.journal.writing import write

__all__ = ["MAX_CHANNEL_BYTES", "RESERVED_PREFIX", "is_reserved", "validate_channel", "warn_if_pattern"]

logger: Final = logging.getLogger("backplane.channels")

MAX_CHANNEL_BYTES: Final = 255
"""Longest channel name, in bytes of UTF-8."""

RESERVED_PREFIX: Final = "$backplane/"
"""Prefix of the channels of this package itself, such as that of the delivery probe."""

# Redis reports changes of keys on channels with the first two prefixes, its sentinels trust what they receive on those
# with the third, and the last one names keys that clients have cached. Where clients of the application can name
# channels, these must be out of their reach.
_RESERVED: Final = (RESERVED_PREFIX, "__keyspace@", "__keyevent@", "__sentinel__:", "__redis__:")

# The last character of a pattern is `>` in NATS, and `#` in MQTT and AMQP.
_LAST_WILDCARDS: Final = (".>", ".#", "/#")
_MAX_WARNINGS: Final = 100
_warned_about: Final = set[str]()


def is_reserved(channel: str) -> bool:
    """Whether `channel` is one of this package, or of the broker, which no application can use."""
    return channel.startswith(_RESERVED)


def validate_channel(channel: str) -> str:
    """Return `channel` unchanged if an application may use it.

    Raises:
        InvalidChannelError: It is not a `str`, is empty, longer than `MAX_CHANNEL_BYTES`, holds a lone surrogate (which
            UTF-8 cannot encode), or starts with `RESERVED_PREFIX` or a prefix of Redis' own channels.
    """
    if not isinstance(channel, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # for callers without a type checker
        raise InvalidChannelError(f"a channel is a str, not {type(channel).__name__}")
    if not channel:
        raise InvalidChannelError("a channel name cannot be empty")
    # ASCII needs no encoding to be counted: this runs on every publish.
    if not channel.isascii() or len(channel) > MAX_CHANNEL_BYTES:
        _validate_encoded(channel)
    if channel.startswith(_RESERVED):
        reserved = next(prefix for prefix in _RESERVED if channel.startswith(prefix))
        raise InvalidChannelError(f"channels starting with {reserved!r} are reserved: {channel!r}")
    return channel


def _validate_encoded(channel: str) -> None:
    try:
        size = len(channel.encode())
    except UnicodeEncodeError as error:
        raise InvalidChannelError(
            f"a channel name cannot hold a lone surrogate (position {error.start}): {ascii(channel)[:80]}"
        ) from None
    if size > MAX_CHANNEL_BYTES:
        raise InvalidChannelError(
            f"a channel name takes at most {MAX_CHANNEL_BYTES} bytes in UTF-8 and this one {size:,}: {channel[:40]!r}…"
        )


def warn_if_pattern(channel: str) -> None:
    """Log a warning, once for each name, if `channel` looks like a pattern of a broker: it is a plain name here.

    After a hundred names nothing more is logged: clients can choose names, and must not be able to fill the log.
    """
    if "*" not in channel and not channel.endswith(_LAST_WILDCARDS) and channel != ">":
        return
    if channel in _warned_about or len(_warned_about) >= _MAX_WARNINGS:
        return
    _warned_about.add(channel)
    write(
        logger,
        CHANNEL_PATTERN,
        "channel %(channel)r looks like a pattern, and was joined as a plain name: it receives only what is published "
        "to exactly this name. The only wildcard of a pattern is *, and a client joins one by join_pattern, where "
        "@backplane.authorize_pattern permits it",
        channel=channel,
    )
