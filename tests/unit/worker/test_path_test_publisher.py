"""`backplane.worker.path_test_publisher`: the message by which the way of a channel is tested."""

from __future__ import annotations

import asyncio

import pytest

from backplane import ConfigurationError, InvalidChannelError, Settings
from backplane.broadcaster import Options
from backplane.worker.path_test_publisher import publish_path_test
from backplane.worker.runtime import Runtime
from tests.unit.doubles import ControlledBroadcaster, RecordingSubscriber

pytestmark = pytest.mark.anyio


async def test_path_test() -> None:
    """A path test is published beside the history of its channel, and arrives at the hub of each worker."""
    reported: list[tuple[str, bytes]] = []
    worker = Runtime(ControlledBroadcaster(), Settings())
    await worker.start()
    worker.hub.on_path_test = lambda channel, test_id: reported.append((channel, test_id))
    async with asyncio.timeout(30):
        await worker.hub.join("a", RecordingSubscriber())
        await publish_path_test(worker, "a", b"TEST_ID8")
    assert (reported, worker.count().path_tests, worker.count().published) == ([("a", b"TEST_ID8")], 1, 0)
    await worker.stop()


async def test_path_test_that_is_refused() -> None:
    """Without a header a path test cannot be published, and a name that is not legal is refused as for a message."""
    worker = Runtime(ControlledBroadcaster(options=Options(wire_format="plain")), Settings())
    with pytest.raises(ConfigurationError, match="take off that option to test the path"):
        await publish_path_test(worker, "a", b"TEST_ID8")
    with pytest.raises(InvalidChannelError):
        await publish_path_test(worker, "", b"TEST_ID8")
