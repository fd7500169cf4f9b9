"""examples/room_presence.py: with WebSocket clients, and with the page in a browser."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect
from websockets.exceptions import InvalidStatus

from tests.examples.example_server import SECONDS

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from websockets.sync.client import ClientConnection

    from tests.examples.conftest import Serve


class Users:
    """The users of a room as one client knows them, from what it receives."""

    def __init__(self, client: ClientConnection) -> None:
        self.client = client
        self.typing: dict[str, bool] = {}
        self._state: tuple[str, int] | None = None

    def receive_until(self, **typing: bool) -> None:
        """Receive until these are the users, with whether each is typing."""
        while self.typing != typing:
            self._take(json.loads(self.client.recv(timeout=SECONDS))["presence"])

    def _take(self, presence: Any) -> None:
        state = presence["id"], presence["version"]
        if "users" in presence:
            self.typing = {}
        else:
            assert self._state == (state[0], state[1] - 1), "a change is missing"
        self._state = state
        for user in presence.get("left", []):
            del self.typing[user]
        for changed in ("users", "joined", "updated"):
            for user, person in presence.get(changed, {}).items():
                self.typing[user] = person["info"]["typing"]


def test_users_of_all_workers_are_shown(serve: Serve) -> None:
    """Every client of a room, on four workers, is sent its users: those that come, type, stop, and leave."""
    server = serve("room_presence")
    with ExitStack() as stack:
        names = [f"user{number}" for number in range(8)]
        users = [Users(stack.enter_context(server.connect(f"/rooms/a?name={name}"))) for name in names]
        other = Users(stack.enter_context(server.connect("/rooms/b?name=other")))
        quiet = dict.fromkeys(names, False)
        for one in users:
            one.receive_until(**quiet)
        users[0].client.send('{"typing": true}')
        for one in users:
            one.receive_until(**(quiet | {"user0": True}))
        users[0].client.send('{"typing": false}')
        for one in users:
            one.receive_until(**quiet)
        users[1].client.send('{"typing": true}')  # and nothing more: it ends after a while
        for one in users:
            one.receive_until(**(quiet | {"user1": True}))
            one.receive_until(**quiet)

        status, present = server.request("GET", "/rooms/a/users")
        assert (status, present) == (200, {"connections": 8, "users": names})
        assert server.request("GET", "/rooms/empty/users")[1] == {"connections": 0, "users": []}

        users.pop().client.close()
        quiet.popitem()
        for one in users:
            one.receive_until(**quiet)
        other.receive_until(other=False)


def test_user_with_two_windows_leaves_with_the_last(serve: Serve) -> None:
    """Two connections of one name are one user, who is there until both are closed."""
    server = serve("room_presence")
    with server.connect("/rooms/c?name=watcher") as watcher:
        users = Users(watcher)
        with server.connect("/rooms/c?name=ada"):
            users.receive_until(watcher=False, ada=False)
            with server.connect("/rooms/c?name=ada") as second, server.connect("/rooms/c?name=bob"):
                second.recv(timeout=SECONDS)
                users.receive_until(watcher=False, ada=False, bob=False)
            users.receive_until(watcher=False, ada=False)  # bob's grace is over, so would be ada's
        users.receive_until(watcher=False)


def test_user_types_in_either_of_two_windows(serve: Serve) -> None:
    """Typing is shown whichever window it is in, also the one that was opened first."""
    server = serve("room_presence")
    with (
        server.connect("/rooms/f?name=watcher") as watcher,
        server.connect("/rooms/f?name=ada") as first,
        server.connect("/rooms/f?name=ada") as second,
    ):
        users = Users(watcher)
        second.recv(timeout=SECONDS)
        for window in (first, second, first):
            window.send('{"typing": true}')
            users.receive_until(watcher=False, ada=True)
            window.send('{"typing": false}')
            users.receive_until(watcher=False, ada=False)


@pytest.mark.parametrize("name", ["", "a b", "x" * 41, "%1b", "é"])
def test_wrong_name_is_refused(serve: Serve, name: str) -> None:
    """A name that does not match is refused before the handshake."""
    server = serve("room_presence")
    with pytest.raises(InvalidStatus), server.connect(f"/rooms/d?name={name}"):
        pass


def test_input_that_is_no_state_is_answered(serve: Serve) -> None:
    """What is no state of typing is answered with what is wrong, and the client stays."""
    server = serve("room_presence")
    with server.connect("/rooms/e?name=ada") as ada:
        users = Users(ada)
        users.receive_until(ada=False)
        ada.send('{"typing": "what"}')
        assert "error" in json.loads(ada.recv(timeout=SECONDS))
        ada.send('{"typing": true}')
        users.receive_until(ada=True)


def test_page(serve: Serve, browser: Browser) -> None:
    """Two pages show each other, and that one types, until its text is there no more."""
    server = serve("room_presence")
    first, second = browser.new_context().new_page(), browser.new_context().new_page()
    errors: list[str] = []
    for page, name in ((first, "ada"), (second, "bob")):
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{server.http_url}/?room=page&name={name}")
    for page in (first, second):
        expect(page.get_by_role("list", name="Users").get_by_role("listitem")).to_have_text(["ada", "bob"])
    second.get_by_label("Type something").press_sequentially("hello")
    expect(first.get_by_text("typing: bob")).to_be_visible()
    second.get_by_label("Type something").press("Enter")
    expect(first.get_by_text("typing: bob")).to_be_hidden()
    expect(first.get_by_text("Users: 2")).to_be_visible()
    second.context.close()
    expect(first.get_by_role("list", name="Users").get_by_role("listitem")).to_have_text(["ada"], timeout=15_000)
    assert errors == []


def test_page_of_a_room_with_too_many_to_be_listed(serve: Serve, browser: Browser) -> None:
    """It shows their number, and how that changes, and does not connect anew."""
    page = browser.new_context().new_page()
    page.goto(f"{serve('room_presence').http_url}/?room=large&name=ada")
    expect(page.get_by_text("Users: 1")).to_be_visible()
    stays = page.evaluate(
        """() => {
            const before = socket;
            receive({ id: "x", version: 0, connections: 1200, users: null });
            receive({ id: "x", version: 1, connections: 1201 });
            return socket === before && socket.readyState === WebSocket.OPEN;
        }"""
    )
    assert stays
    expect(page.get_by_text("Connections: 1201")).to_be_visible()
    expect(page.get_by_role("listitem")).to_have_count(0)
    page.context.close()
