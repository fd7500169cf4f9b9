"""The Kafka adapter without a broker: answers of a broker to what is published, and records that cannot be read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from backplane.adapters.kafka.producer import KafkaProducer
from backplane.adapters.kafka.wire import Identity, Records, Topology, UnreadableError, partition_hash, read_records
from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from backplane.adapters.kafka.link import KafkaLink

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
