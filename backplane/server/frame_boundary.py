"""Where the frames of a client end, from their heads alone (RFC 6455, section 5.2).

A parser keeps what it has half read in itself. This finds out whether there is anything, so that a parser of which
nothing is left to keep can be dropped.
"""

from __future__ import annotations

from typing import Final

__all__ = ["FrameBoundary", "is_whole_pong"]

_LONGEST_HEAD: Final = 14
_PONG: Final = 0x8A
_FIN: Final = 0x80
_MASKED: Final = 0x80
_CONTROL: Final = 0x08

# By the 7 bits of a length, how many bytes hold it instead of these bits.
_MORE_LENGTH: Final = {126: 2, 127: 8}


def is_whole_pong(data: bytes) -> bool:
    """Return whether `data` is exactly one masked pong: what an idle client sends, and nothing has to be done for."""
    return len(data) > 1 and data[0] == _PONG and _MASKED <= data[1] <= _MASKED + 125 and len(data) == data[1] - 122


class FrameBoundary:
    """Follows the bytes of one client, which begin with a frame."""

    __slots__ = ("_head", "_in_message", "_remaining")

    def __init__(self) -> None:
        self._head = b""  # of the frame whose head is not complete
        self._remaining = 0  # bytes of payload that the present frame still has
        self._in_message = False  # a fragment has come, and the last one has not

    @property
    def is_reached(self) -> bool:
        """Whether the last byte was the last one of a frame, and no fragment of a message is missing."""
        return not (self._head or self._remaining or self._in_message)

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        position = 0
        while position < len(data):
            if self._remaining:
                step = min(self._remaining, len(data) - position)
                self._remaining -= step
                position += step
                continue
            head = self._head + data[position : position + _LONGEST_HEAD]
            size = _size_of_head(head)
            if len(head) < size:
                self._head = head
                return
            position += size - len(self._head)
            self._head = b""
            self._remaining = _length(head)
            if not head[0] & _CONTROL:
                self._in_message = not head[0] & _FIN


def _size_of_head(head: bytes) -> int:
    """Return how many bytes a head has that begins so; of less than 2 bytes, how many are needed to know."""
    if len(head) < 2:
        return 2
    return 2 + _MORE_LENGTH.get(head[1] & 0x7F, 0) + (4 if head[1] & _MASKED else 0)


def _length(head: bytes) -> int:
    length = head[1] & 0x7F
    return int.from_bytes(head[2 : 2 + _MORE_LENGTH[length]]) if length in _MORE_LENGTH else length
