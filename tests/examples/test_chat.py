"""examples/chat.py: with WebSocket clients, and with the page in a browser."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect
from websockets.exceptions import InvalidStatus

from backplane import CloseCode
from tests.examples.example_server import SECONDS, received_close_code

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from websockets.sync.client import ClientConnection

    from tests.examples.conftest import Serve
    from tests.examples.example_server import ExampleServer


def receive(client: ClientConnection) -> Any:
    """Return the next line of the room."""
    return json.loads(client.recv(timeout=SECONDS))


def send(client: ClientConnection, text: str) -> None:
    """Send a message."""
    client.send(json.dumps({"text": text}))


def test_room_receives_messages_joins_and_leaves(serve: Serve) -> None:
    """Every client of a room receives all of it, and another room nothing, on four workers."""
    server = serve("chat")
    with server.connect("/rooms/a?name=ada") as ada:
        assert receive(ada) == {"author": "", "text": "ada came"}
        with server.connect("/rooms/b?name=bob") as bob, server.connect("/rooms/a?name=grace") as grace:
            assert receive(bob) == {"author": "", "text": "bob came"}
            assert receive(ada) == receive(grace) == {"author": "", "text": "grace came"}
            send(grace, " hello ")
            assert receive(ada) == receive(grace) == {"author": "grace", "text": "hello"}
            send(bob, "alone")
            assert receive(bob) == {"author": "bob", "text": "alone"}
        assert receive(ada) == {"author": "", "text": "grace left"}


@pytest.mark.parametrize(
    "malformed", ["", "no JSON", "[]", '{"text": "  "}', json.dumps({"text": "x" * 1001}), b"\xff"]
)
def test_malformed_message_is_answered(serve: Serve, malformed: str | bytes) -> None:
    """Invalid input is answered with what is wrong, and the next message is received."""
    with serve("chat").connect("/rooms/a?name=ada") as ada:
        receive(ada)
        ada.send(malformed)
        assert receive(ada)["error"] == "invalid message"
        send(ada, "still here")
        assert receive(ada) == {"author": "ada", "text": "still here"}


def test_limits_close_with_their_codes(serve: Serve) -> None:
    """A message above 8 KiB ends with 1009, a flood with 4029."""
    server = serve("chat")
    with server.connect("/rooms/limits?name=ada") as ada:
        ada.send("x" * 9000)
        assert received_close_code(ada) == CloseCode.MESSAGE_TOO_BIG
    with server.connect("/rooms/limits?name=ada") as ada:
        for _ in range(21):
            ada.send("flood")
        assert received_close_code(ada) == CloseCode.TOO_MANY_MESSAGES


@pytest.mark.parametrize("path", ["/rooms/a", "/rooms/a%20b?name=ada", f"/rooms/a?name={'x' * 41}", "/nowhere"])
def test_bad_room_or_name_is_refused(serve: Serve, path: str) -> None:
    """A bad room or name is refused before the handshake is done."""
    server = serve("chat")
    with pytest.raises(InvalidStatus) as refused, server.connect(path):
        pass
    assert refused.value.response.status_code == 403


def test_page_of_another_site_is_refused(serve: Serve) -> None:
    """A browser on another site's page is refused; on this one's it is accepted."""
    server = serve("chat")
    with (
        pytest.raises(InvalidStatus) as refused,
        server.connect("/rooms/origin?name=ada", origin="https://evil.example"),
    ):
        pass
    assert refused.value.response.status_code == 403
    with server.connect("/rooms/origin?name=ada", origin=server.http_url) as ada:
        assert receive(ada)["text"] == "ada came"


def open_page(browser: Browser, server: ExampleServer, name: str) -> Page:
    """Open the page in a window of its own, and wait until it is live."""
    page = browser.new_context().new_page()
    page.goto(f"{server.http_url}/?name={name}")
    expect(page.get_by_role("status")).to_have_text("live")
    return page


def test_pages_share_a_room(serve: Serve, browser: Browser) -> None:
    """What one window sends, both show, and markup as text."""
    server = serve("chat")
    ada, grace = open_page(browser, server, "ada"), open_page(browser, server, "grace")
    grace.get_by_label("Message").fill("<b>hello</b>")
    grace.get_by_role("button", name="Send").click()
    for page in (ada, grace):
        expect(page.get_by_role("log")).to_contain_text("grace: <b>hello</b>")
        assert page.get_by_role("log").locator("b").count() == 0
    expect(ada.get_by_role("log")).to_contain_text("grace came")
    grace.close()
    expect(ada.get_by_role("log")).to_contain_text("grace left")
