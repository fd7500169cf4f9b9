"""What a worker with `History` rules has beside one without: its hub, what runs on its link, and reads on demand."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from backplane.broadcaster import SupportsHistory
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerUnavailableError, ConfigurationError
from backplane.fanout.codec import decode
from backplane.history.hub import HistoryHub
from backplane.history.quiet_channels import QuietChannels
from backplane.message import HistoryPage, Position
from backplane.option_checks import check_number

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from backplane.broadcaster import Broadcaster
    from backplane.fanout.broker_subscriptions import BrokerSubscriptions
    from backplane.fanout.traffic import Traffic
    from backplane.history_rules import HistoryRules
    from backplane.journal.journal import Journal
    from backplane.settings import Settings
    from backplane.statistics import Counters

__all__ = ["Histories"]


class Histories:
    """The histories of the kept channels, as one worker uses them.

    Args:
        broadcaster: The adapter.
        rules: Which channels are kept.
        broker_subscriptions, prefixes: As for `Hub`.
        settings: The bounds.
        statistics: Where the hub counts.
        journal, traffic: As for `Hub`.

    Attributes:
        hub: The hub of the worker.
        link_tasks: What runs while the link is live.

    Raises:
        ConfigurationError: The adapter keeps no messages.
    """

    def __init__(
        self,
        broadcaster: Broadcaster,
        rules: HistoryRules,
        broker_subscriptions: BrokerSubscriptions,
        *,
        settings: Settings,
        statistics: Counters,
        journal: Journal,
        prefixes: BrokerSubscriptions | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        capabilities = broadcaster.capabilities
        if capabilities.keeps == "nothing" or not isinstance(broadcaster, SupportsHistory):
            raise ConfigurationError(
                f"history is configured, and the adapter of {broadcaster.url} keeps no messages: use another adapter, "
                "or leave history out"
            )
        self._adapter: Final[SupportsHistory] = broadcaster
        self._url: Final = str(broadcaster.url)
        self._rules: Final = rules
        self._settings: Final = settings
        self.hub: Final = HistoryHub(
            broker_subscriptions,
            rules,
            broadcaster,
            follows=capabilities.resumes,
            parts=capabilities.parts,
            settings=settings,
            statistics=statistics,
            journal=journal,
            prefixes=prefixes,
            traffic=traffic,
        )
        self.link_tasks: Sequence[Callable[[], Coroutine[Any, Any, None]]] = [self.hub.repairer.run]
        if capabilities.live_may_skip:
            quiet = QuietChannels(self.hub, broadcaster, interval_seconds=settings.probe_interval_seconds)
            self.link_tasks = [self.hub.repairer.run, quiet.run]

    async def prepare(self) -> None:
        """Prepare the broker, on a new link; raises as `SupportsHistory.prepare`."""
        await self._adapter.prepare(self._rules)

    async def page(self, channel: str, since: str | Position | None, limit: int) -> HistoryPage:
        """Read from the history of a channel; see `Backplane.history`."""
        check_number("limit", limit, whole=True)
        rule = self._rules.rule_of(channel)
        if rule is None:
            raise ConfigurationError(f"channel {channel!r} has no history: give it a rule, Backplane(history={{...}})")
        after = Position.parse(since) if isinstance(since, str) else since
        settings = self._settings
        limit = min(limit, settings.max_recall_messages)
        recall = partial(self._adapter.recall, channel, rule, limit=limit, max_bytes=settings.max_recall_bytes)
        try:
            async with PatientTimeout(settings.recall_timeout_seconds):
                resumed = await recall(after=after)
                recalled = resumed if resumed.found else await recall(after=None)
        except TimeoutError:
            raise BrokerUnavailableError(
                f"{self._url} did not return the history of channel {channel!r} within "
                f"{settings.recall_timeout_seconds:g} s"
            ) from None
        decoded = [decode(channel, payload, place) for payload, place in recalled.items]
        return HistoryPage(
            messages=[message for message in decoded if message is not None],
            position=recalled.items[-1].place if recalled.items else after if resumed.found and after else recalled.top,
            complete=resumed.found,
            more=recalled.more,
        )
