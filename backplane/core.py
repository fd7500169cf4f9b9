"""`Backplane`: the one object of an application, which composes the parts and has the public verbs."""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, Unpack, cast, overload

from backplane.broker.adapter_source import AdapterSource
from backplane.cluster.signatures import secret_bytes
from backplane.connection.driver import ConnectionDriver
from backplane.connection.envelope import JSON_SUBPROTOCOL, envelope_function, json_envelope
from backplane.connection.limits import Limits
from backplane.connection.policy import check_policy_options
from backplane.control.surveys import Surveys
from backplane.errors import ConfigurationError, LifecycleError
from backplane.explain.evidence import MAX_NAME, is_client_name
from backplane.fanout.backlog import Backlog
from backplane.fanout.channel_groups import Grouping
from backplane.fanout.outbox import Outbox
from backplane.fanout.subscriber_options import (
    SubscriberOptions,
    check_rewind,
    check_without_position,
    is_pattern,
    positions_by_channel,
    previous_token,
)
from backplane.fanout.subscription import Subscription
from backplane.history_rules import HistoryRules
from backplane.journal.events import HOOK_FAILED
from backplane.journal.writing import write
from backplane.message_tracing import MessageTracing
from backplane.presence_types import PresenceRules
from backplane.settings import Settings
from backplane.statistics import Statistics
from backplane.synchronous.publisher import WorkerPublisher
from backplane.synchronous.publisher_thread import PublisherThreads
from backplane.typed_channel import TypedChannel, names_of
from backplane.verbs.commands import CommandVerbs
from backplane.verbs.explanations import ExplainVerbs
from backplane.verbs.figures import FigureVerbs
from backplane.verbs.presence import PresenceVerbs
from backplane.verbs.surveys import SurveyVerbs
from backplane.web.handshake import ConnectionScope
from backplane.web.origin import OriginRule
from backplane.worker.cluster_options import ClusterOptions
from backplane.worker.deployment import warn_if_no_pings, warn_of_default_url
from backplane.worker.health import Health
from backplane.worker.lifecycle import Lifecycle
from backplane.worker.runtime import Runtime
from backplane.worker.transaction_publisher import TransactionPublisher

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping
    from datetime import datetime

    from pydantic import TypeAdapter
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

    from backplane.broadcaster import Broadcaster
    from backplane.broker.link_state import LinkState, StateChange
    from backplane.connect_options import ConnectOptions
    from backplane.connection.callback_handler import OnConnection, OnMessage
    from backplane.connection.connection import Connection
    from backplane.connection.envelope import Envelope, EnvelopeFunction
    from backplane.connection.policy import Authorize, OnGap, OnSlow
    from backplane.fanout.subscriber_options import ChannelPresence, Since
    from backplane.history_rules import History
    from backplane.message import HistoryPage, Position, Receipt
    from backplane.presence_types import Presence, Who
    from backplane.synchronous.publisher import SyncPublisher
    from backplane.web.origin import AllowedOrigins

__all__ = ["Backplane"]

logger: Final = logging.getLogger("backplane.core")

_ModelT = TypeVar("_ModelT")


