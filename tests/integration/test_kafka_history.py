"""The history of channels on Kafka: positions, what is resumed from memory and from the log, and what is not found."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false
# aiokafka has no types.

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from zlib import crc32

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete  # type: ignore[import-untyped]

from backplane import (
    Backplane,
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    History,
    Message,
    Position,
    Settings,
)
from backplane.adapters.kafka import KafkaBroadcaster
from backplane.broker.registry import broadcaster_from_url
from backplane.history_rules import HistoryRules
from backplane.testing import FaultProxy, RecordingSink
from tests.brokers.kafka import KafkaProcess
from tests.brokers.kafka_topic import topic_proxy, topic_url
from tests.integration.test_kafka import WRITE, grant

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.broadcaster import Recalled
    from backplane.message import Place
    from tests.brokers.broker import Broker
    from tests.conftest import StartKafka

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

MANY = 1_000_000
RULE = History(max_messages=5)
RULES = HistoryRules({"room*": RULE, "old*": History(max_age_seconds=0.2), "big*": History(max_messages=1000)})


class PlacesSink(RecordingSink):
    """Records the places too, of each channel, in `placed`."""

    def __init__(self) -> None:
        super().__init__()
        self.placed: dict[str, list[Place | None]] = {}

    def deliver(self, channel: str, payload: bytes, place: Place | None = None) -> None:
        """Record a delivery."""
        self.placed.setdefault(channel, []).append(place)
        super().deliver(channel, payload, place)


@pytest.fixture
def topic() -> str:
    """A topic of the test's own, not created."""
    return f"history-{uuid.uuid4()}"


@pytest.fixture
def url(kafka_broker: Broker, topic: str) -> str:
    """The URL of the topic, with one partition, at the shared broker."""
    return topic_url(kafka_broker, topic, "&partitions=1")


@pytest.fixture
def proxy(kafka_broker: Broker, topic: str) -> FaultProxy:
    """A proxy at the address that one of the listeners advertises."""
    return topic_proxy(kafka_broker, topic, "&partitions=1")


@asynccontextmanager
async def worker(url: str, *channels: str, sink: PlacesSink | None = None) -> AsyncGenerator[KafkaBroadcaster]:
    """Start an adapter, subscribed to `channels`; to none it holds no reader."""
    broadcaster = broadcaster_from_url(url)
    assert isinstance(broadcaster, KafkaBroadcaster)
    await broadcaster.start(sink or PlacesSink())
    try:
        await broadcaster.prepare(RULES)
        if channels:
            await broadcaster.subscribe(channels)
        yield broadcaster
    finally:
        await broadcaster.stop()


async def keep(broadcaster: KafkaBroadcaster, channel: str, *payloads: bytes) -> list[Position]:
    """Publish and return the positions."""
    positions: list[Position] = []
    for payload in payloads:
        receipt = await broadcaster.keep(channel, payload, RULE)
        assert receipt.position is not None
        positions.append(receipt.position)
    return positions


async def recall(
    broadcaster: KafkaBroadcaster,
    channel: str,
    after: Position | None = None,
    *,
    limit: int = 1000,
    max_bytes: int = MANY,
) -> Recalled:
    """Ask for the history of a channel."""
    rule = RULES.rule_of(channel)
    assert rule is not None
    return await broadcaster.recall(channel, rule, after=after, limit=limit, max_bytes=max_bytes)


def payloads(recalled: Recalled) -> list[bytes]:
    """Return the payloads."""
    return [item.payload for item in recalled.items]


@pytest.fixture(params=["memory", "scan", "no-reader"])
async def reading(request: pytest.FixtureRequest, url: str, anyio_backend: object) -> AsyncGenerator[Any]:
    """Return two adapters: one that publishes, and a function that returns one that reads.

    It reads from memory, or from the log as a worker does that has just started, or as a process without subscriptions.
    """
    async with worker(url) as publisher:
        if request.param == "memory":
            async with worker(url, "room") as reader:
                yield publisher, lambda: asynccontextmanager(_just)(reader)
        elif request.param == "scan":
            yield publisher, lambda: worker(url, "room")
        else:
            yield publisher, lambda: worker(url)


async def _just(reader: KafkaBroadcaster) -> AsyncGenerator[KafkaBroadcaster]:
    yield reader


