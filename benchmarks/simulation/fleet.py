"""Workers, a load balancer and the clients that have lost their worker, in steps of a tenth of a second.

Nothing is measured here, and nothing waits: the same setup and seed give the same outcome on every machine.

The model, and where it is simpler than the world:

- A client that lost its worker waits for a pause between 0 and a bound that doubles with each failed try, as
  backplane/web/client.js does, and then asks for a handshake. Clients of one step are spread evenly over
  their pause; what is left over goes to random steps.
- A worker takes so many handshakes per second, in the order in which they came; those that are early wait. It does
  nothing else meanwhile. The kernel's queue of unaccepted connections has no bound.
- A client that has waited for its patience (a proxy's timeout, mostly) goes, and tries again after a pause. The worker
  notices only when its turn comes, and has had the work.
- A worker that drains refuses. One that is gone does too, at once. The balancer sends clients to both until it notices,
  and repeats no try by itself.
- All clients of a worker that ends without a close frame notice that at the same moment.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["STEPS_PER_SECOND", "Balance", "Fleet", "Outcome", "Setup", "Worker"]

STEPS_PER_SECOND: Final = 10

# Any first bound that is not tiny has reached the largest by then.
_MOST_DOUBLINGS: Final = 10

Balance = Literal["even", "least"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is simulated.

    Attributes:
        clients: How many clients are connected at the beginning, evenly over the workers.
        workers: How many workers serve them.
        handshakes_per_second: How many handshakes a worker takes: 5,000 clients that resume were back after 5,665 ms
            (`python -m benchmarks history`, Redis).
        drain_seconds: The setting of the workers.
        first_pause_seconds: First bound of a client's pause after a close frame.
        lost_pause_seconds: The same where the connection ended without one, and after a refused try.
        longest_pause_seconds: Largest bound.
        patience_seconds: How long a client, or a proxy between, waits for the answer to its handshake.
        notice_seconds: How long the balancer sends clients to a worker that refuses them.
        start_seconds: How long a new worker takes to be ready.
        replaced_at_once: How many workers a deployment replaces at the same time.
        balance: Where the balancer sends a client: to each worker in turn, or to the one with the fewest clients.
        seed: Of what is random.
    """

    clients: int
    workers: int
    handshakes_per_second: float = 880.0
    drain_seconds: float = 5.0
    first_pause_seconds: float = 0.5
    lost_pause_seconds: float = 0.5
    longest_pause_seconds: float = 10.0
    patience_seconds: float = 60.0
    notice_seconds: float = 2.0
    start_seconds: float = 10.0
    replaced_at_once: int = 1
    balance: Balance = "even"
    seed: int = 17


@dataclass(slots=True)
class Outcome:
    """What came of it.

    Attributes:
        returns: How many clients are back, by how many steps they were away. One that was closed twice counts twice.
        tries: Handshakes that clients asked for.
        refused: Tries that met a worker which drains or is gone.
        abandoned: Tries whose client went before its turn came.
        busiest: Most handshakes that one worker was asked for in a second.
        longest_wait_steps: Longest time from a try to its handshake.
        steps: When the last client was back; `None` if some were not when the time was over.
    """

    returns: Counter[int] = field(default_factory=Counter[int])
    tries: int = 0
    refused: int = 0
    abandoned: int = 0
    busiest: int = 0
    longest_wait_steps: int = 0
    steps: int | None = None

    def back_seconds(self, share: float) -> float | None:
        """Return how long this share of the returns took at most; `None` if some clients never came back."""
        if self.steps is None:
            return None
        left = share * self.returns.total()
        for steps, count in sorted(self.returns.items()):
            left -= count
            if left <= 0:
                return steps / STEPS_PER_SECOND
        return 0.0


class _Past(NamedTuple):
    """What clients without a worker have in common."""

    closed_at: int
    failed: int  # tries since then
    is_lost: bool


class _Waiting(NamedTuple):
    past: _Past
    clients: int
    since: int


