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


def check(*arguments: str) -> tuple[int, str, str]:
    """Run the command; return status, standard output and standard error."""
    result = CliRunner().invoke(app, ["check", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def absent_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is there, with words that would colour the terminal."""

    async def start(*_: object) -> NoReturn:
        raise BrokerUnavailableError("nobody\x1b[31m there")

    monkeypatch.setattr(MemoryBroadcaster, "start", start)


def test_all_is_well() -> None:
    """A broker that works is described in a table, with status 0."""
    status, printed, said = check("memory://here", "--messages", "3")

    rows = [line.strip().split("  ", 1) for line in printed.splitlines()]
    told = {row[0]: row[1].strip() for row in rows if len(row) == 2}
    assert (status, said) == (0, "")
    assert told["url"] == "memory://here"
    assert told["broker"] == "the memory of this process"
    assert told["round trip"].endswith(" ms, 3 messages")
    assert told["reaches"] == "this process"
    assert told["publish"] == "when it returns: handed to every subscriber"
    assert told["limits"] == "16 MiB a message, header included"
    assert "255 bytes a channel name" in printed


def test_url_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without URL it is that of BACKPLANE_URL."""
    monkeypatch.setenv("BACKPLANE_URL", "memory://from-the-environment")
    status, printed, _ = check("--messages", "1")
    assert status == 0
    assert "memory://from-the-environment" in printed


def test_json() -> None:
    """For machines there is one object."""
    status, printed, said = check("memory://", "--json", "--messages", "2")

    told = json.loads(printed)
    assert (status, said) == (0, "")
    assert told["ok"] is True
    assert told["problem"] is None
    assert told["broker"] == "the memory of this process"
    assert told["connect_seconds"] > 0
    assert told["round_trip"]["messages"] == 2
    assert 0 < told["round_trip"]["p50_seconds"] <= told["round_trip"]["p99_seconds"]
    assert told["capabilities"]["publish_returns"] == "delivered"
    assert told["max_channel_bytes"] == 255


def test_progress() -> None:
    """Where a person looks at the terminal it shows what is being done, and nothing of it in the output."""
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
    """A broker that is not there ends it with 1, what is known, and one line that says what is wrong."""
    status, printed, said = check("memory://here")

    assert status == 1
    assert "round trip" not in printed
    assert said == r"backplane: nobody\x1b[31m there; is the broker running, and does this host reach it?" + "\n"


@pytest.mark.usefixtures("absent_broker")
def test_absent_broker_in_json() -> None:
    """For machines, too, the problem stands in the object, and the status is 1."""
    status, printed, _ = check("memory://", "--json")

    told = json.loads(printed)
    assert status == 1
    assert told["ok"] is False
    assert told["problem"].startswith("nobody\x1b[31m there")
    assert told["round_trip"] is None


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
    """What the user wrote wrong ends it with 2 and one line; for machines in an object as well."""
    status, printed, said = check(*arguments)
    assert (status, printed) == (2, "")
    assert words in said
    assert said.count("\n") == 1

    status, printed, said = check(*arguments, "--json")
    assert status == 2
    assert words in json.loads(printed)["problem"]
