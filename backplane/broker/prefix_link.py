"""The prefixes of an adapter, in the place of its channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.broadcaster import SupportsPrefixes

__all__ = ["PrefixLink"]


class PrefixLink:
    """Subscribes to prefixes where `BrokerSubscriptions` subscribes to channels.

    Args:
        adapter: The adapter; `None` where it has none.

    Attributes:
        held: The prefixes that the adapter may have, as one that resumes keeps them.
    """

    def __init__(self, adapter: SupportsPrefixes | None) -> None:
        self._adapter = adapter
        self.held: set[str] = set()

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe to prefixes."""
        self.held.update(channels)
        await self._require().subscribe_prefixes(channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Unsubscribe from prefixes."""
        await self._require().unsubscribe_prefixes(channels)
        self.held.difference_update(channels)

    def _require(self) -> SupportsPrefixes:
        if self._adapter is None:
            raise ConfigurationError("the adapter has no patterns")
        return self._adapter
