"""`backplane tail`: what it prints of what it receives, and how it ends."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import signal
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

import pytest
from typer.testing import CliRunner

from backplane import Backplane
from backplane.adapters.memory import MemoryBroadcaster
from backplane.cli import app
from backplane.fanout.backlog import Backlog
from backplane.fanout.codec import encode
from tests.tail_process import tailing
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.broadcaster import Sink

GAP = object()
ORIGIN = b"origin.."


class PublishOnJoin(Protocol):
    """Sets what is published on the channel `room` as soon as it is joined: text, bytes, or `GAP`."""

    def __call__(self, *items: object) -> None:
        """Set the items."""
        ...


@pytest.fixture
def publish_on_join(monkeypatch: pytest.MonkeyPatch) -> PublishOnJoin:
    """A room on which messages are published to each subscriber that joins."""
    sinks: list[Sink] = []
    start, subscribe = MemoryBroadcaster.start, MemoryBroadcaster.subscribe
    published: list[object] = []
    reporting: list[asyncio.Task[None]] = []

    async def recorded_start(self: MemoryBroadcaster, sink: Sink) -> None:
        sinks.append(sink)
        await start(self, sink)

    async def subscribe_and_publish(self: MemoryBroadcaster, channels: Collection[str]) -> None:
        await subscribe(self, channels)
        if "room" in channels:
            reporting.append(asyncio.create_task(report_all()))

    async def report_all() -> None:
        await until_idle()  # until the join has returned
        for item in published:
            if item is GAP:
                sinks[-1].gap(["room"], "over\x1brun")
            else:
                sinks[-1].deliver("room", encode(item, origin=ORIGIN, published_at=1.5))

    monkeypatch.setattr(MemoryBroadcaster, "start", recorded_start)
    monkeypatch.setattr(MemoryBroadcaster, "subscribe", subscribe_and_publish)
    return lambda *items: published.extend(items)


def tail(*arguments: str, count: int) -> tuple[int, list[str], list[str]]:
    """Run the command until it has received `count` messages; return status, and the lines of both outputs."""
    result = CliRunner().invoke(app, ["tail", "memory://", *arguments, "--count", str(count)])
    return result.exit_code, result.stdout.splitlines(), result.stderr.splitlines()


async def publish(url: str, channel: str, *data: object) -> None:
    """Publish by a link of its own."""
    async with Backplane(url) as backplane:
        for item in data:
            await backplane.publish(channel, item)


# --- what it prints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        pytest.param("grüße 🎉", r"     12 B  grüße 🎉", id="text"),
        pytest.param("", "      0 B  ", id="empty"),
        pytest.param("\x1b[31mred\r\n\x07", r"     11 B  \x1b[31mred\r\n\x07", id="control characters"),
        pytest.param("a\u202eb\u2028c", r"      9 B  a\u202eb\u2028c", id="direction and line marks"),
        pytest.param(b"\x00\xff", "      2 B  hex 00 ff", id="binary"),
        pytest.param("x" * 500, f"    500 B  {'x' * 400} … 100 more characters", id="long text"),
        pytest.param(bytes(100), f"    100 B  hex {' '.join(['00'] * 64)} … 36 more bytes", id="long binary"),
    ],
)
def test_message(publish_on_join: PublishOnJoin, data: str | bytes, shown: str) -> None:
    """A message is one line: time, channel, size in bytes, and its printable data."""
    publish_on_join(data)
    status, lines, _ = tail("room", count=1)

    assert status == 0
    assert len(lines) == 1
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3}  room  ", lines[0])
    assert lines[0].endswith(shown)


def test_full(publish_on_join: PublishOnJoin) -> None:
    """With `--full` nothing is shortened."""
    publish_on_join("x" * 500, bytes(100))
    _, lines, _ = tail("room", "--full", count=2)
    assert lines[0].endswith(f"  {'x' * 500}")
    assert lines[1].endswith(f"  hex {' '.join(['00'] * 100)}")


def test_gap_and_counts(publish_on_join: PublishOnJoin) -> None:
    """A gap is a line in its place and is counted at the end; the counts are not part of the output."""
    publish_on_join("before", GAP, "after")
    status, lines, errors = tail("other-room", "room", count=2)

    assert status == 0
    assert [line[14:] for line in lines] == [
        "room                 6 B  before",
        r"room                 GAP  messages may be missing: over\x1brun",
        "room                 5 B  after",
    ]
    assert errors[:2] == [
        "backplane: memory:// reaches this process only: nothing will arrive",
        "joined 2 channels at memory://, Ctrl-C ends",
    ]
    assert re.fullmatch(r"2 of 2 messages, 1 gap, 11 bytes in \d+\.\d s", errors[2])


def test_json(publish_on_join: PublishOnJoin) -> None:
    """With --json each line is an object with the whole message."""
    publish_on_join("\x1b" * 500, GAP, b"\xff" * 100)
    _, lines, _ = tail("room", "--json", count=2)
    text, gap, binary = map(json.loads, lines)

    assert datetime.fromisoformat(text.pop("received_at")).tzinfo is not None
    assert text == {
        "type": "message",
        "channel": "room",
        "published_at": "1970-01-01T00:00:01.500000+00:00",
        "origin": ORIGIN.hex(),
        "size_bytes": 500,
        "text": "\x1b" * 500,
    }
    assert (gap["type"], gap["channel"], gap["reason"]) == ("gap", "room", "over\x1brun")
    assert (binary["size_bytes"], binary["hex"]) == (100, "ff" * 100)


def test_too_slow(publish_on_join: PublishOnJoin, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its backlog overflows it prints what it has, reports it, and ends with 1."""
    monkeypatch.setattr(importlib.import_module("backplane.cli.tail"), "_BACKLOG", Backlog(max_messages=2))
    publish_on_join("one", "two", "three")
    status, lines, errors = tail("room", count=3)

    assert status == 1
    assert [line.rpartition(" ")[2] for line in lines] == ["one", "two"]
    assert "than its backlog allows" in errors[-2]
    assert errors[-1].startswith("2 of 3 messages, ")


