"""The history of channels on NATS: JetStream refused, deleted, purged, expired, killed, and in a cluster."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import textwrap
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

import nats
import pytest
from nats.js.api import StreamConfig

from backplane import (
    Backplane,
    BrokerError,
    BrokerUnavailableError,
    Gap,
    History,
    Message,
    PayloadTooLargeError,
    Position,
    PublishError,
    PublishOutcomeUnknownError,
)
from backplane.adapters.nats.broadcaster import NatsBroadcaster
from backplane.adapters.nats.channel_log import stream_name, subject_of_streams
from backplane.adapters.nats.sweep import Sweep
from backplane.broker.registry import broadcaster_from_url
from backplane.history_rules import HistoryRules
from backplane.testing import RecordingSink
from backplane.testing.resume_conformance import compacted
from tests.brokers.cluster import nats_cluster
from tests.brokers.nats import server_info
from tests.brokers.process import made

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from backplane.adapters.nats.jetstream import StoredMessage
    from backplane.broadcaster import KeptMessage, Recalled
    from tests.brokers.broker import ProcessBroker
    from tests.brokers.cluster import Cluster
    from tests.brokers.nats import NatsProcess
    from tests.conftest import StartNats

pytestmark = pytest.mark.anyio

NATS_PY: Any = nats
RULE = History(max_messages=20)
RULES = HistoryRules({"room*": RULE})
STREAM = stream_name("", "room*")
SUBJECTS = subject_of_streams("", "room*")


class Worker:
    """A prepared adapter and its sink."""

    def __init__(self, url: str) -> None:
        broadcaster = broadcaster_from_url(url)
        assert isinstance(broadcaster, NatsBroadcaster)
        self.adapter = broadcaster
        self.sink = RecordingSink()

    async def start(self, rules: HistoryRules = RULES) -> None:
        """Open the next link."""
        await self.adapter.start(self.sink)
        await self.adapter.prepare(rules)

    async def keep(self, payload: bytes, channel: str = "room") -> Position:
        """Keep a message."""
        position = (await self.adapter.keep(channel, payload, RULE)).position
        assert position is not None
        return position

    async def recall(self, after: Position | None = None, *, limit: int = 1000, channel: str = "room") -> Recalled:
        """Read."""
        return await self.adapter.recall(channel, RULE, after=after, limit=limit, max_bytes=1 << 24)


@asynccontextmanager
async def worker(url: str, rules: HistoryRules = RULES) -> AsyncGenerator[Worker]:
    """Start a worker for as long as the block."""
    made = Worker(url)
    await made.start(rules)
    try:
        yield made
    finally:
        await made.adapter.stop()


@asynccontextmanager
async def administrator(url: str) -> AsyncGenerator[Any]:
    """Return JetStream as nats-py offers it."""
    client = await NATS_PY.connect(url)
    try:
        yield client.jetstream()
    finally:
        await client.close()


def payloads(items: list[KeptMessage]) -> list[bytes]:
    """Return the payloads."""
    return [item.payload for item in items]


async def expire_after(url: str, seconds: float) -> None:
    """Make the server drop what is older, as it does after `max_age_seconds` of a rule."""
    async with administrator(url) as jetstream:
        config: StreamConfig = (await jetstream.stream_info(STREAM)).config
        config.max_age = config.duplicate_window = seconds
        await jetstream.update_stream(config)


async def until_empty(url: str) -> None:
    """Wait until the stream has no message."""
    async with administrator(url) as jetstream:
        while (await jetstream.stream_info(STREAM)).state.messages:  # the server does not report it
            await asyncio.sleep(0.05)


async def test_a_server_without_jetstream_is_refused(private_nats: StartNats) -> None:
    """The error of `prepare` is final, and it states how to start the server."""
    async with worker_without_history(private_nats().url) as broadcaster:
        with pytest.raises(BrokerError, match="-js") as raised:
            await broadcaster.prepare(RULES)
        assert not raised.value.retriable
        with pytest.raises(BrokerUnavailableError, match="not prepared"):
            await broadcaster.keep("room", b"x", RULE)
        await broadcaster.publish("room", b"x")


def limited_account(*limits: str) -> str:
    """Return the configuration of a server whose only account has these limits."""
    jetstream = ", ".join(limits)
    return (
        f"accounts {{ A: {{ jetstream: {{ {jetstream} }}, users: [{{ user: alice, password: secret }}] }} }}\n"
        "no_auth_user: alice"
    )


async def test_an_account_that_demands_a_limit_of_bytes_gets_it(private_nats: StartNats) -> None:
    """Its refusal states the option `history_max_bytes`; with that the oldest messages go, and that is found out."""
    limits = ("max_file: 1M", "max_mem: 1M", "max_bytes_required: true")
    url = private_nats(limited_account(*limits), jetstream=True).url
    async with worker_without_history(url) as broadcaster:
        with pytest.raises(BrokerError, match=r"max bytes.*history_max_bytes") as raised:
            await broadcaster.prepare(RULES)
        assert not raised.value.retriable
    async with worker_without_history(f"{url}?history_max_bytes=10000000") as broadcaster:
        with pytest.raises(BrokerError, match=r"lower the option history_max_bytes") as raised:
            await broadcaster.prepare(RULES)
        assert not raised.value.retriable
    async with worker(f"{url}?history_max_bytes=100000") as one:
        quiet = await one.keep(b"quiet", "room-quiet")
        last = first = await one.keep(b"first")
        for _ in range(9):
            last = await one.keep(bytes(20_000))
        assert not (await one.recall(first)).found
        assert not (await one.recall(quiet, channel="room-quiet")).found
        recalled = await one.recall()
        assert (recalled.top, 0 < len(recalled.items) < 5) == (last, True)


async def test_a_wrong_clock_of_a_worker_ends_no_history(
    private_nats: StartNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's clock decides what is too old for a short rule, where the server states its time."""
    rules = HistoryRules({"room*": History(max_messages=20, max_age_seconds=10)})
    url = private_nats(jetstream=True).url
    async with worker(url, rules) as one:
        first = await one.keep(b"1")
        second = await one.keep(b"2")
        async with administrator(url) as jetstream:
            answer = await jetstream._api_request(f"$JS.API.STREAM.INFO.{STREAM}", b"")
        states_its_time = "ts" in answer
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 3600)
        recalled = await one.recall(first)
        assert recalled.top == second
        assert (recalled.found, payloads(recalled.items)) == ((True, [b"2"]) if states_its_time else (False, []))


