"""`backplane.lag`: how long ago a message was published, where that is known."""

from __future__ import annotations

import pytest

from backplane.lag import lag_of

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("published_at", "lag"),
    [
        (NOW, 0.0),
        (NOW - 1.5, 1.5),
        (NOW + 2.0, -2.0),
        (NOW - 86_400, 86_400.0),
        (NOW + 86_400, -86_400.0),
        (NOW - 86_401, None),
        (NOW + 86_401, None),
        (0.0, None),
        (None, None),
    ],
)
def test_lag(published_at: float | None, lag: float | None) -> None:
    """A day is possible; more than that, or no time, is not known."""
    assert lag_of(published_at, NOW) == lag
