"""Server-sent events: the same channels for a browser's `EventSource`, for clients that only receive.

`backplane.web.event_format` has the format. A page of another site cannot read a stream: CORS applies.

Plain Starlette, by decision. FastAPI's own `EventSourceResponse` only marks a route whose generator FastAPI runs, and
does not exist in Starlette. sse-starlette (3.7) replaces `uvicorn.Server.handle_exit` when it is imported and polls the
handler of SIGTERM, where this package drains. What is left for a library is a dozen lines of format.

An `EventSource` reconnects by itself when a stream ends, but never after an HTTP error (HTML Standard, section 9.2.3).
So where the answer is "later" (a drain, an outage, a full worker) and the client accepts an event stream, it gets one
that ends at once with a hint when to reconnect; any other client gets the status.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException, WebSocketException
from starlette.responses import Response

from backplane.connection.ending import what_was_refused
from backplane.connection.expiry import check_permission, moment_of
from backplane.errors import (
    BackplaneError,
    BrokerError,
    ConfigurationError,
    LifecycleError,
    OriginRefusedError,
    SlowConsumerError,
)
from backplane.fanout.batch import Batch, FinalMessage
from backplane.fanout.subscriber_options import (
    SEPARATOR,
    UNKNOWN,
    Since,
    SubscriberOptions,
    check_rewind,
    kept_channels,
    positions_by_channel,
    previous_token,
)
from backplane.fanout.subscription import Subscription
from backplane.journal.events import CLIENT_CLOSED, CLIENT_REFUSED, CLIENT_UNREAD
from backplane.lane import abort, when_gone
from backplane.option_checks import check_number
from backplane.web.client_address import address_key
from backplane.web.event_format import (
    HEADERS,
    HEARTBEAT,
    MEDIA_TYPE,
    encode_event,
    encode_expired,
    encode_position,
    encode_retry,
)
from backplane.web.refusal import denial

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from datetime import datetime

    from starlette.background import BackgroundTask
    from starlette.types import Message as Event
    from starlette.types import Receive, Scope, Send

    from backplane.connection.policy import ConnectionPolicy
    from backplane.fanout.outbox import Outbox
    from backplane.fanout.subscriber_options import ChannelPresence
    from backplane.web.origin import OriginRule
    from backplane.worker.runtime import Runtime

__all__ = ["EventStream", "event_stream"]

logger: Final = logging.getLogger("backplane.web.sse")

# How long a client may take, once its stream has ended, to receive what waits for it.
_END_SECONDS: Final = 1.0

_EXPIRED: Final = "permission has run out"
_TOO_OLD: Final = "max_age_seconds"

_LATER: Final = frozenset({429, 503})

# Each event has the positions of all channels with a history, 29 characters each.
_MAX_KEPT: Final = 16


def event_stream(
    runtime: Runtime,
    rules: ConnectionPolicy,
    outbox: Outbox,
    *channels: str,
    origins: OriginRule,
    context: Any = None,
    client_key: str | None = None,
    expires_at: float | datetime | None = None,
    heartbeat_seconds: float = 15.0,
    retry_seconds: float = 3.0,
    since: Since = None,
    rewind: int = 0,
    previous_id: str | None = None,
    presence: ChannelPresence | None = None,
) -> Response:
    """Return a response that streams `channels` until its client disconnects; nothing happens until it is sent.

    The client is joined before the headers are sent: from the moment it receives them it misses nothing.

    Args:
        runtime: The started backplane.
        rules: What the client may do: `authorize` and the limits.
        outbox: What waits for this client; with the policy `close` a slow client's stream ends.
        *channels: What the client receives.
        origins: The names of this host.
        context: The application's own, for `authorize`.
        client_key: Whose stream this is, for `max_connections_per_client`. Defaults to the client's address.
        expires_at: When its permission runs out, in seconds since the epoch, or as a `datetime` with a time zone.
            Defaults to never.
        heartbeat_seconds: After how long a silence a comment is sent, against proxies that cut silent connections, and
            to notice clients that are gone: one that takes nothing for two such times is cut. Defaults to 15.
        retry_seconds: How long, on average, the client waits before it reconnects: each gets a time of its own,
            between half and one and a half of it. Defaults to 3.
        since: Where the client was before; its header `Last-Event-ID`, where it sends one, replaces that.
        rewind: How many messages of each channel come first, at a first visit and after a gap at the join.
        previous_id: The id of the stream that the client had before.
        presence: What is notified of its channels.

    Raises:
        ConfigurationError: No channel, more than 16 channels with a history, a time that is not more than 0 and finite,
            a moment that is none, or one of the last three cannot be used.
    """
    if not channels:
        raise ConfigurationError("an event stream needs at least one channel")
    check_number("heartbeat_seconds", heartbeat_seconds)
    check_number("retry_seconds", retry_seconds)
    moment = None if expires_at is None else moment_of(expires_at)
    history = runtime.hub.rules
    kept = kept_channels(channels, history)
    if len(kept) > _MAX_KEPT:
        raise ConfigurationError(
            f"an event stream takes {_MAX_KEPT} channels with a history, not {len(kept)}: use several streams"
        )
    check_rewind(rewind, history, at_join=False)
    options = SubscriberOptions(
        since=positions_by_channel(since, channels, history),
        rewind=rewind,
        previous=previous_token(previous_id),
        presence=presence,
    )
    return _EventStreamResponse(
        runtime,
        rules,
        outbox,
        channels,
        kept,
        origins,
        context,
        client_key,
        moment,
        heartbeat_seconds,
        retry_seconds,
        options,
    )


class EventStream(Subscription):
    """The subscriber of one stream. After its end its client has a second to receive what waits.

    Attributes:
        is_abandoned: The client is gone.
    """

    def __init__(
        self,
        runtime: Runtime,
        rules: ConnectionPolicy,
        outbox: Outbox,
        context: Any,
        kept: Sequence[str],
        options: SubscriberOptions,
    ) -> None:
        super().__init__(
            runtime.hub,
            rules,
            outbox,
            context=context,
            statistics=runtime.statistics,
            journal=runtime.journal,
            options=options,
        )
        self._kept = kept
        self._max_age_seconds = rules.limits.max_age_seconds
        self._deadline: asyncio.Timeout | None = None
        self.is_abandoned: bool = False
        self._has_begun: bool = False
        self._end_reason: str | None = None

    _consumer = "sse"

    @property
    def kind(self) -> str:
        """`event stream`."""
        return "event stream"

    @property
    def _is_admitted(self) -> bool:
        return self._has_begun

    def retire(self, code: int, reason: str, /) -> None:
        """End: the worker drains. There is no close code in HTTP."""
        self._end_for(reason)

    async def close(self, code: int, reason: str, /) -> None:
        """End: the worker stops, or a command ends it."""
        self._end_for(reason)

    def send(self, data: str | bytes) -> None:
        """Send what the application itself sends, after what waits."""
        self._statistics.sent += 1
        self.offer(Batch(FinalMessage(channel="", data=data)))

    def end(self) -> None:
        """End after what already waits, which the client has a second to receive. Ending again changes nothing."""
        if not self._ended:
            super().end()
            if self._has_begun:  # else its joins fail, and the answer to the client reports that
                self._finish_within(_END_SECONDS)

    def abandon(self) -> None:
        """End at once: the client is gone."""
        self.is_abandoned = True
        super().end()
        self._finish_within(0)

    @asynccontextmanager
    async def while_there(self, scope: Scope, receive: Receive) -> AsyncGenerator[None]:
        """Run the block, from the joins to the last byte, until the client is gone, or is cut because it reads nothing.

        What the block or `receive` raises is raised as it is.
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
                words = "the client of event stream %(connection)s does not read: cutting it"
                self._journal.log(logger, CLIENT_UNREAD, words, **self.named)
                if abort(scope):  # a server logs an error for a response that ends before its client is gone
                    await _ends(listening)
        except OSError:  # that the client is gone (ASGI, HTTP 2.4), or another error of this type
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
        self.log_begin()
        self._enter_channels()
        timers = self._timers(response.expires_at)
        give_up_seconds = 2 * response.heartbeat_seconds
        try:
            await self._send(send, _start(response), give_up_seconds)
            await self._send(send, _body(response.hint() + encode_position(self._last_id())), give_up_seconds)
            while (chunk := await self._next_chunk(response.heartbeat_seconds)) is not None:
                await self._send(send, _body(chunk), give_up_seconds)
            end = encode_expired(self._last_id()) if self._end_reason == _EXPIRED else b""
            await self._send(send, _body(end + response.hint(), more=False), give_up_seconds)
        finally:
            for timer in timers:
                timer.cancel()
            is_ended_here = self._overrun or self._end_reason is not None
            self.log_end("worker" if is_ended_here else "client", self._end_reason)

    def _note_overrun(self) -> None:
        self._statistics.slow_streams += 1
        self._log_slow()

    async def _listen(self, receive: Receive) -> None:
        """End the stream when its client is gone: a send would notice that only at the next message."""
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
                item = await anext(self)
                return encode_event(item, self._last_id())
        except TimeoutError:
            return HEARTBEAT
        except (StopAsyncIteration, SlowConsumerError):
            return None

    def _last_id(self) -> str:
        """Return the positions up to which the client was sent each channel that has a history."""
        return SEPARATOR.join(str(self._positions.get(channel) or UNKNOWN) for channel in self._kept)

    def _timers(self, expires_at: float | None) -> list[asyncio.TimerHandle]:
        loop, timers = asyncio.get_running_loop(), list[asyncio.TimerHandle]()
        if expires_at is not None:
            timers.append(loop.call_later(max(0, expires_at - time.time()), self._expire))
        if self._max_age_seconds is not None:
            timers.append(loop.call_later(self._max_age_seconds, self._end_for, _TOO_OLD))
        return timers

    def _expire(self) -> None:
        words = "ending event stream %(connection)s: its permission has run out"
        self._journal.log(logger, CLIENT_CLOSED, words, reason=_EXPIRED, **self.named)
        self._end_for(_EXPIRED)

    def _end_for(self, reason: str) -> None:
        if not self._ended:
            self._end_reason = reason
        self.end()

    def _finish_within(self, seconds: float | None) -> None:
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)


