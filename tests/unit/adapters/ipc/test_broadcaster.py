"""`ipc://` as an adapter: its URL, its names, its starts and stops. The contract is tested by the conformance suite."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane.broker.registry import broadcaster_from_url
from backplane.errors import ConfigurationError
from backplane.testing.recording import RecordingSink
from tests.unit.adapters.ipc.processes import Worker

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

pytestmark = pytest.mark.anyio


def test_an_adapter_starts_again_in_another_event_loop(url: str) -> None:
    """The second run starts without any state of the first."""
    adapter = broadcaster_from_url(url)

    async def run() -> list[tuple[str, bytes]]:
        sink = RecordingSink()
        await adapter.start(sink)
        await adapter.publish("a", b"no subscriber")
        await adapter.subscribe(["a"])
        await adapter.publish("a", b"received")
        await adapter.stop()
        return sink.delivered

    assert [asyncio.run(run()) for _ in range(2)] == [[("a", b"received")]] * 2


async def test_different_names_never_meet(url: str, stack: AsyncExitStack) -> None:
    """Similar names in one directory are separate applications."""
    names = ["app", "App", "app/", "app.", "a%70p/1", "app-1", "x" * 300, "x" * 299 + "y"]
    workers = [await stack.enter_async_context(Worker(url.replace("app", name, 1))) for name in names]
    for worker in workers:
        await worker.adapter.subscribe(["a"])
    twin = await stack.enter_async_context(Worker(url.replace("app", names[0], 1)))
    for worker, name in zip(workers, names, strict=True):
        await worker.adapter.publish("a", name.encode())
    await workers[0].received_all_of(twin, "a")
    assert workers[0].sink.payloads("a") == [b"app", b"barrier"]
    assert [worker.sink.payloads("a") for worker in workers[1:]] == [[name.encode()] for name in names[1:]]


@pytest.mark.parametrize("url", ["ipc://", "ipc:///", "ipc://me:secret@app", "ipc://app?directory=here"])
def test_a_url_that_cannot_work_is_refused_at_once(url: str) -> None:
    """A missing name, a user, a relative directory: each is refused before anything is opened, and shows no secret."""
    with pytest.raises(ConfigurationError) as caught:
        broadcaster_from_url(url)
    assert "secret" not in str(caught.value)
