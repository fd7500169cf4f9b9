"""`backplane.centrifugal.expiry`: when a permission runs out, as the protocol states it (section 7)."""

from __future__ import annotations

import time

import pytest

from backplane.centrifugal.expiry import expiry_fields, seconds_left


@pytest.mark.parametrize(
    ("seconds", "fields"),
    [
        pytest.param(90.9, {"expires": True, "ttl": 90}, id="whole seconds"),
        pytest.param(0.5, {"expires": True, "ttl": 1}, id="at least one"),
        pytest.param(-100.0, {"expires": True, "ttl": 1}, id="past"),
    ],
)
def test_expiry(monkeypatch: pytest.MonkeyPatch, seconds: float, fields: dict[str, object]) -> None:
    """`ttl` is in whole seconds, at least 1, since SDKs take 0 for none."""
    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    assert expiry_fields(1_000.0 + seconds) == fields
    assert seconds_left(1_000.0 + seconds) == pytest.approx(max(0.0, seconds))


def test_no_expiry() -> None:
    """What does not run out has no such fields."""
    assert expiry_fields(None) == {}
