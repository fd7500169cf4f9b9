"""Some workers that talk while their broker, or the way to it, is broken: what each said, heard and saw."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from backplane import (
    Backlog,
    Backplane,
    BrokerUnavailableError,
    Gap,
    PublishError,
    PublishOutcomeUnknownError,
    Settings,
)
from tests.chaos.checker import GAP, Verdict, check

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from backplane import StateChange
    from tests.chaos.checker import Event, Outcome

__all__ = ["CHANNELS", "GREETING", "QUICK", "Crew", "Member", "talking", "watched_loop"]

CHANNELS: Final = ("red", "green", "blue")
GREETING: Final = "hello"
QUICK: Final = Settings(
    probe_interval_seconds=0.5, max_backoff_seconds=1.0, publish_timeout_seconds=0.5, linger_seconds=0.05
)
_PATIENCE_SECONDS: Final = 20.0
_BURST: Final = 2
_BREATH_SECONDS: Final = 0.02
_ROOM_BYTES: Final = 256 * 1024 * 1024
_ROOM_MESSAGES: Final = 1_000_000


class Member:
    """One worker: says numbered messages, hears those of all, and keeps both.

    Attributes:
        outcomes: For each channel what it was told of each message, by number.
        seen: For each channel messages and gaps as they came.
        degraded_at: When its link was lost, each time, by the event loop's clock.
        links: How many links were tried, the present one included.
        greeted: From whom, and on which channel, a greeting has come: before the first number.
    """

    def __init__(self, name: str, url: str, settings: Settings) -> None:
        self.name = name
        self.backplane = Backplane(url, settings=settings)
        self.outcomes: dict[str, list[Outcome]] = {channel: [] for channel in CHANNELS}
        self.seen: dict[str, list[Event]] = {channel: [] for channel in CHANNELS}
        self.degraded_at: list[float] = []
        self.links = 0
        self.greeted: set[tuple[str, str]] = set()
        self._heard = asyncio.Event()
        self.backplane.on_state(self._state_changed)

    async def listen(self, ready: asyncio.Event) -> None:
        """Hear until cancelled."""
        backlog = Backlog(max_bytes=_ROOM_BYTES, max_messages=_ROOM_MESSAGES)
        async with self.backplane.subscribe(*CHANNELS, backlog=backlog) as messages:
            ready.set()
            async for item in messages:
                if isinstance(item, Gap):
                    self.seen[item.channel].append(GAP)
                else:
                    speaker, number, *_ = str(item.data).split()
                    if number == GREETING:
                        self.greeted.add((speaker, item.channel))
                    else:
                        self.seen[item.channel].append((speaker, int(number)))
                self._heard.set()

    async def say(self, channel: str, filler: str = "") -> Outcome:
        """Publish the next number, and keep what came of it."""
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

    async def say_last(self, channel: str) -> None:
        """Publish until the broker has one."""
        while await self.say(channel) != "ok":
            await self.backplane.wait_for_state("live")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is looked at after everything heard."""
        while not condition():
            self._heard.clear()
            await self._heard.wait()

    def has_heard(self, last: dict[str, list[tuple[str, int]]]) -> bool:
        """Whether the last messages of all speakers have come."""
        return all(set(numbers) <= set(self.seen[channel][-1000:]) for channel, numbers in last.items())

    def _state_changed(self, change: StateChange) -> None:
        self.links = change.generation
        if change.new == "degraded":
            self.degraded_at.append(asyncio.get_running_loop().time())


