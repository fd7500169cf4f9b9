"""README.md: its room is served by the command that stands there."""

from __future__ import annotations

from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tests.brokers.process import wait_until
from tests.docs.pages import Page, Reader, ports

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 60.0


def test_room_on_four_workers(tmp_path: Path) -> None:
    """Clients of the four workers receive what a request publishes on one of them."""
    with TemporaryDirectory(prefix="bp-") as folder, ExitStack() as stack:
        replaced = {"ipc://rooms": f"'ipc://rooms?peer_timeout_seconds=5&directory={folder}'", **ports("8000")}
        reader = Reader(page=Page("../README.md"), folder=tmp_path, replaced=replaced)
        reader.save("room")
        log = stack.enter_context(reader.running("BACKPLANE_URL=ipc://rooms"))
        started = "Application startup complete"
        wait_until(lambda: log.read_text().count(started) == 4, "four workers have started", seconds=SECONDS)
        clients = [stack.enter_context(reader.open("8000", "/rooms/kitchen")) for _ in range(8)]
        assert reader.ask("POST", "/rooms/kitchen?text=dinner")[0] == 200
        assert [client.recv(timeout=SECONDS) for client in clients] == ["dinner"] * len(clients)
