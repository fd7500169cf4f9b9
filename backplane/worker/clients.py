"""The clients of this worker: which are accepted, how many, and in which order they are closed."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from backplane.close_codes import CloseCode
from backplane.concurrency.paced import PacedCalls
from backplane.control.client_index import ControlledClient
from backplane.errors import ClosedError, TooManyConnectionsError
from backplane.journal.events import (
    CLIENT_FAILED,
    CLIENT_REFUSED,
    CLIENT_UNKNOWN_ADDRESS,
    DRAIN_HANDLERS_LEFT,
    DRAIN_STARTED,
)
from backplane.journal.place import place_of
from backplane.journal.writing import write
from backplane.worker.shutdown import stagger_window

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from backplane.control.client_index import ClientIndex
    from backplane.fanout.outbox import Outbox
    from backplane.journal.journal import Journal
    from backplane.statistics import Counters

__all__ = ["ClientRegistry", "LocalClient"]

logger: Final = logging.getLogger("backplane.worker.clients")

_CURE: Final = (
    "behind a proxy, let the server trust its headers (Uvicorn: --forwarded-allow-ips, over a Unix socket '*'), "
    "or pass client_key="
)

# How many clients that are refused after they were accepted may have a socket at a time: each should read its close
# frame and leave, but need not.
_MAX_REFUSALS: Final = 256

_RESTART: Final = "restart"

# How many clients `close_all` begins to close in one pass of the event loop.
_CLOSED_PER_PASS: Final = 50


def _at_once(callback: Callable[[], None]) -> None:
    callback()


class LocalClient(ControlledClient, Protocol):
    """A client that is closed before the worker ends: a WebSocket, an event stream."""

    @property
    def user(self) -> str | None:
        """The user of it, where the application has named one."""
        ...

    @property
    def patterns(self) -> Collection[str]:
        """The patterns it has joined."""
        ...

    @property
    def outbox(self) -> Outbox:
        """What waits for it."""
        ...

    @property
    def kind(self) -> str:
        """`connection` or `event stream`."""
        ...

    @property
    def withheld(self) -> int:
        """How many messages it was not sent because its `envelope` returned `None` for them."""
        ...

    def retire(self, code: int, reason: str, /) -> None:
        """Begin to close, after what already waits for the client."""


class ClientRegistry:
    """Counts the clients of this worker, refuses those over a limit, and closes all when the worker ends.

    Args:
        max_connections: Most clients of this worker; `None` is no limit.
        counters: Where refused clients are counted.
        journal: How refused clients are logged: many can be refused at once.

    Attributes:
        is_draining: No client is accepted any more.
        handed_over: How many clients are served by callbacks, without a task. Edited by their handlers.
        index: The clients by user, for commands; `None` where there are none.
    """

    def __init__(self, max_connections: int | None, counters: Counters, journal: Journal) -> None:
        self._max_connections = max_connections
        self._counters = counters
        self._journal = journal
        self.is_draining: bool = False
        self.handed_over: int = 0
        self.index: ClientIndex | None = None
        self._keys: dict[LocalClient, str | bytes | None] = {}
        self._ended: int = 0  # clients whose handler has ended and whose transport is still there
        self._refusals: int = 0
        self._count_by_key: Counter[str | bytes] = Counter()
        self._warned_of_unknown: bool = False
        self._retiring: PacedCalls[LocalClient] | None = None
        self._emptied = asyncio.Event()

    def __len__(self) -> int:
        """Return how many clients count for `max_connections`: those whose handler or transport is there."""
        return len(self._keys) + self._ended

    @property
    def connected(self) -> Collection[LocalClient]:
        """The clients whose handler runs: WebSockets and event streams."""
        return self._keys.keys()

    @property
    def retiring(self) -> int:
        """How many clients are still to be closed by `retire_all`, those that leave before their turn included."""
        return 0 if self._retiring is None else len(self._retiring)

    def register(self, client: LocalClient, client_key: str | bytes | None, max_per_client: int | None) -> None:
        """Accept a client.

        Args:
            client: The client.
            client_key: The client's key, given by the application (`str`) or made from its address (`bytes`). `None`:
                the address is unknown, so that only `max_connections` applies.
            max_per_client: Most clients with this key, this one included; `None` is no limit.

        Raises:
            ClosedError: The worker drains.
            TooManyConnectionsError: As many clients as are allowed are there, of this key or in all.
        """
        if self.is_draining:
            words = "refused a client: this worker drains"
            self._journal.log(
                logger,
                CLIENT_REFUSED,
                words,
                level=logging.INFO,
                of_many=True,
                what="draining",
                reason="drains",
                **client.named,
            )
            raise ClosedError("this worker is about to end: connect again, to another one")
        if self._max_connections is not None and len(self) >= self._max_connections:
            raise self.too_many(client, "this worker has as many connections as it may: try again later")
        if max_per_client is not None:
            if client_key is None:
                self._warn_of_unknown()
            elif self._count_by_key[client_key] >= max_per_client:
                hint = f"; counted by address: {_CURE}" if isinstance(client_key, bytes) else ""
                raise self.too_many(client, f"a client may have {max_per_client} connections", hint)
        self._keys[client] = client_key
        if client_key is not None:
            self._count_by_key[client_key] += 1
        if self.index is not None:
            self.index.add(client, client.user or (client_key if isinstance(client_key, str) else None))

    def identify(self, client: LocalClient) -> None:
        """Let commands find a client by its user, which it has named after its handshake."""
        if self.index is not None and client.user is not None:
            self.index.identify(client, client.user)

    def unregister(self, client: LocalClient, when_gone: Callable[[Callable[[], None]], None] = _at_once) -> None:
        """Remove a client whose handler has ended; it counts for the limits until its transport is gone.

        Args:
            client: The client; one that is not registered changes nothing.
            when_gone: Calls its argument when the transport is gone. Defaults to at once.
        """
        if client in self._keys:
            self._ended += 1
            if self.index is not None:
                self.index.discard(client)
            when_gone(partial(self._transport_gone, self._keys.pop(client)))
        if not self._keys:
            self._emptied.set()

    def reserve_refusal(self) -> bool:
        """Reserve a socket for a client that is refused after it was accepted; `False` where none is left.

        These clients do not count for `max_connections`, and there are never more of them than that, or than 256.
        """
        most = self._max_connections
        if self._refusals >= (_MAX_REFUSALS if most is None else min(most, _MAX_REFUSALS)):
            return False
        self._refusals += 1
        return True

    def release_refusal(self) -> None:
        """Release what `reserve_refusal` reserved: the transport is gone."""
        self._refusals -= 1

    def retire_all(self, most_seconds: float) -> float:
        """Accept no client any more, and close those that are there with code 1012, one after the other.

        Args:
            most_seconds: Over how long at most. Few clients take less.

        Returns:
            After how many seconds the last one begins to close.
        """
        self.is_draining = True
        seconds = stagger_window(len(self._keys), most_seconds)
        words = "draining: closing %(connections)d connections over %(seconds).1f s"
        self._journal.log(logger, DRAIN_STARTED, words, connections=len(self._keys), seconds=seconds)
        # Not at once: by then the server's other workers accept no new client either.
        begin = seconds / 10
        self._retiring = PacedCalls(self._retire, self._keys, after_seconds=begin, seconds=seconds - begin)
        return seconds

    def _retire(self, client: LocalClient) -> None:
        if client in self._keys:
            client.retire(CloseCode.SERVICE_RESTART, _RESTART)

    async def wait_until_empty(self, seconds: float) -> None:
        """Wait until the handlers of all clients have ended, for `seconds` at most; a warning reports what is left."""
        self._emptied.clear()
        if self._keys:
            try:
                async with asyncio.timeout(seconds):
                    await self._emptied.wait()
            except TimeoutError:
                words = "%(handlers)d handlers did not end with their connection"
                self._journal.log(logger, DRAIN_HANDLERS_LEFT, words, handlers=len(self._keys))

    async def close_all(self) -> None:
        """Accept no client any more, and close those that are left with code 1012, at once."""
        self.is_draining = True
        async with asyncio.TaskGroup() as closing:
            for number, client in enumerate(tuple(self._keys), 1):
                closing.create_task(self._close(client))
                if number % _CLOSED_PER_PASS == 0:
                    await asyncio.sleep(0)

    async def _close(self, client: LocalClient) -> None:
        try:
            await client.close(CloseCode.SERVICE_RESTART, _RESTART)
        except Exception as error:  # the worker ends all the same
            words = "a client could not be closed: %(error)s"
            self._journal.log(logger, CLIENT_FAILED, words, error=place_of(error), **client.named)

    def too_many(self, client: LocalClient, reason: str, hint: str = "") -> TooManyConnectionsError:
        """Count and log a client that is over a limit, and return the error for it.

        Args:
            client: The client.
            reason: What the client may be shown.
            hint: What the log has beside.
        """
        self._counters.refused_connections += 1
        words = "refused a client: %(reason)s"
        self._journal.log(logger, CLIENT_REFUSED, words, what="connection", reason=reason + hint, **client.named)
        return TooManyConnectionsError(reason)

    def _warn_of_unknown(self) -> None:
        if not self._warned_of_unknown:
            self._warned_of_unknown = True
            words = "max_connections_per_client does not count clients whose address is unknown: %(reason)s"
            write(logger, CLIENT_UNKNOWN_ADDRESS, words, reason=_CURE)

    def _transport_gone(self, client_key: str | bytes | None) -> None:
        self._ended -= 1
        if client_key is None:
            return
        self._count_by_key[client_key] -= 1
        if not self._count_by_key[client_key]:
            del self._count_by_key[client_key]
