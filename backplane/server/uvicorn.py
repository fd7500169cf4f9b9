"""Uvicorn with the direct lane: `uvicorn app:app --ws backplane.server.uvicorn:DirectLaneProtocol`.

Handshake, closing, pings, limits and the access log stay Uvicorn's; what a client may cost is bounded. The parts of
Uvicorn it uses beyond the documented interface are checked at the first connection: where one is missing, the class is
Uvicorn's own protocol, bounded by `backplane.server.transport` alone.
"""

from __future__ import annotations

import asyncio
import logging
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

from backplane.errors import LifecycleError, MissingDependencyError
from backplane.journal.events import SERVER_MISFIT
from backplane.journal.writing import write
from backplane.lane import EXTENSION, TRANSPORT
from backplane.server.transport import BoundedProtocol
from backplane.server.transport_lane import TransportLane

try:
    from uvicorn import __version__ as uvicorn_version
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
    from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
    from websockets.protocol import State
    from websockets.server import ServerProtocol

    from backplane.server.handed_over import ANSWER_SECONDS, MAX_SIZE, PONG, HandedOverProtocol, close_code_of, is_text
except ImportError as _error:
    raise MissingDependencyError(
        f"the direct lane needs uvicorn and websockets ({_error}): pip install 'uvicorn>=0.52.4' 'websockets>=14'"
    ) from _error

if TYPE_CHECKING:
    from websockets.frames import Frame

    from backplane.lane import HandedOverLane, LaneReceiver, LaneWriter

__all__ = ["DirectLaneProtocol", "SharedCompressionProtocol"]

logger: Final = logging.getLogger("backplane.server.uvicorn")

_STATE: Any = getattr(ServerProtocol, "state", None)


_END_OF_REQUEST: Final = b"\r\n\r\n"


class DirectLaneProtocol(BoundedProtocol, WebSocketsSansIOProtocol):
    """Uvicorn's protocol, with a `backplane.lane.Lane` in the scope of every WebSocket, and bounds on its cost."""

    _offers_lane: bool | None = None  # for the whole process; unknown before the first connection
    _lane: _UvicornLane | None = None
    _pong: bytes | None = None
    _is_read_from: bool = False  # bytes have come since the request of the handshake

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.close_timeout = ANSWER_SECONDS
        if DirectLaneProtocol._offers_lane is None:
            DirectLaneProtocol._offers_lane = _has_all_it_needs(self)

    # Not `async`: its frame would stay in memory as long as the connection.
    def run_asgi(self) -> Any:
        """Put the lane into the scope before the application runs."""
        if self._offers_lane:
            self._lane = _UvicornLane(self, self.conn, self.transport, self.loop.time())
            _observe(self.conn, self._lane)
            extensions: dict[str, Any] = self.scope.setdefault("extensions", {})
            extensions |= {EXTENSION: self._lane, TRANSPORT: self.client_transport}
        return super().run_asgi()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """End the lane with the application: Uvicorn has closed the transport, perhaps without a close frame."""
        super().on_task_complete(task)
        self._end_lane()

    def data_received(self, data: bytes) -> None:
        """Note the time of the client's last bytes."""
        if self._lane is not None:
            self._lane.last_received_at = self.loop.time()
        self._is_read_from = self.handshake_initiated or not data.endswith(_END_OF_REQUEST)
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            # websockets has refused the complete request, and Uvicorn waits for more of it.
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def eof_received(self) -> None:
        """End the lane: the transport closes once its buffer is written."""
        self._end_lane()
        super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the lane, if it has not ended before."""
        self._end_lane()
        super().connection_lost(exc)
        self.writable.set()  # Uvicorn does so itself from 0.53 on

    def pause_writing(self) -> None:
        """Stop the lane's writer, and let an awaited `send` wait."""
        super().pause_writing()
        if self._lane is not None:
            self.writable.clear()  # Uvicorn does so itself from 0.53 on
            self._lane.set_writable(False)

    def resume_writing(self) -> None:
        """Write a waiting pong, then resume the lane; an awaited `send` goes on unless the buffer is full again."""
        pong, self._pong = self._pong, None
        if pong is not None and self.conn.state is State.OPEN:
            self.transport.write(pong)
        if self._lane is None or self._lane.set_writable(True):
            super().resume_writing()
            self.writable.set()

    def handle_ping(self) -> None:
        """Answer a ping; for a client that does not read, only the last one (RFC 6455, section 5.5.3)."""
        if not self._offers_lane or self.writable.is_set():
            return super().handle_ping()
        output = self.conn.data_to_send()
        self._pong = next((frame for frame in reversed(output) if frame.startswith(PONG)), self._pong)
        return self.transport.write(b"".join(frame for frame in output if not frame.startswith(PONG)))

    def handle_cont(self, event: Frame) -> None:
        """Append a fragment to those before it: Uvicorn would keep an object for each, even an empty one."""
        if event.fin or not self._offers_lane:
            super().handle_cont(event)
        elif len(self.frames) == 1:
            self.frames.append(bytearray(event.data))  # type: ignore[arg-type]  # joined later, which works for any bytes-like object
        else:
            self.frames[1] += event.data

    def send_receive_event_to_app(self) -> None:
        """Pass a message on; invalid UTF-8 closes the connection, without the traceback that Uvicorn would log."""
        if self._offers_lane and self.curr_msg_data_type == "text" and not self.close_sent:
            self.frames[:] = [b"".join(self.frames)]
            if not is_text(self.frames[0]):
                self.frames.clear()
                self.conn.fail(1007)
                return self.handle_parser_exception()
        return super().send_receive_event_to_app()

    def transport_closes(self) -> None:
        """Note that a denial has answered the handshake: Uvicorn would log an error that nothing did."""
        if self.initial_response is not None:
            self.handshake_complete = True

    def hand_over(self, writer: LaneWriter, receiver: LaneReceiver) -> HandedOverProtocol | None:
        """Give the client to a `HandedOverProtocol`; what the application does by ASGI then finds that it is gone.

        Returns `None` where the client has sent something: that can be half a frame, which only this parser has.
        """
        transport, lane = self.client_transport, self._lane
        if transport is None or lane is None or self._is_read_from or transport.is_closing():
            return None
        for extension in self.conn.extensions:
            if isinstance(extension, PerMessageDeflate):
                extension.encoder = None  # type: ignore[assignment]  # 32 KiB, and frames of the lane are not compressed by it
        stop_keepalive = getattr(self, "stop_keepalive", None)
        if stop_keepalive is not None:
            stop_keepalive()
        self.connections.discard(self)
        successor = HandedOverProtocol(
            transport,
            writer,
            receiver,
            cast("set[Any]", self.connections),
            max_bytes=getattr(self.conn, MAX_SIZE),
            extensions=tuple(self.conn.extensions),
            window_bits=lane.deflate_window_bits,
            loop=self.loop,
        )
        successor.writable = lane.writable
        transport.owner = successor
        transport.set_protocol(successor)
        _leave_to_application(self)
        return successor

    def _end_lane(self) -> None:
        if self._lane is not None:
            self._lane.end()


