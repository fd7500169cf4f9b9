"""Uvicorn with the direct lane: `uvicorn app:app --ws backplane.server.uvicorn:DirectLaneProtocol`.

Handshake, closing, pings, limits and the access log stay Uvicorn's; what a client may cost is bounded. What all of it
leans on beyond Uvicorn's documented interface is looked for at the first connection: where anything is missing, the
class is Uvicorn's own protocol, bounded by `backplane.server.transport` alone.
"""

from __future__ import annotations

import asyncio
import logging
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from backplane.errors import LifecycleError, MissingDependencyError
from backplane.lane import EXTENSION, TRANSPORT
from backplane.server.transport import BoundedProtocol

try:
    from uvicorn import __version__ as uvicorn_version
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
    from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
    from websockets.protocol import State
    from websockets.server import ServerProtocol
except ImportError as _error:
    raise MissingDependencyError(
        f"the direct lane needs uvicorn and websockets ({_error}): pip install 'uvicorn>=0.52.4' 'websockets>=14'"
    ) from _error

if TYPE_CHECKING:
    from collections.abc import Callable

    from websockets.frames import Frame

    from backplane.lane import LaneWriter

__all__ = ["DirectLaneProtocol", "SharedCompressionProtocol"]

logger: logging.Logger = logging.getLogger("backplane.server.uvicorn")

_PING: Final = b"\x89\x00"
_PONG: Final = b"\x8a"

_STATE: Any = getattr(ServerProtocol, "state", None)

_MAX_SIZE: Final = next((name for name in ("max_message_size", "max_size") if hasattr(ServerProtocol(), name)), "")

# For the client's answer to a close frame, after which the transport is closed; Uvicorn waits 10 s.
_ANSWER_SECONDS: Final = 5.0


