"""Values of the application as fields of the protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backplane.fanout.codec import to_client_data

if TYPE_CHECKING:
    from backplane.centrifugal.encoding import Encoding

__all__ = ["as_json"]


def as_json(encoding: Encoding, value: Any) -> bytes:
    """Return a value as JSON, a text too.

    Raises:
        InvalidDataError: It is not JSON.
    """
    # A list of one: a text alone would be taken for what is JSON already.
    text = to_client_data([value])
    return encoding.embed(text[1:-1], is_json=True)