@asynccontextmanager
async def worker_without_history(url: str) -> AsyncGenerator[NatsBroadcaster]:
    """Start an adapter that is not prepared."""
    made = Worker(url)
    await made.adapter.start(made.sink)
    try:
        yield made.adapter
    finally:
        await made.adapter.stop()


def one_user(*publish: str) -> str:
    """Return the configuration of a server whose user may use the channel `room`, and publish to these subjects."""
    allowed = ", ".join(f'"{subject}"' for subject in ("room", "=24backplane.>", *publish))
    permissions = f'publish: [{allowed}], subscribe: ["room", "=24backplane.>"]'
    return f"authorization {{ users: [{{ user: alice, password: secret, permissions: {{ {permissions} }} }}] }}"


async def test_what_the_error_lists_is_enough(private_nats: StartNats) -> None:
    """A user without the permissions is refused with the lines to grant, and with these everything works."""
    broker = private_nats(one_user(), login="alice:secret", jetstream=True)
    async with worker_without_history(broker.url) as broadcaster:
        with pytest.raises(BrokerError, match=r"Permissions Violation.*grant publish to") as raised:
            await broadcaster.prepare(RULES)
        assert not raised.value.retriable
    lines = str(raised.value).rpartition("grant publish to ")[2].split(", ")
    granted = private_nats(one_user(*lines), login="alice:secret", jetstream=True)
    async with worker(granted.url) as one:
        await one.adapter.subscribe(["room"])
        first = await one.keep(b"1")
        await one.keep(b"2")
        assert payloads((await one.recall(first)).items) == [b"2"]
        await one.sink.until(lambda: len(one.sink.delivered) == 2)
    for missing in lines:
        if "STREAM.MSG.GET" in missing:  # for streams with replicas
            continue
        denying = private_nats(
            one_user(*(line for line in lines if line != missing)), login="alice:secret", jetstream=True
        )
        with pytest.raises(BrokerError, match="grant publish to"):
            async with worker(denying.url) as one:
                await one.keep(b"1")


