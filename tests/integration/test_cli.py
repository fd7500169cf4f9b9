"""The command line on a real Redis: its output for a broker that works, refuses, or is lost."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from backplane.cli import app
from tests.brokers.process import free_port
from tests.brokers.redis import RedisConfig
from tests.tail_process import tailing

if TYPE_CHECKING:
    from tests.brokers.broker import Broker
    from tests.conftest import StartRedis


def run(*arguments: str) -> tuple[int, str, str]:
    """Run a command; return status, standard output and standard error."""
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


async def publish_foreign(url: str, channel: str, data: bytes) -> None:
    """Publish as another program does, without a header."""
    client: Any = Redis
    async with client.from_url(url) as foreign:
        await foreign.publish(channel, data)


def test_check_names_the_version(redis_broker: Broker) -> None:
    """A check of a Redis that works ends with 0, its version and a hundred round trips."""
    status, printed, _ = run("check", redis_broker.url, "--json")

    report = json.loads(printed)
    assert status == 0
    assert report["broker"].split()[0] in {"Redis", "Valkey"}
    assert report["broker"].split()[1][0].isdecimal()
    assert report["round_trip"]["messages"] == 100


def test_check_without_the_permission_for_info(private_redis: StartRedis) -> None:
    """Where an ACL denies INFO only the version is missing."""
    broker = private_redis(RedisConfig(users=("alice on >secret +@all -info ~* &*",), login="alice:secret"))
    status, printed, _ = run("check", broker.url, "--json")
    assert status == 0
    assert json.loads(printed)["broker"] == "Redis (version not granted)"


def test_check_on_a_granted_channel(private_redis: StartRedis) -> None:
    """Where an ACL grants some channels only, the check names the option to choose one, and passes with it."""
    broker = private_redis(
        RedisConfig(users=("alice on >secret +@all ~* resetchannels &shop:*",), login="alice:secret")
    )
    status, _, errors = run("check", broker.url)
    assert status == 1
    assert "or name one that is granted: --channel" in errors

    assert run("check", broker.url, "--channel", "shop:check")[0] == 0


def test_check_with_a_wrong_password(private_redis: StartRedis) -> None:
    """Wrong credentials end a check with 1 and an error that does not contain them."""
    broker = private_redis(RedisConfig(password="right"))
    status, printed, errors = run("check", broker.url.replace("right", "hunter2"))
    assert status == 1
    assert "refused the credentials" in errors
    assert "check the user and the password" in errors
    assert "hunter2" not in printed + errors


@pytest.mark.parametrize("command", [["check"], ["publish", "room", "data"], ["tail", "room"]])
def test_absent_broker(command: list[str]) -> None:
    """Without a broker each command ends with 1 and one line that names the URL."""
    port = free_port()
    status, _, errors = run(command[0], f"redis://:hunter2@127.0.0.1:{port}", *command[1:])
    assert status == 1
    assert f"cannot reach redis://:***@127.0.0.1:{port}" in errors
    assert "hunter2" not in errors
    assert errors.count("\n") == 2  # one warns of the password among the arguments


def test_tail_prints_what_is_published(redis_broker: Broker) -> None:
    """What `publish` and another program publish, `tail` prints."""
    with tailing(redis_broker.url, "lobby", "--count", "2") as process:
        status, printed, _ = run("publish", redis_broker.url, "lobby", "Dinner is ready")
        assert (status, printed) == (0, "published 15 bytes to 'lobby': the server has answered\n")
        asyncio.run(publish_foreign(redis_broker.url, "lobby", b"\xff\x00"))
        printed, errors = process.communicate(timeout=60)

    first, second = printed.splitlines()
    assert first.endswith("lobby          15 B  Dinner is ready")
    assert second.endswith("lobby           2 B  hex ff 00")
    assert process.returncode == 0
    assert "2 of 2 messages, 0 gaps, 17 bytes" in errors


def test_tail_survives_an_outage(private_redis: StartRedis) -> None:
    """An outage of the broker is a line in the output, and what is published after it is printed."""
    broker = private_redis()
    with tailing(broker.url, "lobby", "--json", "--count", "1") as process:
        broker.stop()
        broker.start()
        assert process.stdout is not None
        gap = json.loads(process.stdout.readline())  # printed when every channel is joined again
        assert run("publish", broker.url, "lobby", "after")[0] == 0
        printed, errors = process.communicate(timeout=60)

    assert gap["type"] == "gap"
    assert "the link to the broker was lost" in gap["reason"]
    assert json.loads(printed)["text"] == "after"
    assert "backplane: live -> degraded" in errors
    assert "1 of 1 messages, 1 gap" in errors


def test_tail_of_a_refused_channel(private_redis: StartRedis) -> None:
    """A channel that the broker refuses ends it with 1 and the broker's reason."""
    broker = private_redis(
        RedisConfig(users=("alice on >secret +@all ~* resetchannels &shop:*",), login="alice:secret")
    )
    status, printed, errors = run("tail", broker.url, "lobby")
    assert (status, printed) == (1, "")
    assert "subscription refused: 'lobby'" in errors


@pytest.mark.parametrize(
    "command",
    [["workers"], ["survey", "load", "--url"], ["disconnect", "--user", "ada", "--confirm", "1"]],
    ids=lambda command: command[0],
)
def test_link_lost_while_workers_are_awaited(private_redis: StartRedis, command: list[str]) -> None:
    """A broker that ends while a command waits for heartbeats ends it with 1 and one reason, without a traceback."""
    broker = private_redis()
    terminal, end_of_process = pty.openpty()
    line = [sys.executable, "-m", "backplane", *command, broker.url, "--seconds", "2"]
    with (
        os.fdopen(terminal, "rb", buffering=0) as shown,
        os.fdopen(end_of_process, "wb", buffering=0) as other_end,
        subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=other_end, env=os.environ | {"TERM": "xterm", "COLUMNS": "500"}
        ) as process,
    ):
        read = b""
        while b"waiting for heartbeats: 0 workers" not in read:
            read += shown.read(100_000)
        broker.stop()
        printed, _ = process.communicate(timeout=60)
        read += shown.read(100_000)
    assert (process.returncode, printed) == (1, b"")
    assert b"was lost meanwhile: workers may be missing here" in read.rpartition(b"backplane: ")[2]
    assert b"Traceback" not in read
