"""`benchmarks.micro.walks`: the files of an operation, in the order of the calls."""

from __future__ import annotations

import asyncio

import pytest

from backplane.channels import validate_channel
from backplane.concurrency.timeouts import PatientTimeout
from benchmarks.micro.walks import Walk


def test_repetitions_count_once() -> None:
    """Calls within one file are one stay in it."""
    walk = Walk("two names")
    with walk.recorded():
        validate_channel("a")
        validate_channel("b")
    assert (walk.files, walk.changes) == (["backplane/channels.py"], 0)


@pytest.mark.anyio
async def test_resumption_is_no_visit() -> None:
    """A coroutine that is resumed counts where it was entered alone."""

    async def pause() -> None:
        async with PatientTimeout(10):
            await asyncio.sleep(0)
            validate_channel("a")

    walk = Walk("a pause")
    with walk.recorded():
        await pause()
    timeouts = "backplane/concurrency/timeouts.py"
    assert (walk.files, walk.changes) == ([timeouts, "backplane/channels.py", timeouts], 2)


def test_other_code_is_ignored() -> None:
    """Files outside of the package, and its test tools, do not count."""
    walk = Walk("nothing of ours")
    with walk.recorded():
        asyncio.new_event_loop().close()
    assert walk.files == []