@pytest.mark.parametrize(
    ("url", "channel", "words"),
    [
        pytest.param("reddis://localhost", "room", "did you mean 'redis'?", id="scheme"),
        pytest.param("memory://", "$backplane/x", "are reserved", id="channel"),
        pytest.param("env", "room", "BACKPLANE_URL is not set", id="no variable"),
        pytest.param("", "room", "BACKPLANE_URL", id="empty variable of the shell"),
        pytest.param("room", "other", "BACKPLANE_URL", id="no URL"),
    ],
)
def test_wrong_usage(url: str, channel: str, words: str) -> None:
    """Wrong usage ends it with 2 and one line."""
    result = CliRunner().invoke(app, ["tail", url, channel])
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("arguments", "words"), [(["room"], "BACKPLANE_URL"), (["memory://"], "at least one channel")])
def test_one_argument(arguments: list[str], words: str) -> None:
    """The missing one of URL and channel is named."""
    result = CliRunner().invoke(app, ["tail", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


def test_pattern(publish_on_join: PublishOnJoin) -> None:
    """A channel with a `*` is a pattern; each message is shown with its own channel."""
    publish_on_join("one")
    status, lines, _ = tail("ro*", "room", count=1)
    assert status == 0
    assert [line for line in lines if "room" in line and "one" in line] != []


# --- how it ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_signal(ipc_url: str, ending: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end it with status 0 and the counts."""
    with tailing(ipc_url, "room") as process:
        asyncio.run(publish(ipc_url, "room", "hello"))
        assert process.stdout is not None
        assert process.stdout.readline().endswith("hello\n")
        process.send_signal(ending)
        printed, errors = process.communicate(timeout=120)

    assert (process.returncode, printed) == (0, "")
    assert re.fullmatch(r"1 message, 0 gaps, 5 bytes in \d+\.\d s\n", errors)


def test_reader_that_closes_the_pipe(ipc_url: str) -> None:
    """When the reader closes the pipe, as `| head` does, it ends with status 0 and without an error."""
    with tailing(ipc_url, "room") as process:
        assert process.stdout is not None
        process.stdout.close()
        asyncio.run(publish(ipc_url, "room", "hello"))
        assert process.stderr is not None
        errors = process.stderr.read()
        process.wait(timeout=120)

    assert process.returncode == 0
    assert re.fullmatch(r"1 message, 0 gaps, 5 bytes in \d+\.\d s\n", errors)
