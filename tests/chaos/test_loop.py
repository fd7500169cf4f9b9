"""The application blocks its own event loop while others publish without pause."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.chaos.crew import CHANNELS, QUICK, Member, talking

if TYPE_CHECKING:
    from tests.chaos.judge import Judge
    from tests.chaos.site import Site

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

_BLOCKED_SECONDS = 3.0
_PAUSE_SECONDS = 0.002


class Outsider(threading.Thread):
    """Publishes from an event loop of its own, which nobody blocks.

    Attributes:
        member: Who speaks there.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.member = Member("outsider", url, QUICK)
        self.over = threading.Event()

    def run(self) -> None:
        """Speak until it is over, and a last time behind that."""
        asyncio.run(self._speak())

    async def _speak(self) -> None:
        async with self.member.backplane:
            while not self.over.is_set():
                await asyncio.gather(*(self.member.say(channel) for channel in CHANNELS))
                await asyncio.sleep(_PAUSE_SECONDS)
            await asyncio.gather(*(self.member.say_last(channel) for channel in CHANNELS))


async def test_an_event_loop_that_is_blocked_under_a_flood(site: Site, judge: Judge) -> None:
    """After three seconds in which a worker did nothing, everything is there, or a gap says that it is not."""
    async with talking(site.url, lossless=site.lossless) as crew:
        outsider = Outsider(site.url)
        crew.speakers.append(outsider.member)
        outsider.start()
        listener = crew.listeners[0]
        await listener.until(lambda: ("outsider", 0) in listener.seen[CHANNELS[0]])
        time.sleep(_BLOCKED_SECONDS)  # the fault
        crew.speakers.remove(outsider.member)
        recovered = await crew.recovered()
        outsider.over.set()
        await asyncio.to_thread(outsider.join)
        crew.speakers.append(outsider.member)
        last = {channel: [("outsider", len(outsider.member.outcomes[channel]) - 1)] for channel in CHANNELS}
        for listener in crew.listeners:
            await listener.until(lambda: listener.has_heard(last))  # noqa: B023
    judge(f"event loop blocked for {_BLOCKED_SECONDS:g} s", site.name, crew, recovered=recovered)
