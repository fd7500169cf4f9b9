"""The presence protocol of one worker: messages and times in, messages and changes out; no I/O, no clock, no task.

The caller publishes what is in `outgoing`, subscribes to what is in `subscriptions`, hands in what it receives, and
calls `run` at `next_due`. Every method takes `now`, in seconds of one monotonic clock; it never goes backwards.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Final

from backplane.presence.channel import Channel, Shared
from backplane.presence.contract import INBOX, WORKERS
from backplane.presence.roster import News
from backplane.presence.wire import (
    Beacon,
    Delta,
    Entry,
    Goodbye,
    Heartbeat,
    Refused,
    Request,
    Snapshot,
    State,
    decode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from backplane.presence.contract import Head, Outgoing, Rule, Topic, View, ViewEvent, Worker
    from backplane.presence.times import PresenceTimes

__all__ = ["PresenceProtocol"]

# A timer that is this late has not run because the process did not: the time in between is left out.
_BLOCKED_SECONDS: Final = 1.0
# Sums of times are rounded: at the time that is returned, what is due must be due.
_ROUNDING_SECONDS: Final = 1e-6
_ALONE_HEARTBEATS: Final = 1.5
_MAX_LINGERING: Final = 10_000
_FORGET_SECONDS: Final = 60.0
_OF_CHANNELS: Final = (Delta, Snapshot, Beacon, Request)
_OF_WORKERS: Final = (Heartbeat, Goodbye)
_NAMES: Final[dict[type, str]] = {
    Heartbeat: "in.heartbeat",
    Goodbye: "in.goodbye",
    Delta: "in.delta",
    Snapshot: "in.snapshot",
    Beacon: "in.beacon",
    Request: "in.request",
    State: "in.state",
}


class PresenceProtocol:
    """The presence protocol of one worker.

    Drain `outgoing`, `subscriptions` and `changes` after every call, in this order or any other: `take_*` return what
    there is and empty it. Messages that one call makes must be published in their order; a caller that publishes to one
    topic from several tasks reorders versions, which costs requests, never truth.

    Args:
        worker: The id of this worker: 16 hexadecimal digits, another one at each start.
        times: How often and how long.
        random: Source of what is drawn.
        describe: Returns what a heartbeat states of this worker: JSON, at most 1,000 bytes.
        rule_of: Returns the rule of a channel. Called for the channels of `enter` and `watch` only.

    Attributes:
        worker: As given.
    """

    def __init__(
        self,
        worker: str,
        *,
        times: PresenceTimes,
        random: Random,
        describe: Callable[[], Mapping[str, object]],
        rule_of: Callable[[str], Rule],
    ) -> None:
        self.worker: str = worker
        self._times = times
        self._random = random
        self._describe = describe
        self._rule_of = rule_of
        self._shared = Shared(worker, times, random)
        self._roster = self._shared.roster
        self._channels: dict[str, Channel] = {}
        self._lingering: dict[str, None] = {}
        self._subscriptions: list[tuple[str, bool]] = []
        # When each channel is due, by the earliest entry of the heap that counts for it.
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._running = False
        self._number = 0
        self._heartbeat_at = inf
        # By the clock of the caller.
        self._heartbeat_sent = inf
        self._forget_at = inf
        # The time of the caller without that in which the process did not run.
        self._time = -inf
        self._blocked = 0.0
        # When the link came back: what was due while it was away is not late.
        self._resumed = -inf
        # Before this time of the caller nothing can be late. Whatever may become due earlier than it was resets it.
        self._punctual_until = -inf

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin: the link is live, and the subscriptions of `WORKERS` and `INBOX` too. The first heartbeat is out."""
        now = self._clock(now)
        self._running = self._shared.link_live = True
        self._punctual_until = -inf
        self._shared.alone_at = now + _ALONE_HEARTBEATS * self._times.heartbeat
        self._forget_at = now + _FORGET_SECONDS
        self._heartbeat(now)

    def stop(self, now: float) -> None:
        """End in order: what is due is published, then a goodbye. Nothing happens after it."""
        if not self._running:
            return
        now = self._clock(now)
        if self._shared.link_live:
            for channel in self._channels.values():
                if channel.live:
                    channel.flush(now)
            self._number += 1
            self._shared.publish("goodbye", WORKERS, Goodbye(self.worker, self._number))
        self._running = False

    def link_lost(self, now: float) -> None:
        """Take note that nothing can be published or received. Silence of other workers means nothing from here on."""
        now = self._clock(now)
        if not self._shared.link_live:
            return
        self._shared.link_live = False
        for channel in self._channels.values():
            channel.link_lost(now)

    def link_live(self, now: float) -> None:
        """Take note that the link is back, and all subscriptions with it.

        Report `gap` for each topic that may have missed something, before or after this call.
        """
        now = self._clock(now)
        if self._shared.link_live or not self._running:
            return
        self._shared.link_live = True
        self._resumed = now
        self._punctual_until = -inf
        self._roster.restart(now)
        self._shared.alone_at = now + _ALONE_HEARTBEATS * self._times.heartbeat
        self._heartbeat(now)
        for channel in self._channels.values():
            channel.link_back(now)
            self._arm(channel)

    # -- in ------------------------------------------------------------------------------------------------------------

    def received(self, topic: Topic, text: str, now: float) -> None:
        """Take a message, also one of this worker's own. Whatever it holds, nothing is raised."""
        now = self._clock(now)
        message = decode(text)
        if isinstance(message, Refused):
            self._shared.count(f"in.{message.value}")
            return
        if message.worker == self.worker:
            return
        counters, name = self._shared.counters, _NAMES[type(message)]
        counters[name] = counters.get(name, 0) + 1
        if isinstance(topic, str) and isinstance(message, _OF_CHANNELS):
            self._received_on(topic, message, now)
        elif topic is WORKERS and isinstance(message, _OF_WORKERS):
            self._received_from_workers(message, now)
        elif topic is INBOX and isinstance(message, State):
            self._received_state(message, now)
        elif topic is INBOX and isinstance(message, Goodbye):
            self._received_dead(message, now)
        else:
            self._shared.count("in.invalid")

    def subscribed(self, channel: str, now: float) -> None:
        """Take note that a subscription of `take_subscriptions` is confirmed. Nothing is published to it before."""
        now = self._clock(now)
        if (state := self._channels.get(channel)) is not None:
            state.subscribed(now)
            self._arm(state)

    def gap(self, topic: Topic, now: float) -> None:
        """Take note that messages on a topic may be missing."""
        now = self._clock(now)
        if isinstance(topic, str):
            if (state := self._channels.get(topic)) is not None:
                state.gap(now)
                self._arm(state)
        elif topic is INBOX:
            # An answer may be missing. Heartbeats come again.
            for state in self._channels.values():
                state.inbox_gap(now)
                self._arm(state)

    def publish_failed(self, topic: Topic, now: float) -> None:
        """Take note that a message was not published, or may not have been."""
        now = self._clock(now)
        if isinstance(topic, str) and (state := self._channels.get(topic)) is not None:
            state.publish_failed(now)
            self._arm(state)

    # -- the caller's connections ------------------------------------------------------------------------------------

    def enter(self, channel: str, connection: str, user: str, info: str, since: float, now: float) -> None:
        """Enter a connection, or replace what was entered for it.

        Args:
            channel: The channel.
            connection: The connection's id, unique on this worker, of at most 64 characters.
            user: Of at most 128 bytes.
            info: JSON of at most 256 bytes.
            since: When the connection entered, in seconds since the epoch.
            now: The time.
        """
        now = self._clock(now)
        state = self._channel(channel)
        state.enter(Entry(connection, user, info, since), now)
        self._lingering.pop(channel, None)
        self._arm(state)

    def update(self, channel: str, connection: str, info: str, since: float, now: float) -> None:
        """Replace the info of a connection from `since` on; nothing if it is the same, or it is not in the channel."""
        now = self._clock(now)
        if (state := self._channels.get(channel)) is not None:
            state.update(connection, info, since, now)
            self._arm(state)

    def exit(self, channel: str, connection: str, now: float) -> None:
        """Take a connection out of a channel; nothing if it is not in it."""
        now = self._clock(now)
        if (state := self._channels.get(channel)) is not None:
            state.exit(connection, now)
            self._arm(state)

    # -- the caller's watchers ---------------------------------------------------------------------------------------

    def watch(self, channel: str, now: float) -> None:
        """Keep a view of a channel; nothing if there is one. Events of it are in `take_changes`."""
        now = self._clock(now)
        state = self._channel(channel)
        state.watch(now)
        self._arm(state)

    def unwatch(self, channel: str, now: float) -> None:
        """Keep the view for `PresenceTimes.present` more seconds only. Its events still come; ignore them."""
        now = self._clock(now)
        if (state := self._channels.get(channel)) is not None:
            state.unwatch(now)
            self._arm(state)

    def view(self, channel: str) -> View | None:
        """Return a channel as it is known, or `None` if it is not watched."""
        state = self._channels.get(channel)
        return None if state is None else state.view

    def head(self, channel: str) -> Head | None:
        """Return a channel as it is known, without its users, or `None` if it is not watched."""
        state = self._channels.get(channel)
        return None if state is None else state.head

    # -- out -----------------------------------------------------------------------------------------------------------

    def take_outgoing(self) -> list[Outgoing]:
        """Return what is to be published, in order, and forget it."""
        taken, self._shared.outgoing = self._shared.outgoing, []
        return taken

    def take_subscriptions(self) -> list[tuple[str, bool]]:
        """Return what became of channels since the last call: to be subscribed to, or not any more."""
        taken, self._subscriptions = self._subscriptions, []
        return taken

    def take_changes(self) -> list[tuple[str, ViewEvent]]:
        """Return the events of views since the last call, in their order."""
        taken, self._shared.changes = self._shared.changes, []
        return taken

    # -- time ----------------------------------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        """Return when `run` must be called, or `None` before the start and after the end. Every call may change it."""
        due = self._next()
        return None if due == inf else due + self._blocked + _ROUNDING_SECONDS

    def run(self, now: float) -> None:
        """Do what is due. Too early, it does nothing."""
        now = self._clock(now)
        while self._next() <= now:
            if self._heartbeat_at <= now:
                self._heartbeat(now)
            elif self._roster.next_due() <= now:
                self._sweep(now)
            elif self._forget_at <= now:
                self._forget_at = now + _FORGET_SECONDS
                for worker in self._roster.forget(now):
                    for channel in self._channels.values():
                        channel.worker_forgotten(worker)
            else:
                self._run_channel(self._channels[heappop(self._heap)[1]], now)

    # -- queries -------------------------------------------------------------------------------------------------------

    def workers(self, now: float) -> list[Worker]:
        """Return the workers that are known, without this one."""
        return self._roster.workers(self._clock(now))

    # -- parts ---------------------------------------------------------------------------------------------------------

    @property
    def counters(self) -> Mapping[str, int]:
        """Messages by direction and kind, such as `in.heartbeat` and `out.delta`.

        What was not used of those received: `in.invalid`, `in.unknown` (a kind of a later version), `in.unasked` (an
        answer without a request, or a channel without a subscription), `in.crowd` (of a worker beyond the largest
        number of workers).
        """
        return self._shared.counters

    def lag_seconds(self, now: float) -> float:
        """Return how long a change would wait because of the bound of messages per second: 0 in the ordinary case."""
        return self._shared.pacer.lag(self._clock(now))

    def _clock(self, now: float) -> float:
        """Return the time without that in which this process did not run.

        A timer that is late means that messages wait unread as well: silence, and the end of a grace, mean nothing.
        """
        if now >= self._punctual_until:
            due = max(self._next(), self._resumed)
            late = now - self._blocked - due
            if late > _BLOCKED_SECONDS:
                self._blocked += late
                self._time = max(self._time, now - self._blocked)
                self._runs_again(self._time)
                due = max(self._next(), self._resumed)
            self._punctual_until = due + self._blocked + _BLOCKED_SECONDS
        self._time = max(self._time, now - self._blocked)
        return self._time

    def _runs_again(self, now: float) -> None:
        """Send the heartbeat that the others wait for, before anything else."""
        for channel in self._channels.values():
            channel.was_late(now)
            self._arm(channel)
        if now + self._blocked - self._heartbeat_sent > self._roster.interval:
            self._heartbeat(now)

    def _next(self) -> float:
        if not (self._running and self._shared.link_live):
            return inf
        heap = self._heap
        while heap and self._due.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        due = heap[0][0] if heap else inf
        return min(due, self._heartbeat_at, self._roster.next_due(), self._forget_at)

    def _arm(self, channel: Channel) -> None:
        """Take note of when a channel is due, if that is earlier than is known.

        What became due while the link was away is due now, and not late.
        """
        name, due = channel.name, max(channel.next_due(), self._time)
        if due < self._due.get(name, inf):
            self._due[name] = due
            self._punctual_until = min(self._punctual_until, due + self._blocked + _BLOCKED_SECONDS)
            heappush(self._heap, (due, name))

    def _run_channel(self, channel: Channel, now: float) -> None:
        name = channel.name
        del self._due[name]
        channel.run(now)
        if not channel.needed:
            self._close(name)
            return
        self._arm(channel)
        if channel.lingers:
            self._linger(name)

    def _linger(self, name: str) -> None:
        """Bound the channels that are subscribed to only because something was stated of them."""
        self._lingering[name] = None
        if len(self._lingering) > _MAX_LINGERING:
            first = next(iter(self._lingering))
            del self._lingering[first]
            if self._channels[first].lingers:
                self._channels[first].forget()
                self._close(first)

    def _channel(self, name: str) -> Channel:
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = Channel(name, self._rule_of(name), self._shared)
            self._shared.channels = len(self._channels)
            self._subscriptions.append((name, True))
        return channel

    def _close(self, name: str) -> None:
        del self._channels[name]
        self._lingering.pop(name, None)
        self._due.pop(name, None)
        self._shared.channels = len(self._channels)
        self._subscriptions.append((name, False))

    def _heartbeat(self, now: float) -> None:
        if now + self._blocked - self._heartbeat_sent > self._roster.down_after:
            # This process did not run, and the others have taken it for dead: they ask when they receive this. Those
            # that were started meanwhile do not know of what it has stated, nor it of what they have.
            for channel in self._channels.values():
                channel.runs_again(now)
                self._arm(channel)
        self._heartbeat_sent = now + self._blocked
        self._number += 1
        self._heartbeat_at = now + self._roster.draw_interval()
        message = Heartbeat(self.worker, self._number, dict(self._describe()))
        self._shared.publish("heartbeat", WORKERS, message)

    def _sweep(self, now: float) -> None:
        self._punctual_until = -inf
        for worker in self._roster.sweep(now):
            self._dead(worker, now)

    def _dead(self, worker: str, now: float) -> None:
        for channel in self._channels.values():
            channel.worker_dead(worker, now)
            self._arm(channel)

    def _received_from_workers(self, message: Heartbeat | Goodbye, now: float) -> None:
        self._punctual_until = -inf
        if isinstance(message, Goodbye):
            news = self._roster.goodbye(message.worker, message.number, now)
        else:
            news = self._roster.heartbeat(message.worker, message.number, message.info, now)
        if news is News.DEAD:
            self._dead(message.worker, now)
        elif news is News.BACK or (news is News.NEW and message.number > 1 and now >= self._shared.alone_at):
            # One that is new so late, and was there before, has stated what was not received.
            for channel in self._channels.values():
                channel.worker_back(now)
                self._arm(channel)
        elif news is News.CROWD:
            self._shared.count("in.crowd")

    def _received_dead(self, message: Goodbye, now: float) -> None:
        """Take an answer that names a worker which is dead for the one that answers."""
        self._punctual_until = -inf
        if self._roster.dead_elsewhere(message.worker, message.number, now) is News.DEAD:
            self._dead(message.worker, now)

    def _received_state(self, message: State, now: float) -> None:
        self._punctual_until = -inf
        channel = self._channels.get(message.channel)
        if channel is None:
            self._shared.count("in.unasked")
        elif self._shared.knows(message.worker, now):
            channel.answer(message, now)
            self._arm(channel)

    def _received_on(self, name: str, message: Delta | Snapshot | Beacon | Request, now: float) -> None:
        channel = self._channels.get(name)
        if channel is None:
            self._shared.count("in.unasked")
            return
        # One that states nothing may be an observer, which is no worker.
        if message.version and not self._roster.alive(message.worker):
            self._punctual_until = -inf
            if not self._shared.knows(message.worker, now):
                return
        channel.receive(message, now)
        self._arm(channel)
