"""What a NATS server sends, cut into messages and control lines.

Nothing in it is trusted before it is bounded: a line, the digits of a size, and the size itself. The protocol is
https://docs.nats.io/reference/reference-protocols/nats-protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_LINE_BYTES", "MAX_PAYLOAD_BYTES", "NatsParser"]

MAX_LINE_BYTES: Final = 64 * 1024
"""Longest control line, in bytes: an INFO that names a thousand servers takes half of it."""

MAX_PAYLOAD_BYTES: Final = 64 * 1024 * 1024
"""Largest payload, headers included, in bytes: the most that a server can be configured to accept."""

_MAX_DIGITS: Final = len(str(MAX_PAYLOAD_BYTES))


class NatsParser:
    """Parses what arrives on one connection, in pieces of any size.

    Args:
        on_message: Called with the subscription's id and the payload, without the headers.
        on_line: Called with every other line, without its end.
    """

    def __init__(self, on_message: Callable[[bytes, bytes], None], on_line: Callable[[bytes], None]) -> None:
        self._on_message = on_message
        self._on_line = on_line
        self._chunks: list[bytes] = []
        self._missing = 0

    def feed(self, data: bytes) -> None:
        """Parse `data`; what is cut is kept, and not parsed again before it can be whole.

        Raises:
            ValueError: This is not the protocol. The parser cannot go on.
        """
        if self._chunks:
            self._chunks.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        done, self._missing = self._parse(data)
        if done < len(data):
            self._chunks.append(data[done:])

    def _parse(self, data: bytes) -> tuple[int, int]:
        """Return how much of `data` is parsed, and how many bytes are missing at least."""
        position, size = 0, len(data)
        while True:
            end = data.find(b"\r\n", position, position + MAX_LINE_BYTES)
            if end < 0:
                if size - position >= MAX_LINE_BYTES:
                    raise ValueError("a line without an end")
                return position, 1
            if data.startswith((b"MSG ", b"HMSG "), position):
                number, start, stop = _measure(data[position:end].split(), end + 2)
                if stop + 2 > size:
                    return position, stop + 2 - size
                if data[stop : stop + 2] != b"\r\n":
                    raise ValueError("a payload longer or shorter than announced")
                self._on_message(number, data[start:stop])
                position = stop + 2
            else:
                self._on_line(data[position:end])
                position = end + 2


def _measure(words: list[bytes], start: int) -> tuple[bytes, int, int]:
    """Return the subscription's id, and where the payload starts and stops, of a message after its first line."""
    sizes = 2 if words[0] == b"HMSG" else 1  # ... header bytes, all bytes
    if not 3 + sizes <= len(words) <= 4 + sizes:  # with a reply subject or without
        raise ValueError("a message with too few or too many parts")
    stop = start + _size(words[-1])
    if sizes == 2:
        start += _size(words[-2])
    if start > stop:
        raise ValueError("headers longer than the message")
    return words[2], start, stop


def _size(digits: bytes) -> int:
    if digits.isdigit() and len(digits) <= _MAX_DIGITS and (size := int(digits)) <= MAX_PAYLOAD_BYTES:
        return size
    raise ValueError("a size that is none")
