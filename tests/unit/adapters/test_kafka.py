"""The Kafka adapter without a broker: answers of a broker to what is published, and records that cannot be read."""

# pyright: reportPrivateUsage=false, reportMissingTypeStubs=false

from __future__ import annotations

import asyncio
import re
import struct
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from aiokafka.record.util import calc_crc32c  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane.adapters.kafka import protocol
from backplane.adapters.kafka.link import TopicLimits
from backplane.adapters.kafka.login import Token
from backplane.adapters.kafka.producer import KafkaProducer
from backplane.adapters.kafka.protocol import NO_TOPIC_ID
from backplane.adapters.kafka.reader import KafkaReader, Pace
from backplane.adapters.kafka.records import Records, codec_problem, partition_hash, read_batches
from backplane.adapters.kafka.wire import (
    EARLIEST,
    LATEST,
    Connection,
    ConnectionEndedError,
    Fetched,
    Identity,
    Position,
    ProduceAnswer,
    Security,
    Topology,
)
from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError
from backplane.testing import RecordingSink

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from backplane.adapters.kafka.link import KafkaLink
    from backplane.broadcaster import Sink

IDENTITY = Identity(producer_id=7, epoch=0)
STORED, TOO_LARGE, NOT_LEADER, TOO_FEW_REPLICAS, OUT_OF_SEQUENCE, DUPLICATE = 0, 10, 6, 19, 45, 46
REQUEST_TIMED_OUT, TOO_FEW_REPLICAS_AFTER_APPEND, NOT_AUTHORIZED, INVALID_TIMESTAMP = 7, 20, 29, 32
INVALID_RECORD, THROTTLED = 87, 89


class Target:
    """What a link leads to, as far as a producer asks."""

    topic = "topic"
    request_timeout_seconds = 1.0


class Link:
    """A link with one broker, one partition, and answers that the test chooses.

    Attributes:
        answers: Kafka's error codes, or what is raised, one for each request; `None` is an answer that never comes.
        identities: Kafka's error codes to whoever asks for an identity; afterwards, and by default, it is granted.
        sent: The batches of each request, as bytes.
    """

    def __init__(self, *answers: int | ProduceAnswer | Exception | None) -> None:
        self.answers = list(answers)
        self.identities: list[int] = []
        self.granted = 0
        self.sent: list[bytes] = []
        self.is_over = False
        self.target = Target()
        self.topology = Topology(addresses={1: ("a", 1)}, leaders={0: 1}, controller=1, error=0, cluster=None)

    async def leader(self, _: int) -> Link:
        """Be the only connection."""
        return self

    def lost(self, _: str) -> None:
        """Be over."""
        self.is_over = True

    async def identify(self) -> tuple[int, Identity]:
        """Grant another identity each time."""
        if self.identities:
            return self.identities.pop(0), IDENTITY
        self.granted += 1
        return 0, Identity(producer_id=self.granted, epoch=0)

    async def produce(self, _: str, batches: Mapping[int, bytes], __: int) -> dict[int, ProduceAnswer]:
        """Answer as the test chose."""
        self.sent.append(batches[0])
        answer = self.answers.pop(0)
        if answer is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None
        return {0: answer if isinstance(answer, ProduceAnswer) else ProduceAnswer(answer)}


