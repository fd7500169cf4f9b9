"""The envelope of a message that is kept, as it is published: docs/adapters/wire-format.md.

It has the magic of the codec's header and a version of its own. So a worker of a release that does not know it drops
the message as malformed; every other worker removes it, also one without a rule for the channel.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from backplane.message import Place

__all__ = ["ENVELOPE", "ENVELOPE_BYTES", "place_in"]

ENVELOPE: Final = b"\xbfBP\x03"
"""The first bytes of an envelope: magic and version."""

_FIELDS: Final = Struct(">4s8sQLL")
_unpack: Final = _FIELDS.unpack_from

ENVELOPE_BYTES: Final = _FIELDS.size
"""Size of an envelope: what it contains follows."""


def place_in(payload: bytes) -> Place | None:
    """Return the place in the envelope at the beginning of `payload`; `None` without one, and for a malformed one."""
    if len(payload) < ENVELOPE_BYTES:
        return None
    magic, epoch, offset, before_check, check = _unpack(payload)
    return Place(epoch, offset, check, offset - 1, before_check) if offset and magic == ENVELOPE else None
