"""examples/echo.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.examples.example_server import SECONDS

if TYPE_CHECKING:
    from tests.examples.conftest import Serve


def test_message_is_sent_back_to_its_sender_alone(serve: Serve) -> None:
    """Text is sent back as text and binary as binary, in order, and another client receives only its own."""
    server = serve("echo")
    with server.connect("/") as one, server.connect("/") as other:
        for message in ("hello", b"\x00\xff", "", b"", "\N{SNOWMAN}"):
            one.send(message)
            assert one.recv(timeout=SECONDS) == message
        other.send("mine")
        assert other.recv(timeout=SECONDS) == "mine"
    server.wait_until_idle()
