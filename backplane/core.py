"""`Backplane`: the application's one object, which holds the parts together."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from backplane.channels import validate_channel
from backplane.codec import encode
from backplane.connection import CloseCode, Connection
from backplane.deployment import warn_if_isolated
from backplane.errors import ClosedError, InvalidDataError, LifecycleError, NotStartedError, PayloadTooLargeError
from backplane.hub import Hub
from backplane.interest import Interest
from backplane.outbox import FullPolicy, Outbox
from backplane.registry import broadcaster_from_url
from backplane.settings import Settings
from backplane.subscription import Subscription
from backplane.supervision import LinkState, Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from starlette.websockets import WebSocket

__all__ = ["Backplane"]


class Backplane:
    """Joins the workers of an application: what one publishes, the sockets of all receive.

    Opens nothing until it is started, so it may stand at module level, before a fork, with `--preload`. Start it by
    `FastAPI(lifespan=backplane.lifespan)` or by `async with backplane:`; after its end it may be started again.

    One publish reaches each subscriber at most once, in the order in which one worker published to one channel. Where
    messages may be missing, the subscribers are told by a `Gap`.

    Args:
        url: The broker, such as `redis://localhost:6379`; its query string holds the adapter's options. Defaults to the
            environment variable `BACKPLANE_URL`, else `memory://`.
        settings: Times and bounds; see `Settings` for each with its default.

    Raises:
        ConfigurationError: The URL or a setting is wrong; the message says what is known.
        MissingDependencyError: The adapter's client library is not installed.
    """

    def __init__(self, url: str | None = None, *, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._broadcaster = broadcaster_from_url(url or os.environ.get("BACKPLANE_URL") or "memory://")
        self._running: _Running | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._was_started = False

    def __repr__(self) -> str:
        return f"<Backplane {self.url} {self.state}>"

    @property
    def url(self) -> str:
        """The broker's URL, without options and with its password masked."""
        return str(self._broadcaster.url)

    @property
    def state(self) -> LinkState:
        """How the link to the broker is; `closed` while not started."""
        return self._running.supervisor.state if self._running else "closed"

    async def wait_for_state(self, state: LinkState) -> None:
        """Wait until the link to the broker is in `state`. A state that passes at once can be missed.

        Raises:
            NotStartedError, ClosedError: The backplane is not running.
        """
        supervisor = self._require_running().supervisor
        while supervisor.state != state:
            if supervisor.state == "closed":
                raise ClosedError("this Backplane has been stopped")
            await supervisor.state_changed()

    async def start(self) -> None:
        """Connect to the broker.

        Raises:
            BrokerError: The broker could not be reached within `start_timeout_seconds`, or it refused.
            LifecycleError: It is started already.
        """
        if self._running is not None:
            raise LifecycleError("this Backplane is started already; a second one needs an object of its own")
        running = _Running(self._broadcaster, self._settings)
        self._running = running
        try:
            await running.supervisor.start()
        except BaseException:
            self._running = None
            raise
        self._was_started = True
        warn_if_isolated(self._broadcaster.capabilities, self.url)

    async def stop(self) -> None:
        """End every connection (code 1012) and subscription and close the link. Stopping again changes nothing."""
        running, self._running = self._running, None
        if running is not None:
            self._stopping = asyncio.create_task(running.stop())
        if self._stopping is not None:
            # In a task of its own: cancelling whoever waits for the end must not leave half of it.
            await asyncio.shield(self._stopping)
            self._stopping = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncGenerator[dict[str, Any]]:
        """Run for as long as the application: `FastAPI(lifespan=backplane.lifespan)`.

        Puts itself into the lifespan state, where `backplane.lifespan.get_backplane` finds it.
        """
        async with self:
            yield {"backplane": self}

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
            PayloadTooLargeError: It is over the adapter's limit; nothing was sent.
            BrokerUnavailableError: The broker was away for `publish_timeout_seconds`; certainly not published.
            PublishOutcomeUnknownError: The link ended, or time ran out, before the broker's answer.
            PublishError: The broker refused it.
            NotStartedError, ClosedError: The backplane is not running.
        """
        running = self._require_running()
        validate_channel(channel)
        excluded = exclude.token if isinstance(exclude, Connection) else _token(exclude)
        payload = encode(data, origin=running.origin, published_at=time.time(), excluded=excluded)
        limit = self._broadcaster.capabilities.max_payload_bytes
        if len(payload) > limit:
            raise PayloadTooLargeError(len(payload), limit)
        await running.supervisor.publish(channel, payload)

    @asynccontextmanager
    async def subscribe(
        self,
        *channels: str,
        when_full: FullPolicy = "close",
        max_outbox_bytes: int | None = None,
        max_outbox_messages: int | None = None,
    ) -> AsyncGenerator[Subscription]:
        """Subscribe a consumer without a socket: `async with backplane.subscribe("orders") as messages: async for ...`.

        Once entered, no later publish is missed without a `Gap`.

        Args:
            *channels: What to hear.
            when_full: What happens when the consumer is too slow; `close` raises `SlowConsumerError` in it.
            max_outbox_bytes: Bound of what waits for it, in bytes.
            max_outbox_messages: Bound of what waits for it, in messages.

        Raises:
            InvalidChannelError: A name is not legal.
            SubscribeError: The broker refused a channel.
            BrokerUnavailableError: The broker did not confirm in time.
            NotStartedError, ClosedError: The backplane is not running.
        """
        running = self._require_running()
        outbox = self._outbox(max_outbox_bytes, max_outbox_messages, when_full)
        subscription = Subscription(running.hub, outbox)
        running.subscriptions[subscription] = None
        try:
            for channel in channels:
                await subscription.join(channel)
            yield subscription
        finally:
            subscription.end()
            running.subscriptions.pop(subscription, None)

    @asynccontextmanager
    async def connect(
        self,
        websocket: WebSocket,
        *channels: str,
        subprotocol: str | None = None,
        headers: Iterable[tuple[bytes, bytes]] | None = None,
        when_full: FullPolicy = "close",
        max_outbox_bytes: int | None = None,
        max_outbox_messages: int | None = None,
    ) -> AsyncGenerator[Connection]:
        """Join `channels`, accept `websocket`, and look after it until the block ends.

        The client is joined before it is accepted: from the moment its handshake is done it misses nothing. When the
        block ends the socket is closed: 1000, or 1011 if it raised.

        Args:
            websocket: As the framework handed it over, not accepted yet.
            *channels: What the client hears; `Connection.join` adds more.
            subprotocol: The WebSocket subprotocol to accept with.
            headers: Headers to accept with.
            when_full: What happens when the client is too slow; `close` ends it with code 1013.
            max_outbox_bytes: Bound of what waits for it, in bytes.
            max_outbox_messages: Bound of what waits for it, in messages.

        Raises:
            InvalidChannelError, SubscribeError, BrokerUnavailableError: As `Connection.join`; the client's handshake is
                answered with an HTTP error.
            LifecycleError: The socket was accepted already.
            ClosedError: The socket is closed, or the backplane has stopped.
            NotStartedError: The backplane is not started.
        """
        from backplane.websocket import StarletteSocket  # the core must not need the framework

        running = self._require_running()
        socket = StarletteSocket(websocket)
        outbox = self._outbox(max_outbox_bytes, max_outbox_messages, when_full)
        connection = Connection(socket, running.hub, outbox)
        running.connections[connection] = None
        try:
            async with socket.refusing_on_error():
                for channel in channels:
                    await connection.join(channel)
                await socket.accept(subprotocol, headers)
            connection.opened()
            yield connection
        except Exception:
            await connection.finish(CloseCode.INTERNAL_ERROR)
            raise
        except BaseException:
            connection.abandon()
            raise
        else:
            await connection.finish(CloseCode.NORMAL)
        finally:
            running.connections.pop(connection, None)

    def _outbox(self, max_bytes: int | None, max_messages: int | None, when_full: FullPolicy) -> Outbox:
        return Outbox(
            max_bytes=self._settings.max_outbox_bytes if max_bytes is None else max_bytes,
            max_messages=self._settings.max_outbox_messages if max_messages is None else max_messages,
            when_full=when_full,
        )

    def _require_running(self) -> _Running:
        if self._running is None:
            if self._was_started:
                raise ClosedError("this Backplane has been stopped")
            raise NotStartedError(
                "this Backplane is not started: pass lifespan=backplane.lifespan to the application, "
                "or use `async with backplane:`"
            )
        return self._running


class _Running:
    """What exists between a start and its stop, in one event loop."""

    def __init__(self, broadcaster: Any, settings: Settings) -> None:
        self.origin = os.urandom(8)
        self.interest = Interest(
            linger_seconds=settings.linger_seconds, timeout_seconds=settings.subscribe_timeout_seconds
        )
        self.hub = Hub(self.interest)
        self.supervisor = Supervisor(broadcaster, self.hub, self.interest, origin=self.origin, settings=settings)
        self.connections: dict[Connection, None] = {}
        self.subscriptions: dict[Subscription, None] = {}

    async def stop(self) -> None:
        for subscription in list(self.subscriptions):
            subscription.end()
        closing = [
            connection.close(CloseCode.SERVICE_RESTART, "the server restarts") for connection in self.connections
        ]
        await asyncio.gather(*closing)
        await self.supervisor.stop()
        self.hub.close()


def _token(connection_id: str | None) -> bytes | None:
    if connection_id is None:
        return None
    try:
        token = bytes.fromhex(connection_id)
    except ValueError:
        token = b""
    if len(token) != 8:
        raise InvalidDataError(f"exclude takes a Connection or a Connection.id, not {connection_id!r}")
    return token
