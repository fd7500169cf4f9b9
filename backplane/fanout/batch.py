"""The messages of one channel received in one pass of the event loop, and the bytes that every socket gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from backplane.fanout.codec import to_client_data
from backplane.fanout.frames import compress_frame, encode_frame
from backplane.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Batch", "EnvelopedMessage", "FinalMessage", "source_of"]

_ItemT = TypeVar("_ItemT")

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


class _Whole(NamedTuple):
    """What a shorter batch is made of: a batch, without the messages at `places`, which exclude `token`."""

    batch: Batch
    token: bytes
    places: list[int]


class Batch(list[Message]):
    """Messages in order. Their frames are built and joined once, for the first socket that needs them, and then shared.

    So are their envelopes: `enveloped` calls the envelope once for each message.

    Attributes:
        size_bytes: Size of the data.
        excludes: Whether any of the messages excludes a connection.
        received_ns: When the first message came, in nanoseconds since the epoch; only with tracing, else 0.
    """

    __slots__ = (
        "_compressed",
        "_encoded",
        "_enveloped",
        "_excluded",
        "_frames",
        "_whole",
        "excludes",
        "received_ns",
        "size_bytes",
    )

    def __init__(self, *messages: Message) -> None:
        super().__init__()
        self._frames: bytes | None = None
        self._compressed: dict[int, bytes] | None = None
        self._encoded: dict[int | None, list[bytes]] | None = None
        self._enveloped: dict[int, tuple[object, Batch]] | None = None
        self._excluded: dict[bytes, list[int]] | None = None  # by token, where the messages are that exclude it
        self._whole: _Whole | None = None  # the batch of which this one leaves some out
        self.size_bytes: int = 0
        self.excludes: bool = False
        self.received_ns: int = 0
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
        """Return what the subscriber with this token gets: this batch, or a shorter one if a message excludes it.

        No message may be added after the first call. A shorter batch shares the frames and envelopes of this one.
        """
        if self._excluded is None:
            self._excluded = _places_by_token(self)
        places = self._excluded.get(token)
        if places is None:
            return self
        shorter = Batch()
        shorter.extend(_without(self, places))
        shorter._whole = _Whole(self, token, places)
        shorter.size_bytes = self.size_bytes - sum(self[place].size_bytes for place in places)
        shorter.excludes = len(self._excluded) > 1
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
        if self._whole is not None:
            return self._whole.batch.enveloped(envelope).for_token(self._whole.token)
        return Batch(*(made for message in self if (made := _envelop(message, envelope)) is not None))

    def _each(self, window_bits: int | None) -> list[bytes]:
        """Return one frame per message. Each message is encoded once, also if several batches have it."""
        if self._whole is not None:
            return _without(self._whole.batch._each(window_bits), self._whole.places)
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


def _places_by_token(messages: list[Message]) -> dict[bytes, list[int]]:
    """Return by token, in order, at which places the messages are that exclude it."""
    places: dict[bytes, list[int]] = {}
    for place, message in enumerate(messages):
        if message.excluded is not None:
            places.setdefault(message.excluded, []).append(place)
    return places


def _without(each: list[_ItemT], places: list[int]) -> list[_ItemT]:
    """Return `each` without its items at `places`, which are in order."""
    left: list[_ItemT] = []
    start = 0
    for place in places:
        left += each[start:place]
        start = place + 1
    left += each[start:]
    return left


def source_of(message: Message) -> Message:
    """Return the message as it was published."""
    return message.source if isinstance(message, EnvelopedMessage) else message
