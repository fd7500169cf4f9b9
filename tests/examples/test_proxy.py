"""examples/proxy.py, in front of servers that work and of servers that fail."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websockets

from tests.examples.example_server import SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from websockets.sync.client import ClientConnection

    from tests.examples.conftest import Serve


@contextmanager
def upstream(handler: Callable[[ServerConnection], None]) -> Generator[str]:
    """Run a WebSocket server whose connections `handler` serves; yields its URL."""
    with serve_websockets(handler, "127.0.0.1", 0) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/"
        finally:
            server.shutdown()
            thread.join()


def echo(connection: ServerConnection) -> None:
    """Send back what is received."""
    for message in connection:
        connection.send(message)


def close_with_a_code(connection: ServerConnection) -> None:
    """Close with the code that the client sends."""
    connection.close(int(connection.recv()), "as requested")


def cut(connection: ServerConnection) -> None:
    """End the connection without a close frame."""
    connection.recv()
    connection.socket.shutdown(socket.SHUT_RDWR)


def closed_with(client: ClientConnection) -> tuple[int, str]:
    """Return the code and the reason with which the server closes the client."""
    with pytest.raises(ConnectionClosed) as closed:
        client.recv(timeout=SECONDS)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


def test_messages_pass_in_both_directions(serve: Serve) -> None:
    """Text and binary reach the upstream, and its replies reach the client, in order; no connection is left."""
    with upstream(echo) as url:
        server = serve("proxy", UPSTREAM_URL=url)
        with server.connect("/") as client:
            for message in ("hello", b"\x00\xff", "x" * 65_000):
                client.send(message)
            assert [client.recv(timeout=SECONDS) for _ in range(3)] == ["hello", b"\x00\xff", "x" * 65_000]
        server.wait_until_idle()


def test_end_of_the_client_ends_the_upstream(serve: Serve) -> None:
    """When the client leaves, its connection to the upstream is closed in order."""
    codes: list[int | None] = []

    def record_the_end(connection: ServerConnection) -> None:
        echo(connection)
        codes.append(connection.close_code)

    with upstream(record_the_end) as url:
        server = serve("proxy", UPSTREAM_URL=url)
        with server.connect("/") as client:
            client.send("hello")
            client.recv(timeout=SECONDS)
        server.wait_until_idle()
    assert codes == [1000]


def test_close_code_of_the_upstream_reaches_the_client(serve: Serve) -> None:
    """A code that may be sent is passed on with its reason."""
    with upstream(close_with_a_code) as url:
        server = serve("proxy", UPSTREAM_URL=url)
        for code in (1000, 1001, 1008, 1011, 4321):
            with server.connect("/") as client:
                client.send(str(code))
                assert closed_with(client) == (code, "as requested")


def test_upstream_that_is_cut_is_a_bad_gateway(serve: Serve) -> None:
    """An upstream that vanishes closes the client with 1014."""
    with upstream(cut) as url, serve("proxy", UPSTREAM_URL=url).connect("/") as client:
        client.send("now")
        assert closed_with(client) == (1014, "upstream gone")


def test_upstream_that_is_not_there_is_a_bad_gateway(serve: Serve) -> None:
    """An upstream that cannot be reached closes the client with 1014, without a traceback in the log."""
    with socket.socket() as closed_port:  # bound and not listening: refused, and no server can take the port
        closed_port.bind(("127.0.0.1", 0))
        server = serve("proxy", UPSTREAM_URL=f"ws://127.0.0.1:{closed_port.getsockname()[1]}/")
        with server.connect("/") as client:
            assert closed_with(client) == (1014, "upstream not reachable")


def test_upstream_that_is_no_websocket_server_is_a_bad_gateway(serve: Serve) -> None:
    """An upstream that refuses the handshake closes the client with 1014."""
    refusing = serve("echo")
    with serve("proxy", UPSTREAM_URL=f"{refusing.ws_url}/health/ready").connect("/") as client:
        assert closed_with(client) == (1014, "upstream not reachable")
