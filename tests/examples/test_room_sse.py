"""examples/room_sse.py."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from typing import TYPE_CHECKING

from playwright.sync_api import expect

from tests.examples.site import SECONDS

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from playwright.sync_api import Browser

    from tests.examples.conftest import Serve


def next_event(stream: HTTPResponse) -> object:
    """Return the data of the next event of a stream, past comments and hints."""
    while line := stream.readline():
        if line.startswith(b"data: "):
            return json.loads(line.removeprefix(b"data: "))
    raise EOFError("the stream has ended")


def test_both_transports_hear_the_same_room(serve: Serve) -> None:
    """What is said over a WebSocket, and over HTTP, is heard on the stream and on the socket, in order."""
    site = serve("room_sse")
    listener = HTTPConnection("127.0.0.1", site.port, timeout=SECONDS)
    listener.request("GET", "/rooms/lobby")
    stream = listener.getresponse()
    assert stream.headers.get_content_type() == "text/event-stream"
    with site.connect("/rooms/lobby") as talker:
        talker.send('{"text": "over the socket"}')
        assert next_event(stream) == json.loads(talker.recv(timeout=SECONDS)) == {"text": "over the socket"}
        assert site.ask("POST", "/rooms/lobby", {"text": "over HTTP"})[0] == 202
        assert next_event(stream) == json.loads(talker.recv(timeout=SECONDS)) == {"text": "over HTTP"}
    listener.close()


def test_page_hears_itself_through_the_stream(serve: Serve, browser: Browser) -> None:
    """The page shows what is said in it, and what a WebSocket client says."""
    site = serve("room_sse")
    page = browser.new_page()
    page.goto(site.http_url)
    expect(page.get_by_role("status")).to_have_text("live")
    page.get_by_label("Message").fill("from the page")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("log")).to_contain_text("from the page")
    with site.connect("/rooms/lobby") as talker:
        talker.send('{"text": "from a socket"}')
        expect(page.get_by_role("log")).to_contain_text("from a socket")
    page.close()
