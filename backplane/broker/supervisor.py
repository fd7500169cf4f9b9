"""One owner per broker link: it opens the link, watches it, and rebuilds it.

What makes an adapter dependable meets here, once for every broker: the tries at the start, full-jitter back-off, the
generation of the link, every channel again in batches after a reconnect, the gap that tells of it, the delivery probe.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from backplane.broadcaster import SupportsLinkCheck, SupportsResume
from backplane.broker.probe import MAX_MISSED, DeliveryProbe, SilentLinkError
from backplane.broker.publisher import Publisher
from backplane.broker.session import LinkSession
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError, BrokerUnavailableError
from backplane.message import ALL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

    from backplane.broadcaster import Broadcaster
    from backplane.fanout.broker_subscriptions import BrokerSubscriptions
    from backplane.fanout.hub import Hub
    from backplane.settings import Settings

__all__ = ["LinkState", "StateChange", "Supervisor"]

logger = logging.getLogger("backplane.broker.supervisor")

LinkState = Literal["starting", "live", "degraded", "closed"]
"""`live`: the broker answers, and every wanted channel is subscribed but those that it refused or has given no final
answer on, which are asked for again. `degraded`: the link is lost and being rebuilt."""

_FIRST_BACKOFF_SECONDS: Final = 0.1
# A link that stood this long was a good one: the next back-off starts from the beginning.
_STABLE_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 2.0
_CANCEL_AGAIN_SECONDS: Final = 0.1
# An outage that lasts is reported once more in this time, not at every try.
_OUTAGE_LOG_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """The link to the broker changed its state.

    Attributes:
        old: How it was.
        new: How it is.
        generation: Which link this is about: how many were tried so far.
        reason: Why, in words, for a log. Holds no password.
    """

    old: LinkState
    new: LinkState
    generation: int
    reason: str


class Supervisor:
    """Owns one adapter from start to stop.

    Args:
        broadcaster: The adapter.
        hub: Where messages and gaps go.
        interest: Which channels are wanted.
        origin: Random bytes of this process; they name its probe channel.
        settings: Times and bounds.
        on_state: Told of every change of the state, at once; must not raise.

    Attributes:
        state: How the link is.
        link: The present link.
        generation: How many links were tried so far, the present one included.
        probe: The delivery probe.
        max_payload_bytes: Largest payload of the adapter, as it was when the link was made: a server can have a say.
    """

    def __init__(
        self,
        broadcaster: Broadcaster,
        hub: Hub,
        broker_subscriptions: BrokerSubscriptions,
        *,
        origin: bytes,
        settings: Settings,
        on_state: Callable[[StateChange], None] | None = None,
    ) -> None:
        self._broadcaster = broadcaster
        self._hub = hub
        self._broker_subscriptions = broker_subscriptions
        self._settings = settings
        self.probe = DeliveryProbe(
            broadcaster,
            origin=origin,
            wanted=broker_subscriptions.wanted,
            interval_seconds=settings.probe_interval_seconds,
        )
        self._on_state = on_state
        self._changed = asyncio.Event()
        self.link = LinkSession(hub, self.probe.channel)
        self._task: asyncio.Task[None] | None = None
        self._outage = _Outage()
        self._publisher = Publisher(broadcaster, self, timeout_seconds=settings.publish_timeout_seconds)
        self._rebuilding = False
        broker_subscriptions.on_confirmed = hub.report_gaps
        broker_subscriptions.on_refused = hub.refuse
        broker_subscriptions.on_overdue = hub.doubt
        self.state: LinkState = "starting"
        self.generation = 0
        self.max_payload_bytes = broadcaster.capabilities.max_payload_bytes

    async def start(self) -> None:
        """Open the first link, in the way the setting `start` says.

        `strict`: tries again after an error that is retriable, for as long as the settings say. `lazy`: tries once, and
        where that fails comes up degraded and goes on trying.

        Raises:
            BrokerError: The last error, when time is up; at once where another try cannot help. Only when `strict`.
        """
        failure: BrokerError | None = None
        try:
            if self._settings.start == "lazy":
                failure = await self._try_first()
            else:
                await self._open_first()
        except BaseException:
            await self._stop_broadcaster()
            raise
        self._task = asyncio.create_task(self._run(failure), name="backplane-supervisor")
        self._task.add_done_callback(self._task_ended)

    async def stop(self) -> None:
        """Close the link and end its owner, behind the publishes in flight. Cancelling it leaves no open link."""
        try:
            await self._publisher.settled()
        finally:
            await self._close()

    async def _close(self) -> None:
        self._set_state("closed", "stopped")
        self.link.retired = True
        self._broker_subscriptions.close()
        self._publisher.close()
        try:
            # More than once: a cancellation that meets a loss is swallowed by the task group that reports the loss.
            while self._task is not None and not self._task.done():
                self._task.cancel()
                await asyncio.wait([self._task], timeout=_CANCEL_AGAIN_SECONDS)
        finally:
            await self._stop_broadcaster()

    async def state_changed(self) -> None:
        """Wait for the next change of `state`."""
        await self._changed.wait()

    def wake(self) -> None:
        """Let everyone who waits for a change look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def is_alive(self) -> bool:
        """Whether someone looks after the link. If not, only a new process helps."""
        return self._closed or self._task is None or not self._task.done()

    def publish(self, channel: str, payload: bytes, *, wait: bool = True) -> Coroutine[Any, Any, None]:
        """Publish once the link is live; without `wait` only if it is. See `Publisher.publish`."""
        return self._publisher.publish(channel, payload, wait=wait)

    @property
    def _closed(self) -> bool:
        return self.state == "closed"

    async def _open_first(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._settings.start_timeout_seconds
        backoff = _Backoff(self._settings.max_backoff_seconds)
        failure: BrokerError | None = None
        while True:
            try:
                return await self._open(max(0.0, deadline - asyncio.get_running_loop().time()))
            except BrokerError as error:
                if failure is None or not isinstance(error, SilentLinkError):
                    failure = error  # that the last try was cut short explains nothing
                pause = backoff.next()
                if not error.retriable or asyncio.get_running_loop().time() + pause >= deadline:
                    raise failure from failure.__cause__
                self._broker_subscriptions.forget_link(ended=not isinstance(error, SilentLinkError))
                await self._stop_broadcaster()
                await asyncio.sleep(pause)

    async def _try_first(self) -> BrokerError | None:
        try:
            await self._open(self._settings.start_timeout_seconds)
        except BrokerError as error:
            self._set_state("degraded", f"started without the broker: {error}")
            return error
        return None

    async def _open(self, seconds: float) -> None:
        self.link = LinkSession(self._hub, self.probe.channel)
        self.generation += 1
        try:
            async with PatientTimeout(seconds):
                await self._connect()
        except TimeoutError:
            self.link.retired = True
            raise SilentLinkError(f"no answer from {self._broadcaster.url} within {seconds:.1f} s") from None
        except BaseException:
            self.link.retired = True
            raise
        self._rebuilding = True
        self.max_payload_bytes = self._broadcaster.capabilities.max_payload_bytes
        self.link.confirm()
        away = f" after {self._outage.seconds:.1f} s" if self.state == "degraded" else ""
        self._set_state("live", f"connected to {self._broadcaster.url}{away}")

    async def _connect(self) -> None:
        resumed: Collection[str] = ()
        if self._rebuilding and isinstance(self._broadcaster, SupportsResume):
            resumed = frozenset(self._broker_subscriptions.wanted)
            await self._broadcaster.resume(self.link, resumed)
        else:
            await self._broadcaster.start(self.link)
        if self._broker_subscriptions.needs_proof:
            self._broker_subscriptions.proved = await self.probe.prove(self.link)
        await self._broker_subscriptions.subscribe_all(self._broadcaster, resumed)

    async def _run(self, failure: Exception | None) -> None:
        backoff = _Backoff(self._settings.max_backoff_seconds)
        while not self._closed:
            since = asyncio.get_running_loop().time()
            error = failure or await self._watch()
            failure = None
            if self._closed:
                return
            self._set_state("degraded", str(error))
            self._retire_link(error)
            if self._was_stable(self.link, error, asyncio.get_running_loop().time() - since):
                backoff.reset()
            await self._reopen(backoff)

    def _was_stable(self, link: LinkSession, error: Exception, seconds: float) -> bool:
        # A link that never carried anything is no good one, however long it took to find that out.
        proved = link.carried or not isinstance(error, SilentLinkError)
        return proved and seconds > _STABLE_SECONDS

    async def _watch(self) -> Exception:
        """Return why the link ended."""
        error: BaseException = BrokerUnavailableError("the link ended")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._sync_subscriptions())
                group.create_task(self._periodic_checks())
                if self._broadcaster.capabilities.brokered:
                    group.create_task(self.probe.watch(self.link))
                await self.link.ended
        except* BrokerError as errors:
            error = errors
        except* Exception as errors:  # a fault of an adapter or of ours: loud, and healed like a lost link
            logger.exception("unexpected error on the link to %s", self._broadcaster.url)
            error = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, Exception)
        return error

    async def _sync_subscriptions(self) -> None:
        """Keep the broker in line with what is wanted; a subscription without an answer shows that nothing gets out.

        No probe is sent while others' messages come in, and who only listens publishes nothing that could time out.
        """
        settings = self._settings
        seconds = min(2 * settings.probe_interval_seconds, settings.subscribe_timeout_seconds)
        brokered = self._broadcaster.capabilities.brokered
        try:
            await self._broker_subscriptions.run(self._broadcaster, answer_seconds=seconds if brokered else None)
        except TimeoutError:
            raise SilentLinkError(f"the link is silent: no answer to a subscription within {seconds:g} s") from None

    def _retire_link(self, error: Exception) -> None:
        """Hear nothing more of the link, and open a gap on every channel it had confirmed."""
        self.link.retired = True
        resumes = self._broadcaster.capabilities.resumes
        self._hub.open_gap(ALL, f"the link to the broker was lost: {error}", bridged=resumes)
        self._broker_subscriptions.forget_link(ended=not isinstance(error, SilentLinkError))

    async def _reopen(self, backoff: _Backoff) -> None:
        while not self._closed:
            # Nothing is awaited before it: what a retired link hears is lost.
            await self._stop_broadcaster(suspend=self._rebuilding)
            await asyncio.sleep(backoff.next())
            try:
                return await self._open(self._settings.start_timeout_seconds)
            except Exception as error:  # of a broker, or a fault of an adapter; both are tried again
                self._outage.log(error, f"still no link to {self._broadcaster.url}")
                self._retire_link(error)

    async def _stop_broadcaster(self, *, suspend: bool = False) -> None:
        try:
            async with PatientTimeout(_STOP_SECONDS):
                if suspend and isinstance(self._broadcaster, SupportsResume):
                    await self._broadcaster.suspend()
                else:
                    await self._broadcaster.stop()
        except Exception:  # a third party's adapter; the next start must be tried all the same
            logger.exception("the adapter of %s failed to stop", self._broadcaster.url)

    async def _periodic_checks(self) -> None:
        """Each probe interval: ask again for what was refused, and whether the link still leads to the right place.

        A check without an answer counts like a missed probe: it may ask over a connection that no probe uses.
        """
        interval = self._settings.probe_interval_seconds
        missed = 0
        while True:
            if not missed:
                await asyncio.sleep(interval)
            self._broker_subscriptions.retry_refused()
            if not isinstance(self._broadcaster, SupportsLinkCheck):
                continue
            try:
                async with PatientTimeout(interval):
                    await self._broadcaster.check()
                missed = 0
            except TimeoutError:
                missed += 1
                if missed == MAX_MISSED:
                    raise SilentLinkError(f"the link is silent: {MAX_MISSED} checks got no answer") from None

    def _task_ended(self, owner: asyncio.Task[None]) -> None:
        if not owner.cancelled() and (error := owner.exception()) is not None:
            logger.critical("the owner of the link died, nothing will be delivered any more", exc_info=error)
            self._set_state("degraded", f"the owner of the link died: {error!r}")

    def _set_state(self, state: LinkState, why: str) -> None:
        if state == self.state:
            return
        change = StateChange(old=self.state, new=state, generation=self.generation, reason=why)
        if state == "degraded":
            self._outage = _Outage()
        # What is visible when it begins must be visible when it ends.
        level = logging.WARNING if state == "degraded" or (self.state, state) == ("degraded", "live") else logging.INFO
        logger.log(level, "%s -> %s (generation %d): %s", self.state, state, self.generation, why)
        self.state = state
        self.wake()
        if self._on_state is not None:
            self._on_state(change)


class _Outage:
    """The present outage, as the log shows it: a new kind of error at once, the same ones again more and more rarely.

    The first error of a plain outage is in the line that reports the loss.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._seen: set[type[Exception]] = {BrokerUnavailableError, SilentLinkError}
        self._next_line_seconds = _OUTAGE_LOG_SECONDS
        self._tries = 0

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return self._loop.time() - self._began_at

    def log(self, error: Exception, what: str) -> None:
        """Log a try that failed, or keep it for the next line."""
        self._tries += 1
        is_new = type(error) not in self._seen
        if not is_new and self.seconds < self._next_line_seconds:
            return logger.debug("%s: %s", what, error)
        self._seen.add(type(error))
        while self.seconds >= self._next_line_seconds:
            self._next_line_seconds *= 2
        fault = None if isinstance(error, BrokerError) else error  # one of an adapter, which a traceback helps to find
        logger.warning("%s after %.0f s, tries: %d: %s", what, self.seconds, self._tries, error, exc_info=fault)


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
