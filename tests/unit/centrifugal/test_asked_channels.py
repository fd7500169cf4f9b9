"""`backplane.centrifugal.asked_channels`: how many channels a client lets its worker watch."""

from __future__ import annotations

import pytest

from backplane.centrifugal.asked_channels import AskedChannels
from backplane.centrifugal.codes import ProtocolError


def test_one_too_many() -> None:
    """Another channel is refused until the first one is watched no more; one that was asked for already is not."""
    asked = AskedChannels(2)
    asked.note("a", 0.0)
    asked.note("b", 10.0)
    asked.note("a", 20.0)
    with pytest.raises(ProtocolError, match="limit exceeded"):
        asked.note("c", 39.9)
    asked.note("c", 40.0)  # b was asked for 30 s ago
    with pytest.raises(ProtocolError):
        asked.note("b", 40.0)


def test_without_a_limit() -> None:
    """Any number may be asked for, and only those of the last 30 s are remembered."""
    asked = AskedChannels(None)
    for number in range(5_000):
        asked.note(str(number), float(number))
    assert len(asked._asked_at) == 30  # pyright: ignore[reportPrivateUsage]
