"""When the permission of a client runs out: what `expires_at` takes, and the error for one that has run out."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from backplane.errors import ConfigurationError, PermissionExpiredError
from backplane.option_checks import is_number

__all__ = ["check_permission", "moment_of"]

# 2001-09-09 and 5138-11-16: a number outside these is not a moment in seconds, but a duration, or milliseconds.
_EARLIEST: Final = 1e9
_LATEST: Final = 1e11


def moment_of(expires_at: object) -> float | None:
    """Return `expires_at` in seconds since the epoch; `None`, for never, stays `None`.

    Args:
        expires_at: A number of seconds since the epoch, as a token's `exp`, or a `datetime` with a time zone.

    Raises:
        ConfigurationError: It is neither, or no moment that is meant: a duration such as 900, milliseconds, a
            `datetime` without a time zone. The message names the remedy.
    """
    if expires_at is None:
        return None
    if isinstance(expires_at, datetime):
        if expires_at.utcoffset() is None:
            raise ConfigurationError(
                f"expires_at={expires_at!r} has no time zone: datetime.now(UTC) + timedelta(...), not utcnow()"
            )
        return expires_at.timestamp()
    if not is_number(expires_at):
        raise ConfigurationError(
            "expires_at is a number of seconds since the epoch, a datetime with a time zone or None, "
            f"not {expires_at!r}"
        )
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


def check_permission(*, has_expired: bool) -> None:
    """Check that the permission of a client whose handshake or request is answered has not run out.

    Raises:
        PermissionExpiredError: It has.
    """
    if has_expired:
        raise PermissionExpiredError("the permission has run out: get a new one")
