"""`backplane tail` as a process, for the tests of the command line."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["tailing"]


@contextmanager
def tailing(url: str, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """Run `backplane tail`, entered when it has joined."""
    command = [sys.executable, "-m", "backplane.cli", "tail", url, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            # Other tests may have left keys in a shared Redis, of which a warning comes first.
            assert any("joined" in line for line in iter(process.stderr.readline, ""))
            yield process
        finally:
            process.kill()
