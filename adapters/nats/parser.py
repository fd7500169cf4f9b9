"""The stream of bytes from a NATS server, divided into messages and control lines.

A line, the digits of a size, and the size itself are each checked against a limit before they are used. The protocol is
https://docs.nats.io/reference/reference-protocols/nats-protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backplane.adapters.shared.frame_buffer import FrameBuffer

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
        on_message: Called with the subscription's id, the subject, the headers as they were received (empty without
            any), and the payload.
        on_line: Called with every other line, without its end.
    """

    def __init__(
        self, on_message: Callable[[bytes, bytes, bytes, bytes], None], on_line: Callable[[bytes], None]
    ) -> None:
        self._on_message = on_message
        self._on_line = on_line
        self._incomplete = FrameBuffer()

    def feed(self, data: bytes) -> None:
        """Parse `data`; an incomplete end is kept, and not parsed again before it can be complete.

        Raises:
            ValueError: This is not the protocol. The parser cannot go on.
        """
        data = self._incomplete.take(data)
        done, missing_bytes = self._parse(data)
        if done < len(data):
            self._incomplete.keep(data[done:], missing_bytes)

    def _parse(self, data: bytes) -> tuple[int, int]:
        """Return how much of `data` is parsed, and at least how many bytes are missing after it."""
        position, size = 0, len(data)
        while True:
            end = data.find(b"\r\n", position, position + MAX_LINE_BYTES)
            if end < 0:
                if size - position >= MAX_LINE_BYTES:
                    raise ValueError("a line without an end")
                return position, 1
            if data.startswith((b"MSG ", b"HMSG "), position):
                parts = data[position:end].split()
                start, stop = _measure(parts, end + 2)
                if stop + 2 > size:
                    return position, stop + 2 - size
                if data[stop : stop + 2] != b"\r\n":
                    raise ValueError("a payload longer or shorter than announced")
                self._on_message(parts[2], parts[1], data[end + 2 : start], data[start:stop])
                position = stop + 2
            else:
                self._on_line(data[position:end])
                position = end + 2


def _measure(parts: list[bytes], start: int) -> tuple[int, int]:
    """Return where the payload starts and stops.

    Args:
        parts: The first line of the message.
        start: Where the line ends.
    """
    sizes = 2 if parts[0] == b"HMSG" else 1  # HMSG has two: of the headers, and of headers and payload
    if not 3 + sizes <= len(parts) <= 4 + sizes:  # with a reply subject or without
        raise ValueError("a message with too few or too many parts")
    stop = start + _size(parts[-1])
    if sizes == 2:
        start += _size(parts[-2])
    if start > stop:
        raise ValueError("headers longer than the message")
    return start, stop


def _size(digits: bytes) -> int:
    if digits.isdigit() and len(digits) <= _MAX_DIGITS and (size := int(digits)) <= MAX_PAYLOAD_BYTES:
        return size
    raise ValueError("a malformed size")
