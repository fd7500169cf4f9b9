"""What travels: `Message`, its `Position`, and the `Gap` that stands where messages may be missing."""

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
    """Opaque place of a message in its channel's history.

    Two positions of one channel can be compared only when their `epoch` is the same.

    Attributes:
        epoch: Which incarnation of the history; another one means it was lost or created anew.
        offset: Grows with every message of the channel within one epoch, not always by one.
    """

    epoch: str
    offset: int


@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class Message:
    """One message of one channel, as every subscriber of a worker shares it: never change one.

    Not frozen, because that makes it three times as slow to create, once for every message that arrives.

    Attributes:
        channel: Where it was published.
        data: `str` for text (JSON too, as its text), `bytes` for binary.
        origin: Which process published it (8 random bytes of its `Backplane`); `None` for a foreign publish.
        published_at: When, in seconds since the epoch by the publisher's clock; `None` for a foreign publish.
        excluded: Id of the one connection it is not for.
        position: Place in the channel's history, where the adapter keeps one.
    """

    channel: str
    data: str | bytes
    origin: bytes | None = None
    published_at: float | None = None
    excluded: bytes | None = None
    position: Position | None = None

    def json(self) -> Any:
        """Return the data as what its JSON text holds: what was published as a list, a `dict`, a number and so on.

        Foreign data is checked by a typed channel, `Backplane.channel`; this only parses.

        Raises:
            ValueError: It is no JSON.
        """
        try:
            return json.loads(self.data)
        except RecursionError:  # which the depth of a text decides
            raise ValueError("nested too deep to be parsed as JSON") from None

    @property
    def size_bytes(self) -> int:
        """Size of the data as an outbox counts it: bytes of binary, characters of text."""
        return len(self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A stretch in which messages may be missing.

    It stands, in order, between the last message before the stretch and the first one after it.

    Attributes:
        channel: The channel of which messages may be missing.
        reason: Why, in words, for a log.
    """

    channel: str
    reason: str
