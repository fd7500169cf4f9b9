"""`backplane.worker.published_channels`: the last channels that were published to."""

from __future__ import annotations

import pytest

from backplane.worker.published_channels import PublishedChannels

pytestmark = pytest.mark.anyio


async def test_last_channels() -> None:
    """The oldest one is forgotten; one that is published to again is not the oldest."""
    channels = PublishedChannels()
    for number in range(1_000):
        channels.note(f"{number}")
    channels.note("0")
    channels.note("1000")
    assert (len(channels), channels.seconds_ago("1"), channels.seconds_ago("0")) == (1_000, None, 0.0)
    assert list(channels)[-2:] == ["0", "1000"]
