"""The part that all mirrors share: what a `Source` reads is passed on to the clients of the channels that it is for.

Every worker can read the source by itself (`LocalMirror`), or one reads and publishes for all (`shared_mirror`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backplane.broadcaster import Broadcaster, BrokerUrl, Capabilities, Options
from backplane.errors import (
    BrokerError,
    BrokerUnavailableError,
    LifecycleError,
    PublishError,
    PublishOutcomeUnknownError,
)
from backplane.message import ALL

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator

    from backplane import Backplane
    from backplane.broadcaster import Sink

    # Returns the channel for what names a message there, or `None` for one that has none.
    ToChannel = Callable[[str], str | None]
    OnMissing = Callable[[str], Awaitable[object]]

logger = logging.getLogger("mirror")

_MAX_PAUSE_SECONDS = 10.0
_ALL_IN_ONE_PASS = 100


@dataclass(frozen=True, slots=True)
class Missing:
    """Messages of the source may be missing here."""

    reason: str


Item = tuple[str, Any] | Missing
"""What names a message there, its subject, topic or key, and its payload: bytes, text or anything JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Messages of others.

    Attributes:
        url: The server. Errors and logs mask its password.
        topic: What is read there.
        read: Connects, once and without retries of its own. Entered when everything that is published from then on will
            be read; the iteration raises or ends when the connection is lost.
        resumes: Whether it goes on where it was before a lost connection. To ask for the next message confirms the one
            before then.
    """

    url: str
    topic: str
    read: Callable[[], AbstractAsyncContextManager[AsyncIterator[Item]]]
    resumes: bool = False

    def __str__(self) -> str:
        return f"{self.topic} of {BrokerUrl.parse(self.url)}"


class LocalMirror(Broadcaster):
    """A source as the broker of a `Backplane` of its own: `Backplane(LocalMirror(source))`.

    Each worker reads the source and delivers to its own clients, so nothing is published twice, and there is no leader.
    The core supervises it like every broker: it connects again with back-off, ends with the lifespan, and notifies
    the clients of a gap after a lost connection. A publish to it is refused.

    Args:
        source: What is read.
        channel: The channel of each message. Defaults to what names it there.
    """

    def __init__(self, source: Source, channel: ToChannel = str) -> None:
        super().__init__(BrokerUrl.parse(source.url), Options())
        self._source = source
        self._to_channel = channel
        self._channels = set[str]()
        self._prefixes = set[str]()
        self._skips = _Skips(source)
        self._reading: asyncio.Task[None] | None = None

    @property
    def capabilities(self) -> Capabilities:
        """Nothing is published here, so nothing can be probed: each source detects a silent connection."""
        return Capabilities(
            brokered=False, reach="network", publish_returns="sent", max_payload_bytes=2**24, patterns=True
        )

    async def start(self, sink: Sink) -> None:
        """Connect, once."""
        opened = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(sink, opened))
        try:
            await opened
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Disconnect."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.wait([reading])
        self._channels.clear()
        self._prefixes.clear()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Refuse: what is here belongs to others."""
        raise PublishError(f"a mirror of {self._source} only reads", adapter="mirror")

    async def subscribe(self, channels: Collection[str]) -> None:
        """Deliver `channels` from now on."""
        self._channels.update(channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Deliver `channels` no more."""
        self._channels.difference_update(channels)

    async def subscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Deliver every channel that begins with one of `prefixes` from now on: for `feed.subscribe("prices.*")`."""
        self._prefixes.update(prefixes)

    async def unsubscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Deliver channels because of `prefixes` no more."""
        self._prefixes.difference_update(prefixes)

    async def _read(self, sink: Sink, opened: asyncio.Future[None]) -> None:
        """Connect, resolve `opened`, and deliver until the connection is lost."""
        reason: object = "it has ended"
        try:
            async with self._source.read() as items:
                if not opened.done():
                    opened.set_result(None)
                async for item in items:
                    self._deliver(item, sink)
                    if self._skips.seen % _ALL_IN_ONE_PASS == 0:
                        await asyncio.sleep(0)  # a source that is never empty must not keep the event loop
        except Exception as error:
            reason = error
        lost = _failure(self._source, reason)
        if opened.done():
            sink.lost(lost)
        else:
            opened.set_exception(lost)

    def _deliver(self, item: Item, sink: Sink) -> None:
        if isinstance(item, Missing):
            return sink.gap(ALL, f"{self._source}: {item.reason}")
        with self._skips:
            channel = self._to_channel(item[0])
            if channel is None:
                return
            if channel in self._channels or channel.startswith(tuple(self._prefixes)):
                data = _data(item[1])
                payload = data if isinstance(data, bytes | str) else json.dumps(data)
                sink.deliver(channel, payload.encode() if isinstance(payload, str) else payload)


@asynccontextmanager
async def shared_mirror(
    backplane: Backplane,
    source: Source,
    channel: ToChannel = str,
    on_missing: OnMissing | None = None,
) -> AsyncGenerator[None]:
    """Publish what a source gives to one worker, to the clients of all: for a consumer group, a queue, a shared topic.

    One message after the other, each until it is published, so the order stays. One whose publish has an unknown
    outcome is published again: at least once. One that cannot be published at all is skipped.

    Args:
        backplane: The application's, started.
        source: What is read. Entered by each worker: the server decides which one gets a message.
        channel: The channel of each message. Defaults to what names it there.
        on_missing: Called with the reason where messages may be missing: after a lost connection, unless the source
            resumes, and where the source reports it. If it raises, it is called again. Defaults to a line in the log.
    """
    publishing = asyncio.create_task(_publish_all(backplane, source, channel, on_missing))
    try:
        yield
    finally:
        publishing.cancel()
        await asyncio.wait([publishing])


async def _publish_all(
    backplane: Backplane,
    source: Source,
    to_channel: ToChannel,
    on_missing: OnMissing | None,
) -> None:
    skips, pauses, missing = _Skips(source), _pauses(), list[str]()
    while True:
        reason: object = "it has ended"
        try:
            async with source.read() as items:
                while missing:  # also what was missed when this failed the last time
                    await _report(source, missing[0], on_missing)
                    missing.pop(0)
                async for item in items:
                    if isinstance(item, Missing):
                        missing.append(item.reason)
                        await _report(source, item.reason, on_missing)
                        missing.pop()
                        continue
                    with skips:
                        if (channel := to_channel(item[0])) is not None:
                            await _publish(backplane, source, channel, _data(item[1]))
                    pauses = _pauses()
        except LifecycleError:  # the backplane has stopped
            return
        except Exception as error:
            reason = error
        if not source.resumes and not missing:
            missing.append("the connection was lost")
        pause = next(pauses)
        logger.warning("%s; again in %.1f s", _failure(source, reason), pause)
        await asyncio.sleep(pause)


async def _publish(backplane: Backplane, source: Source, channel: str, data: object) -> None:
    """Publish, and try again for as long as the broker of the backplane is away."""
    for pause in _pauses():
        try:
            await backplane.publish(channel, data)
            return
        except BrokerError as error:
            if not (error.retriable or isinstance(error, PublishOutcomeUnknownError)):
                raise
            logger.warning("a message of %s is not published yet, again in %.1f s: %s", source, pause, error)
        await asyncio.sleep(pause)


async def _report(source: Source, reason: str, on_missing: OnMissing | None) -> None:
    logger.warning("messages of %s may be missing: %s", source, reason)
    if on_missing is not None:
        await on_missing(f"{source}: {reason}")


class _Skips:
    """A block in which a message that cannot be passed on is skipped, and logged: the 1st, 2nd, 4th, 8th of them."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._skipped = 0
        self.seen = 0

    def __enter__(self) -> None:
        self.seen += 1

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if not isinstance(error, Exception) or isinstance(error, LifecycleError):
            return False
        self._skipped += 1
        if self._skipped & (self._skipped - 1) == 0:
            logger.warning("skipped a message of %s (%d so far): %r", self._source, self._skipped, error)
        return True


def _data(payload: Any) -> Any:
    """Return bytes that are text as text: a browser gets them as text then, and not as a blob."""
    if not isinstance(payload, bytes | bytearray):
        return payload
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return bytes(payload)


def _failure(source: Source, reason: object) -> BrokerError:
    """Return the error that names the source. A `BrokerError` is final at the start, as in an adapter."""
    if isinstance(reason, BrokerError):
        return BrokerError(f"{source} cannot be read: {reason}", adapter="mirror", retriable=reason.retriable)
    words = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else reason
    return BrokerUnavailableError(f"{source} cannot be read: {words}", adapter="mirror")


def _pauses() -> Iterator[float]:
    """Pauses before each new try: up to twice as long each time, and random, so that workers do not come together."""
    bound = 0.1
    while True:
        yield random.uniform(bound / 2, bound)  # noqa: S311  # no secret
        bound = min(2 * bound, _MAX_PAUSE_SECONDS)
