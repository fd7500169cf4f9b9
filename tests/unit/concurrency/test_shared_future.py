"""`backplane.concurrency.shared_future`: a future that several callers wait for."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from backplane.concurrency.shared_future import outcome_of

pytestmark = pytest.mark.anyio


async def test_every_caller_gets_the_outcome() -> None:
    """All callers get the result, and all get the failure."""
    loop = asyncio.get_running_loop()
    good, bad = loop.create_future(), loop.create_future()
    callers = [asyncio.ensure_future(outcome_of(future)) for future in (good, good, bad, bad)]
    await asyncio.sleep(0)
    good.set_result("x")
    bad.set_exception(error := ValueError())
    assert await asyncio.gather(*callers, return_exceptions=True) == ["x", "x", error, error]


async def test_cancelled_caller_leaves_the_future() -> None:
    """Cancelling one caller leaves the future to the others."""
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    first, second = (asyncio.ensure_future(outcome_of(future)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait((first,))
    future.set_result("x")
    assert first.cancelled()
    assert await second == "x"


async def test_cancelled_future() -> None:
    """A future that is cancelled cancels its callers."""
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    caller = asyncio.ensure_future(outcome_of(future))
    await asyncio.sleep(0)
    future.cancel()
    await asyncio.wait((caller,))
    assert caller.cancelled()


async def test_failure_after_all_callers_were_cancelled() -> None:
    """A failure that no caller waits for any more is reported nowhere."""
    loop = asyncio.get_running_loop()
    reported: list[dict[str, Any]] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    try:
        future: asyncio.Future[str] = loop.create_future()
        caller = asyncio.ensure_future(outcome_of(future))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait((caller,))
        future.set_exception(ValueError())
        await asyncio.sleep(0)
        del future, caller
        gc.collect()
    finally:
        loop.set_exception_handler(before)
    assert reported == []
