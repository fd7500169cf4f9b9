"""`backplane.centrifugal.expiry`: what SDKs are sent of a permission that runs out."""

from __future__ import annotations

import time

import pytest

from backplane.centrifugal.expiry import expiry_fields, seconds_left


@pytest.mark.parametrize(("seconds", "ttl"), [(-60, 1), (0.5, 1), (90.5, 90), (1e10, 2**31 - 1)])
def test_ttl(seconds: float, ttl: int) -> None:
    """It is in whole seconds, at least 1, and fits into 32 bits with a sign, of which some SDKs fail to read more."""
    assert expiry_fields(time.time() + seconds) == {"expires": True, "ttl": ttl}


def test_never() -> None:
    """Where nothing runs out there is no field."""
    assert expiry_fields(None) == {}


def test_seconds_left() -> None:
    """What has run out has none left."""
    assert seconds_left(time.time() - 1) == 0.0
    assert seconds_left(time.time() + 60) == pytest.approx(60, abs=5)
