"""Workers that publish and receive numbered messages under a fault, and a record of what each of them saw."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeVar

from backplane import (
    Backlog,
    Backplane,
    BrokerUnavailableError,
    Gap,
    PublishError,
    PublishOutcomeUnknownError,
    Settings,
)
from tests.chaos.checker import GAP, CheckResult, check
from tests.chaos.delay import Delay

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from backplane import History, StateChange
    from tests.chaos.checker import Event, Outcome

__all__ = ["CHANNELS", "GREETING", "QUICK", "Participant", "Workload", "running", "running_workload", "watched_loop"]

CHANNELS: Final = ("red", "green", "blue")
GREETING: Final = "hello"
QUICK: Final = Settings(
    probe_interval_seconds=0.5, max_backoff_seconds=1.0, publish_timeout_seconds=0.5, linger_seconds=0.05
)
_TIMEOUT_SECONDS: Final = 40.0
_BURST: Final = 2
_PAUSE_SECONDS: Final = 0.02
_BACKLOG_BYTES: Final = 256 * 1024 * 1024
_BACKLOG_MESSAGES: Final = 1_000_000


class Participant:
    """One worker: publishes numbered messages, receives those of all, and records both.

    Attributes:
        outcomes: For each channel the outcome of each publish, by number.
        seen: For each channel messages and gaps in the order of arrival.
        degraded_at: When its link was lost, each time, by the event loop's clock.
        links: How many links were attempted, the present one included.
        greeted: From which publisher, and on which channel, a greeting has arrived.
        pattern: What it subscribes to in place of its channels, where it is set.
    """

    def __init__(
        self,
        name: str,
        url: str,
        settings: Settings,
        channels: Sequence[str] = CHANNELS,
        history: Mapping[str, History] | None = None,
    ) -> None:
        self.name = name
        self.backplane = Backplane(url, settings=settings, history=history)
        self.outcomes: dict[str, list[Outcome]] = {channel: [] for channel in channels}
        self.seen: dict[str, list[Event]] = {channel: [] for channel in channels}
        self.degraded_at: list[float] = []
        self.links = 0
        self.greeted: set[tuple[str, str]] = set()
        self.pattern = ""
        self._received = asyncio.Event()
        self.backplane.on_state(self._state_changed)

    async def receive(self, ready: asyncio.Event) -> None:
        """Receive until cancelled."""
        backlog = Backlog(max_bytes=_BACKLOG_BYTES, max_messages=_BACKLOG_MESSAGES)
        wanted = [self.pattern] if self.pattern else self.seen
        async with self.backplane.subscribe(*wanted, backlog=backlog) as messages:
            ready.set()
            async for item in messages:
                if isinstance(item, Gap):
                    for channel in self.seen if item.channel == self.pattern else [item.channel]:
                        self.seen[channel].append(GAP)
                else:
                    publisher, number, *_ = str(item.data).split()
                    if number == GREETING:
                        self.greeted.add((publisher, item.channel))
                    else:
                        self.seen[item.channel].append((publisher, int(number)))
                self._received.set()

    async def publish(self, channel: str, filler: str = "") -> Outcome:
        """Publish the next number, and record the outcome."""
        outcomes = self.outcomes[channel]
        number = len(outcomes)
        outcomes.append("unknown")
        try:
            await self.backplane.publish(channel, f"{self.name} {number} {filler}")
        except BrokerUnavailableError:
            outcomes[number] = "unavailable"
        except PublishOutcomeUnknownError:
            pass
        except PublishError:
            outcomes[number] = "refused"
        else:
            outcomes[number] = "ok"
        return outcomes[number]

    async def publish_last(self, channel: str) -> None:
        """Publish until the broker has confirmed one."""
        while await self.publish(channel) != "ok":
            await self.backplane.wait_for_state("live")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is evaluated after each item received."""
        while not condition():
            self._received.clear()
            await self._received.wait()

    def has_received(self, last: dict[str, list[tuple[str, int]]]) -> bool:
        """Whether the last messages of all publishers have arrived."""
        return all(set(numbers) <= set(self.seen[channel][-1000:]) for channel, numbers in last.items())

    def _state_changed(self, change: StateChange) -> None:
        self.links = change.generation
        if change.new == "degraded":
            self.degraded_at.append(asyncio.get_running_loop().time())


