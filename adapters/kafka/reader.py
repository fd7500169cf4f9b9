"""Reading from Kafka: every partition of the topic, from positions of our own, without a consumer group."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backplane.adapters.kafka.link import unavailable
from backplane.adapters.kafka.wire import EARLIEST, LATEST, UnreadableError, read_records, words
from backplane.message import ALL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from backplane.adapters.kafka.link import KafkaLink
    from backplane.adapters.kafka.wire import Connection
    from backplane.broadcaster import Sink

__all__ = ["KafkaReader", "Pace"]

logger = logging.getLogger("backplane.kafka")

_OUT_OF_RANGE: Final = 1
_UNKNOWN_TOPIC: Final = 3
_ENDS_EARLY: Final = "ends before what was to be read next: it was created anew, or has lost its end"
_MEBIBYTE: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How the brokers are asked for more: what costs is a request, hardly a message.

    Attributes:
        wait_ms: How long a broker may hold a request that it has nothing for.
        min_bytes: What it waits for.
        pause_seconds: How long to wait behind an answer with messages.
    """

    wait_ms: int
    min_bytes: int = 1
    pause_seconds: float = 0.0


class KafkaReader:
    """What is read in one life of the adapter, over however many links.

    Args:
        pace: How to ask.
        spawn: Starts a task whose failure is the link's loss.

    Attributes:
        channels: What is delivered, by its key.
    """

    def __init__(self, pace: Pace, spawn: Callable[..., asyncio.Task[None]]) -> None:
        self.channels: dict[bytes, str] = {}
        self._pace = pace
        self._spawn = spawn
        self._positions: dict[int, int] = {}
        self._doubt = ""
        self._sink: Sink | None = None
        self._link: KafkaLink | None = None
        self._connections: dict[int, Connection] = {}
        self._reading: dict[int, asyncio.Task[None]] = {}

    @property
    def is_open(self) -> bool:
        """Whether it reads."""
        return self._link is not None

    async def open(self, link: KafkaLink, sink: Sink) -> None:
        """Read over `link`: from the end the first time, afterwards where the link before ended.

        Raises:
            BrokerUnavailableError: The broker is gone, or does not say where the end is.
        """
        try:
            await self._connect(link)
            ends = await self._ask_offsets(link, link.topology.leaders, LATEST)
            if not self._positions:
                self._positions = ends
            self._pull_back(ends)
            await self._compare(link, sink)
        except BaseException:
            self.close()
            raise
        self._link, self._sink = link, sink
        self._read_all(link)

    async def follow(self) -> None:
        """Take in what `link.refresh` found: new partitions, and leaders that were none before, or none for a while."""
        if self._link is None or self._sink is None:
            return
        await self._connect(self._link)
        await self._compare(self._link, self._sink)
        self._read_all(self._link)

    def close(self) -> None:
        """Stop to deliver, at once; positions and channels stay."""
        self._link = self._sink = None
        for connection in self._connections.values():
            connection.abort()
        self._connections = {}
        self._reading = {}

    def _read_all(self, link: KafkaLink) -> None:
        """Read from every broker, once."""
        for node in self._connections:
            if node not in self._reading or self._reading[node].done():
                self._reading[node] = self._spawn(self._read(link, node), f"kafka-read-{node}")

    async def _connect(self, link: KafkaLink) -> None:
        for node in set(link.topology.leaders.values()) - self._connections.keys():
            self._connections[node] = await link.connect(node)

    def _pull_back(self, ends: dict[int, int]) -> None:
        """Go to the end where it lies before a position: what is published from now on must be heard.

        Not to the beginning: a log that lost its end may hold days, all of which were delivered once.
        """
        for partition, end in ends.items():
            if self._positions.get(partition, 0) > end:
                self._positions[partition] = end
                self._doubt = f"partition {partition} {_ENDS_EARLY}"

    async def _compare(self, link: KafkaLink, sink: Sink) -> None:
        """Hold the positions against the partitions there are, and say what may be missing."""
        there = link.topology.leaders.keys()
        doubt = self._doubt
        if self._positions.keys() - there:
            self._positions = await self._ask_offsets(link, there, LATEST)
            doubt = "the topic was created anew, with fewer partitions"
        elif new := there - self._positions.keys():
            # From their beginning: whoever publishes may have known of them before. Channels have moved to them, and
            # the order of a channel does not hold across the move.
            self._positions |= dict.fromkeys(new, 0)
            doubt = f"the topic has {len(new)} more partitions"
        self._doubt = ""
        if doubt:
            _tell(sink, doubt)

    async def _ask_offsets(self, link: KafkaLink, partitions: Collection[int], which: int) -> dict[int, int]:
        found: dict[int, int] = {}
        for node, connection in self._connections.items():
            led = {partition: which for partition in partitions if link.topology.leaders[partition] == node}
            if not led:
                continue
            for partition, (code, offset) in (await connection.offsets(link.target.topic, led)).items():
                if code:
                    raise unavailable(f"no offset of partition {partition}: {words(code)}")
                found[partition] = offset
        return found

    async def _read(self, link: KafkaLink, node: int) -> None:
        """Read from one broker until the link ends, or it leads nothing any more."""
        connection, pace, turn = self._connections[node], self._pace, 0
        while wanted := self._wanted(link, node):
            turn = (turn + 1) % len(wanted)  # a full answer must not always leave out the same ones
            answers = await connection.fetch(
                link.target.topic,
                wanted[turn:] + wanted[:turn],
                wait_ms=pace.wait_ms,
                min_bytes=pace.min_bytes,
                max_bytes=4 * _MEBIBYTE,
            )
            heard = False
            for partition, code, data in answers:
                if code:
                    await self._mend(link, partition, code)
                elif data:
                    heard = True
                    self._deliver(partition, data)
            if heard and pace.pause_seconds:
                await asyncio.sleep(pace.pause_seconds)

    def _wanted(self, link: KafkaLink, node: int) -> list[tuple[int, int, int]]:
        leaders = link.topology.leaders
        return [
            (partition, position, _MEBIBYTE)
            for partition, position in self._positions.items()
            if leaders[partition] == node
        ]

    def _deliver(self, partition: int, data: bytes) -> None:
        sink, channels = self._sink, self.channels
        if sink is None:
            return
        try:
            for position, key, value in read_records(data, self._positions[partition]):
                if key is not None and value is not None and (channel := channels.get(key)) is not None:
                    sink.deliver(channel, value)
                self._positions[partition] = position
        except UnreadableError as error:
            self._positions[partition] = error.position
            _tell(sink, f"partition {partition} holds what cannot be read: {error}")

    async def _mend(self, link: KafkaLink, partition: int, code: int) -> None:
        """Go on behind what is gone; anything else needs a new link."""
        if code == _OUT_OF_RANGE:
            earliest = (await self._ask_offsets(link, [partition], EARLIEST))[partition]
            if self._positions[partition] < earliest:
                position, reason = earliest, "no longer holds what was to be read next: it was deleted by age or size"
            else:
                position, reason = (await self._ask_offsets(link, [partition], LATEST))[partition], _ENDS_EARLY
            self._positions[partition] = position
            if self._sink is not None:
                _tell(self._sink, f"partition {partition} {reason}")
            return
        if code == _UNKNOWN_TOPIC:
            self._doubt = "the topic was gone for a while"
        link.lost(f"partition {partition} cannot be read: {words(code)}")


def _tell(sink: Sink, reason: str) -> None:
    logger.warning("messages may be missing: %s", reason)
    sink.gap(ALL, reason)
