"""examples/upload.py."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from tests.brokers.process import wait_until
from tests.examples.example_server import SECONDS, received_close_code

if TYPE_CHECKING:
    from pathlib import Path

    from websockets.sync.client import ClientConnection

    from tests.examples.conftest import Serve
    from tests.examples.example_server import ExampleServer

MAX_FILE_BYTES = 10 * 1024 * 1024


def send_header(client: ClientConnection, content: bytes, *, name: str = "a.bin", **changed: Any) -> None:
    """Send the header of a file."""
    header = {"name": name, "size_bytes": len(content), "sha256": sha256(content).hexdigest()}
    client.send(json.dumps({**header, **changed}))


def send_content(client: ClientConnection, content: bytes, *, chunk: int = 50_000) -> None:
    """Send the content in chunks, and the end marker."""
    for start in range(0, len(content), chunk):
        client.send(content[start : start + chunk])
    client.send(json.dumps({"end": True}))


def receive(client: ClientConnection) -> Any:
    """Return the next message."""
    return json.loads(client.recv(timeout=SECONDS))


def files(server: ExampleServer) -> list[str]:
    """Return the names of all stored files, complete or not."""
    return sorted(path.name for path in uploads(server).glob("*"))


def uploads(server: ExampleServer) -> Path:
    """Return the folder of the files."""
    return server.folder / "uploads"


@pytest.mark.parametrize("size", [0, 1, 123_456, MAX_FILE_BYTES])
def test_file_is_stored_and_the_room_is_notified(serve: Serve, size: int) -> None:
    """What was sent in chunks is in one file; the sender is answered, the rest of the room notified, once each."""
    content = bytes(number % 251 for number in range(size))
    stored = f"{sha256(content).hexdigest()[:16]}-a.bin"
    server = serve("upload")
    with server.connect("/rooms/a") as sender, server.connect("/rooms/a") as other:
        send_header(sender, content)
        send_content(sender, content)
        assert receive(sender) == {"stored": stored}
        assert receive(other) == {"uploaded": stored, "size_bytes": size}
        # The sender's next message is the reply to its next file: it was not notified of its own.
        send_header(sender, b"x", name="b.bin")
        send_content(sender, b"x")
        assert receive(sender)["stored"].endswith("-b.bin")
    assert (uploads(server) / stored).read_bytes() == content


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "/etc/passwd", "a/b", "a\\b", ".hidden", "a\nb", "a\x00b", "x" * 101, "a;b", "\u00e4"],
)
def test_unsafe_name_is_refused(serve: Serve, name: str) -> None:
    """A name that is not a plain file name is answered with an error, and nothing is stored."""
    server = serve("upload")
    before = files(server)
    with server.connect("/rooms/a") as client:
        send_header(client, b"", name=name)
        assert receive(client)["details"][0]["loc"] == ["name"]
    assert files(server) == before


@pytest.mark.parametrize("changed", [{"size_bytes": MAX_FILE_BYTES + 1}, {"size_bytes": -1}, {"sha256": "00"}])
def test_wrong_header_is_answered(serve: Serve, changed: dict[str, Any]) -> None:
    """A size over the limit, or an invalid checksum, is refused before any content."""
    with serve("upload").connect("/rooms/a") as client:
        send_header(client, b"", **changed)
        assert receive(client)["error"] == "invalid message"


def test_wrong_checksum_is_answered_and_nothing_is_stored(serve: Serve) -> None:
    """Content that differs from its header is removed, and may be sent again."""
    server = serve("upload")
    before = files(server)
    with server.connect("/rooms/a") as client:
        send_header(client, b"hello", sha256="0" * 64)
        send_content(client, b"hello")
        assert "sha256" in receive(client)["error"]
        assert files(server) == before
        send_header(client, b"hello")
        send_content(client, b"hello")
        assert "stored" in receive(client)


def test_more_than_announced_closes_with_1009(serve: Serve) -> None:
    """Content above the announced size ends the connection, and nothing is stored."""
    server = serve("upload")
    before = files(server)
    with server.connect("/rooms/a") as client:
        send_header(client, b"hello")
        client.send(b"hello!")
        assert received_close_code(client) == 1009
    server.wait_until_idle()
    assert files(server) == before


@pytest.mark.parametrize("text", ['{"end": true}', "no marker", '{"end": false}'])
def test_text_within_the_content_closes_with_1007(serve: Serve, text: str) -> None:
    """An early end marker, or any other text, ends the connection."""
    server = serve("upload")
    before = files(server)
    with server.connect("/rooms/a") as client:
        send_header(client, b"hello")
        client.send(b"hell")
        client.send(text)
        assert received_close_code(client) == 1007
    server.wait_until_idle()
    assert files(server) == before


def test_sender_that_vanishes_leaves_nothing(serve: Serve) -> None:
    """The part of a file whose sender was cut is removed."""
    server = serve("upload")
    before = files(server)
    with server.connect("/rooms/a") as client:
        send_header(client, b"hello")
        client.send(b"hell")
        wait_until(lambda: files(server) != before, "the part is there", seconds=SECONDS)
        client.socket.close()
    server.wait_until_idle()
    wait_until(lambda: files(server) == before, "the part is gone", seconds=SECONDS)
