"""The presence protocol of one worker: messages and times in, messages and changes out; no I/O, no clock, no task.

The caller publishes what is in `outgoing`, subscribes to what is in `subscriptions`, hands in what it receives, and
calls `run` at `next_due`. Every method takes `now`, in seconds of one monotonic clock; it never goes backwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from backplane.presence.contract import Outgoing, Rule, Topic, View, ViewEvent, Worker
    from backplane.presence.times import PresenceTimes

__all__ = ["PresenceProtocol"]


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
        counters: Messages by direction and kind (`in.heartbeat`, `out.delta`), and what was refused (`in.invalid`,
            `in.unasked`, `in.crowd`).
        presence_lag_seconds: For how long the change that waits longest has been due; 0 in the ordinary case, more
            where the bound of messages per second is reached.
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
        raise NotImplementedError

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin: the link is live, and the subscriptions of `WORKERS` and `INBOX` too. The first heartbeat is out."""
        raise NotImplementedError

    def stop(self, now: float) -> None:
        """End in order: what is due is published, then a goodbye. Nothing happens after it."""
        raise NotImplementedError

    def link_lost(self, now: float) -> None:
        """Take note that nothing can be published or received. Silence of other workers means nothing from here on."""
        raise NotImplementedError

    def link_live(self, now: float) -> None:
        """Take note that the link is back, and all subscriptions with it.

        Report `gap` for each topic that may have missed something, before or after this call.
        """
        raise NotImplementedError

    # -- in ------------------------------------------------------------------------------------------------------------

    def received(self, topic: Topic, text: str, now: float) -> None:
        """Take a message, also one of this worker's own. Whatever it holds, nothing is raised."""
        raise NotImplementedError

    def subscribed(self, channel: str, now: float) -> None:
        """Take note that a subscription of `take_subscriptions` is confirmed. Nothing is published to it before."""
        raise NotImplementedError

    def gap(self, topic: Topic, now: float) -> None:
        """Take note that messages on a topic may be missing."""
        raise NotImplementedError

    def publish_failed(self, topic: Topic, now: float) -> None:
        """Take note that a message was not published, or may not have been."""
        raise NotImplementedError

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
        raise NotImplementedError

    def update(self, channel: str, connection: str, info: str, now: float) -> None:
        """Replace the info of a connection; nothing if it is not in the channel."""
        raise NotImplementedError

    def exit(self, channel: str, connection: str, now: float) -> None:
        """Take a connection out of a channel; nothing if it is not in it."""
        raise NotImplementedError

    # -- the caller's watchers ---------------------------------------------------------------------------------------

    def watch(self, channel: str, now: float) -> None:
        """Keep a view of a channel; nothing if there is one. Events of it are in `take_changes`."""
        raise NotImplementedError

    def unwatch(self, channel: str, now: float) -> None:
        """Keep the view for `PresenceTimes.present` more seconds only. Its events still come; ignore them."""
        raise NotImplementedError

    def view(self, channel: str) -> View | None:
        """Return a channel as it is known, or `None` if it is not watched."""
        raise NotImplementedError

    # -- out -----------------------------------------------------------------------------------------------------------

    def take_outgoing(self) -> list[Outgoing]:
        """Return what is to be published, in order, and forget it."""
        raise NotImplementedError

    def take_subscriptions(self) -> list[tuple[str, bool]]:
        """Return what became of channels since the last call: to be subscribed to, or not any more."""
        raise NotImplementedError

    def take_changes(self) -> list[tuple[str, ViewEvent]]:
        """Return the events of views since the last call, in their order."""
        raise NotImplementedError

    # -- time ----------------------------------------------------------------------------------------------------------

    def next_due(self) -> float | None:
        """Return when `run` must be called, or `None` before the start and after the end. Every call may change it."""
        raise NotImplementedError

    def run(self, now: float) -> None:
        """Do what is due. Too early, it does nothing."""
        raise NotImplementedError

    # -- queries -------------------------------------------------------------------------------------------------------

    def workers(self, now: float) -> list[Worker]:
        """Return the workers that are known, without this one."""
        raise NotImplementedError
