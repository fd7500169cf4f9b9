"""The audience of the benchmarks, on a socket whose other end sends exactly what the test wants."""

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


def frame(sequence: int, size: int = SIZE, run: str = RUN) -> bytes:
    """Return a message as a server frames it."""
    length = bytes((126,)) + size.to_bytes(2, "big") if size < 65536 else bytes((127,)) + size.to_bytes(8, "big")
    return b"\x81" + length + text(run, 0, 0, sequence, 0, size).encode()


def received(listener: Listener, count: int) -> tuple[int, int, int, int]:
    """Listen until `count` deliveries were counted; return them, and what was missing, doubled and out of order."""
    while listener.tally.deliveries < count:
        listener.listen(5)
        listener.count_reads()
    counted = listener.result()
    return listener.tally.deliveries, counted.missing, counted.duplicates, counted.reordered


def test_ping_in_front_of_a_full_read(pair: tuple[Listener, socket.socket]) -> None:
    """A ping shifts the frames after it; a read that nevertheless has the size of whole frames is parsed."""
    listener, end = pair
    end.sendall(frame(0))
    assert received(listener, 1) == (1, 0, 0, 0)
    end.sendall(PING + b"".join(frame(sequence) for sequence in range(1, 1500)) + PING)
    assert received(listener, 1500) == (1500, 0, 0, 0)
    end.sendall(b"".join(frame(sequence) for sequence in range(1500, 3000)))
    assert received(listener, 3000) == (3000, 0, 0, 0)
    end.settimeout(30)
    assert end.recv(64)[0] == 0x8A  # a pong


def test_frames_cut_anywhere(pair: tuple[Listener, socket.socket]) -> None:
    """A read that ends inside a frame is joined with the one after it."""
    listener, end = pair
    end.sendall(frame(0))
    assert received(listener, 1) == (1, 0, 0, 0)
    for cut in (1, 2, 4, 100, SIZE + 3):
        data = frame(2 * cut) + frame(2 * cut + 1)
        end.sendall(data[:cut])
        listener.listen(5)
        end.sendall(data[cut:])
        before = listener.tally.deliveries
        while listener.tally.deliveries < before + 2 - (cut > SIZE):
            listener.listen(5)
            listener.count_reads()
    assert listener.tally.deliveries == 11


LONG = 65536
LONG_FRAME = LONG + 10
ODD = b"\x81\x05hello"


@pytest.mark.parametrize("cut", [1, 2, 9, 41, 42, 43, 5000, LONG_FRAME - 1, LONG_FRAME, LONG_FRAME + 3])
def test_long_frames_cut_anywhere(pair: tuple[Listener, socket.socket], cut: int) -> None:
    """Of a long frame only the beginning is kept, wherever the reads end; pings and other texts may come between."""
    listener, end = pair
    # From the first one the listener learns the size, and inside the second it changes to reading beginnings only.
    first = b"".join(frame(sequence, LONG) for sequence in range(3))
    data = first + PING + frame(3, LONG) + ODD + PING + frame(4, LONG) + frame(5, LONG) + ODD
    end.sendall(data[: LONG_FRAME + cut])
    assert received(listener, 1)[1:] == (0, 0, 0)
    end.sendall(data[LONG_FRAME + cut : 4 * LONG_FRAME + cut])
    listener.listen(5)
    end.sendall(data[4 * LONG_FRAME + cut :])
    assert received(listener, 6) == (6, 0, 0, 0)
    while len(listener.clients[0].other_texts) < 2:
        listener.listen(5)
        listener.count_reads()
    assert listener.clients[0].other_texts == [b"hello", b"hello"]
    assert (listener.clients[0].rest, listener.clients[0].unread) == (b"", 0)


def test_long_frames_of_another_run(pair: tuple[Listener, socket.socket]) -> None:
    """They are texts like others, whatever their size; and a close after them is noticed."""
    listener, end = pair
    end.sendall(frame(0, LONG) + frame(1, LONG, "hgfedcba") + frame(0, 2 * LONG, "hgfedcba") + frame(1, LONG))
    assert received(listener, 2) == (2, 0, 0, 0)
    assert [len(each) for each in listener.clients[0].other_texts] == [LONG, 2 * LONG]
    end.sendall(frame(2, LONG) + b"\x88\x02\x03\xe8")
    assert received(listener, 3) == (3, 0, 0, 0)
    while listener.clients[0].closed is None:
        listener.listen(5)
    assert listener.closed() == {1000: 1}


def test_a_long_frame_that_never_ends(pair: tuple[Listener, socket.socket]) -> None:
    """It is not counted, and its client has ended without a code."""
    listener, end = pair
    end.sendall(frame(0, LONG) + frame(1, LONG)[:-1])
    assert received(listener, 1) == (1, 0, 0, 0)
    end.close()
    while listener.clients[0].closed is None:
        listener.listen(5)
    listener.count_reads()
    assert (listener.tally.deliveries, listener.closed()) == (1, {0: 1})
