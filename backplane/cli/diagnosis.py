"""`diagnose`: whether a broker can be used, what it is, how fast a message comes back, and what is wrong, in words."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from math import ceil
from time import perf_counter
from typing import TYPE_CHECKING, Final

from backplane.broadcaster import SupportsDescribe
from backplane.broker.registry import broadcaster_from_url
from backplane.channels import validate_channel
from backplane.core import Backplane
from backplane.errors import (
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    PublishError,
    PublishOutcomeUnknownError,
    SubscribeError,
)
from backplane.message import Gap
from backplane.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection

    from backplane.broadcaster import Broadcaster, Capabilities
    from backplane.fanout.subscription import Subscription
    from backplane.message import All, Position

__all__ = ["Diagnosis", "diagnose", "reach_in_words", "return_in_words", "size_in_words"]

_RETURN_SECONDS: Final = 5.0
_DESCRIBE_SECONDS: Final = 2.0

_REACH: Final = {"process": "this process", "host": "the processes of this host", "network": "every host"}
_RETURN: Final = {
    "delivered": "handed to every subscriber",
    "sent": "it is written towards the server",
    "accepted": "the server has answered",
    "stored": "the server has stored it",
}


def reach_in_words(capabilities: Capabilities) -> str:
    """Return how far a message gets: `every host`."""
    return _REACH[capabilities.reach]


def return_in_words(capabilities: Capabilities) -> str:
    """Return what is certain when `publish` returns: `the server has answered`."""
    words = _RETURN[capabilities.publish_returns]
    if (capabilities.reach, capabilities.publish_returns) == ("host", "delivered"):
        return f"{words} here, and to the kernel for each peer"
    return words


def size_in_words(size_bytes: int) -> str:
    """Return a size as a person writes it, and exactly: `16 MiB`, `1 MB`, `1,000,001 bytes`."""
    for unit, bytes_of_unit in (("MiB", 1024 * 1024), ("KiB", 1024), ("MB", 1_000_000), ("kB", 1_000)):
        if size_bytes and size_bytes % bytes_of_unit == 0:
            return f"{size_bytes // bytes_of_unit:,} {unit}"
    return f"{size_bytes:,} byte{'' if size_bytes == 1 else 's'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found out about a broker; where something is wrong, what was found out before.

    Attributes:
        url: Where it is, with the password masked.
        problem: What is wrong, in words and with a way out where one is known; `None` where all is well.
        broker: What it says it is; `None` where it could not be asked.
        capabilities: What its adapter can do.
        connect_seconds: How long the link took to open.
        round_trips_seconds: How long each message took, from the call of `publish` until that had returned and the
            message was back.
    """

    url: str
    problem: str | None = None
    broker: str | None = None
    capabilities: Capabilities
    connect_seconds: float | None = None
    round_trips_seconds: tuple[float, ...] = ()

    def round_trip_percentile(self, percent: float) -> float:
        """Return the round trip, in seconds, that `percent` of the messages did not exceed (nearest rank).

        Raises:
            ValueError: No message made the round trip.
        """
        if not self.round_trips_seconds:
            raise ValueError("no message made the round trip")
        rank = ceil(percent / 100 * len(self.round_trips_seconds))
        return sorted(self.round_trips_seconds)[max(rank, 1) - 1]


