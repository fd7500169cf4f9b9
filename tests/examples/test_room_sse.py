"""examples/room_sse.py."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from typing import TYPE_CHECKING

from playwright.sync_api import expect

from tests.examples.example_server import SECONDS

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from playwright.sync_api import Browser

    from tests.examples.conftest import Serve


def next_event(stream: HTTPResponse) -> object:
    """Return the data of the next event of a stream; comments and `retry` are skipped."""
    while line := stream.readline():
        if line.startswith(b"data: "):
            return json.loads(line.removeprefix(b"data: "))
    raise EOFError("the stream has ended")


def test_both_transports_receive_the_same_room(serve: Serve) -> None:
    """What is sent over a WebSocket and over HTTP is received on the stream and on the socket, in order."""
    server = serve("room_sse")
    reader = HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    reader.request("GET", "/rooms/lobby")
    stream = reader.getresponse()
    assert stream.headers.get_content_type() == "text/event-stream"
    with server.connect("/rooms/lobby") as socket:
        socket.send('{"text": "over the socket"}')
        assert next_event(stream) == json.loads(socket.recv(timeout=SECONDS)) == {"text": "over the socket"}
        assert server.request("POST", "/rooms/lobby", {"text": "over HTTP"})[0] == 202
        assert next_event(stream) == json.loads(socket.recv(timeout=SECONDS)) == {"text": "over HTTP"}
    reader.close()


def test_page_receives_its_messages_through_the_stream(serve: Serve, browser: Browser) -> None:
    """The page shows what it sends, and what a WebSocket client sends."""
    server = serve("room_sse")
    page = browser.new_page()
    page.goto(server.http_url)
    expect(page.get_by_role("status")).to_have_text("live")
    page.get_by_label("Message").fill("from the page")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("log")).to_contain_text("from the page")
    with server.connect("/rooms/lobby") as socket:
        socket.send('{"text": "from a socket"}')
        expect(page.get_by_role("log")).to_contain_text("from a socket")
    page.close()


def test_a_stream_that_comes_back_gets_what_it_missed(serve: Serve) -> None:
    """A client that shows its last event id gets what was posted while it was away, in order."""
    server = serve("room_sse")

    def listen(last_id: str) -> tuple[HTTPConnection, HTTPResponse]:
        reader = HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
        reader.request("GET", "/rooms/away", headers={"Last-Event-ID": last_id})
        return reader, reader.getresponse()

    reader, stream = listen("")
    last_id = ""
    while not last_id:
        line = stream.readline()
        assert line
        last_id = line.removeprefix(b"id: ").decode().strip() if line.startswith(b"id: ") else ""
    reader.close()
    for text in ("one", "two"):
        assert server.request("POST", "/rooms/away", {"text": text})[0] == 202
    reader, stream = listen(last_id)
    assert [next_event(stream) for _ in range(2)] == [{"text": "one"}, {"text": "two"}]
    reader.close()
