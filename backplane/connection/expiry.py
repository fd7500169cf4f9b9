"""When the permission of a client runs out, as applications write it down."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Final

from backplane.errors import ConfigurationError

__all__ = ["moment_of"]

# 2001-09-09 and 5138-11-16: a number outside is no moment in seconds, but a duration, or milliseconds.
_EARLIEST: Final = 1e9
_LATEST: Final = 1e11


def moment_of(expires_at: object) -> float | None:
    """Return `expires_at` in seconds since the epoch; `None` stays what it is: never.

    Args:
        expires_at: A number of seconds since the epoch, as a token's `exp`, or a `datetime` with a time zone.

    Raises:
        ConfigurationError: It is neither, or no moment that is meant: a duration such as 900, milliseconds, a
            `datetime` without a time zone. The message holds the cure.
    """
    match expires_at:
        case None:
            return None
        case datetime():
            if expires_at.utcoffset() is None:
                raise ConfigurationError(
                    f"expires_at={expires_at!r} has no time zone: datetime.now(UTC) + timedelta(...), not utcnow()"
                )
            return expires_at.timestamp()
        case bool():
            pass
        case int() | float() if not math.isnan(expires_at):
            if expires_at < _EARLIEST:
                raise ConfigurationError(
                    f"expires_at={expires_at!r} is a moment in seconds since the epoch, not a duration: "
                    f"time.time() + {expires_at!r}"
                )
            if expires_at > _LATEST:
                raise ConfigurationError(
                    f"expires_at={expires_at!r} is in seconds since the epoch: / 1000 where it is in milliseconds, "
                    "None for never"
                )
            return float(expires_at)
        case _:
            pass
    raise ConfigurationError(
        f"expires_at is a number of seconds since the epoch, a datetime with a time zone or None, not {expires_at!r}"
    )