@dataclass(slots=True, eq=False)
class Worker:
    """One worker.

    Attributes:
        connected: Its clients.
        load: The connections that the balancer has to it: also those that wait.
        is_ready: It takes clients.
        waiting: Those that wait for their handshake, in order.
        gone: How many handshakes it will make in vain before those, because the clients are gone.
        asked: How many handshakes it was asked for in the second of the last one.
        asked_at: That second.
        credit: What it could have done of the next handshake by now.
    """

    connected: int = 0
    load: int = 0
    is_ready: bool = True
    waiting: deque[_Waiting] = field(default_factory=deque["_Waiting"])
    gone: int = 0
    asked: int = 0
    asked_at: int = 0
    credit: float = 0.0


class Fleet:
    """The workers of a setup with their clients, and what happens to them.

    Args:
        setup: What is simulated.

    Attributes:
        workers: All workers that ever were.
        now: The present step.
        outcome: What came of it so far.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.now = 0
        self.outcome = Outcome()
        self._random = random.Random(setup.seed)
        self.workers = [Worker(count, count) for count in self.split(setup.clients, setup.workers)]
        self._listed = list(self.workers)
        self._busy: dict[Worker, None] = {}
        self._tries: defaultdict[int, Counter[_Past]] = defaultdict(Counter)
        self._leaving: Counter[_Past] = Counter()  # in this step
        self._plans: defaultdict[int, list[Callable[[], None]]] = defaultdict(list)

    def split(self, count: int, parts: int) -> list[int]:
        """Return `count` in so many equal parts; what is left over is in random ones."""
        each, left = divmod(count, parts)
        found = [each] * parts
        for _ in range(left):
            found[int(self._random.random() * parts)] += 1
        return found

    def level(self, count: int, loads: list[int]) -> list[int]:
        """Return how many of `count` clients each worker gets if each goes to the one with the fewest."""
        shares = [0] * len(loads)
        order = sorted(range(len(loads)), key=loads.__getitem__)
        lowest = 1
        while count:
            # The lowest ones are level: they get as many as lift them to the next one.
            while lowest < len(order) and loads[order[lowest]] <= loads[order[0]] + shares[order[0]]:
                lowest += 1
            level = loads[order[0]] + shares[order[0]]
            room = count if lowest == len(order) else min(count, (loads[order[lowest]] - level) * lowest)
            given = self.split(room, lowest) if room < lowest or room == count else [room // lowest] * lowest
            for index, more in zip(order, given, strict=False):
                shares[index] += more
            count -= sum(given)
        return shares

    def plan(self, seconds: float, do: Callable[[], None]) -> None:
        """Call `do` so many seconds from now."""
        self._plans[self.now + _steps(seconds)].append(do)

    def add_worker(self) -> None:
        """Add a worker without clients."""
        worker = Worker()
        self.workers.append(worker)
        self._listed.append(worker)

    def refuse(self, worker: Worker) -> None:
        """Let a worker take no client any more; the balancer notices later."""
        worker.is_ready = False
        for past, count, _ in worker.waiting:
            worker.load -= count
            self.outcome.refused += count
            self._fail(past, count)
        worker.waiting.clear()
        worker.gone = 0
        self.plan(self.setup.notice_seconds, partial(self._listed.remove, worker))

    def close(self, worker: Worker, *, after_seconds: float = 0.0, seconds: float = 0.0, is_lost: bool = False) -> None:
        """Close the clients that a worker has now, spread evenly over a time."""
        for number, count in enumerate(self.split(worker.connected, max(1, _steps(seconds)))):
            lose = partial(self._lose, worker, count, is_lost=is_lost)
            self._plans[self.now + _steps(after_seconds) + number].append(lose)

    @property
    def is_busy(self) -> bool:
        """Whether any client is away, or anything is planned."""
        return bool(self._tries or self._plans or self._busy)

    def run(self, most_seconds: float = 3600.0) -> Outcome:
        """Go on until every client is back and every plan is done, or for an hour."""
        while self.is_busy:
            if self.now >= _steps(most_seconds):
                return self.outcome
            self.step()
        self.outcome.steps = max(0, self.now - 1)
        return self.outcome

    def step(self) -> None:
        """Do what is due in this step, and go to the next one."""
        while plans := self._plans.pop(self.now, None):  # one can plan for this step
            for do in plans:
                do()
        self._send(self._tries.pop(self.now, Counter()))
        for worker in tuple(self._busy):
            self._lose_patience(worker)
            self._shake_hands(worker)
            if not worker.waiting and not worker.gone:
                del self._busy[worker]
        for past, count in self._leaving.items():
            if count:
                self._pause(past, count)
        self._leaving.clear()
        self.now += 1

    def connected(self) -> int:
        """Return how many clients have a worker."""
        return sum(worker.connected for worker in self.workers)

    def away(self) -> int:
        """Return how many clients wait for their next try, or for their handshake."""
        pausing = sum(due.total() for due in self._tries.values())
        return pausing + sum(each.clients for worker in self.workers for each in worker.waiting)

    def _lose(self, worker: Worker, count: int, *, is_lost: bool) -> None:
        worker.connected -= count
        worker.load -= count
        self._leaving[_Past(self.now, 0, is_lost)] += count

    def _fail(self, past: _Past, count: int) -> None:
        self._leaving[past._replace(failed=min(past.failed + 1, _MOST_DOUBLINGS), is_lost=True)] += count

    def _pause(self, past: _Past, clients: int) -> None:
        """Let clients try again, each after a pause that is drawn evenly."""
        setup = self.setup
        first = setup.lost_pause_seconds if past.is_lost else setup.first_pause_seconds
        bound = min(max(setup.longest_pause_seconds, first), first * 2**past.failed)
        for number, count in enumerate(self.split(clients, max(1, _steps(bound)))):
            if count:
                self._tries[self.now + 1 + number][past] += count

    def _send(self, due: Counter[_Past]) -> None:
        """Send the clients whose try is due to the workers that the balancer takes for ready."""
        clients = due.total()
        if not clients:
            return
        self.outcome.tries += clients
        listed = self._listed
        if self.setup.balance == "even":
            shares = self.split(clients, len(listed))
        else:
            shares = self.level(clients, [worker.load for worker in listed])
        for worker, share in zip(tuple(listed), shares, strict=True):
            while share:
                past, number = due.popitem()
                count = min(number, share)
                if number > count:
                    due[past] = number - count
                share -= count
                self._ask(worker, past, count)

    def _ask(self, worker: Worker, past: _Past, count: int) -> None:
        """Ask a worker for the handshakes of clients."""
        if not worker.is_ready:
            self.outcome.refused += count
            self._fail(past, count)
            return
        second = self.now // STEPS_PER_SECOND
        worker.asked = count + (worker.asked if worker.asked_at == second else 0)
        worker.asked_at = second
        self.outcome.busiest = max(self.outcome.busiest, worker.asked)
        worker.load += count
        worker.waiting.append(_Waiting(past, count, self.now))
        self._busy[worker] = None

    def _lose_patience(self, worker: Worker) -> None:
        """Let the clients go that have waited for too long; the worker makes their handshakes all the same."""
        waiting, patience = worker.waiting, _steps(self.setup.patience_seconds)
        while waiting and self.now - waiting[0].since >= patience:
            past, count, _ = waiting.popleft()
            worker.gone += count
            worker.load -= count
            self.outcome.abandoned += count
            self._fail(past, count)

    def _shake_hands(self, worker: Worker) -> None:
        """Make as many handshakes as the worker can in a step."""
        worker.credit += self.setup.handshakes_per_second / STEPS_PER_SECOND
        able = int(worker.credit)
        worker.credit -= able
        in_vain = min(able, worker.gone)
        worker.gone -= in_vain
        able -= in_vain
        while able and worker.waiting:
            past, waiting, since = worker.waiting.popleft()
            count = min(able, waiting)
            if count < waiting:
                worker.waiting.appendleft(_Waiting(past, waiting - count, since))
            able -= count
            worker.connected += count
            self.outcome.returns[self.now - past.closed_at] += count
            self.outcome.longest_wait_steps = max(self.outcome.longest_wait_steps, self.now - since)


def _steps(seconds: float) -> int:
    return round(seconds * STEPS_PER_SECOND)
