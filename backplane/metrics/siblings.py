"""The workers of one server answer each other what they measure, over Unix sockets: one scrape of any shows all.

Which worker answers a request is chance, so a scrape that shows one worker shows another one each time. A worker
listens on a socket whose name begins with a digest of what it shares with its siblings: the process that started them,
the broker, the application. The one that is asked connects to each, sends one line, and reads one answer. This needs no
broker and writes no file, and nothing stays of a worker that was killed: its socket refuses.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import ReferenceType, WeakKeyDictionary, ref

from backplane.concurrency.shared_future import outcome_of
from backplane.journal.events import SCRAPE_FAILED
from backplane.journal.writing import write
from backplane.metrics.question import GoneError, answer, ask
from backplane.metrics.sibling_folder import GROUP_LENGTH, namespace, open_sibling_folder, remove_stale_sockets
from backplane.metrics.snapshot import parse_snapshot, snapshot
from backplane.unix_sockets.folder import FolderError
from backplane.unix_sockets.listener import Listener
from backplane.unix_sockets.sockets import (
    foreign_peer,
    list_sockets,
)
from backplane.worker.deployment import server_pid

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from backplane.broker.link_state import StateChange
    from backplane.concurrency.affinity import LoopAffinity
    from backplane.worker.runtime import Runtime

__all__ = ["Scrape", "Siblings", "siblings_of"]

logger: Final = logging.getLogger("backplane.metrics.siblings")

_MAX_ANSWERS: Final = 64  # under way at a time


class Observed(Protocol):
    """A `Backplane`, as far as siblings need it."""

    @property
    def url(self) -> str:
        """The broker's URL, without options and with its password masked."""
        ...

    @property
    def _runtime(self) -> Runtime | None: ...

    def on_state(self, callback: Callable[[StateChange], object]) -> Callable[[StateChange], object]:
        """Call `callback` on every change of the link's state."""
        ...


@dataclass(frozen=True, slots=True)
class Scrape:
    """What the workers of one server measure, at one moment.

    Attributes:
        snapshots: Of each worker that answered, this one first; see `snapshot`.
        missing: The process ids of those that did not answer within a second, as text.
    """

    snapshots: list[dict[str, Any]]
    missing: list[str]


# One for each backplane, since it has one socket; and how many there are of one application, by URL and prefix.
_siblings: Final[WeakKeyDictionary[Observed, ReferenceType[Siblings]]] = WeakKeyDictionary()
_ordinals: Final[Counter[str]] = Counter()


def siblings_of(backplane: Observed) -> Siblings:
    """Return the siblings of the worker of `backplane`: always the same object.

    To be called before the start, when the application is made: from then on this worker answers the others.
    """
    reference = _siblings.get(backplane)
    found = None if reference is None else reference()
    if found is None:
        found = Siblings(backplane)
        _siblings[backplane] = ref(found)  # the backplane holds it, as a callback
    return found