async def diagnose(
    url: str, *, channel: str | None = None, messages: int = 100, on_progress: Callable[[str], None] = lambda _: None
) -> Diagnosis:
    """Connect to a broker, ask it what it is, and send messages to oneself, one after the other.

    One try, with no back-off: what is wrong is said at once. Cancelling leaves nothing behind.

    Args:
        url: The broker.
        channel: Where to send; its subscribers see the messages. Defaults to a random one that nobody hears.
        messages: How many.
        on_progress: Told in words what is being done.

    Raises:
        ConfigurationError: The URL is wrong.
        InvalidChannelError: The channel is not legal.
    """
    broadcaster = broadcaster_from_url(url)
    channel = validate_channel(f"backplane-check-{os.urandom(8).hex()}" if channel is None else channel)
    found = Diagnosis(url=str(broadcaster.url), capabilities=broadcaster.capabilities)
    try:
        on_progress(f"connecting to {found.url}")
        started = perf_counter()
        async with _linked(broadcaster):
            seconds = perf_counter() - started
            # Again: what a broker allows can be known only now.
            found = replace(found, connect_seconds=seconds, capabilities=broadcaster.capabilities)
            found = replace(found, broker=await _description(broadcaster))
        return replace(found, round_trips_seconds=await _round_trips(url, channel, messages, on_progress))
    except BrokerError as error:
        return replace(found, problem=_in_words(error, channel))


class _Deaf:
    """A sink that hears nothing: the link is only asked what it leads to."""

    def deliver(self, channel: str, payload: bytes, position: Position | None = None) -> None:
        """Drop it."""

    def gap(self, channels: Collection[str] | All, reason: str) -> None:
        """Drop it."""

    def revoked(self, channels: Collection[str], reason: str) -> None:
        """Drop it."""

    def lost(self, error: BrokerError) -> None:
        """Drop it: what is asked next raises."""


@asynccontextmanager
async def _linked(broadcaster: Broadcaster) -> AsyncGenerator[None]:
    seconds = Settings().start_timeout_seconds
    silent = BrokerUnavailableError(f"no answer from {broadcaster.url} within {seconds:g} s")
    try:
        async with _within(seconds, silent):
            await broadcaster.start(_Deaf())
        yield
    finally:
        await broadcaster.stop()


async def _description(broadcaster: Broadcaster) -> str | None:
    if not isinstance(broadcaster, SupportsDescribe):
        return None
    silent = BrokerError(f"the broker took the link and did not say what it is within {_DESCRIBE_SECONDS:g} s")
    async with _within(_DESCRIBE_SECONDS, silent):
        return await broadcaster.describe()


async def _round_trips(url: str, channel: str, messages: int, on_progress: Callable[[str], None]) -> tuple[float, ...]:
    on_progress(f"joining channel {channel!r}")
    seconds: list[float] = []
    async with Backplane(url) as backplane, backplane.subscribe(channel, when_full="drop_oldest") as heard:
        for number in range(1, messages + 1):
            on_progress(f"message {number} of {messages}, there and back")
            marker = f"backplane check {os.urandom(8).hex()}"
            started = perf_counter()
            await backplane.publish(channel, marker)
            lost = BrokerError(f"message {number} was published and did not come back within {_RETURN_SECONDS:g} s")
            async with _within(_RETURN_SECONDS, lost):
                await _come_back(heard, marker)
            seconds.append(perf_counter() - started)
    return tuple(seconds)


async def _come_back(heard: Subscription, marker: str) -> None:
    async for item in heard:
        if isinstance(item, Gap):
            raise BrokerError(f"the link did not hold during the check: {item.reason}")
        if item.data == marker:  # on a channel of the user's others may speak too
            return
    raise BrokerError("the backplane was stopped during the check")


@asynccontextmanager
async def _within(seconds: float, otherwise: BrokerError) -> AsyncGenerator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise otherwise from None


def _in_words(error: BrokerError, channel: str) -> str:
    """Return what the error says, and what to do where that is plain."""
    for kind, way_out in (
        (BrokerAuthenticationError, "check the user and the password in the URL (@ : / ? # % in it are written %40 …)"),
        (SubscribeError, f"grant channel {channel!r}, or name one that is granted: --channel"),
        (PublishOutcomeUnknownError, "the broker took the message and did not answer: look at its log"),
        (PublishError, f"grant channel {channel!r}, or name one that is granted: --channel"),
        (BrokerUnavailableError, "is the broker running, and does this host reach it?"),
    ):
        if isinstance(error, kind):
            return f"{str(error).rstrip('.')}; {way_out}"
    return str(error)
