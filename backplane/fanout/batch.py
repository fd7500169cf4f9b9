"""The messages of one channel received in one pass of the event loop, and the bytes that every socket gets."""

from __future__ import annotations

from backplane.fanout.frames import compress_frame, encode_frame
from backplane.message import Message

__all__ = ["Batch"]


class Batch(list[Message]):
    """Messages in order. Their frames are built and joined once, for the first socket that needs them, and then shared.

    Attributes:
        size_bytes: Size of the data.
        excludes: Whether any of the messages excludes a connection.
    """

    __slots__ = ("_compressed", "_encoded", "_frames", "_source", "excludes", "size_bytes")

    def __init__(self, *messages: Message) -> None:
        super().__init__()
        self._frames: bytes | None = None
        self._compressed: dict[int, bytes] | None = None
        self._encoded: dict[int | None, list[bytes]] | None = None
        self._source: Batch | None = None  # the batch whose frames this one shares
        self.size_bytes: int = 0
        self.excludes: bool = False
        for message in messages:
            self.add(message)

    def add(self, message: Message) -> None:
        """Append a message."""
        self.append(message)
        self.size_bytes += message.size_bytes
        if message.excluded is not None:
            self.excludes = True

    @property
    def frames(self) -> bytes:
        """All messages as WebSocket frames, for one write. No message may be added after the first call."""
        frames = self._frames
        if frames is None:
            frames = self._frames = b"".join(self._each(None))
        return frames

    def compressed(self, window_bits: int) -> bytes:
        """Return all messages as frames, compressed by permessage-deflate for sockets with a window of that size."""
        if self._compressed is None:
            self._compressed = {}
        frames = self._compressed.get(window_bits)
        if frames is None:
            frames = self._compressed[window_bits] = b"".join(self._each(window_bits))
        return frames

    def for_token(self, token: bytes) -> Batch:
        """Return what the subscriber with this token gets: this batch, or a shorter one if a message excludes it."""
        if not any(message.excluded == token for message in self):
            return self
        shorter = Batch(*(message for message in self if message.excluded != token))
        shorter._source = self
        return shorter

    def _each(self, window_bits: int | None) -> list[bytes]:
        """Return one frame per message. Each message is encoded once, also if several batches have it."""
        if self._source is not None:
            own = {id(message) for message in self}
            shared = zip(self._source, self._source._each(window_bits), strict=True)
            return [frame for message, frame in shared if id(message) in own]
        if not self.excludes:
            return self._encode(window_bits)
        if self._encoded is None:
            self._encoded = {}
        encoded = self._encoded.get(window_bits)
        if encoded is None:
            encoded = self._encoded[window_bits] = self._encode(window_bits)
        return encoded

    def _encode(self, window_bits: int | None) -> list[bytes]:
        if window_bits is None:
            return [encode_frame(message.data) for message in self]
        return [compress_frame(message.data, window_bits) for message in self]
