"""Batches, sequence numbers, and the answers of a broker to what is published."""

# pyright: reportPrivateUsage=false, reportMissingTypeStubs=false

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from backplane.adapters.kafka.answers import ProduceAnswer
from backplane.adapters.kafka.connection import ConnectionEndedError
from backplane.adapters.kafka.producer import KafkaProducer
from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError
from tests.unit.adapters.kafka.doubles import ScriptedLink, ScriptedNodes, Tasks, values_of
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    from backplane.adapters.kafka.link import KafkaLink

STORED, TOO_LARGE, NOT_LEADER, TOO_FEW_REPLICAS, OUT_OF_SEQUENCE, DUPLICATE = 0, 10, 6, 19, 45, 46
REQUEST_TIMED_OUT, TOO_FEW_REPLICAS_AFTER_APPEND, NOT_AUTHORIZED, INVALID_TIMESTAMP = 7, 20, 29, 32
INVALID_RECORD, THROTTLED = 87, 89


async def open_producer(tasks: Tasks, link: ScriptedLink, producer: KafkaProducer | None = None) -> KafkaProducer:
    """Return a producer, by default a new one, that is open over `link`."""
    producer = producer or KafkaProducer(1000, 10_000, tasks.spawn)
    await producer.open(cast("KafkaLink", link))
    return producer


def producer_id_of(batch: bytes) -> int:
    """Return the producer id of a batch."""
    return int.from_bytes(batch[43:51], "big")


def sequence_of(batch: bytes) -> int:
    """Return the sequence number of a batch: https://kafka.apache.org/documentation/#recordbatch."""
    return int.from_bytes(batch[53:57], "big")


@pytest.mark.anyio
async def test_messages_published_in_one_pass_are_sent_in_one_batch(tasks: Tasks) -> None:
    """Messages published in one pass of the event loop share a batch, in order; the next one has the next number."""
    link = ScriptedLink(STORED, STORED)
    producer = await open_producer(tasks, link)
    await asyncio.gather(*(producer.publish(b"key", b"%d" % number) for number in range(3)))
    await producer.publish(b"key", b"3")
    values = [value for batch in link.sent for value in values_of(batch)]
    assert values == [b"0", b"1", b"2", b"3"]
    assert [sequence_of(batch) for batch in link.sent] == [0, 3]


@pytest.mark.anyio
@pytest.mark.parametrize("code", [TOO_LARGE, NOT_AUTHORIZED])
async def test_a_refused_batch_uses_no_sequence_number(tasks: Tasks, code: int) -> None:
    """A refusal raises `PublishError`, because nothing was published, and the next batch uses its number."""
    link = ScriptedLink(code, STORED)
    producer = await open_producer(tasks, link)
    with pytest.raises(PublishError) as raised:
        await producer.publish(b"key", b"refused")
    assert not isinstance(raised.value, PublishOutcomeUnknownError)
    assert raised.value.retriable is False
    await producer.publish(b"key", b"stored")
    assert [sequence_of(batch) for batch in link.sent] == [0, 0]


@pytest.mark.anyio
@pytest.mark.parametrize("code", [TOO_FEW_REPLICAS, TOO_FEW_REPLICAS_AFTER_APPEND, REQUEST_TIMED_OUT, THROTTLED])
async def test_a_batch_that_is_postponed_is_sent_again(tasks: Tasks, code: int) -> None:
    """A batch that the broker postpones is sent again, the same bytes over the same link, until it is stored."""
    link = ScriptedLink(code, code, STORED)
    producer = await open_producer(tasks, link)
    await producer.publish(b"key", b"postponed")
    assert link.sent == [link.sent[0]] * 3
    assert not link.is_over


@pytest.mark.anyio
async def test_a_batch_that_is_always_postponed_raises_a_retriable_error(tasks: Tasks) -> None:
    """Postponed for over a second, a publish raises `PublishError`: not published, and a retry can succeed."""
    link = ScriptedLink(*[TOO_FEW_REPLICAS] * 6, STORED)
    producer = await open_producer(tasks, link)
    with pytest.raises(PublishError, match="NotEnoughReplicas") as raised:
        await producer.publish(b"key", b"refused")
    assert not isinstance(raised.value, PublishOutcomeUnknownError)
    assert raised.value.retriable
    await producer.publish(b"key", b"stored")
    assert sequence_of(link.sent[-1]) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("code", [-1, 84, 119, 9999])
async def test_an_unlisted_code_leaves_the_outcome_unknown(tasks: Tasks, code: int) -> None:
    """An error that leaves it open whether the batch was stored is no refusal; the next batch has a new producer id."""
    link = ScriptedLink(code, STORED)
    producer = await open_producer(tasks, link)
    with pytest.raises(PublishOutcomeUnknownError, match=str(code)):
        await producer.publish(b"key", b"lost?")
    await producer.publish(b"key", b"stored")
    assert not link.is_over
    assert [(producer_id_of(batch), sequence_of(batch)) for batch in link.sent] == [(1, 0), (2, 0)]


