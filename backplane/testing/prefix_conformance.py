"""The promises of a `SupportsPrefixes`, each as a test that runs on any adapter; skipped where it has no patterns.

Part of `backplane.testing.BroadcasterConformance`. Two adapters on one URL stand for two workers.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import pytest

from backplane import BrokerUnavailableError, Gap
from backplane.broadcaster import SupportsHistory, SupportsPrefixes
from backplane.broker.registry import broadcaster_from_url
from backplane.history_rules import History, HistoryRules
from backplane.testing.harness import next_message, quick_backplane, reaches_state, started_worker
from backplane.testing.proxy import FaultProxy
from backplane.testing.recording import RecordingSink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backplane.testing.harness import Worker

__all__ = ["HOSTILE_PREFIXES", "PrefixConformance"]

HOSTILE_PREFIXES = (
    ">",
    "a.",
    "$SYS.",
    "_INBOX",
    " ",
    "\r\n",
    "nul\0",
    "{tag}",
    "[a-z]",
    "h?",
    "../",
    "%4",
    "=4",
    "\\",
    "#",
    "日",
)
"""Prefixes that a broker could take for more than the first characters of a name."""


class PrefixConformance:
    """Prefixes of an adapter: what arrives, once, and for how long."""

    @pytest.fixture
    def prefix_url(self, url: str) -> str:
        """The URL, for a test of an adapter with prefixes."""
        broadcaster = broadcaster_from_url(url)
        if not broadcaster.capabilities.patterns:
            pytest.skip("no channels by prefix: capabilities.patterns is False")
        assert isinstance(broadcaster, SupportsPrefixes), "capabilities.patterns promises a SupportsPrefixes"
        return url

    async def test_every_channel_of_a_prefix_arrives(self, prefix_url: str) -> None:
        """Once `subscribe_prefixes` has returned, the next publish to any such channel arrives, and no other one."""
        async with started_worker(prefix_url) as publisher, started_worker(prefix_url) as subscriber:
            run = secrets.token_hex(4)
            for number in range(20):
                await _prefixes(subscriber).subscribe_prefixes([f"{run}.{number}."])
                await publisher.broadcaster.publish(f"{run}.{number}.new", b"%d" % number)
            await publisher.broadcaster.publish(f"{run}.other", b"")
            await publisher.broadcaster.publish(f"other.{run}.1.", b"")
            await publisher.broadcaster.publish(f"{run}.1.", b"the prefix itself")
            await _until(subscriber, (f"{run}.1.", b"the prefix itself"))
            assert sorted(subscriber.sink.delivered) == sorted(
                [(f"{run}.1.", b"the prefix itself"), *((f"{run}.{n}.new", b"%d" % n) for n in range(20))]
            )

    async def test_what_is_wanted_in_several_ways_arrives_once(self, prefix_url: str) -> None:
        """A channel that is subscribed by name and by overlapping prefixes is delivered once, in order."""
        async with started_worker(prefix_url) as publisher, started_worker(prefix_url) as subscriber:
            run = secrets.token_hex(4)
            names = [f"{run}.a.b", f"{run}.a", f"{run}.c"]
            await _prefixes(subscriber).subscribe_prefixes([f"{run}.a.", run, f"{run}."])
            await subscriber.broadcaster.subscribe(names[:2])
            sent = [(names[number % 3], b"%d" % number) for number in range(300)]
            for channel, payload in sent:
                await publisher.broadcaster.publish(channel, payload)
            await subscriber.sink.until(lambda: len(subscriber.sink.delivered) >= 300)
            await publisher.broadcaster.publish(f"{run}.last", b"")
            await _until(subscriber, (f"{run}.last", b""))
            for channel in names:
                assert subscriber.sink.payloads(channel) == [payload for name, payload in sent if name == channel]

    async def test_names_and_prefixes_come_and_go_without_a_loss(self, prefix_url: str) -> None:
        """What is wanted all the time arrives once and in order, whatever else is subscribed and unsubscribed."""
        async with started_worker(prefix_url) as publisher, started_worker(prefix_url) as subscriber:
            run = secrets.token_hex(4)
            by_prefix, by_name, done = f"{run}.p.x", f"{run}.n", asyncio.Event()
            await _prefixes(subscriber).subscribe_prefixes([f"{run}.p."])
            await subscriber.broadcaster.subscribe([by_name])

            async def churn() -> None:
                for _ in range(10):
                    await subscriber.broadcaster.subscribe([by_prefix])
                    await _prefixes(subscriber).subscribe_prefixes([f"{run}.", f"{run}.p.x"])
                    await subscriber.broadcaster.unsubscribe([by_prefix])
                    await _prefixes(subscriber).unsubscribe_prefixes([f"{run}.", f"{run}.p.x"])
                done.set()

            churning = asyncio.create_task(churn())
            sent = 0
            while not done.is_set():
                for channel in (by_prefix, by_name):
                    await publisher.broadcaster.publish(channel, b"%d" % sent)
                sent += 1
            await churning
            for channel in (by_prefix, by_name):
                await publisher.broadcaster.publish(channel, b"last")
                await _until(subscriber, (channel, b"last"))
                assert subscriber.sink.payloads(channel) == [*(b"%d" % number for number in range(sent)), b"last"]

    async def test_hostile_prefixes_are_literal(self, prefix_url: str) -> None:
        """Wildcards, blanks, control characters and any Unicode are plain characters of a prefix."""
        async with started_worker(prefix_url) as publisher, started_worker(prefix_url) as subscriber:
            await _prefixes(subscriber).subscribe_prefixes(HOSTILE_PREFIXES)
            expected = [(f"{prefix}rest", prefix.encode()) for prefix in HOSTILE_PREFIXES]
            for channel, payload in expected:
                await publisher.broadcaster.publish(channel, payload)
            for channel in ("hallo", "t", "b.x", "A.x", "@x", "SYS.x", "本"):
                await publisher.broadcaster.publish(channel, b"not wanted")
            await publisher.broadcaster.publish("a.last", b"")
            await _until(subscriber, ("a.last", b""))
            assert sorted(subscriber.sink.delivered) == sorted([*expected, ("a.last", b"")])

    async def test_the_empty_prefix_is_every_channel(self, prefix_url: str) -> None:
        """With the empty prefix whatever is published arrives, once."""
        async with started_worker(prefix_url) as publisher, started_worker(prefix_url) as subscriber:
            run = secrets.token_hex(4)
            await _prefixes(subscriber).subscribe_prefixes([""])
            await subscriber.broadcaster.subscribe([f"{run} a"])
            for channel in (f"{run} a", f"{run} b", f"{run} a"):
                await publisher.broadcaster.publish(channel, channel.encode())
            await publisher.broadcaster.publish(f"{run} last", b"")
            await _until(subscriber, (f"{run} last", b""))
            delivered = [channel for channel, _ in subscriber.sink.delivered if channel.startswith(run)]
            assert sorted(delivered) == [f"{run} a", f"{run} a", f"{run} b", f"{run} last"]

    async def test_nothing_arrives_after_unsubscribe_prefixes_returned(self, prefix_url: str) -> None:
        """Once it has returned nothing is delivered because of the prefix alone; a name and another prefix go on."""
        async with started_worker(prefix_url) as publisher, started_worker(prefix_url) as subscriber:
            run = secrets.token_hex(4)
            await subscriber.broadcaster.subscribe([f"{run}.a.name"])
            await _prefixes(subscriber).subscribe_prefixes([f"{run}.a.", f"{run}.a.b.", f"{run}.c."])
            await _prefixes(subscriber).unsubscribe_prefixes([f"{run}.a."])
            for channel in ("a.x", "a.name", "a.b.x", "c.last"):
                await publisher.broadcaster.publish(f"{run}.{channel}", b"")
            await _until(subscriber, (f"{run}.c.last", b""))
            await subscriber.sink.until(lambda: len(subscriber.sink.delivered) == 3)
            assert sorted(name for name, _ in subscriber.sink.delivered) == [
                f"{run}.{channel}" for channel in ("a.b.x", "a.name", "c.last")
            ]

    async def test_prefixes_end_with_a_stop(self, prefix_url: str) -> None:
        """The same object starts again without its former prefixes, and a stopped one raises."""
        broadcaster = broadcaster_from_url(prefix_url)
        assert isinstance(broadcaster, SupportsPrefixes)
        for _ in range(2):
            sink = RecordingSink()
            await broadcaster.start(sink)
            await broadcaster.subscribe_prefixes(["kept."])
            await broadcaster.publish("left.x", b"")
            await broadcaster.publish("kept.x", b"")
            await sink.until(lambda sink=sink: len(sink.delivered) == 1)  # type: ignore[misc]
            assert sink.delivered == [("kept.x", b"")]
            await broadcaster.subscribe_prefixes(["left."])
            await broadcaster.stop()
            for call in (broadcaster.subscribe_prefixes(["a."]), broadcaster.unsubscribe_prefixes(["left."])):
                with pytest.raises(BrokerUnavailableError):
                    await call

    async def test_what_is_kept_arrives_by_prefix(self, prefix_url: str) -> None:
        """A message of a channel with a history arrives on its prefix too, once, with its place."""
        async with started_worker(prefix_url) as publisher, started_worker(prefix_url) as subscriber:
            broadcaster = publisher.broadcaster
            if broadcaster.capabilities.keeps == "nothing" or not isinstance(broadcaster, SupportsHistory):
                pytest.skip("this adapter keeps nothing: capabilities.keeps is nothing")
            run, rule = secrets.token_hex(4), History(max_messages=10, max_age_seconds=60)
            for worker in (publisher, subscriber):
                assert isinstance(worker.broadcaster, SupportsHistory)
                await worker.broadcaster.prepare(HistoryRules({f"{run}.*": rule}))
            await subscriber.broadcaster.subscribe([f"{run}.both"])
            await _prefixes(subscriber).subscribe_prefixes([f"{run}."])
            sent = [(f"{run}.{name}", b"%d" % number) for number in range(20) for name in ("both", "alone")]
            receipts = [await broadcaster.keep(channel, payload, rule) for channel, payload in sent]
            await publisher.broadcaster.publish(f"{run}.last", b"")
            await _until(subscriber, (f"{run}.last", b""))
            await subscriber.sink.until(lambda: len(subscriber.sink.delivered) == 41)
            for name in ("both", "alone"):
                channel = f"{run}.{name}"
                expected = _of(channel, sent, [receipt.position for receipt in receipts])
                assert [(kept.payload, kept.place) for kept in subscriber.sink.kept(channel)] == expected

    async def test_a_pattern_receives_what_matches(self, prefix_url: str) -> None:
        """Another worker's publishes reach a subscription to patterns once, with their channels, names included."""
        run = secrets.token_hex(4)
        async with (
            quick_backplane(prefix_url) as outside,
            quick_backplane(prefix_url) as backplane,
            backplane.subscribe(f"{run}.*.b", f"{run}.x*", f"{run}.x.b") as messages,
        ):
            for channel in ("a.b", "a.c", "x.b", "y", "x", "last.b"):
                await outside.publish(f"{run}.{channel}", channel)
            received = sorted([(await next_message(messages)).channel for _ in range(4)])
            assert received == sorted(f"{run}.{channel}" for channel in ("a.b", "x.b", "x", "last.b"))

    @pytest.fixture
    def prefix_proxy(self, prefix_url: str, brokered_url: str, proxy: FaultProxy) -> FaultProxy:
        """The proxy of `prefix_url`, which a suite can give another login."""
        return proxy if prefix_url == brokered_url else FaultProxy(prefix_url)

    async def test_a_lost_link_is_one_gap_of_a_pattern(self, prefix_url: str, prefix_proxy: FaultProxy) -> None:
        """A pattern receives again by itself after a cut, with one gap unless the adapter resumes."""
        resumes = broadcaster_from_url(prefix_url).capabilities.resumes
        proxy = prefix_proxy
        async with proxy, quick_backplane(proxy.url) as backplane, quick_backplane(prefix_url) as outside:
            async with backplane.subscribe("a.*") as messages:
                await outside.publish("a.x", "before")
                assert (await next_message(messages)).data == "before"
                proxy.refuse()
                await reaches_state(backplane, "degraded")
                await outside.publish("a.y", "during")
                proxy.heal()
                await reaches_state(backplane, "live")
                await outside.publish("a.z", "after")
                async with asyncio.timeout(60):
                    received = [await anext(messages) for _ in range(2)]
            shown = [(item.channel, "gap" if isinstance(item, Gap) else item.data) for item in received]
            assert shown == ([("a.y", "during"), ("a.z", "after")] if resumes else [("a.*", "gap"), ("a.z", "after")])


def _prefixes(worker: Worker) -> SupportsPrefixes:
    assert isinstance(worker.broadcaster, SupportsPrefixes)
    return worker.broadcaster


async def _until(worker: Worker, item: tuple[str, bytes]) -> None:
    await worker.sink.until(lambda: item in worker.sink.delivered)


def _of(channel: str, sent: Sequence[tuple[str, bytes]], positions: Sequence[object]) -> list[tuple[bytes, object]]:
    return [(payload, place) for (name, payload), place in zip(sent, positions, strict=True) if name == channel]
