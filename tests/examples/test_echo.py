"""examples/echo.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.examples.site import SECONDS

if TYPE_CHECKING:
    from tests.examples.conftest import Serve


def test_what_is_said_comes_back_to_its_sender_alone(serve: Serve) -> None:
    """Text comes back as text and binary as binary, in order, and another client hears only its own."""
    site = serve("echo")
    with site.connect("/") as one, site.connect("/") as other:
        for message in ("hello", b"\x00\xff", "", b"", "\N{SNOWMAN}"):
            one.send(message)
            assert one.recv(timeout=SECONDS) == message
        other.send("mine")
        assert other.recv(timeout=SECONDS) == "mine"
    site.wait_until_idle()