@pytest.mark.anyio
async def test_only_the_invalid_record_of_a_batch_is_refused(tasks: Tasks) -> None:
    """A batch refused because of one record is halved until that one is alone; the others are stored, in order."""
    link = ScriptedLink(TOO_LARGE, STORED, TOO_LARGE, TOO_LARGE, STORED)
    producer = await open_producer(tasks, link)
    sent = [producer.publish(b"key", b"%d" % number) for number in range(4)]
    outcomes = await asyncio.gather(*sent, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [tuple, tuple, PublishError, tuple]
    assert [values_of(batch) for batch in link.sent] == [
        [b"0", b"1", b"2", b"3"],
        [b"0", b"1"],
        [b"2", b"3"],
        [b"2"],
        [b"3"],
    ]
    assert [sequence_of(batch) for batch in link.sent] == [0, 0, 2, 2, 2]


@pytest.mark.anyio
async def test_records_that_the_broker_names_are_refused_and_the_rest_is_stored(tasks: Tasks) -> None:
    """Where the broker names the records that it refuses, with its reasons, the others are sent in one batch."""
    link = ScriptedLink(ProduceAnswer(INVALID_RECORD, "One or more", {1: "no schema"}), STORED)
    producer = await open_producer(tasks, link)
    sent = [producer.publish(b"key", b"%d" % number) for number in range(3)]
    first, second, third = await asyncio.gather(*sent, return_exceptions=True)
    assert first == third == (0, None)
    assert isinstance(second, PublishError)
    assert "InvalidRecord (87): no schema" in str(second)
    assert values_of(link.sent[1]) == [b"0", b"2"]


@pytest.mark.anyio
async def test_a_refused_timestamp_shows_the_clock(tasks: Tasks) -> None:
    """A timestamp that the broker refuses raises an error with the time of this machine."""
    producer = await open_producer(tasks, ScriptedLink(INVALID_TIMESTAMP))
    with pytest.raises(PublishError, match=r"is a clock wrong\? This machine's reads \d{4}-"):
        await producer.publish(b"key", b"from tomorrow")


@pytest.mark.anyio
async def test_a_message_that_ends_every_connection_is_given_up(tasks: Tasks) -> None:
    """A message that was alone in flight when three connections ended is given up; later messages are stored."""
    ended = ConnectionEndedError("the connection ended", adapter="kafka")
    link = ScriptedLink(ended, ended, ended, STORED)
    producer = await open_producer(tasks, link)
    with pytest.raises(PublishOutcomeUnknownError, match=r"socket\.request\.max\.bytes"):
        await producer.publish(b"key", b"too large for the socket")
    await producer.publish(b"key", b"stored")
    assert not link.is_over
    assert [values_of(batch) for batch in link.sent[2:]] == [[b"too large for the socket"], [b"stored"]]


@pytest.mark.anyio
async def test_a_batch_with_which_three_connections_ended_is_halved(tasks: Tasks) -> None:
    """Several messages together may be too large for one request: each half is sent before one is given up."""
    ended = ConnectionEndedError("the connection ended", adapter="kafka")
    link = ScriptedLink(ended, ended, ended, STORED, STORED)
    producer = await open_producer(tasks, link)
    await asyncio.gather(*(producer.publish(b"key", b"%d" % number) for number in range(2)))
    assert [values_of(batch) for batch in link.sent[3:]] == [[b"0"], [b"1"]]


@pytest.mark.anyio
async def test_a_user_without_the_right_to_publish_can_start_and_subscribe(
    tasks: Tasks, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the right to publish the start succeeds, with one warning; publish raises and names the right."""
    link = ScriptedLink(STORED)
    link.producer_id_codes = [31, 31]
    producer = await open_producer(tasks, link)
    with pytest.raises(PublishError, match="grant WRITE") as raised:
        await producer.publish(b"key", b"refused")
    assert not isinstance(raised.value, PublishOutcomeUnknownError)
    await producer.retry_authorization(cast("KafkaLink", link))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    await producer.retry_authorization(cast("KafkaLink", link))
    await producer.publish(b"key", b"granted by now")


@pytest.mark.anyio
async def test_another_cluster_gets_no_sequence_numbers_of_the_last_one(tasks: Tasks) -> None:
    """If the name leads to another cluster, outcomes of sent batches are unknown; new ones have a new producer id."""
    first = ScriptedLink(None)
    producer = await open_producer(tasks, first)
    sent = asyncio.create_task(producer.publish(b"key", b"sent"))
    while not first.sent:
        await asyncio.sleep(0)
    await tasks.end()
    producer.close()
    second = ScriptedLink(STORED)
    second.topology = replace(second.topology, cluster="another")
    second.granted = 7
    await open_producer(tasks, second, producer)
    with pytest.raises(PublishOutcomeUnknownError, match="created anew"):
        await sent
    await producer.publish(b"key", b"new")
    assert [values_of(batch) for batch in second.sent] == [[b"new"]]
    assert producer_id_of(second.sent[0]) == 8


@pytest.mark.anyio
@pytest.mark.parametrize("answers", [(NOT_LEADER,), (None,)], ids=["moved", "silent"])
@pytest.mark.parametrize("second", [STORED, DUPLICATE])
async def test_a_batch_without_its_answer_is_sent_again(
    tasks: Tasks, answers: tuple[int | None, ...], second: int
) -> None:
    """Over the next link the same bytes are sent before newer batches; stored before or not, it is a success."""
    first = ScriptedLink(*answers)
    producer = await open_producer(tasks, first)
    waiting = asyncio.create_task(producer.publish(b"key", b"again"))
    while not first.sent:
        await asyncio.sleep(0)
    await tasks.end()
    producer.close()
    with pytest.raises(BrokerUnavailableError):
        await producer.publish(b"key", b"between")
    link = ScriptedLink(second, STORED)
    await open_producer(tasks, link, producer)
    newer = asyncio.create_task(producer.publish(b"key", b"newer"))
    await waiting
    await newer
    assert link.sent[0] == first.sent[0]
    assert [sequence_of(batch) for batch in link.sent] == [0, 1]


@pytest.mark.anyio
async def test_a_producer_id_that_the_broker_forgot_is_replaced(tasks: Tasks) -> None:
    """If the broker has lost its sequence numbers one outcome is unknown; the next batch has a new producer id."""
    link = ScriptedLink(STORED, OUT_OF_SEQUENCE, STORED)
    producer = await open_producer(tasks, link)
    await producer.publish(b"key", b"first")
    with pytest.raises(PublishOutcomeUnknownError):
        await producer.publish(b"key", b"unknown")
    await producer.publish(b"key", b"stored")
    assert not link.is_over
    assert [(producer_id_of(batch), sequence_of(batch)) for batch in link.sent] == [(1, 0), (1, 1), (2, 0)]


@pytest.mark.anyio
async def test_a_stop_distinguishes_sent_from_unsent(tasks: Tasks) -> None:
    """The outcome of a batch in flight is unknown; what waited after it was certainly not published."""
    link = ScriptedLink(None)
    producer = await open_producer(tasks, link)
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
    """Above the bound `publish` raises, retriable; one message is always accepted."""
    producer = KafkaProducer(1000, 100, tasks.spawn)
    await open_producer(tasks, ScriptedLink(None), producer)
    first = asyncio.create_task(producer.publish(b"key", bytes(500)))
    await asyncio.sleep(0)
    with pytest.raises(PublishError, match="await the broker's answer") as raised:
        await producer.publish(b"key", b"x")
    assert raised.value.retriable
    first.cancel()


@pytest.mark.anyio
async def test_a_batch_in_flight_is_not_sent_to_the_next_leader_too(tasks: Tasks) -> None:
    """While a batch is in flight nothing is sent to the next leader; then it receives later messages, none twice."""
    link = ScriptedNodes()
    producer = KafkaProducer(1000, 10_000, tasks.spawn)
    await producer.open(cast("KafkaLink", link))
    first = asyncio.create_task(producer.publish(b"key", b"first"))
    await link.nodes[1].requested.wait()
    second = asyncio.create_task(producer.publish(b"key", b"second"))
    link.move_to(2)
    third = asyncio.create_task(producer.publish(b"key", b"third"))
    await until_idle()
    assert not link.nodes[2].batches
    link.nodes[1].answer({0: ProduceAnswer(STORED)})
    await first
    await link.nodes[2].requested.wait()
    assert not second.done()
    link.nodes[2].answer({0: ProduceAnswer(STORED)})
    await second
    await third
    values = [values_of(batch) for batch in link.nodes[2].batches]
    assert (len(link.nodes[1].batches), values) == (1, [[b"second", b"third"]])


@pytest.mark.anyio
async def test_each_message_has_its_own_offset(tasks: Tasks) -> None:
    """The offset is that of the batch and the place in it, of the batches too into which a refused one is split."""
    link = ScriptedLink(
        ProduceAnswer(STORED, offset=40),
        ProduceAnswer(INVALID_RECORD, "", {1: "no schema"}),
        ProduceAnswer(0, offset=43),
    )
    producer = await open_producer(tasks, link)
    assert await asyncio.gather(*(producer.publish(b"key", b"%d" % number) for number in range(3))) == [
        (0, 40),
        (0, 41),
        (0, 42),
    ]
    sent = [producer.publish(b"key", b"%d" % number) for number in range(3)]
    first, refused, third = await asyncio.gather(*sent, return_exceptions=True)
    assert (first, third) == ((0, 43), (0, 44))
    assert isinstance(refused, PublishError)


@pytest.mark.anyio
async def test_a_repetition_whose_offset_the_broker_has_forgotten_has_none(tasks: Tasks) -> None:
    """A batch that was stored before its answer was lost, too long ago for the broker to know where, has no offset."""
    link = ScriptedLink(ConnectionEndedError("ended", adapter="kafka"), ProduceAnswer(DUPLICATE), ProduceAnswer(STORED))
    producer = await open_producer(tasks, link)
    assert await producer.publish(b"key", b"1") == (0, None)
    assert await producer.publish(b"key", b"2") == (0, None)
