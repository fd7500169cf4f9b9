"""The Kafka adapter without a broker: answers of a broker to what is published, and records that cannot be read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from backplane.adapters.kafka.producer import KafkaProducer
from backplane.adapters.kafka.reader import KafkaReader, Pace
from backplane.adapters.kafka.wire import Identity, Records, Topology, UnreadableError, partition_hash, read_records
from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from backplane.adapters.kafka.link import KafkaLink
    from backplane.broadcaster import Sink

IDENTITY = Identity(producer_id=7, epoch=0)
STORED, TOO_LARGE, NOT_LEADER, TOO_FEW_REPLICAS, OUT_OF_SEQUENCE, DUPLICATE = 0, 10, 6, 19, 45, 46


class Target:
    """What a link leads to, as far as a producer asks."""

    topic = "topic"
    request_timeout_seconds = 1.0


class Link:
    """A link with one broker, one partition, and answers that the test chooses.

    Attributes:
        answers: Kafka's error codes, one for each request; `None` is an answer that never comes.
        sent: The batches of each request, as bytes.
    """

    def __init__(self, *answers: int | None) -> None:
        self.answers = list(answers)
        self.sent: list[bytes] = []
        self.is_over = False
        self.target = Target()
        self.topology = Topology(addresses={1: ("a", 1)}, leaders={0: 1}, controller=1, error=0, cluster=None)

    def leader(self, _: int) -> Link:
        """Be the only connection."""
        return self

    def lost(self, _: str) -> None:
        """Be over."""
        self.is_over = True

    async def identify(self) -> tuple[int, Identity]:
        """Grant an identity."""
        return 0, IDENTITY

    async def produce(self, _: str, batches: Mapping[int, bytes], __: int) -> dict[int, int]:
        """Answer as the test chose."""
        self.sent.append(batches[0])
        answer = self.answers.pop(0)
        if answer is None:
            await asyncio.get_running_loop().create_future()
        assert answer is not None
        return {0: answer}


class Tasks:
    """Starts the producer's tasks, and ends them as a lost link does."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def spawn(self, work: Coroutine[object, object, None], _: str) -> asyncio.Task[None]:
        """Start one."""
        self._tasks.append(asyncio.create_task(work))
        return self._tasks[-1]

    async def end(self) -> None:
        """Cancel all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def tasks(anyio_backend: object) -> Any:
    """Ended with the test."""
    tasks = Tasks()
    yield tasks
    await tasks.end()


async def _open(tasks: Tasks, link: Link, producer: KafkaProducer | None = None) -> KafkaProducer:
    producer = producer or KafkaProducer(1000, 10_000, tasks.spawn)
    await producer.open(cast("KafkaLink", link))
    return producer


def _sequence(batch: bytes) -> int:
    """Return the sequence number of a batch: https://kafka.apache.org/documentation/#recordbatch."""
    return int.from_bytes(batch[53:57], "big")


@pytest.mark.anyio
async def test_what_is_published_in_one_pass_goes_in_one_batch(tasks: Tasks) -> None:
    """Publishes of one pass of the event loop share a request, in order, and the numbers go on behind them."""
    link = Link(STORED, STORED)
    producer = await _open(tasks, link)
    await asyncio.gather(*(producer.publish(b"key", b"%d" % number) for number in range(3)))
    await producer.publish(b"key", b"3")
    values = [value for batch in link.sent for _, key, value in read_records(batch, 0) if key]
    assert values == [b"0", b"1", b"2", b"3"]
    assert [_sequence(batch) for batch in link.sent] == [0, 3]


@pytest.mark.anyio
@pytest.mark.parametrize("code", [TOO_LARGE, TOO_FEW_REPLICAS])
async def test_a_refused_batch_uses_no_sequence_number(tasks: Tasks, code: int) -> None:
    """A refusal raises `PublishError`, certainly not published, and the next batch takes its number."""
    link = Link(code, STORED)
    producer = await _open(tasks, link)
    with pytest.raises(PublishError) as raised:
        await producer.publish(b"key", b"refused")
    assert not isinstance(raised.value, PublishOutcomeUnknownError)
    assert raised.value.retriable is (code == TOO_FEW_REPLICAS)
    await producer.publish(b"key", b"stored")
    assert [_sequence(batch) for batch in link.sent] == [0, 0]


