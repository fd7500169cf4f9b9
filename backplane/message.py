"""What subscribers receive: `Message` with its `Position`, `Gap` where messages may be missing, `Joined` at a join.

And what `publish` and `history` return: `Receipt`, `HistoryPage`.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from struct import Struct
from struct import error as StructError  # noqa: N812  # it is a class
from typing import Any, ClassVar, Final
from zlib import crc32

from backplane.errors import InvalidPositionError

__all__ = [
    "ALL",
    "All",
    "ExtendedMessage",
    "Gap",
    "HistoryPage",
    "Joined",
    "Message",
    "Place",
    "Position",
    "Receipt",
    "ShortCheck",
    "UncheckedPlace",
]

_POSITION: Final = Struct(">B8sQL")
_POSITION_VERSION: Final = 1
_COMPACT_VERSION: Final = 2
_EPOCH_BYTES: Final = 8

# A compact position has 53 bits, the whole numbers that a JSON parser in JavaScript reads exactly: 37 of the offset,
# and 16 of the check.
_SHORT_BITS: Final = 16
_MAX_SHORT: Final = (1 << _SHORT_BITS) - 1
_COMPACT_OFFSETS: Final = 1 << 37


class All:
    """Type of `ALL`, which stands for every channel."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ALL"


ALL: Final = All()
"""Every channel."""


class ShortCheck(int):
    """The short form of a check, in 16 bits: it equals every check that has this short form, and itself.

    So two checks that differ can both equal it, 1 in 65,535 of them. Compare it by `==` alone: it has no hash, and its
    bytes are not those of the checks that it equals.
    """

    __slots__ = ()
    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # of the equal ones each would have another

    @classmethod
    def of(cls, check: int) -> ShortCheck:
        """Return the short form of a check: 0 only of 0, else 1 to 65,535."""
        if isinstance(check, ShortCheck):
            return check
        return cls(check % _MAX_SHORT + 1 if check else 0)

    def __eq__(self, other: object) -> bool:
        # Python asks this one first, on either side: it is a subclass of the other operand's.
        return int.__eq__(self, ShortCheck.of(other)) if isinstance(other, int) else NotImplemented

    def __ne__(self, other: object) -> bool:  # that of `int` compares the numbers
        return int.__ne__(self, ShortCheck.of(other)) if isinstance(other, int) else NotImplemented


