"""The connection that receives."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import hiredis

from backplane.adapters.redis.envelope import ENVELOPE, ENVELOPE_BYTES, place_in
from backplane.adapters.redis.errors import classify_reply, unavailable
from backplane.adapters.redis.link import RedisLink, pack_command, settle
from backplane.adapters.redis.patterns import Patterns
from backplane.concurrency.shared_future import outcome_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from backplane.broadcaster import Sink

__all__ = ["SubscriberLink"]

_CONFIRMATIONS: Final = (b"subscribe", b"unsubscribe", b"psubscribe", b"punsubscribe")


class SubscriberLink(RedisLink):
    """Receives messages. SUBSCRIBE and UNSUBSCRIBE are confirmed name by name, in the order in which they were sent.

    Args:
        sink: Where messages and revoked subscriptions are reported.
        prefix: What every name begins with: the option `prefix`.
    """

    def __init__(self, sink: Sink, prefix: str = "") -> None:
        super().__init__()
        self._sink = sink
        self._channels: dict[bytes, str] = {}
        self._still_subscribed: set[bytes] = set()  # names whose UNSUBSCRIBE the server did not accept
        self._confirmed = 0  # names of the oldest command without a reply
        self._at_server: set[bytes] = set()  # names to which the server sends, by its replies up to here
        self._patterns = Patterns(prefix)
        self._patterns_lock = asyncio.Lock()
        self._patterns_reply: asyncio.Future[Any] | None = None  # that to the last command on patterns

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
        """Send the (P)UNSUBSCRIBE again that the server did not accept when it was sent first."""
        names, self._still_subscribed = self._still_subscribed - self._channels.keys(), set()
        await self.unsubscribe(list(names))
        if self._patterns.surplus():
            await self.unsubscribe_prefixes(())

    async def subscribe_prefixes(self, prefixes: Collection[str]) -> dict[str, hiredis.ReplyError]:
        """Subscribe to all names that begin with one of `prefixes`; return the errors of those that are not accepted.

        A server refuses a PSUBSCRIBE as a whole, so a refused one is repeated in two halves.

        Raises:
            BrokerUnavailableError: The link ended.
        """
        patterns = self._patterns
        refused: dict[str, hiredis.ReplyError] = {}
        async with self._patterns_lock:
            await self._settle_patterns()
            patterns.wanted.add(prefixes)
            errors: dict[bytes, hiredis.ReplyError] = {}
            await self._subscribe_patterns(patterns.missing(), errors)
            while errors:  # those that begin with a refused one are subscribed in its place
                refused.update((patterns.prefix_of(pattern), error) for pattern, error in errors.items())
                patterns.wanted.remove(refused)
                errors.clear()
                await self._subscribe_patterns(patterns.missing(), errors)
            await self._drop_surplus()
        return refused

    async def unsubscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Drop `prefixes`.

        What begins with one of them and is still wanted is subscribed to before. Where the server does not accept that,
        or does not accept the PUNSUBSCRIBE now, it goes on to send more than is wanted, until it is asked again.

        Raises:
            BrokerUnavailableError: The link ended.
        """
        async with self._patterns_lock:
            await self._settle_patterns()
            self._patterns.wanted.remove(prefixes)
            await self._subscribe_patterns(self._patterns.missing(exact=True), {})
            await self._drop_surplus()

    def reply_received(self, reply: Any) -> None:
        """Deliver a message, count a confirmation, or answer the oldest command."""
        kind: Any = reply[0] if reply.__class__ is list else None
        if kind == b"message":
            payload = reply[2]
            channel = self._channels.get(reply[1])
            if channel is None:
                channel = self._patterns.channel_of(reply[1])
        elif kind == b"pmessage":
            _, pattern, name, payload = reply
            is_first = name not in self._at_server and self._patterns.delivers(pattern)
            channel = self._patterns.channel_of(name) if is_first else None
        else:
            if kind in _CONFIRMATIONS:
                self._confirmation_received(kind, reply[1])
            else:
                self._confirmed = 0
                super().reply_received(reply)
            return
        if channel is not None:
            # Almost all other payloads sort before an envelope.
            if payload >= ENVELOPE and (place := place_in(payload)) is not None:
                self._sink.deliver(channel, payload[ENVELOPE_BYTES:], place)
            else:
                self._sink.deliver(channel, payload)

    def _confirmation_received(self, kind: bytes, name: bytes) -> None:
        is_change = self._follow(kind, name)
        count = self._unanswered[0][1] if self._unanswered else 0
        if count:
            self._confirmed += 1
            if self._confirmed == count:
                self._confirmed = 0
                settle(self._unanswered.popleft()[0], None)
        elif kind == b"unsubscribe" and (channel := self._channels.pop(name, None)) is not None:
            self._sink.revoked([channel], "the server ended the subscription")
        elif kind == b"punsubscribe" and is_change:
            self.end("the server ended the subscription to a pattern")

    def _follow(self, kind: bytes, name: bytes) -> bool:
        """Note what the server sends from here on; return whether that is a change of the patterns."""
        if kind == b"subscribe":
            self._at_server.add(name)
        elif kind == b"unsubscribe":
            self._at_server.discard(name)
        else:
            return self._patterns.confirmed(name, subscribed=kind == b"psubscribe")
        return False

    async def _subscribe_patterns(self, patterns: Sequence[bytes], errors: dict[bytes, hiredis.ReplyError]) -> None:
        """Subscribe to `patterns`; those that the server does not accept are added to `errors`."""
        try:
            await self._send_patterns(b"PSUBSCRIBE", patterns)
        except hiredis.ReplyError as error:
            if len(patterns) == 1 or classify_reply(error) != "refused":
                errors |= dict.fromkeys(patterns, error)
            else:
                middle = len(patterns) // 2
                await self._subscribe_patterns(patterns[:middle], errors)
                await self._subscribe_patterns(patterns[middle:], errors)

    async def _drop_surplus(self) -> None:
        with suppress(hiredis.ReplyError):
            await self._send_patterns(b"PUNSUBSCRIBE", self._patterns.surplus())

    async def _settle_patterns(self) -> None:
        """Wait for the reply to the last command on patterns, whose caller may have been cancelled."""
        if self._patterns_reply is not None:
            await asyncio.wait((self._patterns_reply,))

    async def _send_patterns(self, command: bytes, patterns: Sequence[bytes]) -> None:
        if patterns:  # a PUNSUBSCRIBE without patterns would drop every one
            self._patterns_reply = self.send(pack_command([command, *patterns]), len(patterns))
            await outcome_of(self._patterns_reply)
        elif self.loss is not None:
            raise unavailable("the link is lost")

    async def _send_names(self, command: bytes, names: Sequence[bytes]) -> None:
        if names:  # an UNSUBSCRIBE without names would drop every channel
            await self.send(pack_command([command, *names]), len(names))
        elif self.loss is not None:
            raise unavailable("the link is lost")
