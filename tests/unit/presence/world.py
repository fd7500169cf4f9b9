"""One worker's presence with I/O, on a bus that a test answers for, and another worker whose messages a test sends."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from backplane.cluster.topics import WORKERS, presence_of
from backplane.presence.agent import PresenceAgent
from backplane.presence.attendance import Attendance
from backplane.presence.frames import PresenceFrames
from backplane.presence.times import PresenceTimes
from backplane.presence_types import Presence, PresenceRules, Who
from tests.unit.kit import WAIT_SECONDS, new_hub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backplane.cluster.bus import TopicReceiver
    from backplane.presence.contract import ViewEvent

__all__ = ["OTHER", "ROOM", "Bus", "Events", "Pages", "World"]

ROOM = "room:1"
OTHER = "b" * 16

# A worker that is answered by none is sure after 0.02 s.
_TIMES = PresenceTimes(heartbeat=60.0, down_after=600.0, flush=0.001, responder=0.01, everyone=0.01, spread=0.001)


class Bus:
    """Takes what an agent sends, and confirms what it subscribes to.

    Attributes:
        worker: The worker's name.
        sent: The topic and the fields of each message, in order.
        failed: What is to be called for each of them where it was not sent.
        topics: What is subscribed, each with what is to be called when it is confirmed.
        confirms: Whether it is confirmed at once.
    """

    def __init__(self) -> None:
        self.worker = "a" * 16
        self.sent: list[tuple[str, list[Any]]] = []
        self.failed: list[Callable[[], None] | None] = []
        self.topics: dict[str, Callable[[], None]] = {}
        self.confirms = True

    def subscribe_soon(self, topic: str, _: TopicReceiver, confirmed: Callable[[], None]) -> None:
        """Subscribe."""
        self.topics[topic] = confirmed
        if self.confirms:
            asyncio.get_running_loop().call_soon(confirmed)

    def unsubscribe(self, topic: str, _: TopicReceiver) -> None:
        """Unsubscribe."""
        del self.topics[topic]

    def send_soon(self, topic: str, text: str, failed: Callable[[], None] | None = None) -> None:
        """Send."""
        self.sent.append((topic, json.loads(text)))
        self.failed.append(failed)

    def confirm(self) -> None:
        """Confirm what is subscribed, and what will be."""
        self.confirms = True
        for confirmed in tuple(self.topics.values()):
            confirmed()

    def kinds(self, topic: str) -> list[str]:
        """Return the kinds of what was sent on a topic, in order."""
        return [fields[0] for on, fields in self.sent if on == topic]


class Events:
    """An observer that keeps the events of a view."""

    def __init__(self) -> None:
        self.events: list[ViewEvent] = []

    def view_changed(self, _: str, events: list[ViewEvent], /) -> None:
        """Keep events."""
        self.events += events

    @property
    def kinds(self) -> list[str]:
        """What happened, in order."""
        return [event.kind for event in self.events]


class World:
    """The presence of one worker.

    Args:
        rule: The rule of `room:*`.
        observes: As of the agent.
    """

    def __init__(self, rule: Presence | None = None, *, observes: bool = False) -> None:
        self.rule = rule or Presence(grace_seconds=0)
        self.rules = PresenceRules({"room:*": self.rule})
        self.bus = Bus()
        self.worker_changes = 0
        _, self.hub = new_hub()
        bus: Any = self.bus
        self.agent = PresenceAgent(
            bus,
            times=_TIMES,
            describe=dict,
            rule_of=lambda _: self.rule,
            observes=observes,
            workers_changed=self._workers_changed,
        )
        self.frames = PresenceFrames(self.agent, self.hub)
        self._versions: dict[str, int] = {}

    def _workers_changed(self) -> None:
        self.worker_changes += 1

    def attendance(self, who: Who | None = None) -> Attendance:
        """Return what a client has of presence."""
        return Attendance(self.agent, self.frames, self.rules, who)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is looked at whenever the agent did something."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                await self.agent.passed()

    async def known(self, channel: str = ROOM) -> None:
        """Wait until the view of an observed channel is complete."""
        await self.until(lambda: not self.agent.head(channel).stale)

    def other_has(
        self, entries: Mapping[str, tuple[str, object]] | int, channel: str = ROOM, owner: str = OTHER
    ) -> None:
        """Let another worker state what it has in a channel: user and info by connection, or a number."""
        version = self._versions[channel + owner] = self._versions.get(channel + owner, 0) + 1
        stated: Any = entries
        if not isinstance(entries, int):
            stated = {name: [user, json.dumps(info), version] for name, (user, info) in entries.items()}
        self.receive(channel, "snap", owner, version, stated)

    def receive(self, channel: str, *fields: object) -> None:
        """Receive a message on the topic of a channel."""
        self.agent.received(presence_of(channel), json.dumps(fields))

    def other_ends(self, number: int = 1_000) -> None:
        """Let the other worker end in order."""
        self.agent.received(WORKERS, json.dumps(["bye", OTHER, number]))

    def users(self, channel: str = ROOM) -> list[str]:
        """Return the users of an observed channel."""
        return sorted(self.agent.view(channel).users or ())


class Pages:
    """A client of the hub that keeps the presence it is sent, parsed.

    Attributes:
        token: As of any subscriber.
        frames: What was sent, in order.
    """

    def __init__(self, token: bytes = b"client-1") -> None:
        self.token = token
        self.frames: list[dict[str, Any]] = []
        self.offers = 0

    def offer(self, batch: list[Any], /) -> None:
        """Keep frames."""
        self.offers += 1
        for message in batch:
            frame = json.loads(message.data)
            assert list(frame) == ["channel", "presence"]
            self.frames.append(frame["presence"])

    def gap(self, _: object, /) -> None:
        """Have no channel that can have one."""

    joined = offer_missed = gap
