"""A random model of workers, a broker with faults, and clients that come and go, in virtual time.

`python -m tests.unit.presence.model 10000` runs it for long; `--seed` repeats one run, `--mode` selects one kind.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Final, Literal, get_args

from backplane.presence.contract import INBOX, WORKERS, Present
from backplane.presence.protocol import PresenceProtocol
from backplane.presence.times import PresenceTimes

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.presence.contract import Outgoing, Topic, ViewEvent

__all__ = ["MODES", "BrokenError", "Faults", "Mode", "Outcome", "Rule", "Run", "run_many"]

Mode = Literal["contract", "lossy", "crash"]
"""`contract`: the adapter keeps its contract, messages are lost only with a gap, and there are no beacons. `lossy`:
messages are lost without a report, and a cluster is cut in two. `crash`: workers die and stop, and nothing else fails:
no user may be reported as left that has another connection."""

MODES: Final[tuple[Mode, ...]] = get_args(Mode)
_START: Final = 10_000
_LIMIT_SECONDS: Final[dict[str, float]] = {"contract": 60, "lossy": 400, "crash": 60}
_STEP_SECONDS: Final = 0.5
# Agreement that ends again within this time was none.
_HOLD_SECONDS: Final = 2.0
# Until a connection that has come back is known elsewhere: a subscription, a flush, and the way.
_BACK_SECONDS: Final = 1.5
_CHANNELS: Final = ("a", "b", "c")


class BrokenError(AssertionError):
    """A run has broken a promise."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The rule of a channel."""

    grace_seconds: float = 5.0
    max_entries: int = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Planted faults of a run, besides those that a test plants in a class.

    Attributes:
        same_ids: A new worker has the id of one that has died, so that its versions begin anew.
    """

    same_ids: bool = False


@dataclass(slots=True)
class Mirror:
    """What a watcher knows from one state and the changes since."""

    id: str
    version: int
    users: dict[str, str] | None


@dataclass(slots=True)
class Outcome:
    """How a run has ended.

    Attributes:
        seconds: From the last fault until everything agreed.
        left: How many times a user was reported as left.
    """

    seconds: float
    left: int


@dataclass(slots=True, eq=False)
class Worker:
    """A worker with its link.

    Attributes:
        protocol: Its protocol.
        running: It has not ended.
        up: Its link can carry messages.
        noticed: What it believes of its link.
        session: Grows each time the link is lost.
        wanted: Channels to which it wants to be subscribed.
        active: Channels to which it is subscribed.
        truth: Its connections, by channel.
        watched: Channels with a watcher.
        mirrors: What its watchers know.
        blocked_until: Its loop does not run until then.
        timer: When its timer is set to.
        side: Its half of the cluster.
        dead: Workers that have ended, and that it takes for dead.
    """

    protocol: PresenceProtocol
    running: bool = True
    up: bool = True
    noticed: bool = True
    session: int = 0
    wanted: set[str] = field(default_factory=set[str])
    active: set[str] = field(default_factory=set[str])
    truth: dict[str, dict[str, Present]] = field(default_factory=dict[str, dict[str, Present]])
    watched: set[str] = field(default_factory=set[str])
    mirrors: dict[str, Mirror] = field(default_factory=dict[str, Mirror])
    blocked_until: float = -inf
    timer: float = inf
    side: int = 0
    dead: set[str] = field(default_factory=set[str])
    last_accept: float = 0.0
    last_arrival: dict[str, float] = field(default_factory=dict[str, float])


class Run:
    """One random run: faults for some time, then a calm end in which everything must come to agree.

    Args:
        seed: Repeats the run.
        mode: What can fail.
        faults: Planted faults.
    """

    def __init__(self, seed: int, mode: Mode, faults: Faults = Faults()) -> None:  # frozen
        self.random = choose = random.Random(seed)
        self.mode = mode
        self.faults = faults
        self.now = 0.0
        self.left = 0
        self.loss = choose.choice((0.0, 0.01, 0.1)) if mode == "lossy" else 0.0
        self.repeats = choose.choice((0.0, 0.05, 0.2))
        self.latency = choose.choice((0.002, 0.05, 0.3))
        self.parted = False
        # As where those that are in a channel see who else is.
        self.owners_watch = choose.random() < 0.4
        beacon = choose.choice((5.0, 60.0, 60.0, 60.0)) if mode == "lossy" else inf
        repeat = choose.choice((None, None, 5.0)) if mode == "lossy" else None
        self.times = PresenceTimes(beacon=beacon, repeat=repeat, present=choose.choice((0.5, 30.0)))
        self.rule = Rule(choose.choice((0.0, 1.0, 5.0)), choose.choice((1_000, 1_000, 1_000, 1_000, 4)))
        self.channels = _CHANNELS[: choose.randint(1, 3)]
        self.workers: list[Worker] = []
        self.dead_ids: list[str] = []
        self.ended: dict[str, float] = {}
        self.back_until = 0.0
        self.entered: dict[str, float] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._connections = 0
        for _ in range(choose.randint(2, 6)):
            self.new_worker()
        steps: list[tuple[int, Callable[[], object]]] = [
            (30, self.join),
            (15, self.leave),
            (15, self.move),
            (8, self.update),
            (6, self.watch),
            (3, self.rush),
            (3, self.unwatch),
            (2, self.kill),
            (2, self.stop),
            (2, self.new_worker),
        ]
        if mode != "crash":
            steps += [(6, self.cut), (2, self.block)]
        if mode == "lossy":
            steps += [(2, self.part)]
        self.steps = steps

    def play(self) -> Outcome:
        """Run it.

        Raises:
            BrokenError: A promise is broken.
        """
        choose = self.random
        functions, weights = [step for _, step in self.steps], [weight for weight, _ in self.steps]
        pause = choose.choice((0.05, 0.3, 1.5, 1.5))
        for _ in range(choose.choice((10, 40, 150))):
            self.advance(choose.expovariate(1 / pause))
            choose.choices(functions, weights)[0]()
        if choose.random() < 0.3:
            # What comes last is not mended by what comes after it.
            self.new_worker()
            self.new_worker()
            self.advance(choose.choice((0.1, 3.0)))
            self.rush()
            self.advance(choose.choice((0.0, 0.1, 0.5)))
        return self.calm()

    # -- virtual time --------------------------------------------------------------------------------------------------

    def at(self, when: float, do: Callable[[], None]) -> None:
        """Do something later."""
        self._count += 1
        heappush(self._events, (when, self._count, do))

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, do = heappop(self._events)
            do()
        self.now = end

    # -- a worker and the broker ---------------------------------------------------------------------------------------

    def new_worker(self) -> None:
        """Start a worker."""
        if sum(worker.running for worker in self.workers) >= 6:
            return
        name = self.random.randbytes(8).hex()
        if self.faults.same_ids and self.dead_ids:
            name = self.dead_ids.pop(0)
        protocol = PresenceProtocol(
            name,
            times=self.times,
            random=random.Random(self.random.getrandbits(32)),
            describe=lambda: {"pid": 1},
            rule_of=lambda _: self.rule,
        )
        worker = Worker(protocol)
        self.workers.append(worker)
        protocol.start(self.now)
        self.drain(worker)

    def drain(self, worker: Worker) -> None:
        """Do what a protocol wants done, after each call of it."""
        protocol = worker.protocol
        for channel, event in protocol.take_changes():
            self.happened(worker, channel, event)
        for channel, wanted in protocol.take_subscriptions():
            if wanted:
                worker.wanted.add(channel)
                self.at(self.now + self.random.uniform(0.001, 0.05), lambda c=channel: self.subscribe(worker, c))  # type: ignore[misc]
            else:
                worker.wanted.discard(channel)
                worker.active.discard(channel)
        for outgoing in protocol.take_outgoing():
            self.publish(worker, outgoing)
        due = protocol.next_due()
        if due is not None and due < worker.timer:
            worker.timer = due
            self.at(due, lambda: self.tick(worker, due))

    def tick(self, worker: Worker, due: float) -> None:
        """Run the timer of a worker."""
        if not worker.running or worker.timer != due:
            return
        if worker.blocked_until > self.now:
            self.at(worker.blocked_until, lambda: self.tick(worker, due))
            return
        worker.timer = inf
        worker.protocol.run(self.now)
        self.drain(worker)
        self.judge_dead(worker)

    def judge_dead(self, worker: Worker) -> None:
        """Check that no worker that has ended is taken for alive again, once all it published has arrived."""
        if worker.blocked_until > self.now - 1:
            return
        for known in worker.protocol.workers(self.now):
            if known.alive and known.origin in worker.dead:
                raise BrokenError(f"{known.origin} is dead, and taken for alive again")
            if not known.alive and self.now - self.ended.get(known.origin, inf) > 1:
                worker.dead.add(known.origin)

    def subscribe(self, worker: Worker, channel: str) -> None:
        """Subscribe a worker, if its link is up; otherwise it is with the next link."""
        if worker.running and worker.up and worker.noticed and channel in worker.wanted - worker.active:
            worker.active.add(channel)
            self.later(worker, lambda: self.confirm(worker, channel))

    def confirm(self, worker: Worker, channel: str) -> None:
        """Confirm a subscription."""
        if channel in worker.active:
            worker.protocol.subscribed(channel, self.now)

    def later(self, worker: Worker, do: Callable[[], None]) -> None:
        """Let something arrive at a worker, if its link lives until then."""
        session, when = worker.session, self.now + self.random.uniform(0.001, 0.03)
        self.at(when, lambda: self.arrive(worker, session, do))

    def arrive(self, worker: Worker, session: int, do: Callable[[], None]) -> None:
        """Call a protocol, when its worker runs."""
        if not worker.running or worker.session != session:
            return
        if worker.blocked_until > self.now:
            self.at(worker.blocked_until, lambda: self.arrive(worker, session, do))
            return
        do()
        self.drain(worker)

    def publish(self, worker: Worker, outgoing: Outgoing) -> None:
        """Send a message to the broker."""
        session = worker.session if worker.up else -1
        worker.last_accept = max(worker.last_accept, self.now + self.random.uniform(0.0005, 0.03))
        self.at(worker.last_accept, lambda: self.accept(worker, outgoing, session))

    def accept(self, worker: Worker, outgoing: Outgoing, session: int) -> None:
        """Accept a message, or lose it with the link; of some it is not known."""
        if session != worker.session or not worker.up:
            if worker.running:
                self.failed(worker, outgoing.topic)
            if session < 0 or self.random.random() < 0.5:
                return
        for receiver in self.workers:
            if self.receives(receiver, outgoing):
                self.deliver(worker, receiver, outgoing)

    def failed(self, worker: Worker, topic: Topic) -> None:
        """Report a failed publish, at once or later."""

        def report() -> None:
            if worker.running:
                worker.protocol.publish_failed(topic, self.now)
                self.drain(worker)

        self.at(self.now + self.random.choice((0.0, 0.5, 3.0)), report)

    def receives(self, receiver: Worker, outgoing: Outgoing) -> bool:
        """Return whether a worker is subscribed to what is published."""
        if not receiver.running or not receiver.up:
            return False
        if outgoing.topic is INBOX:
            return receiver.protocol.worker == outgoing.worker
        return outgoing.topic is WORKERS or outgoing.topic in receiver.active

    def deliver(self, sender: Worker, receiver: Worker, outgoing: Outgoing) -> None:
        """Deliver a message, unless it is lost without a report; messages of one worker stay in their order."""
        if (self.parted and sender.side != receiver.side) or self.random.random() < self.loss:
            return
        name = sender.protocol.worker
        when = max(receiver.last_arrival.get(name, 0.0), self.now + self.random.uniform(0.0005, self.latency))
        receiver.last_arrival[name] = when
        session = receiver.session

        def do() -> None:
            receiver.protocol.received(outgoing.topic, outgoing.text, self.now)

        self.at(when, lambda: self.arrive(receiver, session, do))
        if self.random.random() < self.repeats:
            self.at(when + self.random.choice((0.01, 1.0, 14.0, 30.0)), lambda: self.arrive(receiver, session, do))

    # -- what users see ------------------------------------------------------------------------------------------------

    def happened(self, worker: Worker, channel: str, event: ViewEvent) -> None:
        """Follow the changes of a view, as a watcher does."""
        mirror = worker.mirrors.get(channel)
        if mirror is None:
            return
        if event.kind == "reset":
            worker.mirrors[channel] = self.mirror(worker, channel)
        elif event.kind == "change" and (event.id != mirror.id or event.version > mirror.version):
            self.follow(mirror, channel, event)
        elif event.kind == "count":
            if mirror.users is not None or event.version != mirror.version + 1:
                raise BrokenError(f"version {event.version} follows {mirror.version}")
            mirror.version = event.version

    def follow(self, mirror: Mirror, channel: str, event: ViewEvent) -> None:
        """Apply a change to what a watcher knows."""
        if mirror.users is None or event.id != mirror.id or event.version != mirror.version + 1:
            raise BrokenError(f"version {event.version} follows {mirror.version}")
        mirror.version = event.version
        for present in event.joined:
            if present.user in mirror.users:
                raise BrokenError(f"{present.user} joined twice")
            mirror.users[present.user] = present.info
        for user in event.left:
            if mirror.users.pop(user, None) is None:
                raise BrokenError(f"{user} left twice")
            self.judge_left(channel, user)
        for present in event.updated:
            if mirror.users.get(present.user) in (None, present.info):
                raise BrokenError(f"{present.user} is updated to what it was")
            mirror.users[present.user] = present.info

    def judge_left(self, channel: str, user: str) -> None:
        """Check that a user that is reported as left was not back."""
        self.left += 1
        if self.mode != "crash":
            return
        for worker in self.workers:
            for connection, present in worker.truth.get(channel, {}).items() if worker.running else ():
                age = self.now - self.entered[connection]
                if present.user == user and age > _BACK_SECONDS:
                    raise BrokenError(f"{user} is reported as left, and has a connection since {age:.1f} s")

    def mirror(self, worker: Worker, channel: str) -> Mirror:
        """Take the state of a view."""
        view = worker.protocol.view(channel)
        assert view is not None
        users = None if view.users is None else {user: present.info for user, present in view.users.items()}
        return Mirror(view.id, view.version, users)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def any_worker(self) -> Worker | None:
        """Return a worker whose loop runs."""
        able = [worker for worker in self.workers if worker.running and worker.blocked_until <= self.now]
        return self.random.choice(able) if able else None

    def join(self) -> None:
        """Open a connection."""
        user = f"u{self.random.randint(1, 6)}"
        self.enter(self.any_worker(), self.random.choice(self.channels), user)

    def enter(self, worker: Worker | None, channel: str, user: str) -> None:
        """Enter a connection of a user."""
        if worker is None or not worker.running or worker.blocked_until > self.now:
            return
        self._connections += 1
        connection, info = f"k{self._connections}", f'"{self.random.randint(1, 3)}"'
        since = float(round(self.now))
        worker.truth.setdefault(channel, {})[connection] = Present(user, info, since, 1)
        self.entered[connection] = self.now
        worker.protocol.enter(channel, connection, user, info, since, self.now)
        self.drain(worker)
        if self.owners_watch:
            self.begin_watch(worker, channel)

    def any_connection(self) -> tuple[Worker, str, str] | None:
        """Return a connection."""
        able = [
            (worker, channel, connection)
            for worker in self.workers
            if worker.running and worker.blocked_until <= self.now
            for channel, connections in worker.truth.items()
            for connection in connections
        ]
        return self.random.choice(able) if able else None

    def leave(self) -> str | None:
        """Close a connection."""
        if (found := self.any_connection()) is None:
            return None
        worker, channel, connection = found
        user = worker.truth[channel].pop(connection).user
        worker.protocol.exit(channel, connection, self.now)
        self.drain(worker)
        return f"{channel}/{user}"

    def move(self) -> None:
        """Let a client come back elsewhere."""
        if (left := self.leave()) is not None:
            channel, _, user = left.partition("/")
            worker = self.any_worker()
            self.come_back(self.random.choice((0.0, 0.3, 2.0)), worker, channel, user)

    def come_back(self, seconds: float, worker: Worker | None, channel: str, user: str) -> None:
        """Let a client enter later."""
        self.back_until = max(self.back_until, self.now + seconds)
        self.at(self.now + seconds, lambda: self.enter(worker, channel, user))

    def update(self) -> None:
        """Change the info of a connection."""
        if (found := self.any_connection()) is None:
            return
        worker, channel, connection = found
        info = f'"{self.random.randint(1, 3)}"'
        since, before = float(round(self.now)), worker.truth[channel][connection]
        if info != before.info:
            worker.truth[channel][connection] = before._replace(info=info, since=max(since, before.since))
        worker.protocol.update(channel, connection, info, since, self.now)
        self.drain(worker)

    def watch(self) -> None:
        """Begin to watch."""
        worker, channel = self.any_worker(), self.random.choice(self.channels)
        if worker is not None:
            self.begin_watch(worker, channel)

    def begin_watch(self, worker: Worker, channel: str) -> None:
        """Begin to watch, if the worker does not."""
        if channel not in worker.watched:
            worker.watched.add(channel)
            worker.protocol.watch(channel, self.now)
            # What happened before is in the state.
            worker.mirrors.pop(channel, None)
            self.drain(worker)
            worker.mirrors[channel] = self.mirror(worker, channel)

    def rush(self) -> None:
        """Let several workers, that do not know a channel yet, enter and watch it at the same time."""
        channel = self.random.choice(self.channels)
        for worker in self.workers:
            if worker.running and channel not in worker.watched and self.random.random() < 0.7:
                self.enter(worker, channel, f"u{self.random.randint(1, 6)}")
                if worker.blocked_until <= self.now:
                    self.begin_watch(worker, channel)

    def unwatch(self) -> None:
        """End to watch."""
        worker = self.any_worker()
        if worker is not None and worker.watched:
            channel = self.random.choice(sorted(worker.watched))
            worker.watched.discard(channel)
            worker.mirrors.pop(channel, None)
            worker.protocol.unwatch(channel, self.now)
            self.drain(worker)

    def end(self, worker: Worker) -> None:
        """End a worker; some of its clients come back elsewhere."""
        worker.running = False
        self.dead_ids.append(worker.protocol.worker)
        self.ended[worker.protocol.worker] = self.now
        for channel, connections in worker.truth.items():
            for present in connections.values():
                if self.random.random() < 0.7:
                    self.come_back(self.random.choice((0.0, 0.5, 3.0, 12.0)), self.any_worker(), channel, present.user)

    def kill(self) -> None:
        """Kill a worker."""
        running = [worker for worker in self.workers if worker.running]
        if len(running) > 1:
            self.end(self.random.choice(running))

    def stop(self) -> None:
        """Stop a worker in order."""
        worker = self.any_worker()
        if worker is not None and sum(worker.running for worker in self.workers) > 1:
            worker.protocol.stop(self.now)
            self.drain(worker)
            self.end(worker)

    def cut(self) -> None:
        """Cut the link of a worker for some time; it notices a little later."""
        able = [worker for worker in self.workers if worker.running and worker.up and worker.noticed]
        if not able:
            return
        worker = self.random.choice(able)
        worker.up = False
        worker.session += 1
        worker.active.clear()
        noticed = self.now + self.random.choice((0.0, 0.0, 1.5))
        self.at(noticed, lambda: self.notice(worker))
        self.at(noticed + self.random.choice((0.3, 3.0, 12.0, 25.0)), lambda: self.mend(worker))

    def notice(self, worker: Worker) -> None:
        """Let a worker take note that its link is lost."""
        if worker.running and worker.blocked_until > self.now:
            self.at(worker.blocked_until, lambda: self.notice(worker))
        elif worker.running and not worker.up and worker.noticed:
            worker.noticed = False
            worker.protocol.link_lost(self.now)
            self.drain(worker)

    def mend(self, worker: Worker) -> None:
        """Give a worker its link back, with gaps."""
        if not worker.running or worker.up:
            return
        if worker.blocked_until > self.now or worker.noticed:
            self.at(max(worker.blocked_until, self.now + 0.1), lambda: self.mend(worker))
            return
        worker.up = worker.noticed = True
        alive = {known.origin for known in worker.protocol.workers(self.now) if known.alive}
        alive -= self.dead_elsewhere(worker)
        worker.active = set(worker.wanted)
        worker.protocol.link_live(self.now)
        topics: list[Topic] = [WORKERS, INBOX, *sorted(worker.active)]
        for topic in topics:
            if isinstance(topic, str):
                worker.protocol.subscribed(topic, self.now)
            worker.protocol.gap(topic, self.now)
        self.drain(worker)
        self.at(self.now + 1, lambda: self.judge_silence(worker, alive, worker.session))

    def judge_silence(self, worker: Worker, alive: set[str], session: int) -> None:
        """Check that no worker is declared dead by one that was away itself."""
        running = {other.protocol.worker for other in self.workers if other.running} - self.dead_elsewhere(worker)
        if worker.running and worker.session == session:
            for known in worker.protocol.workers(self.now):
                if known.origin in alive & running and not known.alive:
                    raise BrokenError(f"{known.origin} is declared dead by a worker that was away")

    def dead_elsewhere(self, worker: Worker) -> set[str]:
        """Return what other workers take for dead: they may name it to this one, which then does too."""
        return {
            known.origin
            for other in self.workers
            if other.running and other is not worker
            for known in other.protocol.workers(self.now)
            if not known.alive
        }

    def block(self) -> None:
        """Block the loop of a worker."""
        worker = self.any_worker()
        if worker is not None:
            worker.blocked_until = self.now + self.random.choice((0.5, 3.0, 8.0, 15.0))

    def part(self) -> None:
        """Cut the cluster in two for some time, without a report."""
        if self.parted:
            return
        self.parted = True
        for worker in self.workers:
            worker.side = self.random.randint(0, 1)

        def heal() -> None:
            self.parted = False

        self.at(self.now + self.random.choice((1.0, 5.0, 20.0, 140.0)), heal)

    # -- judgement -----------------------------------------------------------------------------------------------------

    def calm(self) -> Outcome:
        """End all faults, and wait until everything agrees."""
        self.parted, self.loss = False, 0.0
        # What waits for a loop that is blocked arrives when it runs again, and no later than what is sent then.
        self.advance(max(0.0, *(worker.blocked_until - self.now for worker in self.workers)))
        for worker in self.workers:
            if worker.running and not worker.up:
                self.notice(worker)
                self.mend(worker)
        # Clients that are on their way come back before the truth is fixed.
        self.advance(max(0.0, self.back_until - self.now) + 0.001)
        began = agreed = self.now
        while self.now - agreed < _HOLD_SECONDS:
            if reason := self.disagreement():
                agreed = self.now + _STEP_SECONDS
                if self.now - began > _LIMIT_SECONDS[self.mode]:
                    raise BrokenError(reason)
            self.advance(_STEP_SECONDS)
        self.judge_mirrors()
        return Outcome(agreed - began, self.left)

    def disagreement(self) -> str:
        """Return where a view differs from the truth, if one does."""
        for channel in self.channels:
            truth: dict[str, list[tuple[float, str, str]]] = {}
            total = 0
            for worker in self.workers:
                if worker.running:
                    for connection, present in worker.truth.get(channel, {}).items():
                        truth.setdefault(present.user, []).append((present.since, connection, present.info))
                        total += 1
            expected = {user: (max(states)[2], len(states)) for user, states in truth.items()}
            for worker in self.workers:
                if (
                    worker.running
                    and channel in worker.watched
                    and (reason := self._differs(worker, channel, expected, total))
                ):
                    return f"{channel} on {worker.protocol.worker}: {reason}"
        return ""

    def _differs(self, worker: Worker, channel: str, expected: dict[str, tuple[str, int]], total: int) -> str:
        view = worker.protocol.view(channel)
        assert view is not None
        if view.stale:
            return "it is stale"
        if view.connections != total:
            return f"{view.connections} connections, not {total}"
        if view.users is None:
            return "" if total > self.rule.max_entries * 0.75 else "there are only counts"
        if total > self.rule.max_entries:
            return "there are not only counts"
        users = {user: (present.info, present.connections) for user, present in view.users.items()}
        return "" if users == expected else f"{users}, not {expected}"

    def judge_mirrors(self) -> None:
        """Check that the changes of each view lead to it."""
        for worker in self.workers:
            if worker.running:
                for channel, mirror in worker.mirrors.items():
                    if mirror != self.mirror(worker, channel):
                        raise BrokenError(f"{channel}: the changes do not lead to the view")


def run_many(
    count: int,
    mode: Mode,
    *,
    start: int = _START,
    faults: Faults = Faults(),  # frozen
    most: int = sys.maxsize,
    outcomes: list[Outcome] | None = None,
) -> list[tuple[int, str]]:
    """Return the seeds of the runs that broke a promise, with what was broken; stop when there are `most`."""
    broken: list[tuple[int, str]] = []
    for seed in range(start, start + count):
        try:
            outcome = Run(seed, mode, faults).play()
        except BrokenError as error:
            broken.append((seed, str(error)))
            if len(broken) >= most:
                break
        else:
            if outcomes is not None:
                outcomes.append(outcome)
    return broken


def main() -> int:
    """Run the model as often as the command line asks for, in turn in each mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1_000)
    parser.add_argument("--seed", type=int, default=_START, help="of the first run")
    parser.add_argument("--mode", choices=MODES, action="append", help="defaults to all of them")
    arguments = parser.parse_args()
    modes: list[Mode] = arguments.mode or list(MODES)
    failed = False
    for index, mode in enumerate(modes):
        count = arguments.count // len(modes) + (index < arguments.count % len(modes))
        began = time.monotonic()
        outcomes: list[Outcome] = []
        broken = run_many(count, mode, start=arguments.seed, outcomes=outcomes)
        seconds = [outcome.seconds for outcome in outcomes] or [0.0]
        sys.stdout.write(
            f"{mode}: {count} runs in {time.monotonic() - began:.0f} s, {len(broken)} broken; agreed after "
            f"{statistics.median(seconds):.1f} s (median), {max(seconds):.1f} s (worst); "
            f"{sum(outcome.left for outcome in outcomes)} users left\n"
        )
        for seed, reason in broken[:20]:
            sys.stdout.write(f"broken: --mode {mode} --seed {seed} 1: {reason}\n")
        sys.stdout.flush()
        failed |= bool(broken)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
