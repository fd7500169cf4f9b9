"""One owner per broker link: it opens the link, watches it, and rebuilds it.

All that makes an adapter dependable lives here, once for every broker: the tries at the start, full-jitter back-off,
the generation of the link, every channel again in batches after a reconnect, the gap that tells of it, and the delivery
probe.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final, Literal

from backplane.broadcaster import Resumes
from backplane.channels import RESERVED_PREFIX
from backplane.errors import (
    BrokerError,
    BrokerUnavailableError,
    ClosedError,
    PublishError,
    PublishOutcomeUnknownError,
    SubscribeError,
)
from backplane.message import ALL

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.broadcaster import Broadcaster
    from backplane.hub import Hub
    from backplane.interest import Interest
    from backplane.message import All, Position
    from backplane.settings import Settings

__all__ = ["LinkState", "Supervisor"]

logger = logging.getLogger("backplane.supervision")

LinkState = Literal["starting", "live", "degraded", "closed"]
"""`live`: the broker answers and every wanted channel is subscribed. `degraded`: the link is lost and being rebuilt."""

_FIRST_BACKOFF_SECONDS: Final = 0.1
# A link that stood this long was a good one: the next back-off starts from the beginning.
_STABLE_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 2.0
_CANCEL_AGAIN_SECONDS: Final = 0.1


class Supervisor:
    """Owns one adapter from start to stop.

    Args:
        broadcaster: The adapter.
        hub: Where messages and gaps go.
        interest: Which channels are wanted.
        origin: Random bytes of this process; they name its probe channel.
        settings: Times and bounds.

    Attributes:
        state: How the link is.
        generation: How many links were tried so far, the present one included.
        round_trip_seconds: What the last delivery probe took, there and back; `None` before the first.
    """

    def __init__(
        self, broadcaster: Broadcaster, hub: Hub, interest: Interest, *, origin: bytes, settings: Settings
    ) -> None:
        self._broadcaster = broadcaster
        self._hub = hub
        self._interest = interest
        self._settings = settings
        self._probe_channel = f"{RESERVED_PREFIX}probe/{origin.hex()}"
        self._changed = asyncio.Event()
        self._link = _Link(hub, self._probe_channel)
        self._owner: asyncio.Task[None] | None = None
        self._publish_turn = asyncio.Lock()
        self._rebuilding = False
        interest.on_confirmed = hub.tell_gaps
        interest.on_refused = hub.refuse
        self.state: LinkState = "starting"
        self.generation = 0
        self.round_trip_seconds: float | None = None

    async def start(self) -> None:
        """Open the first link; tries again after an error that is retriable, for as long as the settings say.

        Raises:
            BrokerError: The last error, when time is up; at once where another try cannot help.
        """
        try:
            await self._open_first()
        except BaseException:
            await self._stop_broadcaster()
            raise
        self._owner = asyncio.create_task(self._own(), name="backplane-supervisor")
        self._owner.add_done_callback(self._owner_ended)

    async def stop(self) -> None:
        """Close the link and end its owner. Cancelling it leaves no open link."""
        self._set_state("closed", "stopped")
        self._link.retired = True
        self._interest.close()
        try:
            # More than once: a cancellation that meets a loss is swallowed by the task group that reports the loss.
            while self._owner is not None and not self._owner.done():
                self._owner.cancel()
                await asyncio.wait([self._owner], timeout=_CANCEL_AGAIN_SECONDS)
        finally:
            await self._stop_broadcaster()

    async def state_changed(self) -> None:
        """Wait for the next change of `state`."""
        await self._changed.wait()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish once the link is live.

        Raises:
            BrokerUnavailableError: The link did not return in time; certainly not published.
            PublishOutcomeUnknownError: The broker did not answer in time.
            PublishError: The broker refused it.
        """
        seconds = self._settings.publish_timeout_seconds
        sent = False
        try:
            async with asyncio.timeout(seconds):
                while True:
                    link = await self._live_link()
                    try:
                        sent = True
                        return await self._broadcaster.publish(channel, payload)
                    except BrokerUnavailableError:
                        sent = False
                        if not link.is_over:
                            raise
        except TimeoutError:
            if sent:
                raise PublishOutcomeUnknownError(
                    f"no answer within {seconds:g} s; it may have been published"
                ) from None
            raise BrokerUnavailableError(
                f"{self._broadcaster.url} has been away for {seconds:g} s; not published"
            ) from None

    @property
    def _closed(self) -> bool:
        return self.state == "closed"

    async def _live_link(self) -> _Link:
        async with self._publish_turn:  # publishes that waited for the link go on in the order of their calls
            while self.state != "live" or self._link.is_over:
                if self._closed:
                    raise ClosedError("this Backplane has been stopped")
                await self.state_changed()
            return self._link

    async def _open_first(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._settings.start_timeout_seconds
        backoff = _Backoff(self._settings.max_backoff_seconds)
        while True:
            try:
                return await self._open(max(0.0, deadline - asyncio.get_running_loop().time()))
            except BrokerError as error:
                pause = backoff.next()
                if not error.retriable or asyncio.get_running_loop().time() + pause >= deadline:
                    raise
                await self._stop_broadcaster()
                await asyncio.sleep(pause)

    async def _open(self, seconds: float) -> None:
        self._link = _Link(self._hub, self._probe_channel)
        self.generation += 1
        try:
            async with asyncio.timeout(seconds):
                await self._connect()
        except TimeoutError:
            self._link.retired = True
            raise BrokerUnavailableError(f"no answer from {self._broadcaster.url} within {seconds:.1f} s") from None
        except BaseException:
            self._link.retired = True
            raise
        self._link.confirm()
        self._set_state("live", f"connected to {self._broadcaster.url}")

    async def _connect(self) -> None:
        resumed: Collection[str] = ()
        if self._rebuilding and isinstance(self._broadcaster, Resumes):
            resumed = frozenset(self._interest.wanted)
            await self._broadcaster.resume(self._link, resumed)
        else:
            await self._broadcaster.start(self._link)
        await self._interest.subscribe_all(self._broadcaster, resumed)

    async def _own(self) -> None:
        backoff = _Backoff(self._settings.max_backoff_seconds)
        while not self._closed:
            since = asyncio.get_running_loop().time()
            error = await self._watch()
            if self._closed:
                return
            self._set_state("degraded", str(error))
            self._retire_link(error)
            if asyncio.get_running_loop().time() - since > _STABLE_SECONDS:
                backoff.reset()
            await self._reopen(backoff)

    async def _watch(self) -> Exception:
        """Return why the link ended."""
        error: BaseException = BrokerUnavailableError("the link ended")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._interest.follow(self._broadcaster))
                group.create_task(self._ask_refused_again())
                if self._broadcaster.capabilities.brokered:
                    group.create_task(self._probe())
                await self._link.ended
        except* BrokerError as errors:
            error = errors
        except* Exception as errors:  # a fault of an adapter or of ours: loud, and healed like a lost link
            logger.exception("unexpected error on the link to %s", self._broadcaster.url)
            error = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, Exception)
        return error

    def _retire_link(self, error: Exception) -> None:
        """Hear nothing more of the link, and open a gap on every channel it had confirmed."""
        self._link.retired = True
        if not self._broadcaster.capabilities.resumes:
            self._hub.open_gap(ALL, f"the link to the broker was lost: {error}")
        self._interest.forget_link()

    async def _reopen(self, backoff: _Backoff) -> None:
        self._rebuilding = True
        while not self._closed:
            await self._stop_broadcaster(suspend=True)  # awaits nothing before it: what a retired link hears is lost
            await asyncio.sleep(backoff.next())
            try:
                return await self._open(self._settings.start_timeout_seconds)
            except BrokerError as error:
                logger.info("still no link: %s", error)
                self._retire_link(error)
            except Exception as error:
                logger.exception("unexpected error while connecting to %s", self._broadcaster.url)
                self._retire_link(error)

    async def _stop_broadcaster(self, *, suspend: bool = False) -> None:
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                if suspend and isinstance(self._broadcaster, Resumes):
                    await self._broadcaster.suspend()
                else:
                    await self._broadcaster.stop()
        except Exception:  # a third party's adapter; the next start must be tried all the same
            logger.exception("the adapter of %s failed to stop", self._broadcaster.url)

    async def _ask_refused_again(self) -> None:
        while True:
            await asyncio.sleep(self._settings.probe_interval_seconds)
            self._interest.retry_refused()

    async def _probe(self) -> None:
        """Raise when the link carries nothing back; two tries of half an interval each."""
        interval = self._settings.probe_interval_seconds
        subscribed = False
        missed = 0
        while True:
            if not missed:
                self._link.heard = False
                await asyncio.sleep(interval * random.uniform(0.9, 1.0))  # noqa: S311  # spreads the workers, hides nothing
            if self._link.heard or not self._interest.wanted:
                missed = 0  # what arrives proves the way back; who subscribes to nothing can miss nothing
                continue
            try:
                async with asyncio.timeout(interval / 2):
                    if not subscribed:
                        await self._broadcaster.subscribe([self._probe_channel])
                        subscribed = True
                    await self._send_probe()
                missed = 0
            except TimeoutError:
                missed += 1
                if missed == 2:
                    raise BrokerUnavailableError("the link is silent: two delivery probes did not come back") from None
            except (SubscribeError, PublishError) as error:
                if isinstance(error, PublishOutcomeUnknownError):
                    raise
                logger.warning("no delivery probe, a silent link will go unnoticed: allow channel %s*: %s",
                               RESERVED_PREFIX, error)  # fmt: skip
                return

    async def _send_probe(self) -> None:
        loop = asyncio.get_running_loop()
        sent = loop.time()
        self._link.echo = loop.create_future()
        await self._broadcaster.publish(self._probe_channel, b"")
        await self._link.echo
        self.round_trip_seconds = loop.time() - sent

    def _owner_ended(self, owner: asyncio.Task[None]) -> None:
        if not owner.cancelled() and (error := owner.exception()) is not None:
            logger.critical("the owner of the link died, nothing will be delivered any more", exc_info=error)
            self._set_state("degraded", f"the owner of the link died: {error!r}")

    def _set_state(self, state: LinkState, why: str) -> None:
        if state == self.state:
            return
        level = logging.WARNING if state == "degraded" else logging.INFO
        logger.log(level, "%s -> %s (generation %d): %s", self.state, state, self.generation, why)
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()


