"""Doubles of `backplane.connection.socket`: a client that a test controls, by ASGI or on a direct lane."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from backplane.connection.sender import SocketGoneError
from backplane.web.framework_errors import framework_ending
from tests.unit.doubles import FakeHandedOverLane, FakeLane, Gate, messages_in

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from backplane.connection.connection import Connection
    from backplane.connection.driver import ConnectionDriver
    from backplane.connection.ending import Ending
    from backplane.connection.socket import Bypass, HandedOver
    from backplane.lane import LaneReceiver, LaneWriter

__all__ = ["ClientLane", "FakeServerSocket", "FakeSocket", "driver_of"]

_WAIT_SECONDS = 60.0


def driver_of(connection: Connection) -> ConnectionDriver:
    """Return what runs the connection, which an application does not see."""
    return connection._driver  # pyright: ignore[reportPrivateUsage]


class ClientLane(FakeHandedOverLane):
    """A lane whose transport takes one write, and pauses with it, while the client does not read.

    It is the lane before and after it is handed over.
    """

    def __init__(self, socket: FakeSocket) -> None:
        super().__init__(FakeLane(), None)
        self.on_write = self._take
        self._socket = socket
        self._held: list[str | bytes] = []
        self._reads = True

    def attach(self, user: LaneWriter, /) -> None:
        """Take the user."""
        FakeLane.attach(self, user)

    def hand_over(self, receiver: LaneReceiver, /) -> ClientLane | None:
        """Go on as the same object."""
        if self.ended or self._user is None or self.is_read_from:
            return None
        self._receiver = receiver
        return self

    def stop_reading(self) -> None:
        """Pause at the next write."""
        self._reads = False

    def go_on_reading(self) -> None:
        """Hand over what the transport holds, and take more."""
        self._reads = True
        held, self._held = self._held, []
        self._socket.taken(*held)
        self.resume()

    def _take(self, frames: bytes) -> None:
        self._socket.sending += 1
        if self._reads:
            return self._socket.taken(*messages_in(frames))
        self._held += messages_in(frames)
        self._socket.taken()
        self.pause()


class ArrivingOnLane(asyncio.Queue["str | bytes | Exception | None"]):
    """What a client sends that was handed over."""

    def __init__(self, lane: ClientLane) -> None:
        super().__init__()
        self._lane = lane

    def put_nowait(self, item: str | bytes | Exception | None) -> None:
        """Let it arrive; `None` is the client's end."""
        assert not isinstance(item, Exception), "a lane receives no errors"
        if item is None:
            self._lane.leave()
        else:
            self._lane.arrive(item)


class LaneGate(Gate):
    """The gate of a client's reading, on a lane."""

    def __init__(self, lane: ClientLane) -> None:
        super().__init__()
        self._lane = lane

    def close(self) -> None:
        """Read nothing more."""
        self._lane.stop_reading()

    def open(self) -> None:
        """Read everything."""
        self._lane.go_on_reading()


