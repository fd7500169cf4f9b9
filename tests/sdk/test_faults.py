"""Official SDKs on two workers whose links are cut and of which one is killed: nothing is lost unseen.

What a client received equals what was published, or `recovered` was false where something is missing.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from backplane.testing import FaultProxy
from tests.sdk.counting import check
from tests.sdk.servers import SdkServer, command_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.sdk.sdk import SdkClient

pytestmark = pytest.mark.anyio

MESSAGES = 120
ADAPTERS = [
    "ipc",
    pytest.param("memory", marks=pytest.mark.full),
    pytest.param("redis", marks=pytest.mark.full),
    pytest.param("nats", marks=pytest.mark.full),
    pytest.param("kafka", marks=pytest.mark.full),
]
"""By default the one without a broker; test_broker_faults.py has Redis."""


@pytest.fixture(params=ADAPTERS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of each adapter's broker."""
    adapter: str = request.param
    if adapter == "memory":
        return "memory://"
    if adapter == "ipc":
        return f"ipc://{tmp_path}/workers?peer_timeout_seconds=5"
    return str(request.getfixturevalue(f"{adapter}_broker").own_url)


@pytest.mark.parametrize("channel", ["kept", "plain"])
async def test_cuts_and_kills(client: SdkClient, url: str, channel: str, own: str, tmp_path: Path) -> None:
    """A client moves between two workers, whose links are cut, and of which one is killed, while another publishes."""
    draw = random.Random(18)
    environment = {"BACKPLANE_URL": url, "HISTORY_MESSAGES": "1000"}
    if channel == "plain":
        environment["HISTORY_CHANNELS"] = "kept*"
    with ExitStack() as stack:
        count = 1 if url == "memory://" else 2
        servers = [stack.enter_context(SdkServer(command_of("ours"), tmp_path, environment)) for _ in range(count)]
        async with FaultProxy(servers[0].url) as proxy:
            client.send("connect", url=proxy.url, token=f"ann{own}")
            client.send("subscribe", channel=f"{channel}{own}", recoverable=True)
            await client.wait_for("subscribed")
            for number in range(1, MESSAGES + 1):
                await asyncio.to_thread(servers[-1].publish, f"{channel}{own}", {"n": number})
                if number % 20 == 0:
                    proxy.lead_to(draw.choice(servers).url)
                    proxy.cut()
                if number == MESSAGES // 2 and count > 1:
                    servers[0].restart()  # programs are started by the main thread
            published = await _until_caught_up(client, servers[-1], f"{channel}{own}")
    missing = check(client.events, range(1, published + 1))
    assert any(event.get("data") == {"n": 1} for event in client.events)
    assert channel == "plain" or not missing


async def _until_caught_up(client: SdkClient, server: SdkServer, channel: str) -> int:
    """Publish on until the client has the newest number; return it. Without a history what came meanwhile is lost.

    Each number is waited for longer than the one before, as on a loaded machine one takes its time.
    """
    for tries in range(10):
        number = MESSAGES + 1 + tries
        await asyncio.to_thread(server.publish, channel, {"n": number})
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2 * 1.6**tries):
                await client.wait_for("publication", data={"n": number})
                return number
    raise TimeoutError(f"nothing of what was published came: {client.events}")
