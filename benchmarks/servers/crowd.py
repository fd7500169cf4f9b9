"""Clients in the memory of the worker, without sockets: it can have more of them than the system permits it files.

Each is the transport of Uvicorn's protocol: it hands in a handshake, takes what is written to it, and answers pings and
a close as `harness.sockets.Client` does. Only the kernel and the event loop's transport are left out; what the client
does is counted with the worker's own work.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import uvicorn

from benchmarks.harness.websocket import CLOSE, PING, PONG, client_frame, frames, request

__all__ = ["Crowd", "opened", "result_path", "write_result"]

_AT_ONCE: Final = 64
_FILE: Final = "crowd.json"


@dataclass(slots=True)
class Crowd:
    """All of them together.

    Attributes:
        opened: How many have been accepted.
        reached: How many of these have received a message.
        pings: How many pings they have answered.
        closed: How many were closed, by code; 0 is an end without a close frame.
        last_closed: When the last one was, by the monotonic clock, which the processes of a host share.
    """

    opened: int = 0
    reached: int = 0
    pings: int = 0
    closed: dict[int, int] = field(default_factory=dict[int, int])
    last_closed: float = 0.0


_crowd = Crowd()


class _Client(asyncio.Transport):
    __slots__ = ("_closing", "_loop", "_protocol", "_reading", "_state")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self._loop = loop
        self._protocol: Any = None
        self._closing = False
        self._reading = True
        self._state = "opening"

    def start(self, protocol: asyncio.Protocol, path: str) -> None:
        """Connect, and send the handshake."""
        self._protocol = protocol
        protocol.connection_made(self)
        protocol.data_received(request(path, 2))

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Take what the server has written, whole frames each time."""
        if self._state == "opening":
            if not data.startswith(b"HTTP/1.1 101"):  # type: ignore[union-attr]  # of a protocol it is bytes
                raise RuntimeError(f"a client was refused: {bytes(data[:200])!r}")
            self._state = "open"
            _crowd.opened += 1
            data = bytes(data).partition(b"\r\n\r\n")[2]
        for frame in frames(bytes(data))[0]:
            if frame.opcode == PING:
                _crowd.pings += 1
                self._loop.call_soon(self._answer, client_frame(frame.payload, PONG))
            elif frame.opcode == CLOSE:
                self._end(int.from_bytes(frame.payload[:2], "big"))
                self._loop.call_soon(self._answer, client_frame(frame.payload[:2], CLOSE))
            elif self._state == "open":
                self._state = "reached"
                _crowd.reached += 1

    def _answer(self, frame: bytes) -> None:
        if not self._closing:
            self._protocol.data_received(frame)

    def _end(self, code: int) -> None:
        if self._state != "closed":
            self._state = "closed"
            _crowd.closed[code] = _crowd.closed.get(code, 0) + 1
            _crowd.last_closed = time.monotonic()

    def close(self) -> None:
        """Be closed by the server."""
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._lost)

    abort = close

    def _lost(self) -> None:
        self._end(0)
        protocol, self._protocol = self._protocol, None
        protocol.connection_lost(None)

    def is_closing(self) -> bool:
        """Whether the server has closed it."""
        return self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Serve it by another protocol from now on."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return what serves it."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def get_write_buffer_size(self) -> int:
        """Nothing waits: all is taken at once."""
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing: nothing waits."""

    def is_reading(self) -> bool:
        """Whether the server reads from it."""
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        """Be read no more; it sends answers all the same, which are few."""
        self._reading = False

    def resume_reading(self) -> None:
        """Be read again."""
        self._reading = True


async def opened(path: str, count: int) -> Crowd:
    """Connect `count` more to `path`, each accepted when this returns; return what is counted by now."""
    server = next(each for each in gc.get_objects() if isinstance(each, uvicorn.Server))
    config, loop, target = server.config, asyncio.get_running_loop(), _crowd.opened + count
    protocol: Any = config.http_protocol_class
    for start in range(target - count, target, _AT_ONCE):
        for _ in range(min(_AT_ONCE, target - start)):
            made = protocol(config=config, server_state=server.server_state, app_state=server.lifespan.state)
            _Client(loop).start(made, path)
        while _crowd.opened < min(start + _AT_ONCE, target):  # noqa: ASYNC110  # an event for each would cost more
            await asyncio.sleep(0)
    return _crowd


def result_path(stalls: Path) -> Path:
    """Return where the result is, beside the folder of `servers.stall`."""
    return stalls.with_name(_FILE)


def write_result() -> None:
    """Write what was counted, for the harness, which cannot ask for it after a drain."""
    if _crowd.opened:
        result_path(Path(os.environ["BENCH_STALLS"])).write_text(json.dumps(asdict(_crowd)))