class DirectLaneProtocol(BoundedProtocol, WebSocketsSansIOProtocol):
    """Uvicorn's protocol, with a `backplane.lane.Lane` in the scope of every WebSocket, and bounds on its cost."""

    _offers_lane: bool | None = None  # of the process; not known before the first connection
    _lane: _UvicornLane | None = None
    _pong: bytes | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.close_timeout = _ANSWER_SECONDS
        if DirectLaneProtocol._offers_lane is None:
            DirectLaneProtocol._offers_lane = _finds_everything(self)

    # Not `async`: a frame around Uvicorn's would stay in memory as long as the connection.
    def run_asgi(self) -> Any:
        """Put the lane into the scope, which is built, before the application sees it."""
        if self._offers_lane:
            self._lane = _UvicornLane(self.conn, self.transport, self.loop.time())
            _watch(self.conn, self._lane)
            extensions: dict[str, Any] = self.scope.setdefault("extensions", {})
            extensions |= {EXTENSION: self._lane, TRANSPORT: self.client_transport}
        return super().run_asgi()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """End the lane with the application: Uvicorn has closed the transport, perhaps without a close frame."""
        super().on_task_complete(task)
        self._end_lane()

    def data_received(self, data: bytes) -> None:
        """Note when the client was heard."""
        if self._lane is not None:
            self._lane.last_received_at = self.loop.time()
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            # websockets refused the request, which came in one piece, and Uvicorn waits for the rest of it.
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def eof_received(self) -> None:
        """End the lane: the transport closes, though not before it has written what it holds."""
        self._end_lane()
        super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the lane, if nothing has before."""
        self._end_lane()
        super().connection_lost(exc)
        self.writable.set()  # Uvicorn does so itself from 0.53 on

    def pause_writing(self) -> None:
        """Tell the lane, and let an awaited `send` wait."""
        super().pause_writing()
        if self._lane is not None:
            self.writable.clear()  # Uvicorn does so itself from 0.53 on
            self._lane.pause()

    def resume_writing(self) -> None:
        """Let a pong go, then the lane; an awaited `send` goes on if that has not filled the transport again."""
        pong, self._pong = self._pong, None
        if pong is not None and self.conn.state is State.OPEN:
            self.transport.write(pong)
        if self._lane is None or self._lane.resume():
            super().resume_writing()
            self.writable.set()

    def handle_ping(self) -> None:
        """Answer; to a client that does not read, the last of its pings only (RFC 6455, section 5.5.3)."""
        if not self._offers_lane or self.writable.is_set():
            return super().handle_ping()
        output = self.conn.data_to_send()
        self._pong = next((frame for frame in reversed(output) if frame.startswith(_PONG)), self._pong)
        return self.transport.write(b"".join(frame for frame in output if not frame.startswith(_PONG)))

    def handle_cont(self, event: Frame) -> None:
        """Join a fragment to those before it: Uvicorn keeps an object of each, of empty ones too."""
        if event.fin or not self._offers_lane:
            super().handle_cont(event)
        elif len(self.frames) == 1:
            self.frames.append(bytearray(event.data))  # type: ignore[arg-type]  # to be joined, which takes any bytes
        else:
            self.frames[1] += event.data

    def send_receive_event_to_app(self) -> None:
        """Hand a message on; one that is no text ends the client without the traceback that Uvicorn logs for it."""
        if self._offers_lane and self.curr_msg_data_type == "text" and not self.close_sent:
            self.frames[:] = [b"".join(self.frames)]
            if not _is_text(self.frames[0]):
                self.frames.clear()
                self.conn.fail(1007)
                return self.handle_parser_exception()
        return super().send_receive_event_to_app()

    def transport_closes(self) -> None:
        """Note that a denial has answered the handshake, or Uvicorn logs an error that nothing has."""
        if self.initial_response is not None:
            self.handshake_complete = True

    def _end_lane(self) -> None:
        if self._lane is not None:
            self._lane.end()


class SharedCompressionProtocol(DirectLaneProtocol):
    """The same, compressing every message without regard to earlier ones (RFC 7692, `server_no_context_takeover`).

    A message compressed once can then be written to all clients that negotiated permessage-deflate. Small messages
    compress less well this way, and a connection takes less memory.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._offers_lane:
            for factory in self.conn.available_extensions or ():
                if isinstance(factory, ServerPerMessageDeflateFactory):
                    factory.server_no_context_takeover = True


class _UvicornLane:
    """A `backplane.lane.Lane`. Refers to no protocol: a cycle would keep it until the garbage collector comes."""

    __slots__ = ("_conn", "_ended", "_transport", "_user", "last_received_at", "writable", "write")

    def __init__(self, conn: ServerProtocol, transport: asyncio.Transport, now: float) -> None:
        self._conn = conn
        self._transport = transport
        self._user: LaneWriter | None = None
        self._ended = False
        self.last_received_at = now
        self.writable = True
        self.write: Callable[[bytes], object] = _discard

    @property
    def reading(self) -> bool:
        return self._transport.is_reading()

    @property
    def buffered_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    @property
    def deflate_window_bits(self) -> int | None:
        for extension in self._conn.extensions:
            if isinstance(extension, PerMessageDeflate) and extension.local_no_context_takeover:
                return extension.local_max_window_bits
        return None

    @property
    def close_code(self) -> int | None:
        sent, answered = self._conn.close_sent, self._conn.close_rcvd_then_sent
        return None if sent is None or answered else int(sent.code)

    def attach(self, user: LaneWriter, /) -> None:
        if self._user is not None:
            raise LifecycleError("the lane of this WebSocket has a user already")
        if self._transport.is_closing():
            self.end()
        if self._ended:
            return user.lane_closed()
        if self._conn.state is not State.OPEN:
            raise LifecycleError("the lane of a WebSocket can be taken after its handshake was accepted")
        self._user = user
        self.write = self._transport.write
        return user.lane_writable(self.writable)

    def limit_messages(self, max_bytes: int, /) -> None:
        of_server: int | None = getattr(self._conn, _MAX_SIZE)
        if of_server is None or max_bytes < of_server:
            setattr(self._conn, _MAX_SIZE, max_bytes)
        elif max_bytes > of_server:
            _report_lower_limit(of_server, max_bytes)

    def ping(self) -> None:
        if self.writable:
            self.write(_PING)

    def close(self) -> None:
        self.end()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def pause(self) -> None:
        self._set_writable(False)

    def resume(self) -> bool:
        """Return whether the transport still takes more when the user has written what waited."""
        self._set_writable(True)
        return self.writable or self._ended

    def end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self.writable = False
        self.write = _discard
        user, self._user = self._user, None
        if user is not None:
            user.lane_closed()

    def _set_writable(self, writable: bool) -> None:
        if self._ended:
            return
        self.writable = writable
        if self._user is not None:
            self._user.lane_writable(writable)