class Crew:
    """Two members who speak and three who listen; those near stand behind what is broken, the others beside it.

    Args:
        near: URL through the fault.
        far: URL past it; the same where nobody is past it.
        settings: Of all.
        lossless: Whether the adapter promises to lose nothing.
    """

    def __init__(self, near: str, far: str, settings: Settings, *, lossless: bool) -> None:
        self.near = [Member("a", near, settings), Member("c", near, settings)]
        beside = [Member("b", far, settings), Member("d", far, settings)]
        if near == far:
            self.near += beside
        self.members = [*self.near, *(member for member in beside if member not in self.near)]
        self.speakers = [self.near[0], beside[0]]
        self.listeners = [*self.near[:2], beside[1]]
        self.settings = settings
        self.lossless = lossless
        self._over = asyncio.Event()
        self._talks: list[asyncio.Task[None]] = []

    async def detected(self, since: float, by: Sequence[Member] | None = None) -> float:
        """Wait until every member near the fault, or `by` those, has found it; return how long the last one took."""
        members = self.near if by is None else by
        async with asyncio.timeout(_PATIENCE_SECONDS):
            for member in members:
                while not any(at >= since for at in member.degraded_at):
                    await member.backplane.wait_for_state("degraded")
        return max(min(at for at in member.degraded_at if at >= since) for member in members) - since

    async def recovered(self) -> float:
        """End the talk with a last message of each speaker on each channel; return how long until all have heard it."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            for member in self.members:
                await member.backplane.wait_for_state("live")
        with suppress(TimeoutError):  # who is deaf then is found by the checker
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self.greet()
                self._over.set()
                await asyncio.gather(*self._talks)
                await asyncio.gather(*(speaker.say_last(name) for speaker in self.speakers for name in CHANNELS))
                last = {name: [(who.name, len(who.outcomes[name]) - 1) for who in self.speakers] for name in CHANNELS}
                for listener in self.listeners:
                    await listener.until(lambda: listener.has_heard(last))  # noqa: B023
        return loop.time() - since

    def verdict(self, *, more_gaps: int = 0) -> Verdict:
        """Let the checker judge every listener's every channel; `more_gaps` of them may have come without an outage."""
        whole = Verdict()
        for listener in self.listeners:
            most = 0 if self.lossless else len(listener.degraded_at) + more_gaps
            for channel in CHANNELS:
                published = {speaker.name: speaker.outcomes[channel] for speaker in self.speakers}
                found = check(published, listener.seen[channel], max_gaps=most, lossless=self.lossless)
                whole.faults += [f"{listener.name} on {channel}: {fault}" for fault in found.faults]
                whole.gaps += found.gaps
                whole.lost += found.lost
        for speaker in self.speakers:
            told = {outcome for outcomes in speaker.outcomes.values() for outcome in outcomes} - {"ok"}
            if told and not speaker.degraded_at:
                whole.faults.append(f"{speaker.name} had no outage and was told {told}")
        return whole

    @property
    def failed_openings(self) -> int:
        """How many links of one member ended before they were live; each can end channels that it had confirmed."""
        return max(member.links - 1 - len(member.degraded_at) for member in self.members)

    @property
    def unknown(self) -> int:
        """Of how many messages nobody knows whether they were published."""
        return sum(outcomes.count("unknown") for speaker in self.speakers for outcomes in speaker.outcomes.values())

    async def greet(self) -> None:
        """Return when a greeting of each speaker has reached each listener on each channel.

        Servers of a cluster know of a join a moment after it is confirmed: a number that was published meanwhile would
        never arrive, and no gap would account for it.
        """
        expected = {(speaker.name, channel) for speaker in self.speakers for channel in CHANNELS}
        for listener in self.listeners:
            listener.greeted.clear()
        while not all(listener.greeted >= expected for listener in self.listeners):
            for speaker, channel in itertools.product(self.speakers, CHANNELS):
                with suppress(PublishError):
                    await speaker.backplane.publish(channel, f"{speaker.name} {GREETING}")
            await asyncio.sleep(_BREATH_SECONDS)

    def end(self) -> None:
        """End the talk, however far it has come."""
        self._over.set()

    async def talk(self, group: asyncio.TaskGroup, filler: str) -> None:
        """Begin: returns when every listener has heard every speaker on every channel."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await self.greet()
        for speaker in self.speakers:
            self._talks += [group.create_task(self._talk(speaker, channel, filler)) for channel in CHANNELS]
        first: dict[str, list[tuple[str, int]]] = {
            channel: [(speaker.name, 0) for speaker in self.speakers] for channel in CHANNELS
        }
        async with asyncio.timeout(_PATIENCE_SECONDS):
            for listener in self.listeners:
                await listener.until(lambda: listener.has_heard(first))  # noqa: B023

    async def _talk(self, speaker: Member, channel: str, filler: str) -> None:
        while not self._over.is_set():
            await asyncio.gather(*(speaker.say(channel, filler) for _ in range(_BURST)))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), _BREATH_SECONDS)


@asynccontextmanager
async def talking(
    near: str, far: str | None = None, *, settings: Settings = QUICK, lossless: bool = False, filler: str = ""
) -> AsyncGenerator[Crew]:
    """A crew in the middle of its talk; nothing that goes wrong unseen in the event loop stays unseen."""
    async with watched_loop(), AsyncExitStack() as stack:
        crew = Crew(near, far or near, settings, lossless=lossless)
        for member in crew.members:
            await stack.enter_async_context(member.backplane)
        async with asyncio.TaskGroup() as group:
            listening: list[asyncio.Task[None]] = []
            for listener in crew.listeners:
                ready = asyncio.Event()
                listening.append(group.create_task(listener.listen(ready)))
                await ready.wait()
            await crew.talk(group, filler)
            yield crew
            crew.end()
            for task in listening:
                task.cancel()


@asynccontextmanager
async def watched_loop() -> AsyncGenerator[None]:
    """Fail when a task dies that nobody looks at, or when something is logged as an error."""
    loop = asyncio.get_running_loop()
    unseen: list[object] = []
    keeper = _Keeper(unseen)
    loop.set_exception_handler(lambda _, context: unseen.append(context))
    logging.getLogger().addHandler(keeper)
    try:
        yield
        gc.collect()
        await asyncio.sleep(0)
    finally:
        logging.getLogger().removeHandler(keeper)
        loop.set_exception_handler(None)
    assert unseen == []


class _Keeper(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self, kept: list[object]) -> None:
        super().__init__(logging.ERROR)
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(self.format(record))