@pytest.mark.anyio
@pytest.mark.parametrize("answers", [(NOT_LEADER,), (None,)], ids=["moved", "silent"])
@pytest.mark.parametrize("second", [STORED, DUPLICATE])
async def test_a_batch_without_its_answer_is_sent_again(
    tasks: Tasks, answers: tuple[int | None, ...], second: int
) -> None:
    """Over the next link the same bytes go out before anything newer; stored before or not, it is a success."""
    first = Link(*answers)
    producer = await _open(tasks, first)
    waiting = asyncio.create_task(producer.publish(b"key", b"again"))
    while not first.sent:
        await asyncio.sleep(0)
    await tasks.end()
    producer.close()
    with pytest.raises(BrokerUnavailableError):
        await producer.publish(b"key", b"between")
    link = Link(second, STORED)
    await _open(tasks, link, producer)
    newer = asyncio.create_task(producer.publish(b"key", b"newer"))
    await waiting
    await newer
    assert link.sent[0] == first.sent[0]
    assert [_sequence(batch) for batch in link.sent] == [0, 1]


@pytest.mark.anyio
async def test_a_forgotten_identity_is_asked_for_anew(tasks: Tasks) -> None:
    """A broker that lost count refuses once; the next link has numbers of its own."""
    link = Link(OUT_OF_SEQUENCE)
    producer = await _open(tasks, link)
    with pytest.raises(PublishError):
        await producer.publish(b"key", b"refused")
    assert link.is_over
    second = Link(STORED)
    await _open(tasks, second, producer)
    await producer.publish(b"key", b"stored")
    assert _sequence(second.sent[0]) == 0


@pytest.mark.anyio
async def test_a_stop_tells_sent_from_unsent(tasks: Tasks) -> None:
    """What was on its way is unknown, what still waited behind it was certainly not published."""
    link = Link(None)
    producer = await _open(tasks, link)
    sent = asyncio.create_task(producer.publish(b"key", b"sent"))
    while not link.sent:
        await asyncio.sleep(0)
    unsent = asyncio.create_task(producer.publish(b"key", b"unsent"))
    await asyncio.sleep(0)
    producer.close()
    producer.fail("stopped")
    with pytest.raises(PublishOutcomeUnknownError):
        await sent
    with pytest.raises(BrokerUnavailableError):
        await unsent


@pytest.mark.anyio
async def test_too_much_without_an_answer_is_refused(tasks: Tasks) -> None:
    """Over the bound `publish` raises, retriable; one message is always taken."""
    producer = KafkaProducer(1000, 100, tasks.spawn)
    await _open(tasks, Link(None), producer)
    first = asyncio.create_task(producer.publish(b"key", bytes(500)))
    await asyncio.sleep(0)
    with pytest.raises(PublishError, match="await the broker's answer") as raised:
        await producer.publish(b"key", b"x")
    assert raised.value.retriable
    first.cancel()


