"""Codec: data to payload and back, beside encoding the same text."""

from __future__ import annotations

import json

from backplane.fanout.codec import decode, encode
from benchmarks.micro.figure import Figure, interleaved

__all__ = ["run"]

_TEXT = "x" * 128
_VALUE = {"id": 42, "text": "x" * 90, "sent": True}
_ORIGIN = b"12345678"


def run(rounds: int) -> list[Figure]:
    """Return the figures; the floor is `str.encode` and back."""
    text = encode(_TEXT, origin=_ORIGIN, published_at=1.0)
    binary = encode(_TEXT.encode(), origin=_ORIGIN, published_at=1.0)
    return interleaved(
        {
            "floor: str.encode and bytes.decode": lambda: _TEXT.encode().decode(),
            "encode text": lambda: encode(_TEXT, origin=_ORIGIN, published_at=1.0),
            "encode bytes": lambda: encode(b"x" * 128, origin=_ORIGIN, published_at=1.0),
            "encode JSON": lambda: encode(_VALUE, origin=_ORIGIN, published_at=1.0),
            "json.dumps of the same": lambda: json.dumps(_VALUE),
            "decode text": lambda: decode("room", text),
            "decode bytes": lambda: decode("room", binary),
            "decode a foreign text": lambda: decode("room", b"x" * 128),
        },
        rounds,
        2_000,
    )
