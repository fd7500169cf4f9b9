"""Runs the presence protocol of one worker on its bus: the only part of presence with I/O.

What happens in one pass of the event loop is handed to the protocol at once, and what it then publishes, subscribes to
and has changed is taken from it at the end of the pass.
"""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from backplane.cluster.topics import WORKERS as WORKERS_TOPIC
from backplane.cluster.topics import inbox_of, presence_of
from backplane.presence.contract import INBOX, WORKERS
from backplane.presence.protocol import PresenceProtocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backplane.cluster.bus import ClusterBus
    from backplane.presence.contract import Head, Rule, Topic, View, ViewEvent, Worker
    from backplane.presence.times import PresenceTimes

__all__ = ["PresenceAgent", "ViewObserver"]


class ViewObserver(Protocol):
    """Is notified of the changes of one channel's view. Returns at once, and does not raise."""

    def view_changed(self, channel: str, events: list[ViewEvent], /) -> None:
        """Take the changes since the last call: the view is as after all of them."""


class PresenceAgent:
    """Presence, and the roster of workers, of one worker.

    Args:
        bus: Where it sends and receives.
        times: How often and how long.
        describe: Returns what a heartbeat states of this worker.
        rule_of: Returns the rule of a channel that has presence.
        observes: Whether it receives what the workers exchange without being one: it sends no heartbeat.
        workers_changed: Called when workers may have appeared or ended.

    Attributes:
        is_live: It has started, and the link is live: other workers can answer.
    """

    def __init__(
        self,
        bus: ClusterBus,
        *,
        times: PresenceTimes,
        describe: Callable[[], Mapping[str, object]],
        rule_of: Callable[[str], Rule],
        observes: bool = False,
        workers_changed: Callable[[], None],
    ) -> None:
        self._bus = bus
        self._observes = observes
        self._workers_changed = workers_changed
        self._protocol = PresenceProtocol(
            bus.worker,
            times=times,
            random=random.Random(),  # noqa: S311  # no secret
            describe=describe,
            rule_of=rule_of,
        )
        self._topics: Final[dict[str, Topic]] = {WORKERS_TOPIC: WORKERS, inbox_of(bus.worker): INBOX}
        self._observers: Final[dict[str, dict[ViewObserver, None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due: float | None = None
        self._taking: asyncio.Handle | None = None
        self._passed: asyncio.Event | None = None
        self._has_ended = False
        self.is_live: bool = False

    # --- the life of the worker ---

    def start(self) -> None:
        """Begin: the bus is subscribed to the heartbeats and to the inbox, and the link is live."""
        self.is_live = True
        self._protocol.start(self._now())
        self._take_soon()

    def link_changed(self, *, is_live: bool) -> None:
        """Take note that the link was lost, or is back."""
        self.is_live = is_live
        if is_live:
            self._protocol.link_live(self._now())
        else:
            self._protocol.link_lost(self._now())
        self._take_soon()

    def stop(self) -> None:
        """End in order: the other workers are notified, as soon as the bus has sent that.

        The goodbye is handed to the bus before the last changes of all channels, which it contains: these can be so
        many that the time for the end is over before the last one is sent.
        """
        self.is_live, self._has_ended = False, True
        self._protocol.stop(self._now())
        if self._taking is not None:
            self._taking.cancel()
        self._take()

    # --- what the clients of this worker do ---

    def enter(self, channel: str, connection: str, user: str, info: str) -> None:
        """Enter a connection into a channel, or replace what was entered for it."""
        self._protocol.enter(channel, connection, user, info, time.time(), self._now())
        self._take_soon()

    def update(self, channel: str, connection: str, info: str) -> None:
        """Replace the info of a connection, which is shown from then on; nothing if it is not in the channel."""
        self._protocol.update(channel, connection, info, time.time(), self._now())
        self._take_soon()

    def exit(self, channel: str, connection: str) -> None:
        """Take a connection out of a channel; nothing if it is not in it."""
        self._protocol.exit(channel, connection, self._now())
        self._take_soon()

    # --- what is known ---

    def observe(self, channel: str, observer: ViewObserver) -> None:
        """Keep a view of a channel, and notify `observer` of its changes from now on."""
        if channel not in self._observers:
            self._protocol.watch(channel, self._now())
            self._take_soon()
        self._notify_observers()
        self._observers.setdefault(channel, {})[observer] = None

    def unobserve(self, channel: str, observer: ViewObserver) -> None:
        """Notify `observer` no longer; one that is not notified changes nothing."""
        observers = self._observers.get(channel, {})
        if observers.pop(observer, self) is None and not observers:
            del self._observers[channel]
            self._protocol.unwatch(channel, self._now())
            self._take_soon()

    def view(self, channel: str) -> View:
        """Return the view of a channel that is observed, once its observers are notified of all that led to it."""
        self._notify_observers()
        view = self._protocol.view(channel)
        assert view is not None, "it is observed"
        return view

    def head(self, channel: str) -> Head:
        """Return the same without users, in a time that does not grow with them."""
        self._notify_observers()
        head = self._protocol.head(channel)
        assert head is not None, "it is observed"
        return head

    async def passed(self) -> None:
        """Wait until something was handed to the protocol, or was due in it: any view may be another one."""
        if self._passed is None:
            self._passed = asyncio.Event()
        await self._passed.wait()

    def workers(self) -> list[Worker]:
        """Return the other workers that are known."""
        return self._protocol.workers(self._now())

    @property
    def counters(self) -> Mapping[str, int]:
        """Messages by direction and kind."""
        return self._protocol.counters

    @property
    def lag_seconds(self) -> float:
        """How long a change would wait at this moment, because of the bound on messages per second."""
        return self._protocol.lag_seconds(self._now())

    # --- called by the bus ---

    def received(self, topic: str, text: str, /) -> None:
        """Take one message."""
        if (of := self._topics.get(topic)) is not None:
            self._protocol.received(of, text, self._now())
            self._take_soon()

    def gap(self, topic: str, /) -> None:
        """Take the notice that messages may be missing."""
        if (of := self._topics.get(topic)) is not None:
            self._protocol.gap(of, self._now())
            self._take_soon()

    # ---

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _take_soon(self) -> None:
        """Take what the protocol has for its caller at the end of this pass of the event loop."""
        if self._taking is None and not self._has_ended:
            self._taking = asyncio.get_running_loop().call_soon(self._take)

    def _take(self) -> None:
        self._taking = None
        protocol = self._protocol
        for channel, wanted in protocol.take_subscriptions():
            topic = presence_of(channel)
            if wanted:
                self._topics[topic] = channel
                self._bus.subscribe_soon(topic, self, partial(self._subscribed, channel))
            else:
                del self._topics[topic]
                self._bus.unsubscribe(topic, self)
        outgoing = protocol.take_outgoing()
        if self._has_ended:
            outgoing.sort(key=lambda message: message.topic is not WORKERS)
        for of, text, worker in outgoing:
            if of is not WORKERS:
                topic = inbox_of(worker) if of is INBOX else presence_of(of)
                self._bus.send_soon(topic, text, partial(self._send_failed, of))
            elif not self._observes:
                self._bus.send_soon(WORKERS_TOPIC, text, partial(self._send_failed, of))
        self._set_timer()
        self._notify_observers()
        self._workers_changed()
        if self._passed is not None:
            self._passed.set()
            self._passed = None

    def _notify_observers(self) -> None:
        by_channel: dict[str, list[ViewEvent]] = {}
        for channel, event in self._protocol.take_changes():
            by_channel.setdefault(channel, []).append(event)
        for channel, events in by_channel.items():
            for observer in tuple(self._observers.get(channel, ())):
                observer.view_changed(channel, events)

    def _set_timer(self) -> None:
        due = self._protocol.next_due()
        if self._timer is not None:
            if due == self._timer_due:
                return
            self._timer.cancel()
        # What is due is kept here: a handle of uvloop for what is due at once has no `when`.
        self._timer_due = due
        self._timer = None if due is None else asyncio.get_running_loop().call_at(due, self._run)

    def _run(self) -> None:
        self._timer = None
        self._protocol.run(self._now())
        self._take_soon()

    def _subscribed(self, channel: str) -> None:
        self._protocol.subscribed(channel, self._now())
        self._take_soon()

    def _send_failed(self, topic: Topic) -> None:
        self._protocol.publish_failed(topic, self._now())
        self._take_soon()
