"""A command of a client, as both encodings deliver it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from backplane.centrifugal.schema import CHANNEL_COMMANDS

__all__ = ["MAX_COMMANDS", "MAX_COMMAND_BYTES", "BadFrameError", "Command", "append_command"]

MAX_COMMAND_BYTES: Final = 64 * 1024
"""Longest command that is executed, in bytes as it was sent."""

MAX_COMMANDS: Final = 10_000
"""Most commands of one frame. A client that comes back subscribes to all its channels in one frame: 1 MiB holds less
than this many subscribes with a position, but more than 100,000 of the shortest commands, which no SDK sends."""


class BadFrameError(Exception):
    """What a client sent is not of the protocol: it is closed with 3501 ("bad request"), and nothing else is affected.

    The text is the reason, for a log. It is ours, and holds nothing of what was sent.
    """


class Command(NamedTuple):
    """What a client asks for.

    Attributes:
        id: Repeated in the reply; 0 for a pong and for a `send`, which may have one but is never replied to.
        name: The request, such as `subscribe`; the empty text for a pong, an empty command.
        body: The request's fields by name, as in `schema.COMMAND`. Without those that hold 0, false or nothing, which
            mean the same as none; messages within are there, even if they are empty. `bytes` are compact JSON text in
            UTF-8 from a JSON client, and from a Protobuf client what it sent.
        oversized: The command is longer than `MAX_COMMAND_BYTES`, and its body is left out: answer error 107.
    """

    id: int
    name: str
    body: dict[str, Any]
    oversized: bool = False


def append_command(commands: list[Command], fields: dict[str, Any], size: int) -> None:
    """Append the command that has these `fields` of `schema.COMMAND`, and took `size` bytes, to those of its frame.

    Raises:
        BadFrameError: It has no known request, or more than one, no id, or no channel where it needs one; or the frame
            has too many commands, or a second pong, of which one is too many whatever was asked for.
    """
    if len(commands) >= MAX_COMMANDS:
        raise BadFrameError("too many commands in a frame")
    command_id: int = fields.pop("id", 0)
    if not fields and not command_id:
        if any(not command.name for command in commands):
            raise BadFrameError("several pongs in a frame")
        commands.append(Command(0, "", {}))
        return
    if len(fields) != 1:
        raise BadFrameError("a command without a known request" if not fields else "a command with several requests")
    ((name, body),) = fields.items()
    oversized = size > MAX_COMMAND_BYTES
    if name == "send":
        if oversized:  # it has no reply in which an error could stand
            raise BadFrameError("a message of more than 64 KiB")
    elif not command_id:
        raise BadFrameError("a command without an id")
    if name in CHANNEL_COMMANDS and "channel" not in body:
        raise BadFrameError("a command without a channel")
    commands.append(Command(command_id, name, {} if oversized else body, oversized))
