"""Doubles of the unit tests: a broker that does what a test says, and a subscriber that keeps what it hears."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from backplane.broadcaster import Broadcaster, BrokerUrl, Capabilities, Options
from backplane.errors import SubscribeError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Sequence

    from backplane.broadcaster import Sink
    from backplane.interest import Interest
    from backplane.message import Gap, Message

__all__ = ["ControlledBroadcaster", "Gate", "RecordingSubscriber", "following", "let_tasks_run"]


class Gate:
    """Holds whoever passes through while it is closed. Open at first."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()

    def close(self) -> None:
        """Hold everyone from now on."""
        self._open.clear()

    def open(self) -> None:
        """Let everyone through."""
        self._open.set()

    async def passage(self) -> None:
        """Return once the gate is open."""
        await self._open.wait()


class ControlledBroadcaster(Broadcaster):
    """An adapter without a broker. A call takes effect when its gate lets it through, as a broker's answer would.

    Attributes:
        calls: Every `(verb, channels)` in the order of the calls, recorded before the gate.
        channels: What the broker has subscribed.
        doubled: Channels it was asked to subscribe while they were subscribed already.
        refusals: Channels it refuses, with its words.
        subscribe_gate: Holds `subscribe`.
        unsubscribe_gate: Holds `unsubscribe`.
        error: What `subscribe` and `unsubscribe` raise once they are through the gate, if anything.
        sink: What `start` was given.
    """

    def __init__(self) -> None:
        super().__init__(BrokerUrl(scheme="controlled"), Options())
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.channels: set[str] = set()
        self.doubled: list[str] = []
        self.refusals: dict[str, str] = {}
        self.subscribe_gate = Gate()
        self.unsubscribe_gate = Gate()
        self.error: Exception | None = None
        self.sink: Sink | None = None
        self._changed = asyncio.Event()

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(brokered=False, reach="process", publish_returns="delivered", max_payload_bytes=1024)

    async def start(self, sink: Sink) -> None:
        """Take the sink."""
        self.sink = sink

    async def stop(self) -> None:
        """Forget the sink and every channel."""
        self.sink = None
        self.channels.clear()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Deliver at once."""
        if self.sink is not None and channel in self.channels:
            self.sink.deliver(channel, payload)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe to what is not refused, behind the gate."""
        await self._called("subscribe", channels, self.subscribe_gate)
        self.doubled += [channel for channel in channels if channel in self.channels]
        refused = {channel: self.refusals[channel] for channel in channels if channel in self.refusals}
        self.channels.update(channel for channel in channels if channel not in refused)
        self._changed.set()
        if refused:
            raise SubscribeError(refused, adapter="controlled")

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Drop `channels`, behind the gate."""
        await self._called("unsubscribe", channels, self.unsubscribe_gate)
        self.channels.difference_update(channels)
        self._changed.set()

    async def _called(self, verb: str, channels: Collection[str], gate: Gate) -> None:
        self.calls.append((verb, tuple(channels)))
        self._changed.set()
        await gate.passage()
        if self.error is not None:
            raise self.error

    async def until(self, condition: Callable[[], bool], *, timeout_seconds: float = 10.0) -> None:
        """Wait until `condition` holds; it is looked at after every call and every effect.

        Raises:
            TimeoutError: It did not hold in time; the message shows the calls.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(f"calls {self.calls}, subscribed {self.channels}") from None


class RecordingSubscriber:
    """A local subscriber that keeps what it hears.

    Attributes:
        token: What a publisher names to leave it out.
        heard: Every message's data and every `Gap`, in order.
        offers: The data of each call of `offer`.
    """

    def __init__(self) -> None:
        self.token = secrets.token_bytes(8)
        self.heard: list[str | bytes | Gap] = []
        self.offers: list[list[str | bytes]] = []

    def offer(self, messages: Sequence[Message]) -> None:
        """Keep messages."""
        self.offers.append([message.data for message in messages])
        self.heard += [message.data for message in messages]

    def gap(self, gap: Gap) -> None:
        """Keep a gap."""
        self.heard.append(gap)


@asynccontextmanager
async def following(interest: Interest, broadcaster: Broadcaster) -> AsyncGenerator[asyncio.Task[None]]:
    """Run `interest.follow`, and close `interest` behind it, as the supervisor does."""
    task = asyncio.create_task(interest.follow(broadcaster))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        interest.close()


async def let_tasks_run(passes: int = 10) -> None:
    """Give every ready task some passes of the event loop; no time goes by."""
    for _ in range(passes):
        await asyncio.sleep(0)
