"""Client managers of python-socketio: Socket.IO servers joined by any broker of `Backplane`.

    from backplane.integrations.socketio import BackplaneManager

    sio = socketio.AsyncServer(async_mode="asgi", client_manager=BackplaneManager("nats://localhost:4222"))

Needs the extra `socketio`. What the managers publish is what python-socketio's own ones do, JSON on one channel: with
`wire_format=plain` in the URL of a Redis, they work side by side with its `AsyncRedisManager` and `RedisManager`.
"""

# python-socketio has no types:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

from backplane.errors import BrokerError, ClosedError, MissingDependencyError
from backplane.integrations.feed import Feed, notify_gap
from backplane.integrations.lease import Lease
from backplane.message import Gap
from backplane.settings import Settings
from backplane.sync import SyncBackplane, SyncPublisher

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.core import Backplane
    from backplane.integrations.feed import GapCallback

    # python-socketio has no types: this is what is used of its managers.
    class _Manager:
        channel: str
        json: Any
        server: Any

        def __init__(self, channel: str, write_only: bool, logger: Any, json: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

    class AsyncPubSubManager(_Manager):
        async def pre_connect(self, eio_sid: str, namespace: str) -> Any: ...
        async def _handle_disconnect(self, message: dict[str, Any]) -> None: ...

    class PubSubManager(_Manager):
        def _handle_disconnect(self, message: dict[str, Any]) -> None: ...
else:
    try:
        from socketio.async_pubsub_manager import AsyncPubSubManager
        from socketio.pubsub_manager import PubSubManager
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "backplane.integrations.socketio needs python-socketio: pip install 'fastapi-backplane[socketio]'"
        ) from error

__all__ = ["BackplaneManager", "SyncBackplaneManager"]

_PAUSE_SECONDS: Final = 1.0

# A server of Socket.IO has no start that could fail: without its broker it serves its own clients.
_LAZY: Final = Settings(start="lazy")


class BackplaneManager(AsyncPubSubManager):
    """Joins the workers of a Socket.IO server: rooms, acknowledgements and disconnects across all of them.

    As python-socketio's `AsyncRedisManager`, with these differences:

    - A lost link is rebuilt, one that is silent too, and `on_gap` is called where messages may have been missed.
    - The first clients of a worker connect when the broker has confirmed its subscription, or after
      `subscribe_timeout_seconds`: from then on they miss nothing without a gap.
    - `emit` and the other calls raise where the broker did not get the message. The clients of this worker have got it
      then: python-socketio serves them first.

    Args:
        backplane: The application's `Backplane`, which it starts and stops; or the URL of a broker. Then the manager
            starts a backplane of its own with the first client or `emit`, also where the broker is not available yet,
            and `stop` ends it. Defaults to the environment variable `BACKPLANE_URL`.
        channel: The channel that all servers share. Defaults to `socketio`.
        write_only: Only emit, in a process that is no server. Defaults to `False`.
        logger: As of python-socketio. Defaults to the server's.
        json: As of python-socketio, where `write_only` is set. Defaults to that of the standard library.
        on_gap: Called with a `Gap` where messages of other workers may be missing, in its place between them; a
            function or a coroutine function. `emit("reload", ignore_queue=True)` there reaches the clients of this
            worker, which each worker does for its own. What it raises is logged. Defaults to nothing: the gap is
            logged by `backplane`.

    Raises:
        ConfigurationError: The URL is wrong.
        MissingDependencyError: The adapter's client library is not installed.
    """

    name: ClassVar[str] = "backplane"

    def __init__(
        self,
        backplane: Backplane | str | None = None,
        channel: str = "socketio",
        write_only: bool = False,
        logger: Any = None,
        json: Any = None,
        on_gap: GapCallback | None = None,
    ) -> None:
        super().__init__(channel=channel, write_only=write_only, logger=logger, json=json)
        self._lease = Lease(backplane, settings=_LAZY)
        self._on_gap = on_gap
        self._subscribed: asyncio.Event = asyncio.Event()  # or it is known that this takes longer

    @property
    def backplane(self) -> Backplane:
        """The backplane: its `state`, `health` and `statistics`."""
        return self._lease.backplane

    async def stop(self) -> None:
        """End the subscription, and a backplane of the manager's own: `ASGIApp(sio, on_shutdown=manager.stop)`."""
        if (listener := self._listener) is not None:
            listener.cancel()
            await asyncio.wait([listener])
        self._subscribed.set()
        await self._lease.stop()

    async def pre_connect(self, eio_sid: str, namespace: str) -> Any:
        """Register a client, once nothing that is emitted to it from elsewhere can be missed."""
        if self._listener is not None:
            await self._subscribed.wait()
        return await super().pre_connect(eio_sid, namespace)

    @property
    def _listener(self) -> asyncio.Task[None] | None:
        listener: Any = getattr(self, "thread", None)
        return listener if isinstance(listener, asyncio.Task) else None

    async def _publish(self, data: dict[str, Any]) -> None:
        backplane = await self._lease.ready()
        await backplane.publish(self.channel, self.json.dumps(data))

    async def _listen(self) -> AsyncGenerator[str | bytes]:
        feed = Feed()
        try:
            await self._subscribe(feed)
            async for item in feed:
                if isinstance(item, Gap):
                    await notify_gap(self._on_gap, item)
                else:
                    yield item.data
        except ClosedError:
            pass
        except Exception:
            await asyncio.sleep(_PAUSE_SECONDS)  # python-socketio logs it, and begins again at once
            raise
        finally:
            self._subscribed.set()
            await feed.close()
        # The backplane was stopped. python-socketio takes any other end of its listener for a fault, and logs it.
        raise asyncio.CancelledError

    async def _subscribe(self, feed: Feed) -> None:
        await feed.open(await self._lease.ready())
        with suppress(BrokerError):
            await feed.join(self.channel, insist=True)
        self._subscribed.set()

    async def _handle_disconnect(self, message: dict[str, Any]) -> None:
        if self.server is not None:  # a process that only writes has no clients
            await super()._handle_disconnect(message)


