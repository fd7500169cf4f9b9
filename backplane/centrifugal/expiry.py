"""What the protocol states of a permission that runs out: `expires`, and how many whole seconds are left."""

from __future__ import annotations

import time
from typing import Any, Final

__all__ = ["expiry_fields", "latest_end", "seconds_left"]

# An SDK refreshes its token after `ttl`, and needs a moment for it.
_REFRESH_SECONDS: Final = 25.0

# The field has 32 bits, of which some SDKs have one for the sign.
_MOST_TTL: Final = (1 << 31) - 1


def seconds_left(expires_at: float) -> float:
    """Return how many seconds a permission still lasts."""
    return max(0.0, expires_at - time.time())


def latest_end(expires_at: float | None) -> float | None:
    """Return until when the client may take to renew a permission, in seconds since the epoch; `None`: for ever."""
    return None if expires_at is None else expires_at + _REFRESH_SECONDS


def expiry_fields(expires_at: float | None) -> dict[str, Any]:
    """Return the fields of a result; none where nothing runs out. A `ttl` is 1 at least, and less than 2^31."""
    return {} if expires_at is None else {"expires": True, "ttl": min(max(1, int(seconds_left(expires_at))), _MOST_TTL)}
