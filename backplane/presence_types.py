"""Presence as the application has it: its rule, the user of a connection, a view, what a watcher gets.

`Presence` is the rule of some channels; `Who` names the user of a connection; `PresenceView` is a list as it is known
now; `PresenceSnapshot` and `PresenceChange` are what `Backplane.watch` yields.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from backplane.channel_rules import ChannelRules
from backplane.errors import InvalidDataError, TooManyPresentError
from backplane.option_checks import check_number, refuse_unknown_options

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MAX_INFO_BYTES",
    "MAX_USER_BYTES",
    "Presence",
    "PresenceChange",
    "PresenceRules",
    "PresenceSnapshot",
    "PresenceView",
    "PresentUser",
    "Who",
    "check_user",
    "decode_info",
    "encode_info",
]

MAX_USER_BYTES: Final = 128
"""Longest name of a user, in bytes of UTF-8: every worker that watches a channel holds it."""

MAX_INFO_BYTES: Final = 256
"""Largest `info`, in bytes of JSON in UTF-8."""


@refuse_unknown_options
@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """How presence is kept in a channel. Every process that serves the channel must have the same rule for it.

    Attributes:
        grace_seconds: How long a user whose last connection has ended is still present: one that is back within this
            time, at any worker, has neither left nor joined. Defaults to 5.
        max_entries: With more connections than this in a channel, of all workers together, its users are not exchanged
            any more, only their number. 0 exchanges nothing but numbers. Defaults to 1,000.

    Raises:
        ConfigurationError: An option is not known, or a value is not a number, or less than 0.
    """

    grace_seconds: float = 5.0
    max_entries: int = 1_000

    def __post_init__(self) -> None:
        if self.grace_seconds != 0:
            check_number("grace_seconds", self.grace_seconds)
        if self.max_entries != 0:
            check_number("max_entries", self.max_entries, whole=True)


class PresenceRules(ChannelRules[Presence]):
    """The presence of a `Backplane`, by pattern.

    Args:
        rules: A rule for each pattern, in which `*` is any run of characters, also none.

    Raises:
        ConfigurationError: A pattern is no text or empty, or a rule is no `Presence`.
    """

    def __init__(self, rules: Mapping[str, Presence]) -> None:
        super().__init__("presence", Presence, rules)


@refuse_unknown_options
@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """The user of a connection: `connect(websocket, "room:1", presence=Who(user="u42", info={"name": "Ada"}))`.

    It is shown to everyone that may see the presence of the channels, so it should hold nothing secret. Pass what the
    server knows of the user, not what the client claims.

    Attributes:
        user: Names the user: the connections of all workers with the same name are one user. 1 to 128 bytes in UTF-8.
        info: Anything JSON, of at most 256 bytes, that is shown with the user. Defaults to none.

    Raises:
        InvalidDataError: A value cannot be used.
    """

    user: str
    info: Any = None

    def __post_init__(self) -> None:
        check_user(self.user)
        encode_info(self.info)


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentUser:
    """One user who is present in a channel.

    Attributes:
        user: Names the user.
        info: Of the user's connections, the `info` of the one that has joined, or has another one (`update_presence`),
            last, by the clocks of their workers.
        connections: How many connections the user has in the channel, on all workers; 0 within the grace.
    """

    user: str
    info: Any = None
    connections: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceView:
    """Which users are in a channel, as this worker knows it now.

    Attributes:
        connections: How many connections are in the channel, on all workers.
        stale: It may not be true at this moment: the link to the broker is lost or was just restored, or the other
            workers have not answered yet. Otherwise it is as old as the way over the broker, and 0.1 s.
        counts_only: The channel exchanges numbers alone: by its rule, or because it has more than `max_entries`.
    """

    connections: int
    stale: bool
    counts_only: bool = False
    _users: Mapping[str, PresentUser] = field(default_factory=dict[str, PresentUser])

    @property
    def users(self) -> Mapping[str, PresentUser]:
        """The users, by name.

        Raises:
            TooManyPresentError: The channel exchanges numbers alone.
        """
        if self.counts_only:
            raise TooManyPresentError(self.connections)
        return self._users


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceSnapshot:
    """Which users are in a channel: the first item of `Backplane.watch`, and what replaces all that was before.

    Attributes:
        id: Random name of the view whose changes follow.
        version: The number of the last change that is part of it.
        users: The users, by name; empty where the channel exchanges numbers alone.
        connections: How many connections are in the channel.
        counts_only: The channel exchanges numbers alone.
    """

    id: str
    version: int
    users: Mapping[str, PresentUser]
    connections: int
    counts_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceChange:
    """A change of which users are in a channel, after the one before it.

    Attributes:
        version: One more than that of the item before it.
        joined: The users who were not there before, by name.
        left: The names of the users who are gone, their grace being over.
        updated: The users whose `info` is another one, by name. Another number of connections alone is no change.
        connections: How many connections are in the channel now. Where it exchanges numbers alone, each other number is
            a change, and nothing else is.
    """

    version: int
    joined: Mapping[str, PresentUser] = field(default_factory=dict[str, PresentUser])
    left: tuple[str, ...] = ()
    updated: Mapping[str, PresentUser] = field(default_factory=dict[str, PresentUser])
    connections: int = 0


def check_user(user: object) -> None:
    """Check the name of a user.

    Raises:
        InvalidDataError: It is no text of 1 to 128 bytes in UTF-8.
    """
    try:
        size = len(user.encode()) if isinstance(user, str) else 0
    except UnicodeEncodeError:
        size = 0
    if not 1 <= size <= MAX_USER_BYTES:
        raise InvalidDataError(f"a user is a text of 1 to {MAX_USER_BYTES} bytes in UTF-8, not {user!r:.200}")


def encode_info(info: object) -> str:
    """Return `info` as JSON.

    Raises:
        InvalidDataError: It is not JSON, or larger than 256 bytes.
    """
    try:
        text = _dumps(info)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidDataError(f"the info of a presence must be JSON: {error}") from None
    if size > MAX_INFO_BYTES:
        raise InvalidDataError(
            f"the info of a presence takes {size:,} bytes of JSON and may take {MAX_INFO_BYTES}: every worker that "
            "watches the channel holds it; put an id into it, and what belongs to it elsewhere"
        )
    return text


def decode_info(text: str) -> Any:
    """Return the info that another worker has sent; `None` where it is not JSON, or no client could be sent it."""
    try:
        info = _loads(text)
        if "\\u" in text:  # a half of a surrogate pair, which UTF-8 cannot encode
            json.dumps(info, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return info


def _refuse_constant(_: str) -> None:
    raise ValueError


# Made once: `json.loads` and `json.dumps` with an option make a decoder or an encoder at each call.
_loads: Final = json.JSONDecoder(parse_constant=_refuse_constant).decode
_dumps: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
