"""`backplane tail`: print the messages of some channels as they arrive."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Final

import typer

from backplane.broker.registry import broadcaster_from_url
from backplane.cli.diagnosis import format_size
from backplane.cli.terminal import (
    UrlArgument,
    discard_output,
    exiting_on_errors,
    fail,
    note,
    progress,
    resolve_url,
    showing_warnings,
    visible,
)
from backplane.core import Backplane
from backplane.message import Gap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backplane.message import Message

__all__ = ["tail"]

_MAX_CHARACTERS: Final = 400
_MAX_HEX_BYTES: Final = 64
_MAX_CHANNEL_WIDTH: Final = 32
# A burst may wait while the terminal scrolls.
_MAX_OUTBOX_BYTES: Final = 64 * 1024 * 1024
_MAX_OUTBOX_MESSAGES: Final = 100_000


def tail(
    url: UrlArgument,
    channels: Annotated[
        list[str] | None,
        typer.Argument(metavar="CHANNEL", help="Whole names; patterns are not supported.", show_default=False),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="End after this many messages.", show_default="at Ctrl-C")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line, nothing shortened.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Print messages in full.")] = False,
) -> None:
    """Print the messages of some channels, and a line where some may be missing.

    Exit status: 0 at Ctrl-C, SIGTERM, or when the output is closed, 1 the broker
    refuses or is unreachable, 2 the URL or a channel is wrong.
    Only messages and gaps go to standard output.
    """
    with exiting_on_errors():
        url = resolve_url(url)
    if not channels:
        fail("name at least one channel, after the broker's URL", status=2)
    tally = _Tally(count)
    try:
        with (
            showing_warnings(),
            progress(shown=not sys.stdout.isatty()) as on_progress,
            exiting_on_errors(),
        ):
            _run(url, channels, tally, _line_maker(channels, as_json=as_json, full=full), on_progress)
    finally:
        if tally.joined_at is not None:
            note(tally.summary())


def _run(
    url: str,
    channels: Sequence[str],
    tally: _Tally,
    line: Callable[[Message | Gap], str],
    on_progress: Callable[[str], None],
) -> None:
    try:
        asyncio.run(_follow(url, channels, tally, line, on_progress))
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass
    except BrokenPipeError:
        discard_output()


async def _follow(
    url: str,
    channels: Sequence[str],
    tally: _Tally,
    line: Callable[[Message | Gap], str],
    on_progress: Callable[[str], None],
) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    on_progress("connecting")
    async with (
        Backplane(url) as backplane,
        backplane.subscribe(
            *channels, max_outbox_bytes=_MAX_OUTBOX_BYTES, max_outbox_messages=_MAX_OUTBOX_MESSAGES
        ) as messages,
    ):
        tally.joined_at = monotonic()
        _note_joined(url, channels)
        on_progress(tally.summary())
        async for item in messages:
            tally.add(item)
            typer.echo(line(item))
            on_progress(tally.summary())
            if tally.is_full:
                return


def _note_joined(url: str, channels: Sequence[str]) -> None:
    broadcaster = broadcaster_from_url(url)
    if broadcaster.capabilities.reach == "process":
        note(f"backplane: {broadcaster.url} reaches this process only: nothing will arrive")
    note(f"joined {len(channels)} channel{'s' * (len(channels) > 1)} at {broadcaster.url}, Ctrl-C ends")


class _Tally:
    """Counts what was received.

    Attributes:
        joined_at: When the broker had confirmed all channels, by the monotonic clock.
    """

    def __init__(self, limit: int | None) -> None:
        self.joined_at: float | None = None
        self._limit = limit
        self._messages = 0
        self._gaps = 0
        self._size_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether the limit of messages is reached."""
        return self._messages == self._limit

    def add(self, item: Message | Gap) -> None:
        """Count one."""
        if isinstance(item, Gap):
            self._gaps += 1
        else:
            self._messages += 1
            self._size_bytes += _size(item)

    def summary(self) -> str:
        """Return the counts: `3 of 10 messages, 1 gap, 12 bytes in 2.5 s`."""
        messages = f"{self._messages:,}" if self._limit is None else f"{self._messages:,} of {self._limit:,}"
        seconds = monotonic() - (self.joined_at or 0)
        gaps = f"{self._gaps:,} gap{'' if self._gaps == 1 else 's'}"
        plural = "" if self._messages == 1 and self._limit is None else "s"
        return f"{messages} message{plural}, {gaps}, {format_size(self._size_bytes)} in {seconds:.1f} s"


def _size(message: Message) -> int:
    return len(message.data.encode()) if isinstance(message.data, str) else len(message.data)


def _line_maker(channels: Sequence[str], *, as_json: bool, full: bool) -> Callable[[Message | Gap], str]:
    if as_json:
        return _json_line
    width = min(max(map(len, map(visible, channels))), _MAX_CHANNEL_WIDTH)
    return partial(_text_line, width=width, full=full)


def _text_line(item: Message | Gap, *, width: int, full: bool) -> str:
    start = f"{datetime.now().astimezone():%H:%M:%S.%f}"[:-3] + f"  {visible(item.channel):<{width}}"
    if isinstance(item, Gap):
        words = f"{start}  {'GAP':>12}  messages may be missing: {visible(item.reason)}"
        return typer.style(words, fg=typer.colors.YELLOW)
    return f"{start}  {f'{_size(item):,} B':>12}  {_shown(item.data, full=full)}"


def _shown(data: str | bytes, *, full: bool) -> str:
    limit, unit = (_MAX_HEX_BYTES, "bytes") if isinstance(data, bytes) else (_MAX_CHARACTERS, "characters")
    kept = data if full else data[:limit]
    shown = f"hex {kept.hex(' ')}" if isinstance(kept, bytes) else visible(kept)
    left = len(data) - len(kept)
    return f"{shown} … {left:,} more {unit}" if left else shown


def _json_line(item: Message | Gap) -> str:
    now = datetime.now(UTC).isoformat()
    if isinstance(item, Gap):
        return json.dumps({"type": "gap", "channel": item.channel, "received_at": now, "reason": item.reason})
    published_at = None if item.published_at is None else datetime.fromtimestamp(item.published_at, UTC).isoformat()
    return json.dumps(
        {
            "type": "message",
            "channel": item.channel,
            "received_at": now,
            "published_at": published_at,
            "origin": None if item.origin is None else item.origin.hex(),
            "size_bytes": _size(item),
            **({"text": item.data} if isinstance(item.data, str) else {"hex": item.data.hex()}),
        }
    )
