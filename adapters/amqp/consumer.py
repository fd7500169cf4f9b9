"""The connection that receives: a queue of this worker alone, of which it passes on what it has subscribed to."""

from __future__ import annotations

import secrets
from time import time
from typing import TYPE_CHECKING

from pamqp import commands

from backplane.adapters.amqp.connection import AmqpConnection
from backplane.adapters.amqp.errors import WireError
from backplane.adapters.amqp.numbering import SeenNumbers
from backplane.adapters.amqp.wire import (
    BASIC_DELIVER,
    BODY,
    HEADER,
    METHOD,
    Content,
    read_content,
    read_routing_key,
)
from backplane.adapters.shared.wanted_channels import WantedChannels

if TYPE_CHECKING:
    from collections.abc import Callable

    from pamqp.common import FieldTable

    from backplane.errors import BrokerError

__all__ = ["ConsumerConnection"]


class ConsumerConnection(AmqpConnection):
    """Receives.

    Args:
        exchange: The exchange.
        max_queue_bytes: Most bytes that the server keeps for it.
        deliver: Called with channel and payload of each message of a subscribed channel.
        overran: Called where the queue dropped messages, with the reason.
    """

    def __init__(
        self,
        exchange: str,
        max_queue_bytes: int,
        *,
        deliver: Callable[[str, bytes], None],
        overran: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._exchange = exchange
        self._queue = f"{exchange}.{secrets.token_hex(8)}"
        self._max_queue_bytes = max_queue_bytes
        self._deliver = deliver
        self._overran = overran
        self.wanted: WantedChannels[bytes] = WantedChannels(str.encode, bytes.decode)
        self._numbers = SeenNumbers(self._loop.time(), time())
        self._routing_key: bytes | None = None  # of the message that is being received
        self._missing_bytes = 0
        self._parts: list[bytes] | None = None  # None where the message is passed over

    async def check(self) -> None:
        """Check that the server answers, and still has the queue.

        Raises:
            BrokerError: It does not.
        """
        await self.ask(commands.Queue.Declare(queue=self._queue, passive=True))

    async def _prepare(self) -> None:
        await self.ask(commands.Channel.Open())
        limits: FieldTable = {"x-max-length-bytes": self._max_queue_bytes, "x-overflow": "drop-head"}
        await self.ask(commands.Queue.Declare(queue=self._queue, exclusive=True, auto_delete=True, arguments=limits))
        await self.ask(commands.Queue.Bind(queue=self._queue, exchange=self._exchange))
        self._numbers = SeenNumbers(self._loop.time(), time())
        await self.ask(commands.Basic.Consume(queue=self._queue, no_ack=True, exclusive=True))

    def _received(self, kind: int, payload: bytes) -> bool:
        if kind == METHOD:
            if payload[:4] != BASIC_DELIVER:
                return False
            self._routing_key = read_routing_key(payload)
        elif kind == HEADER and self._routing_key is not None:
            self._begin(payload)
        elif kind == BODY and self._missing_bytes:
            self._missing_bytes -= len(payload)
            if self._parts is not None:
                self._parts.append(payload)
            if self._missing_bytes < 0:
                raise WireError("the body of a message is longer than its header states")
            self._complete()
        return True

    def _begin(self, header: bytes) -> None:
        content = read_content(header)
        is_new = self._arrived(header, content)
        self._missing_bytes = content.size
        is_wanted = (
            is_new
            and self._routing_key is not None
            and self.wanted.find(self._routing_key) is not None
            and content.size <= self._max_queue_bytes
        )
        self._parts = [] if is_wanted else None
        self._complete()

    def _complete(self) -> None:
        if self._missing_bytes or self._routing_key is None or self.loss is not None:
            return
        channel = self.wanted.find(self._routing_key)
        if channel is not None and self._parts is not None:
            self._deliver(channel, b"".join(self._parts))
        self._routing_key = self._parts = None
        self._completed()

    def _arrived(self, header: bytes, content: Content) -> bool:
        """Report a hole in what a worker has published; return whether the message is a new one."""
        missed = self._numbers.missed(content, self._loop.time()) if content.app_id else 0
        if missed > 0:
            self._overran(
                f"the queue of this worker overran, or the cluster was parted: at least {missed:,} messages are missing"
            )
        return True

    def _completed(self) -> None:
        """React to a message that is delivered, or passed over."""

    def _fail(self, error: BrokerError) -> None:
        pass
