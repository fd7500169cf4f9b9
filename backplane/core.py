"""`Backplane`: the application's one object, which holds the parts together."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from backplane.broker.adapter_source import AdapterSource
from backplane.channels import validate_channel
from backplane.concurrency.affinity import current_process
from backplane.connection.connection import Connection
from backplane.connection.limits import Limits
from backplane.connection.policy import ConnectionPolicy, check_treatment
from backplane.errors import (
    ClosedError,
    ConfigurationError,
    InvalidDataError,
    LifecycleError,
    NotStartedError,
    PayloadTooLargeError,
)
from backplane.fanout.codec import encode
from backplane.fanout.outbox import FullPolicy, Outbox
from backplane.fanout.subscription import Subscription
from backplane.settings import Settings
from backplane.synchronous.publisher import WorkerPublisher
from backplane.synchronous.publisher_thread import PublisherThreads
from backplane.typed_channel import TypedChannel
from backplane.web.handshake import ConnectionScope
from backplane.web.origin import OriginRule
from backplane.worker.deployment import NO_LIFESPAN, warn_if_isolated, warn_if_nobody_pings, warn_of_default_url
from backplane.worker.health import Health
from backplane.worker.runtime import Runtime
from backplane.worker.server_shutdown import drain_at_the_end

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterable
    from datetime import datetime

    from pydantic import TypeAdapter
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

    from backplane.broadcaster import Broadcaster
    from backplane.broker.supervisor import LinkState, StateChange
    from backplane.concurrency.affinity import LoopAffinity
    from backplane.concurrency.call_queue import CallQueue
    from backplane.connection.policy import Authorize, OnGap, OnSlow
    from backplane.message import Message
    from backplane.synchronous.publisher import SyncPublisher
    from backplane.web.origin import AllowedOrigins

__all__ = ["Backplane"]

logger = logging.getLogger("backplane.core")

_ModelT = TypeVar("_ModelT")

# Collected, these would close sockets that the parent process still uses.
_inherited: list[object] = []


class Backplane:
    """Joins the workers of an application: what one publishes, the sockets of all receive.

    Opens nothing until it is started, so it may stand at module level, before a fork, with `--preload`. Start it by
    `FastAPI(lifespan=backplane.lifespan)` or by `async with backplane:`; after its end it may be started again.

    One publish reaches each subscriber at most once, in the order in which one worker published to one channel. Where
    messages may be missing, the subscribers are told by a `Gap`.

    Once started it belongs to its event loop: used from another event loop (`asyncio.run` in a `def` endpoint), another
    thread or a forked process it raises `WrongLoopError`, at once. Safe anywhere are `sync`, which publishes from other
    threads, what only reads (`state`, `url`, `repr`, `statistics`), and what configures (`channel`, `on_state`,
    `on_slow`, `authorize`); `sse` may be called in a `def` endpoint, as it only makes a response. If its event loop
    ends without `stop`, it is closed and may be started again; a forked child may start it too.

    Args:
        url: The broker, such as `redis://localhost:6379`; its query string holds the adapter's options. Defaults to the
            environment variable `BACKPLANE_URL`, else `memory://`. Or an adapter object, which serves this backplane
            alone. Only a URL can be opened a second time: with an object, `sync` publishes where this backplane is
            started and nowhere else, and after an event loop that ended without `stop`, or in a child of the process in
            which it was started, another object is needed.
        settings: Times and bounds; see `Settings` for each with its default.
        limits: How clients are kept alive and what they may do, where `connect` does not say otherwise; see `Limits`
            for each with its default.
        allowed_origins: The pages of which sites may connect: by default those of this host alone. A list such as
            `["https://shop.example"]` replaces that, `"*"` allows all; see `backplane.web.origin.AllowedOrigins`.
        allowed_hosts: The names of this host, without scheme and port, such as `["shop.example", "*.shop.example"]`:
            with the default of `allowed_origins` a page of another name is refused even where that name leads here (DNS
            rebinding). Defaults to any name.
        on_gap: What clients are told when messages may be missing, where `connect` does not say otherwise: `close`
            (default) ends them with code 4000, "reconnect and reload"; see `backplane.connection.policy.OnGap`.

    Raises:
        ConfigurationError: The URL, a setting, an origin, a host or another argument is wrong; the message says what is
            known.
        MissingDependencyError: The adapter's client library is not installed.
    """

    def __init__(
        self,
        url: str | Broadcaster | None = None,
        *,
        settings: Settings | None = None,
        limits: Limits | None = None,
        allowed_origins: AllowedOrigins = None,
        allowed_hosts: Collection[str] | None = None,
        on_gap: OnGap = "close",
    ) -> None:
        if not isinstance(settings, Settings | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"settings must be a Settings(...), not {settings!r:.100}")
        self._settings = settings or Settings()
        self._limits = limits or Limits()
        check_treatment(on_gap, self._limits)
        self._origins = OriginRule(allowed_origins, allowed_hosts)
        self._on_gap: OnGap = on_gap
        self._authorize: Authorize | None = None
        self._on_slow: OnSlow | None = None
        self._shared_policy: ConnectionPolicy | None = None  # of all connections that do not say otherwise
        self._state_callbacks: list[Callable[[StateChange], object]] = []
        self._source = AdapterSource(url)
        self._broadcaster = self._source.adapter
        self._runtime: Runtime | None = None
        self._stopping: tuple[LoopAffinity, asyncio.Task[None]] | None = None
        self._started_in: object = None  # the process
        self._server_end = ExitStack()
        self._sync = WorkerPublisher(
            self, self._calls, PublisherThreads(self._unstarted, self._settings), self._settings.publish_timeout_seconds
        )

    def __repr__(self) -> str:
        return f"<Backplane {self.url} {self.state}>"

    @property
    def url(self) -> str:
        """The broker's URL, without options and with its password masked."""
        return str(self._broadcaster.url)

    @property
    def state(self) -> LinkState:
        """How the link to the broker is; `closed` while not started."""
        runtime = self._runtime
        return runtime.supervisor.state if runtime is not None and runtime.affinity.is_alive else "closed"

    @property
    def sync(self) -> SyncPublisher:
        """Publishes from synchronous code: `backplane.sync.publish(...)` in a `def` endpoint, a thread, a task queue.

        Where this backplane is started it publishes through it, in its event loop, and raises `ClosedError` after its
        end. In a process that never starts it, a task queue or a script that shares the module, it begins a thread
        with a link of its own, as a `SyncBackplane` does.
        """
        return self._sync

    def on_state(self, callback: Callable[[StateChange], object]) -> Callable[[StateChange], object]:
        """Call `callback` on every change of the link's state, from now on: `@backplane.on_state`.

        It is called at once, in the event loop, and must not block; what it raises is logged.
        """
        self._state_callbacks.append(callback)
        return callback

    def on_slow(self, callback: OnSlow) -> OnSlow:
        """Call `callback` with a `SlowConsumer` whenever a client begins to be too slow: `@backplane.on_slow`.

        Once for each stretch, and again when the client is closed for it. It is called in the event loop and must not
        block; what it raises is logged. Set it before the first client connects.
        """
        self._on_slow = callback
        self._shared_policy = None
        return callback

    def authorize(self, callback: Authorize) -> Authorize:
        """Ask `callback(client, channel)` at every join of a client whether it may be: `@backplane.authorize`.

        A function or a coroutine function that returns whether it may, within `authorize_timeout_seconds`. A no raises
        `JoinRefusedError`; before the handshake of a WebSocket, and before an event stream begins, it is an HTTP 403.
        It may raise the framework's `HTTPException` or `WebSocketException` instead, for a status or a code of its own.
        The client is a `Connection` or an event stream: `backplane.connection.policy.Client` is what both have.
        `client.context` is what `connect(context=...)` or `sse(context=...)` was given.
        Set it before the first client connects.

        Every way on which a client gets to a channel asks. `subscribe` does not: it is the application's own.
        """
        self._authorize = callback
        self._shared_policy = None
        return callback

    def statistics(self) -> dict[str, int]:
        """Return what this worker counted since the start, by the names of `Statistics`; empty while not running."""
        return {} if self._runtime is None else self._runtime.count().as_dict()

    async def health(self) -> Health:
        """Return how this worker is; works at any time. `backplane.health_routes.health_routes` serves it over HTTP."""
        runtime = self._runtime_here()
        return Health(live=True, ready=False, state="closed") if runtime is None else runtime.health()

    async def wait_for_state(self, state: LinkState) -> None:
        """Wait until the link to the broker is in `state`. A state that passes at once can be missed.

        Raises:
            NotStartedError, ClosedError: The backplane is not running, or has drained.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        runtime = self._require_runtime()
        supervisor = runtime.supervisor
        while supervisor.state != state:
            if runtime.drained or supervisor.state == "closed":
                raise ClosedError("this Backplane has been stopped, or is about to be")
            await supervisor.state_changed()

    async def start(self) -> None:
        """Connect to the broker; with the setting `start="lazy"` come up without it where it is away.

        Logs a warning where `memory://` is used because no URL was given: outside a web worker it reaches nobody.

        Raises:
            BrokerError: The broker could not be reached within `start_timeout_seconds`, or it refused.
            LifecycleError: It is started already, or the event loop is not asyncio's.
        """
        await self._start()
        if self._source.is_default:
            warn_of_default_url(self.url)

    async def _start(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError as error:
            raise LifecycleError(
                "a Backplane needs asyncio, or uvloop, and this event loop is another one, such as trio's: "
                "take a worker of asyncio (Hypercorn: `--worker-class asyncio`)"
            ) from error
        if self._stopping is not None and self._stopping[0].is_alive:
            await self.stop()  # the next link is not opened before the last one is closed: an adapter is one of both
        if (of := self._affinity()) is not None and not of.is_alive:
            self._abandon(of)
        if self._runtime is not None:
            raise LifecycleError("this Backplane is started already; a second one needs an object of its own")
        self._source.take()
        runtime = Runtime(self._broadcaster, self._settings, self._notify_state)
        self._runtime = runtime
        self._shared_policy = None
        try:
            await runtime.supervisor.start()
        except BaseException:
            self._runtime = None
            self._source.give_back()
            raise
        self._started_in = current_process()
        self._server_end = drain_at_the_end(self._drain)
        warn_if_isolated(self._broadcaster.capabilities, self.url)

    async def drain(self) -> None:
        """Prepare the end: not ready, no new clients, those that are there closed with 1012 over `drain_seconds`.

        Handlers that stay in their block are cancelled `handler_grace_seconds` after their connection has ended. Then
        what is iterated from `subscribe` ends, and `wait_for_state` raises; publishing goes on until `stop`.

        Started in the lifespan of an application, this is done when the server ends: before it acts under Uvicorn, by
        itself, in a thread or below Gunicorn; docs/servers.md has a table for all. Elsewhere call it yourself.
        """
        await self._drain(hurried=False)

    async def _drain(self, hurried: bool) -> None:
        runtime = self._runtime_here()
        if runtime is not None:
            await runtime.drain(hurried=hurried)

    async def stop(self) -> None:
        """End every connection (code 1012) and subscription and close the link. Stopping again changes nothing.

        Publishes in flight are answered first, and what `outage="buffer"` keeps is sent where the broker is there.
        """
        if self._runtime is not None and self._runtime.affinity.has_ended:
            self._abandon(self._runtime.affinity)
        runtime = self._runtime_here()
        if runtime is not None:
            self._runtime = None
            self._server_end.close()
            # In a task of its own: cancelling whoever waits for the end must not leave half of it.
            self._stopping = runtime.affinity, asyncio.create_task(self._stop(runtime))
        if self._stopping is not None:
            affinity, stopping = self._stopping
            if not affinity.has_ended:
                affinity.check()
                await asyncio.shield(stopping)
            self._stopping = None

    async def _stop(self, runtime: Runtime) -> None:
        await runtime.stop()
        self._source.give_back()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncGenerator[dict[str, Any]]:
        """Run for as long as the application: `FastAPI(lifespan=backplane.lifespan)`; when its server ends, `drain`.

        Puts itself into the lifespan state, where `backplane.dependencies.get_backplane` finds it.
        """
        await self._start()
        try:
            yield {"backplane": self}
        finally:
            await self.stop()

    async def publish(self, channel: str, data: object, *, exclude: Connection | str | None = None) -> None:
        """Publish `data` to every subscriber of `channel`, on every worker.

        Returns when the broker has it as firmly as the adapter's `capabilities.publish_returns` says; that no one
        subscribes is no error. It is never sent twice in secret. Cancelling leaves open whether it was published.

        Args:
            channel: Where to.
            data: `str` is received as text, `bytes` as binary, anything else as JSON text.
            exclude: A connection, or its id, that does not get it: usually the client that said it.

        Raises:
            InvalidChannelError: The name is not legal.
            InvalidDataError: `data` is neither text, nor bytes, nor anything JSON.
            ConfigurationError: `exclude` is given, and the URL's option `wire_format=plain` leaves no place for it.
            PayloadTooLargeError: It is over the adapter's limit; nothing was sent.
            BrokerUnavailableError: The broker was away for `publish_timeout_seconds`, or the buffer of
                `outage="buffer"` is full; certainly not published. At once where the broker answers that it cannot take
                it for the moment (a script runs, a failover is under way): another try can succeed.
            PublishOutcomeUnknownError: The link ended, or time ran out, before the broker's answer.
            PublishError: The broker refused it.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        runtime = self._require_runtime()
        validate_channel(channel)
        excluded = _token(exclude)
        payload = encode(
            data,
            origin=runtime.origin,
            published_at=time.time(),
            excluded=excluded,
            wire_format=self._broadcaster.options.wire_format,
        )
        limit = runtime.supervisor.max_payload_bytes
        if len(payload) > limit:
            raise PayloadTooLargeError(len(payload), limit)
        await runtime.publish(channel, payload)

    @asynccontextmanager
    async def subscribe(
        self,
        *channels: str,
        when_full: FullPolicy = "close",
        max_outbox_bytes: int | None = None,
        max_outbox_messages: int | None = None,
    ) -> AsyncGenerator[Subscription]:
        """Subscribe a consumer without a socket: `async with backplane.subscribe("orders") as messages: async for ...`.

        Once entered, no later publish is missed without a `Gap`. It is the application that subscribes: `authorize` is
        not asked, and no limit of `Limits` counts. What is passed on to a client by hand, the application checks.

        Args:
            *channels: What to receive; `Subscription.join` adds more, and the first one must come before iterating.
            when_full: What happens when the consumer is too slow; `close` raises `SlowConsumerError` in it.
            max_outbox_bytes: Bound of what waits for it, in bytes.
            max_outbox_messages: Bound of what waits for it, in messages.

        Raises:
            InvalidChannelError: A name is not legal.
            SubscribeError: The broker refused a channel.
            BrokerUnavailableError: The broker did not confirm in time.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        runtime = self._require_runtime()
        outbox = self._outbox(runtime, max_outbox_bytes, max_outbox_messages, when_full)
        subscription = Subscription(
            runtime.hub, None, outbox, statistics=runtime.statistics, bursts=runtime.bursts
        )  # the application's own
        runtime.subscriptions[subscription] = None
        try:
            for channel in channels:
                await subscription.join(channel)
            yield subscription
        finally:
            subscription.end()
            runtime.subscriptions.pop(subscription, None)

    def connect(
        self,
        websocket: WebSocket,
        *channels: str,
        subprotocol: str | None = None,
        headers: Iterable[tuple[bytes, bytes]] | None = None,
        context: Any = None,
        client_key: str | None = None,
        expires_at: float | datetime | None = None,
        refuse_after_accept: bool | None = None,
        limits: Limits | None = None,
        on_gap: OnGap | None = None,
        when_full: FullPolicy = "close",
        latest_by: Callable[[Message], object] | None = None,
        max_outbox_bytes: int | None = None,
        max_outbox_messages: int | None = None,
    ) -> AbstractAsyncContextManager[Connection]:
        """Join `channels`, accept `websocket`, and look after it until the block ends.

        The client is joined before it is accepted: from the moment its handshake is done it misses nothing. When the
        block ends the socket is closed: 1000, or 1011 if it raised. Some errors are ordinary ends and go no further,
        alone or in an `ExceptionGroup` of them, of which the gravest counts:

        - a `ClosedError` because the client is gone or the worker ends, and a `WebSocketDisconnect` (1000);
        - a join that was refused (4503, 4513), a channel name that is not legal (4503);
        - what the client sent: an `InvalidMessageError` (1007), and a `PayloadTooLargeError` of a publish (1009);
        - any other `BrokerError`, an `AuthorizeTimeoutError`, a `SlowConsumerError` (1013);
        - the framework's own: a `WebSocketException` (with its code and reason), an `HTTPException` (4503 with its
          detail, 1013 for 408, 425, 429 and from 500 on), FastAPI's `RequestValidationError` (1007).

        At a gap, and where a block ends with 1013, many clients are concerned at once, and each is closed in its turn,
        spread over `drain_seconds`. Until it is closed a client receives what is published; where its handler has
        ended, what it sends is dropped.

        A client that is refused before it is accepted gets an HTTP status, of which a browser's page sees nothing:
        close code 1006, whatever it was. With `refuse_after_accept` it is accepted and closed at once, with the code
        above (1012 while the worker drains, 1013 where it is full, 4001 where the permission has run out) and a reason;
        nothing it sends is read. A page of another site (`allowed_origins`) is always refused by HTTP. So is a client
        for whom there is no room: as many as `max_connections`, 256 at most, may be refused this way at a time.

        What runs for the client from elsewhere (sends through ASGI, `on_gap`, `on_slow`, `latest_by`, its close) runs
        in a copy of the Context in which this is called.

        Args:
            websocket: As the framework handed it over, not accepted yet.
            *channels: What the client hears; `Connection.join` adds more.
            subprotocol: The WebSocket subprotocol to accept with.
            headers: Headers to accept with.
            context: Anything of the application's, such as the user: `Connection.context`, for `authorize`.
            client_key: Whose connection this is, for `max_connections_per_client`. Defaults to the client's address,
                of IPv6 the first 64 bits.
            expires_at: When its permission runs out, in seconds since the epoch, or as a `datetime` with a time zone:
                closed with 4001, and refused (401) where that is past. Defaults to never.
            refuse_after_accept: Whether a refusal is a close code that a page can read, or an HTTP status. Defaults to
                the setting of that name, which is an HTTP status.
            limits: Its limits; defaults to those of the backplane.
            on_gap: What this client is told when messages may be missing; defaults to what the backplane was made with.
            when_full: What happens when the client is too slow; `close` ends it with code 1013.
            latest_by: With `latest`, what tells the messages of one channel apart; see `backplane.fanout.outbox.Rule`.
            max_outbox_bytes: Bound of what waits for it, in bytes.
            max_outbox_messages: Bound of what waits for it, in messages.

        Raises:
            WebSocketException: The client was refused, and its cause says why: a `RefusedError` (the origin,
                `authorize`, a limit, the permission), an `InvalidChannelError` (400), a `BrokerError` (403 where the
                broker refused the channel, else 503), an `AuthorizeTimeoutError` (503), or a `ClosedError` while the
                worker drains, or because the client left before it was accepted. The handshake is answered; the
                framework takes it for an ordinary end.
            ConfigurationError: `expires_at` is no moment.
            LifecycleError: The socket was accepted already.
            ClosedError: The socket is closed, or the backplane has stopped.
            NotStartedError: The backplane is not started.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        from backplane.web.websocket import StarletteSocket  # the core must not need the framework

        runtime = self._require_runtime()
        socket = StarletteSocket(websocket)
        if socket.lane is None:
            warn_if_nobody_pings(limits or self._limits)
        outbox = self._outbox(runtime, max_outbox_bytes, max_outbox_messages, when_full, latest_by)
        connection = Connection(socket, runtime.hub, outbox, self._policy(runtime, limits, on_gap), context=context)
        connection.expire_at(expires_at)
        return ConnectionScope(
            runtime,
            socket,
            connection,
            origins=self._origins,
            channels=channels,
            client_key=client_key,
            subprotocol=subprotocol,
            headers=headers,
            after_accept=self._settings.refuse_after_accept if refuse_after_accept is None else refuse_after_accept,
        )

    def sse(
        self,
        request: Request,
        *channels: str,
        context: Any = None,
        client_key: str | None = None,
        expires_at: float | datetime | None = None,
        limits: Limits | None = None,
        heartbeat_seconds: float = 15.0,
        retry_seconds: float = 3.0,
        when_full: FullPolicy = "close",
        max_outbox_bytes: int | None = None,
        max_outbox_messages: int | None = None,
    ) -> Response:
        """Answer `request` with the same channels as server-sent events: `return backplane.sse(request, "orders")`.

        Joined before the answer begins: from the moment the client sees it, it misses nothing. A client that may not
        join, by `authorize`, a limit, an expired permission or the broker, gets an HTTP error before the stream begins,
        the same as a WebSocket's handshake. The module `backplane.sse` documents what is on the wire.

        Args:
            request: As the framework handed it over.
            *channels: What the client receives.
            context: Anything of the application's, such as the user: `client.context`, for `authorize`.
            client_key: Whose stream this is, for `max_connections_per_client`. Defaults to the client's address.
            expires_at: When its permission runs out, in seconds since the epoch, or as a `datetime` with a time zone:
                the stream ends with an event `expired`, and the client comes back with a new request, which the
                application may refuse. Defaults to never.
            limits: Its limits, of which `max_channels` and `max_age_seconds` concern a stream; defaults to those of the
                backplane.
            heartbeat_seconds: How often a comment is sent while nothing else is; a client that takes nothing for two
                such times is given up. Defaults to 15.
            retry_seconds: After how long the client comes back, give or take. Defaults to 3.
            when_full: What happens when the client is too slow; `close` ends the stream, and the client comes back.
            max_outbox_bytes: Bound of what waits for it, in bytes.
            max_outbox_messages: Bound of what waits for it, in messages.

        Raises:
            ConfigurationError: No channel, `request` is no HTTP request, or an option cannot be used.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        from backplane.web.sse import event_stream  # the core must not need the framework

        if request.scope["type"] != "http":
            raise ConfigurationError("sse() answers an HTTP request; a WebSocket is for connect()")
        runtime = self._require_started()  # a `def` endpoint may make a response, which its own event loop then sends
        return event_stream(
            runtime,
            self._policy(runtime, limits, None),
            self._outbox(runtime, max_outbox_bytes, max_outbox_messages, when_full),
            *channels,
            context=context,
            client_key=client_key,
            expires_at=expires_at,
            heartbeat_seconds=heartbeat_seconds,
            retry_seconds=retry_seconds,
        )

    @overload
    def channel(self, template: str, model: type[_ModelT] | TypeAdapter[_ModelT]) -> TypedChannel[_ModelT]: ...
    @overload
    def channel(self, template: str, model: object) -> TypedChannel[Any]: ...
    def channel(self, template: str, model: object) -> TypedChannel[Any]:
        """Return the channels of `template` as ones whose messages are checked by `model`.

            orders = backplane.channel("orders:{id}", Order)
            await orders.publish(Order(...), id=42)

        See `backplane.typed_channel.TypedChannel`.

        Raises:
            ConfigurationError: The template or the type cannot be used.
            InvalidChannelError: The template has no placeholders and is no legal channel.
        """
        return TypedChannel(self, template, model)

    def _outbox(
        self,
        runtime: Runtime,
        max_bytes: int | None,
        max_messages: int | None,
        when_full: FullPolicy,
        latest_by: Callable[[Message], object] | None = None,
    ) -> Outbox:
        return Outbox(
            max_bytes=self._settings.max_outbox_bytes if max_bytes is None else max_bytes,
            max_messages=self._settings.max_outbox_messages if max_messages is None else max_messages,
            when_full=when_full,
            latest_by=latest_by,
            bursts=runtime.bursts,
        )

    def _policy(self, runtime: Runtime, limits: Limits | None, on_gap: OnGap | None) -> ConnectionPolicy:
        if self._shared_policy is None:
            self._shared_policy = ConnectionPolicy(
                on_gap=self._on_gap,
                limits=self._limits,
                handler_grace_seconds=self._settings.handler_grace_seconds,
                authorize=self._authorize,
                authorize_timeout_seconds=self._settings.authorize_timeout_seconds,
                on_slow=self._on_slow,
                reload_delay=runtime.reload_delay,
                keepalive=runtime.keepalive,
                statistics=runtime.statistics,
                bursts=runtime.bursts,
            )
        shared = self._shared_policy
        if limits is None and on_gap is None:
            return shared
        return replace(shared, limits=limits or shared.limits, on_gap=on_gap or shared.on_gap)

    def _notify_state(self, change: StateChange) -> None:
        for callback in self._state_callbacks:
            try:
                callback(change)
            except Exception:
                logger.exception("a callback of on_state failed")

    def _require_runtime(self) -> Runtime:
        runtime = self._require_started()
        runtime.affinity.check()
        return runtime

    def _require_started(self) -> Runtime:
        runtime = self._runtime
        if runtime is None:
            if self._started_in is not None:
                raise ClosedError("this Backplane has been stopped")
            raise NotStartedError(
                "this Backplane is not started: pass lifespan=backplane.lifespan to the application, "
                "or use `async with backplane:`; in a test `with TestClient(app):` runs the lifespan, "
                f"and `TestClient(app)` alone does not. {NO_LIFESPAN}"
            )
        return runtime

    def _runtime_here(self) -> Runtime | None:
        """Return what runs in this event loop, `None` while closed.

        Raises:
            WrongLoopError: It runs elsewhere.
        """
        runtime = self._runtime
        if runtime is None or runtime.affinity.has_ended:
            return None
        runtime.affinity.check()
        return runtime

    def _affinity(self) -> LoopAffinity | None:
        """Return where this is started, or is stopped just now."""
        if self._runtime is not None:
            return self._runtime.affinity
        return None if self._stopping is None else self._stopping[0]

    def _abandon(self, affinity: LoopAffinity) -> None:
        """Forget what belongs to an event loop that has ended, or to the process that this one was forked from."""
        inherited = affinity.is_inherited
        if inherited:
            _inherited.append((self._runtime, self._stopping, self._broadcaster))
        self._runtime = self._stopping = None
        self._source.renew()
        self._broadcaster = self._source.adapter
        if not inherited:
            logger.warning("the event loop in which %s was started has ended without `stop`", self.url)
            gc.collect()  # closes its sockets, which nobody reads any more, now instead of at some time

    def _calls(self) -> CallQueue | None:
        """Return what takes the publishes of other threads into the event loop; `None` where none was started here.

        Raises:
            ClosedError: One was, in this process, and has ended.
        """
        runtime = self._runtime
        if runtime is not None and runtime.affinity.is_alive:
            return runtime.calls
        if self._started_in is current_process():
            raise ClosedError("this Backplane has been stopped; not published")
        return None

    def _unstarted(self) -> Backplane:
        """Return another one like this, for a thread that publishes."""
        return Backplane(self._source.url_for_another(), settings=self._settings)


def _token(exclude: object) -> bytes | None:
    if exclude is None:
        return None
    if isinstance(exclude, Connection):
        return exclude.token
    try:
        token = bytes.fromhex(exclude) if isinstance(exclude, str) else b""
    except ValueError:
        token = b""
    if len(token) != 8:
        raise InvalidDataError(
            "exclude takes a Connection, as `async with backplane.connect(websocket) as connection` returns it, or its "
            f"id, not {exclude!r:.100}"
        )
    return token