async def test_a_user_that_may_not_subscribe_to_replies_is_refused(private_nats: StartNats) -> None:
    """Where the package's own subjects may not be subscribed to, `prepare` raises the server's reason."""
    permissions = 'publish: ">", subscribe: ["room"]'
    broker = private_nats(
        f"authorization {{ users: [{{ user: alice, password: secret, permissions: {{ {permissions} }} }}] }}",
        login="alice:secret",
        jetstream=True,
    )
    async with worker_without_history(broker.url) as broadcaster:
        for _ in range(2):
            with pytest.raises(BrokerError, match=r"Subscription.*grant subscribe to =24backplane\.>") as raised:
                await broadcaster.prepare(RULES)
            assert not raised.value.retriable


async def test_a_deleted_stream_is_created_again(private_nats: StartNats) -> None:
    """A publish to a deleted stream is certainly not published; the next one is, in another epoch."""
    url = private_nats(jetstream=True).url
    async with worker(url) as one, worker(url) as other:
        await other.adapter.subscribe(["room"])
        positions = [await one.keep(b"%d" % number) for number in range(3)]
        await other.sink.until(lambda: len(other.sink.delivered) == 3)
        async with administrator(url) as jetstream:
            await jetstream.delete_stream(STREAM)
        with pytest.raises(BrokerUnavailableError, match="was missing"):
            await one.keep(b"lost")
        first = await one.keep(b"first")
        assert first.epoch != positions[0].epoch
        for worker_ in (one, other):
            recalled = await worker_.recall(positions[-1])
            assert (recalled.found, recalled.top) == (False, first)
        # The other one was not notified: it finds out by the number, which is not higher than the last one.
        await other.sink.until(lambda: len(other.sink.delivered) == 4)
        place = other.sink.places[3]
        assert place is not None
        assert place.epoch != positions[0].epoch
        second = await one.keep(b"second")
        await other.sink.until(lambda: len(other.sink.delivered) == 5)
        assert other.sink.places[4] == second


async def test_a_deleted_stream_is_created_again_for_a_reader(private_nats: StartNats) -> None:
    """A read from a deleted stream raises, and soon the stream is there again, without messages."""
    url = private_nats(jetstream=True).url
    async with worker(url) as one:
        position = await one.keep(b"1")
        async with administrator(url) as jetstream:
            await jetstream.delete_stream(STREAM)
        with pytest.raises(BrokerUnavailableError, match="missing"):
            await one.recall(position)
        recalled = None
        while recalled is None:
            try:
                recalled = await one.recall(position)
            except BrokerUnavailableError:
                await asyncio.sleep(0.01)
        assert (recalled.found, recalled.items, recalled.top.offset) == (False, [], 0)


async def test_a_stream_in_memory_is_gone_with_its_server(private_nats: StartNats) -> None:
    """After the end of the server the stream is created again by the next `prepare`, in another epoch."""
    broker = private_nats(jetstream=True)
    async with worker(f"{broker.url}?history_storage=memory") as one:
        position = await one.keep(b"1")
        broker.kill9()
        await one.sink.until(lambda: bool(one.sink.losses))
        await one.adapter.stop()
        broker.start()
        await one.start()
        recalled = await one.recall(position)
        assert (recalled.found, recalled.items) == (False, [])
        assert (await one.keep(b"2")).epoch != position.epoch


