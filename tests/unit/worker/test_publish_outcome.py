"""`backplane.worker.publish_outcome`: each call of publish ends in exactly one figure."""

from __future__ import annotations

import asyncio

import pytest

from backplane import Backplane
from backplane.errors import (
    BrokerUnavailableError,
    ClosedError,
    ConfigurationError,
    InvalidChannelError,
    InvalidDataError,
    PayloadTooLargeError,
    PublishError,
    PublishOutcomeUnknownError,
)
from backplane.settings import Settings
from backplane.statistics import Counters
from backplane.worker.publish_outcome import count_failed_publish
from tests.unit.controlled_adapter import Adapter
from tests.unit.doubles import counted

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("error", "figure"),
    [
        (BrokerUnavailableError("away"), "publishes_unavailable"),
        (PublishOutcomeUnknownError("cut"), "publishes_unknown"),
        (PublishError("not allowed"), "publishes_refused"),
        (PayloadTooLargeError(2, 1), "publishes_too_large"),
        (InvalidDataError("no JSON"), "publishes_invalid"),
        (InvalidChannelError("empty"), "publishes_invalid"),
        (ConfigurationError("no history"), "publishes_invalid"),
        (asyncio.CancelledError(), "publishes_cancelled"),
        (ClosedError("stopped"), "publishes_failed"),
        (RuntimeError("a fault"), "publishes_failed"),
    ],
    ids=repr,
)
def test_outcome(error: BaseException, figure: str) -> None:
    """Whatever a call raises is counted once."""
    counters = Counters()
    count_failed_publish(counters, error)
    assert counted(counters) == {figure: 1}


async def test_calls_are_counted_where_they_end() -> None:
    """One that returns is counted with its bytes and its time, any other with its outcome."""
    adapter = Adapter(brokered=True)
    async with Backplane(adapter, settings=Settings(publish_timeout_seconds=60)) as backplane:
        await backplane.publish("a", "x")
        with pytest.raises(InvalidChannelError):
            await backplane.publish("", "x")
        with pytest.raises(InvalidDataError):
            await backplane.publish("a", object())
        with pytest.raises(PayloadTooLargeError):
            await backplane.publish("a", "x" * (adapter.capabilities.max_payload_bytes + 1))
        adapter.publish_errors["refused"] = PublishError("not allowed")
        with pytest.raises(PublishError):
            await backplane.publish("refused", "x")
        adapter.publish_gate.close()
        waiting = asyncio.create_task(backplane.publish("a", "x"))
        await adapter.until(lambda: adapter.verbs.count("publish") == 3)
        waiting.cancel()
        await asyncio.wait([waiting])
        adapter.publish_gate.open()
        counts = backplane.statistics()
        runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert runtime is not None
        assert runtime.statistics.publish_seconds.count == 1
    assert (counts.published, counts.published_bytes, counts.publishes_invalid) == (1, 22, 2)
    assert (counts.publishes_too_large, counts.publishes_refused, counts.publishes_cancelled) == (1, 1, 1)
    assert (counts.publishes_unavailable, counts.publishes_unknown, counts.publishes_failed) == (0, 0, 0)
