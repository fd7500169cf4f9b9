"""The presence of one channel on one worker: what it states, what it knows, and what it publishes when."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final
from zlib import crc32

from backplane.presence.contract import INBOX, Head, Outgoing, View, ViewEvent
from backplane.presence.inquiry import Inquiry, Step
from backplane.presence.owner import Owner
from backplane.presence.pacer import Pacer
from backplane.presence.roster import News, Roster
from backplane.presence.view import RETURN_SHARE, OwnerView
from backplane.presence.wire import Beacon, Delta, Fact, Goodbye, Request, Snapshot, State, encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from backplane.presence.contract import Rule, Topic
    from backplane.presence.times import PresenceTimes
    from backplane.presence.wire import Entry, Message

__all__ = ["Channel", "Shared"]

_FLUSHES_PER_SECOND: Final = 20
_COUNTS_SECONDS: Final = 1.0
_MAX_BACKOFF: Final = 6
_LINGER_BEACONS: Final = 3
_EXPIRE_BEACONS: Final = 2.5
# A message of this worker may still be on its way to the responder when a request reaches it.
_RECENT_SECONDS: Final = 2.0
# What waits after a time in which the process did not run is read so soon.
_READ_SECONDS: Final = 1.0
# An answer is one message if it is not much larger.
_ANSWER_ENTRIES: Final = 1_000
_KINDS: Final[dict[type, str]] = {
    Delta: "delta",
    Snapshot: "snapshot",
    Beacon: "beacon",
    Request: "request",
    State: "state",
}


class Shared:
    """What the channels of one worker share.

    Args:
        worker: This worker.
        times: The times.
        random: Source of what is drawn.

    Attributes:
        link_live: Whether anything can be published.
        alone_at: When this worker is alone if no other one is known by then.
        floor: Above all versions that this worker has published of a channel which it has forgotten.
        channels: How many channels there are.
        outgoing: What is to be published.
        changes: The events of views.
        counters: Messages by direction and kind.
    """

    def __init__(self, worker: str, times: PresenceTimes, random: Random) -> None:
        self.worker: str = worker
        self.times: PresenceTimes = times
        self.random: Random = random
        self.roster: Roster = Roster(times, random)
        self.pacer: Pacer = Pacer()
        self.link_live: bool = False
        self.alone_at: float = inf
        self.floor: int = 0
        self.channels: int = 0
        self.outgoing: list[Outgoing] = []
        self.changes: list[tuple[str, ViewEvent]] = []
        self.counters: dict[str, int] = {}

    def publish(self, kind: str, topic: Topic, message: Message, worker: str = "") -> None:
        """Publish a message."""
        self.count(f"out.{kind}")
        self.outgoing.append(Outgoing(topic, encode(message), worker))

    def count(self, what: str) -> None:
        """Count a message."""
        self.counters[what] = self.counters.get(what, 0) + 1

    def knows(self, worker: str, now: float, silent: float = 0.0) -> bool:
        """Take note of a worker that is mentioned; return whether it is known, dead or alive."""
        if self.roster.mentioned(worker, now, silent) is News.CROWD:
            self.count("in.crowd")
            return False
        return True

    def spread(self) -> float:
        """Return a time within which all channels of all workers do something, in seconds from now."""
        return self.random.uniform(0, max(self.times.spread, self.channels / 500))


class Channel:
    """The presence of one channel on this worker.

    Args:
        name: The channel.
        rule: Its rule.
        shared: What channels share.

    Attributes:
        live: Whether the subscription is confirmed.
    """

    def __init__(self, name: str, rule: Rule, shared: Shared) -> None:
        self.name: str = name
        self.live: bool = False
        self._rule = rule
        self._shared = shared
        self._owner: Owner | None = None
        self._view: OwnerView | None = None
        self._inquiry = Inquiry(shared.times, shared.random)
        # Without a view: the version of each other owner, and how many entries it has.
        self._others: dict[str, tuple[int, int]] = {}
        self._flush_at = inf
        self._has_turn = False
        self._flushed = -inf
        self._published = -inf
        self._beacon_at = inf
        self._repeat_at = inf
        self._forget_at = inf
        self._unwatch_at = inf
        self._expire_at = inf
        self._failures = 0
        self._failed = -inf
        self._stale = True
        # Since the view became stale nothing was received for a while: the link was lost, or this process did not run.
        self._blind = False
        # When what waited is read: this process did not run for a while.
        self._read_at = -inf

    # -- queries -------------------------------------------------------------------------------------------------------

    @property
    def needed(self) -> bool:
        """Whether there is still an owner or a view."""
        return self._owner is not None or self._view is not None

    @property
    def lingers(self) -> bool:
        """Whether this worker stays subscribed only for requests about what it has stated."""
        return self._view is None and self._forget_at < inf

    @property
    def view(self) -> View | None:
        """The channel as it is known, or `None` if it is not watched."""
        if self._view is None:
            return None
        view = self._view
        return View(view.id, view.version, view.present(), view.total, self._inquiry.sure, self._is_stale())

    @property
    def head(self) -> Head | None:
        """The channel as it is known, without its users, or `None` if it is not watched."""
        view, owner = self._view, self._owner
        if view is None:
            return None
        return Head(view.id, view.version, view.total, self._is_stale(), owner is not None and owner.pending)

    def next_due(self) -> float:
        """Return when `run` has something to do, or infinity."""
        if not (self.live and self._shared.link_live):
            return inf
        due = min(self._flush_at, self._beacon_at, self._repeat_at, self._forget_at, self._unwatch_at, self._expire_at)
        view, inquiry = self._view, self._inquiry
        if view is not None:
            due = min(due, inquiry.ask_at, inquiry.until)
            if inquiry.sure:
                due = min(due, view.next_grace())
        return due

    # -- connections and watchers ----------------------------------------------------------------------------------

    def enter(self, entry: Entry, now: float) -> None:
        """Enter a connection."""
        if self._owner is None:
            self._owner = Owner(self._shared.worker, self._shared.floor)
        self._owner.enter(entry)
        self._forget_at = inf
        self._plan_flush(now)

    def update(self, connection: str, info: str, since: float, now: float) -> None:
        """Replace the info of a connection: of all of its user this one has the newest then."""
        entry = None if self._owner is None else self._owner.get(connection)
        if self._owner is not None and entry is not None and entry.info != info:
            # A clock that was set back makes no info older than the one before it.
            self._owner.enter(type(entry)(connection, entry.user, info, max(since, entry.since)))
            self._plan_flush(now)

    def exit(self, connection: str, now: float) -> None:
        """Take a connection out."""
        if self._owner is not None:
            self._owner.exit(connection)
            self._plan_flush(now)

    def watch(self, now: float) -> None:
        """Keep a view."""
        self._unwatch_at = inf
        if self._view is not None:
            return
        self._view = OwnerView(self._rule, self._shared.random)
        self._inquiry = Inquiry(self._shared.times, self._shared.random)
        self._stale = True
        self._others.clear()
        self._expire_at = now + self._shared.times.beacon / 2
        if self._owner is not None and self._owner.published:
            self._view.replace(self._shared.worker, self._owner.version, self._owner.stated(), now)
            self._commit(now)
        if self.live:
            self._inquiry.doubt(now)

    def unwatch(self, now: float) -> None:
        """Keep the view for some time only."""
        if self._view is not None:
            self._unwatch_at = now + self._shared.times.present

    # -- subscription and link -----------------------------------------------------------------------------------------

    def subscribed(self, now: float) -> None:
        """Take note that the subscription is confirmed."""
        if not self.live:
            self.live = True
            self._inquiry.doubt(now)

    def gap(self, now: float) -> None:
        """Take note that messages may be missing: what others stated, and requests."""
        if self._view is not None:
            self._inquiry.doubt(now + self._shared.spread())
            self._commit(now)
        self.owner_gap(now)

    def was_late(self, now: float) -> None:
        """Take note that this worker did not run for a while.

        Messages that wait may name users that are back: what was left of a grace may be less than it takes to read
        them, and this worker answers for no other meanwhile. A request may have waited for longer than its asker did,
        which is complete without what this worker states then, and answers others so: the version is named soon.
        """
        self._read_at = now + _READ_SECONDS
        if self._view is not None:
            self._view.restart_graces(now, blind=True)
        self.owner_gap(now)

    def inbox_gap(self, now: float) -> None:
        """Take note that answers may be missing, if any are expected."""
        if self._view is not None and not self._inquiry.sure:
            self._inquiry.doubt(now + self._shared.spread())

    def owner_gap(self, now: float) -> None:
        """Name the version soon: a request for it may be missing."""
        if self._owner is not None and self._owner.published:
            self._beacon_at = min(self._beacon_at, now + self._shared.spread())

    def publish_failed(self, now: float) -> None:
        """Take note that a message may not have been published: all of it is published again."""
        if self._owner is None or not self._owner.published:
            return
        self._owner.whole = True
        self._failures = self._failures + 1 if now - self._failed < 2 ** (_MAX_BACKOFF + 1) else 0
        self._failed = now
        if self._shared.link_live:
            pause = self._shared.spread() * 2 ** min(self._failures, _MAX_BACKOFF)
            self._plan_flush(now + pause)

    def link_lost(self, now: float) -> None:
        """Take note that nothing can be published or received."""
        self._blind = True
        self._inquiry.suspend()
        self._commit(now)

    def link_back(self, now: float) -> None:
        """Take note that the link is live again."""
        self._failures = 0
        if self._view is not None:
            self._view.restart(now)
        if self._owner is not None and (self._owner.pending or self._owner.whole):
            self._has_turn = False
            self._flush_at = now + self._shared.spread()
        self.gap(now)

    def runs_again(self, now: float) -> None:
        """Take note that this worker did not run for so long that the others have taken it for dead."""
        self._blind = True
        self.gap(now)

    # -- workers -------------------------------------------------------------------------------------------------------

    def worker_dead(self, worker: str, now: float) -> None:
        """Drop what a worker stated."""
        self._others.pop(worker, None)
        if self._view is not None:
            self._view.drop(worker)
            self._settle(now)

    def worker_back(self, now: float) -> None:
        """Ask: what a worker stated while it was taken for dead was not received."""
        if self._view is not None:
            self._inquiry.doubt(now + self._shared.spread())
            self._commit(now)

    def worker_forgotten(self, worker: str) -> None:
        """Forget a worker."""
        if self._view is not None:
            self._view.forget(worker)

    # -- messages ------------------------------------------------------------------------------------------------------

    def receive(self, message: Delta | Snapshot | Beacon | Request, now: float) -> None:
        """Take a message of the channel's topic, of another worker that is known."""
        worker = message.worker
        alive = self._shared.roster.alive(worker)
        view = self._view
        if view is None:
            if alive and not isinstance(message, Request) and self._others.get(worker, (0, 0))[0] <= message.version:
                self._others[worker] = message.version, _count(message)
        elif alive and isinstance(message, Delta):
            if view.apply(message, now):
                self._inquiry.missing(now)
        else:
            if alive:
                view.touch(worker, now)
            if message.version:
                if alive and isinstance(message, Snapshot):
                    view.replace(worker, message.version, message.entries, now)
                view.name(worker, message.version, now)
                if alive and view.lags(worker):
                    self._inquiry.missing(now)
        request = message.request if isinstance(message, Delta) else message
        if request is not None and isinstance(request, Request):
            self._requested(request, now)
        self._settle(now)

    def answer(self, state: State, now: float) -> None:
        """Take an answer to a request."""
        view, shared = self._view, self._shared
        if view is None or not self._inquiry.expects(state.number):
            shared.count("in.unasked")
            return
        for owner, fact in state.facts.items():
            if owner == shared.worker or not shared.knows(owner, now, fact.silent):
                continue
            if fact.entries is not None and shared.roster.alive(owner):
                view.replace(owner, fact.version, fact.entries, now - fact.age)
            self._named(view, owner, fact.version, now)
        if state.whole:
            self._inquiry.answered(state.number, now, missing=view.missing(shared.roster.alive))
        self._settle(now)

    # -- time ----------------------------------------------------------------------------------------------------------

    def run(self, now: float) -> None:
        """Do what is due."""
        if self._view is not None:
            self._run_view(self._view, now)
        if self._flush_at <= now:
            self._take_turn(now)
        if self._owner is not None:
            self._run_owner(self._owner, now)
        self._settle(now)

    def flush(self, now: float, request: Request | None = None) -> bool:
        """Publish what is pending; return whether the request is in it."""
        self._flush_at, self._has_turn = inf, False
        owner = self._owner
        if owner is None:
            return False
        self._turn(owner)
        asked = False
        if owner.pending:
            message, *_ = owner.flush(request)
            asked = isinstance(message, Delta) and message.request is not None
            if self._view is not None:
                if isinstance(message, Delta):
                    self._view.apply(message, now)
                else:
                    self._view.replace(self._shared.worker, owner.version, owner.stated(), now)
        elif owner.whole and owner.published:
            message, owner.whole = owner.snapshot(), False
        else:
            if not owner.published:
                self._owner = None
            return False
        self._flushed = now
        self._publish(message, now)
        self._forget_at = now + _LINGER_BEACONS * self._shared.times.beacon if owner.empty else inf
        return asked

    def forget(self) -> None:
        """Forget what this worker has stated of the channel, and never use its versions again."""
        if self._owner is not None:
            self._shared.floor = max(self._shared.floor, self._owner.version)
        self._owner = None
        self._beacon_at = self._repeat_at = self._forget_at = inf

    def _run_view(self, view: OwnerView, now: float) -> None:
        shared = self._shared
        if self._unwatch_at <= now:
            self._others = {
                owner: (held.version, held.count) for owner, held in view.held.items() if owner != shared.worker
            }
            self._view, self._unwatch_at, self._expire_at = None, inf, inf
            return
        if self._expire_at <= now:
            self._expire_at = now + shared.times.beacon / 2
            view.expire(now - _EXPIRE_BEACONS * shared.times.beacon, keep=shared.worker)
        if self._inquiry.next_due() <= now:
            step = self._inquiry.step(now, missing=view.missing(shared.roster.alive))
            if step is Step.ASK:
                self._ask(view, now)

    def _run_owner(self, owner: Owner, now: float) -> None:
        if self._forget_at <= now:
            self.forget()
        elif self._beacon_at <= now or self._repeat_at <= now:
            self._repeat_at = inf
            self._publish(Beacon(self._shared.worker, owner.version, len(owner.entries)), now)

    # -- flushing ------------------------------------------------------------------------------------------------------

    def _plan_flush(self, now: float) -> None:
        pause = self._workers() / _FLUSHES_PER_SECOND
        if self._owner is not None and self._owner.counts:
            pause = max(pause, _COUNTS_SECONDS)
        at = max(now + self._shared.times.flush, self._flushed + pause)
        if self._flush_at == inf:
            self._flush_at = at

    def _take_turn(self, now: float) -> None:
        """Flush, or reserve the time at which it is this channel's turn."""
        if not self._has_turn:
            self._flush_at = self._shared.pacer.reserve(self._workers(), now)
            self._has_turn = True
        if self._flush_at <= now:
            self.flush(now)

    def _workers(self) -> int:
        if self._view is None:
            return sum(1 for _ in self._other_owners()) + 1
        return max(1, sum(1 for _ in self._view.owners()))

    def _other_owners(self) -> Iterator[str]:
        return (owner for owner, (_, count) in self._others.items() if count)

    def _turn(self, owner: Owner) -> None:
        """Turn to counts, or back."""
        if self._view is None:
            total = sum(count for _, count in self._others.values())
        else:
            own = self._view.held.get(self._shared.worker)
            total = self._view.total - (0 if own is None else own.count)
        most = self._rule.max_entries * (RETURN_SHARE if owner.counts else 1)
        owner.turn(counts=total + owner.size > most)

    def _publish(self, message: Delta | Snapshot | Beacon, now: float) -> None:
        times = self._shared.times
        self._shared.publish(_KINDS[type(message)], self.name, message)
        self._published = now
        self._beacon_at = now + times.beacon * self._shared.random.uniform(0.8, 1.0)
        # A beacon is not repeated: it is the repetition.
        if not isinstance(message, Beacon) and times.repeat is not None:
            self._repeat_at = now + times.repeat

    # -- requests ------------------------------------------------------------------------------------------------------

    def _ask(self, view: OwnerView, now: float) -> None:
        shared = self._shared
        known = view.known()
        known.pop(shared.worker, None)
        owner = self._owner
        everyone = self._inquiry.everyone
        version = owner.version if owner is not None and owner.published else 0
        request = Request(shared.worker, known, everyone, version, self._inquiry.asked(now))
        if owner is None or not owner.pending or not self.flush(now, request):
            if owner is not None and owner.published:
                request = request._replace(version=owner.version)
            shared.publish("request", self.name, request)
        if not shared.roster and shared.alone_at <= now:
            self._inquiry.settle(now)

    def _requested(self, request: Request, now: float) -> None:
        shared, owner = self._shared, self._owner
        if self._view is not None:
            for worker, version in request.known.items():
                if version and shared.roster.known(worker):
                    self._named(self._view, worker, version, now)
        chosen = not request.everyone and self._is_responder(request.worker)
        if chosen or (request.everyone and owner is not None):
            self._name_dead(request)
        if chosen and self._view is not None and self.may_answer_for_all(now):
            self._answer_for_all(self._view, request, now)
        elif owner is not None and owner.published and request.known.get(shared.worker, 0) < owner.version:
            recent = now - self._published < _RECENT_SECONDS
            if request.everyone or chosen or recent:
                self._send_state(request, {shared.worker: Fact(owner.version, owner.stated(), 0.0, 0.0)}, whole=False)

    def _name_dead(self, request: Request) -> None:
        """Name the workers that are dead, of those that the asker has entries of: it may not have run, or been away."""
        for worker in request.known:
            number = self._shared.roster.dead_at(worker)
            if number is not None:
                self._shared.publish("goodbye", INBOX, Goodbye(worker, number), request.worker)

    def may_answer_for_all(self, now: float) -> bool:
        """Return whether the view is complete, as far as this worker knows."""
        return (
            now >= self._read_at
            and self._view is not None
            and self._inquiry.sure
            and not self._view.missing(self._shared.roster.alive)
        )

    def _is_responder(self, asker: str) -> bool:
        """Return whether it is this worker that answers, of those that own entries."""
        if self._owner is None or not self._owner.entries:
            return False
        salt = f"{asker}{self.name}".encode()
        own = crc32(salt, crc32(self._shared.worker.encode()))
        owners = self._other_owners() if self._view is None else self._view.owners()
        return all(
            own >= crc32(salt, crc32(worker.encode()))
            for worker in owners
            if worker != asker and worker != self._shared.worker
        )

    def _answer_for_all(self, view: OwnerView, request: Request, now: float) -> None:
        """Send what the asker does not hold: in several messages if it is much, of which the last one is whole."""
        facts: dict[str, Fact] = {}
        sent: dict[str, Fact] = {}
        size = 0
        for owner, held in view.held.items():
            if owner == request.worker or held.version <= request.known.get(owner, 0):
                continue
            if facts and size + held.count > _ANSWER_ENTRIES:
                self._send_state(request, facts, whole=False)
                # The last message names them: one of these may be lost.
                sent.update((name, fact._replace(entries=None)) for name, fact in facts.items())
                facts, size = {}, 0
            age = 0.0 if owner == self._shared.worker else max(0.0, now - held.received)
            silent = self._shared.roster.silence(owner, now)
            facts[owner] = Fact(held.version, held.count if held.entries is None else held.entries, age, silent)
            size += held.count
        self._send_state(request, sent | facts, whole=True)

    def _send_state(self, request: Request, facts: dict[str, Fact], *, whole: bool) -> None:
        state = State(self._shared.worker, self.name, facts, whole, request.number)
        self._shared.publish("state", INBOX, state, request.worker)

    def _named(self, view: OwnerView, owner: str, version: int, now: float) -> None:
        view.name(owner, version, now)
        if view.lags(owner) and self._shared.roster.alive(owner):
            self._inquiry.missing(now)

    # -- events --------------------------------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """Report what has changed, and see whether the channel has room for entries."""
        owner, view = self._owner, self._view
        if owner is not None and owner.published:
            self._turn(owner)
            if owner.pending:
                self._plan_flush(now)
        if view is not None and view.wants_entries():
            if owner is not None and owner.published:
                view.replace(self._shared.worker, owner.version, owner.stated(), now)
            if view.missing(self._shared.roster.alive):
                self._inquiry.missing(now)
        self._commit(now)

    def _commit(self, now: float) -> None:
        view = self._view
        if view is None:
            return
        event = view.commit(now)
        if event is not None:
            self._report(event)
        stale = not (self._inquiry.sure and self._shared.link_live)
        if self._stale and not stale:
            view.restart_graces(now, blind=self._blind)
            self._blind = False
        if not stale and view.next_grace() <= now:
            self._report(view.end_graces(now))
        if stale != self._stale:
            self._stale = stale
            self._report(ViewEvent("stale" if stale else "fresh", view.version, id=view.id))

    def _report(self, event: ViewEvent | None) -> None:
        if event is not None:
            self._shared.changes.append((self.name, event))

    def _is_stale(self) -> bool:
        return not (self._inquiry.sure and self._shared.link_live)


def _count(message: Delta | Snapshot | Beacon) -> int:
    if isinstance(message, Snapshot):
        return message.entries if isinstance(message.entries, int) else len(message.entries)
    return message.size
