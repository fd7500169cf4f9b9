"""The connection that receives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hiredis

from backplane.adapters.redis.envelope import ENVELOPE, ENVELOPE_BYTES, place_in
from backplane.adapters.redis.errors import unavailable
from backplane.adapters.redis.link import RedisLink, pack_command, settle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backplane.broadcaster import Sink

__all__ = ["SubscriberLink"]


class SubscriberLink(RedisLink):
    """Receives messages. SUBSCRIBE and UNSUBSCRIBE are confirmed name by name, in the order in which they were sent.

    Args:
        sink: Where messages and revoked subscriptions are reported.
    """

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink
        self._channels: dict[bytes, str] = {}
        self._still_subscribed: set[bytes] = set()  # names whose UNSUBSCRIBE the server did not accept
        self._confirmed = 0  # names of the oldest command without a reply

    async def subscribe(self, names: dict[bytes, str]) -> None:
        """Subscribe to all of `names`, each the name of a channel, or to none.

        Raises:
            hiredis.ReplyError: The server did not accept the command.
            BrokerUnavailableError: The link ended.
        """
        self._channels.update(names)
        try:
            await self._send_names(b"SUBSCRIBE", list(names))
        except hiredis.ReplyError:
            for name in names:
                self._channels.pop(name, None)
            raise

    async def unsubscribe(self, names: Sequence[bytes]) -> None:
        """Drop `names`, here at once and then at the server; what it does not accept now is repeated later.

        Raises:
            BrokerUnavailableError: The link ended.
        """
        for name in names:
            self._channels.pop(name, None)
        try:
            await self._send_names(b"UNSUBSCRIBE", names)
        except hiredis.ReplyError:
            self._still_subscribed.update(names)

    async def repeat_unsubscribes(self) -> None:
        """Send the UNSUBSCRIBE again that the server did not accept when it was sent first."""
        names, self._still_subscribed = self._still_subscribed - self._channels.keys(), set()
        await self.unsubscribe(list(names))

    def reply_received(self, reply: Any) -> None:
        """Deliver a message, count a confirmation, or answer the oldest command."""
        kind: Any = reply[0] if reply.__class__ is list else None
        if kind == b"message":
            channel = self._channels.get(reply[1])
            if channel is not None:
                payload = reply[2]
                # Almost all other payloads sort before an envelope.
                if payload >= ENVELOPE and (place := place_in(payload)) is not None:
                    self._sink.deliver(channel, payload[ENVELOPE_BYTES:], place)
                else:
                    self._sink.deliver(channel, payload)
        elif kind in (b"subscribe", b"unsubscribe"):
            self._confirmation_received(kind, reply[1])
        else:
            self._confirmed = 0
            super().reply_received(reply)

    def _confirmation_received(self, kind: bytes, name: bytes) -> None:
        count = self._unanswered[0][1] if self._unanswered else 0
        if count:
            self._confirmed += 1
            if self._confirmed == count:
                self._confirmed = 0
                settle(self._unanswered.popleft()[0], None)
        elif kind == b"unsubscribe" and (channel := self._channels.pop(name, None)) is not None:
            self._sink.revoked([channel], "the server ended the subscription")

    async def _send_names(self, command: bytes, names: Sequence[bytes]) -> None:
        if names:  # an UNSUBSCRIBE without names would drop every channel
            await self.send(pack_command([command, *names]), len(names))
        elif self.loss is not None:
            raise unavailable("the link is lost")
