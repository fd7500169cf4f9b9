"""`backplane.metrics.question`: one line, one answer, a second at most, whatever a sibling sends."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backplane.metrics import question
from backplane.metrics.question import GoneError, answer, ask
from backplane.unix_sockets.sockets import bind_socket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator

pytestmark = pytest.mark.anyio


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="si") as path:
        yield Path(path)


@asynccontextmanager
async def sibling(
    directory: Path, serve: Callable[[socket.socket], Coroutine[object, object, None]]
) -> AsyncGenerator[Path]:
    """Listen as a sibling does, and serve each connection in a task."""
    loop = asyncio.get_running_loop()
    listener, name = bind_socket(directory, 8)

    async def accept() -> None:
        while True:
            connection, _ = await loop.sock_accept(listener)
            connection.setblocking(False)
            await serve(connection)

    task = asyncio.create_task(accept())
    try:
        yield directory / name
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        listener.close()


def sending(*pieces: bytes) -> Callable[[socket.socket], Coroutine[object, object, None]]:
    """Return what reads the question, sends these pieces, and ends the connection."""

    async def serve(connection: socket.socket) -> None:
        with connection:
            loop = asyncio.get_running_loop()
            await loop.sock_recv(connection, 100)
            for piece in pieces:
                try:
                    await loop.sock_sendall(connection, piece)
                except OSError:
                    return

    return serve


async def test_answer(directory: Path) -> None:
    """The answer is what the sibling makes, however large it is within the bound."""
    text = json.dumps({"metrics": "x" * 500_000}).encode()

    async def serve(connection: socket.socket) -> None:
        await answer(connection, lambda: text)

    async with sibling(directory, serve) as path:
        assert await ask(path) == text + b"\n"


async def test_too_much(directory: Path) -> None:
    """A sibling that goes on sending is cut at the bound."""
    async with sibling(directory, sending(*[b"x" * 65536] * 17, b"\n")) as path:
        with pytest.raises(ValueError, match="larger than 1048576"):
            await ask(path)


@pytest.mark.parametrize("pieces", [[], [b'{"metrics": '], [b""]])
async def test_an_answer_that_ends_early(directory: Path, pieces: list[bytes]) -> None:
    """A sibling that ends the connection and still listens has not answered."""
    async with sibling(directory, sending(*pieces)) as path:
        with pytest.raises(ConnectionResetError):
            await ask(path)


async def test_killed_while_it_answers(directory: Path) -> None:
    """A sibling that is gone after its connection has ended is gone, and not missing; its socket is removed."""
    listener, name = bind_socket(directory, 8)
    loop = asyncio.get_running_loop()
    asking = asyncio.create_task(ask(directory / name))
    connection, _ = await loop.sock_accept(listener)
    listener.close()
    connection.close()
    with pytest.raises(GoneError):
        await asking
    assert list(directory.iterdir()) == []


async def test_gone(directory: Path) -> None:
    """A socket on which no process listens any more is removed; one that is not there is no error."""
    listener, name = bind_socket(directory, 8)
    listener.close()
    for _ in range(2):
        with pytest.raises(GoneError):
            await ask(directory / name)
    assert list(directory.iterdir()) == []


async def test_no_answer(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped accepts no connection, which the kernel makes all the same: the time is limited."""
    monkeypatch.setattr(question, "ANSWER_SECONDS", 0.05)
    listener, name = bind_socket(directory, 0)
    with listener:
        with pytest.raises(TimeoutError):
            await ask(directory / name)
        outcomes = await asyncio.gather(*(ask(directory / name) for _ in range(4)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {TimeoutError, BlockingIOError}
    assert BlockingIOError in {type(outcome) for outcome in outcomes}


@pytest.mark.parametrize("asked", [b"metrics", b"GET / HTTP/1.1\r\n\r\n", b"\n", b"\xff" * 1000, b""])
async def test_other_questions(asked: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that asks anything else, or nothing, gets no answer, and is not waited for long."""
    monkeypatch.setattr(question, "ANSWER_SECONDS", 0.05)
    ours, theirs = socket.socketpair()
    with ours:
        for each in (ours, theirs):
            each.setblocking(False)
        ours.sendall(asked)
        if not asked:
            ours.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(10):
            await answer(theirs, lambda: pytest.fail("was answered"))
            assert theirs.fileno() == -1


async def test_a_question_in_pieces() -> None:
    """A line is a line however it arrives."""
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    with ours:
        for each in (ours, theirs):
            each.setblocking(False)
        answering = asyncio.create_task(answer(theirs, lambda: b"{}"))
        for piece in (b"met", b"rics", b"\n"):
            ours.sendall(piece)
            await asyncio.sleep(0)
        assert await loop.sock_recv(ours, 10) == b"{}\n"
        await answering


async def test_a_sibling_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that asks and then reads nothing costs a moment."""
    monkeypatch.setattr(question, "ANSWER_SECONDS", 0.05)
    ours, theirs = socket.socketpair()
    with ours:
        for each in (ours, theirs):
            each.setblocking(False)
        ours.sendall(b"metrics\n")
        async with asyncio.timeout(10):
            await answer(theirs, lambda: b"x" * 10_000_000)
