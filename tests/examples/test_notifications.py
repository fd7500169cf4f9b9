"""examples/notifications.py and examples/notify_task.py."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.examples.example_server import EXAMPLES, SECONDS, documented_command

if TYPE_CHECKING:
    from tests.examples.conftest import Serve


def test_request_reaches_every_window_of_the_user(serve: Serve) -> None:
    """What is posted for a user is received by all of their clients, and by no others."""
    server = serve("notifications")
    with (
        server.connect("/users/ada") as one,
        server.connect("/users/ada") as other,
        server.connect("/users/bob") as bob,
    ):
        assert server.request("POST", "/users/ada", {"title": "hello"})[0] == 202
        assert server.request("POST", "/users/bob", {"title": "for bob"})[0] == 202
        for client, title in ((one, "hello"), (other, "hello"), (bob, "for bob")):
            assert json.loads(client.recv(timeout=SECONDS)) == {"title": title}


@pytest.mark.parametrize("body", [{}, {"title": ""}, {"title": "x" * 201}])
def test_invalid_notification_is_refused(serve: Serve, body: dict[str, str]) -> None:
    """A request that does not validate is answered 422."""
    assert serve("notifications").request("POST", "/users/carol", body)[0] == 422


def test_task_outside_the_web_workers_reaches_the_user(serve: Serve) -> None:
    """The documented command, run as a process of its own with the same broker, reaches the client."""
    server = serve("notifications")
    with server.connect("/users/ada") as ada:
        environment = {**os.environ, "BACKPLANE_URL": server.broker_url}
        subprocess.run(documented_command("notify_task"), cwd=EXAMPLES, env=environment, timeout=SECONDS, check=True)
        assert json.loads(ada.recv(timeout=SECONDS)) == {"title": "your order was shipped"}
