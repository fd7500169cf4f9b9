"""Presence by itself: what a received change costs, what a join costs, and the memory of an entry; without a broker."""

from __future__ import annotations

import asyncio
import gc
import random
import tracemalloc
from dataclasses import dataclass
from json import JSONDecoder
from time import process_time_ns
from typing import TYPE_CHECKING, Any, Final, cast

import uvloop

from backplane import Presence
from backplane.cluster.topics import presence_of
from backplane.presence.agent import PresenceAgent
from backplane.presence.protocol import PresenceProtocol
from backplane.presence.times import PresenceTimes
from backplane.presence.wire import Delta, Entry, Snapshot, decode, encode
from benchmarks.micro.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backplane.cluster.bus import ClusterBus
    from backplane.presence.contract import Rule, ViewEvent

__all__ = ["EntryFigures", "entries", "run"]

_ROOM: Final = "room:1"
_TOPIC: Final = presence_of(_ROOM)
_IN_ROOM: Final = 20
_REPEAT: Final = 500
_SELF: Final = "0" * 16
_OWNERS: Final = tuple(f"{number:016x}" for number in range(1, 5))
_INFO: Final = '{"name":"Ada Lovelace"}'
# Workers do not end in it, and a user leaves with the last connection: nothing waits for a timer but a flush.
_TIMES: Final = PresenceTimes(heartbeat=1e6, down_after=1e7, beacon=1e6, responder=0.01, everyone=0.01)
_RULE: Final = Presence(grace_seconds=0, max_entries=1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryFigures:
    """What an entry takes of memory, as Python counts it.

    Attributes:
        rooms: Over how many channels the entries are spread.
        entries: How many there are.
        info: Whether each has an `info` of 24 bytes of its own.
        bytes_per_entry: What the entries take, with what a channel needs to hold those of four owners.
    """

    rooms: int
    entries: int
    info: bool
    bytes_per_entry: float


def run(rounds: int) -> list[Figure]:
    """Return what one message takes, of which every other one is a join or a leave; the floor is parsing its JSON."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(rounds))


def entries(rooms: int, total: int, *, info: bool) -> EntryFigures:
    """Return the memory of entries of four owners that a worker receives which watches every room."""
    protocol = _protocol()
    names = [f"room:{number}" for number in range(rooms)]
    texts = {name: _snapshots(name, total // rooms, info=info) for name in names}
    for name in names:
        protocol.watch(name, 0.0)
        protocol.subscribed(name, 0.0)
    protocol.take_subscriptions()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for name, some in texts.items():
            for text in some:
                protocol.received(name, text, 0.0)
            protocol.take_changes()
        gc.collect()
        size = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    held = sum(head.connections for name in names if (head := protocol.head(name)) is not None)
    return EntryFigures(rooms=rooms, entries=held, info=info, bytes_per_entry=size / held)


async def _run(rounds: int) -> list[Figure]:
    loads = JSONDecoder().decode
    watched, unwatched = _protocol(), _protocol()
    watched.watch(_ROOM, 0.0)
    unwatched.enter(_ROOM, "f" * 16, "own", "", 0.0, 0.0)
    for protocol in (watched, unwatched):
        protocol.subscribed(_ROOM, 0.0)
        for text in _snapshots(_ROOM, _IN_ROOM):
            protocol.received(_ROOM, text, 0.0)
    now = _settle(watched)
    agent, watcher = _agent(), _Watcher()
    agent.observe(_ROOM, watcher)
    for text in _snapshots(_ROOM, _IN_ROOM):
        await asyncio.sleep(0)
        agent.received(_TOPIC, text)
    while agent.head(_ROOM).stale:
        await agent.passed()
    reported_before = watcher.reported

    def apply(protocol: PresenceProtocol) -> Callable[[Sequence[str]], None]:
        def received(texts: Sequence[str]) -> None:
            for text in texts:
                protocol.received(_ROOM, text, now)
                protocol.take_changes()

        return received

    def parse(texts: Sequence[str]) -> None:
        for text in texts:
            loads(text)

    def read(texts: Sequence[str]) -> None:
        for text in texts:
            decode(text)

    at_once: dict[str, Callable[[Sequence[str]], None]] = {
        "floor: json.loads": parse,
        "decode": read,
        "decode and apply, room not watched": apply(unwatched),
        "decode and apply, room watched": apply(watched),
        "a join or a leave, flushed and encoded": _Owner().change,
    }
    figures = {name: Figure(name) for name in at_once}
    passes, reported = Figure("a pass of the event loop"), Figure("agent with a watcher, one message a pass")
    for number in range(rounds):
        texts = _changes(number)
        for name, handle in at_once.items():
            began = process_time_ns()
            handle(texts)
            figures[name].microseconds.append((process_time_ns() - began) / 1000 / _REPEAT)
        began = process_time_ns()
        for _ in texts:
            await asyncio.sleep(0)
        passes.microseconds.append((process_time_ns() - began) / 1000 / _REPEAT)
        began = process_time_ns()
        for text in texts:
            agent.received(_TOPIC, text)
            await asyncio.sleep(0)
        reported.microseconds.append((process_time_ns() - began) / 1000 / _REPEAT)
    assert watcher.reported == reported_before + rounds * _REPEAT, "each message is a change"
    agent.stop()
    return [*figures.values(), passes, reported]


def _settle(protocol: PresenceProtocol) -> float:
    """Let the view of the room be complete, as no other worker answers, and return the time."""
    now = 0.0
    while (head := protocol.head(_ROOM)) is not None and head.stale:
        due = protocol.next_due()
        assert due is not None
        now = due
        protocol.run(now)
        protocol.take_outgoing()
    protocol.take_changes()
    return now


class _Owner:
    """A worker with four connections in a room, which watches it: what it states is flushed after each change."""

    def __init__(self) -> None:
        self._protocol = _protocol()
        self._protocol.watch(_ROOM, 0.0)
        self._protocol.subscribed(_ROOM, 0.0)
        for number in range(_IN_ROOM // len(_OWNERS)):
            self._protocol.enter(_ROOM, f"{number:016x}", f"user-{number}", _INFO, 0.0, 0.0)
        for text in _snapshots(_ROOM, _IN_ROOM)[1:]:
            self._protocol.received(_ROOM, text, 0.0)
        self._now = 0.0
        self._until_flushed()

    def change(self, texts: Sequence[str]) -> None:
        """Let as many connections join and leave as there are texts."""
        protocol = self._protocol
        for number in range(len(texts)):
            if number % 2:
                protocol.exit(_ROOM, "e" * 16, self._now)
            else:
                protocol.enter(_ROOM, "e" * 16, "user-e", _INFO, self._now, self._now)
            self._until_flushed()

    def _until_flushed(self) -> None:
        protocol = self._protocol
        while not any(each.topic == _ROOM and "delta" in each.text for each in protocol.take_outgoing()):
            due = protocol.next_due()
            assert due is not None
            self._now = due
            protocol.run(due)
        protocol.take_changes()


class _Watcher:
    """Counts the changes that are reported to it."""

    def __init__(self) -> None:
        self.reported = 0

    def view_changed(self, _: str, events: list[ViewEvent], /) -> None:
        self.reported += len(events)


class _Bus:
    """A bus that is connected to nothing."""

    worker: str = _SELF

    def subscribe_soon(self, _topic: str, _receiver: object, confirmed: Callable[[], None]) -> None:
        confirmed()

    def unsubscribe(self, topic: str, receiver: object) -> None:
        """Do nothing."""

    def send_soon(self, topic: str, text: str, failed: Callable[[], None]) -> None:
        """Do nothing."""


def _rule_of(_: str) -> Rule:
    return _RULE


def _protocol() -> PresenceProtocol:
    found = PresenceProtocol(_SELF, times=_TIMES, random=random.Random(1), describe=dict, rule_of=_rule_of)
    found.start(0.0)
    found.take_outgoing()
    return found


def _agent() -> PresenceAgent:
    found = PresenceAgent(
        cast("ClusterBus", _Bus()), times=_TIMES, describe=_nothing, rule_of=_rule_of, workers_changed=_pass
    )
    found.start()
    return found


def _nothing() -> dict[str, Any]:
    return {}


def _pass() -> None:
    """Do nothing."""


def _snapshots(room: str, total: int, *, info: bool = True) -> list[str]:
    """Return a message of each owner with its share of the entries of a room, the version of which is 1."""
    found: list[str] = []
    for owner in _OWNERS:
        some = {
            (connection := f"{hash((room, owner, number)) & (1 << 64) - 1:016x}"): Entry(
                connection, f"user-{connection[:8]}", f'{{"name":"Ada {connection[:8]}"}}' if info else "", 1e9 + 0.125
            )
            for number in range(total // len(_OWNERS))
        }
        found.append(encode(Snapshot(owner, 1, some)))
    return found


def _changes(part: int) -> list[str]:
    """Return messages of one owner, each the one after the one before: a connection joins, then it leaves."""
    found: list[str] = []
    for number in range(_REPEAT):
        base = 1 + part * _REPEAT + number
        connection = f"{base // 2:016x}"
        entry = {connection: Entry(connection, f"user-{base // 2}", _INFO, 1e9 + 0.125)}
        changed, gone = ({}, [f"{(base - 1) // 2:016x}"]) if number % 2 else (entry, [])
        size = _IN_ROOM // len(_OWNERS) + 1 - number % 2
        found.append(encode(Delta(_OWNERS[1], base, base + 1, changed, gone, None, size)))
    return found
