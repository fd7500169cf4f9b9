"""The connections to one node: the same as to a single server, with the commands of sharded pub/sub."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Final

import hiredis

from backplane.adapters.redis.envelope import ENVELOPE, ENVELOPE_BYTES, place_in
from backplane.adapters.redis.link import RedisLink, pack_command, settle
from backplane.adapters.redis.publisher_link import PublisherLink
from backplane.adapters.redis.scripts import SHARD_SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from backplane.adapters.redis.scripts import Scripts
    from backplane.broadcaster import Sink

__all__ = ["ShardPublisherLink", "ShardSubscriberLink"]

_PING: Final = pack_command([b"PING"])


class ShardPublisherLink(PublisherLink):
    """The connection that publishes to one node. What is published before it is adopted waits until then."""

    scripts: ClassVar[Scripts] = SHARD_SCRIPTS

    def spublish(self, name: bytes, payload: bytes) -> asyncio.Future[Any]:
        """Send SPUBLISH in this pass of the event loop; the reply is the result of the future.

        The future raises `BrokerUnavailableError` where the link ended before it was sent, and
        `PublishOutcomeUnknownError` where it ended before the reply.

        Raises:
            BrokerUnavailableError: The link has ended.
            PublishError: Too much awaits a reply; retriable.
        """
        size = len(name) + len(payload)
        self._require_room(size)
        command = b"*3\r\n$8\r\nSPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(payload), payload)
        return self._queue(command, size)

    def run_script(self, command: bytes, size: int) -> asyncio.Future[Any]:
        """Send a command that runs a script, in one order with `spublish`, and as that does.

        Args:
            command: The command.
            size: How many bytes it publishes, or 0.

        Raises:
            BrokerUnavailableError: The link has ended.
            PublishError: Too much awaits a reply; retriable.
        """
        self._require_room(size)
        return self._queue(command, size, is_script=True)

    def barrier(self) -> asyncio.Future[Any]:
        """Return a future that ends, in whichever way, after the replies to all that was published before.

        Raises:
            BrokerUnavailableError: The link has ended: all that was published on it has its outcome.
        """
        self._require_room(0)
        return self._queue(_PING, 0)


class ShardSubscriberLink(RedisLink):
    """The connection that receives from one node.

    Each name is a command of its own, because the names of one SSUBSCRIBE must share a slot, and because a refusal
    names no channel. A server replies in the order of the commands, and in between it ends subscriptions by itself, by
    the same reply as to a SUNSUBSCRIBE: where a slot has moved to another node. A reply with a name answers the oldest
    command only if it has its verb and its name.

    One such reply right before our own SUNSUBSCRIBE of the same name is mistaken for the answer. The true answer, which
    is an error then, is given to the command after it. Nothing wrong results: a channel counts as not confirmed though
    it is, and it is subscribed again, which changes nothing.

    Args:
        sink: Where messages are reported.
        on_moved: Called with the channels whose subscription the server has ended.

    Attributes:
        channels: What is subscribed, or being subscribed, by name.
        probe_name: The name of the delivery probe of this node, while it is subscribed. It is no channel.
        probe_reply: Completed by the next probe that arrives, or by the end of its subscription.
    """

    def __init__(self, sink: Sink, on_moved: Callable[[Collection[str]], None]) -> None:
        super().__init__()
        self._sink = sink
        self._on_moved = on_moved
        self._names: dict[asyncio.Future[Any], tuple[bytes, bytes]] = {}
        self._moved: list[str] = []
        self.channels: dict[bytes, str] = {}
        self.probe_name: bytes | None = None
        self.probe_reply: asyncio.Future[None] | None = None

    async def subscribe(self, names: Mapping[bytes, str]) -> dict[bytes, hiredis.ReplyError]:
        """Subscribe to `names`, each the name of a channel; return the errors of those that the server refused.

        Raises:
            BrokerUnavailableError: The link ended.
        """
        self.channels.update(names)
        replies = await self._send_names(b"ssubscribe", list(names))
        errors = {name: error for name, error in replies.items() if isinstance(error, hiredis.ReplyError)}
        for name in errors:
            self.channels.pop(name, None)
        return errors

    async def subscribe_probe(self, name: bytes) -> hiredis.ReplyError | None:
        """Subscribe to the delivery probe; return the error where the server refused it.

        Raises:
            BrokerUnavailableError: The link ended.
        """
        reply = (await self._send_names(b"ssubscribe", [name]))[name]
        if isinstance(reply, hiredis.ReplyError):
            return reply
        self.probe_name = name
        return None

    async def unsubscribe(self, names: Sequence[bytes]) -> None:
        """Drop `names`, here at once and then at the server, which refuses the names of slots that it has not.

        Raises:
            BrokerUnavailableError: The link ended.
        """
        for name in names:
            self.channels.pop(name, None)
        await self._send_names(b"sunsubscribe", names)

    def data_received(self, data: bytes) -> None:
        """Parse what was received, and report the subscriptions that the server has ended, all at once."""
        super().data_received(data)
        if self._moved:
            moved, self._moved = self._moved, []
            self._on_moved(moved)

    def reply_received(self, reply: Any) -> None:
        """Deliver a message, or answer the oldest command, or report that a subscription was ended."""
        kind: Any = reply[0] if reply.__class__ is list else None
        if kind == b"smessage":
            channel = self.channels.get(reply[1])
            if channel is not None:
                payload = reply[2]
                # Almost all other payloads sort before an envelope.
                if payload >= ENVELOPE and (place := place_in(payload)) is not None:
                    self._sink.deliver(channel, payload[ENVELOPE_BYTES:], place)
                else:
                    self._sink.deliver(channel, payload)
            elif reply[1] == self.probe_name and self.probe_reply is not None:
                settle(self.probe_reply, None)
        elif kind in (b"ssubscribe", b"sunsubscribe"):
            self._confirmation_received(kind, reply[1])
        else:
            if self._unanswered:
                self._names.pop(self._unanswered[0][0], None)
            super().reply_received(reply)

    def fail_pending(self, reason: str) -> None:
        """Fail every command without a reply."""
        self._names.clear()
        super().fail_pending(reason)

    def _confirmation_received(self, kind: bytes, name: bytes) -> None:
        head = self._unanswered[0][0] if self._unanswered else None
        if head is not None and self._names.get(head) == (kind, name):
            del self._names[head]
            settle(self._unanswered.popleft()[0], None)
        elif kind == b"sunsubscribe" and name == self.probe_name:
            self.probe_name = None
            if self.probe_reply is not None:
                settle(self.probe_reply, None)
        elif kind == b"sunsubscribe" and (channel := self.channels.pop(name, None)) is not None:
            self._moved.append(channel)

    async def _send_names(self, verb: bytes, names: Sequence[bytes]) -> dict[bytes, Any]:
        """Send one command for each name in one write; return each reply, or the error that it is."""
        if self.loss is not None:
            raise self.loss
        futures: dict[bytes, asyncio.Future[Any]] = {}
        commands: list[bytes] = []
        for name in names:
            future = futures[name] = asyncio.get_running_loop().create_future()
            self._unanswered.append((future, 1))
            self._names[future] = (verb, name)
            commands.append(pack_command([verb.upper(), name]))
        if commands and self._transport is not None:
            self._transport.write(b"".join(commands))
        replies = await asyncio.gather(*futures.values(), return_exceptions=True)
        found = dict(zip(names, replies, strict=True))
        for error in found.values():
            if isinstance(error, BaseException) and not isinstance(error, hiredis.ReplyError):
                raise error
        return found