async def test_exactly_what_was_missed_is_recalled(reading: Any) -> None:
    """After each position come the messages that follow, in order, with their own positions."""
    publisher, reader_of = reading
    positions = await keep(publisher, "room", *(b"%d" % number for number in range(5)))
    await keep(publisher, "room-2", b"other")
    async with reader_of() as reader:
        for number, position in enumerate(positions):
            found = await recall(reader, "room", position)
            assert found.found
            assert payloads(found) == [b"%d" % later for later in range(number + 1, 5)]
            assert [item.place for item in found.items] == positions[number + 1 :]
            assert found.top == positions[-1]
            assert not found.more
            assert [item.place.before for item in found.items[1:]] == [
                place.offset for place in positions[number + 1 : -1]
            ]


async def test_the_newest_messages_are_recalled(reading: Any) -> None:
    """Without a position the newest messages come, at most as many as the rule keeps and one more."""
    publisher, reader_of = reading
    positions = await keep(publisher, "room", *(b"%d" % number for number in range(10)))
    async with reader_of() as reader:
        assert payloads(await recall(reader, "room")) == [b"4", b"5", b"6", b"7", b"8", b"9"]
        two = await recall(reader, "room", limit=2)
        assert (payloads(two), two.more) == ([b"8", b"9"], True)
        none = await recall(reader, "room", limit=0)
        assert (none.items, none.top) == ([], positions[-1])
        small = await recall(reader, "room", max_bytes=1)
        assert (payloads(small), small.more) == ([b"8", b"9"], True)
        small = await recall(reader, "room", positions[5], max_bytes=1)
        assert (payloads(small), small.more) == ([b"6", b"7"], True)
        limited = await recall(reader, "room", positions[5], limit=1)
        assert (payloads(limited), limited.more, limited.top) == ([b"6"], True, positions[-1])


async def test_as_many_as_the_rule_keeps_are_resumed_and_not_one_more(reading: Any) -> None:
    """The position of a client that missed five of five is found, and that of one that missed six is not."""
    publisher, reader_of = reading
    positions = await keep(publisher, "room", *(b"%d" % number for number in range(7)))
    async with reader_of() as reader:
        assert payloads(await recall(reader, "room", positions[1])) == [b"2", b"3", b"4", b"5", b"6"]
        missed = await recall(reader, "room", positions[0])
        assert (missed.found, missed.items, missed.top) == (False, [], positions[-1])


async def test_a_channel_that_was_never_used(reading: Any) -> None:
    """It has a position, with offset 0, that is resumed once there are messages, by any process."""
    publisher, reader_of = reading
    await keep(publisher, "room-2", b"other")
    async with reader_of() as reader:
        first = await recall(reader, "room", limit=0)
        assert (first.top.offset, first.top.check) == (0, 0)
        empty = await recall(reader, "room", first.top)
        assert (empty.found, empty.items, empty.top) == (True, [], first.top)
        await keep(publisher, "room", b"1", b"2")
        assert payloads(await recall(reader, "room", first.top)) == [b"1", b"2"]
    async with reader_of() as reader:
        found = await recall(reader, "room", first.top)
        assert (payloads(found), found.items[0].place.before) == ([b"1", b"2"], 0)


async def test_positions_of_others_are_not_found(reading: Any) -> None:
    """A position of another channel, even one before its first message, or with invented numbers, is not found."""
    publisher, reader_of = reading
    (other,) = await keep(publisher, "room-2", b"other")
    (mine,) = await keep(publisher, "room", b"mine")
    async with reader_of() as reader:
        unused = (await recall(reader, "room-3", limit=0)).top
        for position in (
            other,
            unused,
            Position(mine.epoch, mine.offset, mine.check ^ 1),
            Position(mine.epoch, other.offset, mine.check),
            Position(mine.epoch, 0, 1),
            Position(mine.epoch, 2**62, mine.check),
            Position(mine.epoch, 2**64 - 1, 0),
            Position(b"\0" * 8, mine.offset, mine.check),
        ):
            found = await recall(reader, "room", position)
            assert (found.found, found.items, found.top) == (False, [], mine)


async def test_messages_that_are_too_old_are_not_recalled(reading: Any) -> None:
    """A message older than the rule permits is not returned, nor a position before it found; the newest position is."""
    publisher, reader_of = reading
    first, second = await keep(publisher, "old", b"1", b"2")
    await asyncio.sleep(0.3)  # age itself is the subject
    async with reader_of() as reader:
        assert payloads(await recall(reader, "old")) == []
        assert not (await recall(reader, "old", first)).found
        newest = await recall(reader, "old", second)
        assert (newest.found, newest.top) == (True, second)
        (third,) = await keep(publisher, "old", b"3")
        resumed = await recall(reader, "old", second)
        assert (payloads(resumed), resumed.top) == ([b"3"], third)
        assert not (await recall(reader, "old", first)).found


