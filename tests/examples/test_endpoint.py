"""examples/endpoint.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.examples.example_server import SECONDS

if TYPE_CHECKING:
    from tests.examples.conftest import Serve


def test_others_receive_what_one_sends(serve: Serve) -> None:
    """A client is greeted, and receives what others of its room send, but not its own messages."""
    server = serve("endpoint")
    with (
        server.connect("/rooms/a") as one,
        server.connect("/rooms/a") as other,
        server.connect("/rooms/b") as elsewhere,
    ):
        assert one.recv(timeout=SECONDS) == "welcome to a"
        assert other.recv(timeout=SECONDS) == "welcome to a"
        assert elsewhere.recv(timeout=SECONDS) == "welcome to b"

        one.send("from one")
        assert other.recv(timeout=SECONDS) == "from one"
        other.send(b"from other")
        assert one.recv(timeout=SECONDS) == b"from other"
