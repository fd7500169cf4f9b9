"""Server-sent events: the same channels for a browser's `EventSource`, where a client only listens.

On the wire: a text is `data:` lines (`EventSource` makes one line feed of every line end), binary is base64 under
`event: binary`, a gap is `event: gap` with `{"channel": ...}`, upon which the page loads again what it shows, as it
does upon every `open`. Comments are the heartbeat. A page of another site cannot read a stream: CORS applies.

Plain Starlette, by decision. FastAPI's own `EventSourceResponse` only marks a route whose generator
FastAPI runs, and does not exist in Starlette. sse-starlette (3.7) replaces
`uvicorn.Server.handle_exit` when it is imported and polls the handler of SIGTERM, where this package drains. What is
left for a library is a dozen lines of format.

An `EventSource` comes back by itself when a stream ends, but never after an HTTP error (HTML Standard, section 9.2.3).
So where the answer is "later" (a drain, an outage, a full worker) and the client says that it takes an event stream, it
gets one that ends at once with a hint when to come back; any other client gets the status.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from base64 import b64encode
from functools import partial
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers
from starlette.responses import Response

from backplane.denial import denial
from backplane.errors import BackplaneError, BrokerError, ConfigurationError, SlowConsumerError
from backplane.lane import when_gone
from backplane.message import Gap, Message
from backplane.sockets import is_of_client
from backplane.subscription import Subscription

if TYPE_CHECKING:
    from starlette.background import BackgroundTask
    from starlette.types import Receive, Scope, Send

    from backplane.hub import Hub
    from backplane.log_burst import LogBursts
    from backplane.outbox import Outbox
    from backplane.running import Running
    from backplane.statistics import Statistics

__all__ = ["EventStream", "event_stream"]

logger = logging.getLogger("backplane.sse")

_MEDIA_TYPE: Final = "text/event-stream"

# X-Accel-Buffering is nginx's: it would keep events until 4 KiB of them have come together.
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

_HEARTBEAT: Final = b":\n\n"

# What a client is given, once its stream has ended, to take what waits for it.
_END_SECONDS: Final = 1.0

_LATER: Final = frozenset({429, 503})


def event_stream(
    running: Running,
    outbox: Outbox,
    *channels: str,
    heartbeat_seconds: float = 15.0,
    retry_seconds: float = 3.0,
    client_key: str | None = None,
) -> Response:
    """Return a response that streams `channels` for as long as its client listens; nothing happens until it is sent.

    The client is joined before the headers go: from the moment it sees them it misses nothing.

    Args:
        running: The started backplane.
        outbox: What waits for this client, and the policy; where it is `close`, a slow client's stream ends.
        *channels: What the client hears.
        heartbeat_seconds: After how long a silence a comment is sent, against proxies that cut silent connections.
            Defaults to 15.
        retry_seconds: How long, on average, the client waits until it comes back: each is told a time of its own,
            between half and one and a half of it. Defaults to 3.
        client_key: Who this client is, for `max_connections_per_client`. Defaults to its address.

    Raises:
        ConfigurationError: No channel, or a time that is not more than 0 and finite.
    """
    if not channels:
        raise ConfigurationError("an event stream needs at least one channel")
    if not (0 < heartbeat_seconds < float("inf") and 0 < retry_seconds < float("inf")):
        raise ConfigurationError(
            "heartbeat_seconds and retry_seconds must be more than 0 and finite, "
            f"not {heartbeat_seconds!r} and {retry_seconds!r}"
        )
    return _EventStreamResponse(running, outbox, channels, heartbeat_seconds, retry_seconds, client_key)


class EventStream(Subscription):
    """One client of a stream. Once it has ended, its client has a second to take what waits."""

    def __init__(self, hub: Hub, outbox: Outbox, statistics: Statistics, bursts: LogBursts) -> None:
        super().__init__(hub, outbox, statistics=statistics, bursts=bursts)
        self._deadline: asyncio.Timeout | None = None

    def retire(self, code: int, reason: str) -> None:
        """End: the worker drains. There is no close code in HTTP."""
        self.end()

    async def close(self, code: int, reason: str) -> None:
        """End: the worker stops."""
        self.end()

    def end(self) -> None:
        """End behind what already waits, which the client has a second to take. Ending again changes nothing."""
        if not self._ended:
            super().end()
            self._finish_within(_END_SECONDS)

    def abandon(self) -> None:
        """End at once: the client is gone."""
        super().end()
        self._finish_within(0)

    async def send_to(self, send: Send, response: _EventStreamResponse) -> None:
        """Send everything, from the headers to the end; returns too when the client does not take it."""
        try:
            async with asyncio.timeout(None) as self._deadline:
                await send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
                await _send_body(send, response.hint())
                while (chunk := await self._next_chunk(response.heartbeat_seconds)) is not None:
                    await _send_body(send, chunk)
                await _send_body(send, response.hint(), more=False)
        except OSError as error:  # a timeout is one too, ours and a middleware's
            if not (is_of_client(error) or (self._deadline is not None and self._deadline.expired())):
                raise
            logger.debug("the client of event stream %s is gone, or does not read", self.id)
        finally:
            self._deadline = None

    def _note_overrun(self) -> None:
        self._statistics.slow_streams += 1
        self._bursts.log(logger, logging.WARNING, "event stream %s is too slow: ending it", self.id)

    async def _next_chunk(self, heartbeat_seconds: float) -> bytes | None:
        try:
            async with asyncio.timeout(heartbeat_seconds):
                return _encode(await anext(self))
        except TimeoutError:
            return _HEARTBEAT
        except (StopAsyncIteration, SlowConsumerError):
            return None

    def _finish_within(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.reschedule(asyncio.get_running_loop().time() + seconds)


class _EventStreamResponse(Response):
    """The stream of one request."""

    media_type = _MEDIA_TYPE

    def __init__(
        self,
        running: Running,
        outbox: Outbox,
        channels: tuple[str, ...],
        heartbeat_seconds: float,
        retry_seconds: float,
        client_key: str | None,
    ) -> None:
        # Not Starlette's own, which would announce a length of 0.
        self.status_code = 200
        self.background: BackgroundTask | None = None
        self.init_headers(_HEADERS)
        self.heartbeat_seconds = heartbeat_seconds
        self._running = running
        self._outbox = outbox
        self._channels = channels
        self._retry_seconds = retry_seconds
        self._client_key = client_key

    def hint(self) -> bytes:
        """Say when to come back; each client is told another time, lest all come at once."""
        milliseconds = 1000 * self._retry_seconds * random.uniform(0.5, 1.5)  # noqa: S311
        return b"retry: %d\n\n" % max(1, round(milliseconds))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await self._send_at_once(send, b"")
        else:
            await self._stream(scope, receive, send)
        if self.background is not None:
            await self.background()

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        running = self._running
        running.affinity.check()
        stream = EventStream(running.hub, self._outbox, running.statistics, running.bursts)
        try:
            await self._join(stream, scope)
        except BackplaneError as error:
            await self._refuse(error, scope, receive, send)
        else:
            running.statistics.streams_opened += 1
            try:
                async with asyncio.TaskGroup() as tasks:
                    listening = tasks.create_task(_listen(receive, stream), name=f"backplane-sse-{stream.id}")
                    await stream.send_to(send, self)
                    listening.cancel()
            finally:
                running.statistics.streams_closed += 1
        finally:
            stream.end()
            running.dismiss(stream, partial(when_gone, scope))

    async def _join(self, stream: EventStream, scope: Scope) -> None:
        address = (scope.get("client") or ("",))[0]
        self._running.admit(stream, self._client_key or address)
        for channel in self._channels:
            await stream.join(channel)

    async def _refuse(self, error: BackplaneError, scope: Scope, receive: Receive, send: Send) -> None:
        self._running.statistics.streams_refused += 1
        level = logging.WARNING if isinstance(error, BrokerError) else logging.INFO
        self._running.bursts.log(logger, level, "refused an event stream: %s", error)
        answer = denial(error)
        if answer.status_code in _LATER and _MEDIA_TYPE in Headers(scope=scope).get("accept", ""):
            return await self._send_at_once(send, b": not available, try again later\n" + self.hint())
        answer.headers["Cache-Control"] = "no-store"
        await answer(scope, receive, send)

    async def _send_at_once(self, send: Send, body: bytes) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await _send_body(send, body, more=False)


async def _listen(receive: Receive, stream: EventStream) -> None:
    """End the stream when its client is gone: between two messages, sending would not tell."""
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.abandon()


async def _send_body(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _encode(item: Message | Gap) -> bytes:
    if isinstance(item, Gap):
        # The reason may hold a broker's own words.
        return b"event: gap\ndata: %b\n\n" % json.dumps({"channel": item.channel}).encode()
    if isinstance(item.data, bytes):
        return b"event: binary\ndata: %b\n\n" % b64encode(item.data)
    lines = item.data.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\ndata: ")
    return f"data: {lines}\n\n".encode()
