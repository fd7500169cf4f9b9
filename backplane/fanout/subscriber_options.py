"""What only some subscribers are given: where they were before, in which form they receive, their presence. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from backplane.errors import ConfigurationError, InvalidPositionError
from backplane.message import Position
from backplane.patterns import WILDCARD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backplane.fanout.batch import Batch
    from backplane.history_rules import HistoryRules
    from backplane.message import Gap, Joined, Message

__all__ = [
    "SEPARATOR",
    "UNKNOWN",
    "ChannelPresence",
    "Since",
    "SubscriberOptions",
    "check_rewind",
    "kept_channels",
    "position_in",
    "positions_by_channel",
    "previous_token",
]

Since = str | Mapping[str, str] | None
"""Where a subscriber was before: a position, or a position by channel; `None` and "" at its first visit."""

SEPARATOR: Final = "."
"""Between the positions of several channels; the string of a position does not have it."""

UNKNOWN: Final = "-"
"""In place of a position that is not known: it is found in no history."""

_TOKEN_CHARACTERS: Final = 16


class ChannelPresence(Protocol):
    """The presence of one subscriber in the channels that it joins."""

    @property
    def user(self) -> str | None:
        """The user of it; `None` where it has none, and is nowhere present."""
        ...

    def check(self, channel: str, /) -> None:
        """Check that a channel has presence; raises `ConfigurationError`."""

    def entered(self, client: Any, channel: str, /) -> None:
        """Take note that `client` has joined a channel."""

    def left(self, client: Any, channel: str, /) -> None:
        """Take note that `client` has left a channel, or has ended."""

    def update(self, client: Any, channel: str, info: Any, /) -> None:
        """Replace what is shown with the user."""

    def notify(self, client: Any, channel: str, /) -> None:
        """Send `client` the users of a channel, and their changes."""


class SubscriberOptions:
    """Options of one subscriber. Made only where one of them is given: most subscribers have none.

    Attributes:
        since: Where it was before, by channel, for the joins of a handshake.
        rewind: How many of the newest messages it gets, at the joins of a handshake.
        previous: The token that it had before: messages that exclude it are not delivered.
        envelope: Returns the data to send for a message, a gap or a join; `None` sends nothing.
        presence: What is notified of its channels, where the backplane has presence.
        held: The channels whose messages it is not sent at present, each with a list of those that are kept, or `None`
            to drop them.
        resumed: Whether each join that passed a position was resumed; `None` where none did.
        withheld: For how many messages `envelope` returned `None`.
    """

    __slots__ = ("envelope", "held", "presence", "previous", "resumed", "rewind", "since", "withheld")

    def __init__(
        self,
        *,
        since: Mapping[str, str] | None = None,
        rewind: int = 0,
        previous: bytes | None = None,
        envelope: Callable[[Message | Gap | Joined], object] | None = None,
        presence: ChannelPresence | None = None,
    ) -> None:
        self.since: Mapping[str, str] | None = since
        self.rewind: int = rewind
        self.previous: bytes | None = previous
        self.envelope: Callable[[Message | Gap | Joined], object] | None = envelope
        self.presence: ChannelPresence | None = presence
        self.held: Mapping[str, list[Batch] | None] | None = None
        self.resumed: bool | None = None
        self.withheld: int = 0

    def apply(self, batch: Batch) -> Batch:
        """Return what this subscriber gets for `batch`."""
        if self.previous is not None and batch.excludes:
            batch = batch.for_token(self.previous)
        if self.held:
            batch = self._without_held(batch)
        if self.envelope is None:
            return batch
        enveloped = batch.enveloped(self.envelope)
        self.withheld += len(batch) - len(enveloped)
        return enveloped

    def _without_held(self, batch: Batch) -> Batch:
        """Return nothing where the channel of a batch is held."""
        assert self.held is not None
        channel = batch[0].channel if batch else ""
        if channel not in self.held:
            return batch
        if (kept := self.held[channel]) is not None:
            kept.append(batch)
        return type(batch)()

    def note(self, joined: Joined) -> None:
        """Take notice of a join that was resumed, or could not be."""
        self.resumed = joined.resumed and self.resumed is not False


def positions_by_channel(since: Since, channels: Iterable[str], rules: HistoryRules | None) -> Mapping[str, str] | None:
    """Return where a subscriber of `channels` was before, by channel; `None` at its first visit.

    One string can hold the positions of several channels: of all that have a history, in the order of their names, with
    a `.` between them. Where the numbers of positions and of channels differ it is passed for each of them, and is
    found in none. Where no channel has a history it is passed for all, as the application asked for what is not kept.

    Raises:
        ConfigurationError: It is neither a string nor a mapping; what a client can choose raises nothing.
    """
    if not since:
        _check_type(since)
        return None
    names = [name for name in channels if _is_text(name)]  # another is refused when it is joined
    if isinstance(since, Mapping):
        return {name: position for name in names if (position := position_in(since, name))}
    _check_type(since)
    kept = kept_channels(names, rules)
    if not kept:
        return dict.fromkeys(names, since)
    parts = since.split(SEPARATOR, len(kept))
    if len(parts) != len(kept):
        return dict.fromkeys(kept, UNKNOWN)
    return {channel: part or UNKNOWN for channel, part in zip(kept, parts, strict=True)}


def is_pattern(channel: str, *, exact: bool) -> bool:
    """Whether the application means a pattern by `channel`. What is no text is refused when it is joined."""
    return not exact and _is_text(channel) and WILDCARD in channel


def check_without_position(pattern: str, since: Since, rewind: int) -> None:
    """Check that a pattern is joined without a position.

    Raises:
        ConfigurationError: `since` or `rewind` concerns it.
    """
    if rewind or position_in(since, pattern) is not None:
        raise ConfigurationError(
            f"{pattern!r} is a pattern, which has no position: since and rewind are for channels with a history. "
            "Subscribe to those by their names, or pass exact=True if this is a name"
        )


def position_in(since: Since, channel: str) -> str | None:
    """Return where a subscriber of `channel` was before, as text; `None` at its first visit.

    Raises:
        ConfigurationError: `since`, or its value for the channel, is of a type that no client can cause.
    """
    _check_type(since)
    position: Any = since.get(channel) if isinstance(since, Mapping) else since
    if isinstance(position, Position):
        raise ConfigurationError("since takes positions as text: str(message.position)")
    if position is None or position == "":
        return None
    return position if isinstance(position, str) else UNKNOWN  # the mapping can be what a client sent as JSON


def kept_channels(channels: Iterable[str], rules: HistoryRules | None) -> list[str]:
    """Return those of `channels` that have a history, in the order of their names.

    That is the order by UTF-16, in which JavaScript sorts: a page puts the positions of its channels together.
    """
    if rules is None:
        return []
    kept = {name for name in channels if _is_text(name) and rules.rule_of(name) is not None}
    return sorted(kept, key=lambda name: name.encode("utf-16-be", "surrogatepass"))


def check_rewind(rewind: object, rules: HistoryRules | None, *, at_join: bool = True) -> None:
    """Check how many messages are to be given back.

    Args:
        rewind: The number.
        rules: Which channels have a history.
        at_join: Refuse a negative one, which a client may have chosen. Not before a handshake, which the join answers.

    Raises:
        ConfigurationError: It is no such number, or no channel has a history.
        InvalidPositionError: It is negative.
    """
    if isinstance(rewind, bool) or not isinstance(rewind, int):
        raise ConfigurationError(f"rewind must be a whole number, 0 or more, not {rewind!r:.100}")
    if rewind < 0 and at_join:
        raise InvalidPositionError(f"rewind must be 0 or more, not {rewind}")
    if rewind > 0 and rules is None:
        raise ConfigurationError(
            f"rewind={rewind} needs channels with a history: pass Backplane(history={{'orders:*': History()}})"
        )


def previous_token(previous_id: object) -> bytes | None:
    """Return the token of the id that a client had before; `None` where it passes none, or what is no id.

    Raises:
        ConfigurationError: It is no text.
    """
    if previous_id is None:
        return None
    if not isinstance(previous_id, str):
        raise ConfigurationError(f"previous_id must be the id of a connection, as text, not {previous_id!r:.100}")
    try:
        token = bytes.fromhex(previous_id)
    except ValueError:
        return None
    return token if len(previous_id) == _TOKEN_CHARACTERS and token.hex() == previous_id.lower() else None


def _is_text(name: object) -> bool:
    return isinstance(name, str)


def _check_type(since: object) -> None:
    if isinstance(since, Position):
        raise ConfigurationError("since takes a position as text: str(message.position)")
    if not isinstance(since, str | Mapping | None):
        raise ConfigurationError(f"since must be a position as text, or one by channel, not {since!r:.100}")
