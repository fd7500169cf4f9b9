"""What was received and offered, by the group of the channel: few figures, however many channels there are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backplane.channel_rules import ChannelRules
from backplane.errors import ConfigurationError
from backplane.journal.events import HOOK_FAILED

if TYPE_CHECKING:
    from backplane.fanout.batch import Batch
    from backplane.journal.journal import Journal
    from backplane.message_tracing import DeliverySpan

__all__ = ["MAX_GROUPS", "OTHER", "ChannelGroup", "ChannelGroups", "GroupOf", "Grouping"]

logger: Final = logging.getLogger("backplane.fanout.channel_groups")

GroupOf = Callable[[str], str | None]
"""Returns the group of a channel; `None` for one that has none."""

MAX_GROUPS: Final = 50
"""Most groups of a worker, without `OTHER`: each is a label of some series, and every series costs memory."""

OTHER: Final = "other"
"""The group of every channel that has no other one."""

_MAX_NAME: Final = 100


class ChannelGroup:
    """What was counted of the channels of one group.

    Args:
        name: Its name.

    Attributes:
        name: As above.
        messages: Messages that were received for subscribers here, each counted once.
        size_bytes: Their size, without header (of text: characters).
        offered: What was offered to subscribers, once for each of them.
        offered_bytes: Its size.
    """

    __slots__ = ("messages", "name", "offered", "offered_bytes", "size_bytes")

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.messages: int = 0
        self.size_bytes: int = 0
        self.offered: int = 0
        self.offered_bytes: int = 0

    def count_given_back(self, batch: Batch) -> None:
        """Count messages that the broker has given back after a loss; their lag would be that of the loss."""
        self.messages += len(batch)
        self.size_bytes += batch.size_bytes

    def count(self, batch: Batch, offered: int, received_at: float | None, span: DeliverySpan | None, /) -> None:
        """Count a batch that was given back, or made here, and so was not received; see `DeliveryCounter`."""
        self.offered += len(batch) * offered
        self.offered_bytes += batch.size_bytes * offered


@dataclass(frozen=True, slots=True)
class Grouping:
    """How an application groups its channels.

    Attributes:
        group_of: Returns the group of a channel.
        names: The groups that are known beforehand.
    """

    group_of: GroupOf
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, channel_group: Mapping[str, str] | GroupOf) -> Grouping:
        """Return what `Backplane(channel_group=...)` stands for.

        Args:
            channel_group: A group for each pattern of channels, or the function itself.

        Raises:
            ConfigurationError: It is neither, or names too many groups, or one by no name.
        """
        if callable(channel_group):
            return cls(channel_group)
        if not isinstance(channel_group, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                "channel_group must be a mapping such as {'orders:*': 'orders'}, or a function of the channel, "
                f"not {channel_group!r:.100}"
            )
        groups = ChannelRules("channel_group", str, channel_group)
        names = tuple(dict.fromkeys(name for _, name in groups if name != OTHER))
        if len(names) > MAX_GROUPS:
            raise ConfigurationError(f"channel_group takes at most {MAX_GROUPS} groups, not {len(names)}")
        if wrong := [name for name in names if not _is_name(name)]:
            raise ConfigurationError(
                f"channel_group: a group is a name of at most {_MAX_NAME} characters, not {wrong[0]!r:.120}"
            )
        return cls(groups.rule_of, names)


class ChannelGroups:
    """The groups of a worker, in a bounded number.

    Args:
        grouping: Which there are. Defaults to a single one, without a name.
        journal: How a function that fails is logged: it can fail for every channel.

    Attributes:
        rest: The group of every channel that has no other one, and of what no channel is known of.
    """

    def __init__(self, grouping: Grouping | None = None, journal: Journal | None = None) -> None:
        self._group_of = None if grouping is None else grouping.group_of
        self._journal = journal
        self.rest: ChannelGroup = ChannelGroup("" if grouping is None else OTHER)
        self._by_name = {self.rest.name: self.rest}
        if grouping is not None:
            self._by_name |= {name: ChannelGroup(name) for name in grouping.names}

    @property
    def all(self) -> list[ChannelGroup]:
        """Every group that is known beforehand or that a channel has been in, and `rest`."""
        return list(self._by_name.values())

    def of(self, channel: str) -> ChannelGroup:
        """Return the group of `channel`, asking the application where it has a function for that."""
        if self._group_of is None:
            return self.rest
        name = self._asked(self._group_of, channel)
        found = self._by_name.get(name)
        if found is None:
            if len(self._by_name) > MAX_GROUPS or not _is_name(name):
                return self.rest
            found = self._by_name[name] = ChannelGroup(name)
        return found

    def _asked(self, group_of: GroupOf, channel: str) -> str:
        try:
            name = group_of(channel)
        except Exception as error:  # a channel is subscribed all the same
            if self._journal is not None:
                self._journal.log(logger, HOOK_FAILED, "%(hook)s failed", hook="channel_group", exc_info=error)
            return OTHER
        return name if isinstance(name, str) else OTHER


def _is_name(name: str) -> bool:
    """Whether a name can be the value of a label."""
    return 0 < len(name) <= _MAX_NAME and name.isprintable()
