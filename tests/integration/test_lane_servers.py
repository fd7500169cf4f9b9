"""The direct lane under `backplane run` and Gunicorn, as processes."""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.brokers.process import free_port
from tests.server_process import server_process

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

APPLICATION = """
import os
from backplane.fanout.frames import encode_frame

class Writer:
    def lane_writable(self, writable): ...
    def lane_closed(self): ...

async def app(scope, receive, send):
    if scope["type"] == "http":
        body = b"bounded" if "backplane.transport" in scope["extensions"] else b"not bounded"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        return await send({"type": "http.response.body", "body": body})
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"] == "/echo":
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})
        return
    lane = scope["extensions"]["backplane.lane"]
    lane.attach(Writer())
    lane.write(encode_frame(f"{lane.deflate_window_bits} {os.environ['BACKPLANE_URL']}"))
    await send({"type": "websocket.close"})
"""
WORKER = """
from backplane.server.gunicorn import Worker


class MyWorker(Worker):
    CONFIG_KWARGS = {**Worker.CONFIG_KWARGS, "ws_max_size": 4 * 1024 * 1024, "timeout_graceful_shutdown": 5}
"""
MIB = 1024 * 1024
GUNICORN = ("gunicorn", "shop:app", "--workers", "2", "--bind", "127.0.0.1:{port}", "-k")
RUN = ("backplane.cli", "run", "shop:app", "--workers", "2", "--port", "{port}")


@contextmanager
def serving(command: tuple[str, ...], folder: Path) -> Generator[str]:
    """Run a server, entered when it listens; it must end on SIGTERM."""
    (folder / "shop.py").write_text(APPLICATION, encoding="utf-8")
    (folder / "worker.py").write_text(WORKER, encoding="utf-8")
    port = free_port()
    filled = [sys.executable, "-m", *(part.format(port=port) for part in command)]

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with server_process(filled, folder, cwd=folder, environment={"BACKPLANE_URL": "memory://"}) as server:
        server.wait_until(listens, "the server listens")
        yield f"ws://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        pytest.param(RUN, "None memory://", id="run"),
        pytest.param((*RUN, "--shared-compression", "--url", "ipc://shop"), "12 ipc://shop", id="run, shared"),
        pytest.param((*GUNICORN, "backplane.server.gunicorn.Worker"), "None memory://", id="gunicorn"),
        pytest.param(
            (*GUNICORN, "backplane.server.gunicorn.SharedCompressionWorker"), "12 memory://", id="gunicorn, shared"
        ),
    ],
)
def test_server_has_the_lane(command: tuple[str, ...], words: str, tmp_path: Path) -> None:
    """The application has the lane, and what it writes to it reaches the client."""
    with serving(command, tmp_path) as url, connect(url, open_timeout=20) as client:
        assert client.recv(timeout=60) == words


@pytest.mark.parametrize(
    ("command", "deflates", "limit"),
    [
        pytest.param(RUN, False, MIB, id="run"),
        pytest.param(
            (*RUN, "--", "--ws-per-message-deflate=true", "--ws-max-size=9000"), True, 9000, id="run, options"
        ),
        pytest.param((*RUN, "--shared-compression"), True, MIB, id="run, shared"),
        pytest.param((*GUNICORN, "backplane.server.gunicorn.Worker"), False, MIB, id="gunicorn"),
        pytest.param(
            (*GUNICORN, "backplane.server.gunicorn.SharedCompressionWorker"), True, MIB, id="gunicorn, shared"
        ),
        pytest.param((*GUNICORN, "worker.MyWorker"), False, 4 * MIB, id="gunicorn, a subclass"),
    ],
)
def test_server_is_bounded(command: tuple[str, ...], deflates: bool, limit: int, tmp_path: Path) -> None:
    """By default HTTP is bounded, a message has at most 1 MiB, and no client has a compressor of its own."""
    with serving(command, tmp_path) as url:
        with urlopen(url.replace("ws:", "http:"), timeout=120) as response:
            assert response.read() == b"bounded"
        with connect(f"{url}/echo", open_timeout=20, max_size=None) as client:
            assert bool(client.protocol.extensions) is deflates
            client.send(b"x" * limit)
            assert len(client.recv(timeout=60)) == limit
            # The header alone: to an unread payload the kernel would reply with a reset.
            client.socket.sendall(struct.pack("!BBQ4s", 0x82, 0xFF, limit + 1, bytes(4)))
            with pytest.raises(ConnectionClosed) as caught:
                client.recv(timeout=60)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1009
