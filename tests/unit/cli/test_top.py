"""`backplane top`: what it prints once, as JSON, and on a terminal, and how it ends."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from backplane.cli import app
from tests.brokers.process import free_port
from tests.cluster_app import WAIT, serving_in_thread

if TYPE_CHECKING:
    from collections.abc import Generator

COMMAND = [sys.executable, "-m", "backplane.cli", "top"]


def top(*arguments: str) -> tuple[int, str, str]:
    """Run the command; return status, standard output and standard error."""
    result = CliRunner().invoke(app, ["top", *arguments, *WAIT])
    return result.exit_code, result.stdout, result.stderr


def test_without_a_terminal_it_prints_once(ipc_url: str) -> None:
    """Two workers have a row each; the state of all is a sentence before."""
    with serving_in_thread(ipc_url), serving_in_thread(ipc_url):
        status, printed, errors = top(ipc_url)
    assert (status, errors) == (0, "")
    lines = [line.rstrip() for line in printed.splitlines()]
    assert lines[0].endswith("2 of 2 workers, 0 clients, 0 deliveries/s")
    assert lines[1] == "✓ All 2 workers are live."
    header, *rows = [line.split() for line in lines[3:6]]
    assert header[:4] == ["worker", "link", "clients", "deliv/s"]
    assert [row[1:4] for row in rows] == [["live", "0", "0"]] * 2
    assert all(f"/{os.getpid()}-" in row[0] for row in rows)


def test_json(ipc_url: str) -> None:
    """With --json and --once it is one line: the overview, as the page has it, with rates."""
    with serving_in_thread(ipc_url):
        status, printed, errors = top(ipc_url, "--json", "--once")
    assert (status, errors, printed.count("\n")) == (0, "", 1)
    overview = json.loads(printed)
    assert (overview["asked"], overview["answered"], overview["missing"]) == (1, 1, [])
    assert overview["verdict"] == "The worker is live."
    (worker,) = overview["workers"]
    assert (worker["pid"], worker["state"]) == (os.getpid(), "live")
    assert worker["rates"].keys() == {"deliveries", "publishes", "failures", "dropped"}


def test_no_worker(ipc_url: str) -> None:
    """Where no worker is seen that is what is shown, with what to do."""
    status, printed, _ = top(ipc_url)
    assert status == 0
    assert "✗ No worker is seen at ipc://test." in printed
    assert "start them with cluster=True" in " ".join(printed.split())


def test_absent_broker() -> None:
    """Without a broker it ends with 1 and one line."""
    url = f"redis://127.0.0.1:{free_port()}"
    status, printed, errors = top(url)
    assert (status, printed, errors.count("\n")) == (1, "", 1)
    assert f"cannot reach {url}" in errors


@pytest.mark.parametrize("arguments", [["--sort", "age"], ["--channels", "21"], ["--interval", "1"]])
def test_wrong_options(ipc_url: str, arguments: list[str]) -> None:
    """They end it with 2."""
    assert top(ipc_url, *arguments)[:2] == (2, "")


def test_broker_of_this_process_alone() -> None:
    """It states where to look instead."""
    status, printed, errors = top("memory://")
    assert (status, printed) == (2, "")
    assert "look at the workers from inside, with backplane.overviews() or the live page" in errors


# --- on a terminal ---


class Terminal:
    """A terminal of 120 columns with the command in it.

    Attributes:
        process: The command.
        shown: All that it has written so far.
    """

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self.shown = ""
        self._descriptor = descriptor

    def until(self, words: str) -> None:
        """Wait until it has shown some words."""
        deadline = time.monotonic() + 30
        while words not in self.shown:
            ready, _, _ = select.select([self._descriptor], [], [], deadline - time.monotonic())
            assert ready, self.shown
            self.shown += re.sub(r"\x1b\[[0-9;]*m", "", os.read(self._descriptor, 65_536).decode())

    def press(self, key: str) -> None:
        """Press a key."""
        os.write(self._descriptor, key.encode())


@contextmanager
def terminal(url: str) -> Generator[Terminal]:
    """Run the command in a terminal, which is as it was before once it has ended."""
    # A shell starts what it puts into the background with SIGINT ignored, and the command would inherit that.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    before = termios.tcgetattr(its)
    environment = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen(
        [*COMMAND, url, *WAIT], stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True
    ) as process:
        try:
            yield Terminal(process, ours)
            assert termios.tcgetattr(its) == before
        finally:
            signal.signal(signal.SIGINT, inherited)
            process.kill()
            os.close(its)
            os.close(ours)


@pytest.mark.parametrize("key", ["q", "Q", "xq"])
def test_q_ends_it(ipc_url: str, key: str) -> None:
    """The screen is shown again and again; a key ends it with 0, and the screen before it is back."""
    with serving_in_thread(ipc_url), terminal(ipc_url) as shown:
        shown.until("The worker is live.")
        shown.until("q ends")
        shown.shown = ""
        shown.until("The worker is live.")
        shown.press(key)
        shown.until("\x1b[?1049l")
        assert shown.process.wait(30) == 0
        assert "Traceback" not in shown.shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it(ipc_url: str, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end it with 0."""
    with serving_in_thread(ipc_url), terminal(ipc_url) as shown:
        shown.until("q ends")
        shown.process.send_signal(number)
        shown.until("\x1b[?1049l")
        assert shown.process.wait(30) == 0
        assert "Traceback" not in shown.shown


def test_a_reader_that_goes_away(ipc_url: str) -> None:
    """`backplane top --json | head -1` ends without a trace."""
    with (
        serving_in_thread(ipc_url),
        subprocess.Popen(
            [*COMMAND, ipc_url, "--json", *WAIT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["answered"] == 1
        process.stdout.close()
        assert (process.wait(30), process.stderr.read()) == (0, "")
