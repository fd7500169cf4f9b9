"""The connection that publishes, with the server's confirmation of each message."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple

from pamqp import commands

from backplane.adapters.amqp.connection import AmqpConnection
from backplane.adapters.amqp.errors import (
    ACCESS_REFUSED,
    PRECONDITION_FAILED,
    outcome_unknown,
    publish_error,
    refusal,
    unavailable,
)
from backplane.adapters.amqp.wire import (
    BASIC_ACK,
    BASIC_NACK,
    METHOD,
    Content,
    encode_message,
    read_confirmation,
)
from backplane.errors import BrokerAuthenticationError, BrokerError, BrokerUnavailableError
from backplane.journal.events import BROKER_DETAIL
from backplane.journal.writing import write

if TYPE_CHECKING:
    import asyncio

    from pamqp.common import FieldTable

    from backplane.adapters.amqp.numbering import Numbering

__all__ = ["PublisherConnection", "StreamSettings"]

logger: Final = logging.getLogger("backplane.adapters.amqp.publisher")

_SEGMENT_BYTES: Final = 100 * 1024 * 1024
_SEGMENTS: Final = 10
# "message size 2097152 is larger than configured max size 1048576"
_TOO_LARGE: Final = re.compile(r"message size \d+ .*max size (\d+)")


class _Waiting(NamedTuple):
    """A message that is not confirmed."""

    size: int
    answer: asyncio.Future[None]


class StreamSettings(NamedTuple):
    """A stream, for what is published to be stored in.

    Attributes:
        name: Its name.
        retention_seconds: How long a message is kept.
        retention_bytes: How much is kept.
    """

    name: str
    retention_seconds: int
    retention_bytes: int


class PublisherConnection(AmqpConnection):
    """Publishes in the order of the calls.

    Args:
        exchange: The exchange.
        max_pending_bytes: Most bytes published and not yet confirmed.
        numbering: Numbers what is published.
        stream: Created, and bound to the exchange, where it is given.

    Attributes:
        max_message_bytes: What the server has shown to be its limit of a message; `None` where it has not.
        may_create: This user may create the exchange.
        stream_refusal: Why the server did not create the stream as it should be; empty where it did.
    """

    def __init__(
        self, exchange: str, max_pending_bytes: int, numbering: Numbering, stream: StreamSettings | None = None
    ) -> None:
        super().__init__()
        self.max_message_bytes: int | None = None
        self.may_create: bool = True
        self.stream_refusal: str = ""
        self._exchange = exchange
        self._max_pending_bytes = max_pending_bytes
        self._numbering = numbering
        self._stream = stream
        self._pending: dict[int, _Waiting] = {}  # by the number of the message, in its order
        self._pending_bytes = 0
        self._begin()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish; returns when the server has confirmed.

        Raises:
            BrokerUnavailableError: The connection ended before, or the server takes no publishes at present.
            PublishError: The server refused it; `retriable` where too much is not confirmed yet.
            PublishOutcomeUnknownError: The connection ended, or the server blocked it, before the confirmation.
        """
        if self.loss is not None:
            raise unavailable("the link is lost")
        if self.blocked:
            raise unavailable(self.blocked)
        size = len(payload)
        if self.max_message_bytes is not None and size > self.max_message_bytes:
            raise publish_error(f"the server takes no more than {self.max_message_bytes:,} bytes in a message")
        if self._pending_bytes and self._pending_bytes + size > self._max_pending_bytes:
            raise publish_error(
                f"{self._pending_bytes:,} bytes are not confirmed yet; publish slower, or raise max_pending_bytes",
                retriable=True,
            )
        self._number += 1
        answer: asyncio.Future[None] = self._loop.create_future()
        self._pending[self._number] = _Waiting(size, answer)
        self._pending_bytes += size
        content = Content(
            size,
            self._numbering.worker,
            self._base + self._number,
            self._link,
            self._base,
            self._loop.time() - self._began,
            self._began_at,
        )
        frames = encode_message(self._exchange.encode(), channel, payload, content, frame_bytes=self._frame_bytes)
        self.send(frames)
        await answer

    async def check(self) -> None:
        """Check that the server answers, and still has the exchange; a server that blocks publishers reads nothing.

        Raises:
            BrokerError: It does not.
        """
        if self.blocked:
            return
        with suppress(BrokerAuthenticationError):  # an answer too
            await self.ask(commands.Exchange.Declare(exchange=self._exchange, exchange_type="fanout", passive=True))
        if self._stream is not None:
            with suppress(BrokerAuthenticationError):
                await self.ask(commands.Queue.Declare(queue=self._stream.name, passive=True))

    async def _prepare(self) -> None:
        await self.ask(commands.Channel.Open())
        await self.ask(commands.Confirm.Select())
        declare = commands.Exchange.Declare(exchange=self._exchange, exchange_type="fanout", durable=True)
        try:
            await self.ask(declare)
        except BrokerAuthenticationError:  # one who may not create it may use it
            self.may_create = False
            declare.passive = True
            await self.ask(declare)
        if self._stream is not None:
            await self._create_stream(self._stream)

    async def _create_stream(self, stream: StreamSettings) -> None:
        arguments: FieldTable = {
            "x-queue-type": "stream",
            "x-max-age": f"{stream.retention_seconds}s",
            "x-max-length-bytes": stream.retention_bytes,
            # What is deleted is a whole segment.
            "x-stream-max-segment-size-bytes": min(_SEGMENT_BYTES, max(1, stream.retention_bytes // _SEGMENTS)),
        }
        declare = commands.Queue.Declare(queue=stream.name, durable=True, arguments=arguments)
        try:
            await self.ask(declare)
        except BrokerUnavailableError:
            raise
        except BrokerError as error:  # it exists with another retention, or it may not be created
            self.stream_refusal = error.reason
            write(logger, BROKER_DETAIL, "the stream is used as it is: %(reason)s", reason=error.reason)
            declare.passive = True
            await self.ask(declare)
        with suppress(BrokerAuthenticationError):  # another worker may, then
            await self.ask(commands.Queue.Bind(queue=stream.name, exchange=self._exchange))

    def _begin(self) -> None:
        """Count messages from 1 on, as the server does in a new channel: a link of its own at the receivers."""
        self._numbering.links += 1
        self._link, self._base = self._numbering.links, self._numbering.confirmed
        self._number = 0
        self._began = self._loop.time()
        self._began_at = int(time())

    def _received(self, kind: int, payload: bytes) -> bool:
        if kind != METHOD or payload[:4] not in (BASIC_ACK, BASIC_NACK):
            return kind != METHOD
        number, with_earlier = read_confirmation(payload)
        # Of several queues some can have taken it, as where the node of another one is killed.
        failure = None if payload[:4] == BASIC_ACK else outcome_unknown("a queue could not take it")
        if not with_earlier:
            self._settle(number, failure)
        else:
            for earlier in [known for known in self._pending if known <= number]:
                self._settle(earlier, failure)
        return True

    def _channel_closed(self, code: int, text: str) -> None:
        """Go on in a new channel where it was a message, or the declaration, that was refused; else end."""
        if code not in (ACCESS_REFUSED, PRECONDITION_FAILED):
            return super()._channel_closed(code, text)
        self._fail_answers(refusal(code, text))
        self._request(commands.Channel.CloseOk())
        too_large = _TOO_LARGE.search(text)
        if too_large is not None:
            self.max_message_bytes = int(too_large[1])
        is_refused = False
        for number, waiting in list(self._pending.items()):
            if code == ACCESS_REFUSED or (too_large is not None and waiting.size > int(too_large[1])):
                is_refused = True
                self._settle(number, publish_error(f"the server refused it: {text}"))
            elif is_refused:  # it came after the one that closed the channel
                self._settle(number, unavailable("the channel was closed over another message"))
            else:
                self._settle(number, outcome_unknown(f"the server closed the channel: {text}"))
        self._begin()
        for method in (commands.Channel.Open(), commands.Confirm.Select()):  # answered before what is sent after them
            self._answer()
            self._request(method)

    def _blocked_changed(self) -> None:
        if self.blocked:
            self._fail_pending(self.blocked)

    def _fail(self, error: BrokerError) -> None:
        self._fail_pending(error.reason)

    def _fail_pending(self, reason: str) -> None:
        for number in list(self._pending):
            self._settle(number, outcome_unknown(reason))

    def _settle(self, number: int, failure: BrokerError | None) -> None:
        waiting = self._pending.pop(number, None)
        if waiting is None:
            return
        self._pending_bytes -= waiting.size
        if failure is None:
            self._numbering.confirmed = max(self._numbering.confirmed, self._base + number)
        if waiting.answer.done():
            return
        if failure is None:
            waiting.answer.set_result(None)
        else:
            waiting.answer.set_exception(failure)
