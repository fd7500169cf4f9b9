"""The per-process state of a started `Backplane`."""

from __future__ import annotations

import logging
import os
import random
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from backplane.broker.keep import Keep
from backplane.broker.publish_buffer import PublishBuffer
from backplane.broker.publisher import WaitingPublisher
from backplane.broker.supervisor import Supervisor
from backplane.channels import validate_channel
from backplane.cluster.bus import ClusterBus
from backplane.cluster.signatures import Signer
from backplane.concurrency.call_queue import CallQueue
from backplane.concurrency.collector import no_walk_of_what_lives
from backplane.concurrency.stalls import StallMeter
from backplane.connection.keepalive import KeepaliveScheduler
from backplane.connection.limits import Limits
from backplane.connection.policy import ConnectionPolicy
from backplane.control.requests import Requests
from backplane.errors import (
    ClosedError,
    ConfigurationError,
    InvalidChannelError,
    PayloadTooLargeError,
    PublishError,
    PublishOutcomeUnknownError,
)
from backplane.explain.path_tests import PathTests
from backplane.fanout.broker_subscriptions import BrokerSubscriptions
from backplane.fanout.channel_groups import ChannelGroups
from backplane.fanout.codec import encode
from backplane.fanout.hub import Hub
from backplane.fanout.outbox import Waiting
from backplane.fanout.traffic import Traffic
from backplane.header import body_size, without_extensions
from backplane.history.histories import Histories
from backplane.journal.events import COMMAND_REJECTED, PUBLISH_REFUSED
from backplane.journal.journal import Journal
from backplane.journal.names import hide_names
from backplane.presence_types import Who
from backplane.statistics import Counters
from backplane.worker.clients import ClientRegistry
from backplane.worker.cluster import Cluster
from backplane.worker.health import Health
from backplane.worker.publish_options import checked_key, excluded_id
from backplane.worker.publish_outcome import count_failed_publish
from backplane.worker.published_channels import PublishedChannels
from backplane.worker.questions import answer_questions
from backplane.worker.shutdown import stagger_window
from backplane.worker.stats import RuntimeStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.broadcaster import Broadcaster, WireFormat
    from backplane.broker.link_state import LinkState, StateChange
    from backplane.broker.publisher import Publisher
    from backplane.concurrency.affinity import LoopAffinity
    from backplane.connection.connection import Connection
    from backplane.connection.policy import Authorize, OnGap, OnSlow
    from backplane.fanout.channel_groups import Grouping
    from backplane.fanout.subscription import Subscription
    from backplane.history_rules import HistoryRules
    from backplane.message import HistoryPage, Position, Receipt
    from backplane.message_tracing import MessageTracer, PublishSpan
    from backplane.presence.attendance import Attendance
    from backplane.settings import Settings
    from backplane.statistics import Statistics
    from backplane.worker.clients import LocalClient
    from backplane.worker.cluster_options import ClusterOptions

__all__ = ["Runtime"]

logger: Final = logging.getLogger("backplane.worker.runtime")

# How long a close takes beyond the grace of the handler where a client reads nothing: what waits is flushed, and the
# close frame sent, within a second each.
_CLOSE_SECONDS: Final = 2.0

# Over how long clients are closed where the server ends them meanwhile: Hypercorn gives them 3 s by default.
_HURRIED_DRAIN_SECONDS: Final = 1.0


