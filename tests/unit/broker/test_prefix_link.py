"""`backplane.broker.prefix_link`: prefixes in the place of channels."""

from __future__ import annotations

import pytest

from backplane.broker.prefix_link import PrefixLink
from backplane.errors import ConfigurationError

pytestmark = pytest.mark.anyio


async def test_an_adapter_without_prefixes() -> None:
    """It has none to subscribe to."""
    link = PrefixLink(None)
    with pytest.raises(ConfigurationError, match="no patterns"):
        await link.subscribe(["a"])
    with pytest.raises(ConfigurationError, match="no patterns"):
        await link.unsubscribe(["a"])
