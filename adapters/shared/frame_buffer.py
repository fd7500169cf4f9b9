"""The bytes of a frame that is not complete yet."""

from __future__ import annotations

__all__ = ["FrameBuffer"]


class FrameBuffer:
    """Keeps the end of a stream that holds no whole frame yet, until the rest of that frame is received.

    The work is linear in the bytes, however they are divided on their way: the pieces of a large frame are counted, and
    joined once, when the last one is received. To join them at each read would be quadratic.
    """

    __slots__ = ("_missing_bytes", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._missing_bytes: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether the stream so far ends at the end of a frame."""
        return not self._pieces

    def take(self, data: bytes) -> bytes:
        """Return what was kept, followed by `data`; nothing while the frame cannot be complete."""
        if not self._pieces:
            return data
        self._pieces.append(data)
        self._missing_bytes -= len(data)
        if self._missing_bytes > 0:
            return b""
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data

    def keep(self, rest: bytes, missing_bytes: int) -> None:
        """Keep `rest`, the begin of a frame, of which at least `missing_bytes` more bytes are to be received."""
        self._pieces.append(rest)
        self._missing_bytes = missing_bytes
