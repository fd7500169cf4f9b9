"""The presence of one client: in which channels it is entered, as which user, and which it is notified of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backplane.errors import ConfigurationError
from backplane.presence_types import encode_info

if TYPE_CHECKING:
    from backplane.fanout.delivery import Subscriber
    from backplane.presence.agent import PresenceAgent
    from backplane.presence.frames import PresenceFrames
    from backplane.presence_types import PresenceRules, Who

__all__ = ["Attendance", "no_presence"]


class Attendance:
    """What one client has of presence; clients without a user can share one.

    Args:
        agent: What the other workers are notified by.
        frames: What clients are notified by.
        rules: Which channels have presence.
        who: The user of the client; `None` where it is nowhere present.

    Attributes:
        user: The name of that user.
    """

    __slots__ = ("_agent", "_frames", "_info", "_rules", "user")

    def __init__(self, agent: PresenceAgent, frames: PresenceFrames, rules: PresenceRules, who: Who | None) -> None:
        self._agent = agent
        self._frames = frames
        self._rules = rules
        self._info = "" if who is None else encode_info(who.info)
        self.user: str | None = None if who is None else who.user

    def entered(self, client: Subscriber, channel: str, /) -> None:
        """Enter the client into a channel that it has joined."""
        if self.user is not None and self._rules.rule_of(channel) is not None:
            self._agent.enter(channel, client.token.hex(), self.user, self._info)

    def left(self, client: Subscriber, channel: str, /) -> None:
        """Take the client out of a channel."""
        if self._rules.rule_of(channel) is not None:
            self._frames.discard(channel, client)
            if self.user is not None:
                self._agent.exit(channel, client.token.hex())

    def update(self, client: Subscriber, channel: str, info: Any) -> None:
        """Replace the info of the client in a channel that it has joined.

        Raises:
            ConfigurationError: The client has no user.
            InvalidDataError: `info` is not JSON, or too large.
        """
        if self.user is None:
            raise ConfigurationError("the connection has no user: pass connect(..., presence=Who(user=...))")
        self._agent.update(channel, client.token.hex(), encode_info(info))

    def notify(self, client: Subscriber, channel: str) -> None:
        """Send the client the users of a channel that it has joined and that has presence, and their changes."""
        self._frames.add(channel, client)

    def check(self, channel: str, /) -> None:
        """Check that a channel has presence.

        Raises:
            ConfigurationError: It has none.
        """
        if self._rules.rule_of(channel) is None:
            raise no_presence(channel)


def no_presence(channel: str) -> ConfigurationError:
    """Return the error for a channel without a rule."""
    return ConfigurationError(
        f"channel {channel!r} has no presence: give it a rule, Backplane(presence={{{channel!r}: Presence()}}), or a "
        "pattern that matches it"
    )
