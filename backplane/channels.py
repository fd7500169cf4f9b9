"""Which channel names are legal.

A channel is any text of 1 to 255 bytes in UTF-8. Wildcards of a broker, blanks, control characters, braces: all are
plain characters here, and an adapter encodes what its broker would take for more.
"""

from __future__ import annotations

import logging
from typing import Final

from backplane.errors import InvalidChannelError

__all__ = ["MAX_CHANNEL_BYTES", "RESERVED_PREFIX", "validate_channel", "warn_if_pattern"]

logger: Final = logging.getLogger("backplane.channels")

MAX_CHANNEL_BYTES = 255
"""Longest channel name, in bytes of UTF-8."""

RESERVED_PREFIX = "$backplane/"
"""Channels under this prefix belong to the package itself (its delivery probe is one)."""

# Redis reports keys and their lifetimes on the first two, its sentinels believe what the third one holds, and the last
# one names what clients have cached: where visitors name channels these must not be within their reach.
_RESERVED: Final = (RESERVED_PREFIX, "__keyspace@", "__keyevent@", "__sentinel__:", "__redis__:")

# NATS ends a pattern with `>`, MQTT and AMQP with `#`.
_LAST_WILDCARDS: Final = (".>", ".#", "/#")
_MAX_WARNINGS: Final = 100
_warned_of: Final = set[str]()


def validate_channel(channel: str) -> str:
    """Return `channel` unchanged if an application may use it.

    Raises:
        InvalidChannelError: It is not a `str`, is empty, longer than `MAX_CHANNEL_BYTES`, holds a lone surrogate (which
            UTF-8 cannot carry), or starts with `RESERVED_PREFIX` or a prefix of Redis' own channels.
    """
    if not isinstance(channel, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without type checks
        raise InvalidChannelError(f"a channel is a str, not {type(channel).__name__}")
    if not channel:
        raise InvalidChannelError("a channel name cannot be empty")
    # Ascii is counted without encoding: this runs on every publish.
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
    """Log a warning, once for each name, if `channel` looks like a pattern of a broker: here it is a plain name.

    After a hundred names nothing is logged any more: clients may choose names, and must not fill the log.
    """
    if "*" not in channel and not channel.endswith(_LAST_WILDCARDS) and channel != ">":
        return
    if channel in _warned_of or len(_warned_of) >= _MAX_WARNINGS:
        return
    _warned_of.add(channel)
    logger.warning(
        "channel %r looks like a pattern, but there are no patterns: it receives only what is published to exactly "
        "this name",
        channel,
    )
