"""examples/upload.py."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from tests.brokers.process import wait_until
from tests.examples.site import SECONDS, code_of_end

if TYPE_CHECKING:
    from pathlib import Path

    from websockets.sync.client import ClientConnection

    from tests.examples.conftest import Serve
    from tests.examples.site import Site

MAX_FILE_BYTES = 10 * 1024 * 1024


def send_header(client: ClientConnection, content: bytes, *, name: str = "a.bin", **changed: Any) -> None:
    """Announce a file."""
    header = {"name": name, "size_bytes": len(content), "sha256": sha256(content).hexdigest()}
    client.send(json.dumps({**header, **changed}))


def send_content(client: ClientConnection, content: bytes, *, chunk: int = 50_000) -> None:
    """Send the content in chunks, and the end marker."""
    for start in range(0, len(content), chunk):
        client.send(content[start : start + chunk])
    client.send(json.dumps({"end": True}))


def hear(client: ClientConnection) -> Any:
    """Return what is answered."""
    return json.loads(client.recv(timeout=SECONDS))


def files(site: Site) -> list[str]:
    """Return the names of all files that are there, finished or not."""
    return sorted(path.name for path in uploads(site).glob("*"))


def uploads(site: Site) -> Path:
    """Return where the files are."""
    return site.folder / "uploads"


@pytest.mark.parametrize("size", [0, 1, 123_456, MAX_FILE_BYTES])
def test_file_is_stored_and_the_room_is_told(serve: Serve, size: int) -> None:
    """What was sent in chunks stands in one file; the sender is answered, the rest of the room told, once each."""
    content = bytes(number % 251 for number in range(size))
    stored = f"{sha256(content).hexdigest()[:16]}-a.bin"
    site = serve("upload")
    with site.connect("/rooms/a") as sender, site.connect("/rooms/a") as listener:
        send_header(sender, content)
        send_content(sender, content)
        assert hear(sender) == {"stored": stored}
        assert hear(listener) == {"uploaded": stored, "size_bytes": size}
        # The sender's next answer is that of its next file: it was not told of its own.
        send_header(sender, b"x", name="b.bin")
        send_content(sender, b"x")
        assert hear(sender)["stored"].endswith("-b.bin")
    assert (uploads(site) / stored).read_bytes() == content


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "/etc/passwd", "a/b", "a\\b", ".hidden", "a\nb", "a\x00b", "x" * 101, "a;b", "\u00e4"],
)
def test_unsafe_name_is_refused(serve: Serve, name: str) -> None:
    """A name that is more than a plain one is answered with an error, and nothing is kept."""
    site = serve("upload")
    before = files(site)
    with site.connect("/rooms/a") as client:
        send_header(client, b"", name=name)
        assert hear(client)["details"][0]["loc"] == ["name"]
    assert files(site) == before


@pytest.mark.parametrize("changed", [{"size_bytes": MAX_FILE_BYTES + 1}, {"size_bytes": -1}, {"sha256": "00"}])
def test_wrong_header_is_answered(serve: Serve, changed: dict[str, Any]) -> None:
    """A size over the limit, or what is no checksum, is refused before any content."""
    with serve("upload").connect("/rooms/a") as client:
        send_header(client, b"", **changed)
        assert hear(client)["error"] == "invalid message"


def test_wrong_checksum_is_answered_and_nothing_is_kept(serve: Serve) -> None:
    """Content that is not what was announced is thrown away, and may be sent again."""
    site = serve("upload")
    before = files(site)
    with site.connect("/rooms/a") as client:
        send_header(client, b"hello", sha256="0" * 64)
        send_content(client, b"hello")
        assert "sha256" in hear(client)["error"]
        assert files(site) == before
        send_header(client, b"hello")
        send_content(client, b"hello")
        assert "stored" in hear(client)


def test_more_than_announced_closes_with_1009(serve: Serve) -> None:
    """Content above the announced size ends the connection, and nothing is kept."""
    site = serve("upload")
    before = files(site)
    with site.connect("/rooms/a") as client:
        send_header(client, b"hello")
        client.send(b"hello!")
        assert code_of_end(client) == 1009
    site.wait_until_idle()
    assert files(site) == before


@pytest.mark.parametrize("text", ['{"end": true}', "no marker", '{"end": false}'])
def test_text_amid_the_content_closes_with_1007(serve: Serve, text: str) -> None:
    """An end marker that comes too early, or anything else that is text, ends the connection."""
    site = serve("upload")
    before = files(site)
    with site.connect("/rooms/a") as client:
        send_header(client, b"hello")
        client.send(b"hell")
        client.send(text)
        assert code_of_end(client) == 1007
    site.wait_until_idle()
    assert files(site) == before


def test_sender_that_vanishes_leaves_nothing(serve: Serve) -> None:
    """The part of a file whose sender was cut is removed."""
    site = serve("upload")
    before = files(site)
    with site.connect("/rooms/a") as client:
        send_header(client, b"hello")
        client.send(b"hell")
        wait_until(lambda: files(site) != before, "the part is there", seconds=SECONDS)
        client.socket.close()
    site.wait_until_idle()
    wait_until(lambda: files(site) == before, "the part is gone", seconds=SECONDS)
