"""The connection that receives with `durable=true`: it reads the stream that all workers share, from a position on.

RabbitMQ numbers the messages of a stream (https://www.rabbitmq.com/docs/streams), with a hole where a new segment
begins. A position is the last message that was delivered. It is read once more when a connection begins there, so a
deleted message is noticed, and another stream of the same name. Later holes are found by the numbers of the workers.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple

from pamqp import commands

from backplane.adapters.amqp.consumer import ConsumerConnection
from backplane.adapters.amqp.errors import WireError
from backplane.adapters.amqp.numbering import SeenNumbers
from backplane.adapters.amqp.wire import read_stream_offset

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from pamqp.common import FieldTable

    from backplane.adapters.amqp.publisher import PublisherConnection
    from backplane.adapters.amqp.wire import Content
    from backplane.errors import BrokerError

__all__ = ["MARKS", "Record", "StreamConsumer", "StreamPosition"]

_PREFETCH: Final = 2000  # most messages that are under way and not acknowledged
_DELETED: Final = "messages were deleted (retention) before this worker had received them"
MARKS: Final = "$backplane/mark"
"""The routing key of what shows a worker how far it has read; other workers take no note of it."""


class Record(NamedTuple):
    """A message of a stream.

    Attributes:
        offset: Its number there.
        identity: Another one with the same number has another: its routing key and its properties.
    """

    offset: int
    identity: bytes


@dataclass(slots=True)
class StreamPosition:
    """How far a worker has read; it outlives a connection.

    Attributes:
        last: The last message; `None` before the first.
        numbers: Those of the workers, up to it.
    """

    last: Record | None = None
    numbers: SeenNumbers | None = None


class StreamConsumer(ConsumerConnection):
    """Receives from a stream.

    Args:
        stream: The name of the stream.
        max_bytes: Largest message.
        position: Where it begins, or at the end; it moves with each message.
        deliver: Called with channel and payload of each message of a subscribed channel.
        overran: Called where messages may be missing, with the reason.
    """

    def __init__(
        self,
        stream: str,
        max_bytes: int,
        position: StreamPosition,
        *,
        deliver: Callable[[str, bytes], None],
        overran: Callable[[str], None],
    ) -> None:
        super().__init__("", max_bytes, deliver=self._deliver_or_mark, overran=overran)
        self._queue = stream
        self._position = position
        self._deliver_message = deliver
        self._is_first = position.last is not None
        self._current: Record | None = None
        self._unacknowledged = 0
        self._delivery = 0
        self._mark = secrets.token_bytes(8)
        self._marked: asyncio.Future[None] = self._loop.create_future()

    async def caught_up(self, publisher: PublisherConnection) -> None:
        """Return when everything is delivered that was published before this call.

        Raises:
            BrokerError: A connection ended.
        """
        self.wanted.add([MARKS])
        try:
            await publisher.publish(MARKS, self._mark)
            await self._marked
        finally:
            self.wanted.remove([MARKS])
            self._marked.cancel()

    async def _prepare(self) -> None:
        await self.ask(commands.Channel.Open())
        await self.ask(commands.Basic.Qos(prefetch_count=_PREFETCH))
        last = self._position.last
        start: FieldTable = {"x-stream-offset": "next" if last is None else last.offset}
        await self.ask(commands.Basic.Consume(queue=self._queue, arguments=start))

    def _arrived(self, header: bytes, content: Content) -> bool:
        """Note the place of a message; return whether it is a new one."""
        self._delivery += 1
        offset, last = read_stream_offset(header), self._position.last
        if offset is None:
            raise WireError(f"queue {self._queue!r} is no stream")
        current = self._current = Record(offset, (self._routing_key or b"") + b"\0" + header)
        is_first, self._is_first = self._is_first, False
        if is_first and current == last:
            return False
        numbers = None if is_first else self._position.numbers
        if is_first and last is not None:
            self._overran(_DELETED if offset > last.offset else "another stream has taken the place of that of before")
        if numbers is None:
            numbers = self._position.numbers = SeenNumbers(self._loop.time(), time())
        if content.app_id and numbers.missed(content, self._loop.time()) > 0:
            self._overran(_DELETED)
        return True

    def _completed(self) -> None:
        """Move the position, and acknowledge: the server sends no more than is not acknowledged."""
        self._position.last = self._current or self._position.last
        self._unacknowledged += 1
        if self._unacknowledged >= _PREFETCH // 4:
            self._unacknowledged = 0
            self._request(commands.Basic.Ack(self._delivery, multiple=True))

    def _deliver_or_mark(self, channel: str, payload: bytes) -> None:
        if channel != MARKS:
            self._deliver_message(channel, payload)
        elif payload == self._mark and not self._marked.done():
            self._marked.set_result(None)

    def _fail(self, error: BrokerError) -> None:
        if not self._marked.done():
            self._marked.set_exception(error)
            self._marked.exception()  # where it is not awaited
