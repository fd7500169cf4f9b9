"""`backplane publish`: what is published, what is printed, and the exit status."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from backplane import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError
from backplane.adapters.memory import MemoryBroadcaster
from backplane.cli import app
from backplane.fanout.codec import decode
from backplane.history_rules import History, HistoryRules
from tests.unit.controlled_adapter import ControlledHistoryAdapter

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | bytes]]:
    """Every channel and data that reached the adapter."""
    received: list[tuple[str, str | bytes]] = []

    async def publish(_: MemoryBroadcaster, channel: str, payload: bytes) -> None:
        message = decode(channel, payload)
        assert message is not None
        received.append((message.channel, message.data))

    monkeypatch.setattr(MemoryBroadcaster, "publish", publish)
    return received


def publish(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Run the command on `memory://`; return status, standard output and standard error."""
    result = CliRunner().invoke(app, ["publish", "memory://", *arguments], input=stdin)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "expected"),
    [
        pytest.param(["hello"], b"", "hello", id="text"),
        pytest.param([""], b"", "", id="empty"),
        pytest.param(["-"], b"a line\n", "a line\n", id="standard input, as it is"),
        pytest.param(["--json", '{"id": 42}'], b"", '{"id": 42}', id="JSON, as it is"),
        pytest.param(["--binary", "hello"], b"", b"hello", id="binary"),
        pytest.param(["--binary", "-"], b"\xff\0", b"\xff\0", id="binary from standard input"),
        pytest.param(["--hex", "00 ff10"], b"", b"\x00\xff\x10", id="hexadecimal"),
        pytest.param(["--", "-1"], b"", "-1", id="data that looks like an option"),
    ],
)
def test_data(
    published: list[tuple[str, str | bytes]], arguments: list[str], stdin: bytes, expected: str | bytes
) -> None:
    """The data is published unchanged: as text, or as binary with an option."""
    status, _, errors = publish("room", *arguments, stdin=stdin)
    assert status == 0, errors
    assert published == [("room", expected)]


def test_file(published: list[tuple[str, str | bytes]], tmp_path: Path) -> None:
    """The data can be a file."""
    file = tmp_path / "data"
    file.write_bytes(b"from a file")
    assert publish("room", "--file", str(file))[0] == 0
    assert published == [("room", "from a file")]


def test_outcome_is_printed() -> None:
    """It prints what the publish guarantees, and that on `memory://` there is no subscriber."""
    status, printed, errors = publish("the\nroom", "grüße")

    assert status == 0
    assert printed == "published 7 bytes to 'the\\nroom': handed to every subscriber\n"
    assert errors == "backplane: memory:// reaches this process only, which has no subscriber\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        pytest.param(["room"], b"", "give the data", id="no data"),
        pytest.param(["room", "data", "--file", __file__], b"", "give the data", id="two sources"),
        pytest.param(["room", "--file", "/does/not/exist"], b"", "does not exist", id="no such file"),
        pytest.param(["room", "-"], b"\xff", "not text in UTF-8 (byte 0): give --binary", id="not UTF-8"),
        pytest.param(["room", "--hex", "0g"], b"", "the data is not hexadecimal", id="not hexadecimal"),
        pytest.param(["room", "--json", "{'a': 1}"], b"", "the data is not JSON", id="not JSON"),
        pytest.param(["room", "--json", "NaN"], b"", "the data is not JSON", id="not a number"),
        pytest.param(["room", "--json", "--binary", "1"], b"", "JSON is text", id="JSON as binary"),
        pytest.param(["", "data"], b"", "cannot be empty", id="illegal channel"),
    ],
)
def test_wrong_usage(published: list[tuple[str, str | bytes]], arguments: list[str], stdin: bytes, words: str) -> None:
    """Wrong usage ends it with 2 and an error; nothing is published."""
    status, printed, errors = publish(*arguments, stdin=stdin)
    assert (status, printed, published) == (2, "", [])
    assert words in errors


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> ControlledHistoryAdapter:
    """The adapter of every URL, which keeps messages."""
    adapter = ControlledHistoryAdapter()
    monkeypatch.setattr("backplane.broker.adapter_source.broadcaster_from_url", Mock(return_value=adapter))
    return adapter