class Siblings:
    """Listens for the siblings of this worker from the start of its backplane to the stop, and asks them.

    A worker that no server started together with others, as Uvicorn without `--workers`, has none, and does not listen.
    Where no socket can be made, a warning names the reason, and this worker is alone.

    Args:
        backplane: What is measured here. It is the same application at the siblings, so that the second backplane with
            one URL finds the second ones there.
    """

    def __init__(self, backplane: Observed) -> None:
        self._backplane = backplane
        self._ordinal = _ordinals[backplane.url]
        _ordinals[backplane.url] += 1
        self._affinity: LoopAffinity | None = None
        self._listener: Listener | None = None
        self._folder: Path | None = None
        self._group = ""
        self._answers: set[asyncio.Task[None]] = set()
        self._scrape: asyncio.Task[Scrape] | None = None
        backplane.on_state(self._state_changed)

    async def scrape(self) -> Scrape:
        """Ask all siblings, and return what they answered within a second. Calls at the same time share the answers."""
        loop = asyncio.get_running_loop()
        self._listen()
        if self._scrape is None or self._scrape.done() or self._scrape.get_loop() is not loop:
            self._scrape = loop.create_task(self._ask_all(), name="backplane-scrape")
        return await outcome_of(self._scrape)

    def _state_changed(self, change: StateChange) -> None:
        if change.new == "closed":
            self._close()
        else:
            self._listen()

    # -- being asked -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Listen in the event loop of the backplane, if it is this one, unless this is done already."""
        runtime = self._backplane._runtime  # pyright: ignore[reportPrivateUsage]
        if runtime is None or runtime.affinity is self._affinity:
            return
        if not runtime.affinity.is_alive or runtime.affinity.loop is not asyncio.get_running_loop():
            return
        self._close()
        self._affinity = runtime.affinity
        parent = server_pid()
        if parent is None:
            return
        self._group = self._group_of(runtime, parent)
        try:
            self._folder = open_sibling_folder()
            remove_stale_sockets(self._folder)
            self._listener = Listener(runtime.affinity.loop, self._folder, self._accept, group=self._group)
        except (FolderError, OSError) as error:
            write(
                logger,
                SCRAPE_FAILED,
                "the metrics of this worker are in no scrape but its own, since it cannot listen for the other workers "
                "(%(reason)s): set XDG_RUNTIME_DIR or TMPDIR to a folder of this user, or pass siblings=False",
                reason=error,
            )

    def _group_of(self, runtime: Runtime, parent: int) -> str:
        shared = (self._backplane.url, runtime.prefix, self._ordinal, parent, namespace())
        return sha256(repr(shared).encode()).hexdigest()[: GROUP_LENGTH - 1] + "-"

    def _close(self) -> None:
        listener, affinity = self._listener, self._affinity
        self._listener = self._affinity = self._folder = None
        if listener is not None and affinity is not None and not affinity.is_inherited:
            listener.close()
        answers, self._answers = self._answers, set()
        if affinity is not None and affinity.is_alive:
            for task in answers:
                task.cancel()

    def _accept(self, connection: socket.socket) -> None:
        with suppress(OSError):  # it has ended already
            if len(self._answers) < _MAX_ANSWERS and foreign_peer(connection) is None:
                task = asyncio.create_task(answer(connection, self._snapshot), name="backplane-sibling")
                self._answers.add(task)
                return task.add_done_callback(self._answered)
        connection.close()

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answers.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            words = "the metrics of this worker could not be read for another one"
            write(logger, SCRAPE_FAILED, words, level=logging.ERROR, exc_info=error)

    def _snapshot(self) -> bytes:
        return json.dumps(snapshot(self._backplane)).encode()

    # -- asking ------------------------------------------------------------------------------------------------------

    async def _ask_all(self) -> Scrape:
        names = self._others()
        answers = await asyncio.gather(*map(self._ask, names))
        by_worker = {answer["worker"]: answer for answer in answers if answer is not None and "metrics" in answer}
        missing = {answer["worker"] for answer in answers if answer is not None} - by_worker.keys()
        own = snapshot(self._backplane)
        by_worker.pop(own["worker"], None)
        snapshots = [own, *sorted(by_worker.values(), key=lambda each: int(each["worker"]))]
        return Scrape(snapshots, sorted(missing - {own["worker"]}, key=int))

    def _others(self) -> list[str]:
        if self._folder is None or self._listener is None:
            return []
        try:
            return [name for name in list_sockets(self._folder, self._group) if name != self._listener.name]
        except OSError as error:
            words = "cannot list the other workers (%(reason)s): their metrics are missing"
            write(logger, SCRAPE_FAILED, words, reason=error)
            return []

    async def _ask(self, name: str) -> dict[str, Any] | None:
        """Return what a sibling answers; its id alone where it does not, and `None` where it has ended."""
        assert self._folder is not None
        worker = name[GROUP_LENGTH:].partition("-")[0]
        try:
            return parse_snapshot(await ask(self._folder / name), worker)
        except GoneError:
            return None
        except (OSError, ValueError) as error:
            self._log_missing(worker, error)
            return {"worker": worker}

    def _log_missing(self, worker: str, error: Exception) -> None:
        runtime = self._backplane._runtime  # pyright: ignore[reportPrivateUsage]
        if runtime is not None and runtime.affinity.loop is asyncio.get_running_loop():  # the journal belongs to it
            runtime.journal.log(
                logger,
                SCRAPE_FAILED,
                "worker %(sibling)s did not answer a scrape within a second, since it is stopped, or its event loop is "
                "blocked, or it does not have the same version: %(reason)s",
                sibling=worker,
                reason=repr(error),
            )
