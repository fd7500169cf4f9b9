"""Sends and receives what the workers of a cluster exchange, on reserved channels, by `publish` and `subscribe` alone.

A bus is one subscriber of the hub. So reference counts, subscribing again after a lost link, and gaps are those of any
subscriber, and it works on every adapter.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Final, Protocol

from backplane.broker.backoff import Backoff
from backplane.cluster.topics import CONTROL, WORKERS
from backplane.errors import BackplaneError, BrokerError, PayloadTooLargeError
from backplane.fanout.codec import encode
from backplane.journal.events import CLUSTER_FAILED, COMMAND_FAILED, COMMAND_REJECTED
from backplane.journal.place import place_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backplane.broadcaster import WireFormat
    from backplane.cluster.signatures import Signer
    from backplane.fanout.batch import Batch
    from backplane.fanout.hub import Hub
    from backplane.journal.journal import Journal
    from backplane.message import Gap, Joined, Receipt

__all__ = ["ClusterBus", "TopicReceiver"]

logger: Final = logging.getLogger("backplane.cluster.bus")

_MAX_PAUSE_SECONDS: Final = 5.0
_OF_ALL: Final = frozenset({WORKERS, CONTROL})

_NOT_SIGNED: Final = (
    "dropped a message on %(channel)r that is not signed with this worker's control_secret: another program publishes "
    "there, or a worker has another secret"
)


class TopicReceiver(Protocol):
    """Takes what is received on a reserved channel. Its methods return at once; one that raises is logged."""

    def received(self, topic: str, text: str, /) -> None:
        """Take one message."""

    def gap(self, topic: str, /) -> None:
        """Take the notice that messages may be missing at this place."""


class ClusterBus:
    """The reserved channels of one worker.

    Args:
        hub: Where it subscribes.
        publish: Publishes a payload; raises as `Publisher.publish`.
        origin: The random bytes that name this worker.
        wire_format: As the adapter's option of that name.
        max_payload_bytes: Returns the largest payload that the broker takes now.
        journal: How failures are logged, of which there can be many.
        signer: Signs what is sent; what is received without a valid signature is dropped. Defaults to none.

    Attributes:
        token: Random bytes, as every subscriber of the hub has them.
        worker: The name of this worker in what is sent.
        received_of_all: Messages on the channels that each worker of the cluster receives, heartbeats and commands:
            they grow alike on all workers.
        rejected: Messages that were dropped: not signed by this secret, binary, or larger than a worker sends them.
    """

    def __init__(
        self,
        hub: Hub,
        publish: Callable[[str, bytes], Awaitable[Receipt]],
        *,
        origin: bytes,
        wire_format: WireFormat,
        max_payload_bytes: Callable[[], int],
        journal: Journal,
        signer: Signer | None = None,
    ) -> None:
        self._hub = hub
        self._publish = publish
        self._origin = origin
        self._wire_format: WireFormat = wire_format
        self._max_payload_bytes = max_payload_bytes
        self._journal = journal
        self._signer = signer
        self._receivers: dict[str, TopicReceiver] = {}
        self._joining: dict[str, asyncio.Task[None]] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self.token: bytes = os.urandom(8)
        self.worker: str = origin.hex()
        self.received_of_all: int = 0
        self.rejected: int = 0

    @property
    def topics(self) -> int:
        """How many reserved channels are subscribed, or about to be."""
        return len(self._receivers)

    # --- subscribing ---

    async def subscribe(self, topic: str, receiver: TopicReceiver) -> None:
        """Receive a channel; once this returns, nothing is missed on it without a gap. A channel has one receiver.

        Raises:
            SubscribeError: The broker refused the channel.
            BrokerUnavailableError: The broker did not confirm in time.
        """
        self._receivers[topic] = receiver
        try:
            await self._hub.join(topic, self)
        except BaseException:
            self._receivers.pop(topic, None)
            raise

    def subscribe_soon(self, topic: str, receiver: TopicReceiver, confirmed: Callable[[], None]) -> None:
        """Receive a channel once the broker confirms it, which is tried until then; call `confirmed` at that moment."""
        self._receivers[topic] = receiver
        self._joining[topic] = asyncio.create_task(self._subscribe(topic, confirmed), name=f"join {topic}")

    def unsubscribe(self, topic: str, receiver: TopicReceiver) -> None:
        """Receive nothing more of a channel; one that `receiver` does not receive changes nothing."""
        if self._receivers.get(topic) is not receiver:
            return
        del self._receivers[topic]
        if (joining := self._joining.pop(topic, None)) is not None:
            joining.cancel()  # which undoes this join, and none that follows at once
        else:
            self._hub.leave(topic, self)

    # --- sending ---

    async def send(self, topic: str, text: str) -> None:
        """Publish one message.

        Raises:
            PayloadTooLargeError: It is larger than the broker takes.
            BrokerError, ClosedError: As `Publisher.publish`.
        """
        if self._signer is not None:
            text = self._signer.sign(topic, text)
        payload = encode(
            text,
            origin=self._origin,
            published_at=time.time(),
            excluded=None,
            wire_format=self._wire_format,
            states_json=False,
        )
        if len(payload) > (limit := self._max_payload_bytes()):
            raise PayloadTooLargeError(len(payload), limit)
        await self._publish(topic, payload)

    def send_soon(self, topic: str, text: str, failed: Callable[[], None] | None = None) -> None:
        """Publish one message in the order of the calls; call `failed` where it was not, or may not have been."""
        task = asyncio.create_task(self._send(topic, text, failed))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def flush(self) -> None:
        """Wait until everything is sent that `send_soon` was given, or failed."""
        while self._sending:
            await asyncio.wait(self._sending)

    async def stop(self) -> None:
        """End: nothing is received or sent any more."""
        for topic in self._receivers:
            self._hub.leave(topic, self)
        self._receivers.clear()
        tasks = [*self._joining.values(), *self._sending]
        self._joining.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- called by the hub ---

    def offer(self, batch: Batch, /) -> None:
        """Take messages of one channel."""
        for message in batch:
            topic = message.channel
            self.received_of_all += topic in _OF_ALL
            text = self._checked(topic, message.data)
            if text is None or (receiver := self._receivers.get(topic)) is None:
                continue
            try:
                receiver.received(topic, text)
            except Exception as error:  # another program can publish anything there
                self._log_failure(topic, error)

    def offer_missed(self, batch: Batch, /) -> None:
        """Take messages that are given back: reserved channels have no history, so there are none."""
        self.offer(batch)

    def gap(self, gap: Gap, /) -> None:
        """Take the notice that messages may be missing."""
        if (receiver := self._receivers.get(gap.channel)) is not None:
            try:
                receiver.gap(gap.channel)
            except Exception as error:
                self._log_failure(gap.channel, error)

    def joined(self, joined: Joined, /) -> None:
        """Take the notice of a join."""

    # ---

    async def _subscribe(self, topic: str, confirmed: Callable[[], None]) -> None:
        backoff = Backoff(_MAX_PAUSE_SECONDS)
        while True:
            try:
                await self._hub.join(topic, self)
                break
            except BrokerError as error:
                words = "cannot subscribe to %(channel)r, trying again: %(reason)s"
                self._journal.log(logger, CLUSTER_FAILED, words, channel=topic, reason=error)
            await asyncio.sleep(backoff.next())
        del self._joining[topic]
        confirmed()

    async def _send(self, topic: str, text: str, failed: Callable[[], None] | None) -> None:
        try:
            await self.send(topic, text)
        except BackplaneError as error:
            words = "could not send on %(channel)r: %(reason)s"
            self._journal.log(logger, CLUSTER_FAILED, words, channel=topic, reason=error)
            if failed is not None:
                failed()

    def _checked(self, topic: str, data: str | bytes) -> str | None:
        """Return the text of what was received; `None`, counted and logged, where no worker of this cluster sent it."""
        text, words = None, _NOT_SIGNED
        if not isinstance(data, str):
            words = "dropped a message on %(channel)r that is binary: another program publishes there"
        elif len(data) > self._max_payload_bytes():  # it would take long to parse
            words = "dropped a message on %(channel)r that is larger than workers send them"
        else:
            text = data if self._signer is None else self._signer.checked(topic, data)
        if text is None:
            self.rejected += 1
            self._journal.log(logger, COMMAND_REJECTED, words, channel=topic)
        return text

    def _log_failure(self, topic: str, error: Exception) -> None:
        words = "a message on %(channel)r could not be used: %(error)s"
        self._journal.log(logger, COMMAND_FAILED, words, channel=topic, error=place_of(error))
