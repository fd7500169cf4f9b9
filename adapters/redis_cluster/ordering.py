"""Publishes each message at the node that serves its slot, in the order of the calls, also where a slot moves.

While a slot moves, or after a failover, the old node still replies to what was sent to it, and the new one could
deliver a later message before. So a slot whose node changes *turns*: what is published from then on waits until
everything that was sent to the old node has its reply. What that node did not take is sent first, then what waited.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import hiredis

from backplane.adapters.redis.errors import error_text, publish_error, unavailable
from backplane.adapters.redis_cluster.slots import moved_to, slot_of
from backplane.errors import BrokerError, PublishError
from backplane.journal.events import BROKER_DETAIL
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from backplane.adapters.redis_cluster.links import ShardPublisherLink
    from backplane.adapters.redis_cluster.slots import Host

__all__ = ["ShardedPublisher"]

logger: Final = logging.getLogger("backplane.adapters.redis_cluster.ordering")

# How often one message is sent on to another node.
_MAX_HOPS: Final = 8
# How often a script is sent again while its keys move. With the pause of each turn it is about a second, so that the
# caller gets the reason before its time limit.
_MAX_REPEATS: Final = 10
# A node that was demoted replies before its successor has received the message over the bus of the cluster.
_BUS_SECONDS: Final = 0.1
# What a node replies to a script while its keys move: it has none of them any more, or not all.
_KEYS_MOVE: Final = ("ASK ", "TRYAGAIN")


_Send: TypeAlias = "Callable[[ShardPublisherLink], asyncio.Future[Any]]"
"""Sends a message on a link, and returns the future of the reply."""


class _Sent(NamedTuple):
    """A message that was sent: over which link, and the reply."""

    link: ShardPublisherLink
    reply: asyncio.Future[Any]


class _Waiting(NamedTuple):
    """A message that waits for its slot to have turned."""

    slot: int
    send: _Send
    sent: asyncio.Future[_Sent]


class _Turn:
    """Slots that turn, and their messages in the order in which they are sent on.

    Attributes:
        slots: The slots.
        returned: What the old node did not take.
        later: What was published since.
    """

    def __init__(self, slots: Collection[int]) -> None:
        self.slots: Collection[int] = slots
        self.returned: list[_Waiting] = []
        self.later: list[_Waiting] = []


class ShardedPublisher:
    """Publishes on the links of several nodes.

    Args:
        link_of: Returns the link for a slot; raises `BrokerUnavailableError` where none is up.
        on_moved: Awaited after a node has replied that another one serves a slot: with the slot, that node, and the
            link that replied.
        spawn: Runs a task until the adapter is stopped.
        max_pending_bytes: Most bytes published and not yet answered.
    """

    def __init__(
        self,
        link_of: Callable[[int], ShardPublisherLink],
        on_moved: Callable[[int, Host, ShardPublisherLink], Awaitable[None]],
        spawn: Callable[[Awaitable[None]], object],
        *,
        max_pending_bytes: int,
    ) -> None:
        self._link_of = link_of
        self._on_moved = on_moved
        self._spawn = spawn
        self._max_pending_bytes = max_pending_bytes
        self._pending_bytes = 0
        self._turns: dict[int, _Turn] = {}

    async def publish(self, name: bytes, payload: bytes) -> None:
        """Publish; returns when the node that serves the slot has replied.

        Raises:
            BrokerUnavailableError: Certainly not published: no node serves the slot at present.
            PublishError: The server refused it, or too much awaits a reply.
            PublishOutcomeUnknownError: The link ended before the reply.
        """
        try:
            await self._deliver(slot_of(name), len(name) + len(payload), lambda link: link.spublish(name, payload))
        except hiredis.ReplyError as error:
            raise publish_error(error) from error

    async def run_script(self, name: bytes, command: bytes, size: int) -> Any:
        """Run a script on the history of a channel, in one order with `publish`; return the reply.

        While the slot moves, its keys do one by one, and there are moments in which no node has them all. Then the
        command is repeated for a second, in the order of the calls. It is not sent to the new node before that serves
        the slot (`ASK`): no subscriber would receive it there.

        Args:
            name: The name of the channel.
            command: What runs the script.
            size: How many bytes it publishes, or 0.

        Raises:
            hiredis.ReplyError: The server refused it.
            BrokerUnavailableError: Certainly not executed: no node serves the slot, or has all its keys, at present.
            PublishError: Too much awaits a reply.
            PublishOutcomeUnknownError: The link ended before the reply.
        """
        return await self._deliver(slot_of(name), size, lambda link: link.run_script(command, size))

    def turn(self, slots: Collection[int], old: ShardPublisherLink | None) -> None:
        """Let slots turn whose node has just changed.

        Args:
            slots: The slots.
            old: The link that their messages went to; `None` where there was none.
        """
        turning = [slot for slot in slots if slot not in self._turns]
        if turning and old is not None:
            self._begin(turning, old, None)

    async def _deliver(self, slot: int, size: int, send: _Send) -> Any:
        if size and self._pending_bytes and self._pending_bytes + size > self._max_pending_bytes:
            raise PublishError(
                f"{self._pending_bytes:,} bytes await an answer; publish slower, or raise max_pending_bytes",
                adapter="redis",
                retriable=True,
            )
        self._pending_bytes += size
        try:
            return await self._send_on(slot, send)
        finally:
            self._pending_bytes -= size

    async def _send_on(self, slot: int, send: _Send) -> Any:
        turn = self._turns.get(slot)
        sent = self._send(slot, send) if turn is None else await _wait(turn.later, slot, send)
        hops = repeats = 0
        while True:
            try:
                return await sent.reply
            except hiredis.ReplyError as error:
                target = None
                text = error_text(error)
                if (moved := moved_to(error)) is not None:
                    if (hops := hops + 1) > _MAX_HOPS:
                        raise unavailable(
                            f"{hops} nodes in a row do not serve the slot; not published: {text}"
                        ) from error
                    _, host, port = moved
                    target = (host or str(sent.link.address[0]), port)
                elif text.startswith(_KEYS_MOVE):
                    if (repeats := repeats + 1) > _MAX_REPEATS:
                        raise unavailable(f"the keys of the history move to another node: {text}") from error
                elif text.startswith("CLUSTERDOWN"):
                    raise unavailable(f"the cluster takes no message for this channel at present: {text}") from error
                else:
                    raise
            turn = self._turns.get(slot) or self._begin([slot], sent.link, target)
            sent = await _wait(turn.returned, slot, send)

    def _send(self, slot: int, send: _Send) -> _Sent:
        link = self._link_of(slot)
        return _Sent(link, send(link))

    def _begin(self, slots: Collection[int], old: ShardPublisherLink, target: Host | None) -> _Turn:
        turn = _Turn(slots)
        self._turns |= dict.fromkeys(slots, turn)
        self._spawn(self._run(turn, old, target))
        return turn

    async def _run(self, turn: _Turn, old: ShardPublisherLink, target: Host | None) -> None:
        try:
            with suppress(BrokerError, hiredis.ReplyError):  # it ended, and with it everything sent has its outcome
                await old.barrier()
                await asyncio.sleep(_BUS_SECONDS)
            if target is not None:
                for slot in turn.slots:
                    await self._on_moved(slot, target, old)
        except BrokerError as error:  # without a map its messages find no link, or the old one, which refuses them
            write(logger, BROKER_DETAIL, "a slot that moved was not found again: %(reason)s", reason=error)
        finally:
            self._finish(turn)

    def _finish(self, turn: _Turn) -> None:
        for slot in turn.slots:
            del self._turns[slot]
        for waiting in (*turn.returned, *turn.later):
            if waiting.sent.done():  # cancelled
                continue
            try:
                sent = self._send(waiting.slot, waiting.send)
            except BrokerError as error:
                waiting.sent.set_exception(error)
                continue
            sent.reply.add_done_callback(_retrieve)
            waiting.sent.set_result(sent)


async def _wait(queue: list[_Waiting], slot: int, send: _Send) -> _Sent:
    waiting = _Waiting(slot, send, asyncio.get_running_loop().create_future())
    queue.append(waiting)
    return await waiting.sent


def _retrieve(reply: asyncio.Future[Any]) -> None:
    """Mark the error of a reply as retrieved: the caller may have been cancelled."""
    if not reply.cancelled():
        reply.exception()
