"""A supervisor over an adapter whose link a test opens, cuts and silences: for every test of what a link does."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from backplane.broadcaster import Capabilities
from backplane.broker.publisher import WaitingPublisher
from backplane.broker.supervisor import Supervisor
from backplane.errors import BrokerUnavailableError
from backplane.fanout.broker_subscriptions import BrokerSubscriptions
from backplane.fanout.hub import Hub
from backplane.settings import Settings
from tests.unit.doubles import ControlledBroadcaster, Gate, RecordingSubscriber

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Generator

    import pytest

    from backplane.broadcaster import Sink
    from backplane.broker.link_state import LinkState, StateChange

__all__ = [
    "BRISK_PROBE",
    "ORIGIN",
    "PROBE_CHANNEL",
    "SETTINGS",
    "WAIT_SECONDS",
    "Adapter",
    "World",
    "end_tasks",
    "interrupting_a_spin",
    "supervised",
    "warnings_of",
    "world",
]

WAIT_SECONDS = 5.0
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


class Adapter(ControlledBroadcaster):
    """An adapter whose link the test opens, cuts and silences.

    Attributes:
        links: The sink of every `start` that succeeded.
        start_gate, stop_gate, publish_gate: Hold these calls.
        start_errors: What the next tries to start raise, one each.
        start_error: What every try to start raises, if anything.
        stop_error: What `stop` raises, if anything.
        publish_gates: Hold the next publishes, one each.
        publish_errors: What `publish` raises, by channel.
        silent: Whether a publish is accepted and nothing comes back.
        cancel_gate: Holds a `subscribe` that is cancelled, as a client library's cleanup would.
        cancel_error: What a cancelled `subscribe` raises instead, if anything.
        published: Every payload that was accepted.
    """

    def __init__(self, *, brokered: bool = False, resumes: bool = False) -> None:
        super().__init__()
        self._brokered = brokered
        self._resumes = resumes
        self.links: list[Sink] = []
        self.start_gate = Gate()
        self.stop_gate = Gate()
        self.publish_gate = Gate()
        self.publish_gates: list[Gate] = []
        self.cancel_gate = Gate()
        self.start_errors: list[Exception] = []
        self.start_error: Exception | None = None
        self.stop_error: Exception | None = None
        self.cancel_error: Exception | None = None
        self.publish_errors: dict[str, Exception] = {}
        self.silent = False
        self.published: list[tuple[str, bytes]] = []

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(
            brokered=self._brokered,
            reach="network",
            publish_returns="accepted",
            resumes=self._resumes,
            max_payload_bytes=1024,
        )

    @property
    def verbs(self) -> list[str]:
        """The calls so far, without their channels."""
        return [verb for verb, _ in self.calls]

    def cut(self) -> None:
        """Lose the present link."""
        self.links[-1].lost(BrokerUnavailableError("cut"))

    async def start(self, sink: Sink) -> None:
        """Open a link, or fail as the test demands."""
        self._record("start")
        await self.start_gate.passage()
        if self.start_errors:
            raise self.start_errors.pop(0)
        if self.start_error is not None:
            raise self.start_error
        self.links.append(sink)
        await super().start(sink)
        self._changed.set()

    async def stop(self) -> None:
        """Close the link, or fail as the test demands."""
        self._record("stop")
        await self.stop_gate.passage()
        if self.stop_error is not None:
            raise self.stop_error
        await super().stop()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Accept, and deliver unless silent."""
        self._record("publish", channel)
        await (self.publish_gates.pop(0) if self.publish_gates else self.publish_gate).passage()
        if channel in self.publish_errors:
            raise self.publish_errors[channel]
        self.published.append((channel, payload))
        if not self.silent:
            await super().publish(channel, payload)
        self._changed.set()

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe; once cancelled, clean up as the test demands."""
        try:
            await super().subscribe(channels)
        except asyncio.CancelledError:
            await self.cancel_gate.passage()
            if self.cancel_error is not None:
                raise self.cancel_error from None
            raise

    def _record(self, verb: str, *channels: str) -> None:
        self.calls.append((verb, channels))
        self._changed.set()


@dataclass
class World:
    """A supervisor with all that hangs on it."""

    adapter: Adapter
    broker_subscriptions: BrokerSubscriptions
    hub: Hub
    supervisor: Supervisor
    publisher: WaitingPublisher

    async def reaches(self, state: LinkState, *, generation: int = 0) -> None:
        """Wait for `state` on a link of at least `generation`."""
        async with asyncio.timeout(WAIT_SECONDS):
            while self.supervisor.state != state or self.supervisor.generation < generation:
                await self.supervisor.state_changed()

    async def joined(self, *channels: str) -> RecordingSubscriber:
        """Return a subscriber that has joined `channels`."""
        subscriber = RecordingSubscriber()
        async with asyncio.timeout(WAIT_SECONDS):
            for channel in channels:
                await self.hub.join(channel, subscriber)
        return subscriber

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


def world(
    adapter: Adapter | None = None,
    settings: Settings = SETTINGS,
    on_state: Callable[[StateChange], None] | None = None,
    *,
    batch_size: int = 500,
    **supervisor_seconds: float,
) -> World:
    """Return a supervisor that is not started; `supervisor_seconds` are the times that it takes beside the settings."""
    adapter = adapter or Adapter()
    broker_subscriptions = BrokerSubscriptions(
        linger_seconds=settings.linger_seconds,
        timeout_seconds=settings.subscribe_timeout_seconds,
        batch_size=batch_size,
    )
    hub = Hub(broker_subscriptions)
    supervisor = Supervisor(
        adapter, hub, broker_subscriptions, origin=ORIGIN, settings=settings, on_state=on_state, **supervisor_seconds
    )
    return World(adapter, broker_subscriptions, hub, supervisor, WaitingPublisher(supervisor.attempts))


@asynccontextmanager
async def supervised(
    adapter: Adapter | None = None,
    settings: Settings = SETTINGS,
    on_state: Callable[[StateChange], None] | None = None,
    *,
    batch_size: int = 500,
    **supervisor_seconds: float,
) -> AsyncGenerator[World]:
    """Run a supervisor; a test that fails leaves no task either."""
    before = asyncio.all_tasks()
    made = world(adapter, settings, on_state, batch_size=batch_size, **supervisor_seconds)
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
