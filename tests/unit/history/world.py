"""A supervised hub with kept channels, over a broker that a test controls."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from backplane.history.hub import HistoryHub
from backplane.history_rules import History, HistoryRules
from tests.unit.controlled_adapter import ControlledHistoryAdapter
from tests.unit.doubles import RecordingSubscriber, until_idle
from tests.unit.kit import SETTINGS, WAIT_SECONDS, SupervisedWorld, supervised

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.settings import Settings

__all__ = ["RULES", "HistoryWorld", "history_world"]

RULES = HistoryRules(
    {"price:*": History(latest=True), "few:*": History(max_messages=3), "k*": History(max_messages=100)}
)


class HistoryWorld(SupervisedWorld):
    """A supervised hub with kept channels: `k*`, `few:*` and `price:*`."""

    @property
    def adapter(self) -> ControlledHistoryAdapter:
        """The broker that the test controls."""
        adapter = super().adapter
        assert isinstance(adapter, ControlledHistoryAdapter)
        return adapter

    @property
    def history_hub(self) -> HistoryHub:
        """The hub."""
        assert isinstance(self.hub, HistoryHub)
        return self.hub

    def append(self, channel: str, *payloads: str) -> None:
        """Let another process publish and keep texts."""
        for payload in payloads:
            self.adapter.append(channel, payload.encode(), most=3 if channel.startswith("few") else 100)

    async def joins(self, channel: str, *, since: str | None = None, rewind: int = 0) -> RecordingSubscriber:
        """Return a subscriber that has joined with a position."""
        subscriber = RecordingSubscriber()
        async with asyncio.timeout(WAIT_SECONDS):
            await self.hub.join(channel, subscriber, since=since, rewind=rewind)
        return subscriber

    async def settled(self) -> None:
        """Wait until no channel is in doubt."""
        async with asyncio.timeout(WAIT_SECONDS):
            while self.history_hub.in_doubt:
                await until_idle()
        await until_idle()

    async def missing(self, channel: str, *payloads: str) -> None:
        """Lose the link, let others publish meanwhile, and get it back."""
        await self.degrade()
        self.append(channel, *payloads)
        generation = self.supervisor.generation
        self.adapter.start_gate.open()
        await self.reaches("live", generation=generation)


@asynccontextmanager
async def history_world(
    adapter: ControlledHistoryAdapter | None = None, settings: Settings = SETTINGS
) -> AsyncGenerator[HistoryWorld]:
    """Run a supervised hub with kept channels."""
    async with supervised(adapter or ControlledHistoryAdapter(), settings, rules=RULES) as made:
        made.__class__ = HistoryWorld
        assert isinstance(made, HistoryWorld)
        yield made
