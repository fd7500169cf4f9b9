"""The messages of one channel received in one pass of the event loop, and the bytes that every socket gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backplane.fanout.codec import to_client_data
from backplane.fanout.frames import compress_frame, encode_frame
from backplane.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Batch", "EnvelopedMessage", "FinalMessage", "source_of"]

# An application can make a function for each client, and the ring of a quiet channel keeps a batch for long.
_MAX_ENVELOPES: Final = 8


class EnvelopedMessage(Message):
    """A message as an envelope makes it, to be sent in place of the message itself.

    Attributes:
        source: The message as it was published.
    """

    __slots__ = ("source",)

    source: Message


class FinalMessage(Message):
    """What a worker has made itself for its clients: it gets no envelope."""

    __slots__ = ()


class Batch(list[Message]):
    """Messages in order. Their frames are built and joined once, for the first socket that needs them, and then shared.

    So are their envelopes: `enveloped` calls the envelope once for each message.

    Attributes:
        size_bytes: Size of the data.
        excludes: Whether any of the messages excludes a connection.
    """

    __slots__ = ("_compressed", "_encoded", "_enveloped", "_frames", "_source", "excludes", "size_bytes")

    def __init__(self, *messages: Message) -> None:
        super().__init__()
        self._frames: bytes | None = None
        self._compressed: dict[int, bytes] | None = None
        self._encoded: dict[int | None, list[bytes]] | None = None
        self._enveloped: dict[int, tuple[object, Batch]] | None = None
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

    def enveloped(self, envelope: Callable[[Message], object]) -> Batch:
        """Return the messages as `envelope` makes them; those for which it returns `None` are left out.

        Raises:
            Exception: What `envelope` raises, for the first subscriber that needs it and for each one after it.
        """
        if self._enveloped is None:
            self._enveloped = {}
        # By the identity of the function, which need not be hashable; the entry keeps it alive.
        found = self._enveloped.get(id(envelope))
        if found is None:
            if len(self._enveloped) >= _MAX_ENVELOPES:
                self._enveloped.clear()
            found = self._enveloped[id(envelope)] = envelope, self._envelop(envelope)
        return found[1]

    def _envelop(self, envelope: Callable[[Message], object]) -> Batch:
        if self._source is not None:
            own = {id(message) for message in self}
            whole = self._source.enveloped(envelope)
            shorter = Batch(*(message for message in whole if id(source_of(message)) in own))
            shorter._source = whole
            return shorter
        return Batch(*(made for message in self if (made := _envelop(message, envelope)) is not None))

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


def _envelop(message: Message, envelope: Callable[[Message], object]) -> Message | None:
    if isinstance(message, FinalMessage):
        return message
    data = envelope(message)
    if data is None:
        return None
    enveloped = EnvelopedMessage(
        channel=message.channel, data=to_client_data(data), excluded=message.excluded, position=message.position
    )
    enveloped.source = message
    return enveloped


def source_of(message: Message) -> Message:
    """Return the message as it was published."""
    return message.source if isinstance(message, EnvelopedMessage) else message
