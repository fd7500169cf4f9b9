"""Processes that start, subscribe and stop beside each other."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from backplane.adapters.ipc import subscriber_connection, wire
from backplane.history_rules import History, HistoryRules
from tests.unit.adapters.ipc.processes import MEBIBYTE, Process, Worker, impatient
from tests.unit.doubles import run_passes

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

pytestmark = pytest.mark.anyio


async def test_two_processes_that_start_at_once_are_connected(url: str, stack: AsyncExitStack) -> None:
    """However two starts interleave, the first publish after start and subscribe reaches the other process."""
    first, second = [await stack.enter_async_context(await Process.spawn(url)) for _ in range(2)]
    for turn in range(25):
        await asyncio.gather(*(process.run("start") for process in (first, second)))
        await asyncio.gather(*(process.run("subscribe", "a") for process in (first, second)))
        first.command("publish", "a", f"first {turn}", 0, 1)
        second.command("publish", "a", f"second {turn}", 0, 1)
        both = {("a", f"first {turn}"), ("a", f"second {turn}")}
        await asyncio.gather(*(process.received(both) for process in (first, second)))
        await asyncio.gather(*(process.run("stop") for process in (first, second)))
    assert first.gaps == second.gaps == []


async def test_a_frozen_peer_holds_up_one_subscription_once(url: str, stack: AsyncExitStack) -> None:
    """A peer that does not confirm is waited for once; when it runs again, a gap of just these channels is reported."""
    url = impatient(url, 0.5)
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.run("start")
    worker = await stack.enter_async_context(Worker(url))
    await worker.adapter.subscribe(["early"])
    await process.freeze()
    waiting = asyncio.create_task(worker.adapter.subscribe(["late"]))
    await run_passes(3)
    await worker.adapter.subscribe(["meanwhile"])
    await waiting
    for number in range(10):
        subscribing = asyncio.create_task(worker.adapter.subscribe([f"later {number}"]))
        await run_passes(3)
        assert subscribing.done()
    process.thaw()
    expected = {"late", "meanwhile", *(f"later {number}" for number in range(10))}
    await worker.sink.until(lambda: expected <= {name for names, _ in worker.sink.gaps for name in names or ()})
    assert all(names is not None and "early" not in names for names, _ in worker.sink.gaps)
    await process.run("publish", "late", "now", 0, 1)
    await worker.sink.until(lambda: ("late", b"now") in worker.sink.delivered)
    assert process.gaps == []


async def test_a_pause_of_this_process_is_not_taken_for_silence_of_a_peer(
    url: str, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that was blocked while its peers confirmed still counts their confirmations, and reports no gap."""
    url = impatient(url, 2)
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.run("start")
    worker = await stack.enter_async_context(Worker(url))
    asyncio.get_running_loop().call_soon(time.sleep, 2.5)
    await worker.adapter.subscribe(["room"])
    await process.run("publish", "room", "now", 0, 1)
    await worker.sink.until(lambda: ("room", b"now") in worker.sink.delivered)
    assert (worker.sink.gaps, caplog.messages) == ([], [])


@pytest.mark.parametrize("publishes", [True, False])
async def test_a_start_goes_on_without_a_frozen_peer(url: str, stack: AsyncExitStack, *, publishes: bool) -> None:
    """A peer that was stopped during our start reports a gap if and only if a message was published meanwhile."""
    url = impatient(url, 0.2)
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.run("start")
    await process.run("subscribe", "a")
    await process.freeze()
    worker = await stack.enter_async_context(Worker(url))
    await worker.adapter.subscribe(["b"])
    if publishes:
        await worker.adapter.publish("a", b"missed")
    process.thaw()
    await worker.sink.until(lambda: bool(worker.sink.gaps))
    await process.run("subscribe", "c")  # its confirmation by us proves that we know its channels
    await worker.adapter.publish("a", b"received")
    await process.until(lambda: bool(process.delivered))
    assert process.delivered == [("a", "received")]
    assert [names is None or "a" in names for names in process.gaps] == ([True] if publishes else [])


async def test_stop_flushes_what_was_published(url: str, stack: AsyncExitStack) -> None:
    """Messages that did not fit into the kernel's buffer still reach a peer that reads, before the BYE."""
    listener = await stack.enter_async_context(Worker(url))
    await listener.adapter.subscribe(["a"])
    async with Worker(url) as leaving:
        for _ in range(6):
            await leaving.adapter.publish("a", bytes(MEBIBYTE))
    await listener.sink.until(lambda: len(listener.sink.delivered) == 6)
    assert listener.sink.gaps == []


