"""`backplane.centrifugal.command`: what makes a command of the fields that were sent."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.centrifugal.command import MAX_COMMAND_BYTES, MAX_COMMANDS, BadFrameError, Command, append_command


@pytest.mark.parametrize(
    ("fields", "size", "reason"),
    [
        ({"id": 1}, 2, "without a known request"),
        ({"id": 1, "rpc": {}, "send": {}}, 9, "several requests"),
        ({"subscribe": {"channel": "a"}}, 9, "without an id"),
        ({"id": 1, "publish": {"data": b"1"}}, 9, "without a channel"),
        ({"id": 1, "send": {"data": b"1"}}, MAX_COMMAND_BYTES + 1, "more than 64 KiB"),
    ],
)
def test_refused(fields: dict[str, Any], size: int, reason: str) -> None:
    """What is no command is refused, with the reason; so is a large message, which no error can answer."""
    with pytest.raises(BadFrameError, match=reason):
        append_command([], fields, size)


def test_second_pong_is_refused() -> None:
    """One pong of a frame can be asked for; a flood of them, of one byte each in Protobuf, is refused at the second."""
    commands = [Command(1, "rpc", {})]
    append_command(commands, {}, 0)
    assert commands == [Command(1, "rpc", {}), Command(0, "", {})]
    with pytest.raises(BadFrameError, match="several pongs"):
        append_command(commands, {}, 0)


def test_more_commands_than_a_client_has_channels() -> None:
    """A frame can have 10,000 commands."""
    commands = [Command(1, "rpc", {})] * (MAX_COMMANDS - 1)
    append_command(commands, {"id": 1, "rpc": {}}, 4)
    with pytest.raises(BadFrameError, match="too many"):
        append_command(commands, {"id": 1, "rpc": {}}, 4)


def test_large_command() -> None:
    """A command of more than 64 KiB is there without its body."""
    commands: list[Command] = []
    append_command(commands, {"id": 1, "rpc": {"method": "m"}}, MAX_COMMAND_BYTES)
    append_command(commands, {"id": 2, "rpc": {"method": "m"}}, MAX_COMMAND_BYTES + 1)
    assert commands == [Command(1, "rpc", {"method": "m"}), Command(2, "rpc", {}, oversized=True)]