class _WatchedProtocol(ServerProtocol):
    """Ends the lane when the connection leaves the state OPEN, before the bytes that tell the client are written.

    Every close frame, sent or answered, and every failure passes here, whatever part of Uvicorn asked for it.
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


def _watch(conn: Any, lane: _UvicornLane) -> None:
    # In place, for the object exists: Uvicorn leaves no way to have it made of another class.
    conn.__class__ = _WatchedProtocol
    conn.lane = lane


@cache  # once, not for every client
def _report_lower_limit(of_server: int, of_application: int) -> None:
    logger.warning(
        "messages may have %d bytes, as the server's ws_max_size has it, though the application allows %d",
        of_server,
        of_application,
    )


def _discard(_: bytes) -> None:
    """Write to a lane that is not open."""


def _finds_everything(protocol: WebSocketsSansIOProtocol) -> bool:
    """Look for what the lane leans on, and say once what is missing."""
    base = WebSocketsSansIOProtocol
    found = {
        "conn": type(getattr(protocol, "conn", None)) is ServerProtocol,
        "the state of conn": _state_can_be_watched(),
        "run_asgi with its scope": _names(base, "run_asgi", "scope"),
        "on_task_complete": hasattr(base, "on_task_complete"),
        "who closed": hasattr(getattr(protocol, "conn", None), "close_rcvd_then_sent"),
        "transport": hasattr(protocol, "transport"),
        "the largest size of a message": bool(_MAX_SIZE),
        "frames": _names(base, "handle_cont", "frames") and _names(base, "send_receive_event_to_app", "frames"),
        "handle_parser_exception": _names(base, "handle_parser_exception", "close_sent"),
        "handle_ping": _names(base, "handle_ping", "data_to_send"),
        "close_timeout": _names(base, "send", "close_timeout"),
        "loop": isinstance(getattr(protocol, "loop", None), asyncio.AbstractEventLoop),
        "a send that waits until writable": isinstance(getattr(protocol, "writable", None), asyncio.Event)
        and _names(base, "send", "writable"),
        # Before 0.52.4 a `send` that waited is let go into a transport that is lost, at which uvloop raises.
        "a send that notices a lost client": _names(base, "send", "disconnected"),
    }
    missing = [name for name, is_there in found.items() if not is_there]
    if missing:
        logger.warning(
            "no direct lane with Uvicorn %s, messages go through ASGI, which is slower; not as expected: %s",
            uvicorn_version,
            ", ".join(missing),
        )
    return not missing


def _is_text(data: bytes) -> bool:
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False


def _names(owner: type, method: str, name: str) -> bool:
    code = getattr(getattr(owner, method, None), "__code__", None)
    return code is not None and name in code.co_names


def _state_can_be_watched() -> bool:
    try:
        probe: Any = ServerProtocol(state=State.OPEN)
        lane = _UvicornLane(probe, asyncio.Transport(), 0.0)
        _watch(probe, lane)
        probe.send_close(1000)
    except Exception:  # whatever a websockets that is not the one known here does
        logger.debug("the state of a websockets protocol cannot be watched", exc_info=True)
        return False
    return not lane.writable
