"""A WebSocket that the application's task has left: its transport, and a protocol of a few hundred bytes.

Most clients only listen. While they do, nothing is kept for what they could send: an `Incoming` with a parser of
websockets is made when bytes come, and dropped when it holds no half of a frame or message. What the client may cost
is bounded as in `backplane.server.uvicorn`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from websockets.frames import Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from backplane.close_codes import CloseCode
from backplane.errors import LifecycleError
from backplane.server.frame_boundary import FrameBoundary, is_whole_pong
from backplane.server.transport import Unparsed
from backplane.server.transport_lane import TransportLane

if TYPE_CHECKING:
    from collections.abc import Callable

    from websockets.extensions import Extension
    from websockets.frames import Frame

    from backplane.lane import HandedOverLane, LaneReceiver, LaneWriter
    from backplane.server.transport import BoundedTransport

__all__ = ["ANSWER_SECONDS", "MAX_SIZE", "PONG", "HandedOverProtocol", "close_code_of", "is_text"]

_parser_logger: Final = logging.getLogger("backplane.server.handed_over")

MAX_SIZE: Final = next((name for name in ("max_message_size", "max_size") if hasattr(ServerProtocol(), name)), "")
"""The name of the attribute of a parser with the largest size of a message, which depends on websockets' version."""

PONG: Final = b"\x8a"
"""How a pong of a server begins."""

ANSWER_SECONDS: Final = 5.0
"""Time limit of the client's answer to a close frame; then the transport is closed. Uvicorn's own is 10 s."""

# The same for a client that does not read: as long as a handler waits for one (`ConnectionPolicy.close_seconds`).
_UNREAD_SECONDS: Final = 1.0

# How much may wait until it is taken; then the server stops reading. As much as `backplane.web.read_ahead` receives.
_MAX_MESSAGES: Final = 64
_MAX_BYTES: Final = 64 * 1024


class Incoming:
    """What a client has sent and nothing has taken: bytes, a half message, messages.

    Args:
        max_bytes: Largest size of a message; `None` is no limit.
        extensions: What was negotiated.
    """

    __slots__ = ("boundary", "conn", "fragments", "is_text", "messages", "pong", "size_bytes", "unparsed")

    def __init__(self, max_bytes: int | None, extensions: tuple[Extension, ...]) -> None:
        self.conn: ServerProtocol = ServerProtocol(state=State.OPEN, max_size=max_bytes, logger=_parser_logger)
        self.conn.extensions = list(extensions)
        self.boundary: FrameBoundary = FrameBoundary()
        self.unparsed: Unparsed = Unparsed()
        self.fragments: bytearray | None = None
        self.is_text: bool = False
        self.messages: deque[str | bytes] = deque()
        self.size_bytes: int = 0
        self.pong: bytes | None = None  # waits until the transport is writable

    @property
    def is_needed(self) -> bool:
        """Whether it holds anything."""
        return bool(
            self.messages
            or self.unparsed
            or self.pong
            or not self.boundary.is_reached
            or self.conn.state is not State.OPEN
        )

    @property
    def is_full(self) -> bool:
        """Whether so much waits that nothing more may be read."""
        return len(self.messages) >= _MAX_MESSAGES or self.size_bytes >= _MAX_BYTES

    def end_parsing(self) -> None:
        """Parse nothing more: `conn` and its parser are a cycle, which would wait for a garbage collection."""
        self.conn.parser.close()