class Tasks:
    """Starts the producer's tasks, and ends them as a lost link does."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def spawn(self, work: Coroutine[object, object, None], _: str) -> asyncio.Task[None]:
        """Start one."""
        self._tasks.append(asyncio.create_task(work))
        return self._tasks[-1]

    @property
    def first(self) -> asyncio.Task[None]:
        """The first that was started."""
        return self._tasks[0]

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


def _values(data: bytes, position: int = 0) -> list[bytes | None]:
    return [value for batch in read_batches(data, position, 1 << 62) for _, value in batch.records]


def _identity(batch: bytes) -> int:
    return int.from_bytes(batch[43:51], "big")


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
    values = [value for batch in link.sent for value in _values(batch)]
    assert values == [b"0", b"1", b"2", b"3"]
    assert [_sequence(batch) for batch in link.sent] == [0, 3]


@pytest.mark.anyio
@pytest.mark.parametrize("code", [TOO_LARGE, NOT_AUTHORIZED])
async def test_a_refused_batch_uses_no_sequence_number(tasks: Tasks, code: int) -> None:
    """A refusal raises `PublishError`, certainly not published, and the next batch takes its number."""
    link = Link(code, STORED)
    producer = await _open(tasks, link)
    with pytest.raises(PublishError) as raised:
        await producer.publish(b"key", b"refused")
    assert not isinstance(raised.value, PublishOutcomeUnknownError)
    assert raised.value.retriable is False
    await producer.publish(b"key", b"stored")
    assert [_sequence(batch) for batch in link.sent] == [0, 0]


@pytest.mark.anyio
@pytest.mark.parametrize("code", [TOO_FEW_REPLICAS, TOO_FEW_REPLICAS_AFTER_APPEND, REQUEST_TIMED_OUT, THROTTLED])
async def test_a_passing_state_is_waited_for(tasks: Tasks, code: int) -> None:
    """A batch that the broker puts off is sent again, the same bytes over the same link, until it is stored."""
    link = Link(code, code, STORED)
    producer = await _open(tasks, link)
    await producer.publish(b"key", b"patient")
    assert link.sent == [link.sent[0]] * 3
    assert not link.is_over


@pytest.mark.anyio
async def test_a_passing_state_that_stays_is_a_retriable_refusal(tasks: Tasks) -> None:
    """Put off for over a second, a publish raises `PublishError`: not published, and another try can help."""
    link = Link(*[TOO_FEW_REPLICAS] * 6, STORED)
    producer = await _open(tasks, link)
    with pytest.raises(PublishError, match="NotEnoughReplicas") as raised:
        await producer.publish(b"key", b"refused")
    assert not isinstance(raised.value, PublishOutcomeUnknownError)
    assert raised.value.retriable
    await producer.publish(b"key", b"stored")
    assert _sequence(link.sent[-1]) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("code", [-1, 84, 119, 9999])
async def test_a_code_that_nobody_has_placed_leaves_the_outcome_unknown(tasks: Tasks, code: int) -> None:
    """An error of which it is not known what became of the batch is no refusal; the next one has a new identity."""
    link = Link(code, STORED)
    producer = await _open(tasks, link)
    with pytest.raises(PublishOutcomeUnknownError, match=str(code)):
        await producer.publish(b"key", b"lost?")
    await producer.publish(b"key", b"stored")
    assert not link.is_over
    assert [(_identity(batch), _sequence(batch)) for batch in link.sent] == [(1, 0), (2, 0)]


@pytest.mark.anyio
async def test_only_the_culprit_of_a_batch_is_refused(tasks: Tasks) -> None:
    """A batch refused for one of its records is halved until that one is alone; the others are stored, in order."""
    link = Link(TOO_LARGE, STORED, TOO_LARGE, TOO_LARGE, STORED)
    producer = await _open(tasks, link)
    sent = [producer.publish(b"key", b"%d" % number) for number in range(4)]
    outcomes = await asyncio.gather(*sent, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None), type(None), PublishError, type(None)]
    assert [_values(batch) for batch in link.sent] == [
        [b"0", b"1", b"2", b"3"],
        [b"0", b"1"],
        [b"2", b"3"],
        [b"2"],
        [b"3"],
    ]
    assert [_sequence(batch) for batch in link.sent] == [0, 0, 2, 2, 2]


@pytest.mark.anyio
async def test_records_that_the_broker_names_are_refused_and_the_rest_is_stored(tasks: Tasks) -> None:
    """Where the broker names the records it does not take, with its reasons, the others go in one batch."""
    link = Link(ProduceAnswer(INVALID_RECORD, "One or more", {1: "no schema"}), STORED)
    producer = await _open(tasks, link)
    sent = [producer.publish(b"key", b"%d" % number) for number in range(3)]
    first, second, third = await asyncio.gather(*sent, return_exceptions=True)
    assert (first, third) == (None, None)
    assert isinstance(second, PublishError)
    assert "InvalidRecord (87): no schema" in str(second)
    assert _values(link.sent[1]) == [b"0", b"2"]


@pytest.mark.anyio
async def test_a_wrong_clock_is_named(tasks: Tasks) -> None:
    """A timestamp that the broker refuses raises with the time that this machine believes it is."""
    producer = await _open(tasks, Link(INVALID_TIMESTAMP))
    with pytest.raises(PublishError, match=r"is a clock wrong\? This machine's reads \d{4}-"):
        await producer.publish(b"key", b"from tomorrow")


@pytest.mark.anyio
async def test_a_message_that_ends_every_connection_is_set_aside(tasks: Tasks) -> None:
    """A message alone on its way when three connections ended is given up; what is published later is stored."""
    ended = ConnectionEndedError("the connection ended", adapter="kafka")
    link = Link(ended, ended, ended, STORED)
    producer = await _open(tasks, link)
    with pytest.raises(PublishOutcomeUnknownError, match=r"socket\.request\.max\.bytes"):
        await producer.publish(b"key", b"too large for the socket")
    await producer.publish(b"key", b"stored")
    assert not link.is_over
    assert [_values(batch) for batch in link.sent[2:]] == [[b"too large for the socket"], [b"stored"]]


@pytest.mark.anyio
async def test_a_batch_on_whose_way_three_connections_ended_is_halved(tasks: Tasks) -> None:
    """Several messages together may be too many bytes for one request: each half is tried before one is given up."""
    ended = ConnectionEndedError("the connection ended", adapter="kafka")
    link = Link(ended, ended, ended, STORED, STORED)
    producer = await _open(tasks, link)
    await asyncio.gather(*(producer.publish(b"key", b"%d" % number) for number in range(2)))
    assert [_values(batch) for batch in link.sent[3:]] == [[b"0"], [b"1"]]


@pytest.mark.anyio
async def test_a_user_who_may_only_listen_can_start_and_not_publish(
    tasks: Tasks, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the right to publish the start succeeds, with one warning; publish raises and names what to grant."""
    link = Link(STORED)
    link.identities = [31, 31]
    producer = await _open(tasks, link)
    with pytest.raises(PublishError, match="grant WRITE") as raised:
        await producer.publish(b"key", b"refused")
    assert not isinstance(raised.value, PublishOutcomeUnknownError)
    await producer.follow(cast("KafkaLink", link))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    await producer.follow(cast("KafkaLink", link))
    await producer.publish(b"key", b"granted by now")


