"""A worker as the unit tests need it, wired as `Runtime` wires it: a hub over a broker that a test controls.

`World` is the hub with its broker subscriptions; the test opens and loses its link. `SupervisedWorld` has a supervisor
that opens the link, `RuntimeWorld` a whole `Runtime`. The worlds of single test modules derive from these.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from backplane.broker.publisher import WaitingPublisher
from backplane.broker.supervisor import Supervisor
from backplane.fanout.broker_subscriptions import BrokerSubscriptions
from backplane.fanout.hub import Hub
from backplane.fanout.traffic import Traffic
from backplane.history.histories import Histories
from backplane.journal.journal import Journal
from backplane.message import ALL, Gap
from backplane.settings import Settings
from backplane.statistics import Counters
from backplane.worker.runtime import Runtime
from tests.unit.controlled_adapter import Adapter
from tests.unit.doubles import ControlledBroadcaster, RecordingSubscriber

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    import pytest

    from backplane.broker.link_state import LinkState, StateChange
    from backplane.history_rules import HistoryRules

__all__ = [
    "AT_ONCE",
    "BRISK_PROBE",
    "NEVER",
    "ORIGIN",
    "PROBE_CHANNEL",
    "SETTINGS",
    "WAIT_SECONDS",
    "RuntimeWorld",
    "SupervisedWorld",
    "World",
    "counts",
    "crowd",
    "end_tasks",
    "interrupting_a_spin",
    "lost",
    "new_hub",
    "running",
    "supervised",
    "warnings_of",
]

WAIT_SECONDS = 60.0
# Over before the next pass of the event loop but one, and longer than any test.
AT_ONCE = 1e-9
NEVER = 3_600.0
ORIGIN = bytes(8)
PROBE_CHANNEL = "$backplane/probe/0000000000000000"
# Back-off as short as it gets, and nothing else that ends by itself within a test.
SETTINGS = Settings(
    start_timeout_seconds=60,
    publish_timeout_seconds=60,
    subscribe_timeout_seconds=60,
    linger_seconds=60,
    probe_interval_seconds=60,
    max_backoff_seconds=0.001,
)
BRISK_PROBE = replace(SETTINGS, probe_interval_seconds=0.1)


def new_hub(
    *,
    linger_seconds: float = NEVER,
    timeout_seconds: float = 60.0,
    batch_size: int = 500,
    slice_size: int = 200,
    pass_seconds: float = 0.005,
    most_rest_seconds: float = 0.0,
) -> tuple[BrokerSubscriptions, Hub]:
    """Return a hub after its broker subscriptions, which by default drop no channel within a test."""
    broker_subscriptions = BrokerSubscriptions(
        linger_seconds=linger_seconds, timeout_seconds=timeout_seconds, batch_size=batch_size
    )
    return broker_subscriptions, Hub(
        broker_subscriptions,
        traffic=Traffic(ORIGIN),
        slice_size=slice_size,
        pass_seconds=pass_seconds,
        most_rest_seconds=most_rest_seconds,
    )


class World:
    """A hub over a link that a test opens and loses."""

    def __init__(
        self, broker_subscriptions: BrokerSubscriptions, hub: Hub, adapter: ControlledBroadcaster | None = None
    ) -> None:
        self.broker_subscriptions = broker_subscriptions
        self.hub = hub
        self._adapter = adapter or ControlledBroadcaster()
        self._link: asyncio.Task[None] | None = None

    @property
    def adapter(self) -> ControlledBroadcaster:
        """The broker that the test controls."""
        return self._adapter

    async def joined(self, *channels: str) -> RecordingSubscriber:
        """Return a subscriber that has joined `channels`."""
        subscriber = RecordingSubscriber()
        async with asyncio.timeout(WAIT_SECONDS):
            for channel in channels:
                await self.hub.join(channel, subscriber)
        return subscriber

    def deliver(self, channel: str, *payloads: str) -> None:
        """Let the broker deliver foreign texts, all in one pass of the event loop."""
        for payload in payloads:
            self.hub.deliver(channel, payload.encode())

    def open_link(self) -> None:
        """Open a link: every wanted channel is subscribed, and then what is wanted from then on."""
        self._link = asyncio.create_task(self._follow())

    async def lose_link(self, reason: str = "the link was lost") -> None:
        """Lose the link, and with it what the broker had subscribed."""
        await self._end_link()
        self.hub.open_gap(ALL, reason)
        self.broker_subscriptions.forget_link()
        self.adapter.channels.clear()

    @asynccontextmanager
    async def linked(self) -> AsyncGenerator[None]:
        """Open the link, and end all of it after the block."""
        self.open_link()
        try:
            yield
        finally:
            await self._end_link()
            self.broker_subscriptions.close()
            self.hub.close()

    async def _end_link(self) -> None:
        if self._link is not None:
            self._link.cancel()
            await asyncio.wait([self._link])

    async def _follow(self) -> None:
        await self.broker_subscriptions.subscribe_all(self.adapter)
        await self.broker_subscriptions.run(self.adapter)


class RuntimeWorld(World):
    """The parts of a started backplane over a link that a test opens."""

    def __init__(self) -> None:
        adapter = ControlledBroadcaster()
        self.runtime = Runtime(adapter, Settings())
        super().__init__(self.runtime.broker_subscriptions, self.runtime.hub, adapter)


class SupervisedWorld(World):
    """A hub whose link a supervisor opens, watches and opens again. It is not started yet.

    With `rules` it is a hub with histories. `supervisor_seconds` are the times that the supervisor takes beside the
    settings.
    """

    def __init__(
        self,
        adapter: Adapter | None = None,
        settings: Settings = SETTINGS,
        on_state: Callable[[StateChange], None] | None = None,
        *,
        batch_size: int = 500,
        rules: HistoryRules | None = None,
        **supervisor_seconds: float,
    ) -> None:
        self._link_adapter = adapter or Adapter()
        broker_subscriptions, hub = new_hub(
            linger_seconds=settings.linger_seconds,
            timeout_seconds=settings.subscribe_timeout_seconds,
            batch_size=batch_size,
        )
        self.statistics = Counters()
        histories: Histories | None = None
        if rules is not None:
            histories = Histories(
                self._link_adapter,
                rules,
                broker_subscriptions,
                settings=settings,
                statistics=self.statistics,
                journal=Journal(),
            )
            hub = histories.hub
        super().__init__(broker_subscriptions, hub, self._link_adapter)
        self.supervisor = Supervisor(
            self.adapter,
            hub,
            broker_subscriptions,
            prefixes=None,
            origin=ORIGIN,
            settings=settings,
            on_state=on_state,
            prepare=None if histories is None else histories.prepare,
            link_tasks=() if histories is None else histories.link_tasks,
            journal=Journal(),
            **supervisor_seconds,
        )
        self.publisher = WaitingPublisher(self.supervisor.attempts)

    @property
    def adapter(self) -> Adapter:
        """The broker that the test controls, with its link."""
        return self._link_adapter

    async def reaches(self, state: LinkState, *, generation: int = 0) -> None:
        """Wait for `state` on a link of at least `generation`."""
        async with asyncio.timeout(WAIT_SECONDS):
            while self.supervisor.state != state or self.supervisor.generation < generation:
                await self.supervisor.state_changed()

    async def degrade(self) -> None:
        """Lose the link, and hold it down at the adapter's next start."""
        self.adapter.start_gate.close()
        self.adapter.cut()
        tries = self.adapter.verbs.count("start")
        await self.adapter.until(lambda: self.adapter.verbs.count("start") > tries)

    async def recover(self) -> None:
        """Lose the link and get it back."""
        generation = self.supervisor.generation
        self.adapter.cut()
        await self.reaches("live", generation=generation + 1)