@pytest.mark.parametrize(
    ("options", "pattern", "rule"),
    [
        (["--keep-messages", "5"], "orders:1", History(max_messages=5)),
        (["--keep-seconds", "2.5"], "orders:1", History(max_age_seconds=2.5)),
        (["--keep-pattern", "orders:*"], "orders:*", History()),
        (
            ["--keep-messages", "5", "--keep-seconds", "60", "--keep-pattern", "orders:*"],
            "orders:*",
            History(max_messages=5, max_age_seconds=60),
        ),
    ],
)
def test_into_a_history(
    keeping: ControlledHistoryAdapter,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    pattern: str,
    rule: History,
) -> None:
    """With an option it publishes by that rule, and prints the position; without one, or on another channel, not."""
    rules: list[tuple[str, History]] = []

    class Recording(HistoryRules):
        def __init__(self, given: dict[str, History]) -> None:
            super().__init__(given)
            rules.extend(given.items())

    monkeypatch.setattr("backplane.core.HistoryRules", Recording)
    status, printed, errors = publish("orders:1", "hello", *options)
    assert status == 0, errors
    assert rules == [(pattern, rule)]
    assert printed.endswith(f", at {keeping.log('orders:1').top} in the history\n")
    rules.clear()
    status, printed, _ = publish("orders:1", "hello")
    assert (status, rules, "in the history" in printed, len(keeping.kept)) == (0, [], False, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--keep-messages", "0"], "Invalid value for '--keep-messages'"),
        (["--keep-seconds", "-1"], "max_age_seconds"),
        (["--keep-pattern", ""], "pattern"),
        (["--keep-pattern", "users:*"], "--keep-pattern 'users:*' does not match the channel 'orders:1'"),
    ],
)
def test_wrong_history(keeping: ControlledHistoryAdapter, options: list[str], words: str) -> None:
    """A rule that cannot be used, or that is not the channel's, ends it with 2; nothing is published."""
    status, printed, errors = publish("orders:1", "hello", *options)
    assert (status, printed, keeping.kept, keeping.published) == (2, "", [], [])
    assert words in errors


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (BrokerUnavailableError("no broker there"), 1, "not published: no broker there"),
        (PublishError("no permission"), 1, "not published: no permission"),
        (PublishOutcomeUnknownError("no answer"), 3, "the outcome is unknown"),
    ],
)
def test_failure(monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, words: str) -> None:
    """Certainly not published ends it with 1, perhaps published with 3, and nothing is printed to standard output."""

    async def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(MemoryBroadcaster, "publish", fail)
    ended, printed, errors = publish("room", "data")
    assert (ended, printed) == (status, "")
    assert words in errors


def test_too_large(published: list[tuple[str, str | bytes]]) -> None:
    """Data over the broker's limit is not published."""
    result = CliRunner().invoke(app, ["publish", "memory://?max_payload_bytes=30", "room", "0123456789"])
    assert (result.exit_code, published) == (1, [])
    assert "not published: the message takes 31 bytes on the broker and the limit is 30" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["", "room", "data"], [" ", "room", "data"], ["room", "data"], ["env", "room", "data"]]
)
def test_no_url(published: list[tuple[str, str | bytes]], arguments: list[str]) -> None:
    """Without a broker's URL nothing is published, not into its own memory either: the error names BACKPLANE_URL."""
    result = CliRunner().invoke(app, ["publish", *arguments])
    assert (result.exit_code, result.stdout, published) == (2, "", [])
    assert "BACKPLANE_URL" in result.stderr
    assert result.stderr.count("\n") == 1
