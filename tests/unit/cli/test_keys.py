"""`backplane.cli.keys`: keys of a terminal, which is as it was before afterwards."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backplane.cli.keys import calling_at_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """A terminal at standard input: the descriptors of the keyboard and of the program."""
    keyboard, program = pty.openpty()
    with os.fdopen(program, closefd=False) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        yield keyboard, program
    os.close(program)


async def test_keys(terminal: tuple[int, int]) -> None:
    """Those that are asked for are called for, and no others."""
    keyboard, program = terminal
    before, pressed = termios.tcgetattr(program), asyncio.Queue[str]()
    with calling_at_keys("qQ", lambda: pressed.put_nowait("called")):
        os.write(keyboard, b"abc")
        os.write(keyboard, b"q")
        assert await asyncio.wait_for(pressed.get(), 30) == "called"
        assert pressed.empty()
    assert termios.tcgetattr(program) == before
    os.close(keyboard)


async def test_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where standard input is closed, or a file, nothing is called."""
    for stream in (None, Path(os.devnull).open()):  # noqa: SIM115
        monkeypatch.setattr(sys, "stdin", stream)
        with calling_at_keys("q", pytest.fail):
            await asyncio.sleep(0)
        if stream is not None:
            stream.close()
