"""`backplane.connection.expiry`: how an application writes down when a permission runs out."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest

from backplane.connection.expiry import moment_of
from backplane.errors import ConfigurationError

NOON = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        (None, None),
        (1_795_780_800, 1_795_780_800.0),
        (1_795_780_800.5, 1_795_780_800.5),
        (NOON, 1_795_780_800.0),
        (NOON.astimezone(timezone(timedelta(hours=-5))), 1_795_780_800.0),
    ],
    ids=repr,
)
def test_moment(written: object, moment: float | None) -> None:
    """A token's `exp` and a `datetime` with a time zone are moments, and `None` is never."""
    assert moment_of(written) == moment


@pytest.mark.parametrize(
    ("written", "cure"),
    [
        (900, r"not a duration: time\.time\(\) \+ 900$"),
        (0.5, r"not a duration: time\.time\(\) \+ 0\.5$"),
        (-1, "not a duration"),
        (1_795_780_800_000, "/ 1000 where it is in milliseconds"),
        (math.inf, "None for never"),
        (NOON.replace(tzinfo=None), r"has no time zone: datetime\.now\(UTC\) \+ timedelta"),
        (math.nan, "is a number of seconds"),
        (True, "is a number of seconds"),
        ("1795780800", "is a number of seconds"),
        (timedelta(minutes=15), "is a number of seconds"),
    ],
    ids=repr,
)
def test_what_is_no_moment(written: object, cure: str) -> None:
    """A duration, milliseconds, a `datetime` without a time zone and any other value are refused, with the cure."""
    with pytest.raises(ConfigurationError, match=cure):
        moment_of(written)
