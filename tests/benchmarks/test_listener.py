"""The audience of the benchmarks, on a socket whose other end says exactly what the test wants."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from benchmarks.harness.listener import Listener
from benchmarks.harness.tally import Tally, Window
from benchmarks.harness.text import text
from benchmarks.harness.websocket import PLAIN

if TYPE_CHECKING:
    from collections.abc import Generator

RUN = "abcdefgh"
SIZE = 128
PING = b"\x89\x00"


@pytest.fixture
def pair() -> Generator[tuple[Listener, socket.socket]]:
    """A listener with one client, and the server's end of it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ends: list[socket.socket] = []

        def accept() -> None:
            end, _ = server.accept()
            end.recv(65536)
            end.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            ends.append(end)

        accepting = threading.Thread(target=accept)
        accepting.start()
        listener = Listener(RUN, 0, Tally(Window(0, 1 << 40), 1, 1), deflate=False)
        listener.open(server.getsockname()[1], [0], PLAIN, may_fail=False)
        accepting.join()
        yield listener, ends[0]
        listener.close([0])
        ends[0].close()


def frame(sequence: int) -> bytes:
    """Return a message as a server frames it."""
    return bytes((0x81, 126)) + SIZE.to_bytes(2, "big") + text(RUN, 0, 0, sequence, 0, SIZE).encode()


def heard(listener: Listener, count: int) -> tuple[int, int, int, int]:
    """Listen until `count` deliveries were counted; return them, and what was missing, doubled and out of order."""
    while listener.tally.deliveries < count:
        listener.listen(5)
        listener.look()
    counted = listener.result()
    return listener.tally.deliveries, counted.missing, counted.duplicates, counted.reordered


def test_ping_in_front_of_a_full_read(pair: tuple[Listener, socket.socket]) -> None:
    """A ping shifts what stands behind it; a read that has the size of whole frames all the same is taken apart."""
    listener, end = pair
    end.sendall(frame(0))
    assert heard(listener, 1) == (1, 0, 0, 0)
    end.sendall(PING + b"".join(frame(sequence) for sequence in range(1, 1500)) + PING)
    assert heard(listener, 1500) == (1500, 0, 0, 0)
    end.sendall(b"".join(frame(sequence) for sequence in range(1500, 3000)))
    assert heard(listener, 3000) == (3000, 0, 0, 0)
    end.settimeout(5)
    assert end.recv(64)[0] == 0x8A  # a pong


def test_frames_cut_anywhere(pair: tuple[Listener, socket.socket]) -> None:
    """What ends inside a frame is joined with what comes behind it."""
    listener, end = pair
    end.sendall(frame(0))
    assert heard(listener, 1) == (1, 0, 0, 0)
    for cut in (1, 2, 4, 100, SIZE + 3):
        words = frame(2 * cut) + frame(2 * cut + 1)
        end.sendall(words[:cut])
        listener.listen(5)
        end.sendall(words[cut:])
        before = listener.tally.deliveries
        while listener.tally.deliveries < before + 2 - (cut > SIZE):
            listener.listen(5)
            listener.look()
    assert listener.tally.deliveries == 11
