"""Server-sent events: the same channels for a browser's `EventSource`, where a client only listens.

On the wire: a text is `data:` lines (`EventSource` makes one line feed of every line end), binary is base64 under
`event: binary`, a gap is `event: gap` with `{"channel": ...}`, upon which the page loads again what it shows, as it
does upon every `open`. A stream whose permission has run out ends with `event: expired`; its client comes back with a
new request, which the application's own dependencies see. These three names are reserved: nothing that is published can
have one, for a text is always a `message`. Comments are the heartbeat. A page of another site cannot read a stream:
CORS applies.

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
import time
from base64 import b64encode
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException, WebSocketException
from starlette.responses import Response

from backplane.connection.expiry import moment_of
from backplane.errors import (
    BackplaneError,
    BrokerError,
    ConfigurationError,
    LifecycleError,
    PermissionExpiredError,
    SlowConsumerError,
)
from backplane.fanout.subscription import Subscription
from backplane.lane import abort, when_gone
from backplane.message import Gap, Message
from backplane.option_checks import check_number
from backplane.web.client_address import address_key
from backplane.web.refusal import denial

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import datetime

    from starlette.background import BackgroundTask
    from starlette.types import Message as Event
    from starlette.types import Receive, Scope, Send

    from backplane.connection.policy import ConnectionPolicy
    from backplane.fanout.outbox import Outbox
    from backplane.worker.runtime import Runtime

__all__ = ["EventStream", "event_stream"]

logger: Final = logging.getLogger("backplane.web.sse")

_MEDIA_TYPE: Final = "text/event-stream"

# A middleware or proxy that compresses keeps small events back until it has a block of them; even the headers, if it
# waits for a size. `no-transform` (RFC 9111, section 5.2.2.6) stops those that follow it, such as Express' compression.
# Starlette's GZipMiddleware (all types before 0.46) and others for ASGI look whether an encoding is set already, for
# which the registry has a name that means none. X-Accel-Buffering is nginx's: it would wait for 4 KiB.
_HEADERS: Final = {
    "Cache-Control": "no-store, no-transform",
    "Content-Encoding": "identity",
    "X-Accel-Buffering": "no",
}

_HEARTBEAT: Final = b":\n\n"

# Not named `error` or `open`: an `EventSource` dispatches these itself. Without data it would dispatch nothing.
_EXPIRED: Final = b"event: expired\ndata: {}\n\n"

# What a client is given, once its stream has ended, to take what waits for it.
_END_SECONDS: Final = 1.0

_LATER: Final = frozenset({429, 503})


def event_stream(
    runtime: Runtime,
    rules: ConnectionPolicy,
    outbox: Outbox,
    *channels: str,
    context: Any = None,
    client_key: str | None = None,
    expires_at: float | datetime | None = None,
    heartbeat_seconds: float = 15.0,
    retry_seconds: float = 3.0,
) -> Response:
    """Return a response that streams `channels` for as long as its client listens; nothing happens until it is sent.

    The client is joined before the headers go: from the moment it sees them it misses nothing.

    Args:
        runtime: The started backplane.
        rules: What the client may do: `authorize`, `max_channels`, `max_age_seconds`.
        outbox: What waits for this client, and the policy; where it is `close`, a slow client's stream ends.
        *channels: What the client receives.
        context: The application's own, for `authorize`.
        client_key: Who this client is, for `max_connections_per_client`. Defaults to its address.
        expires_at: When its permission runs out, in seconds since the epoch, or as a `datetime` with a time zone.
            Defaults to never.
        heartbeat_seconds: After how long a silence a comment is sent, against proxies that cut silent connections, and
            to notice clients that are gone: one that takes nothing for two such times is given up. Defaults to 15.
        retry_seconds: How long, on average, the client waits until it comes back: each is told a time of its own,
            between half and one and a half of it. Defaults to 3.

    Raises:
        ConfigurationError: No channel, a time that is not more than 0 and finite, or a moment that cannot be meant.
    """
    if not channels:
        raise ConfigurationError("an event stream needs at least one channel")
    check_number("heartbeat_seconds", heartbeat_seconds)
    check_number("retry_seconds", retry_seconds)
    moment = None if expires_at is None else moment_of(expires_at)
    return _EventStreamResponse(
        runtime, rules, outbox, channels, context, client_key, moment, heartbeat_seconds, retry_seconds
    )


class EventStream(Subscription):
    """One client of a stream. Once it has ended, its client has a second to take what waits.

    Attributes:
        is_abandoned: The client is gone.
    """

    def __init__(self, runtime: Runtime, rules: ConnectionPolicy, outbox: Outbox, context: Any) -> None:
        super().__init__(
            runtime.hub, rules, outbox, context=context, statistics=runtime.statistics, bursts=runtime.bursts
        )
        self._max_age_seconds = rules.limits.max_age_seconds
        self._deadline: asyncio.Timeout | None = None
        self.is_abandoned: bool = False
        self._has_begun: bool = False
        self._has_expired: bool = False

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return "event stream"

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
            if self._has_begun:  # else its joins fail, and the client is answered that
                self._finish_within(_END_SECONDS)

    def abandon(self) -> None:
        """End at once: the client is gone."""
        self.is_abandoned = True
        super().end()
        self._finish_within(0)

    @asynccontextmanager
    async def while_there(self, scope: Scope, receive: Receive) -> AsyncGenerator[None]:
        """Run the block, from the joins to the last byte, until the client is gone, or is cut as it takes nothing.

        What the block or `receive` raises goes on as it is.
        """
        listening = asyncio.create_task(self._listen(receive), name=f"backplane-sse-{self.id}")
        deadline = asyncio.timeout(None)
        error: BaseException | None = None
        try:
            async with deadline:
                self._deadline = deadline
                try:
                    yield
                finally:
                    self._deadline = None
        except TimeoutError:
            if not deadline.expired():  # the application's own
                raise
            if not listening.done():
                logger.debug("the client of event stream %s does not read: cutting it", self.id)
                if abort(scope):  # for a response that is left before its client a server logs an error
                    await _ends(listening)
        except OSError:  # how a server reports a client that is gone (ASGI, HTTP 2.4), if it is
            if not self._has_begun or not await _ends(listening):
                raise
        finally:
            listening.cancel()
            await asyncio.wait([listening])
            error = None if listening.cancelled() else listening.exception()
        if error is not None:
            raise error

    async def send_to(self, send: Send, response: _EventStreamResponse) -> None:
        """Send everything, from the headers to the end."""
        self._has_begun = True
        timers = self._timers(response.expires_at)
        give_up_seconds = 2 * response.heartbeat_seconds
        try:
            await self._send(send, _start(response), give_up_seconds)
            await self._send(send, _body(response.hint()), give_up_seconds)
            while (chunk := await self._next_chunk(response.heartbeat_seconds)) is not None:
                await self._send(send, _body(chunk), give_up_seconds)
            end = _EXPIRED * self._has_expired + response.hint()
            await self._send(send, _body(end, more=False), give_up_seconds)
        finally:
            for timer in timers:
                timer.cancel()

    def _note_overrun(self) -> None:
        self._statistics.slow_streams += 1
        self._bursts.log(logger, logging.WARNING, "event stream %s is too slow: ending it", self.id)

    async def _listen(self, receive: Receive) -> None:
        """End the stream when its client is gone: between two messages, sending would not show it."""
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            self.abandon()

    async def _send(self, send: Send, event: Event, give_up_seconds: float) -> None:
        if not self._ended:
            self._finish_within(give_up_seconds)
        await send(event)
        if not self._ended:
            self._finish_within(None)

    async def _next_chunk(self, heartbeat_seconds: float) -> bytes | None:
        try:
            async with asyncio.timeout(heartbeat_seconds):
                return _encode(await anext(self))
        except TimeoutError:
            return _HEARTBEAT
        except (StopAsyncIteration, SlowConsumerError):
            return None

    def _timers(self, expires_at: float | None) -> list[asyncio.TimerHandle]:
        loop, timers = asyncio.get_running_loop(), list[asyncio.TimerHandle]()
        if expires_at is not None:
            timers.append(loop.call_later(max(0, expires_at - time.time()), self._expire))
        if self._max_age_seconds is not None:
            timers.append(loop.call_later(self._max_age_seconds, self.end))
        return timers

    def _expire(self) -> None:
        self._has_expired = True
        self._bursts.log(logger, logging.INFO, "ending event stream %s: its permission has run out", self.id)
        self.end()

    def _finish_within(self, seconds: float | None) -> None:
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)


class _EventStreamResponse(Response):
    """The stream of one request."""

    media_type = _MEDIA_TYPE

    def __init__(
        self,
        runtime: Runtime,
        rules: ConnectionPolicy,
        outbox: Outbox,
        channels: tuple[str, ...],
        context: Any,
        client_key: str | None,
        expires_at: float | None,
        heartbeat_seconds: float,
        retry_seconds: float,
    ) -> None:
        # Not Starlette's own, which would announce a length of 0.
        self.status_code = 200
        self.background: BackgroundTask | None = None
        self.init_headers(_HEADERS)
        self.expires_at = expires_at
        self.heartbeat_seconds = heartbeat_seconds
        self._runtime = runtime
        self._rules = rules
        self._outbox = outbox
        self._channels = channels
        self._context = context
        self._client_key = client_key
        self._retry_seconds = retry_seconds

    def hint(self) -> bytes:
        """Say when to come back; each client is told another time, lest all come at once."""
        milliseconds = 1000 * self._retry_seconds * random.uniform(0.5, 1.5)  # noqa: S311
        return b"retry: %d\n\n" % max(1, round(milliseconds))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise LifecycleError("an event stream answers HTTP requests: deny a WebSocket with a plain Response")
        runtime = self._runtime
        runtime.affinity.check()
        stream = EventStream(runtime, self._rules, self._outbox, self._context)
        async with stream.while_there(scope, receive):
            try:
                await self._answer(stream, scope, receive, send)
            finally:  # at once, for the next request may be here already
                stream.end()
                runtime.unregister_client(stream, partial(when_gone, scope))
        if self.background is not None:
            await self.background()

    async def _answer(self, stream: EventStream, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._join(stream, scope)
        except (BackplaneError, WebSocketException) as error:
            return None if stream.is_abandoned else await self._refuse(error, scope, receive, send)
        except HTTPException:  # of `authorize`: the framework answers it
            self._runtime.statistics.streams_refused += 1
            raise
        if scope["method"] == "HEAD":
            return await self._send_at_once(send, b"")
        statistics = self._runtime.statistics
        statistics.streams_opened += 1
        try:
            await stream.send_to(send, self)
        finally:
            statistics.streams_closed += 1

    async def _join(self, stream: EventStream, scope: Scope) -> None:
        self._check_permission()
        self._runtime.register_client(stream, self._client_key or address_key(scope))
        for channel in self._channels:
            await stream.join(channel)
        self._check_permission()  # `authorize` may have taken its time

    def _check_permission(self) -> None:
        if self.expires_at is not None and self.expires_at <= time.time():
            raise PermissionExpiredError("the permission of this client has run out")

    async def _refuse(
        self, error: BackplaneError | WebSocketException, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._runtime.statistics.streams_refused += 1
        level = logging.WARNING if isinstance(error, BrokerError) else logging.INFO
        self._runtime.bursts.log(logger, level, "refused an event stream: %s", error)
        answer = denial(error)
        if answer.status_code in _LATER and _MEDIA_TYPE in Headers(scope=scope).get("accept", ""):
            return await self._send_at_once(send, b": not available, try again later\n" + self.hint())
        answer.headers["Cache-Control"] = "no-store"
        await answer(scope, receive, send)

    async def _send_at_once(self, send: Send, body: bytes) -> None:
        await send(_start(self))
        await send(_body(body, more=False))


async def _ends(task: asyncio.Task[None]) -> bool:
    """Return whether `task` ends within a second."""
    done, _ = await asyncio.wait([task], timeout=_END_SECONDS)
    return bool(done)


def _start(response: Response) -> Event:
    return {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}


def _body(body: bytes, *, more: bool = True) -> Event:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _encode(item: Message | Gap) -> bytes:
    if isinstance(item, Gap):
        # The reason may hold a broker's own words.
        return b"event: gap\ndata: %b\n\n" % json.dumps({"channel": item.channel}).encode()
    if isinstance(item.data, bytes):
        return b"event: binary\ndata: %b\n\n" % b64encode(item.data)
    lines = item.data.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\ndata: ")
    return f"data: {lines}\n\n".encode()
