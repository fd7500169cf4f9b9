"""`backplane publish`: one message, from a shell."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path  # noqa: TC003  # typer reads the annotation at runtime
from typing import Annotated

import typer
from pydantic_core import from_json

from backplane.broker.registry import broadcaster_from_url
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
from backplane.core import Backplane
from backplane.errors import PublishOutcomeUnknownError

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
        try:
            asyncio.run(_publish(url, channel, body))
        except PublishOutcomeUnknownError as error:
            fail(f"the outcome is unknown, publishing again could send it twice: {error}", status=3)
    try:
        _print_result(url, channel, body)
    except OSError as error:  # status 1 would invite a second publish
        discard_output()
        note(f"backplane: published, but this could not be printed: {error}")


async def _publish(url: str, channel: str, body: str | bytes) -> None:
    async with Backplane(url) as backplane:
        await backplane.publish(channel, body)


def _print_result(url: str, channel: str, body: str | bytes) -> None:
    broadcaster = broadcaster_from_url(url)
    size = format_size(len(body.encode() if isinstance(body, str) else body))
    text = f"published {size} to {channel!r}: {describe_return(broadcaster.capabilities)}"
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
