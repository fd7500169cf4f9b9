"""examples/sdk: its clients follow a room, and get what they missed when the workers are killed."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from backplane import History
from backplane.sync import SyncBackplane
from tests.brokers.process import wait_until
from tests.examples.example_server import EXAMPLES, SECONDS, documented_command, running

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from playwright.sync_api import Browser

    from tests.examples.example_server import ExampleServer

SDK = EXAMPLES / "sdk"
PYTHON = [sys.executable, str(SDK / "client.py")]


@pytest.fixture
def server(tmp_path: Path, ipc_url: str) -> Iterator[ExampleServer]:
    """The application, run as its first lines document it."""
    command = [*documented_command("sdk/rooms"), "--port", "{port}"]
    environment = {"TOKEN_SECRET": "0123456789abcdef" * 4}
    with running(command, tmp_path, broker_url=ipc_url, environment=environment, cwd=SDK) as started:
        yield started


class Follower:
    """A client program.

    Args:
        process: The program.
        log: What it prints.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def post(self, text: str) -> None:
        """Type a line into it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()

    @contextmanager
    def suspended(self) -> Generator[None]:
        """Stop it during the block, so that it cannot connect."""
        self._process.send_signal(signal.SIGSTOP)
        yield
        self._process.send_signal(signal.SIGCONT)

    def lines(self) -> list[str]:
        """Return what it has printed."""
        return self._log.read_text(encoding="utf-8").splitlines()

    def wait_for(self, line: str) -> None:
        """Wait until it has printed a line."""
        wait_until(lambda: line in self.lines(), f"{line!r}: {self.lines()}", seconds=SECONDS)


@contextmanager
def following(command: Sequence[str], server: ExampleServer, user: str, log: Path) -> Generator[Follower]:
    """Run a client of the kitchen during the block; then it must end with its stdin, without an error."""
    arguments = [*command, server.http_url, user, "kitchen"]
    with log.open("w") as output:
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=output, stderr=output, text=True)
    try:
        follower = Follower(process, log)
        follower.wait_for("subscribed")
        yield follower
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(SECONDS) == 0, follower.lines()
    finally:
        process.kill()
        process.communicate()


def check_program(command: Sequence[str], server: ExampleServer, folder: Path) -> None:
    """Check that a program shows every message once and in order, its own too, over the end of all workers."""
    with (
        following(PYTHON, server, "grace", folder / "grace.log") as grace,
        following(command, server, "ada", folder / "ada.log") as ada,
    ):
        grace.post("before")
        ada.wait_for("grace: before")
        ada.post("own")
        ada.wait_for("ada: own")
        with ada.suspended():
            server.kill_workers()
            missed = publish_missed(server)
        ada.wait_for(missed[-1])
        # Between the ends of two workers a program may have been restored twice.
        lines = [line for line in ada.lines() if line != "restored"]
        assert lines == ["subscribed", "grace: before", "ada: own", *missed]
        assert "restored" in ada.lines()


def publish_missed(server: ExampleServer) -> list[str]:
    """Publish three messages from another process than the workers; return them as clients show them."""
    rules = {"room:*": History(max_messages=200, max_age_seconds=3600)}
    with SyncBackplane(server.broker_url, history=rules) as outside:
        for number in range(3):
            outside.publish("room:kitchen", {"id": f"outside-{number}", "author": "eve", "text": f"missed {number}"})
    return [f"eve: missed {number}" for number in range(3)]


@pytest.mark.full
def test_python_client(server: ExampleServer, tmp_path: Path) -> None:
    """The client in Python."""
    check_program(PYTHON, server, tmp_path)


@pytest.mark.full
def test_go_client(server: ExampleServer, tmp_path: Path) -> None:
    """The client in Go."""
    program = tmp_path / "room"
    subprocess.run(["go", "build", "-mod=readonly", "-o", program, "."], cwd=SDK / "go", check=True)
    check_program([str(program)], server, tmp_path)


@pytest.mark.full
@pytest.mark.timeout(300)
def test_react_page(tmp_path: Path, ipc_url: str, browser: Browser) -> None:
    """The page in React, built as documented, shows each message once over the end of all workers."""
    example = tmp_path / "sdk"
    shutil.copytree(SDK, example, ignore=shutil.ignore_patterns("node_modules", "dist"))
    for command in (["npm", "ci", "--no-audit", "--no-fund"], ["npm", "run", "build"]):
        subprocess.run(command, cwd=example / "react", check=True, capture_output=True)
    command = [*documented_command("sdk/rooms"), "--port", "{port}"]
    environment = {"TOKEN_SECRET": "0123456789abcdef" * 4}
    with running(command, tmp_path, broker_url=ipc_url, environment=environment, cwd=example) as server:
        page = browser.new_context().new_page()
        page.goto(f"{server.http_url}/?user=ada")
        lines = page.get_by_role("listitem")
        expect(page.get_by_role("status")).to_have_text("live")
        with following(PYTHON, server, "grace", tmp_path / "grace.log") as grace:
            grace.post("before")
            expect(lines).to_have_text(["grace: before"])
            page.context.set_offline(True)
            expect(page.get_by_role("status")).to_have_text("reconnecting")
            with ThreadPoolExecutor(1) as away_from_the_browser:  # whose event loop runs in this thread
                missed = away_from_the_browser.submit(publish_missed, server).result()
            shown = ["grace: before", *missed, "restored 3 messages"]
            server.kill_workers()
            page.context.set_offline(False)
            expect(lines).to_have_text(shown)
            page.get_by_label("Message").fill("<b>after</b>")
            page.get_by_role("button", name="Send").click()
            expect(lines).to_have_text([*shown, "ada: <b>after</b>"])
