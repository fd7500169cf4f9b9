"""What waits for a peer that does not read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.adapters.ipc.processes import MEBIBYTE, Process, Worker

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

pytestmark = pytest.mark.anyio


async def test_a_frozen_peer_that_was_not_cut_misses_nothing(url: str, stack: AsyncExitStack) -> None:
    """Within the bound, messages wait for a stopped process, and it reports no gap."""
    listener = await stack.enter_async_context(await Process.spawn(url))
    await listener.run("start")
    await listener.run("subscribe", "a")
    worker = await stack.enter_async_context(Worker(url))
    await listener.freeze()
    for number in range(32):
        await worker.adapter.publish("a", b"%d " % number + bytes(MEBIBYTE // 8))
    listener.thaw()
    await listener.until(lambda: len(listener.delivered) == 32)
    assert [int(text.split(" ")[0]) for _, text in listener.delivered] == list(range(32))
    assert listener.gaps == []


async def test_a_peer_with_too_large_a_backlog_is_cut_and_reports_one_gap(url: str, stack: AsyncExitStack) -> None:
    """A stopped process delays no other; when it runs again it reports one gap and receives all later messages."""
    url += "&max_peer_backlog_bytes=100000"
    listener = await stack.enter_async_context(await Process.spawn(url))
    await listener.run("start")
    await listener.run("subscribe", "a", "b")
    worker = await stack.enter_async_context(Worker(url))
    await listener.freeze()
    for number in range(40):
        await worker.adapter.publish("a", b"%d " % number + bytes(MEBIBYTE // 8))
    listener.thaw()
    await listener.until(lambda: bool(listener.gaps))
    await worker.adapter.publish("a", b"after")
    await listener.until(lambda: ("a", "after") in listener.delivered)
    assert listener.gaps == [None]
    assert [report[0] for report in listener.reports[-2:]] == ["gap", "deliver"]


async def test_a_message_larger_than_the_bound_passes_alone(url: str, stack: AsyncExitStack) -> None:
    """A single message may be larger than the bound: only messages after it can exceed the bound."""
    url += "&max_peer_backlog_bytes=1000"
    listener = await stack.enter_async_context(Worker(url))
    publisher = await stack.enter_async_context(Worker(url))
    await listener.adapter.subscribe(["a"])
    await publisher.adapter.publish("a", bytes(4 * MEBIBYTE))
    await listener.sink.until(lambda: bool(listener.sink.delivered))
    assert listener.sink.delivered == [("a", bytes(4 * MEBIBYTE))]
    assert listener.sink.gaps == []