@pytest.mark.anyio
async def test_another_cluster_gets_no_numbers_of_the_one_before(tasks: Tasks) -> None:
    """Behind a name that leads to another cluster what was sent is unknown, and what is new has a new identity."""
    first = Link(None)
    producer = await _open(tasks, first)
    sent = asyncio.create_task(producer.publish(b"key", b"sent"))
    while not first.sent:
        await asyncio.sleep(0)
    await tasks.end()
    producer.close()
    second = Link(STORED)
    second.topology = replace(second.topology, cluster="another")
    second.granted = 7
    await _open(tasks, second, producer)
    with pytest.raises(PublishOutcomeUnknownError, match="created anew"):
        await sent
    await producer.publish(b"key", b"new")
    assert [_values(batch) for batch in second.sent] == [[b"new"]]
    assert _identity(second.sent[0]) == 8


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
    """A broker that lost count leaves one batch unknown; the next one has numbers of its own, over the same link."""
    link = Link(STORED, OUT_OF_SEQUENCE, STORED)
    producer = await _open(tasks, link)
    await producer.publish(b"key", b"first")
    with pytest.raises(PublishOutcomeUnknownError):
        await producer.publish(b"key", b"unknown")
    await producer.publish(b"key", b"stored")
    assert not link.is_over
    assert [(_identity(batch), _sequence(batch)) for batch in link.sent] == [(1, 0), (1, 1), (2, 0)]


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
        first: The answer to the look at the start.
        ends: Where each partition begins and ends.
    """

    expires_soon = False

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.batches: list[bytes] = []
        self.positions: Mapping[int, Position] = {}
        self.first: list[Fetched] = []
        self.ends = {EARLIEST: Position(0), LATEST: Position(0)}
        self._answer: asyncio.Future[Any] | None = None

    def answer(self, value: object) -> None:
        """Answer the request."""
        assert self._answer is not None
        self.asked.clear()
        self._answer.set_result(value)

    async def produce(self, _: str, batches: Mapping[int, bytes], __: int) -> dict[int, ProduceAnswer]:
        """Take what is published."""
        self.batches += batches.values()
        return cast("dict[int, ProduceAnswer]", await self._asked())

    async def fetch(
        self, _: str, __: bytes, positions: Mapping[int, Position], *, wait_ms: int, **___: int
    ) -> list[Fetched]:
        """Be read; the look at the start, which waits for nothing, is answered at once."""
        if not wait_ms:
            return self.first
        self.positions = positions
        return cast("list[Fetched]", await self._asked())

    async def offsets(self, _: str, partitions: Mapping[int, int]) -> dict[int, tuple[int, Position]]:
        """Tell the first and the last offset."""
        return {partition: (0, self.ends[which]) for partition, which in partitions.items()}

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
        self.limits = TopicLimits()
        self.move_to(1)

    def move_to(self, node: int) -> None:
        """Let `node` lead, as `refresh` finds it."""
        addresses = {1: ("a", 1), 2: ("b", 1)}
        self.topology = Topology(addresses=addresses, leaders={0: node}, controller=1, error=0, cluster=None)

    async def leader(self, node: int) -> Node:
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
    link.nodes[1].answer({0: ProduceAnswer(STORED)})
    await first
    await link.nodes[2].asked.wait()
    assert not second.done()
    link.nodes[2].answer({0: ProduceAnswer(STORED)})
    await second
    await third
    values = [_values(batch) for batch in link.nodes[2].batches]
    assert (len(link.nodes[1].batches), values) == (1, [[b"second", b"third"]])


@pytest.mark.anyio
async def test_a_partition_that_comes_back_to_a_broker_is_read_there_again(tasks: Tasks) -> None:
    """A broker that led nothing for a while, which ended the reading there, is read again when it leads."""
    link, reader = Nodes(), KafkaReader(Pace(wait_ms=500), tasks.spawn)
    await reader.open(cast("KafkaLink", link), cast("Sink", object()))
    for leader, other in ((1, 2), (2, 1), (1, 2)):
        await link.nodes[leader].asked.wait()
        assert link.nodes[leader].positions.keys() == {0}
        link.move_to(other)
        await reader.follow()
        link.nodes[leader].answer([])
        for _ in range(5):
            await asyncio.sleep(0)
        assert not link.nodes[leader].asked.is_set()
    reader.close()


def _batch(*values: bytes, base: int = 0, epoch: int = 0) -> bytearray:
    """Return a batch as it stands in a broker's log."""
    records = Records(100_000)
    for value in values:
        assert records.append(b"key", value)
    data = bytearray(records.build(IDENTITY, 0))
    data[0:8] = base.to_bytes(8, "big")
    data[12:16] = epoch.to_bytes(4, "big")
    return data