class FakeSocket:
    """A client under the test's control.

    Attributes:
        sent: What reached the client.
        closed: Every `(code, reason)` that reached the client.
        send_gate: Holds `send`: closed, the client does not read.
        close_gate: Holds `close`.
        sending: How many calls of `send` were begun.
        closing: How many calls of `close` were begun.
        lane: The server's direct lane, if it has one; what is written there reaches the client as if it were sent.
        error: What `send` raises once it is through the gate, if anything.
        close_error: What `close` raises once it is through the gate, if anything.
        receiver: What the client sends; `None` is its end.
        reading_ahead: How often it was to be received for a handler that does not.
    """

    def __init__(self, *, lane: bool = False) -> None:
        self.lane = ClientLane(self) if lane else None
        self.sent: list[str | bytes] = []
        self.closed: list[tuple[int, str]] = []
        self.send_gate = Gate() if self.lane is None else LaneGate(self.lane)
        self.close_gate = Gate()
        self.sending = 0
        self.closing = 0
        self.error: Exception | None = None
        self.close_error: Exception | None = None
        self.receiver: asyncio.Queue[str | bytes | Exception | None] = asyncio.Queue()
        self.reading_ahead = 0
        self._changed = asyncio.Event()

    async def send(self, data: str | bytes) -> None:
        """Take one message, once the gate is open."""
        self.sending += 1
        self._changed.set()
        await self.send_gate.passage()
        if self.error is not None:
            raise self.error
        self.sent.append(data)
        self._changed.set()

    def hand_over(self, receiver: LaneReceiver, /) -> HandedOver | None:
        """Go on with callbacks where there is a lane: what the client sends arrives on the lane."""
        if self.lane is None or self.lane.hand_over(receiver) is None:
            return None
        self.receiver = ArrivingOnLane(self.lane)
        return cast("HandedOver", self)

    def is_gone(self, error: Exception) -> bool:
        """Return whether it is what a socket raises whose client is gone."""
        return isinstance(error, SocketGoneError)

    async def receive(self) -> str | bytes | None:
        """Return what the test put into `receiver`."""
        sent = await self.receiver.get()
        if isinstance(sent, Exception):
            raise sent
        return sent

    def on_bypass(self, receiver: Bypass, /) -> None:
        """Have no other way to receive."""

    def read_ahead(
        self, on_message: Callable[[float], None], on_end: Callable[[], None], /
    ) -> Coroutine[Any, Any, None] | None:
        """Return what waits for the client's end: its first message, in `FakeSocket`'s simple world."""
        self.reading_ahead += 1
        return None if self.reading_ahead > 1 else self._read_ahead(on_message, on_end)

    async def _read_ahead(self, on_message: Callable[[float], None], on_end: Callable[[], None]) -> None:
        if await self.receiver.get() is None:
            self.receiver.put_nowait(None)
            on_end()
        else:
            on_message(asyncio.get_running_loop().time())

    async def close(self, code: int, reason: str) -> None:
        """Take the close frame, once the gate is open."""
        self.closing += 1
        self._changed.set()
        await self.close_gate.passage()
        if self.close_error is not None:
            raise self.close_error
        self.closed.append((code, reason))
        if isinstance(self.receiver, ArrivingOnLane):
            cast("ClientLane", self.lane).close_with(code, reason)
        elif self.lane is not None:
            self.lane.end()
        self._changed.set()

    def ending(self, error: BaseException, /) -> Ending | None:
        """Know the errors of Starlette."""
        return framework_ending(error)

    def taken(self, *messages: str | bytes) -> None:
        """Keep what the client has received by its lane."""
        self.sent += messages
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is looked at after everything that happens to the socket."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def receives(self, *expected: str | bytes) -> None:
        """Wait until exactly `expected` was sent, in order."""
        await self.until(lambda: len(self.sent) >= len(expected))
        assert self.sent == list(expected)


class FakeServerSocket(FakeSocket):
    """A client whose handshake is not answered yet; on a page of its own host, unless a test sets another.

    Attributes:
        origin: As in `ServerSocket`, set by the test.
        host: As in `ServerSocket`, set by the test.
        address_key: As in `ServerSocket`, set by the test.
        accept_gate: Holds `accept`.
        accept_error: What `accept` raises once it is through the gate, if anything.
        accepting: How many calls of `accept` were begun.
        accepted: Every `(subprotocol, headers)` that reached the client.
        refusals: What the handshake was refused with.
    """

    def __init__(self, *, lane: bool = False) -> None:
        super().__init__(lane=lane)
        self.origin: str | None = "https://shop.example"
        self.host: str | None = "shop.example"
        self.address_key: bytes | None = bytes([192, 0, 2, 1])
        self.accept_gate = Gate()
        self.accept_error: Exception | None = None
        self.accepting = 0
        self.accepted: list[tuple[str | None, Iterable[tuple[bytes, bytes]] | None]] = []
        self.refusals: list[BaseException] = []

    async def left(self) -> None:
        """Wait for the client's end."""
        while await self.receive() is not None:
            pass

    async def refuse(self, refused: Ending) -> BaseException:
        """Keep what the handshake is refused with."""
        assert refused.error is not None
        self.refusals.append(refused.error)
        return refused.error

    async def refuse_after_accept(self, refused: Ending, subprotocol: str | None) -> BaseException:
        """Accept, close, and keep why."""
        await self.accept(subprotocol, None)
        self.closed.append((refused.code, refused.reason))
        return await self.refuse(refused)

    def when_gone(self, callback: Callable[[], None], /) -> None:
        """Have no transport that outlives the handler."""
        callback()

    async def accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]] | None) -> None:
        """Finish the handshake, once the gate is open."""
        self.accepting += 1
        self._changed.set()
        await self.accept_gate.passage()
        if self.accept_error is not None:
            raise self.accept_error
        self.accepted.append((subprotocol, headers))
        self._changed.set()
