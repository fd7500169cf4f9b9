"""What `publish` takes beside the message, checked and as it goes to the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backplane.connection.connection import Connection
from backplane.errors import ConfigurationError, InvalidDataError

if TYPE_CHECKING:
    from backplane.broadcaster import Broadcaster
    from backplane.history_rules import History

__all__ = ["checked_key", "excluded_id"]

# Longest idempotency key: it is part of what the broker stores with each message.
_MAX_KEY_BYTES: Final = 128


def checked_key(key: object, channel: str, rule: History | None, broadcaster: Broadcaster) -> bytes:
    """Return the idempotency key of a message as it goes to the broker.

    Raises:
        ConfigurationError: The channel has no history, or the broker does not drop duplicates.
        InvalidDataError: It is none.
    """
    if rule is None:
        raise ConfigurationError(
            f"idempotency_key needs a history of the channel: Backplane(history={{{channel!r}: History()}}), or a "
            "pattern that matches it, in every process that publishes to it"
        )
    if not broadcaster.capabilities.deduplicates:
        raise ConfigurationError(
            f"idempotency_key: {broadcaster.url} cannot drop a second message with the same key; "
            "publish without it, and give messages an id that receivers compare"
        )
    try:
        encoded = key.encode() if isinstance(key, str) else key
    except UnicodeEncodeError:
        encoded = None
    if not isinstance(encoded, bytes) or not 1 <= len(encoded) <= _MAX_KEY_BYTES:
        raise InvalidDataError(
            f"idempotency_key takes a text or bytes, of 1 to {_MAX_KEY_BYTES} bytes in UTF-8, not {key!r:.100}"
        )
    return encoded


def excluded_id(exclude: object) -> bytes | None:
    """Return the id by which a connection is left out, as it goes over the broker."""
    if exclude is None:
        return None
    if isinstance(exclude, Connection):
        return bytes.fromhex(exclude.id)
    try:
        excluded = bytes.fromhex(exclude) if isinstance(exclude, str) else b""
    except ValueError:
        excluded = b""
    if len(excluded) != 8:
        raise InvalidDataError(
            "exclude takes a Connection, as `async with backplane.connect(websocket) as connection` returns it, or its "
            f"id, not {exclude!r:.100}"
        )
    return excluded