def test_records_before_the_position_are_left_out() -> None:
    """The broker answers with whole batches: what was read before is not read again."""
    data = bytes(_batch(b"0", b"1", b"2"))
    assert _values(data, 1) == [b"1", b"2"]
    assert list(read_batches(data, 3, 3)) == []


def test_a_batch_tells_its_leader_epoch_and_what_follows_it() -> None:
    """The position after a batch is its last offset and the leader epoch under which it was written."""
    (batch,) = read_batches(bytes(_batch(b"0", b"1", base=5, epoch=3)), 5, 7)
    assert (batch.next, batch.epoch, batch.is_complete, batch.problem) == (7, 3, True, "")


@pytest.mark.parametrize("follows", [True, False])
def test_a_damaged_batch_costs_its_own_place_only(follows: bool) -> None:
    """Bytes that fail their checksum are a problem of that batch; what follows it is read."""
    data = _batch(b"0", b"1", b"2")
    data[-1] ^= 1
    if follows:
        data += _batch(b"3", base=3)
    damaged, *rest = read_batches(bytes(data), 0, 3 + follows)
    assert ("damaged" in damaged.problem, damaged.records, damaged.next) == (True, [], 3)
    assert [batch.records for batch in rest] == ([[(b"key", b"3")]] if follows else [])


