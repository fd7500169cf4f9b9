"""What is put around each published message, so that a client knows its channel and position.

`json_envelope` makes JSON texts (RFC 8259), one per message, with these members, in this order:

    {"channel": "orders:eu", "position": "AbCd...", "data": {"id": 7}}       published as anything JSON, with a history
    {"channel": "orders:eu", "position": "AbCd...", "text": "hello"}         published as `str`
    {"channel": "orders:eu", "position": "AbCd...", "base64": "AP8="}        published as `bytes`
    {"channel": "orders:eu", "event": "joined", "position": "AbCd...", "resumed": true}
    {"channel": "orders:eu", "event": "gap", "position": "AbCd..."}

On a channel without a history JSON is a `text`, as nothing states that it is more. `position` is left out where the
channel has no history, and where the position is not known. A client keeps the last one of each channel, whatever it
came with, and passes it when it comes back. `joined` precedes every message of a channel that has a history; `gap`
means that messages may be missing at this place.

What the application sends itself, by `Connection.send` or in answer to a gap, has no envelope.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from typing import Final, Literal, cast

from pydantic_core import from_json

from backplane.errors import ConfigurationError
from backplane.message import Gap, Joined, Message

__all__ = ["JSON_SUBPROTOCOL", "Envelope", "EnvelopeFunction", "envelope_function", "json_envelope"]

JSON_SUBPROTOCOL: Final = "backplane.json.1"
"""The WebSocket subprotocol of clients that understand `json_envelope`."""

EnvelopeFunction = Callable[[Message | Gap | Joined], str | bytes | None]
"""Returns what a client is sent for a message, a gap or a join; `None` sends nothing.

Called once per message and worker, for all clients that have the same function: so pass one function, not one made for
each connection. It must not block. Where it raises, that is logged and each client that needs its result is closed,
with code 1011.
"""

Envelope = Literal["json"] | EnvelopeFunction | None
"""`"json"` for `json_envelope`, a function, or `None` for messages as they were published."""


def envelope_function(envelope: object) -> EnvelopeFunction | None:
    """Return the function of an `Envelope`.

    Raises:
        ConfigurationError: It is none.
    """
    if envelope is None:
        return None
    if envelope == "json":
        return json_envelope
    if callable(envelope):
        return cast("EnvelopeFunction", envelope)
    raise ConfigurationError(f"envelope must be 'json', a function or None, not {envelope!r:.100}")


def json_envelope(item: Message | Gap | Joined) -> str:
    """Return the JSON text of a message, a gap or a join. Published JSON is embedded as it is."""
    head = f'{{"channel":{json.dumps(item.channel)}'
    position = "" if item.position is None else f',"position":"{item.position}"'
    if isinstance(item, Message):
        return f"{head}{position},{_content(item)}}}"
    if isinstance(item, Joined):
        return f'{head},"event":"joined"{position},"resumed":{"true" if item.resumed else "false"}}}'
    return f'{head},"event":"gap"{position}}}'  # without the reason, which may hold the broker's own text


def _content(message: Message) -> str:
    data = message.data
    if isinstance(data, bytes):
        return f'"base64":"{b64encode(data).decode()}"'
    if message.is_json and _is_valid(data):
        return f'"data":{data}'
    return f'"text":{json.dumps(data, ensure_ascii=False)}'


def _is_valid(text: str) -> bool:
    """Return whether a text is JSON: another program can mark any text as it, and with that write other members.

    Nested deeper than 200 levels it counts as text.
    """
    try:
        from_json(text, allow_inf_nan=False, cache_strings=False)
    except ValueError:
        return False
    return True
