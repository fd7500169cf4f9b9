"""examples/one_session.py."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from backplane import CloseCode
from tests.examples.example_server import SECONDS, received_close_code

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

    from tests.examples.conftest import Serve


def receive(client: ClientConnection) -> Any:
    """Return the next message."""
    return json.loads(client.recv(timeout=SECONDS))


def test_new_session_ends_the_older_one(serve: Serve) -> None:
    """On any worker the newest connection of a user is the only one; those of other users stay."""
    server = serve("one_session")
    server.wait_for_workers(2)
    with ExitStack() as stack:
        bob = stack.enter_context(server.connect("/session/bob"))
        receive(bob)
        current = stack.enter_context(server.connect("/session/ada"))
        assert receive(current)["ended"] == 0
        for _ in range(8):  # at both workers
            new = stack.enter_context(server.connect("/session/ada"))
            started = receive(new)
            assert (started["ended"], started["unconfirmed"]) == (1, [])
            assert received_close_code(current) == CloseCode.FORBIDDEN
            assert current.close_reason == "logged in elsewhere"
            current = new
        for client in (current, bob):
            client.send("still here")
            assert client.recv(timeout=SECONDS) == "still here"
