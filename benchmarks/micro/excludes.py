"""Messages that exclude their senders, collected in one pass, beside the same messages without `exclude`.

The bytes that each subscriber would write are built as by the direct lane, with compression that connections share;
nothing is written. In a room where everyone writes each message excludes another connection.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from backplane.fanout.batch import Batch
from backplane.fanout.delivery import Delivery
from backplane.journal.journal import Journal
from backplane.message import Message
from benchmarks.micro.figure import interleaved

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.fanout.delivery import Subscriber
    from benchmarks.micro.figure import Figure

__all__ = ["run"]

_DATA = "x" * 128
_WINDOW_BITS = 15


class _Reader:
    """The least a `backplane.fanout.delivery.Subscriber` can be: it builds its bytes."""

    def __init__(self, token: bytes) -> None:
        self.token = token

    def offer(self, batch: Batch, /) -> None:
        """Build the bytes."""
        batch.compressed(_WINDOW_BITS)

    def gap(self, _: object, /) -> None:
        """Do nothing."""

    def joined(self, _: object, /) -> None:
        """Do nothing."""

    def offer_missed(self, batch: Batch, /) -> None:
        """Build the bytes."""
        self.offer(batch)


def run(count: int, rounds: int, messages: int) -> list[Figure]:
    """Return the figures per batch of so many messages for `count` subscribers; the floor is without excludes."""
    subscribers: dict[Subscriber, int] = {_Reader(number.to_bytes(8)): 1 for number in range(count)}
    journal = Journal()

    def fan_out(senders: int) -> None:
        excluded = [(number % senders).to_bytes(8) if senders else None for number in range(messages)]
        batch = Batch(*(Message(channel="room", data=_DATA, excluded=token) for token in excluded))
        Delivery("room", batch, subscribers, journal).run(None)

    candidates: dict[str, Callable[[], object]] = {
        "floor: without exclude": partial(fan_out, 0),
        "all exclude one connection": partial(fan_out, 1),
        "each excludes another connection": partial(fan_out, count),
    }
    return interleaved(candidates, rounds, 1)
