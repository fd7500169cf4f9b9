"""examples/chat.py: with WebSocket clients, and with the page in a browser."""

from __future__ import annotations

import json
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
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


def receive_frame(client: ClientConnection) -> Any:
    """Return the next frame of any kind."""
    return json.loads(client.recv(timeout=SECONDS))


def receive(client: ClientConnection) -> Any:
    """Return the next line of the room, or the next error."""
    while True:
        frame = receive_frame(client)
        if "data" in frame:
            return frame["data"]
        if "error" in frame:
            return frame


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
            assert receive(grace) == {"author": "", "text": "ada came"}  # it was sent before
            assert receive(ada) == receive(grace) == {"author": "", "text": "grace came"}
            send(grace, " hello ")
            assert receive(ada) == receive(grace) == {"author": "grace", "text": "hello"}
            send(bob, "alone")
            assert receive(bob) == {"author": "bob", "text": "alone"}
        assert receive(ada) == {"author": "", "text": "grace left"}


@pytest.mark.parametrize(
    ("room", "malformed"),
    list(enumerate(("", "no JSON", "[]", '{"text": "  "}', json.dumps({"text": "x" * 1001}), b"\xff"))),
)
def test_malformed_message_is_answered(serve: Serve, room: int, malformed: str | bytes) -> None:
    """Invalid input is answered with what is wrong, and the next message is received."""
    with serve("chat").connect(f"/rooms/malformed-{room}?name=ada") as ada:
        receive(ada)
        ada.send(malformed)
        assert receive(ada)["error"] == "invalid message"
        send(ada, "still here")
        assert receive(ada) == {"author": "ada", "text": "still here"}


def test_client_that_was_away_gets_the_rest(serve: Serve) -> None:
    """With its last position a client gets exactly what it missed, and is notified where the rest begins."""
    server = serve("chat")
    with server.connect("/rooms/rest?name=ada") as ada, server.connect("/rooms/rest?name=bob") as bob:
        assert [receive(ada)["text"] for _ in range(2)] == ["ada came", "bob came"]
        send(ada, "before")
        while (before := receive_frame(bob)).get("data", {}).get("text") != "before":
            pass
        for number in range(9):
            send(ada, str(number))
        assert [receive(ada)["text"] for _ in range(10)] == ["before", *map(str, range(9))]

        with server.connect(f"/rooms/rest?name=eve&since={before['position']}") as eve:
            joined = receive_frame(eve)
            assert (joined["event"], joined["resumed"], joined["position"]) == ("joined", True, before["position"])
            assert [receive_frame(eve)["data"]["text"] for _ in range(9)] == [*map(str, range(9))]
            assert receive_frame(eve) == {"live": True}
            assert receive_frame(eve)["data"]["text"] == "eve came"
        assert [receive(ada)["text"] for _ in range(2)] == ["eve came", "eve left"]


def test_first_visit_gets_the_last_lines(serve: Serve) -> None:
    """A client without a position gets the last 50 lines, and so does one whose position is no longer known."""
    server = serve("chat")
    with ExitStack() as stack:
        for name in ("ada", "bob", "eve"):  # one alone may not send so many at once
            client = stack.enter_context(server.connect(f"/rooms/first?name={name}"))
            for number in range(18):
                send(client, str(number))
            while receive(client) != {"author": name, "text": "17"}:
                pass
        for since in ("", "no-position"):
            with server.connect(f"/rooms/first?name=kim&since={since}") as kim:
                frames = [receive_frame(kim)]
                while frames[-1] != {"live": True}:
                    frames.append(receive_frame(kim))
            assert [frame["event"] for frame in frames if "event" in frame] == ["joined", "gap"][: 1 + bool(since)]
            lines = [frame["data"] for frame in frames if "data" in frame]
            assert len(lines) == 50
            assert {"author": "eve", "text": "17"} in lines[-3:]


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


def test_page_gets_what_it_missed(serve: Serve, browser: Browser) -> None:
    """A page whose workers are all killed shows what was sent meanwhile, in order and once, and how much that was."""
    server = serve("chat")
    page = browser.new_context().new_page()
    page.clock.install()
    page.goto(f"{server.http_url}/?name=ada&room=killed")
    log = page.get_by_role("log")
    expect(log.get_by_role("listitem")).to_have_text(["ada came"])
    page.clock.pause_at(datetime.now(UTC) + timedelta(minutes=1))  # so it comes back when the test wants it to

    server.kill_workers()
    expect(page.get_by_role("status")).to_contain_text("closed (1006")
    with server.connect("/rooms/killed?name=bob") as bob:
        for number in range(3):
            send(bob, str(number))
        while receive(bob)["text"] != "2":
            pass
    page.clock.resume()

    expect(page.get_by_role("status")).to_have_text("live")
    missed = ["bob came", "bob: 0", "bob: 1", "bob: 2", "bob left"]
    expect(log.get_by_role("listitem")).to_have_text(["ada came", *missed, "5 missed, all restored", "ada came"])
