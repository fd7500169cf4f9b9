"""The application blocks its own event loop while others publish without pause."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.chaos.workload import CHANNELS, QUICK, Participant, running_workload

if TYPE_CHECKING:
    from tests.chaos.case_table import CaseRecorder
    from tests.chaos.target import FaultTarget

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

_BLOCKED_SECONDS = 3.0
_PAUSE_SECONDS = 0.002


class OtherLoop(threading.Thread):
    """Publishes from an event loop of its own, which is not blocked.

    Attributes:
        participant: What publishes there.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.participant = Participant("other-loop", url, QUICK)
        self.over = threading.Event()

    def run(self) -> None:
        """Publish until it is over, and once more after that."""
        asyncio.run(self._publish())

    async def _publish(self) -> None:
        async with self.participant.backplane:
            while not self.over.is_set():
                await asyncio.gather(*(self.participant.publish(channel) for channel in CHANNELS))
                await asyncio.sleep(_PAUSE_SECONDS)
            await asyncio.gather(*(self.participant.publish_last(channel) for channel in CHANNELS))


async def test_an_event_loop_that_is_blocked_under_load(target: FaultTarget, record_case: CaseRecorder) -> None:
    """After three seconds in which a worker was blocked, everything has arrived, or a gap accounts for the loss."""
    async with running_workload(target.url, lossless=target.lossless) as workload:
        other_loop = OtherLoop(target.url)
        workload.publishers.append(other_loop.participant)
        other_loop.start()
        subscriber = workload.subscribers[0]
        await subscriber.until(lambda: ("other-loop", 0) in subscriber.seen[CHANNELS[0]])
        time.sleep(_BLOCKED_SECONDS)  # the fault
        workload.publishers.remove(other_loop.participant)
        recovered = await workload.recovered()
        other_loop.over.set()
        await asyncio.to_thread(other_loop.join)
        workload.publishers.append(other_loop.participant)
        last = {channel: [("other-loop", len(other_loop.participant.outcomes[channel]) - 1)] for channel in CHANNELS}
        for subscriber in workload.subscribers:
            await subscriber.until(lambda: subscriber.has_received(last))  # noqa: B023
    record_case(f"event loop blocked for {_BLOCKED_SECONDS:g} s", target.name, workload, recovered=recovered)
