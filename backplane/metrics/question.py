"""The question of one worker to a sibling, and its answer: one line there, one object of JSON back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from backplane.concurrency.timeouts import PatientTimeout
from backplane.unix_sockets.sockets import connect_socket, remove_stale

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["ANSWER_SECONDS", "MAX_ANSWER_BYTES", "GoneError", "answer", "ask"]

ANSWER_SECONDS: Final = 1.0
"""How long a sibling may take: one that is stopped, or whose event loop is blocked, does not answer at all."""

MAX_ANSWER_BYTES: Final = 1024 * 1024
"""The largest answer: a hundred times of what a worker has to report."""

_QUESTION: Final = b"metrics\n"
_PIECE_BYTES: Final = 64 * 1024


class GoneError(Exception):
    """No process listens on the socket: the sibling has ended."""


async def ask(path: Path) -> bytes:
    """Return what the sibling that listens on `path` answers.

    Raises:
        GoneError: It has ended; its socket is removed.
        TimeoutError: It did not answer within a second.
        OSError: It could not be asked, or ended the connection.
        ValueError: Its answer is too large.
    """
    loop = asyncio.get_running_loop()
    with _connect(path) as connection:
        try:
            async with PatientTimeout(ANSWER_SECONDS):
                await loop.sock_sendall(connection, _QUESTION)
                return await _read(loop, connection, MAX_ANSWER_BYTES)
        except ConnectionError:
            _connect(path).close()  # refused where it was killed meanwhile
            raise


async def answer(connection: socket.socket, make: Callable[[], bytes]) -> None:
    """Read the question from a connection that is accepted, write what `make` returns, and close.

    A process that asks anything else, or does not read, is left without an answer.
    """
    loop = asyncio.get_running_loop()
    with connection:
        try:
            async with PatientTimeout(ANSWER_SECONDS):
                question = b""
                while not question.endswith(b"\n") and len(question) <= len(_QUESTION):
                    piece = await loop.sock_recv(connection, len(_QUESTION))
                    if not piece:
                        return
                    question += piece
                if question == _QUESTION:
                    await loop.sock_sendall(connection, make() + b"\n")
        except OSError:  # a TimeoutError is one
            return


def _connect(path: Path) -> socket.socket:
    try:
        return connect_socket(path)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        remove_stale(path)
        raise GoneError from error


async def _read(loop: asyncio.AbstractEventLoop, connection: socket.socket, most: int) -> bytes:
    data = bytearray()
    while piece := await loop.sock_recv(connection, _PIECE_BYTES):
        data += piece
        if len(data) > most:
            raise ValueError(f"the answer is larger than {most} bytes")
    if not data.endswith(b"\n"):
        raise ConnectionResetError("the answer ended too early")
    return bytes(data)
