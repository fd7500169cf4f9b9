"""A server as a process of its own: its log is checked, and it must end on SIGTERM with all its workers."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from tests.brokers.process import end, start, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Generator, Mapping, Sequence
    from pathlib import Path

__all__ = ["ServerProcess", "end_with_children", "server_process"]

_TRACEBACK = re.compile("Traceback")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProcess:
    """A running server.

    Attributes:
        process: Its process, which may have children.
        log: The file of what it and its workers print.
    """

    process: subprocess.Popen[bytes]
    log: Path

    def wait_until(self, condition: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
        """Wait until `condition` holds, or fail as soon as the server has ended. Blocks."""

        def holds() -> bool:
            assert self.process.poll() is None, "the server has ended"
            return condition()

        wait_until(holds, what, seconds=seconds)


@contextmanager
def server_process(
    command: Sequence[str],
    folder: Path,
    *,
    cwd: Path,
    name: str = "server",
    environment: Mapping[str, str] | None = None,
    errors: re.Pattern[str] = _TRACEBACK,
    tolerated: str | None = None,
    end_seconds: float = 30,
) -> Generator[ServerProcess]:
    """Run a server, and end it after the block. An error of the block shows the log.

    Args:
        command: What is run.
        folder: Where its log is written, and its home.
        cwd: Where it is run.
        name: The name of its log.
        environment: Added to the environment of this process.
        errors: What its log must not contain.
        tolerated: A regular expression of what is removed from the log before that check.
        end_seconds: Within how many seconds of SIGTERM it must end.
    """
    log = folder / f"{name}.log"
    # Gunicorn creates a control socket in the home folder; two of them would share it.
    variables = {**os.environ, "HOME": str(folder), "XDG_RUNTIME_DIR": "", **(environment or {})}
    process = start(command, cwd=cwd, log=log, env=variables)
    try:
        yield ServerProcess(process=process, log=log)
    except BaseException as error:
        error.add_note(f"The log of {name}:\n{log.read_text()[-10_000:]}")
        raise
    finally:
        killed = end_with_children(process, end_seconds)
    logged = log.read_text()
    assert not killed, f"{name} did not end on SIGTERM:\n{logged}"
    if tolerated is not None:
        logged = re.sub(tolerated, "", logged, flags=re.DOTALL)
    assert not errors.search(logged), f"{name} logged an error:\n{logged}"


def end_with_children(process: subprocess.Popen[bytes], seconds: float = 15) -> list[int]:
    """End a process and, by their pids, the children that outlive it; return the pids that had to be killed."""
    if process.poll() is not None:
        return []
    children = psutil.Process(process.pid).children(recursive=True)
    killed = [] if end(process, seconds=seconds) else [process.pid]
    for child in psutil.wait_procs(children, timeout=5)[1]:
        child.kill()
        killed.append(child.pid)
    return killed
