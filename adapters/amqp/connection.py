"""One connection to RabbitMQ with one channel of AMQP; it ends once, and reconnects never.

It is written on the frames themselves: aiormq, the client library, reports neither that the server blocks publishers
nor, in time, that it cancelled a consumer, and a cancelled connect leaves tasks of it running.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

from pamqp import commands
from pamqp.exceptions import PAMQPException
from pamqp.frame import marshal, unmarshal

from backplane.adapters.amqp.errors import ENDED, WireError, refusal, unavailable
from backplane.adapters.amqp.wire import (
    CHANNEL,
    HEARTBEAT_FRAME,
    MAX_FRAME_BYTES,
    METHOD,
    PROTOCOL_HEADER,
    FrameReader,
)
from backplane.concurrency.fork import close_in_children
from backplane.concurrency.timeouts import PatientTimeout

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from pamqp.base import Frame
    from pamqp.common import FieldTable

    from backplane.errors import BrokerError

__all__ = ["AmqpConnection"]

_CLOSE_SECONDS: Final = 0.5
# Of half a heartbeat each. They are counted, and no time is measured: a pause of this process is one of them.
_SILENT_TICKS: Final = 4
_CAPABILITIES: Final[FieldTable] = {
    "authentication_failure_close": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
}


class AmqpConnection(ABC, asyncio.Protocol):
    """A connection. Its owner is notified of its end from `adopt` on.

    Attributes:
        loss: Why it ended; `None` while it is up.
        blocked: Why the server takes no publishes at present; empty where it takes them.
        server: What the server states about itself: `product`, `version`, `cluster_name`.
        proposed_heartbeat_seconds: What the server proposed; 0 for none.
    """

    def __init__(self) -> None:
        self.loss: BrokerError | None = None
        self.blocked: str = ""
        self.server: dict[str, Any] = {}
        self.proposed_heartbeat_seconds: int = 0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader()
        self._frame_bytes = MAX_FRAME_BYTES
        self._unsent: list[bytes] = []
        self._answers: deque[asyncio.Future[Any]] = deque()  # in the order of the requests
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._on_lost: Callable[[BrokerError], None] | None = None
        self._heartbeat: asyncio.TimerHandle | None = None
        self._silent_ticks = 0

    async def open(
        self,
        server: tuple[str, int],
        *,
        tls: ssl.SSLContext | None,
        login: tuple[str, str],
        virtual_host: str,
        name: str,
        heartbeat_seconds: int,
    ) -> None:
        """Connect, log in, and prepare the channel. Where it raises, or is cancelled, nothing stays open.

        Args:
            server: Host and port.
            tls: Settings of TLS.
            login: User and password.
            virtual_host: The virtual host.
            name: The name of the connection, for the lists of the server.
            heartbeat_seconds: Both sides send something at least this often.

        Raises:
            Exception: One of `CONNECT_ERRORS`.
        """
        try:
            await self._loop.create_connection(lambda: self, *server, ssl=tls)
            started = self._answer()
            self.send(PROTOCOL_HEADER)
            self.server = (await started).server_properties
            properties: FieldTable = {"product": "backplane", "connection_name": name, "capabilities": _CAPABILITIES}
            response = "\0".join(("", *login))
            tuned = await self.ask(commands.Connection.StartOk(properties, "PLAIN", response), on=0)
            self.proposed_heartbeat_seconds = tuned.heartbeat or 0
            self._frame_bytes = min(tuned.frame_max or MAX_FRAME_BYTES, MAX_FRAME_BYTES)
            self._request(commands.Connection.TuneOk(1, self._frame_bytes, heartbeat_seconds), on=0)
            await self.ask(commands.Connection.Open(virtual_host), on=0)
            self._tick(heartbeat_seconds / 2)
            await self._prepare()
        except BaseException:
            self.end(unavailable("it was given up"))
            raise

    def adopt(self, on_lost: Callable[[BrokerError], None]) -> None:
        """Take it into use; `on_lost` is called once, at its end.

        Raises:
            BrokerError: It has ended already.
        """
        if self.loss is not None:
            raise self.loss
        self._on_lost = on_lost

    async def ask(self, method: Frame, *, on: int = CHANNEL) -> Any:
        """Send a method and return the server's answer. Cancelled, the answer is dropped.

        Args:
            method: The method.
            on: The channel of AMQP; 0 is the connection itself.

        Raises:
            BrokerError: The connection ended, or the server refused it.
        """
        if self.loss is not None:
            raise self.loss
        answer = self._answer()
        self._request(method, on=on)
        return await answer

    def send(self, data: bytes) -> None:
        """Send bytes, together with what else this pass of the event loop sends."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)

    def end(self, error: BrokerError) -> None:
        """End it at once; what is in progress fails with `error`."""
        self._give_up(error)
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Close it: in an orderly way if the server answers in time, else without. Never raises."""
        if self._transport is None:
            return
        try:
            if self.loss is None:
                self._request(commands.Connection.Close(200, "closed", 0, 0), on=0)
                self._flush()
                self._give_up(unavailable("the link is closed"))
                async with PatientTimeout(_CLOSE_SECONDS):
                    await asyncio.wait((self._closed,))
        except TimeoutError:
            pass
        finally:
            self._transport.abort()
        await asyncio.wait((self._closed,))

    @abstractmethod
    async def _prepare(self) -> None:
        """Make the channel ready, once the login is accepted."""

    @abstractmethod
    def _received(self, kind: int, payload: bytes) -> bool:
        """Take a frame of the channel; return whether it was one of a message, and not the answer to a method."""

    @abstractmethod
    def _fail(self, error: BrokerError) -> None:
        """Fail what is in progress: the connection has ended."""

    def _channel_closed(self, code: int, text: str) -> None:
        """React to the server's end of the channel; by default the connection ends with it."""
        self.end(refusal(code, text))

    def _blocked_changed(self) -> None:
        """React to a change of `blocked`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)
        close_in_children(self, transport)
        if self.loss is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._silent_ticks = 0
        try:
            for kind, number, payload in self._reader.read(data):
                if self.loss is None:
                    self._dispatch(kind, number, payload)
                elif kind == METHOD and payload[:4] == commands.Connection.CloseOk.index.to_bytes(4, "big"):
                    self.end(self.loss)
        except (WireError, PAMQPException) as error:
            self.end(unavailable(f"{ENDED}: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._give_up(unavailable(f"{ENDED}{f': {exc}' if exc else ''}"))
        if not self._closed.done():
            self._closed.set_result(None)

    def _dispatch(self, kind: int, number: int, payload: bytes) -> None:
        if number == CHANNEL and self._received(kind, payload):
            return
        if kind != METHOD:
            return
        method = _read_method(payload)
        match method:
            case commands.Connection.Close():
                self._request(commands.Connection.CloseOk(), on=0)
                self._flush()
                self.end(refusal(method.reply_code or 0, method.reply_text))
            case commands.Channel.Close():
                self._channel_closed(method.reply_code or 0, method.reply_text)
            case commands.Basic.Cancel():
                self.end(unavailable("the server ended the consumer: the queue of this worker was deleted"))
            case commands.Connection.Blocked():
                self.blocked = f"RabbitMQ blocks publishers: {method.reason} (a memory or disk alarm)"
                self._blocked_changed()
            case commands.Connection.Unblocked():
                self.blocked = ""
                self._blocked_changed()
            case _:
                self._answered(method)

    def _answered(self, method: Frame) -> None:
        if not self._answers:
            raise WireError(f"{method.name} answers nothing")
        answer = self._answers.popleft()
        if not answer.done():
            answer.set_result(method)

    def _answer(self) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = self._loop.create_future()
        answer.add_done_callback(_retrieve)
        self._answers.append(answer)
        return answer

    def _fail_answers(self, error: BrokerError) -> None:
        while self._answers:
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_exception(error)

    def _request(self, method: Frame, *, on: int = CHANNEL) -> None:
        self.send(marshal(method, on))

    def _flush(self) -> None:
        data, self._unsent = b"".join(self._unsent), []
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _give_up(self, error: BrokerError) -> None:
        if self.loss is not None:
            return
        self.loss = error
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        self._fail_answers(error)
        self._fail(error)
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost(error)

    def _tick(self, seconds: float) -> None:
        """Send a heartbeat, and end the connection where the server has been silent for some of them."""
        if self._silent_ticks >= _SILENT_TICKS:
            return self.end(unavailable(f"nothing came from the server for {self._silent_ticks * seconds:g} s"))
        self._silent_ticks += 1
        self.send(HEARTBEAT_FRAME)
        self._heartbeat = self._loop.call_later(seconds, self._tick, seconds)


def _read_method(payload: bytes) -> Any:
    frame = b"\1\0\0" + len(payload).to_bytes(4, "big") + payload + b"\xce"
    return unmarshal(frame)[2]


def _retrieve(answer: asyncio.Future[Any]) -> None:
    """Keep asyncio from logging an error that no caller awaits."""
    if not answer.cancelled():
        answer.exception()
