"""Fan-out: whatever any process publishes reaches every socket of every worker, once and in order."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from tests.e2e.clients import open_clients, open_publisher, publish_from_outside
from tests.servers import serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.brokers.broker import Broker

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(150)]

ROOM = "lobby"

# 500 messages: 3 x 56 by HTTP, 4 x 42 through sockets, 2 x 82 from outside.
BY_HTTP = {f"http-{number}": 56 for number in range(3)}
BY_SOCKET = {f"socket-{number}": 42 for number in range(4)}
FROM_OUTSIDE = {f"outside-{number}": 82 for number in range(2)}
ALL = BY_HTTP | BY_SOCKET | FROM_OUTSIDE


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested runs in other processes."""
    return "asyncio", {"use_uvloop": True}


async def test_every_client_receives_every_message_once_and_in_order(broker_url: str, tmp_path: Path) -> None:
    """200 clients of at least 3 workers each receive 500 messages of 9 publishers, in the order of each publisher."""
    await _all_receive_all("uvicorn", broker_url, tmp_path)


async def test_clients_of_gunicorn_receive_every_message_too(redis_broker: Broker, tmp_path: Path) -> None:
    """The same under Gunicorn; test_worker_killed.py covers the other brokers under the same load."""
    await _all_receive_all("gunicorn", redis_broker.url, tmp_path)


async def _all_receive_all(server_name: str, broker_url: str, tmp_path: Path) -> None:
    assert sum(ALL.values()) == 500
    with serving(server_name, broker_url, tmp_path) as server:
        async with open_clients(f"{server.ws_url}/rooms/{ROOM}", 200) as group, AsyncExitStack() as stack:
            await group.spread(workers=3)
            by_http = [await stack.enter_async_context(open_publisher(server.port, ROOM, name)) for name in BY_HTTP]
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(group.receive(ALL))
                for publisher in by_http:
                    tasks.create_task(publisher.publish(range(BY_HTTP[publisher.name])))
                for client, (name, count) in zip(group.clients, BY_SOCKET.items(), strict=False):
                    tasks.create_task(client.publish(name, count))
                for name, count in FROM_OUTSIDE.items():
                    tasks.create_task(publish_from_outside(broker_url, ROOM, name, count))
            assert len(group.pids) >= 3
            assert group.delivery_errors(ALL)[:5] == []