class SharedCompressionProtocol(DirectLaneProtocol):
    """`DirectLaneProtocol` that compresses each message independently of earlier ones.

    It negotiates `server_no_context_takeover` (RFC 7692). A message compressed once can then be written to all clients
    that negotiated permessage-deflate. Small messages compress less well this way, and a connection takes less memory.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._offers_lane:
            for factory in self.conn.available_extensions or ():
                if isinstance(factory, ServerPerMessageDeflateFactory):
                    factory.server_no_context_takeover = True


def _leave_to_application(protocol: Any) -> None:
    """Leave a protocol to the task of its application, as one whose client is gone: another one has its transport."""
    protocol._lane = protocol.client_transport = None
    protocol.transport = _TakenTransport()
    protocol.disconnected = True
    protocol.writable.set()
    protocol.queue.put_nowait({"type": "websocket.disconnect", "code": 1005})


class _TakenTransport(asyncio.Transport):
    """What the protocol has, instead of its transport, once it has handed that over."""

    def is_closing(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing: the transport belongs to another protocol."""

    def write(self, data: object) -> None:
        """Do nothing."""

    def resume_reading(self) -> None:
        """Do nothing."""


class _UvicornLane(TransportLane):
    """A `backplane.lane.Lane`."""

    __slots__ = ("_conn", "_protocol")

    def __init__(
        self, protocol: DirectLaneProtocol, conn: ServerProtocol, transport: asyncio.Transport, now: float
    ) -> None:
        super().__init__(transport, now)
        self._conn = conn
        self._protocol: DirectLaneProtocol | None = protocol  # until the end: a cycle would wait for a collection

    @property
    def deflate_window_bits(self) -> int | None:
        for extension in self._conn.extensions:
            if isinstance(extension, PerMessageDeflate) and extension.local_no_context_takeover:
                return extension.local_max_window_bits
        return None

    @property
    def close_code(self) -> int | None:
        return close_code_of(self._conn)

    def attach(self, writer: LaneWriter, /) -> None:
        if self._writer is not None:
            raise LifecycleError("the lane of this WebSocket has a writer already")
        if self._transport.is_closing():
            self.end()
        if self._ended:
            return writer.lane_closed()
        if self._conn.state is not State.OPEN:
            raise LifecycleError("the lane of a WebSocket can be attached to only after its handshake was accepted")
        self._writer = writer
        self.write = self._transport.write
        return writer.lane_writable(self.writable)

    def limit_messages(self, max_bytes: int, /) -> None:
        server_limit: int | None = getattr(self._conn, MAX_SIZE)
        if server_limit is None or max_bytes < server_limit:
            setattr(self._conn, MAX_SIZE, max_bytes)
        elif max_bytes > server_limit:
            _warn_of_lower_limit(server_limit, max_bytes)

    def hand_over(self, receiver: LaneReceiver, /) -> HandedOverLane | None:
        if self._ended or self._writer is None or self._protocol is None:
            return None
        successor = self._protocol.hand_over(self._writer, receiver)
        if successor is not None:
            self._writer = None  # it writes to the successor
            self.end()
            _forget(self._conn)
        return successor

    def end(self) -> None:
        self._protocol = None
        super().end()