@pytest.mark.parametrize("claimed", [-5, -1, 2**31 - 1])
def test_a_damaged_batch_leads_neither_back_nor_past_the_end(claimed: int) -> None:
    """A last offset that the checksum does not cover is not believed where it stands still or passes the log's end."""
    data = _batch(b"0")
    data[23:27] = claimed.to_bytes(4, "big", signed=True)
    (damaged,) = read_batches(bytes(data), 0, 10)
    assert (damaged.problem, damaged.next) == ("damaged records", 1)


@pytest.mark.parametrize(("base", "position"), [(4, 3), (9, 3)])
def test_a_batch_after_a_hole_is_not_complete(base: int, position: int) -> None:
    """Offsets that are missing before a batch are noticed."""
    (batch,) = read_batches(bytes(_batch(b"a", base=base)), position, base + 1)
    assert (batch.is_complete, batch.records) == (False, [(b"key", b"a")])


@pytest.mark.parametrize("last_delta", [1, 7])
def test_a_batch_that_lacks_records_is_not_complete(last_delta: int) -> None:
    """A batch out of which compaction took records spans more offsets than it holds."""
    data = _batch(b"a")
    data[23:27] = last_delta.to_bytes(4, "big")
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    (batch,) = read_batches(bytes(data), 0, last_delta + 1)
    assert (batch.is_complete, batch.records, batch.next) == (False, [(b"key", b"a")], last_delta + 1)


def test_the_mark_at_a_transactions_end_is_no_hole() -> None:
    """A control batch takes an offset and holds no message."""
    data = _batch(b"")
    data[21:23] = (0x30).to_bytes(2, "big")
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    (batch,) = read_batches(bytes(data), 0, 1)
    assert (batch.is_complete, batch.records, batch.next) == (True, [], 1)


def test_a_missing_codec_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch in a compression that is not installed tells which; the words for it hold the pip command."""
    monkeypatch.setattr("aiokafka.codec.cramjam", None)
    data = _batch(b"a")
    data[21:23] = (4).to_bytes(2, "big")
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    (batch,) = read_batches(bytes(data), 0, 1)
    assert (batch.codec, batch.next, batch.records) == ("zstd", 1, [])
    assert "pip install 'fastapi-backplane[kafka]'" in str(codec_problem("zstd"))
    assert [codec_problem(name) for name in ("gzip", "producer", "uncompressed", "")] == [None] * 4


def _sound(data: bytes) -> bytes:
    """Return `data` with the checksum of its first batch made right, so that the parser behind it is reached."""
    return data[:17] + calc_crc32c(data[21:]).to_bytes(4, "big") + data[21:] if len(data) > 21 else data


@given(
    edits=st.lists(st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=8)), max_size=5),
    cut=st.integers(0, 300),
    repair=st.booleans(),
)
@settings(max_examples=1000, deadline=None)
def test_whatever_a_broker_sends_for_records_ends_and_goes_forward(
    edits: list[tuple[int, bytes]], cut: int, repair: bool
) -> None:
    """No bytes make the parser raise, stand still, or go on for ever."""
    data = bytearray(_batch(b"0", b"1" * 50) + _batch(b"2", base=2))
    for place, piece in edits:
        data[place : place + len(piece)] = piece
    wire = _sound(bytes(data[:cut])) if repair else bytes(data[:cut])
    position = 0
    for count, batch in enumerate(read_batches(wire, 0, 3)):
        assert batch.next > position
        assert count < 10
        position = batch.next


@given(data=st.binary(max_size=200), version=st.sampled_from(["_MetadataResponseV10", "_FetchResponseV13"]))
@settings(max_examples=1000, deadline=None)
def test_an_answer_that_makes_no_sense_is_an_error_at_once(data: bytes, version: str) -> None:
    """Lengths that are negative, huge or past the end raise; nothing is reserved for what a length claims."""
    with suppress(ValueError, UnicodeDecodeError, struct.error):
        getattr(protocol, version).decode(data)


@pytest.mark.anyio
@pytest.mark.parametrize("size", [-1, 0x15030300, 2**31 - 1])
async def test_an_answer_of_a_senseless_size_ends_the_connection(size: int) -> None:
    """What does not speak Kafka is found out at its first length, before anything is read into memory."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        writer.write(size.to_bytes(4, "big", signed=True))
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        security = Security(ssl_context=None, mechanism="PLAIN", username=None, password=None)
        connection = Connection(server.sockets[0].getsockname(), security, 5, lambda _: None)
        with pytest.raises(KafkaError) as raised:
            await connection.open()
        assert "does this port speak TLS?" in str(raised.value.__cause__)


