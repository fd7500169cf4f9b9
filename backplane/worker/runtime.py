"""What exists between a start and its stop of a `Backplane`, in one event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from backplane.broker.publish_buffer import PublishBuffer
from backplane.broker.supervisor import Supervisor
from backplane.close_codes import CloseCode
from backplane.concurrency.call_queue import CallQueue
from backplane.connection.keepalive import KeepaliveScheduler
from backplane.errors import (
    BrokerUnavailableError,
    ClosedError,
    PublishError,
    PublishOutcomeUnknownError,
    TooManyConnectionsError,
)
from backplane.fanout.broker_subscriptions import BrokerSubscriptions
from backplane.fanout.hub import Hub
from backplane.log_bursts import LogBursts
from backplane.statistics import Statistics
from backplane.worker.health import Health
from backplane.worker.shutdown import stagger_window

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from backplane.broadcaster import Broadcaster
    from backplane.broker.supervisor import StateChange
    from backplane.fanout.subscription import Subscription
    from backplane.settings import Settings

__all__ = ["LocalClient", "Runtime"]

logger = logging.getLogger("backplane.worker.runtime")

# What a client that reads nothing costs before its grace begins and after it: what waits and the close frame.
_CLOSE_SECONDS: Final = 2.0

# Over how long clients are closed where the server ends them meanwhile: Hypercorn gives them 3 s by default.
_HURRIED_DRAIN_SECONDS: Final = 1.0

_CURE: Final = (
    "behind a proxy, let the server believe its headers (Uvicorn: --forwarded-allow-ips, over a Unix socket '*'), "
    "or pass client_key="
)


# How many refused clients may have a socket at a time: each reads its close frame and goes, but need not.
_MAX_REFUSALS: Final = 256


def _at_once(callback: Callable[[], None]) -> None:
    callback()


class LocalClient(Protocol):
    """Someone who must be told before the worker ends: a WebSocket, an event stream."""

    def retire(self, code: int, reason: str) -> None:
        """Begin to end, behind what waits for the client."""

    async def close(self, code: int, reason: str) -> None:
        """End now."""


class Runtime:
    """The parts, put together, and everything local that receives.

    Attributes:
        affinity: The event loop in which all of it lives.
        calls: What other threads publish, on its way into that event loop.
        origin: Random bytes that name this process on the broker.
        keepalive: The timer of all connections.
        statistics: Where what happens is counted; `count` returns it with what others count.
        bursts: How what can concern many clients at once is logged.
        draining: No new client is taken.
        drained: The worker is about to end, and whoever waits has been notified.
    """

    def __init__(
        self, broadcaster: Broadcaster, settings: Settings, on_state: Callable[[StateChange], None] | None = None
    ) -> None:
        self.settings = settings
        self.origin = os.urandom(8)
        self.broker_subscriptions = BrokerSubscriptions(
            linger_seconds=settings.linger_seconds, timeout_seconds=settings.subscribe_timeout_seconds
        )
        self.bursts = LogBursts()
        self.hub = Hub(self.broker_subscriptions, self.bursts)
        self.affinity = self.hub.affinity
        self.calls = CallQueue()
        self.calls.open()
        self.supervisor = Supervisor(
            broadcaster, self.hub, self.broker_subscriptions, origin=self.origin, settings=settings, on_state=on_state
        )
        self.subscriptions: dict[Subscription, None] = {}
        self.keepalive = KeepaliveScheduler()
        self.statistics = Statistics()
        self.draining = False
        self.drained = False
        self._connections: dict[LocalClient, str | bytes | None] = {}
        self._ended = 0  # clients whose handler has ended, and whose transport is still there
        self._refusals = 0
        self._by_client: Counter[str | bytes] = Counter()
        self._warned_of_unknown = False
        self._emptied = asyncio.Event()
        self._buffer = PublishBuffer(
            self.supervisor,
            max_bytes=settings.max_buffer_bytes,
            max_messages=settings.max_buffer_messages,
            bursts=self.bursts,
        )

    @property
    def connections(self) -> Collection[LocalClient]:
        """The clients of this worker: WebSockets and event streams."""
        return self._connections.keys()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish as the setting `outage` decides, and count how that ended."""
        statistics = self.statistics
        try:
            if self.settings.outage == "buffer":
                await self._buffer.publish(channel, payload)
            else:
                await self.supervisor.publish(channel, payload)
        except BrokerUnavailableError:
            statistics.publishes_unavailable += 1
            raise
        except PublishOutcomeUnknownError:
            statistics.publishes_unknown += 1
            raise
        except PublishError as error:
            statistics.publishes_refused += 1
            self.bursts.log(logger, logging.WARNING, "the broker refused a message on channel %r: %s", channel, error)
            raise
        statistics.published += 1

    def register_client(self, connection: LocalClient, client_key: str | bytes | None) -> None:
        """Take a client.

        Args:
            connection: The client.
            client_key: Whose it is, by the application (`str`) or by its address (`bytes`). `None`: nobody knows, so
                that it is counted for the worker alone.

        Raises:
            ClosedError: The worker drains.
            TooManyConnectionsError: There are as many as are allowed, of this client or in all.
        """
        if self.draining:
            self.bursts.log(logger, logging.INFO, "refused a client: this worker drains")
            raise ClosedError("this worker is about to end: connect again, to another one")
        most, most_of_one = self.settings.max_connections, self.settings.max_connections_per_client
        if most is not None and len(self._connections) + self._ended >= most:
            raise self._one_too_many("this worker has as many connections as it may: try again later")
        if most_of_one is not None:
            if client_key is None:
                self._warn_of_unknown()
            elif self._by_client[client_key] >= most_of_one:
                hint = f"; counted by address: {_CURE}" if isinstance(client_key, bytes) else ""
                raise self._one_too_many(f"a client may have {most_of_one} connections", hint)
        self._connections[connection] = client_key
        if client_key is not None:
            self._by_client[client_key] += 1

    def unregister_client(
        self, connection: LocalClient, when_gone: Callable[[Callable[[], None]], None] = _at_once
    ) -> None:
        """Forget a client whose handler has ended; it counts until its transport is gone.

        Args:
            connection: The client.
            when_gone: Calls what it is given when the transport is gone. Defaults to at once.
        """
        if connection in self._connections:
            self._ended += 1
            when_gone(partial(self._forget, self._connections.pop(connection)))
        if not self._connections:
            self._emptied.set()

    def reserve_refusal(self) -> bool:
        """Take a place for a client that is refused after it was accepted; `False` where there is none.

        Such clients are beside those of `max_connections`, and never more than these, or than 256.
        """
        most = self.settings.max_connections
        if self._refusals >= (_MAX_REFUSALS if most is None else min(most, _MAX_REFUSALS)):
            return False
        self._refusals += 1
        return True

    def release_refusal(self) -> None:
        """Give that place back: its transport is gone."""
        self._refusals -= 1

    def _one_too_many(self, words: str, hint: str = "") -> TooManyConnectionsError:
        self.statistics.refused_connections += 1
        self.bursts.log(logger, logging.WARNING, "refused a client: %s", words + hint)
        return TooManyConnectionsError(words)

    def reload_delay(self) -> float:
        """Draw after how long one of many clients is closed that an outage concerns alike."""
        return random.uniform(0, stagger_window(len(self._connections), self.settings.drain_seconds))  # noqa: S311

    async def drain(self, *, hurried: bool = False) -> None:
        """Take no new client, and close those that are there with code 1012, spread over `drain_seconds`.

        Returns when the clients' handlers have ended, or some seconds after the last grace. Subscriptions end last.

        Args:
            hurried: The server ends meanwhile: close within a second.
        """
        self.draining = True
        loop = asyncio.get_running_loop()
        most_seconds = self.settings.drain_seconds
        seconds = stagger_window(
            len(self._connections), min(most_seconds, _HURRIED_DRAIN_SECONDS) if hurried else most_seconds
        )
        logger.info("draining: closing %d connections over %.1f s", len(self._connections), seconds)
        for connection in self._connections:
            # Not at once: by then the server's other workers take no new client either.
            delay = random.uniform(seconds / 10, seconds)  # noqa: S311
            loop.call_later(delay, connection.retire, CloseCode.SERVICE_RESTART, "restart")
        try:
            await self._wait_until_empty(seconds + self.settings.handler_grace_seconds + _CLOSE_SECONDS)
        finally:  # also where somebody is in a hurry, and cancels
            self.drained = True
            self._end_subscriptions()
            self.supervisor.wake()

    async def stop(self) -> None:
        """End everything that is left, and the link."""
        self.draining = True
        await self._buffer.stop(self.settings.publish_timeout_seconds)
        self._end_subscriptions()
        closing = [connection.close(CloseCode.SERVICE_RESTART, "restart") for connection in self._connections]
        await asyncio.gather(*closing)
        await self.supervisor.stop()
        await self.calls.close()
        self.hub.close()
        self.bursts.flush()

    def count(self) -> Statistics:
        """What was counted since the start."""
        return replace(
            self.statistics,
            delivered=self.hub.delivered,
            malformed=self.hub.malformed,
            gaps=self.hub.gaps,
            buffered=len(self._buffer),
            buffer_dropped=self._buffer.dropped,
        )

    def health(self) -> Health:
        """How this worker is."""
        supervisor, hub, now = self.supervisor, self.hub, asyncio.get_running_loop().time()
        return Health(
            live=supervisor.is_alive,
            ready=supervisor.state == "live" and not self.draining,
            state=supervisor.state,
            draining=self.draining,
            generation=supervisor.generation,
            round_trip_seconds=supervisor.probe.round_trip_seconds,
            probed_seconds_ago=_since(supervisor.probe.answered_at, now),
            gaps=hub.gaps,
            last_gap_seconds_ago=_since(hub.last_gap_at, now),
            last_gap_reason=hub.last_gap_reason,
            channels=len(hub.channels),
            connections=len(self._connections) + self._ended,
            subscriptions=len(self.subscriptions),
            buffered=len(self._buffer),
        )

    async def _wait_until_empty(self, seconds: float) -> None:
        self._emptied.clear()
        if self._connections:
            try:
                async with asyncio.timeout(seconds):
                    await self._emptied.wait()
            except TimeoutError:
                logger.warning("%d handlers did not end with their connection", len(self._connections))

    def _end_subscriptions(self) -> None:
        for subscription in list(self.subscriptions):
            subscription.end()

    def _warn_of_unknown(self) -> None:
        if not self._warned_of_unknown:
            self._warned_of_unknown = True
            logger.warning("max_connections_per_client does not count clients whose address is unknown: %s", _CURE)

    def _forget(self, client_key: str | bytes | None) -> None:
        self._ended -= 1
        if client_key is None:
            return
        self._by_client[client_key] -= 1
        if not self._by_client[client_key]:
            del self._by_client[client_key]


def _since(moment: float | None, now: float) -> float | None:
    return None if moment is None else now - moment
