"""What every local subscriber does alike: join channels, leave them, and end."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Protocol

from backplane.channels import validate_channel, warn_if_pattern
from backplane.errors import ClosedError, TooManyChannelsError

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.fanout.batch import Batch
    from backplane.fanout.hub import Hub
    from backplane.message import Gap

__all__ = ["BaseSubscriber", "JoinRules"]


class JoinRules(Protocol):
    """What each join of a client is checked against."""

    async def check_join(self, client: BaseSubscriber, channel: str, /) -> None:
        """Check that `client` may join `channel`; raises `JoinRefusedError` or `TooManyChannelsError`."""

    def check_channels(self, client: BaseSubscriber, count: int, /) -> None:
        """Check that `client` may join `count` channels; raises `TooManyChannelsError`."""


class BaseSubscriber(ABC):
    """A subscriber of the hub, of any number of channels.

    Args:
        hub: Where it subscribes.
        rules: Those for a client, which every join asks. `None` is the application itself, which may join
            anything. It has no default: each new way to a channel has to decide which of the two it is.
        context: See below.

    Attributes:
        context: The application's own, such as the user.
    """

    __slots__ = ("_channels", "_context", "_detached", "_ended", "_hub", "_rules", "context", "token")

    def __init__(self, hub: Hub, rules: JoinRules | None, *, context: Any = None) -> None:
        self._hub = hub
        self._rules = rules
        self.context = context
        self._channels: dict[str, None] = {}
        self._detached = False  # about to end, or at its end: hears nothing any more
        self._ended = False
        self.token = os.urandom(8)
        # Of whoever made it, a handler usually: what runs for it from elsewhere runs in this Context.
        self._context = copy_context()

    @property
    @abstractmethod
    def kind(self) -> str:
        """What it is, in words, for logs and errors."""

    @property
    def id(self) -> str:
        """Random name of it, unique among all workers; for a connection, `publish(exclude=...)` takes it too."""
        return self.token.hex()

    @property
    def channels(self) -> Collection[str]:
        """The channels it has joined."""
        return self._channels.keys()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or is about to: nothing more reaches it."""
        return self._detached

    async def join(self, channel: str) -> None:
        """Receive what is published to `channel`; once this returns no later publish is missed without a gap.

        Joining again changes nothing. Cancelling leaves the channel unjoined.

        Raises:
            InvalidChannelError: The name is not legal.
            JoinRefusedError: It is a client's, and the application's `authorize` refused the channel.
            TooManyChannelsError: It is a client's, and has joined as many as are allowed.
            SubscribeError: The broker refused it.
            BrokerUnavailableError: The broker did not confirm in time.
            ClosedError: It has ended.
        """
        self._hub.affinity.check()
        validate_channel(channel)
        self._check_attached()
        if self._rules is not None:
            await self._rules.check_join(self, channel)
            self._check_attached()  # the application may have taken its time
        if channel in self._channels:
            return
        warn_if_pattern(channel)
        await self._hub.join(channel, self)
        if self._detached:  # since the broker was asked
            self._hub.leave(channel, self)
            self._check_attached()
        self._channels[channel] = None
        if self._rules is not None:
            try:
                self._rules.check_channels(self, len(self._channels))  # other joins came through meanwhile
            except TooManyChannelsError:
                await self.leave(channel)
                raise

    async def leave(self, channel: str) -> None:
        """Receive nothing more of `channel`; what waits still comes. Leaving what was not joined changes nothing."""
        self._hub.affinity.check()
        if channel in self._channels:
            del self._channels[channel]
            self._hub.leave(channel, self)

    @abstractmethod
    def offer(self, batch: Batch, /) -> None:
        """Take messages of one channel, in order: the hub's side."""

    @abstractmethod
    def gap(self, gap: Gap) -> None:
        """Learn that messages may be missing: the hub's side."""

    def _leave_all(self) -> None:
        """End: nothing is received any more, and nothing can be joined."""
        self._ended = True
        self._detach()

    def _detach(self) -> None:
        self._detached = True
        for channel in self._channels:
            self._hub.leave(channel, self)
        self._channels.clear()

    def _check_attached(self) -> None:
        if self._detached:
            raise ClosedError(f"{self.kind} {self.id} has ended, or is about to")

    def _check_not_ended(self) -> None:
        if self._ended:
            raise ClosedError(f"{self.kind} {self.id} has ended")