class Backplane(CommandVerbs, ExplainVerbs, FigureVerbs, PresenceVerbs, SurveyVerbs):
    """Joins the workers of an application: what one publishes, the clients of all receive.

    Opens nothing until it is started, so it may be made at module level, before a fork, with `--preload`. Start it by
    `FastAPI(lifespan=backplane.lifespan)` or by `async with backplane:`; after a stop it may be started again.

    One publish reaches each subscriber at most once, in the order in which one worker published to one channel. Where
    messages may be missing, the subscribers are notified by a `Gap`.

    Once started it belongs to its event loop: used from another event loop (`asyncio.run` in a `def` endpoint), another
    thread or a forked process it raises `WrongLoopError`, at once. Safe anywhere are `sync`, which publishes from other
    threads, what only reads (`state`, `url`, `repr`, `statistics`), and what configures (`channel`, `on_state`, and
    before the start `on_slow` and `authorize`); `sse` may be called in a `def` endpoint, as it only makes a response.
    If its event loop ends without `stop`, it is closed and may be started again; a forked child may start it too.

    Args:
        url: The broker, such as `redis://localhost:6379`; its query string holds the adapter's options. Defaults to the
            environment variable `BACKPLANE_URL`, else `memory://`. Or an adapter object, which serves this backplane
            alone. Only a URL can be opened a second time: with an object, `sync` publishes where this backplane is
            started and nowhere else, and after an event loop that ended without `stop`, or in a child of the process in
            which it was started, another object is needed.
        history: Which channels are kept, and how much of each: `{"orders:*": History(max_messages=200)}`. In a pattern
            `*` is any run of characters, and the first pattern that matches decides. On a kept channel a lost link
            costs no message while the broker keeps it, and what comes back with its last position gets what it missed.
            Every process that publishes to a kept channel or subscribes to it must have the same rule. Defaults to no
            channel.
        presence: In which channels it is known which users are there: `{"room:*": Presence()}`, patterns as for
            `history`. Implies `cluster`. Every process that serves such a channel must have the same rule. Defaults to
            no channel.
        cluster: Whether the workers know each other: they exchange heartbeats, and `workers`, `survey` and
            `confirm_seconds` are possible, and this worker applies the commands of others (`disconnect`, `leave`,
            `join`, `send_to`). `"observer"` sees the others and can ask them without being one of them, as a script
            does. Defaults to `False`, and then nothing is sent or subscribed for it.
        control_secret: Signs what the workers exchange; what is not signed by it is dropped. For a broker to which
            other programs may publish: without it, each that can publish to channels that start with `$backplane/` can
            disconnect clients. At least 16 bytes, the same in every process, whose clocks may differ by 5 minutes.
            Defaults to none.
        settings: Times and bounds; see `Settings` for each with its default.
        limits: How clients are kept alive and what they may do, where `connect` and `sse` are given no other; see
            `Limits` for each with its default.
        backlog: What may wait for one subscriber, and what happens above it, where `connect`, `sse` and `subscribe` are
            given no other; see `Backlog` for each option with its default.
        allowed_origins: The sites whose pages may connect: by default those of this host alone. A list such as
            `["https://shop.example"]` replaces that, `"*"` allows all; see `AllowedOrigins`.
        allowed_hosts: The names of this host, without scheme and port, such as `["shop.example", "*.shop.example"]`:
            with the default of `allowed_origins` a page of another name gets neither a WebSocket nor an event stream,
            even where that name leads to this server (DNS rebinding). Defaults to any name.
        on_gap: What happens to clients when messages may be missing, where `connect` is given no other: `close`
            (default) closes them with code 4000, "reconnect and reload"; see `OnGap`.
        tracing: Spans of publishes and deliveries: a `backplane.tracing.Tracing(...)`, which needs the extra `otel`.
            Defaults to none, and then nothing is measured, sent or imported for it.
        channel_group: By which groups of channels the metrics of messages and joins are separated, as the label
            `group`: a group for each pattern, `{"orders:*": "orders"}`, patterns as for `history`; or a function of the
            channel, asked when a worker's first subscriber joins it, which must not block. `None`, a name of more than
            100 characters, what raises, and whatever comes after the first 50 groups is in the group `other`. Defaults
            to none, and then the label is empty.

    Raises:
        ConfigurationError: The URL, a setting, an origin, a host or another argument is wrong; the message states what
            is known.
        MissingDependencyError: The adapter's client library is not installed.
    """

    def __init__(
        self,
        url: str | Broadcaster | None = None,
        *,
        history: Mapping[str, History] | None = None,
        presence: Mapping[str, Presence] | None = None,
        cluster: bool | Literal["observer"] = False,
        control_secret: str | bytes | None = None,
        settings: Settings | None = None,
        limits: Limits | None = None,
        backlog: Backlog | None = None,
        allowed_origins: AllowedOrigins = None,
        allowed_hosts: Collection[str] | None = None,
        on_gap: OnGap = "close",
        tracing: MessageTracing | None = None,
        channel_group: Mapping[str, str] | Callable[[str], str | None] | None = None,
    ) -> None:
        if not isinstance(settings, Settings | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"settings must be a Settings(...), not {settings!r:.100}")
        self._settings = settings or Settings()
        self._history_rules = HistoryRules({} if history is None else history)
        self._surveys: Surveys = Surveys()
        self._cluster = ClusterOptions(
            presence=PresenceRules({} if presence is None else presence),
            cluster=cluster,
            secret=secret_bytes(control_secret),
            surveys=self._surveys,
        )
        self._limits = Limits() if limits is None else limits
        check_policy_options(on_gap, self._limits)
        self._check_user_limit(self._limits)
        self._backlog = _checked_backlog(Backlog() if backlog is None else backlog)
        self._origins = OriginRule(allowed_origins, allowed_hosts)
        self._on_gap: OnGap = on_gap
        self._grouping = None if channel_group is None else Grouping.of(channel_group)
        self._authorize: Authorize | None = None
        self._authorize_pattern: Authorize | None = None
        self._on_slow: OnSlow | None = None
        self._state_callbacks: list[Callable[[StateChange], object]] = []
        self._source = AdapterSource(url)
        self._tracing = None if tracing is None else _checked_tracing(tracing)
        self._tracer = (
            None if self._tracing is None else self._tracing.tracer(self._source.adapter.url, self._pattern_of)
        )
        self._lifecycle = Lifecycle(self._source, self._make_runtime)
        self._transactions = TransactionPublisher(lambda: self._source.adapter, self._history_rules, self._tracer)
        self._sync = WorkerPublisher(
            self,
            self._transactions,
            self._lifecycle.calls,
            PublisherThreads(self._unstarted, self._settings),
            self._settings.publish_timeout_seconds,
        )

    def __repr__(self) -> str:
        return f"<Backplane {self.url} {self.state}>"

    @property
    def url(self) -> str:
        """The broker's URL, without options and with its password masked."""
        return self._lifecycle.url

    @property
    def limits(self) -> Limits:
        """The limits of clients that are given no other."""
        return self._limits

    @property
    def state(self) -> LinkState:
        """How the link to the broker is; `closed` while not started."""
        return self._lifecycle.state

    @property
    def sync(self) -> SyncPublisher:
        """Publishes from synchronous code: `backplane.sync.publish(...)` in a `def` endpoint, a thread, a task queue.

        It sends commands too (`disconnect`, `leave`, `join`, `send_to`), without a confirmation.

        Where this backplane is started it publishes through it, in its event loop, and raises `ClosedError` after its
        stop. In a process that never starts it, such as a task queue or a script that imports the module, it starts a
        thread with a link of its own, as a `SyncBackplane` does.
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

        Once for each such stretch, and again when the client is closed because of it. It is called in the event loop
        and must not block; what it raises is logged.

        Raises:
            LifecycleError: The backplane is started: all connections share one policy, which is made at the start.
        """
        self._check_configurable("on_slow")
        self._on_slow = callback
        return callback

    def authorize(self, callback: Authorize) -> Authorize:
        """Ask `callback(client, channel)` at every join of a client whether it may join: `@backplane.authorize`.

        A function or a coroutine function that returns whether it may, within `authorize_timeout_seconds`. `False`
        raises `JoinRefusedError`; before the handshake of a WebSocket, and before an event stream begins, it is an HTTP
        403. It may raise the framework's `HTTPException` or `WebSocketException` instead, for another status or code.
        The client is a `Connection` or an event stream: `Client` is what both have. `client.context` is what
        `connect(context=...)` or `sse(context=...)` was given.

        It is asked on every way on which a client gets to a channel. `subscribe` does not ask: it is the application's
        own.

        Raises:
            LifecycleError: The backplane is started: joins before this call were allowed without it.
        """
        self._check_configurable("authorize")
        self._authorize = callback
        return callback

    def authorize_pattern(self, callback: Authorize) -> Authorize:
        """Ask `callback(client, pattern)` whether a client may join a pattern: `@backplane.authorize_pattern`.

        Without it no client may join any. A function or a coroutine function, as `authorize`, which is not asked about
        patterns: what it is asked once here decides about every channel that matches, also those of the future.
        `pattern` is what the client named, such as `prices.*`, or `*`.

        Raises:
            LifecycleError: The backplane is started.
        """
        self._check_configurable("authorize_pattern")
        self._authorize_pattern = callback
        return callback

    def statistics(self) -> Statistics:
        """Return what this worker counted since the start; all zeros while not running."""
        runtime = self._lifecycle.runtime
        return Statistics() if runtime is None else runtime.count()

    async def health(self) -> Health:
        """Return how this worker is; works at any time. `backplane.health_routes.health_routes` serves it over HTTP."""
        runtime = self._lifecycle.runtime_here()
        return Health(live=True, ready=False, state="closed") if runtime is None else runtime.health()

    async def wait_for_state(self, state: LinkState) -> None:
        """Wait until the link to the broker is in `state`. A state that passes at once can be missed.

        Raises:
            NotStartedError, ClosedError: The backplane is not running, or has drained.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        await self._lifecycle.running().wait_for_state(state)

    async def start(self) -> None:
        """Connect to the broker; with the setting `start="lazy"` start without it where it is not available.

        Logs a warning where `memory://` is used because no URL was given: its messages reach no other process.

        Raises:
            BrokerError: The broker could not be reached within `start_timeout_seconds`, or it refused.
            LifecycleError: It is started already, or the event loop is not asyncio's.
        """
        await self._lifecycle.start()
        if self._source.is_default:
            warn_of_default_url(self.url)

    async def drain(self) -> None:
        """Prepare the stop: not ready, no new clients, all clients closed with code 1012, spread over `drain_seconds`.

        Handlers that stay in their block are cancelled `handler_grace_seconds` after their connection has ended. Then
        the iteration of subscriptions ends, and `wait_for_state` raises; publishing goes on until `stop`.

        Started in the lifespan of an application, this is done when the server ends: before it acts under Uvicorn, by
        itself, in a thread or below Gunicorn; docs/operations/servers.md has a table of servers. Elsewhere call it.
        """
        await self._lifecycle.drain(False)

    async def stop(self) -> None:
        """End every connection (code 1012) and subscription and close the link. Stopping again changes nothing.

        Publishes in flight are answered first, and what `outage="buffer"` keeps is sent if the broker is available.
        """
        await self._lifecycle.stop()

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
        await self._lifecycle.start()
        try:
            yield {"backplane": self}
        finally:
            await self.stop()

    async def publish(
        self,
        channel: str,
        data: object,
        *,
        exclude: Connection | str | None = None,
        idempotency_key: str | bytes | None = None,
    ) -> Receipt:
        """Publish `data` to every subscriber of `channel`, on every worker.

        Returns when the broker has it as firmly as the adapter's `capabilities.publish_returns` states; it is no error
        that the channel has no subscriber. It is never sent a second time without the caller's knowledge. Cancelling
        leaves open whether it was published.

        With an `idempotency_key` the broker publishes one message for all calls with that key on that channel within
        300 seconds, by any process. So this call tries again by itself, for up to `publish_timeout_seconds`, where the
        link was lost before the answer, and where the broker cannot accept the message for the moment: if the broker is
        back in time, it ends as published or certainly not published. With `outage="buffer"` such a message is kept and
        sent again, for up to 240 seconds after the first attempt. Messages with and without a key that are published at
        the same time as one that is tried again may come before it; after a lost link those with a key keep the order
        of their calls. A broker that loses what it stored can lose the key too, and then publishes the message again.

        Args:
            channel: Where to.
            data: `str` is received as text, `bytes` as binary, anything else as JSON text.
            exclude: A connection, or its id, that does not receive it: usually the client that sent it.
            idempotency_key: What names this message, such as `order-42-paid`: 1 to 128 bytes, text in UTF-8. The
                channel needs a rule in `history`. Defaults to none.

        Returns:
            The position of the message, where the channel has a rule, and whether a message with the same key was
            published before; an earlier attempt of this very call counts.

        Raises:
            InvalidChannelError: The name is not legal.
            InvalidDataError: `data` is neither text, nor bytes, nor anything JSON, or the key cannot be used.
            ConfigurationError: `exclude` is given, and the URL's option `wire_format=plain` cannot carry it. Or a key
                is given, and the channel has no rule, or the adapter cannot drop a second message with the same key.
            PayloadTooLargeError: It is over the adapter's limit; nothing was sent.
            BrokerUnavailableError: The broker was not available for `publish_timeout_seconds`, or the buffer of
                `outage="buffer"` is full; certainly not published. At once where the broker answers that it cannot
                accept it for the moment (a script runs, a failover is under way): another try can succeed.
            PublishOutcomeUnknownError: The link ended, or time ran out, before the broker's answer; with a key: and it
                was not back in time.
            PublishError: The broker refused it.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        return await self._lifecycle.running().publish(channel, data, exclude, idempotency_key)

    async def publish_in(
        self,
        session: object,
        channel: str,
        data: object,
        *,
        exclude: Connection | str | None = None,
        idempotency_key: str | bytes | None = None,
    ) -> None:
        """Publish `data` when, and only when, the transaction of `session` commits: on `postgres://`.

            async with sessions.begin() as session:
                session.add(order)
                await backplane.publish_in(session, "orders", order)

        It is one statement of that transaction, and needs neither a start nor a link. After a rollback, also one to a
        savepoint, nothing is sent; and nothing of a transaction whose connection is lost before its commit. Messages
        are sent in the order of the commits. With tracing a span covers the statement, and receivers are in its trace.
        It is not counted in `statistics().published`, since a rollback may follow.

        In a channel with a history, with `durable=true`, a message gets its position at the commit.

        Args:
            session: Where the transaction is: a session or connection of SQLAlchemy, asynchronous or not; a connection
                of asyncpg; a connection or cursor of psycopg. It must be in the database of the URL. A synchronous one
                blocks the event loop for the statement, as each of its statements does.
            channel: Where to.
            data: As for `publish`.
            exclude: As for `publish`.
            idempotency_key: As for `publish`: a second message with it is dropped at the commit, without an error, in
                transactions of the isolation level READ COMMITTED, which is the default.

        Raises:
            InvalidChannelError, InvalidDataError, PayloadTooLargeError: As for `publish`.
            ConfigurationError: The adapter is not one of PostgreSQL, or the channel has a history and the URL lacks
                `durable=true`; or the object is none of those, is in no transaction, or is in another database. Nothing
                was sent.
            Exception: What the library of the session raises where the server refuses the statement, and later the
                commit.
        """
        await self._transactions.publish(session, channel, data, exclude, idempotency_key)

    @asynccontextmanager
    async def subscribe(
        self,
        *channels: str,
        backlog: Backlog | None = None,
        since: Since = None,
        rewind: int = 0,
        name: str | None = None,
        exact: bool = False,
    ) -> AsyncGenerator[Subscription]:
        """Subscribe the application itself: `async with backplane.subscribe("orders") as messages: async for ...`.

        Once entered, no later publish is missed without a `Gap`. `authorize` is not asked and `Limits` do not apply:
        the application checks what it passes on to a client by hand.

        A channel with a `*` is a pattern: `subscribe("prices.*")` receives what is published to every channel that
        matches, with `Message.channel` the channel itself, and once where it is wanted in several ways. After a loss it
        receives one `Gap` under the pattern, or one for each channel where these are known. A pattern has no position,
        so no `since` and no `rewind`, and presence does not count it. It never matches a reserved channel.

        Args:
            *channels: What to receive; `Subscription.join` adds more, and the first one must come before iterating.
                In a pattern `*` is any run of characters, also none, and every other character is itself.
            backlog: What may wait for the consumer; with the policy `close` a slow one gets a `SlowConsumerError`.
                Defaults to that of the backplane, which it replaces whole.
            since: The position up to which the consumer has received a channel, `str(message.position)`, or a mapping
                of positions by channel: what was published after it comes first, in order and once, or a `Gap` where
                that is no longer kept. `None` or "" the first time. What must not be processed twice needs its position
                stored together with its effect.
            rewind: How many of the newest messages of each channel come first where `since` is not given, and after the
                gap where it cannot be served. Needs a channel with a history. Defaults to 0.
            name: What `explain` and the log call it, beside its id. Need not be unique. Defaults to nothing.
            exact: A `*` is a plain character of a name. To be set for names that a client can choose: with a pattern it
                would receive what is not for it. Defaults to `False`.

        Raises:
            ConfigurationError: `backlog`, `since`, `rewind` or `name` cannot be used; or the adapter of the broker has
                no patterns.
            InvalidChannelError: The name of a channel is not legal.
            InvalidPositionError: `rewind` is negative.
            SubscribeError: The broker refused a channel.
            BrokerUnavailableError: The broker did not confirm in time.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        runtime = self._lifecycle.running()
        for channel in channels:
            if is_pattern(channel, exact=exact):
                check_without_position(channel, since, rewind)
        positions = positions_by_channel(since, channels, runtime.hub.rules)
        check_rewind(rewind, runtime.hub.rules)
        if not (name is None or is_client_name(name)):
            raise ConfigurationError(f"name must be a text of 1 to {MAX_NAME} characters, not {name!r:.100}")
        subscription = Subscription(
            runtime.hub, None, self._outbox(runtime, backlog), statistics=runtime.statistics, journal=runtime.journal
        )
        subscription.client_key = name
        runtime.subscriptions[subscription] = None
        try:
            for channel in channels:
                await subscription.join(channel, since=positions, rewind=rewind, exact=exact)
            subscription.log_begin()
            yield subscription
        finally:
            subscription.log_end()
            subscription.discard()
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
        backlog: Backlog | None = None,
        since: Since = None,
        rewind: int = 0,
        previous_id: str | None = None,
        envelope: Envelope = None,
        presence: Who | None = None,
    ) -> AbstractAsyncContextManager[Connection]:
        """Join `channels`, accept `websocket`, and serve it until the block ends.

        The client is joined before it is accepted: from the moment its handshake is done it misses nothing. When the
        block ends the client is closed: with 1000, or 1011 if it raised. Errors that are ordinary ends are not raised
        further and have codes of their own, alone or in an `ExceptionGroup`: the end of the client or of the worker, a
        refused join, an invalid or too large message, a failure of the broker, the framework's `WebSocketException` and
        `HTTPException`. docs/reference/close-codes.md has the table; `backplane.connection.ending` decides.

        A gap, and a failure of the broker that ends handlers with 1013, concern many clients at once: each is closed at
        a moment of its own, spread over `drain_seconds`. Until then it receives what is published; what it sends after
        its handler has ended is dropped.

        A client that is refused before it is accepted gets an HTTP status, of which a browser's page sees only close
        code 1006. With `refuse_after_accept` it is accepted and closed at once, with a code and a reason; nothing it
        sends is read. Clients of another site (`allowed_origins`), and those beyond the sockets that are kept for this
        (as many as `max_connections`, at most 256 at a time), are refused by HTTP all the same.

        What runs for the client in other tasks (sends through ASGI, `on_gap`, `on_slow`, `latest_by`, its close) runs
        in a copy of the Context in which this is called.

        Args:
            websocket: As the framework passed it, not accepted yet.
            *channels: What the client receives; `Connection.join` adds more.
            subprotocol: The WebSocket subprotocol to accept with. With `backplane.json.1` a client that offers it is
                accepted with it and gets the JSON envelope; any other is accepted without a subprotocol.
            headers: Headers to accept with.
            context: Anything of the application's, such as the user: `Connection.context`, for `authorize`.
            client_key: Whose connection this is, for `Limits.max_connections_per_client`. Defaults to the client's
                address, of IPv6 the first 64 bits.
            expires_at: When its permission runs out, in seconds since the epoch, or as a `datetime` with a time zone:
                closed with 4001, and refused (401) where that is past. Defaults to never.
            refuse_after_accept: Whether a refusal is a close code that a page can read, or an HTTP status. Defaults to
                the setting of that name, which is an HTTP status.
            limits: Its limits; defaults to those of the backplane, which they replace whole.
            on_gap: What happens to this client when messages may be missing; defaults to that of the backplane.
            backlog: What may wait for this client; with the policy `close` a slow one is closed with code 1013.
                Defaults to that of the backplane, which it replaces whole.
            since: The position up to which the client has received its channel, as text, such as
                `websocket.query_params.get("since")`: what was published after it is sent first, in order and once.
                Where that is no longer kept, or it is no position, `connection.resumed` is `False`, `on_gap` is called
                if it is a function, and a client with an envelope gets a gap; it is never closed for it. For several
                channels a mapping of positions by channel, or one text: the positions of those with a history in the
                order of their names by UTF-16, with a `.` between them. `None` or "" at a first visit. `authorize` is
                asked as at any join.
            rewind: How many of the newest messages of each channel are sent first at a first visit, and after the gap
                where `since` cannot be served. Needs a channel with a history. A negative one is refused with 400, and
                more than the rule keeps is what it keeps: a number from the client's URL can be passed. Defaults to 0.
            previous_id: The id of the connection that the client had before: messages that exclude it are not sent.
                What is no id is ignored. A client can name any id: that only hides messages from itself.
            envelope: `"json"`: each published message is sent with its channel and position, and the client is notified
                of its joins and of gaps, in the format of `backplane.connection.envelope`; one that offers the
                subprotocol `backplane.json.1` is accepted with it where `subprotocol` names no other. Or a function
                that returns what is sent for a `Message`, `Gap` or `Joined`; it is called once per message for all
                clients that have the same. Defaults to messages as they were published. What the application sends
                itself stays as it is. `on_gap` applies beside it: pass a function that returns `None` to have the event
                alone.
            presence: The user of this connection, `Who(user=..., info=...)`: present in each channel that it joins and
                that has a `Presence` rule, and the one that commands such as `disconnect(user=...)` mean. Defaults to
                none, and then commands mean the `client_key`.

        Raises:
            WebSocketException: The client was refused, and its cause states why: a `RefusedError` (the origin,
                `authorize`, a limit, the permission), an `InvalidChannelError` or, for a negative `rewind`, an
                `InvalidPositionError` (400), a `BrokerError` (403 where the broker refused the channel, else 503), an
                `AuthorizeTimeoutError` (503), or a `ClosedError` while the worker drains, or because the client left
                before it was accepted. The handshake is answered; to the framework this is an ordinary end.
            ConfigurationError: `expires_at` is not a moment, or `limits`, `on_gap`, `backlog`, `since`, `rewind`,
                `previous_id`, `envelope` or `presence` cannot be used.
            LifecycleError: The socket was accepted already.
            ClosedError: The socket is closed, or the backplane has stopped.
            NotStartedError: The backplane is not started.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        from backplane.web.websocket import StarletteSocket  # the core must not need the framework

        runtime = self._lifecycle.running()
        if self._tracer is not None:
            self._tracer.handler_entered()
        socket = StarletteSocket(websocket)
        policy = runtime.policy.with_options(limits, on_gap)
        self._check_user_limit(policy.limits)
        if socket.lane is None:
            warn_if_no_pings(policy.limits)
        function = envelope_function(envelope)
        if subprotocol == JSON_SUBPROTOCOL or (function is json_envelope and subprotocol is None):
            subprotocol = JSON_SUBPROTOCOL if socket.offers(JSON_SUBPROTOCOL) else None
            function = function or (None if subprotocol is None else json_envelope)
        options = _client_options(
            channels, runtime.hub.rules, since, rewind, previous_id, function, runtime.attendance(presence)
        )
        driver = ConnectionDriver(
            socket, runtime.hub, self._outbox(runtime, backlog), policy, context=context, options=options
        )
        driver.connection.expire_at(expires_at)
        return ConnectionScope(
            runtime,
            socket,
            driver,
            origins=self._origins,
            channels=channels,
            client_key=client_key,
            max_per_client=policy.limits.max_connections_per_client,
            subprotocol=subprotocol,
            headers=headers,
            after_accept=self._settings.refuse_after_accept if refuse_after_accept is None else refuse_after_accept,
        )

    async def hand_over(
        self,
        websocket: WebSocket,
        *channels: str,
        on_open: OnConnection | None = None,
        on_message: OnMessage | None = None,
        on_close: OnConnection | None = None,
        **options: Unpack[ConnectOptions],
    ) -> None:
        """Join `channels`, accept `websocket`, and serve it without a task of its own.

        For clients that mostly listen. With the direct lane this returns once the client is accepted: its handler ends,
        and so do the dependencies and middleware around it, while the connection goes on, with no task, coroutine or
        scope in memory. On other servers it returns when the connection has ended, and costs what `connect` costs. Let
        the handler end with it: where its code goes on differs between the two.

        All of `connect` holds, before and after: limits, gaps, heartbeats, the drain, close codes. `on_open` and
        `on_message` take the place of the handler, in a task that ends when there is nothing to do: what they raise
        closes the client with the same code and is logged, and they are cancelled if they are still running
        `handler_grace_seconds` after the end of the connection. The `Connection` that they are given can be kept, and
        joined to channels, sent to and closed from anywhere in this event loop. After the hand-over `websocket` is
        closed to its handler, and Uvicorn's own pings end; those of `Limits.heartbeat_seconds` go on.

        Args:
            websocket: As the framework passed it, not accepted yet.
            *channels: What the client receives; `Connection.join` adds more.
            on_open: Called once with the `Connection` when it is accepted, before the first message is handled.
            on_message: Called with the `Connection` and each message, `str` or `bytes`, one after the other in order;
                a coroutine function, as all three can be, or a plain one that does not block. While it runs, 64
                messages or 64 KiB wait at most; then nothing more is read from the client. Defaults to dropping what
                the client sends.
            on_close: Called once with the `Connection` after it has ended and `on_message` has returned. What it raises
                is logged, and after `handler_grace_seconds` it is cancelled. Defaults to nothing.
            **options: Those of `connect`.

        Raises:
            ConfigurationError: A callback is no function, or as `connect`.
            WebSocketException, LifecycleError, ClosedError, NotStartedError, WrongLoopError: As `connect`.
        """
        for name, callback in (("on_open", on_open), ("on_message", on_message), ("on_close", on_close)):
            if callback is not None and not callable(callback):
                raise ConfigurationError(f"{name} must be a function, not {callback!r:.100}")
        scope = self.connect(websocket, *channels, **options)
        await cast("ConnectionScope", scope).serve(on_open=on_open, on_message=on_message, on_close=on_close)

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
        backlog: Backlog | None = None,
        since: Since = None,
        rewind: int = 0,
        previous_id: str | None = None,
        presence: Who | None = None,
    ) -> Response:
        """Answer `request` with the same channels as server-sent events: `return backplane.sse(request, "orders")`.

        The client is joined before the answer begins: from the moment it receives that, it misses nothing. A client
        that may not join, by `allowed_hosts`, `authorize`, a limit, an expired permission or the broker, gets an HTTP
        error before the stream begins, the same as a WebSocket's handshake. The module `backplane.web.event_format`
        documents the format.

        Args:
            request: As the framework passed it.
            *channels: What the client receives.
            context: Anything of the application's, such as the user: `client.context`, for `authorize`.
            client_key: Whose stream this is, for `Limits.max_connections_per_client`. Defaults to the client's address.
            expires_at: When its permission runs out, in seconds since the epoch, or as a `datetime` with a time zone:
                the stream ends with an event `expired`, and the client comes back with a new request, which the
                application may refuse. Defaults to never.
            limits: Its limits; `Limits` states which of them apply to a stream. Defaults to those of the backplane.
            heartbeat_seconds: How often a comment is sent while nothing else is; a client that takes nothing for two
                such times is cut. Defaults to 15.
            retry_seconds: After how long the client comes back, on average. Defaults to 3.
            backlog: What may wait for this client; with the policy `close` the stream of a slow one ends, and the
                client comes back. Defaults to that of the backplane, which it replaces whole.
            since: The id of the last event that the client received, for one that begins anew: an `EventSource` that
                comes back by itself shows it in its header `Last-Event-ID`, which replaces this. What was published
                after it comes first, in order and once, or the event `gap`. Or a mapping of positions by channel. Only
                channels with a history count, of which a stream may have 16. `None` or "" at a first visit.
            rewind: How many of the newest messages of each channel come first at a first visit, and after such a gap.
                Needs a channel with a history. Defaults to 0.
            previous_id: The id of the stream or connection that the client had before: messages that exclude it are not
                sent. What is no id is ignored.
            presence: The user of this client, as in `connect`. It is present from the headers on, and is sent nothing
                of the others.

        Raises:
            ConfigurationError: No channel, more than 16 with a history, `request` is not an HTTP request, or an option
                cannot be used.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        from backplane.web.sse import event_stream  # the core must not need the framework

        if request.scope["type"] != "http":
            raise ConfigurationError("sse() answers an HTTP request; a WebSocket is for connect()")
        runtime = self._lifecycle.started()  # a `def` endpoint may make a response, which the event loop then sends
        if self._tracer is not None:
            self._tracer.handler_entered()
        policy = runtime.policy.with_options(limits, None)
        self._check_user_limit(policy.limits)
        return event_stream(
            runtime,
            policy,
            self._outbox(runtime, backlog),
            *channels,
            origins=self._origins,
            context=context,
            client_key=client_key,
            expires_at=expires_at,
            heartbeat_seconds=heartbeat_seconds,
            retry_seconds=retry_seconds,
            since=since,
            rewind=rewind,
            previous_id=previous_id,
            presence=runtime.attendance(presence),
        )

    async def history(self, channel: str, *, since: str | Position | None = None, limit: int = 100) -> HistoryPage:
        """Read from the history of `channel`, without a subscription. `authorize` is not asked.

        Args:
            channel: The channel, which must have a `History` rule.
            since: The messages after this position, from the oldest on. Defaults to the newest ones.
            limit: Most messages, at most the setting `max_recall_messages`. Defaults to 100.

        Raises:
            InvalidChannelError: The name is not legal.
            InvalidPositionError: `since` is no position.
            ConfigurationError: The channel has no rule, or `limit` is not a whole number more than 0.
            BrokerUnavailableError: The broker is not available, or did not answer within `recall_timeout_seconds`.
            BrokerError: It refused.
            NotStartedError, ClosedError: The backplane is not running.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        return await self._lifecycle.running().history(channel, since, limit)

    def keeps(self, channel: str) -> bool:
        """Return whether `channel` has a `History` rule: it can be resumed, and its history read."""
        return self._history_rules.rule_of(channel) is not None

    def has_presence(self, channel: str) -> bool:
        """Return whether `channel` has a `Presence` rule: it is known which users are in it."""
        return self._cluster.presence.rule_of(channel) is not None

    @overload
    def channel(self, template: str, model: type[_ModelT] | TypeAdapter[_ModelT]) -> TypedChannel[_ModelT]: ...
    @overload
    def channel(self, template: str, model: object) -> TypedChannel[Any]: ...
    def channel(self, template: str, model: object) -> TypedChannel[Any]:
        """Return the channels of `template` as ones whose messages are checked by `model`.

            orders = backplane.channel("orders:{id}", Order)
            await orders.publish(Order(...), id=42)

        See `TypedChannel`.

        Raises:
            ConfigurationError: The template or the type cannot be used.
            InvalidChannelError: The template has no placeholders and is no legal channel.
        """
        typed: TypedChannel[Any] = TypedChannel(self, template, model)
        if self._tracing is not None:
            self._tracing.note_template(template, names_of(template))
        return typed

    @property
    def _runtime(self) -> Runtime | None:
        return self._lifecycle.runtime

    def _make_runtime(self, broadcaster: Broadcaster) -> Runtime:
        return Runtime(
            broadcaster,
            self._settings,
            self._notify_state,
            history_rules=self._history_rules or None,
            cluster=self._cluster,
            limits=self._limits,
            on_gap=self._on_gap,
            authorize=self._authorize,
            authorize_pattern=self._authorize_pattern,
            on_slow=self._on_slow,
            tracer=self._tracer,
            grouping=self._grouping,
        )

    def _pattern_of(self, channel: str) -> str | None:
        """Return the pattern of the rule of a channel, which names its spans where no typed channel does."""
        return self._history_rules.pattern_of(channel) or self._cluster.presence.pattern_of(channel)

    def _outbox(self, runtime: Runtime, backlog: Backlog | None) -> Outbox:
        backlog = self._backlog if backlog is None else _checked_backlog(backlog)
        return Outbox(backlog, journal=runtime.journal, waiting=runtime.waiting)

    def _check_configurable(self, name: str) -> None:
        if self._lifecycle.is_started:
            raise LifecycleError(
                f"{name} must be set before the backplane is started: the clients that are there share it"
            )

    def _check_user_limit(self, limits: Limits) -> None:
        if limits.max_connections_per_user is not None and self._cluster.mode != "member":
            raise ConfigurationError("max_connections_per_user needs Backplane(cluster=True), or presence={...}")

    def _notify_state(self, change: StateChange) -> None:
        for callback in self._state_callbacks:
            try:
                callback(change)
            except Exception as error:
                write(logger, HOOK_FAILED, "a callback of %(hook)s failed", hook="on_state", exc_info=error)

    def _unstarted(self) -> Backplane:
        """Return another one like this, for a thread that publishes."""
        return Backplane(
            self._source.url_for_another(),
            settings=self._settings,
            history=dict(self._history_rules),
            control_secret=self._cluster.secret,
            tracing=self._tracing,
        )


def _checked_backlog(backlog: object) -> Backlog:
    if not isinstance(backlog, Backlog):
        raise ConfigurationError(f"backlog must be a Backlog(...), not {backlog!r:.100}")
    return backlog


def _checked_tracing(tracing: object) -> MessageTracing:
    if isinstance(tracing, type) or not isinstance(tracing, MessageTracing):
        raise ConfigurationError(f"tracing must be a backplane.tracing.Tracing(...), not {tracing!r:.100}")
    return tracing


def _client_options(
    channels: tuple[str, ...],
    rules: HistoryRules | None,
    since: Since,
    rewind: int,
    previous_id: str | None,
    envelope: EnvelopeFunction | None,
    presence: ChannelPresence | None,
) -> SubscriberOptions | None:
    """Return what this client is given, or `None` where it is given nothing: most clients are."""
    positions = positions_by_channel(since, channels, rules)
    check_rewind(rewind, rules, at_join=False)
    previous = previous_token(previous_id)
    if positions is None and not rewind and previous is None and envelope is None and presence is None:
        return None
    return SubscriberOptions(since=positions, rewind=rewind, previous=previous, envelope=envelope, presence=presence)
