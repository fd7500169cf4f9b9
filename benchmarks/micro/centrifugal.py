"""The Centrifugal client protocol: a message, encoded once for all clients of a worker, and a command, decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.centrifugal.encoding import JSON, PROTOBUF
from backplane.connection.envelope import json_envelope
from backplane.message import Message, Position
from benchmarks.micro.figure import Figure, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.centrifugal.encoding import Encoding

__all__ = ["run"]

_JSON_TEXT = '{"id":42,"text":"' + "x" * 90 + '","sent":true}'
_TEXT = "x" * 128
_INFO = {"user": "ann", "client": "00000000-0000-4000-8000-000000000001", "conn_info": b'{"name":"ann"}'}
_SUBSCRIBES: dict[Encoding, str | bytes] = {
    JSON: '{"subscribe":{"channel":"room:1","recoverable":true,"join_leave":true,"flag":1},"id":2}',
    PROTOBUF: bytes.fromhex("1208022a0e0a06726f6f6d3a31500158017001"),
}


def run(rounds: int) -> list[Figure]:
    """Return the figures; the floor is `json_envelope`, which plain clients can have around the same message."""
    message = Message(channel="room:1", data=_JSON_TEXT, position=Position(b"an epoch", 7, 9), is_json=True)
    candidates: dict[str, Callable[[], object]] = {"floor: json_envelope of JSON": lambda: json_envelope(message)}
    for encoding in (JSON, PROTOBUF):
        candidates |= _of(encoding)
    return interleaved(candidates, rounds, 2_000)


def _of(encoding: Encoding) -> dict[str, Callable[[], object]]:
    publication, frame = encoding.publication, _SUBSCRIBES[encoding]
    return {
        f"{encoding.name}: JSON": lambda: publication("room:1", _JSON_TEXT, is_json=True, offset=7),
        f"{encoding.name}: JSON of a client": lambda: publication(
            "room:1", _JSON_TEXT, is_json=True, offset=7, info=_INFO
        ),
        f"{encoding.name}: text": lambda: publication("room:1", _TEXT, is_json=False, offset=7),
        f"{encoding.name}: bytes": lambda: publication("room:1", b"x" * 128, is_json=False, offset=7),
        f"{encoding.name}: decode a subscribe": lambda: encoding.decode(frame),
    }
