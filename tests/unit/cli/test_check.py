"""`backplane check`: what it prints, and with which status it ends."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import NoReturn

import pytest
from typer.testing import CliRunner

from backplane import BrokerUnavailableError
from backplane.adapters.memory import MemoryBroadcaster
from backplane.cli import app
from tests.cluster_app import WAIT, serving_in_thread


def check(*arguments: str) -> tuple[int, str, str]:
    """Run the command; return status, standard output and standard error."""
    result = CliRunner().invoke(app, ["check", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def absent_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker is there, and the error holds an escape sequence."""

    async def start(*_: object) -> NoReturn:
        raise BrokerUnavailableError("no broker\x1b[31m there")

    monkeypatch.setattr(MemoryBroadcaster, "start", start)


def test_a_broker_that_works() -> None:
    """A broker that works is described in a table, with status 0."""
    status, printed, errors = check("memory://here", "--messages", "3")

    rows = [line.strip().split("  ", 1) for line in printed.splitlines()]
    report = {row[0]: row[1].strip() for row in rows if len(row) == 2}
    assert (status, errors) == (0, "")
    assert report["url"] == "memory://here"
    assert report["broker"] == "the memory of this process"
    assert report["round trip"].endswith(" ms, 3 messages")
    assert report["reaches"] == "this process"
    assert report["publish"] == "when it returns: handed to every subscriber"
    assert report["limits"] == "16 MiB a message, header included"
    assert "255 bytes a channel name" in printed


def test_url_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a URL that of BACKPLANE_URL is used."""
    monkeypatch.setenv("BACKPLANE_URL", "memory://from-the-environment")
    status, printed, _ = check("--messages", "1")
    assert status == 0
    assert "memory://from-the-environment" in printed


def test_json() -> None:
    """With --json the output is one object."""
    status, printed, errors = check("memory://", "--json", "--messages", "2")

    report = json.loads(printed)
    assert (status, errors) == (0, "")
    assert report["ok"] is True
    assert report["problem"] is None
    assert report["broker"] == "the memory of this process"
    assert report["connect_seconds"] > 0
    assert report["round_trip"]["messages"] == 2
    assert 0 < report["round_trip"]["p50_seconds"] <= report["round_trip"]["p99_seconds"]
    assert report["capabilities"]["publish_returns"] == "delivered"
    assert report["max_channel_bytes"] == 255


def test_number_of_workers(ipc_url: str) -> None:
    """With --workers it counts them, in a line and in the object; another number is a problem."""
    arguments = (ipc_url, "--messages", "1", *WAIT)
    with serving_in_thread(ipc_url):
        status, printed, errors = check(*arguments, "--workers", "1")
        assert (status, errors) == (0, "")
        assert [line.split() for line in printed.splitlines() if "workers" in line] == [["workers", "1", "seen"]]
        status, printed, errors = check(*arguments, "--workers", "3", "--json")
        report = json.loads(printed)
        assert (status, report["ok"], report["workers"]) == (1, False, 1)
        assert report["problem"].startswith("1 of 3 workers are seen: is this the broker, the database and the prefix")
    assert "0 of 1 workers are seen: no worker was seen at" in check(*arguments, "--workers", "1")[2]
    assert check(*arguments, "--workers", "0")[0] == 0
    assert json.loads(check(*arguments, "--json")[1])["workers"] is None


def test_workers_without_the_secret(ipc_url: str) -> None:
    """Without the secret of the workers their number is a problem that names the variable."""
    with serving_in_thread(ipc_url, "0123456789abcdef"):
        status, _, errors = check(ipc_url, "--messages", "1", "--workers", "1", *WAIT)
    assert status == 1
    assert "set BACKPLANE_CONTROL_SECRET" in errors


def test_progress() -> None:
    """On a terminal the progress is shown on standard error, and not in the output."""
    terminal, end_of_process = pty.openpty()
    command = [sys.executable, "-m", "backplane", "check", "memory://", "--messages", "3", "--json"]
    with os.fdopen(terminal, "rb", buffering=0) as shown:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=end_of_process, env=os.environ | {"TERM": "xterm"}, check=True
        )
        assert b"message 3 of 3" in shown.read(100_000)
        os.close(end_of_process)
    assert json.loads(done.stdout)["ok"] is True


@pytest.mark.usefixtures("absent_broker")
def test_absent_broker() -> None:
    """An absent broker ends it with 1, a partial table, and one line that states the problem."""
    status, printed, errors = check("memory://here")

    assert status == 1
    assert "round trip" not in printed
    assert (
        errors
        == r"backplane: no broker\x1b[31m there; is the broker running, does this host reach it, and is this its port?"
        + "\n"
    )


@pytest.mark.usefixtures("absent_broker")
def test_absent_broker_in_json() -> None:
    """With --json the object holds the problem, and the status is 1."""
    status, printed, _ = check("memory://", "--json")

    report = json.loads(printed)
    assert status == 1
    assert report["ok"] is False
    assert report["problem"].startswith("no broker\x1b[31m there")
    assert report["round_trip"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["reddis://localhost"], "did you mean 'redis'?", id="scheme"),
        pytest.param(["memory://?max_payload=1"], "did you mean 'max_payload_bytes'?", id="option"),
        pytest.param(["memory://", "--channel", "$backplane/x"], "are reserved", id="channel"),
        pytest.param([], "BACKPLANE_URL is not set", id="no URL"),
        pytest.param([""], "BACKPLANE_URL", id="empty URL"),
        pytest.param(["localhost:6379"], "BACKPLANE_URL", id="no scheme"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str) -> None:
    """Wrong usage ends it with 2 and one line; with --json also in the object."""
    status, printed, errors = check(*arguments)
    assert (status, printed) == (2, "")
    assert words in errors
    assert errors.count("\n") == 1

    status, printed, errors = check(*arguments, "--json")
    assert status == 2
    assert words in json.loads(printed)["problem"]
