"""examples/ban.py."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import InvalidStatus

from backplane import CloseCode
from tests.examples.example_server import SECONDS, received_close_code

if TYPE_CHECKING:
    from pathlib import Path

    from tests.examples.conftest import Serve
    from tests.examples.example_server import ExampleServer

TOKEN = "administrator"


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> ExampleServer:
    """The example, on two workers."""
    folder: Path = tmp_path_factory.mktemp("bans")
    started = serve("ban", ADMIN_TOKEN=TOKEN, BANS=str(folder / "bans.sqlite"))
    started.wait_for_workers(2)  # one that starts while a command is awaited would not confirm it
    return started


def test_banned_user_is_closed_on_every_worker_and_refused(server: ExampleServer) -> None:
    """A ban closes every connection of the user, and no other; the user is refused until it is lifted."""
    with ExitStack() as stack:
        ada = [stack.enter_context(server.connect("/rooms/lobby?user=ada")) for _ in range(6)]
        bob = stack.enter_context(server.connect("/rooms/lobby?user=bob"))
        status, answer = server.request("PUT", "/bans/ada", Authorization=f"Bearer {TOKEN}")
        assert (status, answer) == (200, {"closed": 6, "unconfirmed": []})
        for client in ada:
            assert received_close_code(client) == CloseCode.FORBIDDEN
            assert client.close_reason == "banned"
        with pytest.raises(InvalidStatus) as refused, server.connect("/rooms/lobby?user=ada"):
            pass
        assert refused.value.response.status_code == 403
        bob.send("still here")
        assert bob.recv(timeout=SECONDS) == "bob: still here"

    assert server.request("DELETE", "/bans/ada", Authorization=f"Bearer {TOKEN}")[0] == 204
    with server.connect("/rooms/lobby?user=ada") as back:
        back.send("back")
        assert back.recv(timeout=SECONDS) == "ada: back"


def test_ban_of_a_user_who_is_not_there(server: ExampleServer) -> None:
    """A user can be banned twice, and before the first connection."""
    for _ in range(2):
        status, answer = server.request("PUT", "/bans/carol", Authorization=f"Bearer {TOKEN}")
        assert (status, answer) == (200, {"closed": 0, "unconfirmed": []})
    with pytest.raises(InvalidStatus), server.connect("/rooms/lobby?user=carol"):
        pass


@pytest.mark.parametrize("token", ["", "Bearer ", "Bearer wrong", TOKEN])
def test_only_the_administrator_bans(server: ExampleServer, token: str) -> None:
    """Without the administrator's token nothing is banned or lifted."""
    for method in ("PUT", "DELETE"):
        assert server.request(method, "/bans/dave", Authorization=token)[0] == 401
    with server.connect("/rooms/lobby?user=dave"):
        pass


def test_session_is_bounded(serve: Serve, tmp_path: Path) -> None:
    """A connection ends after the session, whether or not a command reaches its worker."""
    server = serve("ban", ADMIN_TOKEN=TOKEN, BANS=str(tmp_path / "bans.sqlite"), SESSION_SECONDS="1")
    with server.connect("/rooms/lobby?user=ada") as ada:
        assert received_close_code(ada) == CloseCode.EXPIRED