class Position:
    """Place of a message in the history of its channel. Opaque: pass it back, and neither compare nor compute with it.

    `str` returns 28 characters that are safe in URLs and as the id of a server-sent event; `Position.parse` reads them.
    An application that stores positions should allow 255 characters: another broker can need more. A position is no
    secret, and grants nothing.

    Not a dataclass, and not frozen, because one is created for every message: do not change it.

    Attributes:
        epoch: 8 bytes that name the history. Another epoch means that the history was lost or created anew.
        offset: Grows with every message of the channel within one epoch, not always by one; 0 before the first message.
        check: CRC-32 of the payload of the message at this offset; 0 before the first message. Where a broker loses the
            newest messages and uses their offsets again, it shows that they are others. Of a compact position a
            `ShortCheck`.
    """

    __slots__ = ("check", "epoch", "offset")

    def __init__(self, epoch: bytes, offset: int, check: int) -> None:
        self.epoch: bytes = epoch
        self.offset: int = offset
        self.check: int = check

    @classmethod
    def parse(cls, text: str) -> Position:
        """Return the position whose `str` is `text`.

        Raises:
            InvalidPositionError: It is not one that this version reads.
        """
        try:
            data = urlsafe_b64decode(text.encode("ascii"))
            version, epoch, offset, check = _POSITION.unpack(data)
        except (AttributeError, ValueError, StructError):
            version, epoch, offset, check = 0, b"", 0, 0
        if version == _COMPACT_VERSION and check <= _MAX_SHORT and offset < _COMPACT_OFFSETS:
            position = Position.from_compact(epoch, offset << _SHORT_BITS | check)
        else:
            position = Position(epoch, offset, check)
        if str(position) != text:  # of another version, too
            raise InvalidPositionError(f"this is no position: {text!r:.60}")
        return position

    @classmethod
    def from_compact(cls, epoch: bytes, wire: int) -> Position:
        """Return the position of this epoch whose `compact` is `wire`, with the short form of its check.

        It equals the position that it was made from, and is found where that is. It also equals one whose message is
        another with the same short check: of the messages that a broker has lost, and whose offsets it has used again,
        1 in 65,535 goes unnoticed, where it is 1 in 4 billion by the text of a position.

        Raises:
            InvalidPositionError: `epoch` has not 8 bytes, or `wire` is negative or has more than 53 bits.
        """
        if len(epoch) != _EPOCH_BYTES or not 0 <= wire < _COMPACT_OFFSETS << _SHORT_BITS:
            sizes = f"an epoch of {len(epoch)} bytes, a number of {wire.bit_length()} bits"
            raise InvalidPositionError(f"this is no compact position: {sizes}")
        short = wire & _MAX_SHORT
        return Position(epoch, wire >> _SHORT_BITS, ShortCheck(short) if short else 0)

    @property
    def compact(self) -> int | None:
        """Offset and short check as one number below 2^53, which grows as the offset does; `None` where none fits.

        It is for clients that keep no more than a number, and the epoch. None fits from an offset of 2^37 on.
        """
        if self.offset >= _COMPACT_OFFSETS:
            return None
        return self.offset << _SHORT_BITS | ShortCheck.of(self.check)

    @property
    def is_compact(self) -> bool:
        """It was made by `from_compact`, and has only the short form of a check.

        A check of 0, that of a place without a message, is its own short form.
        """
        return isinstance(self.check, ShortCheck)

    def __str__(self) -> str:
        version = _COMPACT_VERSION if self.is_compact else _POSITION_VERSION
        return urlsafe_b64encode(_POSITION.pack(version, self.epoch, self.offset, self.check)).decode("ascii")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.epoch.hex()}, {self.offset}, {self.check:#x})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Position):
            return NotImplemented
        return self.offset == other.offset and self.check == other.check and self.epoch == other.epoch

    def __hash__(self) -> int:
        return hash((self.epoch, self.offset))  # the checks of equal positions can differ: see `ShortCheck`


class Place(Position):
    """The position of a message that is received live, and of the message before it on its channel: for adapters.

    Attributes:
        before: Offset of the message before it on this channel; 0 for the first one. `None` where the adapter itself
            reports a gap wherever a message is missing.
        before_check: Check of the message before it, where the broker states it. A number alone does not prove that
            nothing is missing: after a failover the broker can have used it for another message.
    """

    __slots__ = ("before", "before_check")

    def __init__(
        self, epoch: bytes, offset: int, check: int, before: int | None = None, before_check: int | None = None
    ) -> None:
        self.epoch = epoch
        self.offset = offset
        self.check = check
        self.before: int | None = before
        self.before_check: int | None = before_check


class UncheckedPlace(Place):
    """A place whose check is computed from the payload when it is first read, and which keeps the payload until then.

    For adapters that state no `before_check`: few checks are ever compared there, and a CRC-32 takes longer than all
    else that a message of usual size needs to be received.
    """

    __slots__ = ("_check", "_payload")

    def __init__(self, epoch: bytes, offset: int, payload: bytes, before: int | None = None) -> None:
        self.epoch = epoch
        self.offset = offset
        self.before = before
        self.before_check: int | None = None
        self._payload: bytes | None = payload

    @property
    def check(self) -> int:  # type: ignore[override]  # it is only read
        """As of any position."""
        if self._payload is not None:
            self._check = crc32(self._payload)
            self._payload = None
        return self._check


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What `publish` returns.

    Attributes:
        position: Position of the message in the history of its channel; `None` where the channel has no `History` rule,
            or the message is kept until the broker is available (`outage="buffer"`).
        duplicate: A message with the same idempotency key was published before: this one was not, and `position` is
            that of the first.
    """

    position: Position | None = None
    duplicate: bool = False


@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class Message:
    """One message of one channel. All subscribers of a worker share the object: do not change it.

    Not frozen, because a frozen dataclass takes three times as long to create, and one is created for every message.

    Attributes:
        channel: The channel it was published to.
        data: `str` for text (JSON too, as its text), `bytes` for binary.
        origin: Random bytes (8) that name the process which published it; `None` for a foreign publish, one by a
            program that is no backplane.
        published_at: When it was published, in seconds since the Unix epoch by the publisher's clock; `None` for a
            foreign publish.
        excluded: Id of the one connection that does not receive it, if any.
        position: Its position in the channel's history, where the channel has one.
        is_json: The publisher passed it as something JSON, neither `str` nor `bytes`: `data` is its JSON text.
    """

    channel: str
    data: str | bytes
    origin: bytes | None = None
    published_at: float | None = None
    excluded: bytes | None = None
    position: Position | None = None
    is_json: bool = field(default=False, compare=False, repr=False)

    def json(self) -> Any:
        """Parse the data as JSON: a message that was published as a list, a `dict` or a number is returned as that.

        This validates nothing. A typed channel does, `Backplane.channel`.

        Raises:
            ValueError: The data is not JSON.
        """
        try:
            return json.loads(self.data)
        except RecursionError:  # the publisher of the text can cause it
            raise ValueError("nested too deep to be parsed as JSON") from None

    @property
    def size_bytes(self) -> int:
        """Size of the data as an outbox counts it: bytes of binary data, characters of text."""
        return len(self.data)


@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class ExtendedMessage(Message):
    """A message whose header has extensions: few have, and the others take no memory for it.

    Attributes:
        extensions: As on the broker, checked: `backplane.header.value_of` reads them.
    """

    extensions: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A stretch of a channel in which messages may be missing.

    It is received between the last message before the stretch and the first one after it. Whatever the application
    derives from the messages of the channel should be loaded anew: everything published from then on is received.

    Attributes:
        channel: The channel concerned.
        reason: Why, in words, for a log.
        position: Where the channel goes on, if it has a history: what is published after this is received.
    """

    channel: str
    reason: str
    position: Position | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPage:
    """Some messages of a channel's history, as `Backplane.history` returns them.

    Attributes:
        messages: The messages, oldest first.
        position: The position after them: pass it as `since` for the next page, or to a join to continue live.
        complete: Nothing is missing between the position that was passed and the first message. `False` where the
            history no longer reaches back to it: `messages` are then the newest ones.
        more: There are more messages: newer ones after a position, older ones without.
    """

    messages: list[Message]
    position: Position
    complete: bool
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The notice that a subscriber has joined a channel, before any message of that channel.

    Attributes:
        channel: The channel.
        position: Where the subscriber begins: a client that passes this back later gets what was published after it.
            It precedes the messages that `since` or `rewind` gives back. `None` where the channel has no history, or
            the position is not known.
        resumed: The subscriber passed a position (`since`), and receives exactly what was published after it.
        gap: Why `since` could not be served, where it could not; `None` otherwise, also at a first visit.
    """

    channel: str
    position: Position | None = None
    resumed: bool = False
    gap: Gap | None = None
