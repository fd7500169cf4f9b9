"""`backplane.explain.path_tests`: a path test is found whether it arrived before or after the question."""

from __future__ import annotations

import asyncio

import pytest

from backplane.explain.path_tests import PathTests

pytestmark = pytest.mark.anyio


async def test_wait() -> None:
    """It is waited for by channel and id, by several at a time, and not for longer than is given."""
    tests = PathTests()
    tests.arrived("a", b"1")
    assert await tests.wait("a", b"1", 0)
    assert not await tests.wait("b", b"1", 0.001)
    waiting = [asyncio.create_task(tests.wait("a", b"2", 30)) for _ in range(2)]
    await asyncio.sleep(0)
    tests.arrived("a", b"2")
    assert await asyncio.gather(*waiting) == [True, True]


async def test_few_are_kept() -> None:
    """The last 200 are kept."""
    tests = PathTests()
    for number in range(201):
        tests.arrived("a", b"%d" % number)
    assert not await tests.wait("a", b"0", 0.001)
    assert await tests.wait("a", b"1", 0)
