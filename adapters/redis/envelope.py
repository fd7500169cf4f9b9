"""The envelope of a message that is kept, as it is published: docs/adapters/wire-format.md.

It has the magic of the codec's header and a version of its own. So a worker of a release that does not know it drops
the message as malformed; every other worker removes it, also one without a rule for the channel.
"""

from __future__ import annotations

from struct import Struct
from typing import Final
from zlib import crc32

from backplane.message import Place

__all__ = ["ENVELOPE", "opened"]

ENVELOPE: Final = b"\xbfBP\x03"
"""The first bytes of an envelope: magic and version."""

_FIELDS: Final = Struct(">4x8sQL")
_BYTES: Final = _FIELDS.size
_unpack: Final = _FIELDS.unpack_from


def opened(payload: bytes) -> tuple[bytes, Place | None]:
    """Return what an envelope contains, and its place; one that is malformed is returned whole, and without a place."""
    if len(payload) >= _BYTES:
        epoch, offset, before_check = _unpack(payload)
        if offset:
            content = payload[_BYTES:]
            return content, Place(epoch, offset, crc32(content), offset - 1, before_check)
    return payload, None
