"""What a worker with `cluster=True` has beside one without: presence, the list of workers, commands and surveys."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING, Any, Final, Literal

from backplane.channels import RESERVED_PREFIX
from backplane.cluster.topics import CONTROL, WORKERS, inbox_of
from backplane.cluster_types import Worker
from backplane.control.client_index import ClientIndex
from backplane.control.commands import CommandReceiver
from backplane.control.requests import Requests
from backplane.control.user_cap import UserCap
from backplane.errors import ClosedError, ConfigurationError, SubscribeError
from backplane.presence.agent import PresenceAgent
from backplane.presence.attendance import Attendance, no_presence
from backplane.presence.frames import PresenceFrames
from backplane.presence.times import PresenceTimes
from backplane.presence.watch import PresenceWatch
from backplane.stats.lists import Lists, answer_lists
from backplane.stats.overviews import Overviews
from backplane.stats.publisher import WATCH, StatsPublisher
from backplane.stats.reader import StatsReader

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from backplane.broadcaster import Broadcaster
    from backplane.broker.link_state import LinkState
    from backplane.cluster.bus import ClusterBus
    from backplane.control.messages import Command
    from backplane.control.surveys import Surveys
    from backplane.fanout.hub import Hub
    from backplane.journal.journal import Journal
    from backplane.presence.contract import Worker as KnownWorker
    from backplane.presence_types import Presence, PresenceRules, PresenceView, Who
    from backplane.settings import Settings
    from backplane.stats.source import StatsSource

__all__ = ["SETTLE_HEARTBEATS", "Cluster", "ClusterMode"]

ClusterMode = Literal["member", "observer"]
"""Whether this worker is one of the cluster, or only sees it and can ask it."""

# Where a broker can lose a message without reporting it, each change is stated once more after this time.
_REPEAT_SECONDS: Final = 10.0
# How long `present` waits for the answers of the other workers.
_ANSWER_SECONDS: Final = 2.0
SETTLE_HEARTBEATS: Final = 1.1
"""After so many intervals of heartbeats every worker has had the time to send one."""
# How long a view of `present` is kept for the next call.
_KEPT_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 1.0
# The protocol remembers ended workers for longer, so that late messages raise none of them.
_LISTED_SECONDS: Final = 120.0


class Cluster:
    """The parts of a worker that know the other workers.

    Args:
        bus: The reserved channels.
        broadcaster: The adapter.
        hub: Delivers frames to clients.
        settings: Times.
        rules: Which channels have presence.
        surveys: The handlers of surveys.
        mode: Whether it is a member of the cluster.
        journal: How failures are logged.
        stats: The figures of this worker.
        url: The broker, its password masked.

    Attributes:
        rules: See above.
        clients: The clients of this worker by user.
        requests: Commands to all workers.
        lists: Channels and clients of all workers.
        user_cap: How many connections a user has on all workers.
    """

    def __init__(
        self,
        bus: ClusterBus,
        broadcaster: Broadcaster,
        hub: Hub,
        *,
        settings: Settings,
        rules: PresenceRules,
        surveys: Surveys,
        mode: ClusterMode,
        journal: Journal,
        stats: StatsSource,
        url: str,
    ) -> None:
        self._bus = bus
        self.rules: Final = rules
        self._mode = mode
        self._started_at = time.time()
        self._package = _version_of_package()
        self._heartbeat_seconds = settings.worker_heartbeat_seconds
        self._is_started = False
        self._is_settled = False
        self._settling: asyncio.TimerHandle | None = None
        self.clients: Final = ClientIndex()
        self.requests: Final = Requests(bus, self._asked, self._knows_all)
        self._commands = CommandReceiver(bus, self.clients, surveys, journal)
        self.user_cap: Final = UserCap(self.clients, self.requests, self._commands, journal)
        self._agent = PresenceAgent(
            bus,
            times=PresenceTimes(
                heartbeat=settings.worker_heartbeat_seconds,
                down_after=settings.worker_down_seconds,
                repeat=_REPEAT_SECONDS if broadcaster.capabilities.live_may_skip else None,
                present=_KEPT_SECONDS,
            ),
            describe=self._describe,
            rule_of=self._rule_of,
            observes=mode == "observer",
            workers_changed=self.requests.workers_changed,
        )
        self._stats = StatsPublisher(bus, stats.snapshot, lambda: len(self._asked()), stats.watched)
        self._commands.add_kind(WATCH, self._stats.watch)
        answer_lists(self._commands, stats)
        self.lists: Final = Lists(self.requests)
        self._stats_reader = StatsReader(
            bus,
            self.requests,
            workers=self.workers,
            knows_all=self._knows_all,
            is_live=lambda: self._is_live,
            rejected=lambda: self.rejected,
            url=url,
            own=stats.snapshot if mode == "member" else None,
            down_seconds=settings.worker_down_seconds,
            journal=journal,
        )
        self._affinity = hub.affinity
        self._is_live = False
        self._frames = PresenceFrames(self._agent, hub)
        self._watches: dict[PresenceWatch | Overviews, None] = {}
        # Of the clients without a user, which can be notified all the same.
        self._unnamed = Attendance(self._agent, self._frames, rules, None) if rules else None

    def add_question(self, kind: str, answer: Callable[[Command], Coroutine[Any, Any, Any]]) -> None:
        """Answer commands of one more kind."""
        self._commands.add_slow_kind(kind, answer)

    # --- the life of the worker ---

    async def start(self, *, strict: bool) -> None:
        """Subscribe to the reserved channels, and begin.

        Args:
            strict: Return when the broker has confirmed, and raise where it does not. Otherwise it is tried until then.

        Raises:
            SubscribeError: The broker refused a channel.
            BrokerUnavailableError: The broker did not confirm in time.
        """
        topics = self._topics()
        if strict:
            joins = (self._bus.subscribe(topic, receiver) for topic, receiver in topics)
            _check(await asyncio.gather(*joins, return_exceptions=True))
            self._begin()
        else:
            missing = len(topics)

            def confirmed() -> None:
                nonlocal missing
                missing -= 1
                if not missing:
                    self._begin()

            for topic, receiver in topics:
                self._bus.subscribe_soon(topic, receiver, confirmed)

    def link_changed(self, state: LinkState) -> None:
        """Take note of a change of the link."""
        if state in ("live", "degraded"):
            self._is_live = state == "live"
            if self._is_started:
                self._agent.link_changed(is_live=self._is_live)

    def end_watches(self) -> None:
        """End the iterations of the application: the worker has drained, or stops."""
        for watch in tuple(self._watches):
            watch.end()

    async def stop(self) -> None:
        """End in order: the other workers are notified, if the broker is available."""
        self.end_watches()
        self._stats.stop()
        self.requests.stop()
        await self._commands.stop()
        if self._settling is not None:
            self._settling.cancel()
        if self._is_started:
            self._agent.stop()
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._bus.flush()
            except TimeoutError:
                pass  # the other workers notice it by its heartbeats

    @property
    def is_member(self) -> bool:
        """Whether this is one of the workers, and not an observer."""
        return self._mode == "member"

    @property
    def applied(self) -> int:
        """Commands that this worker has applied."""
        return self._commands.applied

    @property
    def received_of_all(self) -> int:
        """Messages on the channels that each worker receives, heartbeats and commands."""
        return self._bus.received_of_all

    @property
    def control_received(self) -> int:
        """Messages that it has received on the channels that every worker receives: heartbeats and commands."""
        return self._bus.received_of_all

    @property
    def rejected(self) -> int:
        """Messages that were dropped: not signed, no message of this package, of another time."""
        return self._bus.rejected + self._commands.rejected + self._agent.counters.get("in.invalid", 0)

    @property
    def presence_lag_seconds(self) -> float:
        """How old the change of presence is that waits longest to be sent."""
        return self._agent.lag_seconds

    # --- presence ---

    def attendance(self, who: Who | None) -> Attendance | None:
        """Return what a client has of presence; `None` where it has nothing of it.

        Raises:
            ConfigurationError: It has a user, and this worker is none of the cluster: it sends no heartbeats, without
                which the others would drop the user.
        """
        if who is None:
            return self._unnamed
        if self._mode == "observer":
            raise ConfigurationError("presence=Who(...) needs a member of the cluster: this Backplane is an observer")
        return Attendance(self._agent, self._frames, self.rules, who)

    def watch(self, channel: str) -> PresenceWatch:
        """Watch a channel; to be ended by `end_watch`.

        Raises:
            ConfigurationError: The channel has no presence.
        """
        self._rule_of(channel)
        watch = PresenceWatch(self._agent, self._affinity, channel)
        self._watches[watch] = None
        return watch

    def overviews(self, *, interval_seconds: float, with_rates: bool) -> Overviews:
        """Watch the figures of all workers; to be ended by `end_watch`."""
        overviews = Overviews(
            self._stats_reader, self._affinity, interval_seconds=interval_seconds, with_rates=with_rates
        )
        self._watches[overviews] = None
        return overviews

    def end_watch(self, watch: PresenceWatch | Overviews) -> None:
        """End a watch."""
        watch.end()
        self._watches.pop(watch, None)

    async def present(self, channel: str) -> PresenceView:
        """Return the users of a channel; see `Backplane.present`."""
        watch = self.watch(channel)
        try:
            await watch.settle(_ANSWER_SECONDS)
            return watch.view
        finally:
            self.end_watch(watch)

    # --- workers ---

    def opened_at(self, client_id: str) -> float:
        """Return when a client of this worker began its handshake, in seconds since the epoch.

        Raises:
            ClosedError: It has ended, or is none of this worker.
        """
        opened_at = self.clients.opened_at(client_id)
        if opened_at is None:
            raise ClosedError(f"connection {client_id} has ended, or is none of this worker")
        return opened_at

    def workers(self) -> list[Worker]:
        """Return the workers that are known, this one first if it is one."""
        known = [_worker(worker) for worker in self._agent.workers() if worker.info and _is_listed(worker)]
        return [self.own(), *known] if self._mode == "member" else known

    def _asked(self) -> list[Worker]:
        """Return the workers that answer commands."""
        return [worker for worker in self.workers() if worker.is_alive]

    def _knows_all(self) -> bool:
        """Return whether every worker has had the time to send a heartbeat since this one began to receive them."""
        return self._is_settled

    def _settle(self) -> None:
        self._is_settled = True
        self.requests.workers_changed()

    def own(self) -> Worker:
        """Return this worker."""
        about = self._describe()
        return Worker(
            id=self._bus.worker,
            host=about["host"],
            pid=about["pid"],
            started_at=about["started"],
            connections=about["connections"],
            version=about["package"],
        )

    def _describe(self) -> dict[str, Any]:
        """Return what a heartbeat states of this worker."""
        return {
            "host": socket.gethostname()[:64],
            "pid": os.getpid(),
            "started": round(self._started_at, 3),
            "connections": len(self.clients),
            "package": self._package,
        }

    # ---

    def _topics(self) -> list[tuple[str, Any]]:
        inbox = inbox_of(self._bus.worker)
        topics = [(WORKERS, self._agent), (inbox, _Inbox(self._agent, self.requests))]
        return [*topics, (CONTROL, self._commands)] if self._mode == "member" else topics

    def _begin(self) -> None:
        self._is_started = True
        seconds = SETTLE_HEARTBEATS * self._heartbeat_seconds
        self._settling = asyncio.get_running_loop().call_later(seconds, self._settle)
        self._agent.start()
        if not self._is_live:  # it was lost since the broker's last confirmation
            self._agent.link_changed(is_live=False)

    def _rule_of(self, channel: str) -> Presence:
        rule = self.rules.rule_of(channel)
        if rule is None:
            raise no_presence(channel)
        return rule


class _Inbox:
    """What only this worker receives: answers to what it asked about presence, and to its commands."""

    def __init__(self, *receivers: PresenceAgent | Requests) -> None:
        self._receivers = receivers

    def received(self, topic: str, text: str, /) -> None:
        for receiver in self._receivers:
            receiver.received(topic, text)

    def gap(self, topic: str, /) -> None:
        for receiver in self._receivers:
            receiver.gap(topic)


def _version_of_package() -> str:
    from importlib.metadata import version  # takes 10 ms, which a worker without a cluster saves

    return version("fastapi-backplane")


def _check(outcomes: list[BaseException | None]) -> None:
    """Raise if a channel could not be subscribed to, with the names of all that were refused."""
    failures = [outcome for outcome in outcomes if outcome is not None]
    refusals = [failure for failure in failures if isinstance(failure, SubscribeError) and failure.refused]
    if refusals:
        refused = {channel: reason for refusal in refusals for channel, reason in refusal.refused.items()}
        error = SubscribeError(refused, adapter=refusals[0].adapter)
        error.add_note(
            f"The workers of a cluster exchange messages on channels that start with {RESERVED_PREFIX!r}: this program "
            "must be allowed to publish and to subscribe to them."
        )
        raise error from refusals[0]
    if failures:
        raise failures[0]


def _is_listed(known: KnownWorker) -> bool:
    """Return whether a worker is alive, or has ended only just."""
    return known.alive or known.heartbeat_age_seconds < known.down_after_seconds + _LISTED_SECONDS


def _worker(known: KnownWorker) -> Worker:
    """Return a worker as its heartbeat describes it; what another version states otherwise is left out."""
    about = known.info

    def text(name: str) -> str:
        return value if isinstance(value := about.get(name), str) else ""

    def number(name: str) -> float:
        return value if isinstance(value := about.get(name), int | float) else 0

    return Worker(
        id=known.origin,
        host=text("host"),
        pid=int(number("pid")),
        started_at=number("started"),
        connections=int(number("connections")),
        version=text("package"),
        last_seen_seconds_ago=known.heartbeat_age_seconds,
        is_alive=known.alive,
    )
