"""`example://host:port`: an adapter for a toy broker, to copy from: docs/adapters/write-an-adapter.md."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from pydantic import Field

from backplane.broadcaster import Broadcaster, BrokerUrl, Capabilities, Options, Sink
from backplane.errors import (
    BrokerUnavailableError,
    PublishOutcomeUnknownError,
    SubscribeError,
)
from tests.conformance.example_broker import MESSAGE, PUBLISH, REFUSED, REVOKED, SUBSCRIBE, UNSUBSCRIBE, Frames

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["ExampleBroadcaster", "ExampleOptions"]


class ExampleOptions(Options):
    """What may stand in the query string of `example://`."""

    max_payload_bytes: int = Field(default=1024 * 1024, gt=0)
    """Largest payload, in bytes."""


class ExampleBroadcaster(Broadcaster):
    """One link to one example broker."""

    options_class = ExampleOptions
    options: ExampleOptions

    def __init__(self, url: BrokerUrl, options: ExampleOptions) -> None:
        super().__init__(url, options)
        self._address = url.servers(7777, adapter="example")[0]
        self._link: _Link | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(
            brokered=True,
            reach="network",
            publish_returns="accepted",
            max_payload_bytes=self.options.max_payload_bytes,
        )

    async def start(self, sink: Sink) -> None:
        """Connect, once."""
        try:  # cancelled meanwhile, the event loop closes what it has opened
            _, self._link = await asyncio.get_running_loop().create_connection(lambda: _Link(sink), *self._address)
        except OSError as error:
            raise BrokerUnavailableError(f"cannot reach {self.url}: {error}", adapter="example") from error

    async def stop(self) -> None:
        """Close the link, and wait until it is closed."""
        link, self._link = self._link, None
        if link is not None:
            link.abort()
            await link.closed.wait()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish; returns when the broker has answered."""
        answer = self._open_link().ask(PUBLISH, channel, payload)
        try:
            await answer
        except BrokerUnavailableError as error:  # it was sent, so it may have been published
            raise PublishOutcomeUnknownError(f"no answer: {error}", adapter="example") from error

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe; returns when the broker has answered for each."""
        link = self._open_link()
        link.channels.update(channels)
        answers = await asyncio.gather(*[link.ask(SUBSCRIBE, channel) for channel in channels])
        answered = dict(zip(channels, answers, strict=True))
        if refused := {name: "not granted" for name, answer in answered.items() if answer == REFUSED}:
            link.channels.difference_update(refused)
            raise SubscribeError(refused, adapter="example")

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Drop `channels`, here at once: what the broker sent before it answers is not delivered."""
        link = self._open_link()
        link.channels.difference_update(channels)
        await asyncio.gather(*[link.ask(UNSUBSCRIBE, channel) for channel in channels])

    def _open_link(self) -> _Link:
        if self._link is None or self._link.closed.is_set():
            raise BrokerUnavailableError("no link", adapter="example")
        return self._link


class _Link(Frames):
    """The connection: answers come in the order of what was asked."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.channels: set[str] = set()
        self.closed = asyncio.Event()
        self._sink: Sink | None = sink
        self._asked: deque[asyncio.Future[int]] = deque()

    def ask(self, kind: int, channel: str, payload: bytes = b"") -> asyncio.Future[int]:
        """Send now, in the order of the calls; the future brings the broker's answer."""
        self.send(kind, channel, payload)
        self._asked.append(asyncio.get_running_loop().create_future())
        return self._asked[-1]

    def received(self, kind: int, channel: str, payload: bytes) -> None:
        if kind == REVOKED:
            self.channels.discard(channel)
            if self._sink is not None:
                self._sink.revoked([channel], "the broker took the subscription away")
        elif kind != MESSAGE:
            answer = self._asked.popleft()
            if not answer.done():  # the caller may have been cancelled
                answer.set_result(kind)
        elif self._sink is not None and channel in self.channels:
            self._sink.deliver(channel, payload)

    def abort(self) -> None:
        """End it: from here on nothing is reported."""
        self._sink = None
        assert self.transport is not None
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        error = BrokerUnavailableError(f"the connection ended{f': {exc}' if exc else ''}", adapter="example")
        self.closed.set()
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(error)
        if self._sink is not None:
            self._sink.lost(error)