async def test_live_messages_have_their_places(url: str) -> None:
    """A message that is received live has the position of its receipt; one on a channel without a rule has none."""
    sink = PlacesSink()
    async with worker(url, "room", "plain", sink=sink) as broadcaster:
        positions = await keep(broadcaster, "room", b"1", b"2")
        await broadcaster.publish("room", b"3")  # everything is kept
        await broadcaster.publish("plain", b"4")
        await sink.until(lambda: len(sink.delivered) == 4)
        assert sink.placed["room"][:2] == positions
        assert [place and (place.before, place.check) for place in sink.placed["room"]] == [
            (None, crc32(b"1")),
            (None, crc32(b"2")),
            (None, crc32(b"3")),
        ]
        assert sink.placed["plain"] == [None]
        assert payloads(await recall(broadcaster, "room", positions[0])) == [b"2", b"3"]


async def test_a_process_without_a_subscription_reads_nothing_until_it_is_asked(proxy: FaultProxy) -> None:
    """It holds no reader: one connection to publish, and one more from the first question on."""
    async with proxy, worker(proxy.url) as broadcaster:
        (position,) = await keep(broadcaster, "room", b"1")
        assert proxy.links == 1
        assert (await recall(broadcaster, "room", position)).found
        assert (await recall(broadcaster, "room", position)).found
        assert proxy.links == 2


async def test_questions_that_come_together_share_one_reading_of_the_log(url: str) -> None:
    """A worker that has just started reads the log once for a thousand channels, and once more for none of them."""
    async with worker(url) as publisher:
        receipts = await asyncio.gather(*(publisher.keep(f"room-{n}", b"%d" % n, RULE) for n in range(1000)))
        async with worker(url, "room") as reader:
            for _ in range(2):
                found = await asyncio.gather(*(recall(reader, f"room-{number}", limit=0) for number in range(500)))
                assert [one.top for one in found] == [receipt.position for receipt in receipts[:500]]
            found = await asyncio.gather(*(recall(reader, f"room-{number}") for number in range(500, 1000)))
            assert [payloads(one) for one in found] == [[b"%d" % number] for number in range(500, 1000)]
            assert reader._history is not None
            assert reader._history.scans == 1


