"""How much may pass in how much time."""

from __future__ import annotations

from backplane.errors import ConfigurationError

__all__ = ["TokenBucket"]


class TokenBucket:
    """Lets `burst` pass at once, and `rate_per_second` in the long run; full at first.

    Over any window of time no more than `burst + rate_per_second * window` passes. Has no timer and no clock of its
    own: one per client costs nothing while the client is silent.

    Args:
        rate_per_second: How fast it fills.
        burst: How much it holds.

    Raises:
        ConfigurationError: One of them is not more than 0, or not finite.
    """

    __slots__ = ("_burst", "_filled_at", "_level", "_rate_per_second")

    def __init__(self, rate_per_second: float, burst: float) -> None:
        if not (0 < rate_per_second < float("inf") and 0 < burst < float("inf")):
            raise ConfigurationError(
                f"a rate and its burst must be more than 0 and finite, not {rate_per_second!r} and {burst!r}"
            )
        self._rate_per_second = rate_per_second
        self._burst = burst
        self._level = float(burst)
        self._filled_at: float | None = None

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Take `amount` (not negative) and return `True`, or take nothing where not as much is there.

        Args:
            now: Seconds on a monotonic clock. One that steps back fills nothing until it is past where it was.
            amount: How much; more than `burst` never passes.
        """
        if self._filled_at is None:
            self._filled_at = now
        elif now > self._filled_at:
            self._level = min(self._burst, self._level + (now - self._filled_at) * self._rate_per_second)
            self._filled_at = now
        if amount > self._level:
            return False
        self._level -= amount
        return True