class _ObservedProtocol(ServerProtocol):
    """Ends the lane when the connection leaves the state OPEN, before the close frame is written.

    Every close, sent, answered or caused by a failure, sets this state, whatever part of Uvicorn began it.
    """

    lane: _UvicornLane

    @property
    def state(self) -> State:
        state: State = _STATE.fget(self)
        return state

    @state.setter
    def state(self, state: State) -> None:
        _STATE.fset(self, state)
        if state is not State.OPEN:
            self.lane.end()


def _observe(conn: Any, lane: _UvicornLane) -> None:
    # The object exists already, and Uvicorn has no option for its class.
    conn.__class__ = _ObservedProtocol
    conn.lane = lane


def _forget(conn: Any) -> None:
    """Break the cycles of a parser that is not needed any more: they would wait for a garbage collection."""
    conn.__class__ = ServerProtocol
    del conn.lane
    conn.parser.close()


@cache  # logged once, not for each client
def _warn_of_lower_limit(server_limit: int, application_limit: int) -> None:
    write(
        logger,
        SERVER_MISFIT,
        "messages are limited to %(limit)d bytes by the server's ws_max_size, though the application allows "
        "%(allowed)d",
        limit=server_limit,
        allowed=application_limit,
    )


def _has_all_it_needs(protocol: WebSocketsSansIOProtocol) -> bool:
    """Check the parts of Uvicorn that the lane uses, and log what is missing."""
    base = WebSocketsSansIOProtocol
    found = {
        "conn": type(getattr(protocol, "conn", None)) is ServerProtocol,
        "the state of conn": _state_can_be_observed(),
        "run_asgi with its scope": _uses(base, "run_asgi", "scope"),
        "on_task_complete": hasattr(base, "on_task_complete"),
        "the side that closed": hasattr(getattr(protocol, "conn", None), "close_rcvd_then_sent"),
        "transport": hasattr(protocol, "transport"),
        "connections": isinstance(getattr(protocol, "connections", None), set),
        "queue": isinstance(getattr(protocol, "queue", None), asyncio.Queue),
        "the largest size of a message": bool(MAX_SIZE),
        "frames": _uses(base, "handle_cont", "frames") and _uses(base, "send_receive_event_to_app", "frames"),
        "handle_parser_exception": _uses(base, "handle_parser_exception", "close_sent"),
        "handle_ping": _uses(base, "handle_ping", "data_to_send"),
        "close_timeout": _uses(base, "send", "close_timeout"),
        "loop": isinstance(getattr(protocol, "loop", None), asyncio.AbstractEventLoop),
        "a send that waits until writable": isinstance(getattr(protocol, "writable", None), asyncio.Event)
        and _uses(base, "send", "writable"),
        # Before 0.52.4 a waiting `send` continues into a lost transport, on which uvloop raises.
        "a send that notices a lost client": _uses(base, "send", "disconnected"),
    }
    missing = [name for name, is_there in found.items() if not is_there]
    if missing:
        write(
            logger,
            SERVER_MISFIT,
            "no direct lane with Uvicorn %(version)s, messages are sent through ASGI, which is slower; not as "
            "expected: %(reason)s",
            version=uvicorn_version,
            reason=", ".join(missing),
        )
    return not missing


def _uses(owner: type, method: str, name: str) -> bool:
    code = getattr(getattr(owner, method, None), "__code__", None)
    return code is not None and name in code.co_names


def _state_can_be_observed() -> bool:
    try:
        probe: Any = ServerProtocol(state=State.OPEN)
        lane = _UvicornLane(cast("Any", None), probe, asyncio.Transport(), 0.0)
        _observe(probe, lane)
        probe.send_close(1000)
        _forget(probe)
    except Exception as error:  # an unknown version of websockets may raise anything
        words = "the state of a websockets protocol cannot be observed"
        write(logger, SERVER_MISFIT, words, level=logging.DEBUG, exc_info=error)
        return False
    return not lane.writable