class Workload:
    """Two participants that publish and three that subscribe; some use the broken link, the others bypass it.

    Args:
        near: URL through the fault.
        far: URL that bypasses it; the same where all use it.
        settings: Of all participants.
        lossless: Whether the adapter promises to lose nothing.
        channels: What they publish to and subscribe to.
        history: The rules of all participants.

    Attributes:
        delay: By how much the machine has delayed it.
    """

    def __init__(
        self,
        near: str,
        far: str,
        settings: Settings,
        *,
        lossless: bool,
        channels: Sequence[str] = CHANNELS,
        history: Mapping[str, History] | None = None,
    ) -> None:
        self.channels = channels
        self.near = [Participant(name, near, settings, channels, history) for name in "ac"]
        beside = [Participant(name, far, settings, channels, history) for name in "bd"]
        if near == far:
            self.near += beside
        self.participants = [*self.near, *(participant for participant in beside if participant not in self.near)]
        self.publishers = [self.near[0], beside[0]]
        self.subscribers = [*self.near[:2], beside[1]]
        self.settings = settings
        self.lossless = lossless
        self.delay = Delay()
        self._over = asyncio.Event()
        self._may_publish = asyncio.Event()
        self.resume()
        self._publishing: list[asyncio.Task[None]] = []

    async def detected(self, since: float, by: Sequence[Participant] | None = None) -> float:
        """Wait until all near the fault, or those in `by`, are degraded; return how long the last one took."""
        participants = self.near if by is None else by
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            for participant in participants:
                while not any(at >= since for at in participant.degraded_at):
                    await participant.backplane.wait_for_state("degraded")
        return max(min(at for at in participant.degraded_at if at >= since) for participant in participants) - since

    async def recovered(self) -> float:
        """Publish a last message of each publisher on each channel; return how long until all have received it."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            for participant in self.participants:
                await participant.backplane.wait_for_state("live")
        with suppress(TimeoutError):  # the checker reports what is missing then
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                await self.greet()
                self._over.set()
                await asyncio.gather(*self._publishing)
                await asyncio.gather(
                    *(publisher.publish_last(name) for publisher in self.publishers for name in self.channels)
                )
                last = {
                    name: [(one.name, len(one.outcomes[name]) - 1) for one in self.publishers] for name in self.channels
                }
                for subscriber in self.subscribers:
                    await subscriber.until(lambda: subscriber.has_received(last))  # noqa: B023
        return loop.time() - since

    def check(self, *, more_gaps: int = 0, may_be_unknown: bool = False) -> CheckResult:
        """Check each channel of each subscriber.

        Args:
            more_gaps: How many gaps may have been received without an outage.
            may_be_unknown: Publishes may have ended without a known outcome, without an outage.
        """
        total = CheckResult()
        for subscriber in self.subscribers:
            most = 0 if self.lossless else len(subscriber.degraded_at) + more_gaps
            for channel in self.channels:
                published = {publisher.name: publisher.outcomes[channel] for publisher in self.publishers}
                found = check(published, subscriber.seen[channel], max_gaps=most, lossless=self.lossless)
                total.faults += [f"{subscriber.name} on {channel}: {fault}" for fault in found.faults]
                total.gaps += found.gaps
                total.lost += found.lost
        for publisher in self.publishers:
            failed = {outcome for outcomes in publisher.outcomes.values() for outcome in outcomes} - {"ok"}
            if may_be_unknown:
                failed.discard("unknown")
            if failed and not publisher.degraded_at:
                total.faults.append(f"{publisher.name} had no outage and its publishes ended as {failed}")
        return total

    @property
    def failed_openings(self) -> int:
        """How many links of one participant ended before they were live; each can lose channels that were confirmed."""
        return max(participant.links - 1 - len(participant.degraded_at) for participant in self.participants)

    @property
    def unknown(self) -> int:
        """Of how many messages the outcome is unknown."""
        return sum(
            outcomes.count("unknown") for publisher in self.publishers for outcomes in publisher.outcomes.values()
        )

    async def greet(self) -> None:
        """Return when a greeting of each publisher has reached each subscriber on each channel.

        The other servers of a cluster learn of a subscription shortly after it is confirmed: a number published
        meanwhile would never arrive, and no gap would account for it.
        """
        expected = {(publisher.name, channel) for publisher in self.publishers for channel in self.channels}
        for subscriber in self.subscribers:
            subscriber.greeted.clear()
        while not all(subscriber.greeted >= expected for subscriber in self.subscribers):
            for publisher, channel in itertools.product(self.publishers, self.channels):
                with suppress(PublishError, BrokerUnavailableError):  # what has just come back can be slow
                    await publisher.backplane.publish(channel, f"{publisher.name} {GREETING}")
            await asyncio.sleep(_PAUSE_SECONDS)

    def end(self) -> None:
        """Stop publishing."""
        self.resume()
        self._over.set()

    def pause(self) -> None:
        """Publish nothing more after what is in progress."""
        self._may_publish.clear()

    def resume(self) -> None:
        """Go on publishing."""
        self._may_publish.set()

    async def start(self, group: asyncio.TaskGroup, filler: str) -> None:
        """Start publishing; return when every subscriber has received every publisher on every channel."""
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            await self.greet()
        for publisher in self.publishers:
            self._publishing += [
                group.create_task(self._publish_until_over(publisher, channel, filler)) for channel in self.channels
            ]
        first: dict[str, list[tuple[str, int]]] = {
            channel: [(publisher.name, 0) for publisher in self.publishers] for channel in self.channels
        }
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            for subscriber in self.subscribers:
                await subscriber.until(lambda: subscriber.has_received(first))  # noqa: B023

    async def _publish_until_over(self, publisher: Participant, channel: str, filler: str) -> None:
        while not self._over.is_set():
            await self._may_publish.wait()
            await asyncio.gather(*(publisher.publish(channel, filler) for _ in range(_BURST)))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), _PAUSE_SECONDS)


_Workload = TypeVar("_Workload", bound=Workload)


@asynccontextmanager
async def running_workload(
    near: str,
    far: str | None = None,
    *,
    settings: Settings = QUICK,
    lossless: bool = False,
    filler: str = "",
    pattern: str = "",
) -> AsyncGenerator[Workload]:
    """Run a workload; fail on unhandled errors of the event loop and on logged errors.

    Args:
        near: URL through the fault.
        far: URL that bypasses it. Defaults to the same.
        settings: Of all participants.
        lossless: Whether the adapter promises to lose nothing.
        filler: What makes messages larger.
        pattern: What one of the subscribers subscribes to in place of the channels.
    """
    workload = Workload(near, far or near, settings, lossless=lossless)
    workload.subscribers[-1].pattern = pattern
    async with running(workload, filler=filler):
        yield workload


@asynccontextmanager
async def running(workload: _Workload, *expected: str, filler: str = "") -> AsyncGenerator[_Workload]:
    """Run a workload, as `running_workload` does; log events that are `expected` may be errors."""
    async with watched_loop(*expected), AsyncExitStack() as stack:
        for participant in workload.participants:
            await stack.enter_async_context(participant.backplane)
        async with asyncio.TaskGroup() as group:
            receiving: list[asyncio.Task[None]] = []
            for subscriber in workload.subscribers:
                ready = asyncio.Event()
                receiving.append(group.create_task(subscriber.receive(ready)))
                await ready.wait()
            await workload.start(group, filler)
            yield workload
            workload.end()
            for task in receiving:
                task.cancel()


@asynccontextmanager
async def watched_loop(*expected: str) -> AsyncGenerator[None]:
    """Fail when a task fails whose error is not retrieved, or when what is not expected is logged as an error."""
    loop = asyncio.get_running_loop()
    errors: list[object] = []
    handler = _ErrorRecorder(errors, expected)
    loop.set_exception_handler(lambda _, context: errors.append(context))
    logging.getLogger().addHandler(handler)
    try:
        yield
        gc.collect()
        await asyncio.sleep(0)
    finally:
        logging.getLogger().removeHandler(handler)
        loop.set_exception_handler(None)
    assert errors == []


class _ErrorRecorder(logging.Handler):
    """Records what is logged as an error."""

    def __init__(self, records: list[object], expected: tuple[str, ...]) -> None:
        super().__init__(logging.ERROR)
        self._records = records
        self._expected = expected

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "backplane.event", None) not in self._expected:
            self._records.append(self.format(record))