class Runtime:
    """The parts of a started backplane, in one event loop, from its start to its stop.

    Args:
        broadcaster: The adapter, not started yet.
        settings: Times and bounds.
        on_state: Called with every change of the link's state.
        history_rules: Which channels have a history; `None` where none has.
        cluster: What concerns all workers together. Defaults to nothing.
        limits: The limits of a client that is given no other.
        on_gap: What happens at a gap to a client that is given nothing else.
        authorize: Decides which client may join what.
        on_slow: Called with clients that are too slow.
        tracer: Traces publishes and deliveries. Defaults to no tracing.
        grouping: By which groups of channels messages are counted. Defaults to none.
        close_seconds: How long the close of a client that reads nothing takes beyond its handler's grace.

    Attributes:
        history_rules: See above.
        broadcaster: The adapter.
        scheme: The scheme of the broker's URL.
        state_changed_at: When the state of the link last changed, by the event loop's clock.
        affinity: The event loop in which all of it lives.
        calls: What other threads publish, on its way into that event loop.
        origin: Random bytes that identify this process on the broker.
        tracer: See above.
        wire_format: The format of the payloads that are published.
        prefix: What the adapter puts before the name of each channel; empty where it has no such option.
        clients: The WebSockets and event streams of this worker.
        policy: What applies to a client that is given no options of its own.
        path_tests: The path tests that have arrived.
        published_channels: Where this worker has published lately; empty where the workers do not know each other.
        broker_url: The broker's URL, its password masked.
        control_secret: Signs what workers exchange; `None` for no signatures.
        waiting: What waits in the outboxes of this worker's subscribers.
        stalls: How long the event loop was blocked.
        subscriptions: The subscriptions of the application (`Backplane.subscribe`).
        keepalive: The timer of all connections.
        histories: The histories of the kept channels; `None` without rules.
        cluster: What knows the other workers; `None` where they do not know each other.
        statistics: Where the parts count; `count` returns it with what the hub and the buffer count themselves.
        traffic: What passes the hub.
        journal: How what can concern many clients at once is logged.
        drained: The worker is about to end, and its subscriptions have ended.
        close_seconds: See above.
    """

    def __init__(
        self,
        broadcaster: Broadcaster,
        settings: Settings,
        on_state: Callable[[StateChange], None] | None = None,
        *,
        history_rules: HistoryRules | None = None,
        cluster: ClusterOptions | None = None,
        limits: Limits | None = None,
        on_gap: OnGap = "close",
        authorize: Authorize | None = None,
        authorize_pattern: Authorize | None = None,
        on_slow: OnSlow | None = None,
        tracer: MessageTracer | None = None,
        grouping: Grouping | None = None,
        close_seconds: float = _CLOSE_SECONDS,
    ) -> None:
        self.settings = settings
        self._on_state = on_state
        self.origin: bytes = os.urandom(8)
        self.broker_subscriptions: BrokerSubscriptions = BrokerSubscriptions(
            linger_seconds=settings.linger_seconds, timeout_seconds=settings.subscribe_timeout_seconds
        )
        self.prefixes: BrokerSubscriptions | None = None
        if broadcaster.capabilities.patterns:
            self.prefixes = BrokerSubscriptions(
                linger_seconds=settings.linger_seconds, timeout_seconds=settings.subscribe_timeout_seconds
            )
        if not settings.log_names:
            hide_names(b"" if cluster is None or cluster.secret is None else cluster.secret)
        self.journal: Journal = Journal(worker=self.origin.hex())
        self.statistics: Counters = Counters()
        self.history_rules = history_rules
        self.broadcaster: Broadcaster = broadcaster
        self.scheme: str = broadcaster.url.scheme
        self.traffic: Traffic = Traffic(self.origin, ChannelGroups(grouping, self.journal))
        self.histories: Histories | None = None
        if history_rules is not None:
            self.histories = Histories(
                broadcaster,
                history_rules,
                self.broker_subscriptions,
                settings=settings,
                statistics=self.statistics,
                journal=self.journal,
                prefixes=self.prefixes,
                traffic=self.traffic,
            )
        histories = self.histories
        self.hub: Hub = (
            Hub(self.broker_subscriptions, self.journal, prefixes=self.prefixes, traffic=self.traffic)
            if histories is None
            else histories.hub
        )
        self.hub.patterns.broker = str(broadcaster.url)
        self.hub.tracer = tracer
        self.tracer: MessageTracer | None = tracer
        self.path_tests: PathTests = PathTests()
        self.published_channels: PublishedChannels = PublishedChannels()
        self.hub.on_path_test = self.path_tests.arrived
        self.affinity: LoopAffinity = self.hub.affinity
        self.state_changed_at: float = self.affinity.loop.time()
        self.calls: CallQueue = CallQueue()
        self.calls.open()
        self.supervisor: Supervisor = Supervisor(
            broadcaster,
            self.hub,
            self.broker_subscriptions,
            prefixes=self.prefixes,
            origin=self.origin,
            settings=settings,
            on_state=self._state_changed,
            journal=self.journal,
            prepare=None if histories is None else histories.prepare,
            link_tasks=() if histories is None else histories.link_tasks,
        )
        self.waiting: Waiting = Waiting()
        self.stalls: StallMeter = StallMeter()
        self.subscriptions: dict[Subscription, None] = {}
        self.keepalive: KeepaliveScheduler = KeepaliveScheduler()
        self.clients: ClientRegistry = ClientRegistry(settings.max_connections, self.statistics, self.journal)
        self.drained: bool = False
        self._collections: ExitStack = ExitStack()
        self.policy: ConnectionPolicy = ConnectionPolicy(
            on_gap=on_gap,
            limits=limits or Limits(),
            handler_grace_seconds=settings.handler_grace_seconds,
            authorize=authorize,
            authorize_pattern=authorize_pattern,
            authorize_timeout_seconds=settings.authorize_timeout_seconds,
            on_slow=on_slow,
            reload_delay=self.reload_delay,
            keepalive=self.keepalive,
            statistics=self.statistics,
            journal=self.journal,
        )
        self.broker_url: str = str(broadcaster.url)
        self.wire_format: WireFormat = broadcaster.options.wire_format
        self.prefix: str = getattr(broadcaster.options, "prefix", "")
        self.close_seconds = close_seconds
        attempts = self.supervisor.attempts
        self._publisher: Publisher = WaitingPublisher(attempts)
        if settings.outage == "buffer":
            self._publisher = PublishBuffer(
                attempts,
                max_bytes=settings.max_buffer_bytes,
                max_messages=settings.max_buffer_messages,
                journal=self.journal,
            )
        self._bus: ClusterBus | None = None
        self.control_secret: bytes | None = None if cluster is None else cluster.secret
        self._signer = None if self.control_secret is None else Signer(self.control_secret)
        self.cluster: Cluster | None = None
        if cluster is not None and cluster.mode is not None:
            self.cluster = Cluster(
                self._make_bus(),
                broadcaster,
                self.hub,
                settings=settings,
                rules=cluster.presence,
                surveys=cluster.surveys,
                mode=cluster.mode,
                journal=self.journal,
                stats=RuntimeStats(self),
                url=str(broadcaster.url),
            )
            answer_questions(self, self.cluster)
            self.clients.index = self.cluster.clients

    async def start(self) -> None:
        """Open the link, and join the cluster; see `Supervisor.start` and `Cluster.start`."""
        self.journal.open()
        try:
            await self.supervisor.start()
        except BaseException:
            self.journal.close()
            raise
        self.stalls.start()
        if self.cluster is not None:
            try:
                await self.cluster.start(strict=self.settings.start == "strict")
            except BaseException:
                await self.stop()
                raise

    def members(self) -> Cluster:
        """Return what knows the other workers.

        Raises:
            ConfigurationError: They do not know each other.
        """
        if self.cluster is None:
            raise ConfigurationError(
                "the workers do not know each other: pass Backplane(cluster=True), or presence={...}, in each of them"
            )
        return self.cluster

    async def admit(self, client: LocalClient, limits: Limits) -> None:
        """Check that the user of a client that is registered, and in its handshake, may have one more connection.

        Raises:
            TooManyConnectionsError: The user has as many as `max_connections_per_user`, on all workers.
            ConfigurationError: The workers do not know each other.
        """
        most = limits.max_connections_per_user
        if most is not None and not await self.members().user_cap.has_room(client.id, most):
            raise self.clients.too_many(client, f"a user may have {most} connections")

    def requests(self) -> Requests:
        """Return what sends commands: to all workers, also from a process that is none of them."""
        if self.cluster is None and self.clients.connected:
            self.journal.log(
                logger,
                COMMAND_REJECTED,
                "a command for the connections of all workers was sent by a worker that serves clients and applies no "
                "commands itself: pass Backplane(cluster=True) in each worker",
            )
        return Requests(self._make_bus(), list, bool) if self.cluster is None else self.cluster.requests

    def attendance(self, who: object) -> Attendance | None:
        """Return what a client has of presence; `None` in a backplane without.

        Raises:
            ConfigurationError: `who` is no `Who`, or there is no presence.
        """
        if not isinstance(who, Who | None):
            raise ConfigurationError(f"presence must be a Who(user=...), not {who!r:.100}")
        if self.cluster is not None:
            return self.cluster.attendance(who)
        if who is not None:
            raise ConfigurationError("presence=Who(...) needs Backplane(presence={...}), or cluster=True")
        return None

    async def publish(
        self,
        channel: str,
        data: object,
        exclude: Connection | str | None,
        idempotency_key: str | bytes | None = None,
        span: PublishSpan | None = None,
    ) -> Receipt:
        """Encode and publish, as the setting `outage` decides, and count the outcome; see `Backplane.publish`.

        With tracing it does so within a span: the `span` of the second call, which this makes itself.
        """
        if self.tracer is not None and span is None and _is_legal(channel):
            with self.tracer.publish(channel) as span:
                receipt = await self.publish(channel, data, exclude, idempotency_key, span)
                span.published(receipt)
                return receipt
        statistics, began_at = self.statistics, time.perf_counter()
        try:
            payload, keep = self._encoded(channel, data, exclude, idempotency_key, span)
            receipt = await self._publisher.publish(channel, payload, keep)
        except BaseException as error:
            count_failed_publish(statistics, error)
            if isinstance(error, PublishError) and not isinstance(error, PublishOutcomeUnknownError):
                words = "the broker refused a message on channel %(channel)r: %(reason)s"
                self.journal.log(logger, PUBLISH_REFUSED, words, channel=channel, reason=error)
            raise
        if self.cluster is not None:  # only other workers ask for it
            self.published_channels.note(channel)
        statistics.published += 1
        statistics.published_bytes += len(payload)
        statistics.publish_seconds.observe(time.perf_counter() - began_at)
        if receipt.duplicate:
            statistics.duplicates += 1
        return receipt

    def _encoded(
        self,
        channel: str,
        data: object,
        exclude: Connection | str | None,
        idempotency_key: str | bytes | None,
        span: PublishSpan | None,
    ) -> tuple[bytes, Keep | None]:
        """Return the payload, and how it is kept in the history of the channel, where that has one."""
        validate_channel(channel)
        rule = None if self.history_rules is None else self.history_rules.rule_of(channel)
        key = None
        if idempotency_key is not None:
            key = checked_key(idempotency_key, channel, rule, self.broadcaster)
        payload = encode(
            data,
            origin=self.origin,
            published_at=time.time(),
            excluded=excluded_id(exclude),
            wire_format=self.wire_format,
            states_json=rule is not None,
            extensions=b"" if span is None else span.extensions,
        )
        limit = self.supervisor.max_payload_bytes
        if span is not None:
            span.encoded(body_size(payload))
            if len(payload) > limit:
                payload = without_extensions(payload)  # tracing must not change an outcome
        if len(payload) > limit:
            raise PayloadTooLargeError(len(payload), limit)
        return payload, None if rule is None else Keep(rule, key)

    async def history(self, channel: str, since: str | Position | None, limit: int) -> HistoryPage:
        """Read from the history of a channel; see `Backplane.history`."""
        validate_channel(channel)
        if self.histories is None:
            raise ConfigurationError("no channel has a history: give it a rule, Backplane(history={...})")
        return await self.histories.page(channel, since, limit)

    async def wait_for_state(self, state: LinkState) -> None:
        """Wait until the link is in `state`.

        Raises:
            ClosedError: The worker has drained or stopped.
        """
        while self.supervisor.state != state:
            if self.drained or self.supervisor.state == "closed":
                raise ClosedError("this Backplane has been stopped, or is about to be")
            await self.supervisor.state_changed()

    def reload_delay(self) -> float:
        """Draw after how many seconds one of many clients is closed that the same gap or outage concerns."""
        seconds = stagger_window(len(self.clients.connected), self.settings.drain_seconds)
        return random.uniform(0, seconds)  # noqa: S311

    async def drain(self, *, hurried: bool = False) -> None:
        """Accept no new client, and close those that are there with code 1012, spread over `drain_seconds`.

        Returns when the clients' handlers have ended, or when the last one's grace is over. Subscriptions end last.

        Args:
            hurried: The server ends at the same time: close all within a second.
        """
        most_seconds = self.settings.drain_seconds
        if self.clients:
            self._collections.enter_context(no_walk_of_what_lives())  # until `stop`: the last ones are still leaving
        seconds = self.clients.retire_all(min(most_seconds, _HURRIED_DRAIN_SECONDS) if hurried else most_seconds)
        try:
            await self.clients.wait_until_empty(seconds + self.settings.handler_grace_seconds + self.close_seconds)
        finally:  # also where the drain is cancelled, as a second signal does
            self.drained = True
            self._end_subscriptions()
            if self.cluster is not None:
                self.cluster.end_watches()
            self.supervisor.wake()

    async def stop(self) -> None:
        """End every client and subscription that is left, and close the link."""
        with self._collections:
            self.clients.is_draining = True  # before anything is awaited
            self.stalls.stop()
            await self._publisher.stop(self.settings.publish_timeout_seconds)
            self._end_subscriptions()
            await self.clients.close_all()
            if self.cluster is not None:
                await self.cluster.stop()
            if self._bus is not None:
                await self._bus.stop()
            await self.supervisor.stop()
            await self.calls.close()
            self.hub.close()
            self.journal.close()

    def count(self) -> Statistics:
        """Return what was counted since the start."""
        return self.statistics.snapshot(
            delivered=self.traffic.received,
            received_bytes=self.traffic.received_bytes,
            offered=self.traffic.offered,
            offered_bytes=self.traffic.offered_bytes,
            malformed=self.hub.malformed,
            unsupported=self.hub.unsupported,
            path_tests=self.hub.path_tests,
            gaps=self.hub.gaps.reported,
            buffered=len(self._publisher),
            buffer_dropped=self._publisher.dropped,
            commands_applied=0 if self.cluster is None else self.cluster.applied,
            cluster_rejected=0 if self.cluster is None else self.cluster.rejected,
        )

    def health(self) -> Health:
        """Return how this worker is. Safe in any thread."""
        supervisor, hub, now = self.supervisor, self.hub, self.affinity.loop.time()
        return Health(
            live=supervisor.is_alive,
            ready=supervisor.state == "live" and not self.clients.is_draining,
            state=supervisor.state,
            draining=self.clients.is_draining,
            generation=supervisor.generation,
            round_trip_seconds=supervisor.probe.round_trip_seconds,
            probed_seconds_ago=_since(supervisor.probe.last_reply_at, now),
            gaps=hub.gaps.reported,
            last_gap_seconds_ago=_since(hub.gaps.last_reported_at, now),
            last_gap_reason=hub.gaps.last_reason,
            channels=len(hub.channels) + len(hub.patterns.subscribed) - (0 if self._bus is None else self._bus.topics),
            connections=len(self.clients),
            handed_over=self.clients.handed_over,
            closing=len(self.policy.turns) + self.clients.retiring,
            subscriptions=len(self.subscriptions),
            slow_subscribers=self.waiting.subscribers,
            waiting_messages=self.waiting.messages,
            waiting_bytes=self.waiting.size_bytes,
            fan_outs=hub.under_way,
            resting_channels=hub.resting,
            longest_stall_seconds=self.stalls.longest_seconds,
            buffered=len(self._publisher),
            channels_in_doubt=hub.in_doubt,
            presence_lag_seconds=0.0 if self.cluster is None else self.cluster.presence_lag_seconds,
        )

    def _state_changed(self, change: StateChange) -> None:
        self.state_changed_at = self.affinity.loop.time()
        if self.cluster is not None:
            self.cluster.link_changed(change.new)
        if self._on_state is not None:
            self._on_state(change)

    def _make_bus(self) -> ClusterBus:
        if self._bus is None:
            self._bus = ClusterBus(
                self.hub,
                WaitingPublisher(self.supervisor.attempts).publish,  # what waits too long is of no use any more
                origin=self.origin,
                wire_format=self.wire_format,
                max_payload_bytes=lambda: self.supervisor.max_payload_bytes,
                journal=self.journal,
                signer=self._signer,
            )
        return self._bus

    def _end_subscriptions(self) -> None:
        for subscription in list(self.subscriptions):
            subscription.end()


def _since(moment: float | None, now: float) -> float | None:
    return None if moment is None else now - moment


def _is_legal(channel: str) -> bool:
    try:
        validate_channel(channel)
    except InvalidChannelError:
        return False
    return True
