"""Commands and surveys across real workers: one that is stopped is named, and none is waited for longer than asked."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests import servers
from tests.e2e.brokers import by_default_on
from tests.servers import WORKERS, Server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(150)]

_SECONDS = 60
_SECRET = "s" * 32

_SCRIPT = """
import asyncio, os, sys
from backplane import Backplane

async def main(user, secret):
    async with Backplane(control_secret=secret or None) as backplane:
        await backplane.disconnect(user=user, code=4003, reason="banned")

asyncio.run(main(*sys.argv[1:]))
"""

_SYNC_SCRIPT = """
import sys
from backplane.sync import SyncBackplane

user, secret = sys.argv[1:]
with SyncBackplane(control_secret=secret or None) as backplane:
    backplane.disconnect(user=user, code=4003, reason="banned")
"""


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested runs in other processes."""
    return "asyncio", {"use_uvloop": True}


def serving(
    name: str, url: str, folder: Path, environment: Mapping[str, str] | None = None
) -> AbstractContextManager[Server]:
    """Run the application of commands on four workers."""
    return servers.serving(name, url, folder, environment=environment, app="control_app")


async def get(server: Server, path: str, **query: float) -> Any:
    """Return what a worker answers; each request has a connection of its own."""
    async with httpx2.AsyncClient(timeout=_SECONDS, trust_env=False) as client:
        response = await client.get(f"http://127.0.0.1:{server.port}{path}", params=query)
    assert response.status_code == 200, response.text
    return response.json()


async def until_known(server: Server) -> None:
    """Wait until each worker knows all: a survey then ends before its time."""
    async with asyncio.timeout(_SECONDS):
        quick = 0
        while quick < 3 * WORKERS:
            asked = await get(server, "/survey", seconds=5)
            quick = quick + 1 if len(asked["answers"]) == WORKERS and asked["seconds"] < 4 else 0


async def opened(stack: AsyncExitStack, server: Server, path: str) -> tuple[ClientConnection, int]:
    """Open a WebSocket; return it with the pid of its worker."""
    socket = await stack.enter_async_context(
        connect(f"{server.ws_url}{path}", proxy=None, open_timeout=_SECONDS, close_timeout=2)
    )
    async with asyncio.timeout(_SECONDS):
        return socket, int(await socket.recv())


async def end_of(socket: ClientConnection) -> tuple[int, str]:
    """Return the code and reason with which a WebSocket ends."""
    try:
        async with asyncio.timeout(_SECONDS):
            while True:
                await socket.recv()
    except ConnectionClosed as error:
        return (error.rcvd.code, error.rcvd.reason) if error.rcvd else (1006, "")


@asynccontextmanager
async def on_all_workers(server: Server, user: str) -> AsyncGenerator[list[tuple[ClientConnection, int]]]:
    """Open connections of a user until every worker has some; yield them with their workers' pids."""
    async with AsyncExitStack() as stack:
        sockets: list[tuple[ClientConnection, int]] = []
        async with asyncio.timeout(_SECONDS):
            while len(sockets) < 12 or {pid for _, pid in sockets} != server.pids:
                sockets += await asyncio.gather(*(opened(stack, server, f"/users/{user}") for _ in range(4)))
        yield sockets


async def stream_ends(server: Server, user: str, began: asyncio.Event) -> None:
    """Read an event stream until the server ends it."""
    async with (
        httpx2.AsyncClient(timeout=_SECONDS, trust_env=False) as client,
        client.stream("GET", f"http://127.0.0.1:{server.port}/events/{user}") as response,
    ):
        async for _ in response.aiter_bytes():
            began.set()


