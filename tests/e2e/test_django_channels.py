"""`backplane.integrations.django_channels`: consumers on two real servers, with each broker between them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import httpx2
import pytest
from websockets.asyncio.client import connect

from backplane.integrations.django_channels import BackplaneChannelLayer
from tests.e2e.brokers import by_default_on
from tests.e2e.two_servers import received, two_servers

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested runs in other processes."""
    return "asyncio", {"use_uvloop": True}


@by_default_on("ipc", "redis")
async def test_two_servers(broker_url: str, tmp_path: Path) -> None:
    """Consumers of both kinds receive what consumers, a synchronous view and another process send to their group."""
    with two_servers("channels_app", broker_url, tmp_path, "--lifespan", "off") as (one, two):
        async with AsyncExitStack() as stack:
            ada, bob, eve = [
                await stack.enter_async_context(connect(f"ws://127.0.0.1:{port}/{path}"))
                for port, path in ((one, "chat"), (two, "chat"), (two, "sync"))
            ]
            await ada.send("from ada")
            assert [await received(client) for client in (ada, bob, eve)] == ["from ada"] * 3
            await eve.send("from eve")
            assert [await received(client) for client in (ada, bob, eve)] == ["from eve"] * 3
            async with httpx2.AsyncClient() as http:
                answer = await http.get(f"http://127.0.0.1:{one}/announce", params={"text": "from a view"})
            assert answer.status_code == 202
            assert [await received(client) for client in (ada, bob, eve)] == ["from a view"] * 3
            layer = BackplaneChannelLayer(broker_url)
            await bob.send("name")
            await layer.send(await received(bob), {"type": "chat.message", "text": "for bob"})
            assert await received(bob) == "for bob"
            await ada.close()
            await layer.group_send("room", {"type": "chat.message", "text": "without ada"})
            assert [await received(client) for client in (bob, eve)] == ["without ada"] * 2
            await layer.close()
