"""The channels of one client: what is answered to a subscribe, and what is recovered. No I/O.

A client comes back with the epoch of its last subscribe reply and the offset of the last publication that it received.
`recovered` is stated where everything after that position follows in the reply, and only there. On a channel without a
history each subscription has an epoch of its own, so that a client which comes back is answered that it was not
recovered: that is the truth, on every adapter.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final

from backplane.errors import InvalidPositionError
from backplane.fanout.subscriber_options import UNKNOWN
from backplane.message import Position

if TYPE_CHECKING:
    from asyncio import TimerHandle
    from collections.abc import Callable, Mapping, Sequence

    from backplane.centrifugal.encoding import Encoding
    from backplane.fanout.batch import Batch
    from backplane.message import Joined, Message

__all__ = ["MOST_RECOVERED", "Recovery", "SdkSubscription", "epoch_text", "position_of", "publications"]

MOST_RECOVERED: Final = 300
"""Most publications that a subscribe reply gives back; a client that missed more is not recovered."""

_EPOCH: Final = re.compile("[0-9a-f]{16}")
_REJECTS_UNRECOVERED: Final = 2  # bit of `flag`: the application loads its state from elsewhere


class Recovery:
    """What a client that comes back asks for: `recover`, `epoch` and `offset` of its request.

    Attributes:
        is_wanted: Whether it comes back at all.
        since: The position, as a join takes it; `None` at a first visit.
        offset: The offset that it sent.
        rejects: Whether it wants an error where it cannot be recovered.
    """

    __slots__ = ("is_wanted", "offset", "rejects", "since")

    def __init__(self, request: Mapping[str, Any], newest: Position | None = None) -> None:
        """Read a request.

        Args:
            request: The fields of the command.
            newest: A position of the channel as it is now, for a client that names no epoch: it accepts any.
        """
        self.is_wanted: bool = request.get("recover") is True
        self.offset: int = request.get("offset", 0)
        self.rejects: bool = bool(request.get("flag", 0) & _REJECTS_UNRECOVERED)
        self.since: str | None = None
        if self.is_wanted:
            position = position_of(request.get("epoch", ""), self.offset, newest)
            self.since = UNKNOWN if position is None else str(position)


class SdkSubscription:
    """One channel of one client, from its subscribe on.

    Attributes:
        channel: The channel.
        recovery: What the client asked for.
        shows_presence: The client is notified of joins and leaves.
        is_permitted: A token permits it: `Backplane.authorize` is not asked.
        is_server_side: The server subscribed the client: pushes go to other handlers of its application.
        joined: The notice of its join, once that has come.
        missed: What the join gives back: to a client that comes back with the result, else as publications after it.
        expiry: The timer that ends it.
        on_turn: What is called with it when it has its turn among those that a gap concerns.
        turn: Its place among them.
    """

    __slots__ = (
        "channel",
        "expiry",
        "is_permitted",
        "is_server_side",
        "joined",
        "missed",
        "on_turn",
        "recovery",
        "shows_presence",
        "turn",
    )

    def __init__(self, channel: str, recovery: Recovery, *, is_server_side: bool = False) -> None:
        self.channel: str = channel
        self.recovery: Recovery = recovery
        self.is_server_side: bool = is_server_side
        self.shows_presence: bool = False
        self.is_permitted: bool = False
        self.joined: Joined | None = None
        self.missed: Batch | None = None
        self.expiry: TimerHandle | None = None
        self.on_turn: Callable[[SdkSubscription], None] | None = None
        self.turn: int | None = None

    def turn_has_come(self) -> None:
        """Notify the client of the gap: called by the `Turns` of all clients."""
        assert self.on_turn is not None
        self.on_turn(self)

    @property
    def keeps_history(self) -> bool:
        """Whether a position of the channel is known, from which it can be recovered."""
        return self.joined is not None and self.joined.position is not None and self.joined.position.compact is not None

    @property
    def is_lost(self) -> bool:
        """Whether the client came back and cannot be recovered."""
        return self.recovery.is_wanted and not self.is_recovered

    @property
    def is_recovered(self) -> bool:
        """Whether the client came back and gets everything that it missed."""
        joined = self.joined
        if not self.recovery.is_wanted or joined is None or not joined.resumed or not self.keeps_history:
            return False
        missed = self.missed or ()
        return len(missed) <= MOST_RECOVERED and all(_offset(message) is not None for message in missed)

    def result(self, encoding: Encoding) -> dict[str, Any]:
        """Return the subscribe result. It takes what the join gave back, which otherwise follows it: see `missed`."""
        result: dict[str, Any] = {"recoverable": True, "positioned": True}
        joined, recovery, recovered = self.joined, self.recovery, self.is_recovered
        missed: Batch | None = None
        if recovery.is_wanted:
            result["was_recovering"] = True
            missed, self.missed = self.missed, None
        if not self.keeps_history:
            result["epoch"] = os.urandom(8).hex()
            return result
        assert joined is not None
        top = joined.position if recovered or not missed else missed[-1].position
        assert top is not None
        result["epoch"] = epoch_text(top)
        if recovered:
            result["recovered"] = True
            result["offset"] = recovery.offset
            if missed:
                result["publications"] = publications(missed, encoding)
        else:
            result["offset"] = top.compact or 0
        return result


def publications(messages: Sequence[Message], encoding: Encoding) -> list[Mapping[str, Any]]:
    """Return messages as a reply lists them."""
    return [
        encoding.publication_body(message.data, is_json=message.is_json, offset=_offset(message))
        for message in messages
    ]


def epoch_text(position: Position) -> str:
    """Return the epoch of a position as the protocol has it."""
    return position.epoch.hex()


def position_of(epoch: str, offset: int, newest: Position | None = None) -> Position | None:
    """Return the position of an epoch and an offset that a client sent; `None` where there is none.

    Args:
        epoch: As `epoch_text` returned it; empty for the epoch of `newest`.
        offset: As `Position.compact`.
        newest: A position of the channel as it is now.
    """
    if not epoch:
        data = b"" if newest is None else newest.epoch
    else:
        data = bytes.fromhex(epoch) if _EPOCH.fullmatch(epoch) else b""
    try:
        return Position.from_compact(data, offset)
    except InvalidPositionError:
        return None


def _offset(message: Message) -> int | None:
    return None if message.position is None else message.position.compact
