"""examples/chat.py: with WebSocket clients, and with the page in a browser."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect
from websockets.exceptions import InvalidStatus

from backplane import CloseCode
from tests.examples.site import SECONDS, code_of_end

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from websockets.sync.client import ClientConnection

    from tests.examples.conftest import Serve
    from tests.examples.site import Site


def hear(client: ClientConnection) -> Any:
    """Return the next line of the room."""
    return json.loads(client.recv(timeout=SECONDS))


def say(client: ClientConnection, text: str) -> None:
    """Say something."""
    client.send(json.dumps({"text": text}))


def test_room_hears_who_comes_what_is_said_and_who_leaves(serve: Serve) -> None:
    """Everybody in a room hears all of it, and another room nothing, on four workers."""
    site = serve("chat")
    with site.connect("/rooms/a?name=ada") as ada:
        assert hear(ada) == {"author": "", "text": "ada came"}
        with site.connect("/rooms/b?name=bob") as bob, site.connect("/rooms/a?name=grace") as grace:
            assert hear(bob) == {"author": "", "text": "bob came"}
            assert hear(ada) == hear(grace) == {"author": "", "text": "grace came"}
            say(grace, " hello ")
            assert hear(ada) == hear(grace) == {"author": "grace", "text": "hello"}
            say(bob, "alone")
            assert hear(bob) == {"author": "bob", "text": "alone"}
        assert hear(ada) == {"author": "", "text": "grace left"}


@pytest.mark.parametrize(
    "malformed", ["", "no JSON", "[]", '{"text": "  "}', json.dumps({"text": "x" * 1001}), b"\xff"]
)
def test_malformed_message_is_answered(serve: Serve, malformed: str | bytes) -> None:
    """What is no message is answered with what is wrong, and the next one is heard."""
    with serve("chat").connect("/rooms/a?name=ada") as ada:
        hear(ada)
        ada.send(malformed)
        assert hear(ada)["error"] == "invalid message"
        say(ada, "still here")
        assert hear(ada) == {"author": "ada", "text": "still here"}


def test_limits_close_with_their_codes(serve: Serve) -> None:
    """A message above 8 KiB ends with 1009, a flood with 4029."""
    site = serve("chat")
    with site.connect("/rooms/limits?name=ada") as ada:
        ada.send("x" * 9000)
        assert code_of_end(ada) == CloseCode.MESSAGE_TOO_BIG
    with site.connect("/rooms/limits?name=ada") as ada:
        for _ in range(21):
            ada.send("flood")
        assert code_of_end(ada) == CloseCode.TOO_MANY_MESSAGES


@pytest.mark.parametrize("path", ["/rooms/a", "/rooms/a%20b?name=ada", f"/rooms/a?name={'x' * 41}", "/nowhere"])
def test_what_is_no_room_or_no_name_is_refused(serve: Serve, path: str) -> None:
    """A bad room or name is refused before the handshake is done."""
    site = serve("chat")
    with pytest.raises(InvalidStatus) as refused, site.connect(path):
        pass
    assert refused.value.response.status_code == 403


def test_page_of_another_site_is_refused(serve: Serve) -> None:
    """A browser on another site's page does not get in; on this one's it does."""
    site = serve("chat")
    with pytest.raises(InvalidStatus) as refused, site.connect("/rooms/origin?name=ada", origin="https://evil.example"):
        pass
    assert refused.value.response.status_code == 403
    with site.connect("/rooms/origin?name=ada", origin=site.http_url) as ada:
        assert hear(ada)["text"] == "ada came"


def open_page(browser: Browser, site: Site, name: str) -> Page:
    """Open the page in a window of its own, live."""
    page = browser.new_context().new_page()
    page.goto(f"{site.http_url}/?name={name}")
    expect(page.get_by_role("status")).to_have_text("live")
    return page


def test_pages_talk_to_each_other(serve: Serve, browser: Browser) -> None:
    """What one window says, both show, and markup as text."""
    site = serve("chat")
    ada, grace = open_page(browser, site, "ada"), open_page(browser, site, "grace")
    grace.get_by_label("Message").fill("<b>hello</b>")
    grace.get_by_role("button", name="Send").click()
    for page in (ada, grace):
        expect(page.get_by_role("log")).to_contain_text("grace: <b>hello</b>")
        assert page.get_by_role("log").locator("b").count() == 0
    expect(ada.get_by_role("log")).to_contain_text("grace came")
    grace.close()
    expect(ada.get_by_role("log")).to_contain_text("grace left")
