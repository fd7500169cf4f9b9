"""`backplane publish`: one message, from a shell."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path  # noqa: TC003  # typer reads the annotation at runtime
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic_core import from_json

from backplane.broker.registry import broadcaster_from_url
from backplane.channels import validate_channel
from backplane.cli.diagnosis import describe_return, format_size
from backplane.cli.terminal import (
    UrlArgument,
    discard_output,
    exiting_on_errors,
    fail,
    note,
    out,
    resolve_url,
    showing_warnings,
    standard_input,
    visible,
)
from backplane.cli.traceparent import CarriedTrace
from backplane.core import Backplane
from backplane.errors import ConfigurationError, PublishOutcomeUnknownError
from backplane.history_rules import History, HistoryRules

if TYPE_CHECKING:
    from backplane.message import Receipt

__all__ = ["publish"]


def publish(
    url: UrlArgument,
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="Channel to publish to.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="The message. `-` reads standard input to its end.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Read the message from a file.", exists=True, dir_okay=False, show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Refuse data that is not JSON.")] = False,
    as_binary: Annotated[bool, typer.Option("--binary", help="Send the bytes as binary, not as text.")] = False,
    as_hex: Annotated[bool, typer.Option("--hex", help="DATA is hexadecimal, such as 00ff10; sent as binary.")] = False,
    keep_messages: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Publish into the channel's history, of N messages.", show_default=False),
    ] = None,
    keep_seconds: Annotated[
        float | None,
        typer.Option(metavar="S", help="Publish into the channel's history, of S seconds.", show_default=False),
    ] = None,
    keep_pattern: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Publish into the channel's history, by the rule of this pattern; the channel itself by default. "
            "Pattern, N and S must be those of the application's History rule: else its clients may miss the message.",
            show_default=False,
        ),
    ] = None,
    traceparent: Annotated[
        str | None,
        typer.Option(
            metavar="HEADER",
            help="The span that publishes, as in the header of W3C Trace Context: workers with tracing continue its "
            "trace. Workers of a release before 0.1.0 drop a sampled message.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Publish one message, unchanged, and print what is certain after it.

    Exit status: 0 published, 1 certainly not published,
    2 the URL, the channel or the data is wrong, 3 the outcome is unknown.
    """
    if as_json and (as_binary or as_hex):
        fail("JSON is text: give --json, or --binary or --hex", status=2)
    with exiting_on_errors():
        url = resolve_url(url)
        raw = _read(data, file)
    body = _body(raw, as_json=as_json, as_binary=as_binary, as_hex=as_hex)
    with showing_warnings(), exiting_on_errors("not published: "):
        history = _history(channel, keep_pattern, keep_messages, keep_seconds)
        trace = None if traceparent is None else CarriedTrace(traceparent)
        try:
            receipt = asyncio.run(_publish(url, channel, body, history, trace))
        except PublishOutcomeUnknownError as error:
            fail(f"the outcome is unknown, publishing again could send it twice: {error}", status=3)
    try:
        _print_result(url, channel, body, receipt)
    except OSError as error:  # status 1 would invite a second publish
        discard_output()
        note(f"backplane: published, but this could not be printed: {error}")


def _history(channel: str, pattern: str | None, messages: int | None, seconds: float | None) -> dict[str, History]:
    """Return the rule that the options make; none without them."""
    if pattern is None and messages is None and seconds is None:
        return {}
    given = {"max_messages": messages, "max_age_seconds": seconds}
    rule = History(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    history = {validate_channel(channel) if pattern is None else pattern: rule}
    if HistoryRules(history).rule_of(channel) is None:
        raise ConfigurationError(f"--keep-pattern {pattern!r} does not match the channel {channel!r}")
    return history


async def _publish(
    url: str, channel: str, body: str | bytes, history: dict[str, History], trace: CarriedTrace | None
) -> Receipt:
    async with Backplane(url, history=history, tracing=trace) as backplane:
        return await backplane.publish(channel, body)


def _print_result(url: str, channel: str, body: str | bytes, receipt: Receipt) -> None:
    broadcaster = broadcaster_from_url(url)
    size = format_size(len(body.encode() if isinstance(body, str) else body))
    text = f"published {size} to {channel!r}: {describe_return(broadcaster.capabilities)}"
    if receipt.position is not None:
        text += f", at {receipt.position} in the history"
    out.print(visible(text), soft_wrap=True)
    if broadcaster.capabilities.reach == "process":
        note(f"backplane: {broadcaster.url} reaches this process only, which has no subscriber")


def _read(data: str | None, file: Path | None) -> bytes:
    if (data is None) == (file is None):
        fail("give the data, or - for standard input, or --file PATH", status=2)
    if file is not None:
        return file.read_bytes()
    return standard_input().read() if data == "-" else os.fsencode(data or "")


def _body(raw: bytes, *, as_json: bool, as_binary: bool, as_hex: bool) -> str | bytes:
    if as_binary and not as_hex:
        return raw
    try:
        text = raw.decode()
        if as_hex:
            return bytes.fromhex(text)
        if as_json:
            from_json(raw, allow_inf_nan=False)
    except UnicodeDecodeError as error:
        fail(f"the data is not text in UTF-8 (byte {error.start}): give --binary to send it as it is", status=2)
    except ValueError as error:
        fail(f"the data is not {'hexadecimal' if as_hex else 'JSON'}: {error}", status=2)
    return text
