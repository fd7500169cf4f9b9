"""The direct lane where users switch it on: `backplane run` and Gunicorn, as processes."""

from __future__ import annotations

import os
import socket
import struct
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.brokers.process import end, free_port, start, wait_until

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

APPLICATION = """
import os
from backplane.fanout.frames import encode_frame

class User:
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
    lane.attach(User())
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
    port, log = free_port(), folder / "log"
    # Gunicorn puts a control socket into the home folder.
    environment = {"BACKPLANE_URL": "memory://", **os.environ, "HOME": str(folder), "XDG_RUNTIME_DIR": ""}
    filled = [part.format(port=port) for part in command]
    process = start([sys.executable, "-m", *filled], cwd=folder, log=log, env=environment)

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(listens, "the server listens", seconds=20)
        yield f"ws://127.0.0.1:{port}"
    finally:
        in_time = end(process, seconds=15)
    assert in_time, log.read_text()


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
    """The application finds the lane, and what it writes to it reaches the client."""
    with serving(command, tmp_path) as url, connect(url, open_timeout=20) as client:
        assert client.recv(timeout=20) == words


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
        pytest.param((*GUNICORN, "worker.MyWorker"), False, 4 * MIB, id="gunicorn, a worker of one's own"),
    ],
)
def test_server_is_bounded(command: tuple[str, ...], deflates: bool, limit: int, tmp_path: Path) -> None:
    """HTTP is bounded, a message may have 1 MiB, a client has no compression of its own; or what is asked for."""
    with serving(command, tmp_path) as url:
        with urlopen(url.replace("ws:", "http:"), timeout=20) as answer:
            assert answer.read() == b"bounded"
        with connect(f"{url}/echo", open_timeout=20, max_size=None) as client:
            assert bool(client.protocol.extensions) is deflates
            client.send(b"x" * limit)
            assert len(client.recv(timeout=20)) == limit
            # The head alone: for a body that nobody reads, the kernel would answer with a reset.
            client.socket.sendall(struct.pack("!BBQ4s", 0x82, 0xFF, limit + 1, bytes(4)))
            with pytest.raises(ConnectionClosed) as caught:
                client.recv(timeout=20)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1009
