"""`backplane.integrations.django_channels`: consumers on two real servers, with each broker between them."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect

from backplane.integrations.django_channels import BackplaneChannelLayer
from tests.brokers.process import free_port
from tests.e2e.brokers import by_default_on
from tests.server_process import server_process

if TYPE_CHECKING:
    from collections.abc import Generator

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

_SECONDS = 60
_APP_FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested runs in other processes."""
    return "asyncio", {"use_uvloop": True}


@contextmanager
def two_servers(url: str, folder: Path) -> Generator[list[int]]:
    """Run two servers, and return their ports."""
    with ExitStack() as stack:
        ports = [free_port(), free_port()]
        processes = [
            stack.enter_context(
                server_process(
                    [sys.executable, "-m", "uvicorn", "channels_app:app", "--port", str(port), "--lifespan", "off"],
                    folder,
                    cwd=_APP_FOLDER,
                    name=f"server-{port}",
                    environment={"BACKPLANE_URL": url},
                )
            )
            for port in ports
        ]
        for process in processes:
            process.wait_until(partial(_listens, process.log), "it listens", seconds=60)
        yield ports


def _listens(log: Path) -> bool:
    return "running on" in log.read_text()


async def received(client: ClientConnection) -> str:
    """Return the next message."""
    async with asyncio.timeout(_SECONDS):
        return str(await client.recv())


@by_default_on("ipc", "redis")
async def test_two_servers(broker_url: str, tmp_path: Path) -> None:
    """Consumers of both kinds receive what consumers, a synchronous view and another process send to their group."""
    with two_servers(broker_url, tmp_path) as (one, two):
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