async def test_a_position_older_than_one_reading_is_not_found(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """What lies more than 16 MiB back is not found. A quiet channel gets the end of the log as its position."""
    async with worker(url) as publisher:
        (old,) = await keep(publisher, "room", b"old")
        for _ in range(20):
            await publisher.publish("noise", bytes(900_000))
        async with worker(url, "room") as reader, worker(url) as aside:
            for broadcaster in (reader, aside):
                assert not (await recall(broadcaster, "room", old)).found
                quiet = await recall(broadcaster, "room", limit=0)
                assert (quiet.top.offset, quiet.found) == (21, True)
                assert (await recall(reader, "room", quiet.top)).found
                assert (await recall(aside, "room", quiet.top)).found
            (new,) = await keep(publisher, "room", b"new")
            for broadcaster in (reader, aside):
                found = await recall(broadcaster, "room", quiet.top)
                assert (payloads(found), found.top) == ([b"new"], new)
                wrong = Position(quiet.top.epoch, quiet.top.offset, quiet.top.check ^ 1)
                assert not (await recall(broadcaster, "room", wrong)).found
        assert caplog.text.count("bytes back and no further") == 2


async def test_memory_is_bounded_and_what_it_lacks_is_read_from_the_log(url: str) -> None:
    """With little memory every position is found all the same."""
    async with worker(f"{url}&max_ring_bytes=20000", "room") as reader, worker(url) as publisher:
        positions = {f"big-{n}": await keep(publisher, f"big-{n}", *[b"x%d" % n * 100] * 3) for n in range(50)}
        for channel, (first, *rest) in positions.items():
            found = await recall(reader, channel, first)
            assert found.found, channel
            assert [item.place for item in found.items] == rest
        assert reader._reader is not None
        assert reader._reader.rings is not None
        assert reader._reader.rings.size_bytes <= 20_000


async def test_a_link_that_is_cut_keeps_positions_and_memory(proxy: FaultProxy, url: str) -> None:
    """After a lost link messages of the outage are delivered with their places, and old positions are resumed."""
    sink = PlacesSink()
    async with proxy, worker(proxy.url, "room", sink=sink) as broadcaster, worker(url) as outside:
        (first,) = await keep(outside, "room", b"1")
        await sink.until(lambda: len(sink.delivered) == 1)
        asked = asyncio.create_task(recall(broadcaster, "room", first))
        proxy.cut()
        await sink.until(lambda: sink.losses != [])
        await broadcaster.suspend()
        with pytest.raises(BrokerUnavailableError):
            await asked
        with pytest.raises(BrokerUnavailableError):
            await recall(broadcaster, "room", first)
        rest = await keep(outside, "room", b"2", b"3")
        await broadcaster.resume(sink, ["room"])
        await broadcaster.prepare(RULES)
        assert payloads(await recall(broadcaster, "room", first)) == [b"2", b"3"]
        assert sink.placed["room"] == [first, *rest]
        assert sink.gaps == []
        assert broadcaster._history is not None
        assert broadcaster._history.scans == 0


async def test_a_topic_that_was_created_anew_has_other_positions(url: str, topic: str) -> None:
    """A position of the old topic is not found in the new one, even if the messages are the same."""
    async with worker(url) as publisher:
        (old,) = await keep(publisher, "room", b"1")
        unused = (await recall(publisher, "room-2", limit=0)).top
    async with _admin(url) as admin:
        await admin.delete_topics([topic])
        while not (await admin.describe_topics([topic]))[0]["error_code"]:  # the metadata has the old one still
            await asyncio.sleep(0.01)
        while (await admin.create_topics([NewTopic(topic, 1, 1)])).topic_errors[0][1]:
            await asyncio.sleep(0.01)
    async with worker(url) as publisher:
        (new,) = await keep(publisher, "room", b"1")
        assert (old.offset, old.check) == (new.offset, new.check)
        assert not (await recall(publisher, "room", old)).found
        assert not (await recall(publisher, "room-2", unused)).found


async def test_channels_that_moved_to_another_partition(url: str, topic: str) -> None:
    """With more partitions a channel moves: its old position is not found, unless it stays where it was."""
    names = [f"room-{number}" for number in range(8)]
    async with worker(f"{url}&metadata_max_age_seconds=0.1", *names) as reader:
        before = {name: (await keep(reader, name, b"before"))[0] for name in names}
        async with _admin(url) as admin:
            await admin.create_partitions({topic: NewPartitions(4)})
        assert reader._reader is not None
        rings = reader._reader.rings
        assert rings is not None
        while rings._identity is None or rings._identity.partitions < 4:
            await asyncio.sleep(0.01)
        after = {name: (await keep(reader, name, b"after"))[0] for name in names}
        stayed = {name for name in names if before[name].epoch == after[name].epoch}
        assert 0 < len(stayed) < len(names)
        for name in names:
            found = await recall(reader, name, before[name])
            assert (found.found, found.top) == (name in stayed, after[name])
            assert payloads(found) == ([b"after"] if name in stayed else [])


async def test_records_that_were_deleted_are_not_recalled(url: str, topic: str) -> None:
    """What retention has deleted is found in the memory of a worker that has read it, and not by a new one."""
    async with worker(url, "room") as reader:
        positions = await keep(reader, "room", *(b"%d" % number for number in range(5)))
        async with _admin(url) as admin:
            await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(3)})
        assert payloads(await recall(reader, "room", positions[0])) == [b"1", b"2", b"3", b"4"]
        async with worker(url, "room") as new, worker(url) as aside:
            for broadcaster in (new, aside):
                assert not (await recall(broadcaster, "room", positions[0])).found
                assert payloads(await recall(broadcaster, "room", positions[3])) == [b"4"]
                assert payloads(await recall(broadcaster, "room")) == [b"3", b"4"]


async def test_foreign_records(url: str, topic: str) -> None:
    """Another producer's records are in the history, in transactions too, unless they are in another partition."""
    url = url.replace("partitions=1", "partitions=2")
    sink = PlacesSink()
    async with worker(url, "room", sink=sink) as reader, producer(url, transactional_id=topic) as foreign:
        (first,) = await keep(reader, "room", b"1")
        assert reader._reader is not None
        assert reader._reader.rings is not None
        own = reader._reader.rings.partition_of(b"room")
        for number in range(2):
            async with foreign.transaction():
                await foreign.send_and_wait(topic, b"in %d" % number, key=b"room", partition=own)
                await foreign.send_and_wait(topic, b"aside", key=b"room", partition=1 - own)
                await foreign.send_and_wait(topic, None, key=b"room", partition=own)
                await foreign.send_and_wait(topic, b"no key", partition=own)
                await foreign.send_and_wait(topic, b"\xff", key=b"\xff", partition=own)
        (last,) = await keep(reader, "room", b"2")
        await sink.until(lambda: len(sink.delivered) == 6)
        assert sink.gaps == []
        assert [place is None for place in sink.placed["room"]].count(True) == 2
        async with worker(url, "room") as new, worker(url) as aside:
            for broadcaster in (reader, new, aside):
                found = await recall(broadcaster, "room", first)
                assert (payloads(found), found.top) == ([b"in 0", b"in 1", b"2"], last)
                assert not found.more