class Node:
    """A broker of several, which answers when the test lets it.

    Attributes:
        asked: Set while it has a request that is not answered.
        batches: What was published to it.
        positions: From where it was read last.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.batches: list[bytes] = []
        self.positions: list[tuple[int, int, int]] = []
        self._answer: asyncio.Future[Any] | None = None

    def answer(self, value: object) -> None:
        """Answer the request."""
        assert self._answer is not None
        self._answer.set_result(value)

    async def produce(self, _: str, batches: Mapping[int, bytes], __: int) -> dict[int, int]:
        """Take what is published."""
        self.batches += batches.values()
        return cast("dict[int, int]", await self._asked())

    async def fetch(self, _: str, positions: list[tuple[int, int, int]], **__: int) -> list[tuple[int, int, bytes]]:
        """Be read."""
        self.positions = positions
        return cast("list[tuple[int, int, bytes]]", await self._asked())

    async def offsets(self, _: str, partitions: Mapping[int, int]) -> dict[int, tuple[int, int]]:
        """Say that all are empty."""
        return dict.fromkeys(partitions, (0, 0))

    async def identify(self) -> tuple[int, Identity]:
        """Grant an identity."""
        return 0, IDENTITY

    def abort(self) -> None:
        """End."""

    async def _asked(self) -> object:
        self._answer = asyncio.get_running_loop().create_future()
        self.asked.set()
        try:
            return await self._answer
        finally:
            self.asked.clear()


class Nodes:
    """A link with two brokers, of whom one leads the only partition."""

    def __init__(self) -> None:
        self.nodes = {1: Node(), 2: Node()}
        self.is_over = False
        self.target = Target()
        self.move_to(1)

    def move_to(self, node: int) -> None:
        """Let `node` lead, as `refresh` finds it."""
        addresses = {1: ("a", 1), 2: ("b", 1)}
        self.topology = Topology(addresses=addresses, leaders={0: node}, controller=1, error=0, cluster=None)

    def leader(self, node: int) -> Node:
        """Return the connection for publishing."""
        return self.nodes[node]

    async def connect(self, node: int) -> Node:
        """Return the connection for reading."""
        return self.nodes[node]


@pytest.mark.anyio
async def test_a_batch_on_its_way_is_not_sent_to_the_next_leader_too(tasks: Tasks) -> None:
    """While a partition's answer is awaited its next leader waits; then it gets what came behind, and nothing twice."""
    link = Nodes()
    producer = KafkaProducer(1000, 10_000, tasks.spawn)
    await producer.open(cast("KafkaLink", link))
    first = asyncio.create_task(producer.publish(b"key", b"first"))
    await link.nodes[1].asked.wait()
    second = asyncio.create_task(producer.publish(b"key", b"second"))
    link.move_to(2)
    third = asyncio.create_task(producer.publish(b"key", b"third"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not link.nodes[2].batches
    link.nodes[1].answer({0: STORED})
    await first
    await link.nodes[2].asked.wait()
    assert not second.done()
    link.nodes[2].answer({0: STORED})
    await second
    await third
    values = [[value for _, key, value in read_records(batch, 0) if key] for batch in link.nodes[2].batches]
    assert (len(link.nodes[1].batches), values) == (1, [[b"second", b"third"]])


@pytest.mark.anyio
async def test_a_partition_that_comes_back_to_a_broker_is_read_there_again(tasks: Tasks) -> None:
    """A broker that led nothing for a while, which ended the reading there, is read again when it leads."""
    link, reader = Nodes(), KafkaReader(Pace(wait_ms=500), tasks.spawn)
    await reader.open(cast("KafkaLink", link), cast("Sink", object()))
    for leader, other in ((1, 2), (2, 1), (1, 2)):
        await link.nodes[leader].asked.wait()
        assert link.nodes[leader].positions[0][0] == 0
        link.move_to(other)
        await reader.follow()
        link.nodes[leader].answer([])
        for _ in range(5):
            await asyncio.sleep(0)
        assert not link.nodes[leader].asked.is_set()
    reader.close()


def test_a_damaged_batch_says_where_the_next_one_begins() -> None:
    """Bytes that fail their checksum raise with the position behind them."""
    records = Records(1000)
    for _ in range(3):
        records.append(b"key", b"value")
    data = bytearray(records.build(IDENTITY, 0))
    data[-1] ^= 1
    with pytest.raises(UnreadableError, match="damaged") as raised:
        list(read_records(bytes(data), 0))
    assert raised.value.position == 3


def test_records_before_the_position_are_left_out() -> None:
    """The broker answers with whole batches: what was read before is not read again."""
    records = Records(1000)
    for number in range(3):
        records.append(b"key", b"%d" % number)
    data = records.build(IDENTITY, 0)
    assert [value for _, key, value in read_records(data, 1) if key] == [b"1", b"2"]
    assert list(read_records(data, 3)) == []


@pytest.mark.parametrize(("key", "expected"), [(b"21", -973932308), (b"foobar", -790332482), (b"", 275646681)])
def test_the_partition_is_the_one_java_takes(key: bytes, expected: int) -> None:
    """The hash is murmur2 with the sign bit masked, as in Kafka's own tests of it."""
    assert partition_hash(key) == expected & 0x7FFFFFFF
