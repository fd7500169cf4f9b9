"""Sends commands to all workers, and collects their answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from backplane.cluster.topics import CONTROL, inbox_of
from backplane.cluster_types import Answers, Worker
from backplane.control.messages import Command, parse_answer
from backplane.errors import PublishOutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.cluster.bus import ClusterBus
    from backplane.control.messages import Answer, Selector

__all__ = ["Requests"]

# Answers of workers that are not known, to one command: another program can invent any number of them.
_MAX_UNKNOWN: Final = 10_000


class Requests:
    """The commands of this worker that wait for answers.

    Args:
        bus: Where commands are sent.
        workers: Returns the workers that are alive now, this one included.
        knows_all: Returns whether these are all there are: soon after the start there can be others.
    """

    def __init__(self, bus: ClusterBus, workers: Callable[[], list[Worker]], knows_all: Callable[[], bool]) -> None:
        self._bus = bus
        self._workers = workers
        self._knows_all = knows_all
        self._pending: Final[dict[str, _Pending]] = {}

    async def command(self, kind: str, selector: Selector, arguments: dict[str, Any]) -> None:
        """Send a command, and return when the broker has it; raises as `ClusterBus.send`."""
        await self._bus.send(CONTROL, Command(kind=kind, selector=selector, arguments=arguments).encode())

    async def ask(self, kind: str, selector: Selector, arguments: dict[str, Any], seconds: float) -> Answers:
        """Send a command, and return what the workers answered within `seconds`.

        Returns earlier once every worker that was alive has answered, or is not alive any more, if all are known. The
        time is that of sending too.

        Raises:
            InvalidDataError: An argument is not JSON.
            PublishOutcomeUnknownError: The broker did not take it within `seconds`.
            BrokerError, PayloadTooLargeError, ClosedError: As `ClusterBus.send`.
        """
        command = Command(kind=kind, selector=selector, arguments=arguments, reply_to=inbox_of(self._bus.worker))
        text = command.encode()
        pending = self._pending[command.id] = _Pending(selector.worker)
        pending.update(self._workers(), knows_all=self._knows_all())
        is_sent = False
        try:
            async with asyncio.timeout(seconds):
                await self._bus.send(CONTROL, text)
                is_sent = True
                await pending.complete.wait()
        except TimeoutError:
            if not is_sent:
                raise PublishOutcomeUnknownError(
                    f"the broker did not take it within {seconds:g} s; it may have been published"
                ) from None
        finally:
            del self._pending[command.id]
        return pending.answers()

    def received(self, _topic: str, text: str, /) -> None:
        """Take an answer; one that nothing waits for changes nothing."""
        answer = parse_answer(text)
        if answer is not None and (pending := self._pending.get(answer.id)) is not None:
            pending.take(answer)

    def gap(self, _topic: str, /) -> None:
        """Answers may have been missed: their workers are reported as missing when the time is up."""

    def workers_changed(self) -> None:
        """Wait no longer for workers that are not alive any more."""
        if self._pending:
            alive, knows_all = self._workers(), self._knows_all()
            for pending in self._pending.values():
                pending.update(alive, knows_all=knows_all)

    def stop(self) -> None:
        """End what waits, with the answers there are: no more can come."""
        for pending in self._pending.values():
            pending.complete.set()


class _Pending:
    """One command that waits for answers.

    Args:
        only: The worker that is asked; `None` for all.

    Attributes:
        complete: Set once there is nothing to wait for.
    """

    def __init__(self, only: str | None) -> None:
        self._only = only
        self._knows_all = False
        self._expected: dict[str, Worker] = {}
        self._waited_for: set[str] = set()
        self._answers: dict[str, Answer] = {}
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._seconds: dict[str, float] = {}
        self.complete = asyncio.Event()

    def take(self, answer: Answer) -> None:
        """Take an answer, also of a worker that was not known; only the first one of each counts."""
        if answer.worker in self._expected or len(self._answers) < _MAX_UNKNOWN:
            if self._answers.setdefault(answer.worker, answer) is answer:
                self._seconds[answer.worker] = self._loop.time() - self._began_at
            self._waited_for.discard(answer.worker)
            self._check()

    def update(self, alive: list[Worker], *, knows_all: bool) -> None:
        """Wait no longer for any worker that is not `alive`; and wait for those that have become known since.

        Once all are known, one that appears was not there when the command was sent.
        """
        if not self._knows_all:
            known = [worker for worker in alive if self._only in (None, worker.id)]
            self._waited_for |= {worker.id for worker in known} - self._answers.keys()
            self._expected = {worker.id: worker for worker in known} | self._expected
            self._knows_all = knows_all
        self._waited_for &= {worker.id for worker in alive}
        self._check()

    def answers(self) -> Answers:
        """Return what was answered so far."""
        workers = {name: self._expected.get(name) or Worker(id=name) for name in self._answers}
        given = self._answers.items()
        return Answers(
            by_worker={workers[name]: answer.value for name, answer in given if answer.succeeded},
            errors={workers[name]: str(answer.value) for name, answer in given if not answer.succeeded},
            missing=[worker for name, worker in self._expected.items() if name not in self._answers],
            seconds={workers[name]: seconds for name, seconds in self._seconds.items()},
        )

    def _check(self) -> None:
        if self._knows_all and not self._waited_for:
            self.complete.set()
