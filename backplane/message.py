"""What subscribers receive: `Message` with its `Position`, and `Gap` where messages may be missing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["ALL", "All", "Gap", "Message", "Position"]


class All:
    """Type of `ALL`, which stands for every channel."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ALL"


ALL: Final = All()
"""Every channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Opaque place of a message in the history of its channel.

    Two positions of one channel can be compared only if their `epoch` is the same.

    Attributes:
        epoch: Names the history. Another epoch means that the history was lost or created anew.
        offset: Grows with every message of the channel within one epoch, not always by one.
    """

    epoch: str
    offset: int


@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class Message:
    """One message of one channel. All subscribers of a worker share the object: do not change it.

    Not frozen, because a frozen dataclass takes three times as long to create, and one is created for every message.

    Attributes:
        channel: The channel it was published to.
        data: `str` for text (JSON too, as its text), `bytes` for binary.
        origin: Random bytes (8) that name the process which published it; `None` for a foreign publish, one by a
            program that is no backplane.
        published_at: When it was published, in seconds since the Unix epoch by the publisher's clock; `None` for a
            foreign publish.
        excluded: Id of the one connection that does not receive it, if any.
        position: Its place in the channel's history, where the adapter has one.
    """

    channel: str
    data: str | bytes
    origin: bytes | None = None
    published_at: float | None = None
    excluded: bytes | None = None
    position: Position | None = None

    def json(self) -> Any:
        """Parse the data as JSON: a message that was published as a list, a `dict` or a number is returned as that.

        This validates nothing. A typed channel does, `Backplane.channel`.

        Raises:
            ValueError: The data is not JSON.
        """
        try:
            return json.loads(self.data)
        except RecursionError:  # the publisher of the text can cause it
            raise ValueError("nested too deep to be parsed as JSON") from None

    @property
    def size_bytes(self) -> int:
        """Size of the data as an outbox counts it: bytes of binary data, characters of text."""
        return len(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A stretch of a channel in which messages may be missing.

    It is received between the last message before the stretch and the first one after it. Whatever the application
    derives from the messages of the channel should be loaded anew: everything published from then on is received.

    Attributes:
        channel: The channel concerned.
        reason: Why, in words, for a log.
    """

    channel: str
    reason: str
