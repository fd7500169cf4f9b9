"""`backplane.adapters.shared.link_tasks`: the failure of a task is the loss of the link."""

from __future__ import annotations

import asyncio

import pytest

from backplane.adapters.shared.link_tasks import LinkTasks
from backplane.broadcaster import BrokerUrl
from backplane.errors import BrokerError, BrokerUnavailableError

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough."""
    return "asyncio", {"use_uvloop": False}


async def test_a_failure_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """What is no error of a broker is logged, and reported as a lost link of that adapter."""
    lost: list[BrokerError] = []
    tasks = LinkTasks(BrokerUrl.parse("redis://one"), "redis", lost.append)

    async def fail(error: Exception) -> None:
        raise error

    known = BrokerUnavailableError("down", adapter="redis")
    await asyncio.wait([tasks.spawn(fail(known), "one"), tasks.spawn(fail(ValueError("bad")), "two")])
    first, second = lost
    assert first is known
    assert "unexpected error: ValueError('bad')" in str(second)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_cancelling() -> None:
    """Every task is cancelled, which is no failure; those that ended are no longer known."""
    lost: list[BrokerError] = []
    tasks = LinkTasks(BrokerUrl.parse("redis://one"), "redis", lost.append)
    ended = tasks.spawn(asyncio.sleep(0), "ended")
    waiting = tasks.spawn(asyncio.Event().wait(), "waiting")  # type: ignore[arg-type]
    assert waiting.get_name() == "backplane-waiting"
    await ended
    assert tasks.cancel() == {waiting}
    await asyncio.wait([waiting])
    assert (tasks.cancel(), lost) == (set(), [])
