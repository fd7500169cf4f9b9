"""`backplane.worker.configuration`: what a worker is configured with, without a secret."""

from __future__ import annotations

import json

import pytest

from backplane import Backplane, History, Presence, Settings
from backplane.adapters.memory import MemoryBroadcaster, MemoryOptions
from backplane.broadcaster import BrokerUrl
from backplane.worker.configuration import configuration_of

pytestmark = pytest.mark.anyio


class SecretOptions(MemoryOptions):
    """Options of an adapter that others have written."""

    prefix: str = "shop:"
    api_key: str = "s3cret"
    sasl_password: str = "s3cret"
    token: str | None = None
    proxy: str = "socks5://ada:s3cret@proxy:1080"


async def test_parts() -> None:
    """Each part has its values as JSON; what differs from its default is named, and secrets are masked."""
    url = BrokerUrl(scheme="memory", username="ada", password="s3cret", netloc="one:1")
    adapter = MemoryBroadcaster(url, SecretOptions())
    settings = Settings(drain_seconds=7, max_connections=9)
    history, presence = {"orders:*": History(max_messages=5)}, {"room:*": Presence()}
    async with Backplane(adapter, settings=settings, history=history, presence=presence) as backplane:
        runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert runtime is not None
        found = json.loads(json.dumps(configuration_of(runtime)))
    assert found["changed"] == {"drain_seconds": 7, "max_connections": 9}
    assert (found["settings"]["start"], found["limits"]["heartbeat_seconds"]) == ("strict", 30.0)
    assert found["limits"]["heartbeat_message"] is None
    broker = found["broker"]
    assert (broker["url"], broker["prefix"], broker["reach"]) == ("memory://ada:***@one:1", "shop:", "process")
    assert (broker["api_key"], broker["sasl_password"], broker["token"]) == ("***", "***", None)
    assert broker["proxy"] == "socks5://ada:***@proxy:1080"
    assert found["rules"] == {"history": "orders:*", "presence": "room:*"}
    assert "s3cret" not in str(found)


async def test_without_rules() -> None:
    """A backplane without rules and without a cluster has none."""
    async with Backplane("memory://") as backplane:
        runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert runtime is not None
        assert configuration_of(runtime)["rules"] == {"history": "", "presence": ""}
