"""`backplane.unix_sockets.listener`: accepts until it is closed, and survives a process without descriptors."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING

import pytest

from backplane.unix_sockets.listener import Listener
from backplane.unix_sockets.sockets import connect_socket, list_sockets

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_accepts_until_closed(directory: Path) -> None:
    """Each connection is passed on; after the close the socket is gone, and a second close changes nothing."""
    accepted: asyncio.Queue[socket.socket] = asyncio.Queue()
    listener = Listener(asyncio.get_running_loop(), directory, accepted.put_nowait, group="0a-")
    assert list_sockets(directory, "0a-") == [listener.name]
    with connect_socket(directory / listener.name) as ours:
        async with asyncio.timeout(10):
            theirs = await accepted.get()
        with theirs:
            assert not theirs.getblocking()
            theirs.send(b"x")
            assert ours.recv(1) == b"x"
    listener.close()
    listener.close()
    assert list_sockets(directory, "0a-") == []
    with pytest.raises(FileNotFoundError):
        connect_socket(directory / listener.name)


async def test_out_of_descriptors(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a free descriptor it waits a moment instead of spinning, and accepts then."""
    accepted: asyncio.Queue[socket.socket] = asyncio.Queue()
    tries = 0
    real_accept = socket.socket.accept

    def accept(self: socket.socket) -> tuple[socket.socket, object]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return real_accept(self)

    monkeypatch.setattr("backplane.unix_sockets.listener._PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(socket.socket, "accept", accept)
    listener = Listener(asyncio.get_running_loop(), directory, accepted.put_nowait)
    try:
        with connect_socket(directory / listener.name):
            async with asyncio.timeout(10):
                (await accepted.get()).close()
    finally:
        listener.close()
    assert f"cannot accept on {listener.name} (Too many open files), trying again in a second" in caplog.text


async def test_closed_by_what_it_accepts(directory: Path) -> None:
    """A close while connections wait to be accepted accepts no more of them."""
    seen: list[socket.socket] = []
    closed = asyncio.Event()

    def accept(connection: socket.socket) -> None:
        seen.append(connection)
        listener.close()
        closed.set()

    listener = Listener(asyncio.get_running_loop(), directory, accept)
    waiting = [connect_socket(directory / listener.name) for _ in range(2)]
    async with asyncio.timeout(10):
        await closed.wait()
    for connection in (*waiting, *seen):
        connection.close()
    assert len(seen) == 1