class SyncBackplaneManager(PubSubManager):
    """Emits from synchronous code outside the servers: Celery tasks, Django views, scripts.

        SyncBackplaneManager("redis://localhost").emit("news", {"id": 42}, room="editors")

    As python-socketio's `RedisManager(url, write_only=True)`. It opens nothing until the first call, serves all
    threads, survives forks, and raises where the broker did not get the message. `disconnect`, `enter_room`,
    `leave_room` and `close_room` work too. Acknowledgements (`callback`) need a server.

    Args:
        backplane: The URL of the servers' broker; or a `SyncBackplane`, or `backplane.sync` of a `Backplane`. Defaults
            to the environment variable `BACKPLANE_URL`.
        channel: The channel of the servers. Defaults to `socketio`.
        logger: As of python-socketio. Defaults to its own.
        json: As of python-socketio. Defaults to that of the standard library.

    Raises:
        ConfigurationError: There is no URL, or it is wrong.
        MissingDependencyError: The adapter's client library is not installed.
    """

    name: ClassVar[str] = "backplane"

    def __init__(
        self,
        backplane: SyncPublisher | str | None = None,
        channel: str = "socketio",
        logger: Any = None,
        json: Any = None,
    ) -> None:
        super().__init__(channel=channel, write_only=True, logger=logger, json=json)
        self._publisher = backplane if isinstance(backplane, SyncPublisher) else SyncBackplane(backplane)
        self._is_own = self._publisher is not backplane

    def close(self) -> None:
        """Close a link of the manager's own, as the end of the interpreter does. Closing again changes nothing."""
        if self._is_own and isinstance(self._publisher, SyncBackplane):
            self._publisher.close()

    def _publish(self, data: dict[str, Any]) -> None:
        self._publisher.publish(self.channel, self.json.dumps(data))

    def _handle_disconnect(self, message: dict[str, Any]) -> None:
        if self.server is not None:
            super()._handle_disconnect(message)
