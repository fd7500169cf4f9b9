"""When a `Backplane` is started and stopped, in which event loop, and what follows where that ends, or is forked."""

from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from backplane.concurrency.affinity import current_process
from backplane.concurrency.shared_future import outcome_of
from backplane.errors import ClosedError, LifecycleError, NotStartedError
from backplane.journal.events import DEPLOYMENT_UNSTOPPED
from backplane.journal.writing import write
from backplane.worker.deployment import NO_LIFESPAN, warn_if_isolated
from backplane.worker.server_shutdown import drain_at_the_end

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.broadcaster import Broadcaster
    from backplane.broker.adapter_source import AdapterSource
    from backplane.broker.link_state import LinkState
    from backplane.concurrency.affinity import LoopAffinity
    from backplane.concurrency.call_queue import CallQueue
    from backplane.worker.runtime import Runtime

__all__ = ["Lifecycle"]

logger: Final = logging.getLogger("backplane.worker.lifecycle")

# What this process inherited by a fork. Were it collected, it would close sockets that the parent process still uses.
_inherited: Final[list[object]] = []


class Lifecycle:
    """Starts and stops the runtime of one `Backplane`: at most one at a time, in one event loop of one process.

    Where the event loop ends without a stop, and in a process that is forked from the one of the start, the runtime
    and its adapter are discarded, and another start is possible.

    Args:
        source: Makes the adapter, anew where the last one belongs to an event loop that has ended.
        make_runtime: Makes the runtime of an adapter, in the event loop that runs.

    Attributes:
        runtime: What was started and not stopped yet; it may belong to another event loop, or to one that has ended.
    """

    def __init__(self, source: AdapterSource, make_runtime: Callable[[Broadcaster], Runtime]) -> None:
        self._source = source
        self._make_runtime = make_runtime
        self.runtime: Runtime | None = None
        self._stopping: tuple[LoopAffinity, asyncio.Task[None]] | None = None
        self._started_in: object = None  # the process
        self._server_end = ExitStack()

    @property
    def url(self) -> str:
        """The broker's URL, without options and with its password masked."""
        return str(self._source.adapter.url)

    @property
    def state(self) -> LinkState:
        """How the link to the broker is; `closed` while not started."""
        return "closed" if self.runtime is None or not self.is_started else self.runtime.supervisor.state

    @property
    def is_started(self) -> bool:
        """Whether there is a runtime whose event loop can still run, in this process."""
        return self.runtime is not None and self.runtime.affinity.is_alive

    async def start(self) -> None:
        """Start; see `Backplane.start`."""
        try:
            asyncio.get_running_loop()
        except RuntimeError as error:
            raise LifecycleError(
                "a Backplane needs asyncio, or uvloop, and this event loop is another one, such as trio's: "
                "take a worker of asyncio (Hypercorn: `--worker-class asyncio`)"
            ) from error
        if self._stopping is not None and self._stopping[0].is_alive:
            await self.stop()  # the adapter is one link: it must be closed before it is opened again
        if (of := self._affinity()) is not None and not of.is_alive:
            self._discard(of)
        if self.runtime is not None:
            raise LifecycleError("this Backplane is started already; a second one needs an object of its own")
        self._source.take()
        runtime = self.runtime = self._make_runtime(self._source.adapter)
        try:
            await runtime.start()
        except BaseException:
            self.runtime = None
            self._source.give_back()
            raise
        self._started_in = current_process()
        self._server_end = drain_at_the_end(self.drain)
        warn_if_isolated(self._source.adapter.capabilities, self.url)

    async def drain(self, hurried: bool) -> None:
        """Drain, if started here; see `Backplane.drain` and `Runtime.drain`."""
        runtime = self.runtime_here()
        if runtime is not None:
            await runtime.drain(hurried=hurried)

    async def stop(self) -> None:
        """Stop; see `Backplane.stop`."""
        if self.runtime is not None and self.runtime.affinity.has_ended:
            self._discard(self.runtime.affinity)
        runtime = self.runtime_here()
        if runtime is not None:
            self.runtime = None
            self._server_end.close()
            # In a task of its own: where the caller is cancelled, the stop is completed all the same.
            self._stopping = runtime.affinity, asyncio.create_task(self._stop(runtime))
        if self._stopping is not None:
            affinity, stopping = self._stopping
            if not affinity.has_ended:
                affinity.check()
                await outcome_of(stopping)
            self._stopping = None

    def running(self) -> Runtime:
        """Return the runtime, for use in this event loop.

        Raises:
            NotStartedError, ClosedError: It is not started.
            WrongLoopError: It runs in another event loop, thread or process.
        """
        runtime = self.started()
        runtime.affinity.check()
        return runtime

    def started(self) -> Runtime:
        """Return the runtime, wherever it runs.

        Raises:
            NotStartedError, ClosedError: It is not started.
        """
        runtime = self.runtime
        if runtime is None:
            if self._started_in is not None:
                raise ClosedError("this Backplane has been stopped")
            raise NotStartedError(
                "this Backplane is not started: pass lifespan=backplane.lifespan to the application, "
                "or use `async with backplane:`; in a test `with TestClient(app):` runs the lifespan, "
                f"and `TestClient(app)` alone does not. {NO_LIFESPAN}"
            )
        return runtime

    def runtime_here(self) -> Runtime | None:
        """Return the runtime, for use in this event loop; `None` while closed.

        Raises:
            WrongLoopError: It runs elsewhere.
        """
        runtime = self.runtime
        if runtime is None or runtime.affinity.has_ended:
            return None
        runtime.affinity.check()
        return runtime

    def calls(self) -> CallQueue | None:
        """Return what takes the publishes of other threads into the event loop; `None` where none was started here.

        Raises:
            ClosedError: One was, in this process, and has ended.
        """
        runtime = self.runtime
        if runtime is not None and runtime.affinity.is_alive:
            return runtime.calls
        if self._started_in is current_process():
            raise ClosedError("this Backplane has been stopped; not published")
        return None

    async def _stop(self, runtime: Runtime) -> None:
        await runtime.stop()
        self._source.give_back()

    def _affinity(self) -> LoopAffinity | None:
        """Return where this is started, or is being stopped."""
        if self.runtime is not None:
            return self.runtime.affinity
        return None if self._stopping is None else self._stopping[0]

    def _discard(self, affinity: LoopAffinity) -> None:
        """Discard what belongs to an event loop that has ended, or to the process that this one was forked from."""
        inherited = affinity.is_inherited
        if inherited:
            _inherited.append((self.runtime, self._stopping, self._source.adapter))
        self.runtime = self._stopping = None
        self._source.renew()
        if not inherited:
            words = "the event loop in which %(url)s was started has ended without `stop`"
            write(logger, DEPLOYMENT_UNSTOPPED, words, url=self.url)
            gc.collect()  # closes its sockets now, which nothing reads any more