@asynccontextmanager
async def running(
    adapter: ControlledBroadcaster | None = None,
    *,
    linger_seconds: float = NEVER,
    timeout_seconds: float = 60.0,
    slice_size: int = 200,
    pass_seconds: float = 0.005,
    most_rest_seconds: float = 0.0,
) -> AsyncGenerator[World]:
    """Run a hub with its link open."""
    parts = new_hub(
        linger_seconds=linger_seconds,
        timeout_seconds=timeout_seconds,
        slice_size=slice_size,
        pass_seconds=pass_seconds,
        most_rest_seconds=most_rest_seconds,
    )
    made = World(*parts, adapter)
    async with made.linked():
        yield made


@asynccontextmanager
async def supervised(
    adapter: Adapter | None = None,
    settings: Settings = SETTINGS,
    on_state: Callable[[StateChange], None] | None = None,
    *,
    batch_size: int = 500,
    rules: HistoryRules | None = None,
    **supervisor_seconds: float,
) -> AsyncGenerator[SupervisedWorld]:
    """Run a supervisor; a test that fails leaves no task either."""
    before = asyncio.all_tasks()
    made = SupervisedWorld(adapter, settings, on_state, batch_size=batch_size, rules=rules, **supervisor_seconds)
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            await made.supervisor.start()
        yield made
        async with asyncio.timeout(WAIT_SECONDS):
            await made.supervisor.stop()
    finally:
        made.broker_subscriptions.close()
        made.hub.close()
        await end_tasks(asyncio.all_tasks() - before)


def lost(channel: str = "a", reason: str = "the link was lost") -> Gap:
    """Return the gap of a lost link."""
    return Gap(channel=channel, reason=reason)


async def crowd(worker: World, channel: str, size: int) -> list[RecordingSubscriber]:
    """Return `size` subscribers of a channel."""
    return [await worker.joined(channel) for _ in range(size)]


def counts(*crowds: list[RecordingSubscriber]) -> tuple[int, ...]:
    """Return how many of each crowd have received something."""
    return tuple(sum(bool(subscriber.received) for subscriber in subscribers) for subscribers in crowds)


async def end_tasks(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel `tasks` until they end, for the sake of a test that failed."""
    async with asyncio.timeout(WAIT_SECONDS):
        while pending := {task for task in tasks if not task.done()}:
            for task in pending:
                task.cancel()
            await asyncio.sleep(0)


def warnings_of(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """Return what was logged at `level` or above."""
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


@contextmanager
def interrupting_a_spin(seconds: float = 3.0) -> Generator[None]:
    """Raise inside whatever keeps the event loop from turning: such a test would never end otherwise."""

    def interrupt(*_: object) -> None:
        raise RuntimeError("the event loop stood still")

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
