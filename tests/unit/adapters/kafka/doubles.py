"""A link and brokers whose answers a test scripts."""

# pyright: reportPrivateUsage=false, reportMissingTypeStubs=false

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from backplane.adapters.kafka.answers import EARLIEST, LATEST, Fetched, Position, ProduceAnswer, ProducerId, Topology
from backplane.adapters.kafka.records import Records, read_batches
from backplane.adapters.kafka.topic import TopicLimits

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping


__all__ = [
    "PRODUCER_ID",
    "ScriptedLink",
    "ScriptedNode",
    "ScriptedNodes",
    "ScriptedTarget",
    "Tasks",
    "log_batch",
    "values_of",
]

PRODUCER_ID = ProducerId(producer_id=7, epoch=0)


class ScriptedTarget:
    """The part of a link's target that a producer reads."""

    topic = "topic"
    request_timeout_seconds = 1.0


class ScriptedLink:
    """A link with one broker, one partition, and answers from a list.

    Attributes:
        answers: Kafka's error code, or the exception to raise, of each request; `None` for no answer at all.
        producer_id_codes: Kafka's error codes for requests of a producer id; afterwards, and by default, it is granted.
        sent: The batches of each request, as bytes.
    """

    def __init__(self, *answers: int | ProduceAnswer | Exception | None) -> None:
        self.answers = list(answers)
        self.producer_id_codes: list[int] = []
        self.granted = 0
        self.sent: list[bytes] = []
        self.is_over = False
        self.target = ScriptedTarget()
        self.topology = Topology(addresses={1: ("a", 1)}, leaders={0: 1}, controller=1, error=0, cluster=None)

    async def leader(self, _: int) -> ScriptedLink:
        """Return the only connection."""
        return self

    def report_loss(self, _: str) -> None:
        """Note the loss."""
        self.is_over = True

    async def request_producer_id(self) -> tuple[int, ProducerId]:
        """Grant another producer id each time."""
        if self.producer_id_codes:
            return self.producer_id_codes.pop(0), PRODUCER_ID
        self.granted += 1
        return 0, ProducerId(producer_id=self.granted, epoch=0)

    async def produce(self, _: str, batches: Mapping[int, bytes], __: int) -> dict[int, ProduceAnswer]:
        """Give the next answer."""
        self.sent.append(batches[0])
        answer = self.answers.pop(0)
        if answer is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None
        return {0: answer if isinstance(answer, ProduceAnswer) else ProduceAnswer(answer)}


class ScriptedNode:
    """One of several brokers, which answers when the test lets it.

    Attributes:
        requested: Set while it has a request that is not answered.
        batches: The batches that were published to it.
        positions: The positions of the last fetch.
        first: The answer to the first fetch.
        ends: Start and end of each partition.
    """

    expires_soon = False

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.batches: list[bytes] = []
        self.positions: Mapping[int, Position] = {}
        self.first: list[Fetched] = []
        self.ends = {EARLIEST: Position(0), LATEST: Position(0)}
        self._answer: asyncio.Future[Any] | None = None

    def answer(self, value: object) -> None:
        """Answer the request."""
        assert self._answer is not None
        self.requested.clear()
        self._answer.set_result(value)

    async def produce(self, _: str, batches: Mapping[int, bytes], __: int) -> dict[int, ProduceAnswer]:
        """Store the batches."""
        self.batches += batches.values()
        return cast("dict[int, ProduceAnswer]", await self._answered())

    async def fetch(
        self, _: str, __: bytes, positions: Mapping[int, Position], *, wait_ms: int, **___: int
    ) -> list[Fetched]:
        """Keep the positions; the first fetch, which does not wait, is answered at once."""
        if not wait_ms:
            return self.first
        self.positions = positions
        return cast("list[Fetched]", await self._answered())

    async def offsets(self, _: str, partitions: Mapping[int, int]) -> dict[int, tuple[int, Position]]:
        """Return the start or the end."""
        return {partition: (0, self.ends[which]) for partition, which in partitions.items()}

    async def request_producer_id(self) -> tuple[int, ProducerId]:
        """Grant a producer id."""
        return 0, PRODUCER_ID

    def abort(self) -> None:
        """Do nothing."""

    async def _answered(self) -> object:
        self._answer = asyncio.get_running_loop().create_future()
        self.requested.set()
        try:
            return await self._answer
        finally:
            self.requested.clear()


class ScriptedNodes:
    """A link with two brokers, of which one leads the only partition."""

    def __init__(self) -> None:
        self.nodes = {1: ScriptedNode(), 2: ScriptedNode()}
        self.is_over = False
        self.target = ScriptedTarget()
        self.limits = TopicLimits()
        self.move_to(1)

    def move_to(self, node: int) -> None:
        """Make `node` the leader, as found by `refresh`."""
        addresses = {1: ("a", 1), 2: ("b", 1)}
        self.topology = Topology(addresses=addresses, leaders={0: node}, controller=1, error=0, cluster=None)

    async def leader(self, node: int) -> ScriptedNode:
        """Return the connection for publishing."""
        return self.nodes[node]

    async def connect(self, node: int) -> ScriptedNode:
        """Return the connection for reading."""
        return self.nodes[node]


class Tasks:
    """Starts the tasks of a producer or reader, and cancels them as a lost link does."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def spawn(self, work: Coroutine[object, object, None], _: str) -> asyncio.Task[None]:
        """Start a task."""
        self._tasks.append(asyncio.create_task(work))
        return self._tasks[-1]

    @property
    def first(self) -> asyncio.Task[None]:
        """The task that was started first."""
        return self._tasks[0]

    async def end(self) -> None:
        """Cancel all of them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def values_of(data: bytes, position: int = 0) -> list[bytes | None]:
    """Return the values of the records in batches, from offset `position` on."""
    return [value for batch in read_batches(data, position, 1 << 62) for _, value, _, _ in batch.records]


def log_batch(*values: bytes, base: int = 0, epoch: int = 0) -> bytearray:
    """Return a batch in the format of a broker's log."""
    records = Records(100_000)
    for value in values:
        assert records.append(b"key", value)
    data = bytearray(records.build(PRODUCER_ID, 0))
    data[0:8] = base.to_bytes(8, "big")
    data[12:16] = epoch.to_bytes(4, "big")
    return data
