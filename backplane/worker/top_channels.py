"""Which channels of a worker a snapshot names: those with the most subscribers, and the busiest ones."""

from __future__ import annotations

from heapq import nlargest
from typing import TYPE_CHECKING, Final

from backplane.channels import RESERVED_PREFIX
from backplane.stats.snapshot import ChannelFigures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backplane.fanout.channel_subscribers import ChannelSubscribers

__all__ = ["MAX_CHANNELS", "TopChannels"]

MAX_CHANNELS: Final = 20
"""How many channels a snapshot has."""


class TopChannels:
    """The channels with the most subscribers, and those with the most messages since they were last taken.

    Args:
        channels: The channels of a hub, as it edits them.
    """

    def __init__(self, channels: Mapping[str, ChannelSubscribers]) -> None:
        self._channels = channels
        self._before: dict[str, int] = {}

    def take(self) -> tuple[ChannelFigures, ...]:
        """Return at most twenty, without those of this package itself."""
        own = {name: found for name, found in self._channels.items() if not name.startswith(RESERVED_PREFIX)}
        before, self._before = self._before, {name: found.messages for name, found in own.items() if found.messages}
        new = ((messages - before.get(name, 0), name) for name, messages in self._before.items())
        busiest = nlargest(MAX_CHANNELS // 2, (each for each in new if each[0] > 0))
        largest = nlargest(MAX_CHANNELS, ((len(found), name) for name, found in own.items()))
        names = dict.fromkeys(name for _, name in (*busiest, *largest))
        return tuple(_figures(name, own[name]) for name in list(names)[:MAX_CHANNELS])

    def forget(self) -> None:
        """Hold nothing until they are taken again."""
        self._before = {}


def _figures(name: str, found: ChannelSubscribers) -> ChannelFigures:
    return ChannelFigures(name=name, subscribers=len(found), messages=found.messages, size_bytes=found.size_bytes)