class _Link:
    """The sink of one generation: what an adapter reports after its time is not heard."""

    def __init__(self, hub: Hub, probe_channel: str) -> None:
        self.retired = False
        self.heard = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.echo: asyncio.Future[None] | None = None
        self._hub = hub
        self._probe_channel = probe_channel
        self._confirmed = False
        self._early_gaps: list[tuple[Collection[str] | All, str]] = []

    @property
    def is_over(self) -> bool:
        """Whether it was lost, or given up."""
        return self.retired or self.ended.done()

    def deliver(self, channel: str, payload: bytes, position: Position | None = None) -> None:
        if self.retired:
            return
        self.heard = True
        if channel != self._probe_channel:
            self._hub.deliver(channel, payload, position)
        elif self.echo is not None and not self.echo.done():
            self.echo.set_result(None)

    def gap(self, channels: Collection[str] | All, reason: str) -> None:
        if self.retired:
            return
        if self._confirmed:
            self._hub.gap(channels, reason)
        else:  # found while resuming, when the hub holds no channel for confirmed yet
            self._early_gaps.append((channels, reason))

    def confirm(self) -> None:
        """Every wanted channel is confirmed: tell the gaps that were found before."""
        self._confirmed = True
        for channels, reason in self._early_gaps:
            self._hub.gap(channels, reason)
        self._early_gaps.clear()

    def lost(self, error: BrokerError) -> None:
        if not self.retired and not self.ended.done():
            self.ended.set_exception(error)
            self.ended.exception()  # read even when the owner ends first


class _Backoff:
    """Full jitter: evenly between 0 and a bound that doubles up to the cap."""

    def __init__(self, cap_seconds: float) -> None:
        self._cap = cap_seconds
        self._bound = _FIRST_BACKOFF_SECONDS

    def next(self) -> float:
        pause = random.uniform(0, min(self._bound, self._cap))  # noqa: S311  # spreads the workers, hides nothing
        self._bound = min(self._bound * 2, self._cap)
        return pause

    def reset(self) -> None:
        self._bound = _FIRST_BACKOFF_SECONDS