async def run_script(code: str, broker_url: str, *arguments: str) -> None:
    """Run a script that is no worker."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, *arguments), env={**os.environ, "BACKPLANE_URL": broker_url}
    )
    async with asyncio.timeout(_SECONDS):
        assert await process.wait() == 0


async def test_a_ban_ends_every_connection_and_names_a_stopped_worker(broker_url: str, tmp_path: Path) -> None:
    """`disconnect(confirm_seconds=4)` closes all on the workers that run, in time; the stopped one follows later."""
    server_name = "gunicorn" if broker_url.startswith(("ipc", "nats")) else "uvicorn"
    with serving(server_name, broker_url, tmp_path) as server:
        await until_known(server)
        async with on_all_workers(server, "ada") as sockets, on_all_workers(server, "bob") as others:
            began = asyncio.Event()
            stream = asyncio.create_task(stream_ends(server, "carl", began))
            await began.wait()
            stopped = sockets[0][1]
            os.kill(stopped, signal.SIGSTOP)
            try:
                asked = await get(server, "/survey", seconds=4)
                assert asked["missing"] == [stopped]
                assert {int(pid) for pid in asked["answers"]} == server.pids - {stopped}
                assert asked["seconds"] < 10  # the stopped worker counts as alive for 30 s

                banned = await get(server, "/ban/ada", seconds=4)
                assert banned["missing"] == [stopped]
                assert banned["seconds"] < 10
                running = [socket for socket, pid in sockets if pid != stopped]
                assert sum(banned["answers"].values()) == len(running)
                assert set(await asyncio.gather(*map(end_of, running))) == {(4003, "banned")}
            finally:
                os.kill(stopped, signal.SIGCONT)
            late = [socket for socket, pid in sockets if pid == stopped]
            assert set(await asyncio.gather(*map(end_of, late))) == {(4003, "banned")}

            banned = await get(server, "/ban/carl", seconds=10)
            assert (sum(banned["answers"].values()), banned["missing"]) == (1, [])
            async with asyncio.timeout(_SECONDS):
                await stream

            assert await get(server, "/ban-in-a-thread/dora") == "sent"
            for socket, _ in others:
                await (await socket.ping())
            await get(server, "/ban-in-a-thread/bob")
            assert set(await asyncio.gather(*(end_of(socket) for socket, _ in others))) == {(4003, "banned")}


@by_default_on("ipc", "nats")
async def test_scripts_that_are_no_workers(broker_url: str, tmp_path: Path) -> None:
    """A script with the secret disconnects a user; what one without it, or with another one, sends is counted."""
    with serving("gunicorn", broker_url, tmp_path, {"TEST_CONTROL_SECRET": _SECRET}) as server:
        await until_known(server)
        async with on_all_workers(server, "ada") as sockets, on_all_workers(server, "bob") as others:
            await run_script(_SCRIPT, broker_url, "ada", "")
            await run_script(_SCRIPT, broker_url, "ada", "t" * 32)
            await run_script(_SYNC_SCRIPT, broker_url, "ada", "")
            async with asyncio.timeout(_SECONDS):
                while True:
                    answers = (await get(server, "/survey", seconds=5))["answers"]
                    rejected = {answer["rejected"] for answer in answers.values()}
                    if rejected == {3}:
                        break
                    assert max(rejected) <= 3
            for socket, _ in sockets:
                await (await socket.ping())
            await run_script(_SCRIPT, broker_url, "ada", _SECRET)
            assert set(await asyncio.gather(*(end_of(socket) for socket, _ in sockets))) == {(4003, "banned")}
            await run_script(_SYNC_SCRIPT, broker_url, "bob", _SECRET)
            assert set(await asyncio.gather(*(end_of(socket) for socket, _ in others))) == {(4003, "banned")}
            logged = server.log.read_text()
            assert _SECRET not in logged
            assert logged.count("not signed with this worker's control_secret") >= WORKERS


@by_default_on("redis", "kafka")
async def test_one_session_per_user(broker_url: str, tmp_path: Path) -> None:
    """Each new session ends the one before; of many that begin at once exactly one stays."""
    with serving("gunicorn", broker_url, tmp_path) as server:
        await until_known(server)
        async with AsyncExitStack() as stack:
            first, _ = await opened(stack, server, "/single/ada")
            for _ in range(5):
                second, _ = await opened(stack, server, "/single/ada")
                assert await end_of(first) == (4503, "signed in elsewhere")
                first = second
            many = [first, *filter(None, await asyncio.gather(*sessions(stack, server, 10)))]
            ends = [asyncio.create_task(end_of(socket)) for socket in many]
            async with asyncio.timeout(_SECONDS):
                while sum(not end.done() for end in ends) > 1:
                    await asyncio.wait([end for end in ends if not end.done()], return_when=asyncio.FIRST_COMPLETED)
            await until_known(server)  # all commands have been applied
            [stays] = [socket for socket, end in zip(many, ends, strict=True) if not end.done()]
            await (await stays.ping())
            assert {end.result() for end in ends if end.done()} == {(4503, "signed in elsewhere")}
            for end in ends:
                end.cancel()
            await asyncio.wait(ends)


def sessions(stack: AsyncExitStack, server: Server, count: int) -> list[Awaitable[ClientConnection | None]]:
    """Return some sessions of a user that begin at once; `None` for one that was ended in its handshake already."""

    async def begin() -> ClientConnection | None:
        path = f"{server.ws_url}/single/ada"
        try:
            return await stack.enter_async_context(connect(path, proxy=None, open_timeout=_SECONDS, close_timeout=2))
        except InvalidStatus as refused:
            if (refused.response.status_code, refused.response.body) != (403, b"signed in elsewhere"):
                raise
            return None

    return [begin() for _ in range(count)]


@by_default_on("ipc", "redis")
async def test_a_limit_for_all_workers(broker_url: str, tmp_path: Path) -> None:
    """Of ten connections that a user opens at once, on four workers, two are admitted, and the rest get a 429."""
    with serving("gunicorn", broker_url, tmp_path) as server:
        await until_known(server)
        for user in ("ada", "bob", "carl"):
            async with AsyncExitStack() as stack:
                tries = (opened(stack, server, f"/capped/{user}") for _ in range(10))
                results = await asyncio.gather(*tries, return_exceptions=True)
                refused = [result for result in results if isinstance(result, InvalidStatus)]
                assert [result.response.status_code for result in refused] == [429] * 8
                assert len([result for result in results if isinstance(result, tuple)]) == 2
