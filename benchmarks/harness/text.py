"""The text of a message: which run, channel and publisher it is of, its sequence, and when it should have been sent.

32 letters and padding: run (8), channel (4), publisher (4), sequence (8), microseconds since the run's epoch (8). A
letter is four bits: `a` is 1, `o` is 15 and `p` is 0, so that its low half is the number itself; any product may carry
it in JSON, in a URL, or as a group's name without escaping. Clocks are CLOCK_MONOTONIC, which the processes of a host
share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HEADER_BYTES", "PROBE", "Records", "channel_name", "letters", "read", "record_type", "text"]

HEADER_BYTES: Final = 32
"""The shortest text."""

PROBE: Final = 0xFFFF
"""The publisher of messages that only show which sockets receive by now; they are not counted."""

_ALPHABET = str.maketrans("0123456789abcdef", "pabcdefghijklmno")


@dataclass(frozen=True, slots=True)
class Records:
    """Messages that sockets received, one element each; times in microseconds since the run's epoch."""

    connection: NDArray[np.int64]
    channel: NDArray[np.int64]
    publisher: NDArray[np.int64]
    sequence: NDArray[np.int64]
    intended: NDArray[np.int64]
    received: NDArray[np.int64]

    def where(self, chosen: NDArray[np.bool_]) -> Records:
        """Return those that are `chosen`."""
        return Records(
            self.connection[chosen],
            self.channel[chosen],
            self.publisher[chosen],
            self.sequence[chosen],
            self.intended[chosen],
            self.received[chosen],
        )


def letters(value: int, length: int = 8) -> str:
    """Write a number."""
    return f"{value:0{length}x}".translate(_ALPHABET)


def channel_name(channel: int) -> str:
    """Name a channel, as it stands in the text."""
    return letters(channel, 4)


def text(run: str, channel: int, publisher: int, sequence: int, intended: int, size: int) -> str:
    """Write one message of `size` bytes."""
    head = f"{run}{letters(channel, 4)}{letters(publisher, 4)}{letters(sequence)}{letters(intended)}"
    return head.ljust(size, "x")


def record_type(frame_bytes: int, offset: int) -> np.dtype[np.void]:
    """Return how a frame of that size, with the text at `offset`, lies in memory."""
    names = ("head", "run", "stream", "sequence", "intended")
    offsets = [0, *range(offset, offset + HEADER_BYTES, 8)]
    return np.dtype(
        {
            "names": names,
            "formats": ["<u2", "<u8", "<u8", "<u8", "<u8"],
            "offsets": offsets,
            "itemsize": frame_bytes,
        }
    )


def read(rows: NDArray[np.void], connection: NDArray[np.int64], received: NDArray[np.int64]) -> Records:
    """Read the messages of `rows`, which are of `record_type`."""
    stream = _numbers(rows["stream"])
    return Records(
        connection, stream >> 16, stream & 0xFFFF, _numbers(rows["sequence"]), _numbers(rows["intended"]), received
    )


def _numbers(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Read eight letters at a time: the halves of bytes are joined to bytes, these to pairs, these to numbers."""
    found = words & np.uint64(0x0F0F0F0F0F0F0F0F)
    found = ((found << np.uint64(4)) | (found >> np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
    found = ((found << np.uint64(8)) | (found >> np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    found = ((found << np.uint64(16)) | (found >> np.uint64(32))) & np.uint64(0xFFFFFFFF)
    return found.astype(np.int64)