async def test_a_stream_in_files_survives_a_kill(private_nats: StartNats) -> None:
    """Positions are valid after `kill -9` of the server, and the numbers go on."""
    broker = private_nats(jetstream=True)
    async with worker(broker.url) as one:
        await one.adapter.subscribe(["room"])
        positions = [await one.keep(b"%d" % number) for number in range(5)]
        broker.kill9()
        await one.sink.until(lambda: bool(one.sink.losses))
        with pytest.raises(BrokerUnavailableError):
            await one.keep(b"x")
        await one.adapter.stop()
        broker.start()
        await one.start()
        await one.adapter.subscribe(["room"])
        recalled = await one.recall(positions[1])
        assert (recalled.found, payloads(recalled.items)) == (True, [b"2", b"3", b"4"])
        sixth = await one.keep(b"5")
        await one.sink.until(lambda: one.sink.delivered[-1] == ("room", b"5"))
        place = one.sink.places[-1]
        assert place is not None
        assert (place, place.before) == (sixth, positions[-1].offset)


async def test_a_lost_tail_is_found_by_the_check(private_nats: StartNats) -> None:
    """Where the server has lost its newest messages and used their numbers again, their positions are not found."""
    broker = private_nats(jetstream=True)
    async with worker(broker.url) as one:
        await one.adapter.subscribe(["room"])
        kept = [await one.keep(b"%d" % number) for number in range(5)]
        await one.sink.until(lambda: len(one.sink.delivered) == 5)
        async with administrator(broker.url) as jetstream:
            for position in kept[3:]:
                await jetstream.delete_msg(STREAM, position.offset)
        lost = Position(kept[4].epoch, kept[2].offset, kept[4].check)
        for position in (lost, compacted(lost)):
            assert not (await one.recall(position)).found
        assert not (await one.recall(Position(kept[4].epoch, kept[4].offset + 1, 1))).found


async def test_a_purge_is_noticed(private_nats: StartNats) -> None:
    """After a purge a position is not found, but by the worker that has received everything until then."""
    url = private_nats(jetstream=True).url
    async with worker(url) as one, worker(url) as other:
        await one.adapter.subscribe(["room"])
        positions = [await one.keep(b"%d" % number) for number in range(3)]
        await one.sink.until(lambda: len(one.sink.delivered) == 3)
        async with administrator(url) as jetstream:
            await jetstream.purge_stream(STREAM)
        for position in (positions[-1], compacted(positions[-1])):
            recalled = await one.recall(position)
            assert (recalled.found, recalled.top, recalled.top.is_compact) == (True, positions[-1], False)
        assert not (await one.recall(positions[1])).found
        assert not (await other.recall(positions[-1])).found
        after = await one.keep(b"after")
        await one.sink.until(lambda: len(one.sink.delivered) == 4)
        place = one.sink.places[3]
        assert place is not None
        assert (place, place.before) == (after, positions[-1].offset)
        assert not (await one.recall(positions[-1])).found
        assert (await one.recall(place)).found


async def test_a_quiet_channel_outlives_its_messages(private_nats: StartNats) -> None:
    """A worker that received the newest message can resume after it has expired, also on its next link."""
    broker = private_nats(jetstream=True)
    url = broker.url
    async with worker(url) as one, worker(url) as other:
        await one.adapter.subscribe(["room", "room-2"])
        for channel in ("room", "room-2"):
            assert (await one.recall(channel=channel)).top.offset == 0
        newest = await one.keep(b"1")
        await one.sink.until(lambda: bool(one.sink.delivered))
        await expire_after(url, 2)
        await until_empty(url)
        empty = (await one.recall(channel="room-2")).top
        for _ in range(2):
            assert (await one.recall()).top == newest
            assert (await one.recall(newest)).found
            assert (await one.recall(channel="room-2")).top == empty
            assert (await one.recall(empty, channel="room-2")).found
        assert not (await other.recall(newest)).found
        later = await other.keep(b"2")
        await one.sink.until(lambda: len(one.sink.delivered) == 2)
        place = one.sink.places[1]
        assert place is not None
        assert (place, place.before) == (later, newest.offset)


