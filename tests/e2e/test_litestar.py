"""`backplane.integrations.litestar`: clients of two real servers, with each broker between them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from websockets.asyncio.client import connect

from tests.e2e.brokers import by_default_on
from tests.e2e.two_servers import received, two_servers

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested runs in other processes."""
    return "asyncio", {"use_uvloop": True}


@by_default_on("redis")
async def test_two_servers(broker_url: str, tmp_path: Path) -> None:
    """What a client sends to its room, the clients of that room receive on both servers, and no other client."""
    with two_servers("litestar_app", broker_url, tmp_path) as (one, two):
        async with AsyncExitStack() as stack:
            ada, bob, eve = [
                await stack.enter_async_context(connect(f"ws://127.0.0.1:{port}/{room}"))
                for port, room in ((one, "room"), (two, "room"), (two, "another"))
            ]
            assert [await received(client) for client in (ada, bob, eve)] == ["subscribed"] * 3
            for sender, text in ((ada, "from ada"), (bob, "from bob"), (ada, "ä" * 2000)):
                await sender.send(text)
                assert [await received(client) for client in (ada, bob)] == [text] * 2
            await ada.close()
            await bob.send("without ada")
            assert await received(bob) == "without ada"
            await eve.send("from eve")
            assert await received(eve) == "from eve"
