"""`diagnose`: whether a broker can be used, what it is, how fast a message returns, and what is wrong."""

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
from backplane.fanout.backlog import Backlog
from backplane.message import Gap
from backplane.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection

    from backplane.broadcaster import Broadcaster, Capabilities
    from backplane.fanout.subscription import Subscription
    from backplane.message import All, Place

__all__ = ["Diagnosis", "describe_reach", "describe_return", "diagnose", "format_size", "linked"]

_RETURN_SECONDS: Final = 5.0
_DESCRIBE_SECONDS: Final = 2.0

# One message comes back at a time: what another program publishes meanwhile is of no interest.
_BACKLOG: Final = Backlog(when_full="drop_oldest")

_REACH: Final = {"process": "this process", "host": "the processes of this host", "network": "every host"}
_RETURN: Final = {
    "delivered": "handed to every subscriber",
    "sent": "it is written to the server",
    "accepted": "the server has answered",
    "stored": "the server has stored it",
}


def describe_reach(capabilities: Capabilities) -> str:
    """Return which processes a message reaches: `every host`."""
    return _REACH[capabilities.reach]


def describe_return(capabilities: Capabilities) -> str:
    """Return what is certain once `publish` has returned: `the server has answered`."""
    text = _RETURN[capabilities.publish_returns]
    if (capabilities.reach, capabilities.publish_returns) == ("host", "delivered"):
        return f"{text} here, and to the kernel for each peer"
    return text


def format_size(size_bytes: int) -> str:
    """Return a size in the largest unit that is exact: `16 MiB`, `1 MB`, `1,000,001 bytes`."""
    for unit, bytes_of_unit in (("MiB", 1024 * 1024), ("KiB", 1024), ("MB", 1_000_000), ("kB", 1_000)):
        if size_bytes and size_bytes % bytes_of_unit == 0:
            return f"{size_bytes // bytes_of_unit:,} {unit}"
    return f"{size_bytes:,} byte{'' if size_bytes == 1 else 's'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The result of `diagnose`; where something is wrong, with what was result before that.

    Attributes:
        url: The broker's URL, with the password masked.
        problem: What is wrong, with a hint where there is one; `None` if nothing is.
        broker: How it describes itself; `None` where it could not be asked.
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
    """Connect to a broker, ask what it is, and send messages through it to this process, one after the other.

    One try, without back-off: an error is reported at once. Cancelling leaves no link open.

    Args:
        url: The broker.
        channel: Where to send; its subscribers see the messages. Defaults to a random one without other subscribers.
        messages: How many.
        on_progress: Called with a line about each step.

    Raises:
        ConfigurationError: The URL is wrong.
        InvalidChannelError: The channel is not legal.
    """
    broadcaster = broadcaster_from_url(url)
    channel = validate_channel(f"backplane-check-{os.urandom(8).hex()}" if channel is None else channel)
    result = Diagnosis(url=str(broadcaster.url), capabilities=broadcaster.capabilities)
    try:
        on_progress(f"connecting to {result.url}")
        started = perf_counter()
        async with linked(broadcaster):
            seconds = perf_counter() - started
            # Again: what a broker allows can be known only now.
            result = replace(result, connect_seconds=seconds, capabilities=broadcaster.capabilities)
            result = replace(result, broker=await _description(broadcaster))
        return replace(result, round_trips_seconds=await _round_trips(url, channel, messages, on_progress))
    except BrokerError as error:
        return replace(result, problem=_describe_error(error, channel))


class _NullSink:
    """A sink that ignores every report: the link is only asked to describe the broker."""

    def deliver(self, channel: str, payload: bytes, place: Place | None = None) -> None:
        """Drop it."""

    def gap(self, channels: Collection[str] | All, reason: str) -> None:
        """Drop it."""

    def revoked(self, channels: Collection[str], reason: str) -> None:
        """Drop it."""

    def lost(self, error: BrokerError) -> None:
        """Drop it: the next call raises."""


@asynccontextmanager
async def linked(broadcaster: Broadcaster) -> AsyncGenerator[None]:
    """Open the link of an adapter for the block, within the time that a start has.

    Raises:
        BrokerError: It cannot be opened.
    """
    seconds = Settings().start_timeout_seconds
    silent = BrokerUnavailableError(f"no answer from {broadcaster.url} within {seconds:g} s")
    try:
        async with _timeout(seconds, silent):
            await broadcaster.start(_NullSink())
        yield
    finally:
        await broadcaster.stop()


async def _description(broadcaster: Broadcaster) -> str | None:
    if not isinstance(broadcaster, SupportsDescribe):
        return None
    silent = BrokerError(f"the broker accepted the link and did not describe itself within {_DESCRIBE_SECONDS:g} s")
    async with _timeout(_DESCRIBE_SECONDS, silent):
        return await broadcaster.describe()


async def _round_trips(url: str, channel: str, messages: int, on_progress: Callable[[str], None]) -> tuple[float, ...]:
    on_progress(f"joining channel {channel!r}")
    seconds: list[float] = []
    async with Backplane(url) as backplane, backplane.subscribe(channel, backlog=_BACKLOG, exact=True) as received:
        for number in range(1, messages + 1):
            on_progress(f"message {number} of {messages}")
            marker = f"backplane check {os.urandom(8).hex()}"
            started = perf_counter()
            await backplane.publish(channel, marker)
            lost = BrokerError(f"message {number} was published and did not return within {_RETURN_SECONDS:g} s")
            async with _timeout(_RETURN_SECONDS, lost):
                await _wait_for_marker(received, marker)
            seconds.append(perf_counter() - started)
    return tuple(seconds)


async def _wait_for_marker(received: Subscription, marker: str) -> None:
    async for item in received:
        if isinstance(item, Gap):
            raise BrokerError(f"the link was lost during the check: {item.reason}")
        if item.data == marker:  # a channel that the user named may have other publishers
            return
    raise BrokerError("the backplane was stopped during the check")


@asynccontextmanager
async def _timeout(seconds: float, otherwise: BrokerError) -> AsyncGenerator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise otherwise from None


def _describe_error(error: BrokerError, channel: str) -> str:
    """Return the error's text, with a hint where there is one."""
    for kind, hint in (
        (BrokerAuthenticationError, "check the user and the password in the URL (@ : / ? # % in it are written %40 …)"),
        (SubscribeError, f"grant channel {channel!r}, or name one that is granted: --channel"),
        (PublishOutcomeUnknownError, "the broker received the message and did not answer: see its log"),
        (PublishError, f"grant channel {channel!r}, or name one that is granted: --channel"),
        (BrokerUnavailableError, "is the broker running, does this host reach it, and is this its port?"),
    ):
        if isinstance(error, kind):
            return f"{str(error).rstrip('.')}; {hint}"
    return str(error)