@pytest.mark.parametrize("missed", [0, 3])
async def test_a_quiet_channel_is_resumed_over_a_lost_link(private_nats: StartNats, missed: int) -> None:
    """What expired before the link was lost is known on the next link, and what was missed is read."""
    broker = private_nats(jetstream=True)
    async with worker(broker.url) as one, worker(broker.url) as other:
        await one.adapter.subscribe(["room"])
        newest = await one.keep(b"1")
        await one.sink.until(lambda: bool(one.sink.delivered))
        await expire_after(broker.url, 0.2)
        await until_empty(broker.url)
        await expire_after(broker.url, 600)
        assert (await one.recall()).top == newest
        await one.adapter.unsubscribe(["other"])  # a round trip, after which the link was in sync
        await one.adapter.stop()
        for number in range(missed):
            await other.keep(b"missed %d" % number)
        await one.start()
        await one.adapter.subscribe(["room"])
        recalled = await one.recall(newest)
        assert (recalled.found, len(recalled.items), recalled.more) == (True, missed, False)


@pytest.mark.parametrize("before", [0, 1])
async def test_what_many_channels_missed_is_read_once(
    private_nats: StartNats, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a lost link the channels of a stream share one read; more that comes meanwhile is in it, too."""
    taken: list[int] = []
    take = Sweep.take

    def takes(sweep: Sweep, subject: bytes, after: int, high: int) -> list[StoredMessage] | None:
        found = take(sweep, subject, after, high)
        taken.append(-1 if found is None else len(found))
        return found

    monkeypatch.setattr(Sweep, "take", takes)
    broker = private_nats(jetstream=True)
    channels = [f"room-{number}" for number in range(100)]
    async with worker(broker.url) as one, worker(broker.url) as other:
        await one.adapter.subscribe(channels)
        for channel in channels[: len(channels) * before]:
            await other.keep(b"before", channel)
        await one.sink.until(lambda: len(one.sink.delivered) == len(channels) * before)
        last = {channel: (await one.recall(channel=channel, limit=0)).top for channel in channels}
        await one.adapter.stop()
        for number in range(3):
            for channel in channels:
                await other.keep(b"%d" % number, channel)
        await one.start()
        await one.adapter.subscribe(channels)
        some, others = channels[:50], channels[50:]
        for part, more in ((some, 0), (others, 1)):
            for channel in part * more:
                await other.keep(b"3", channel)
            recalled = await asyncio.gather(*(one.recall(last[channel], channel=channel) for channel in part))
            expected = [b"0", b"1", b"2", b"3"][: 3 + more]
            assert [payloads(each.items) for each in recalled] == [expected] * len(part)
            assert all(each.found and not each.more for each in recalled)
            befores = [item.place.before for each in recalled for item in each.items[:1]]
            assert befores == [last[channel].offset for channel in part]
        assert taken == [3] * 50 + [4] * 50


async def test_what_is_not_known_of_a_quiet_channel_is_a_gap(private_nats: StartNats) -> None:
    """Where everything that was published during a lost link has expired too, the position is not found."""
    broker = private_nats(jetstream=True)
    async with worker(broker.url) as one, worker(broker.url) as other:
        await one.adapter.subscribe(["room"])
        newest = await one.keep(b"1")
        await one.sink.until(lambda: bool(one.sink.delivered))
        await one.adapter.stop()
        await other.keep(b"missed")
        await expire_after(broker.url, 0.2)
        await until_empty(broker.url)
        await expire_after(broker.url, 600)
        await one.start()
        await one.adapter.subscribe(["room"])
        assert not (await one.recall(newest)).found


async def test_a_server_in_lame_duck_mode_confirms_what_was_kept(tmp_path: Path) -> None:
    """Kept messages that are sent when the server is left are confirmed before the link is closed."""
    with nats_cluster(made(tmp_path / "cluster"), jetstream=True) as cluster:
        node, *_ = (await leader_and_others(cluster, Worker(cluster.url)))[1]  # the one that keeps the stream goes on
        one = Worker(node.url)
        await until_prepared(one)
        await until_kept(one, b"first")
        cast("NatsProcess", node).enter_lame_duck_mode()
        await one.sink.until(lambda: bool(one.sink.losses))
        keeping = asyncio.gather(*(one.keep(b"%d" % number) for number in range(10)))
        await asyncio.sleep(0)  # they have been called
        await one.adapter.stop()
        assert len(await keeping) == 10


async def until_kept(one: Worker, payload: bytes) -> None:
    """Keep a message in a cluster whose stream may have no leader yet."""
    while True:
        try:
            await one.keep(payload)
        except BrokerUnavailableError:
            await asyncio.sleep(0.05)
        else:
            return


async def test_a_foreign_configuration_is_used_and_logged_once(
    private_nats: StartNats, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker with another rule uses the stream as it is, and logs it once, also over several links."""
    url = private_nats(jetstream=True).url
    caplog.set_level(logging.WARNING, "backplane.adapters.nats.history")
    async with worker(url):
        pass
    assert not caplog.records
    async with worker(url, HistoryRules({"room*": History(max_messages=3)})) as other:
        positions = [await other.keep(b"%d" % number) for number in range(10)]
        assert len((await other.recall(positions[0])).items) == 9
        await other.adapter.stop()
        await other.start(HistoryRules({"room*": History(max_messages=3)}))
    assert ["is used as it is" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(("seconds", "warns"), [(240, True), (600, False)])
async def test_a_stream_that_forgets_keys_too_early_is_a_warning(
    private_nats: StartNats, caplog: pytest.LogCaptureFixture, seconds: int, warns: bool
) -> None:
    """Where another one has made the stream with a shorter window for duplicates, the log states what that means."""
    url = private_nats(jetstream=True).url
    async with worker(url):
        await expire_after(url, seconds)
    async with worker(url):
        pass
    (line,) = [record.getMessage() for record in caplog.records if "is used as it is" in record.getMessage()]
    assert ("can be published twice" in line) is warns


async def test_an_unusable_stream_is_refused(private_nats: StartNats) -> None:
    """A stream of this name that does not republish is not touched; the error states what to do."""
    url = private_nats(jetstream=True).url
    async with administrator(url) as jetstream:
        await jetstream.add_stream(StreamConfig(name=STREAM, subjects=[f"{SUBJECTS}*"]))
    async with worker_without_history(url) as broadcaster:
        with pytest.raises(BrokerError, match=r"is not usable.*delete it") as raised:
            await broadcaster.prepare(RULES)
        assert not raised.value.retriable


async def test_replicas_without_a_cluster_are_refused(private_nats: StartNats) -> None:
    """The server's reason is raised, and is final."""
    url = private_nats(jetstream=True).url
    async with worker_without_history(f"{url}?history_replicas=3") as broadcaster:
        with pytest.raises(BrokerError, match="replicas") as raised:
            await broadcaster.prepare(RULES)
        assert not raised.value.retriable


async def test_a_full_stream_refuses(private_nats: StartNats) -> None:
    """A message that the stream refuses is not published, and the error holds the server's reason."""
    url = private_nats(jetstream=True).url
    async with worker(url) as one:
        async with administrator(url) as jetstream:
            config: StreamConfig = (await jetstream.stream_info(STREAM)).config
            config.max_msg_size = 10
            await jetstream.update_stream(config)
        await one.adapter.subscribe(["room"])
        with pytest.raises(PublishError, match="message size"):
            await one.keep(b"x" * 11)
        await one.keep(b"after")
        await one.sink.until(lambda: bool(one.sink.delivered))
        assert one.sink.payloads("room") == [b"after"]


async def test_headers_count_for_the_largest_payload(private_nats: StartNats) -> None:
    """The largest payload is kept, delivered and read; with a key it is refused before anything is sent."""
    url = private_nats("max_payload: 100000", jetstream=True).url
    async with worker(url) as one:
        begin = (await one.recall()).top
        await one.adapter.subscribe(["room"])
        with pytest.raises(PayloadTooLargeError):
            await one.adapter.keep("room", b"x" * 100_000, RULE, key=b"key")
        for number in range(10):
            await one.keep(b"%d" % number * 100_000)
        await one.sink.until(lambda: len(one.sink.delivered) == 10)
        for items in (one.sink.payloads("room"), payloads((await one.recall(begin)).items)):
            assert items == [b"%d" % number * 100_000 for number in range(10)]


@pytest.mark.parametrize(
    "headers",
    [
        {"Nats-Sequence": "7", "Nats-Last-Sequence": "6"},
        {"Nats-Stream": STREAM, "Nats-Subject": f"{SUBJECTS}room", "Nats-Sequence": "-7", "Nats-Last-Sequence": "6"},
        {
            "Nats-Stream": STREAM,
            "Nats-Subject": f"{SUBJECTS}room",
            "Nats-Sequence": "9" * 20,
            "Nats-Last-Sequence": "1",
        },
        {"Nats-Stream": STREAM, "Nats-Subject": f"{SUBJECTS}room", "Nats-Sequence": "x", "Nats-Last-Sequence": "y"},
        {"Nats-Stream": STREAM, "Nats-Subject": f"{SUBJECTS}room", "Nats-Sequence": "9"},
        {"Nats-Stream": STREAM, "Nats-Subject": f"{SUBJECTS}room-2", "Nats-Sequence": "9", "Nats-Last-Sequence": "1"},
        {"Nats-Stream": "OTHER", "Nats-Subject": f"{SUBJECTS}room", "Nats-Sequence": "9", "Nats-Last-Sequence": "1"},
        {"Status": "503", "Nats-Num-Pending": "3"},
    ],
)
async def test_headers_of_others_are_no_place(private_nats: StartNats, headers: dict[str, str]) -> None:
    """A message with headers that its stream has not written is delivered without a place, and harms no other."""
    url = private_nats(jetstream=True).url
    async with worker(url) as one:
        await one.adapter.subscribe(["room"])
        begin = (await one.recall()).top
        client = await NATS_PY.connect(url)
        await client.publish("room", b"foreign", headers=headers)
        kept = await client.jetstream().publish(f"{SUBJECTS}room", b"kept", headers=headers)
        await client.close()
        last = await one.keep(b"last")
        await one.sink.until(lambda: len(one.sink.delivered) == 3)
        assert one.sink.places == [None, Position(last.epoch, kept.seq, crc32(b"kept")), last]
        assert payloads((await one.recall(begin)).items) == [b"kept", b"last"]
        assert payloads((await one.recall()).items) == [b"kept", b"last"]


async def test_a_worker_without_the_rule_receives_kept_messages(private_nats: StartNats) -> None:
    """A worker that knows nothing of the history receives what is kept, and `nats pub` reaches both."""
    url = private_nats(jetstream=True).url
    async with (
        Backplane(url) as old,
        Backplane(url, history={"room*": RULE}) as new,
        old.subscribe("room") as old_messages,
        new.subscribe("room") as new_messages,
    ):
        receipt = await new.publish("room", "kept")
        await old.publish("room", "plain")
        for messages, position in ((old_messages, None), (new_messages, receipt.position)):
            received = [await anext(messages) for _ in range(2)]
            assert [message.data for message in received if isinstance(message, Message)] == ["kept", "plain"]
            assert cast("Message", received[0]).position == position
            assert cast("Message", received[1]).position is None


async def test_subscribers_notice_no_restart_of_the_server(private_nats: StartNats) -> None:
    """Through `kill -9` of a server with files, a subscriber of a kept channel receives everything, and no gap."""
    broker = private_nats(jetstream=True)
    async with (
        Backplane(broker.url, history={"room*": History(max_messages=1000)}) as one,
        Backplane(broker.url, history={"room*": History(max_messages=1000)}) as other,
        one.subscribe("room") as messages,
    ):
        sent: list[str] = []
        unsure: set[str] = set()
        for turn in range(3):
            for number in range(50):
                text = f"{turn} {number}"
                try:
                    await other.publish("room", text)
                except PublishOutcomeUnknownError:
                    unsure.add(text)
                sent.append(text)
                if number == 25:
                    broker.kill9()
                    broker.start()
        received: list[str] = []
        while not received or received[-1] != sent[-1]:
            message = await anext(messages)
            assert not isinstance(message, Gap)
            received.append(str(message.data))
        assert received == [text for text in sent if text not in unsure or text in received]


PUBLISHER = textwrap.dedent(
    """
    import asyncio, sys
    from backplane import Backplane, History

    async def main(url, name):
        async with Backplane(url, history={"room*": History(max_messages=20)}) as backplane:
            await asyncio.gather(*[backplane.publish("room", f"{name} {number}") for number in range(300)])

    asyncio.run(main(*sys.argv[1:]))
    """
)


async def test_two_processes_publish_in_one_order(private_nats: StartNats) -> None:
    """Two workers receive what two other processes publish in the same order, that of the calls of each."""
    url = private_nats(jetstream=True).url
    async with worker(url) as one, worker(url) as other:
        for each in (one, other):
            await each.adapter.subscribe(["room"])
        programs = [
            await asyncio.create_subprocess_exec(sys.executable, "-c", PUBLISHER, url, name, stderr=subprocess.PIPE)
            for name in ("a", "b")
        ]
        for program in programs:
            _, errors = await program.communicate()
            assert (program.returncode, errors) == (0, b"")
        for each in (one, other):
            await each.sink.until(lambda each=each: len(each.sink.delivered) == 600)  # type: ignore[misc]
        assert one.sink.delivered == other.sink.delivered
        assert one.sink.places == other.sink.places
        places = [place for place in one.sink.places if place is not None]
        assert [place.before for place in places] == [0, *(place.offset for place in places[:-1])]


async def test_a_cluster_loses_nothing_with_the_leader_of_a_stream(tmp_path: Path) -> None:
    """Of a stream with three replicas, what was confirmed is there after its leader is killed, in order, once."""
    with nats_cluster(made(tmp_path / "cluster"), jetstream=True) as cluster:
        leader, others = await leader_and_others(cluster, Worker(f"{cluster.url}?history_replicas=3"))
        addresses = ",".join(node.url.removeprefix("nats://") for node in others)
        one = Worker(f"nats://{addresses}?history_replicas=3")
        await until_prepared(one)
        await one.adapter.subscribe(["room"])
        confirmed: list[tuple[bytes, Position]] = []
        begin = (await one.recall()).top
        async with asyncio.timeout(40):
            number = 0
            while len(confirmed) < 15:
                number += 1
                if number == 8:
                    leader.kill9()
                payload = b"%d" % number
                try:
                    async with asyncio.timeout(1):
                        confirmed.append((payload, await one.keep(payload)))
                except (BrokerUnavailableError, PublishOutcomeUnknownError, TimeoutError):
                    await asyncio.sleep(0.05)
            recalled = None
            while recalled is None:
                try:
                    recalled = await one.recall(begin)
                except BrokerUnavailableError:
                    await asyncio.sleep(0.05)
        read = {item.payload: item.place for item in recalled.items}
        assert recalled.found
        assert [(payload, read.get(payload)) for payload, _ in confirmed] == confirmed
        assert [int(item.payload) for item in recalled.items] == sorted({int(payload) for payload in read})
        await one.adapter.stop()


async def leader_and_others(cluster: Cluster, one: Worker) -> tuple[ProcessBroker, list[ProcessBroker]]:
    """Create the stream with this worker and stop it; return the node that leads the stream, and the others."""
    await until_prepared(one)
    async with administrator(cluster.nodes[0].url) as jetstream:
        name = (await jetstream.stream_info(STREAM)).cluster.leader
    await one.adapter.stop()
    leads = {server_info(node.port)["server_name"] == name: node for node in cluster.nodes}
    return leads[True], [node for node in cluster.nodes if node is not leads[True]]


async def until_prepared(one: Worker) -> None:
    """Start a worker of a cluster, which has no leader in its first seconds."""
    async with asyncio.timeout(40):
        await one.adapter.start(one.sink)
        while True:
            try:
                return await one.adapter.prepare(RULES)
            except BrokerUnavailableError:
                await asyncio.sleep(0.1)
            except BrokerError as error:
                if "peers" not in str(error):
                    raise
                await asyncio.sleep(0.1)