class _EventStreamResponse(Response):
    """The stream of one request."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        runtime: Runtime,
        rules: ConnectionPolicy,
        outbox: Outbox,
        channels: tuple[str, ...],
        kept: Sequence[str],
        origins: OriginRule,
        context: Any,
        client_key: str | None,
        expires_at: float | None,
        heartbeat_seconds: float,
        retry_seconds: float,
        options: SubscriberOptions,
    ) -> None:
        # Not Starlette's own, which would announce a length of 0.
        self.status_code = 200
        self.background: BackgroundTask | None = None
        self.init_headers(HEADERS)
        self.expires_at = expires_at
        self.heartbeat_seconds = heartbeat_seconds
        self._runtime = runtime
        self._rules = rules
        self._outbox = outbox
        self._channels = channels
        self._kept = kept
        self._options = options
        self._origins = origins
        self._context = context
        self._client_key = client_key
        self._retry_seconds = retry_seconds

    def hint(self) -> bytes:
        """Return when to reconnect."""
        return encode_retry(self._retry_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise LifecycleError("an event stream answers HTTP requests: deny a WebSocket with a plain Response")
        runtime = self._runtime
        runtime.affinity.check()
        stream = EventStream(runtime, self._rules, self._outbox, self._context, self._kept, self._options)
        stream.client_key = self._client_key
        async with stream.while_there(scope, receive):
            try:
                await self._answer(stream, scope, receive, send)
            finally:  # at once: the next request may be here already
                stream.discard()
                runtime.clients.unregister(stream, partial(when_gone, scope))
        if self.background is not None:
            await self.background()

    async def _answer(self, stream: EventStream, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._join(stream, scope)
        except (BackplaneError, WebSocketException) as error:
            return None if stream.is_abandoned else await self._refuse(stream, error, scope, receive, send)
        except HTTPException as error:  # raised by `authorize`: the framework answers it
            self._runtime.statistics.streams_refused += 1
            self._log_refusal(stream, error)
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
        self._check_host(scope)
        self._check_permission()
        self._runtime.clients.register(
            stream, self._client_key or address_key(scope), self._rules.limits.max_connections_per_client
        )
        await self._runtime.admit(stream, self._rules.limits)
        since = self._options.since
        # What a client shows that comes back by itself is newer than what its page has in the address of the stream. It
        # also shows one of a worker that had a history: where this one has none, the client is notified of gaps.
        if last_id := _last_event_id(scope):
            since = positions_by_channel(last_id, self._channels, self._runtime.hub.rules)
        for channel in self._channels:
            await stream.join(channel, since=since, rewind=self._options.rewind)
        self._check_permission()  # `authorize` may have taken its time

    def _check_host(self, scope: Scope) -> None:
        """Refuse a page that was loaded under a foreign name of this server: its browser takes both for one host."""
        refusal = self._origins.host_refusal(Headers(scope=scope).get("host"))
        if refusal is not None:
            self._runtime.statistics.refused_origins += 1
            raise OriginRefusedError(refusal)

    def _check_permission(self) -> None:
        check_permission(has_expired=self.expires_at is not None and self.expires_at <= time.time())

    async def _refuse(
        self,
        stream: EventStream,
        error: BackplaneError | WebSocketException,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._runtime.statistics.streams_refused += 1
        self._log_refusal(stream, error)
        answer = denial(error)
        if answer.status_code in _LATER and MEDIA_TYPE in Headers(scope=scope).get("accept", ""):
            return await self._send_at_once(send, b": not available, try again later\n" + self.hint())
        answer.headers["Cache-Control"] = "no-store"
        await answer(scope, receive, send)

    def _log_refusal(self, stream: EventStream, error: Exception) -> None:
        is_warning = isinstance(error, BrokerError | OriginRefusedError)  # of others there is a line, or none is needed
        self._runtime.journal.log(
            logger,
            CLIENT_REFUSED,
            "refused an event stream: %(reason)s",
            level=None if is_warning else logging.INFO,
            of_many=isinstance(error, BrokerError),
            what=what_was_refused(error),
            reason=error,
            **stream.named,
        )

    async def _send_at_once(self, send: Send, body: bytes) -> None:
        await send(_start(self))
        await send(_body(body, more=False))


async def _ends(task: asyncio.Task[None]) -> bool:
    """Return whether `task` ends within a second."""
    done, _ = await asyncio.wait([task], timeout=_END_SECONDS)
    return bool(done)


def _last_event_id(scope: Scope) -> str:
    """Return what the client shows; of several the last one, since some clients add each to those before."""
    shown = ",".join(Headers(scope=scope).getlist("last-event-id"))
    return shown.rpartition(",")[2].strip() or shown


def _start(response: Response) -> Event:
    return {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}


def _body(body: bytes, *, more: bool = True) -> Event:
    return {"type": "http.response.body", "body": body, "more_body": more}