class HandedOverProtocol(asyncio.Protocol, TransportLane):
    """A WebSocket without ASGI; also the `HandedOverLane` of it.

    Args:
        transport: The transport of the client.
        writer: What writes to it.
        receiver: What receives from it.
        connections: Uvicorn's own set of connections, which it shuts down at its end.
        max_bytes: Largest size of a message that the client may send; `None` is no limit.
        extensions: What was negotiated.
        window_bits: See `Lane.deflate_window_bits`.
        loop: Its event loop.
    """

    __slots__ = (
        "_answer_timer",
        "_connections",
        "_extensions",
        "_incoming",
        "_loop",
        "_max_bytes",
        "_receiver",
        "deflate_window_bits",
    )

    _transport: BoundedTransport

    def __init__(
        self,
        transport: BoundedTransport,
        writer: LaneWriter,
        receiver: LaneReceiver,
        connections: set[HandedOverProtocol],
        *,
        max_bytes: int | None,
        extensions: tuple[Extension, ...],
        window_bits: int | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        TransportLane.__init__(self, transport, loop.time())
        self._writer = writer
        self.write: Callable[[bytes], object] = transport.write
        self._receiver: LaneReceiver | None = receiver
        self._connections = connections
        self._max_bytes = max_bytes
        self._extensions = extensions
        self.deflate_window_bits: int | None = window_bits
        self._loop = loop
        self._incoming: Incoming | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        connections.add(self)

    # --- the lane ---

    @property
    def transport(self) -> BoundedTransport:
        """The transport, under the name that Uvicorn's own protocols have for it."""
        return self._transport

    @property
    def close_code(self) -> int | None:
        """The code with which the server has closed; `None` if it has not."""
        return None if self._incoming is None else close_code_of(self._incoming.conn)

    def attach(self, _: LaneWriter, /) -> None:
        """Refuse: the writer of the lane that was handed over is attached."""
        raise LifecycleError("the lane of this WebSocket has a writer already")

    def hand_over(self, _: LaneReceiver, /) -> HandedOverLane | None:
        """Refuse: it is handed over."""
        return None

    def limit_messages(self, max_bytes: int, /) -> None:
        """Refuse messages of the client above `max_bytes`; a lower limit remains in force."""
        self._max_bytes = max_bytes if self._max_bytes is None else min(max_bytes, self._max_bytes)
        if self._incoming is not None:
            setattr(self._incoming.conn, MAX_SIZE, self._max_bytes)

    def take(self) -> str | bytes | None:
        """Return the client's next message; `None` where none waits."""
        incoming = self._incoming
        if incoming is None or not incoming.messages:
            return None
        was_full = incoming.is_full
        message = incoming.messages.popleft()
        incoming.size_bytes -= len(message)
        if was_full and not incoming.is_full:  # later: the receiver is not to be notified out of this call
            self._loop.call_soon(self._transport.resume_reading)
        self._drop_unneeded()
        return message

    def close_with(self, code: int, reason: str, /) -> None:
        """Send a close frame, end the lane, and give the client some seconds to answer."""
        incoming = self._make_incoming()
        if incoming.conn.state is not State.OPEN or self._transport.is_closing():
            return
        seconds = ANSWER_SECONDS if self.writable else _UNREAD_SECONDS
        incoming.conn.send_close(code, reason)
        self._send_output(incoming)
        if self._transport.paused:  # else its answer would not be read
            self._transport.resume_reading()
        self._answer_timer = self._loop.call_later(seconds, self._transport.close)

    def when_gone(self, callback: Callable[[], None], /) -> None:
        """Call `callback` once the connection is lost; at once if it is lost already."""
        self._transport.when_gone(callback)

    # --- called by Uvicorn ---

    def shutdown(self) -> None:
        """Close with 1012 and wait for no answer, as Uvicorn's own protocol does when its server ends."""
        incoming = self._make_incoming()
        if incoming.conn.state is State.OPEN and not self._transport.is_closing():
            incoming.conn.send_close(CloseCode.SERVICE_RESTART)
            self._send_output(incoming)
        self._close()

    # --- called by the event loop ---

    def data_received(self, data: bytes) -> None:
        """Parse, or keep for later while as much as may be waits."""
        self.last_received_at: float = self._loop.time()
        if self._incoming is None and is_whole_pong(data):
            return
        incoming = self._make_incoming()
        incoming.unparsed.append(data)
        self.parse()

    def eof_received(self) -> None:
        """Close: the client sends nothing more."""
        self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End both sides, if they have not ended before."""
        if self._answer_timer is not None:
            self._answer_timer.cancel()
        self._connections.discard(self)
        self.end()
        self._end_receiving()
        self._transport.connection_lost()
        if self._incoming is not None and not self._incoming.unparsed:
            self._incoming.end_parsing()

    def pause_writing(self) -> None:
        """Stop the writer."""
        self.set_writable(False)

    def resume_writing(self) -> None:
        """Write a waiting pong, then resume the writer."""
        incoming = self._incoming
        if incoming is not None and incoming.pong is not None:
            pong, incoming.pong = incoming.pong, None
            if incoming.conn.state is State.OPEN:
                self._transport.write(pong)
            self._drop_unneeded()
        self.set_writable(True)

    # --- called by the transport ---

    def parse(self) -> None:
        """Parse what was read until as much as may be waits, then read again."""
        if self._incoming is None:
            self._transport.read_on()
        else:
            self._incoming.unparsed.parse(self._transport, self)
            self._drop_unneeded()

    def parse_slice(self, data: bytes, /) -> None:
        """Parse one slice: keep its messages, and answer what has to be answered."""
        incoming = self._incoming
        assert incoming is not None
        conn = incoming.conn
        incoming.boundary.feed(data)
        conn.receive_data(data)
        before = len(incoming.messages)
        if conn.parser_exc is None:
            frames = cast("list[Frame]", conn.events_received())
            if not all(self._take_frame(incoming, frame) for frame in frames):
                conn.fail(CloseCode.INVALID_DATA)
        self._send_output(incoming)
        if len(incoming.messages) > before and self._receiver is not None:
            if incoming.is_full:
                self._transport.pause_reading()
            self._receiver.message_arrived()
        if conn.eof_sent:  # the client has closed or answered a close, or has violated the protocol
            self._close()

    def transport_closes(self) -> None:
        """Nothing is to be done before the transport is closed."""

    # --- its parts ---

    def _make_incoming(self) -> Incoming:
        if self._incoming is None:
            self._incoming = Incoming(self._max_bytes, self._extensions)
        return self._incoming

    def _drop_unneeded(self) -> None:
        if self._incoming is not None and not self._incoming.is_needed and not self._ended:
            self._incoming.end_parsing()
            self._incoming = None

    def _take_frame(self, incoming: Incoming, frame: Frame) -> bool:
        """Keep a message once it is complete; return `False` where it is a text that is not UTF-8."""
        if self._ended or frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return True  # after the end of the lane the client is only read for its answer to the close frame
        if frame.opcode is not Opcode.CONT:
            incoming.is_text = frame.opcode is Opcode.TEXT
        if frame.opcode is Opcode.CONT or not frame.fin:
            if incoming.fragments is None:
                incoming.fragments = bytearray()
            incoming.fragments += frame.data
        if not frame.fin:
            return True
        data = bytes(frame.data if incoming.fragments is None else incoming.fragments)
        incoming.fragments = None
        if incoming.is_text and not is_text(data):
            return False
        incoming.messages.append(data.decode() if incoming.is_text else data)
        incoming.size_bytes += len(incoming.messages[-1])
        return True

    def _send_output(self, incoming: Incoming) -> None:
        """Write what the parser has to send; for a client that does not read, only the last pong (RFC 6455, 5.5.3)."""
        if incoming.conn.state is not State.OPEN:
            # What ends with the close frame is written, and after it a pong to a client that reads.
            was_writable = not (self._ended and self.buffered_bytes)
            self.end()
        else:
            was_writable = self.writable
        output = incoming.conn.data_to_send()
        if not was_writable:
            pongs = [frame for frame in output if frame.startswith(PONG)]
            incoming.pong = pongs[-1] if pongs else incoming.pong
            output = [frame for frame in output if not frame.startswith(PONG)]
        if output:
            self._transport.write(b"".join(output))

    def _close(self) -> None:
        """End both sides, and close the transport once its buffer is written."""
        self.end()
        self._end_receiving()
        self._transport.close()

    def _end_receiving(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.receiving_ended()


def close_code_of(conn: ServerProtocol) -> int | None:
    """Return the code with which the server has closed; `None` if it has not, or only answered."""
    sent, answered = conn.close_sent, conn.close_rcvd_then_sent
    return None if sent is None or answered else int(sent.code)


def is_text(data: bytes) -> bool:
    """Return whether `data` is UTF-8."""
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False