@pytest.mark.anyio
async def test_a_broker_that_said_how_long_it_will_be_quiet_is_not_taken_for_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over its quota a client is read again after the time that the last answer names; else no answer is silence."""
    security = Security(ssl_context=None, mechanism="PLAIN", username=None, password=None)
    connection = Connection(("127.0.0.1", 9), security, 0.1, lambda _: None)
    throttled, later = SimpleNamespace(throttle_time_ms=1000), SimpleNamespace(throttle_time_ms=0)
    answers = [(0.0, throttled), (0.4, later), (0.4, later)]

    async def send(_: object) -> SimpleNamespace:
        seconds, answer = answers.pop(0)
        await asyncio.sleep(seconds)
        return answer

    monkeypatch.setattr(connection._inner, "send", send)
    assert await connection._ask(object()) is throttled
    assert await connection._ask(object()) is later
    with pytest.raises(BrokerUnavailableError, match="no answer from"):
        await connection._ask(object())


def test_no_secret_is_shown() -> None:
    """The repr of what logs in holds no password and no token."""
    security = Security(
        ssl_context=None, mechanism="PLAIN", username="alice", password="hunter2", token=Token("eyJhbGciOi")
    )
    assert "alice" in repr(security)
    assert not {"hunter2", "eyJhbGciOi"} & set(re.findall(r"\w+", repr(security)))


@pytest.mark.anyio
@pytest.mark.parametrize("code", [6, 100, 103, 9999, -1])
async def test_what_a_fetch_cannot_mend_is_the_links_loss(tasks: Tasks, code: int) -> None:
    """A partition that moved, a topic with another id, and a code that nobody has placed end the link."""
    link, reader = Nodes(), KafkaReader(Pace(wait_ms=500), tasks.spawn)
    await reader.open(cast("KafkaLink", link), RecordingSink())
    await link.nodes[1].asked.wait()
    link.nodes[1].answer([Fetched(0, code, b"", 0)])
    with pytest.raises(BrokerUnavailableError, match="cannot be read"):
        await tasks.first
    reader.close()


@pytest.mark.anyio
async def test_a_right_that_was_taken_away_revokes_every_channel(tasks: Tasks) -> None:
    """Where the broker refuses to be read from now on, the subscriptions are revoked and the reader is closed."""
    link, reader, sink = Nodes(), KafkaReader(Pace(wait_ms=500), tasks.spawn), RecordingSink()
    await reader.open(cast("KafkaLink", link), sink)
    reader.channels = {b"a": "a", b"b": "b"}
    await link.nodes[1].asked.wait()
    link.nodes[1].answer([Fetched(0, NOT_AUTHORIZED, b"", 0)])
    await sink.until(lambda: sink.revocations != [])
    ((channels, reason),) = sink.revocations
    assert channels == {"a", "b"}
    assert not reader.is_open
    assert not reader.channels
    assert "grant READ" in reason


@pytest.mark.anyio
async def test_a_log_that_parted_from_what_was_read_is_a_gap(tasks: Tasks) -> None:
    """Where the broker finds that it lost records which were read, and took others, reading goes on where they part."""
    link, reader, sink = Nodes(), KafkaReader(Pace(wait_ms=500), tasks.spawn), RecordingSink()
    link.nodes[1].ends[LATEST] = Position(20, 4)
    await reader.open(cast("KafkaLink", link), sink)
    await link.nodes[1].asked.wait()
    assert link.nodes[1].positions == {0: Position(20, 4)}
    link.nodes[1].answer([Fetched(0, 0, b"", 30, Position(12, 3))])
    await link.nodes[1].asked.wait()
    assert link.nodes[1].positions == {0: Position(12, 3)}
    assert [channels for channels, _ in sink.gaps] == [None]
    reader.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("topic_id", "first", "expected"),
    [
        (b"i" * 16, [Fetched(0, 0, b"", 14, Position(12, 3))], Position(12, 3)),
        (b"i" * 16, [Fetched(0, 1, b"", 14)], Position(14, 5)),
        (NO_TOPIC_ID, [], Position(14, 5)),
    ],
    ids=["parted", "nothing-shared", "no-epochs"],
)
async def test_a_log_that_ends_before_the_position_is_read_from_where_they_part(
    tasks: Tasks, topic_id: bytes, first: list[Fetched], expected: Position
) -> None:
    """A shorter log that came in an outage costs nothing that it holds after the common part, where that is known."""
    link, reader, sink = Nodes(), KafkaReader(Pace(wait_ms=500), tasks.spawn), RecordingSink()
    node = link.nodes[1]
    link.topology = replace(link.topology, topic_id=topic_id)
    node.ends[LATEST] = Position(20, 4)
    await reader.open(cast("KafkaLink", link), sink)
    reader.close()
    node.ends[LATEST], node.first = Position(14, 5), first
    await reader.open(cast("KafkaLink", link), sink)
    await node.asked.wait()
    assert node.positions == {0: expected}
    assert [channels for channels, _ in sink.gaps] == [None]
    reader.close()


@pytest.mark.anyio
async def test_what_the_broker_cannot_read_is_stepped_over(tasks: Tasks) -> None:
    """A place that the broker itself finds damaged is left behind in growing steps, each told as a gap."""
    link, reader, sink = Nodes(), KafkaReader(Pace(wait_ms=500), tasks.spawn), RecordingSink()
    await reader.open(cast("KafkaLink", link), sink)
    link.nodes[1].ends[LATEST] = Position(100)
    for expected in (0, 1, 3, 7):
        await link.nodes[1].asked.wait()
        assert link.nodes[1].positions[0].offset == expected
        link.nodes[1].answer([Fetched(0, 2, b"", 100)])
    reader.close()


@pytest.mark.anyio
async def test_unreadable_records_do_not_become_a_gap_each(tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of them is told at once, all that follow within five seconds as one gap at their end."""
    monkeypatch.setattr("backplane.adapters.kafka.reader._UNREADABLE_SECONDS", 0.2)
    link, reader, sink = Nodes(), KafkaReader(Pace(wait_ms=500), tasks.spawn), RecordingSink()
    await reader.open(cast("KafkaLink", link), sink)
    for number in range(5):
        await link.nodes[1].asked.wait()
        data = _batch(b"x", base=number)
        data[-1] ^= 1
        link.nodes[1].answer([Fetched(0, 0, bytes(data), number + 1)])
    assert len(sink.gaps) == 1
    await sink.until(lambda: len(sink.gaps) == 2)
    reader.close()


@pytest.mark.parametrize(("key", "expected"), [(b"21", -973932308), (b"foobar", -790332482), (b"", 275646681)])
def test_the_partition_is_the_one_java_takes(key: bytes, expected: int) -> None:
    """The hash is murmur2 with the sign bit masked, as in Kafka's own tests of it."""
    assert partition_hash(key) == expected & 0x7FFFFFFF