async def test_stop_does_not_wait_for_a_frozen_peer(url: str, stack: AsyncExitStack) -> None:
    """A stop takes half a second at most; a peer that did not read its messages reports a gap."""
    listener = await stack.enter_async_context(await Process.spawn(url))
    await listener.run("start")
    await listener.run("subscribe", "a")
    async with Worker(url) as leaving:
        await listener.freeze()
        for _ in range(6):
            await leaving.adapter.publish("a", bytes(MEBIBYTE))
        start = time.monotonic()
    assert time.monotonic() - start < 2
    listener.thaw()
    await listener.until(lambda: bool(listener.gaps))
    assert listener.gaps == [None]


async def test_a_prefix_is_sent_everything_below_it(url: str, stack: AsyncExitStack) -> None:
    """A process with a prefix receives channels that no one has named, once, from other processes and from itself."""
    worker = await stack.enter_async_context(Worker(url))
    await worker.adapter.subscribe_prefixes(["a.", "a.b."])
    process = await stack.enter_async_context(await Process.spawn(url))  # it is sent the prefixes when it starts
    await process.run("start")
    await worker.adapter.subscribe(["a.named"])
    for channel in ("a.b.c", "b", "a.named", "a.last"):
        await process.run("publish", channel, "1", 0, 1)
    await worker.adapter.publish("a.own", b"2")
    await worker.sink.until(lambda: ("a.last", b"1") in worker.sink.delivered)
    expected = [("a.b.c", b"1"), ("a.last", b"1"), ("a.named", b"1"), ("a.own", b"2")]
    assert sorted(worker.sink.delivered) == expected
    await worker.adapter.unsubscribe_prefixes(["a."])
    await worker.adapter.publish("a.own", b"not wanted any more")
    await worker.adapter.publish("a.b.own", b"3")
    await process.run("publish", "a.named", "4", 0, 1)
    await worker.sink.until(lambda: ("a.named", b"4") in worker.sink.delivered)
    assert sorted(set(worker.sink.delivered) - set(expected)) == [("a.b.own", b"3"), ("a.named", b"4")]
    assert worker.sink.gaps == []


async def test_what_a_prefix_may_have_missed_is_a_gap_of_all(url: str, stack: AsyncExitStack) -> None:
    """A process that was cut because it did not read reports a gap of all: of which channels is not known."""
    url += "&max_peer_backlog_bytes=100000"
    listener = await stack.enter_async_context(await Process.spawn(url))
    await listener.run("start")
    await listener.run("subscribe_prefixes", "a")
    await listener.run("subscribe", "b")
    worker = await stack.enter_async_context(Worker(url))
    await listener.freeze()
    for number in range(40):
        await worker.adapter.publish("a1", b"%d " % number + bytes(MEBIBYTE // 8))
    listener.thaw()
    await listener.until(lambda: bool(listener.gaps))
    await worker.adapter.publish("a2", b"after")
    await listener.until(lambda: ("a2", "after") in listener.delivered)
    assert set(listener.gaps) == {None}


async def test_a_peer_of_a_release_without_prefixes_is_a_gap_when_it_ends(
    url: str, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a rolling restart the prefix is subscribed all the same: the old peer is logged once, and a gap at its end."""
    worker = await stack.enter_async_context(Worker(url))
    monkeypatch.setattr(subscriber_connection, "_WELCOME", wire.frame(wire.WELCOME))
    async with Worker(url):
        await worker.adapter.subscribe_prefixes(["a"])
        await worker.adapter.subscribe_prefixes(["b"])
        assert [record.getMessage().count("sends nothing for patterns") for record in caplog.records] == [1]
        assert worker.sink.gaps == []
    await worker.sink.until(lambda: bool(worker.sink.gaps))
    assert [names for names, _ in worker.sink.gaps] == [None]


async def test_a_history_is_read_by_prefix(url: str, stack: AsyncExitStack) -> None:
    """What is kept arrives by prefix with its place, once, also on a channel that is named or has no rule here."""
    worker = await stack.enter_async_context(Worker(url))
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.run("start")
    await process.run("prepare", "a.*")
    await worker.adapter.prepare(HistoryRules({"a.n*": History()}))
    await worker.adapter.subscribe_prefixes(["a."])
    await worker.adapter.subscribe(["a.named", "a.other"])
    for channel in ("a.named", "a.other", "a.new", "a.x"):
        await process.run("keep", channel, "1", 0, 1)
    await worker.adapter.keep("a.x", b"own", History())
    await worker.sink.until(lambda: ("a.x", b"own") in worker.sink.delivered)
    assert worker.sink.delivered == [
        *((channel, b"1") for channel in ("a.named", "a.other", "a.new", "a.x")),
        ("a.x", b"own"),
    ]
    assert None not in worker.sink.places
    await worker.adapter.unsubscribe_prefixes(["a."])
    await process.run("keep", "a.x", "not wanted any more", 0, 1)
    await process.run("keep", "a.named", "2", 0, 1)
    await worker.sink.until(lambda: ("a.named", b"2") in worker.sink.delivered)
    assert worker.sink.delivered[5:] == [("a.named", b"2")]