async def test_a_user_that_may_only_publish_is_refused_the_history(kafka_broker: Broker, topic: str) -> None:
    """Without the right READ a message is kept, with its position, and a question to the history names the right."""
    if not isinstance(kafka_broker, KafkaProcess):
        pytest.skip("this Kafka cannot be configured")
    url = f"{kafka_broker.listener_urls['login']}?topic={topic}&partitions=1"
    async with worker(url.replace("//", "//admin:secret@", 1)) as admin:
        await grant(kafka_broker, "alice", topic, WRITE)
        async with worker(url.replace("//", "//alice:secret@", 1)) as alice:
            (position,) = await keep(alice, "room", b"1")
            for after in (None, position):
                with pytest.raises(BrokerError, match="grant READ") as raised:
                    await recall(alice, "room", after)
                assert raised.value.retriable is False
            await keep(alice, "room", b"2")
        assert payloads(await recall(admin, "room", position)) == [b"2"]


async def test_a_key_is_refused(url: str) -> None:
    """Kafka cannot discard what another process has published: a key raises before anything is sent."""
    async with worker(url) as publisher:
        with pytest.raises(ConfigurationError, match="idempotency_key"):
            await publisher.keep("room", b"1", RULE, key=b"key")
        assert (await recall(publisher, "room", limit=0)).top.offset == 0


async def test_recalls_that_are_cancelled_leave_nothing(url: str) -> None:
    """Questions that are cancelled at any moment disturb no other one."""
    async with worker(url) as publisher:
        await asyncio.gather(*(publisher.keep(f"room-{number}", bytes(1000), RULE) for number in range(2000)))
        async with worker(url, "room") as reader, worker(url) as aside:
            for broadcaster in (reader, aside):
                for number in range(40):
                    asked = [asyncio.create_task(recall(broadcaster, f"room-{n}")) for n in range(number, number + 3)]
                    for _ in range(number):
                        await asyncio.sleep(0)
                    asked[0].cancel()
                    asked[2].cancel()
                    assert payloads(await asked[1]) == [bytes(1000)]
                    await asyncio.gather(*asked, return_exceptions=True)


async def test_a_broker_that_is_killed_costs_no_gap(private_kafka: StartKafka) -> None:
    """Subscribers of a kept channel get everything across a kill of the broker, once, in order, and no gap.

    Another worker, which has no subscription, gives back what follows any position.
    """
    broker = private_kafka()
    if not isinstance(broker, KafkaProcess):
        pytest.skip("this Kafka cannot be killed")
    settings = Settings(max_backoff_seconds=0.2, publish_timeout_seconds=60)
    history = {"room*": History(max_messages=10_000)}
    url = f"{broker.url}?partitions=2"
    async with (
        Backplane(url, settings=settings, history=history) as one,
        Backplane(url, settings=settings, history=history) as two,
        one.subscribe("room") as messages,
    ):
        for number in range(50):
            await two.publish("room", f"{number}")
        publishing = [asyncio.create_task(two.publish("room", f"{number}")) for number in range(50, 300)]
        await asyncio.sleep(0)
        broker.kill9()
        await one.wait_for_state("degraded")
        broker.launch()
        await asyncio.to_thread(broker.wait_until_up)
        await asyncio.gather(*publishing)
        received = [await anext(messages) for _ in range(300)]
        assert [item.data for item in received if isinstance(item, Message)] == [f"{n}" for n in range(300)]
        for worker in (one, two):
            page = await worker.history("room", since=received[100].position, limit=1000)
            assert [item.data for item in page.messages] == [f"{n}" for n in range(101, 300)]
            assert [item.position for item in page.messages] == [item.position for item in received[101:]]
            assert page.complete


@asynccontextmanager
async def _admin(url: str) -> AsyncGenerator[Any]:
    admin = AIOKafkaAdminClient(bootstrap_servers=_server(url))
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


@asynccontextmanager
async def producer(url: str, **settings: Any) -> AsyncGenerator[Any]:
    """Run another program's producer."""
    made = AIOKafkaProducer(bootstrap_servers=_server(url), **settings)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def _server(url: str) -> str:
    return url.partition("//")[2].partition("?")[0]
