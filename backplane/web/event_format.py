"""The format of an event stream (HTML Standard, section 9.2): what goes over the wire for messages and gaps.

A text is `data:` lines (`EventSource` makes one line feed of every line end), binary is base64 with `event: binary`, a
gap is `event: gap` with `{"channel": ...}`, after which the page loads again what it shows, as it does after every
`open`. A stream whose permission has run out ends with `event: expired`; its client reconnects with a new request,
which the application's own dependencies check. Where channels have a history each event has an `id`, the positions of
all of them after it, and the stream begins with `event: position`: an `EventSource` shows its last `id` when it comes
back, and gets what it missed. These four names are reserved: no published message can have one, because a text is
always a `message`. Comments are the heartbeat.
"""

from __future__ import annotations

import json
import random
from base64 import b64encode
from typing import Final

from backplane.message import Gap, Message

__all__ = [
    "HEADERS",
    "HEARTBEAT",
    "MEDIA_TYPE",
    "encode_event",
    "encode_expired",
    "encode_position",
    "encode_retry",
]

MEDIA_TYPE: Final = "text/event-stream"

# A middleware or proxy that compresses holds small events until it has a block of them, and the headers too if it waits
# for a size. `no-transform` (RFC 9111, section 5.2.2.6) stops those that respect it, such as Express' compression.
# Starlette's GZipMiddleware (for all types before 0.46) and others for ASGI check whether an encoding is set already:
# `identity` is the registered name for none. X-Accel-Buffering is nginx's: it would wait for 4 KiB.
HEADERS: Final = {
    "Cache-Control": "no-store, no-transform",
    "Content-Encoding": "identity",
    "X-Accel-Buffering": "no",
}

HEARTBEAT: Final = b":\n\n"
"""A comment, which an `EventSource` ignores."""


def encode_event(item: Message | Gap, event_id: str = "") -> bytes:
    """Return the event of a message or of a gap.

    Args:
        item: What it is for.
        event_id: Its id, of ASCII letters, digits and `_-.`. Defaults to none.
    """
    head = _head(event_id)
    if isinstance(item, Gap):
        # Without the reason, which may hold the broker's own text.
        return b"%bevent: gap\ndata: %b\n\n" % (head, json.dumps({"channel": item.channel}).encode())
    if isinstance(item.data, bytes):
        return b"%bevent: binary\ndata: %b\n\n" % (head, b64encode(item.data))
    lines = item.data.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\ndata: ")
    return b"%bdata: %b\n\n" % (head, lines.encode())


def encode_position(event_id: str) -> bytes:
    """Return the event that gives a client its first `id`; nothing where that is empty.

    An `id` alone would do for a browser. Many other clients take one only from an event with a `data` line, and one
    that is cut before its first message would come back as at a first visit. It has a type, so that it is no `message`,
    and its data is empty: clients that pass on every block have an empty one for each `retry` already.
    """
    return b"%bevent: position\ndata:\n\n" % _head(event_id) if event_id else b""


def encode_expired(event_id: str) -> bytes:
    """Return the last event of a stream whose permission has run out."""
    # Not named `error` or `open`: an `EventSource` dispatches these itself. Without data it would dispatch no event.
    return b"%bevent: expired\ndata: {}\n\n" % _head(event_id)


def encode_retry(seconds: float) -> bytes:
    """Return when to reconnect: a random time around `seconds` for each client, so that not all do at once."""
    milliseconds = 1000 * seconds * random.uniform(0.5, 1.5)  # noqa: S311
    return b"retry: %d\n\n" % max(1, round(milliseconds))


def _head(event_id: str) -> bytes:
    return f"id: {event_id}\n".encode() if event_id else b""
