"""Single keys of a terminal, while a command runs."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["calling_at_keys"]

_MOST_BYTES: Final = 64


@contextmanager
def calling_at_keys(keys: str, call: Callable[[], object]) -> Generator[None]:
    """Call a function, in the event loop that runs, whenever one of `keys` is pressed. Ctrl-C stays what it is.

    The terminal shows no key meanwhile, and is as it was after the block. Without a terminal at standard input nothing
    is called.
    """
    descriptor = _terminal()
    if descriptor is None:
        yield
        return
    import termios  # there is none on Windows
    import tty

    loop = asyncio.get_running_loop()

    def read() -> None:
        pressed = os.read(descriptor, _MOST_BYTES).decode(errors="replace")
        if not pressed:  # the terminal is gone
            loop.remove_reader(descriptor)
        if not pressed or any(key in keys for key in pressed):
            call()

    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        loop.add_reader(descriptor, read)
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _terminal() -> int | None:
    if cast("object", sys.stdin) is None or not sys.stdin.isatty():
        return None
    return sys.stdin.fileno()
