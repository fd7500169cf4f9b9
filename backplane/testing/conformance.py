"""The promises of a `Broadcaster`, each as a test that runs on any adapter.

Two adapters on one URL, in one event loop, stand for two workers. Nothing waits for time: what must arrive is waited
for, and what must not arrive is proved by a message published after it.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import pytest

from backplane import (
    Backlog,
    Backplane,
    BrokerUnavailableError,
    Gap,
    Message,
    PayloadTooLargeError,
    SubscribeError,
)
from backplane.broadcaster import SupportsDescribe, SupportsLinkCheck, SupportsResume
from backplane.broker.registry import broadcaster_from_url
from backplane.fanout.codec import encode_path_test
from backplane.testing.fault_conformance import FaultConformance, passes_through
from backplane.testing.harness import (
    Worker,
    churn,
    cut_repeatedly,
    next_message,
    open_files,
    quick_backplane,
    reaches_state,
    recorded,
    run_for_passes,
    settled,
    started_worker,
)
from backplane.testing.prefix_conformance import PrefixConformance
from backplane.testing.proxy import FaultProxy
from backplane.testing.recording import RecordingSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backplane.broadcaster import Broadcaster

__all__ = ["HOSTILE_CHANNELS", "BroadcasterConformance"]

HOSTILE_CHANNELS = (
    ">",
    "*",
    "a.*",
    "a.b",
    "a",
    "A",
    "$SYS.>",
    "_INBOX.x",
    "with blank",
    "cr\r\nlf",
    "nul\0",
    "{tag}",
    "[a-z]",
    "h?llo",
    "a/../b",
    "%41",
    "=41",
    " ",
    "ü",
    "u\u0308",
    "日本",
    "😀" * 63,
    "x" * 255,
)
"""Names that a broker could take for more than a name."""


class BroadcasterConformance(FaultConformance, PrefixConformance):
    """Subclass it, give it the fixture `url`, and pytest runs every promise of the contract."""

    pytestmark: pytest.MarkDecorator = pytest.mark.anyio

    @pytest.fixture
    def url(self) -> str:
        """The URL of a broker that belongs to this test run."""
        raise NotImplementedError("a subclass gives the URL of its broker")

    @pytest.fixture(autouse=True)
    def needs_asyncio(self, anyio_backend_name: str) -> None:
        """Skip on Trio, on which the plugin of anyio runs every test too where it is installed."""
        if anyio_backend_name != "asyncio":
            pytest.skip("the package runs on asyncio")

    @pytest.fixture
    def refused_channel(self) -> str | None:
        """A channel that the broker at `url` refuses, where one can be configured."""
        return None

    @pytest.fixture
    def proxy(self, brokered_url: str) -> FaultProxy:
        """The proxy through which the tests of broken links connect.

        Override it where the broker announces an address of its own, at which clients would bypass the proxy.
        """
        return FaultProxy(brokered_url)

    @pytest.fixture
    async def two(self, url: str) -> AsyncIterator[tuple[Worker, Worker]]:
        """Two workers; those of one process receive each other's messages on every adapter."""
        async with started_worker(url) as first, started_worker(url) as second:
            yield first, second

    async def test_every_publish_after_subscribe_returned_arrives(self, two: tuple[Worker, Worker]) -> None:
        """When `subscribe` has returned, the very next publish of another worker is delivered."""
        publisher, subscriber = two
        for number in range(100):
            await subscriber.broadcaster.subscribe([f"room-{number}"])
            await publisher.broadcaster.publish(f"room-{number}", b"first")
        await subscriber.sink.until(lambda: len(subscriber.sink.delivered) == 100)
        assert sorted(subscriber.sink.delivered) == sorted((f"room-{number}", b"first") for number in range(100))

    async def test_each_worker_gets_one_copy_the_publisher_included(self, two: tuple[Worker, Worker]) -> None:
        """A publish reaches every subscribed worker exactly once, the publisher's own too."""
        for worker in set(two):
            await worker.broadcaster.subscribe(["room"])
        for number in range(50):
            await two[number % 2].broadcaster.publish("room", b"%d" % number)
        for worker in two:
            await worker.sink.until(lambda worker=worker: len(worker.sink.delivered) >= 50)  # type: ignore[misc]
            assert sorted(worker.sink.payloads("room"), key=int) == [b"%d" % number for number in range(50)]

    async def test_payloads_keep_the_order_of_the_calls(self, two: tuple[Worker, Worker]) -> None:
        """Many publishes at once, from two workers, arrive per channel in the order of the calls."""
        names = ("first", "second")
        channels = [f"room-{number}" for number in range(5)]
        for worker in set(two):
            await worker.broadcaster.subscribe(channels)
        async with asyncio.TaskGroup() as group:
            for number in range(400):
                for worker, name in zip(two, names, strict=True):
                    payload = f"{name} {number}".encode()
                    group.create_task(worker.broadcaster.publish(channels[number % 5], payload))
        for worker in two:
            await worker.sink.until(lambda worker=worker: len(worker.sink.delivered) >= 800)  # type: ignore[misc]
            for index, channel in enumerate(channels):
                for name in names:
                    received = [
                        text for text in map(bytes.decode, worker.sink.payloads(channel)) if text.startswith(name)
                    ]
                    assert received == [f"{name} {number}" for number in range(index, 400, 5)]

    async def test_nothing_arrives_after_unsubscribe_returned(self, two: tuple[Worker, Worker]) -> None:
        """Once `unsubscribe` has returned nothing is delivered, though others publish; other channels go on."""
        publisher, subscriber = two
        received = 0
        await subscriber.broadcaster.subscribe(["left", "kept"])
        for number in range(100):
            await publisher.broadcaster.publish("left", b"%d" % number)
            if number == 50:
                await subscriber.broadcaster.unsubscribe(["left"])
                received = len(subscriber.sink.payloads("left"))
        await publisher.broadcaster.publish("kept", b"barrier")
        await subscriber.sink.until(lambda: subscriber.sink.payloads("kept") == [b"barrier"])
        assert len(subscriber.sink.payloads("left")) == received

    async def test_a_channel_can_be_subscribed_again(self, two: tuple[Worker, Worker]) -> None:
        """Unsubscribing and subscribing in turn always ends in what was requested last."""
        publisher, subscriber = two
        for number in range(20):
            await subscriber.broadcaster.subscribe(["room"])
            await publisher.broadcaster.publish("room", b"%d" % number)
            await subscriber.sink.until(lambda number=number: b"%d" % number in subscriber.sink.payloads("room"))  # type: ignore[misc]
            await subscriber.broadcaster.unsubscribe(["room"])

    async def test_bytes_are_intact(self, two: tuple[Worker, Worker]) -> None:
        """Empty, NUL, invalid UTF-8, CR/LF, and a payload of the largest size arrive as they were."""
        publisher, subscriber = two
        largest = publisher.broadcaster.capabilities.max_payload_bytes
        payloads = [b"", b"\0", bytes(range(256)), b"\xff\xfe", b"a\r\nb", os.urandom(largest)]
        await subscriber.broadcaster.subscribe(["room"])
        for payload in payloads:
            await publisher.broadcaster.publish("room", payload)
        await subscriber.sink.until(lambda: len(subscriber.sink.delivered) == len(payloads), timeout_seconds=30)
        assert subscriber.sink.payloads("room") == payloads

    async def test_one_byte_over_the_limit_is_refused_before_the_wire(self, url: str) -> None:
        """A message over the limit raises with size and limit, and the next one passes."""
        async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
            limit = broadcaster_from_url(url).capabilities.max_payload_bytes
            with pytest.raises(PayloadTooLargeError) as raised:
                await backplane.publish("room", bytes(limit))
            assert raised.value.limit_bytes == limit < raised.value.size_bytes
            await backplane.publish("room", "fits")
            assert (await next_message(messages)).data == "fits"

    async def test_a_hostile_channel_name_reaches_only_its_own_subscribers(self, two: tuple[Worker, Worker]) -> None:
        """Wildcards, blanks, control characters, braces and any Unicode are literal in a name."""
        publisher, subscriber = two
        await subscriber.broadcaster.subscribe(HOSTILE_CHANNELS)
        for channel in HOSTILE_CHANNELS:
            await publisher.broadcaster.publish(channel, channel.encode())
        await publisher.broadcaster.publish("a.x", b"not joined")
        await publisher.broadcaster.publish("hello", b"not joined")
        await publisher.broadcaster.publish(HOSTILE_CHANNELS[-1], b"barrier")
        await subscriber.sink.until(lambda: (HOSTILE_CHANNELS[-1], b"barrier") in subscriber.sink.delivered)
        expected = [(channel, channel.encode()) for channel in HOSTILE_CHANNELS]
        assert sorted(subscriber.sink.delivered[:-1]) == sorted(expected)

    async def test_a_path_test_arrives_and_no_subscriber_receives_it(self, url: str) -> None:
        """A path test takes the way of a message to each worker, and only the worker itself notices it."""
        async with (
            Backplane(url) as one,
            Backplane(url) as two,
            started_worker(url) as outside,
            one.subscribe("room") as first,
            two.subscribe("room") as second,
        ):
            await outside.broadcaster.publish("room", _path_test())
            await outside.broadcaster.publish("room", b"after")
            assert [(await next_message(messages)).data for messages in (first, second)] == ["after", "after"]
            for backplane in (one, two):
                statistics = backplane.statistics()
                assert (statistics.path_tests, statistics.malformed, statistics.delivered) == (1, 0, 1)

    async def test_overlapping_calls_share_the_link(self, two: tuple[Worker, Worker]) -> None:
        """Subscribing from several tasks at once subscribes to what each of them requested."""
        publisher, subscriber = two
        async with asyncio.TaskGroup() as group:
            for task in range(8):
                group.create_task(subscriber.broadcaster.subscribe([f"room-{task}-{n}" for n in range(10)]))
        for task in range(8):
            for n in range(10):
                await publisher.broadcaster.publish(f"room-{task}-{n}", b"")
        await subscriber.sink.until(lambda: len(subscriber.sink.delivered) == 80)

    async def test_start_and_stop_alternate(self, url: str) -> None:
        """The same object starts again after its stop, without its former subscriptions."""
        broadcaster = broadcaster_from_url(url)
        for _ in range(3):
            sink = RecordingSink()
            await broadcaster.start(sink)
            await broadcaster.subscribe(["kept"])
            await broadcaster.publish("left", b"")
            await broadcaster.publish("kept", b"")
            await sink.until(lambda sink=sink: len(sink.delivered) == 1)  # type: ignore[misc]
            assert sink.delivered == [("kept", b"")]
            await broadcaster.subscribe(["left"])
            await broadcaster.stop()
            await broadcaster.stop()

    async def test_a_stopped_adapter_raises(self, url: str) -> None:
        """What needs a link raises `BrokerUnavailableError`; nothing succeeds silently."""
        broadcaster = broadcaster_from_url(url)
        await broadcaster.start(RecordingSink())
        await broadcaster.stop()
        for call in (
            broadcaster.publish("room", b""),
            broadcaster.subscribe(["room"]),
            broadcaster.unsubscribe(["room"]),
        ):
            with pytest.raises(BrokerUnavailableError):
                await call

    async def test_a_description_is_one_line(self, url: str) -> None:
        """An adapter that can describe its broker does it in one line without secrets, and raises without a link."""
        async with started_worker(url) as worker:
            broadcaster = worker.broadcaster
            if not isinstance(broadcaster, SupportsDescribe):
                pytest.skip("this adapter does not describe its broker: it is no `SupportsDescribe`")
            words = await broadcaster.describe()
            assert words
            assert words.isprintable()
            assert (broadcaster.url.password or "://") not in words
        with pytest.raises(BrokerUnavailableError):
            await broadcaster.describe()

    async def test_cancelling_at_any_moment_leaks_nothing(self, url: str) -> None:
        """Whichever await of `start`, `subscribe`, `publish` is cancelled, `stop` leaves no task and no open file."""

        async def live(passes: int) -> None:
            broadcaster = broadcaster_from_url(url)
            await run_for_passes(self._one_life(broadcaster), passes)
            await broadcaster.stop()

        await live(100)  # what a process opens only once is open now
        await settled()
        files, tasks = open_files(), len(asyncio.all_tasks())
        for passes in (*range(40), *range(40, 400, 20)):
            await live(passes)
        await settled()
        assert (open_files(), len(asyncio.all_tasks())) == (files, tasks)

    async def test_ten_thousand_channels(self, two: tuple[Worker, Worker]) -> None:
        """10,000 channels are subscribed and each receives; 5,000 of them are unsubscribed and receive nothing."""
        publisher, subscriber = two
        channels = [f"room-{number}" for number in range(10_000)]
        for start in range(0, 10_000, 500):
            await subscriber.broadcaster.subscribe(channels[start : start + 500])
        for start in range(0, 5_000, 500):
            await subscriber.broadcaster.unsubscribe(channels[start : start + 500])
        for start in range(0, 10_000, 500):
            await asyncio.gather(*(publisher.broadcaster.publish(name, b"") for name in channels[start : start + 500]))
        await subscriber.sink.until(lambda: len(subscriber.sink.delivered) >= 5_000)
        assert sorted(channel for channel, _ in subscriber.sink.delivered) == sorted(channels[5_000:])

    async def test_a_lost_link_heals_with_one_gap(self, brokered_url: str, proxy: FaultProxy) -> None:
        """A cut link recovers by itself, every channel receives again, with one gap each unless the adapter resumes."""
        async with proxy, quick_backplane(proxy.url) as backplane, quick_backplane(brokered_url) as outside:
            async with backplane.subscribe("one", "two") as messages:
                await outside.publish("one", "before")
                assert (await next_message(messages)).data == "before"
                proxy.refuse()
                await reaches_state(backplane, "degraded")
                with pytest.raises(BrokerUnavailableError):
                    await backplane.publish("one", "during")
                proxy.heal()
                await reaches_state(backplane, "live")
                await outside.publish("one", "after one")
                await outside.publish("two", "after two")
                expected = [Message] if broadcaster_from_url(brokered_url).capabilities.resumes else [Gap, Message]
                received = [await anext(messages) for _ in range(2 * len(expected))]
            for channel in ("one", "two"):
                assert [type(item) for item in received if item.channel == channel] == expected

    async def test_an_adapter_that_resumes_loses_nothing(self, brokered_url: str, proxy: FaultProxy) -> None:
        """What others publish while the link is lost arrives after it: all of it, once, in order, without a gap."""
        broadcaster = broadcaster_from_url(brokered_url)
        assert broadcaster.capabilities.resumes is isinstance(broadcaster, SupportsResume)
        # The core does not look for silent parts.
        assert isinstance(broadcaster, SupportsLinkCheck) or not broadcaster.capabilities.parts
        if not broadcaster.capabilities.resumes:
            pytest.skip("what is published while the link is away is lost: capabilities.resumes is False")
        async with (
            proxy,
            quick_backplane(proxy.url) as backplane,
            quick_backplane(brokered_url) as outside,
            backplane.subscribe("room") as messages,
        ):
            for outage in ("first", "second"):
                proxy.refuse()
                await reaches_state(backplane, "degraded")
                for number in range(20):
                    await outside.publish("room", f"{outage} {number}")
                proxy.heal()
                received = [await anext(messages) for _ in range(20)]
                data = [item.data for item in received if isinstance(item, Message)]
                assert data == [f"{outage} {number}" for number in range(20)]

    async def test_a_silent_link_is_found_and_healed(self, brokered_url: str, proxy: FaultProxy) -> None:
        """A link that is open and carries nothing is found by the delivery probe and rebuilt."""
        async with (
            proxy,
            quick_backplane(proxy.url, probe_interval_seconds=0.5) as backplane,
            quick_backplane(brokered_url) as outside,
            backplane.subscribe("room") as messages,
        ):
            proxy.silence()
            await reaches_state(backplane, "degraded")
            proxy.heal()
            await passes_through(outside, messages)

    async def test_a_refused_channel_fails_alone(self, url: str, refused_channel: str | None) -> None:
        """A channel that the broker refuses raises; the other channels of the batch are subscribed."""
        if refused_channel is None:
            pytest.skip("this broker refuses no channel")
        channels = [f"room-{number}" for number in range(20)]
        async with started_worker(url) as worker:
            with pytest.raises(SubscribeError) as raised:
                await worker.broadcaster.subscribe([*channels[:7], refused_channel, *channels[7:]])
            assert list(raised.value.refused) == [refused_channel]
            for channel in channels:
                await worker.broadcaster.publish(channel, b"")
            await worker.sink.until(lambda: len(worker.sink.delivered) == 20)

    async def test_churn_on_a_link_that_is_cut_ends_with_the_same_set(
        self, brokered_url: str, proxy: FaultProxy
    ) -> None:
        """Joins and leaves from eight tasks while the link is cut repeatedly end with the joined set subscribed."""
        async with (
            proxy,
            quick_backplane(brokered_url, publish_timeout_seconds=30) as outside,  # it publishes a thousand at once
        ):
            adapter, record = recorded(proxy.url)
            joined: list[set[str]] = [set() for _ in range(8)]
            channels = [[f"{task}-{n}" for n in range(1_250)] for task in range(8)]
            async with (
                quick_backplane(adapter) as backplane,
                backplane.subscribe("barrier", backlog=Backlog(when_full="drop_oldest")) as messages,
            ):
                cutting = asyncio.create_task(cut_repeatedly(proxy, backplane, 5))
                async with asyncio.TaskGroup() as group:
                    for seed, names in enumerate(channels):
                        group.create_task(churn(messages, names, seed, joined[seed], cutting))
                await cutting
                expected = {"barrier"}.union(*joined)
                await record.until(lambda: record.subscribed == expected)
                record.delivered.clear()
                for names in channels:
                    await asyncio.gather(*(outside.publish(name, "") for name in names))
                await outside.publish("barrier", "")
                await record.until(lambda: record.delivered[-1:] == ["barrier"])
                assert sorted(record.delivered) == sorted(expected)

    @pytest.fixture
    def brokered_url(self, url: str) -> str:
        """The URL, for a test that cuts the link to a broker."""
        if not broadcaster_from_url(url).capabilities.brokered:
            pytest.skip("no broker, no link to lose: capabilities.brokered is False")
        return url

    async def _one_life(self, broadcaster: Broadcaster) -> None:
        await broadcaster.start(RecordingSink())
        await broadcaster.subscribe(["a", "b"])
        await broadcaster.publish("a", b"x")
        await broadcaster.unsubscribe(["b"])
        await broadcaster.stop()


def _path_test() -> bytes:
    return encode_path_test(b"TEST_ID8", origin=os.urandom(8), published_at=time.time())
