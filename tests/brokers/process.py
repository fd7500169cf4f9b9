"""Programs that tests start: on a free port, awaited until they answer, ended by their pid."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

__all__ = ["LastingThread", "end", "free_port", "install", "locked", "made", "start", "wait_until"]

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_INSTALLING = Path(tempfile.gettempdir(), "backplane-tests-install.lock")


class LastingThread(threading.Thread):
    """A thread that never ends before its process: it may therefore start programs."""

    def __init__(self, target: Callable[..., None], args: Sequence[object]) -> None:
        super().__init__(target=target, args=args, daemon=True)


def free_port() -> int:
    """Return a free loopback port, which no other process of the tests gets while this one runs.

    It is below the range from which Linux chooses the ports of outgoing connections: in that range a client of a
    stopped broker can occupy the broker's port, or connect to itself.
    """
    for _ in range(100):
        address = ("127.0.0.1", random.randint(20_000, 32_000))
        # The UDP port of the same number marks it as taken until this process ends.
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(address)
            with socket.create_server(address):
                claim.detach()
                return address[1]
        except OSError:
            claim.close()
    raise RuntimeError("no free port between 20,000 and 32,000")


@contextmanager
def locked(path: Path, kind: int = fcntl.LOCK_EX) -> Generator[None]:
    """Hold the lock of a file, which is created if it is missing, among all processes; `fcntl.LOCK_SH` to share it."""
    with path.open("w") as lock:
        fcntl.flock(lock, kind)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing is not enough where the block has forked


def made(folder: Path) -> Path:
    """Create `folder` and return it."""
    folder.mkdir()
    return folder


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Poll `condition`, a state outside this process that sends no event.

    Raises:
        TimeoutError: It did not become true in time; `what` describes it.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.01)


def start(
    command: Sequence[str], *, cwd: Path, log: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, without the terminal's Ctrl-C; its output is appended to `log`.

    The kernel sends it SIGTERM if this process dies, which is how pytest-timeout ends a run.
    """
    # The kernel sends that SIGTERM when the starting *thread* ends.
    thread = threading.current_thread()
    assert thread is threading.main_thread() or isinstance(thread, LastingThread), "start programs from the main thread"
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )


def install(program: str, package: str | None = None) -> str | None:
    """Install the package of a program, of the same name by default, if permitted; return its path, or `None`.

    Permitted as root on Debian, unless BACKPLANE_TEST_INSTALL=0.
    """
    apt_get = shutil.which("apt-get")
    if apt_get is None or os.geteuid() != 0 or os.environ.get("BACKPLANE_TEST_INSTALL") == "0":
        return None
    with locked(_INSTALLING):  # two apt-get cannot run at once
        if shutil.which(program) is None:
            _install_by(apt_get, package or program)
    return shutil.which(program)


@cache
def _install_by(apt_get: str, package: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", package]):
        subprocess.run([apt_get, *arguments], env=environment, capture_output=True, check=False)


def end(process: subprocess.Popen[bytes], seconds: float = 10.0) -> bool:
    """End `process` by SIGTERM, after `seconds` by SIGKILL; return whether SIGTERM was enough."""
    for signal_number in (signal.SIGTERM, signal.SIGCONT):
        process.send_signal(signal_number)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def _end_with_parent() -> None:
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
