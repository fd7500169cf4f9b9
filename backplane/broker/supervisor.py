"""Opens the link to the broker, watches it, and rebuilds it when it is lost.

Everything that makes an adapter dependable is here, once for every broker: the tries at the start, full-jitter
back-off, the sessions, every channel subscribed again in batches after a reconnect, the gap that reports it, the
delivery probe.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from backplane.broadcaster import SupportsLinkCheck, SupportsPrefixes, SupportsResume
from backplane.broker.backoff import Backoff
from backplane.broker.link_state import LinkStatus
from backplane.broker.outage_log import FIRST_LINE_SECONDS, OutageLog
from backplane.broker.prefix_link import PrefixLink
from backplane.broker.probe import MAX_MISSED, DeliveryProbe, SilentLinkError
from backplane.broker.publish_attempt import PublishAttempts
from backplane.broker.session import LinkSession
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError, BrokerUnavailableError
from backplane.journal.events import ADAPTER_FAULT, LINK_SUPERVISOR_FAILED
from backplane.journal.journal import Journal
from backplane.message import ALL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence

    from backplane.broadcaster import Broadcaster
    from backplane.broker.link_state import LinkState, StateChange
    from backplane.fanout.broker_subscriptions import BrokerSubscriptions, Subscribes
    from backplane.fanout.hub import Hub
    from backplane.settings import Settings

__all__ = ["Supervisor"]

logger: Final = logging.getLogger("backplane.broker.supervisor")

# A link that was live for this long was stable: the back-off starts from the beginning after it.
_STABLE_SECONDS: Final = 5.0
# How long an adapter may take to stop.
_STOP_SECONDS: Final = 2.0
_CANCEL_AGAIN_SECONDS: Final = 0.1


class Supervisor:
    """Owns one adapter from start to stop.

    Args:
        broadcaster: The adapter.
        hub: Takes messages and gaps.
        broker_subscriptions: The channels to subscribe to.
        prefixes: The prefixes to subscribe to; `None` where the adapter has no patterns.
        origin: Random bytes of this process; they name the channel of its probe.
        settings: Times and bounds.
        on_state: Called at once with every change of the state; must not raise.
        prepare: Called on every new link before a channel is subscribed. Defaults to nothing.
        link_tasks: What else runs while a link is live, and is cancelled at its end.
        stable_seconds: A link that was live for this long resets the back-off.
        stop_seconds: How long the adapter may take to stop.
        outage_log_seconds: After how long an outage is logged again.

    Attributes:
        status: State of the link, and its present session.
        attempts: Publishes on the link.
        probe: The delivery probe.
        max_payload_bytes: Largest payload of the adapter as of the present link: a server can lower it.
    """

    def __init__(
        self,
        broadcaster: Broadcaster,
        hub: Hub,
        broker_subscriptions: BrokerSubscriptions,
        *,
        prefixes: BrokerSubscriptions | None = None,
        origin: bytes,
        settings: Settings,
        on_state: Callable[[StateChange], None] | None = None,
        prepare: Callable[[], Awaitable[None]] | None = None,
        link_tasks: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
        journal: Journal | None = None,
        stable_seconds: float = _STABLE_SECONDS,
        stop_seconds: float = _STOP_SECONDS,
        outage_log_seconds: float = FIRST_LINE_SECONDS,
    ) -> None:
        self._broadcaster = broadcaster
        self._hub = hub
        self._broker_subscriptions = broker_subscriptions
        self._prefixes = prefixes
        self._prefix_link = PrefixLink(broadcaster if isinstance(broadcaster, SupportsPrefixes) else None)
        self._settings = settings
        self._prepare = prepare
        self._link_tasks = link_tasks
        self._stable_seconds = stable_seconds
        self._stop_seconds = stop_seconds
        self._outage_log_seconds = outage_log_seconds
        self._journal = journal or Journal()
        self._task: asyncio.Task[None] | None = None
        self._outage = OutageLog(first_line_seconds=outage_log_seconds)
        self._was_live = False
        self.probe: DeliveryProbe = DeliveryProbe(
            broadcaster,
            origin=origin,
            wanted=[broker_subscriptions.wanted, () if prefixes is None else prefixes.wanted],
            interval_seconds=settings.probe_interval_seconds,
        )
        self.status: LinkStatus = LinkStatus(LinkSession(hub, self.probe.channel), on_state, self._journal)
        self.attempts: PublishAttempts = PublishAttempts(
            broadcaster, self.status, timeout_seconds=settings.publish_timeout_seconds
        )
        self.max_payload_bytes: int = broadcaster.capabilities.max_payload_bytes

    @property
    def state(self) -> LinkState:
        """State of the link."""
        return self.status.state

    @property
    def generation(self) -> int:
        """How many sessions were tried so far, the present one included."""
        return self.status.generation

    @property
    def is_alive(self) -> bool:
        """Whether the task that keeps the link runs. If it does not, only a new process helps."""
        return self._is_closed or self._task is None or not self._task.done()

    @property
    def _is_closed(self) -> bool:
        return self.status.state == "closed"

    async def start(self) -> None:
        """Open the first link, as the setting `start` decides.

        `strict`: tries again after an error that is retriable, for as long as the settings allow. `lazy`: tries once;
        where that fails the state is `degraded`, and the tries go on in the background.

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
        """Close the link after the publishes in progress, and end the task. Cancelling it leaves no open link."""
        try:
            await self.attempts.settled()
        finally:
            await self._close()

    async def state_changed(self) -> None:
        """Wait for the next change of `state`, or for `wake`."""
        await self.status.changed()

    def wake(self) -> None:
        """Make every `state_changed` that waits return, though the state is the same."""
        self.status.wake()

    async def _close(self) -> None:
        self.status.change("closed", "stopped")
        self.status.session.retired = True
        self._broker_subscriptions.close()
        if self._prefixes is not None:
            self._prefixes.close()
        self.attempts.close()
        try:
            # Retry: if the cancellation coincides with a link failure, TaskGroup raises the failure and drops the
            # CancelledError.
            while self._task is not None and not self._task.done():
                self._task.cancel()
                await asyncio.wait([self._task], timeout=_CANCEL_AGAIN_SECONDS)
        finally:
            await self._stop_broadcaster()

    async def _open_first(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._settings.start_timeout_seconds
        backoff = Backoff(self._settings.max_backoff_seconds)
        failure: BrokerError | None = None
        while True:
            try:
                return await self._open(max(0.0, deadline - asyncio.get_running_loop().time()))
            except BrokerError as error:
                # The last try is cut short by the deadline: the error of an earlier one explains more.
                if failure is None or not isinstance(error, SilentLinkError):
                    failure = error
                pause = backoff.next()
                if not error.retriable or asyncio.get_running_loop().time() + pause >= deadline:
                    raise failure from failure.__cause__
                self._forget_link(error)
                await self._stop_broadcaster()
                await asyncio.sleep(pause)

    async def _try_first(self) -> BrokerError | None:
        try:
            await self._open(self._settings.start_timeout_seconds)
        except BrokerError as error:
            self._degrade(f"started without the broker: {error}")
            return error
        return None

    async def _open(self, seconds: float) -> None:
        session = LinkSession(self._hub, self.probe.channel)
        self.status.begin(session)
        try:
            async with PatientTimeout(seconds):
                await self._connect(session)
        except TimeoutError:
            session.retired = True
            raise SilentLinkError(f"no answer from {self._broadcaster.url} within {seconds:.1f} s") from None
        except BaseException:
            session.retired = True
            raise
        self._was_live = True
        self.max_payload_bytes = self._broadcaster.capabilities.max_payload_bytes
        session.confirm()
        away = f" after {self._outage.seconds:.1f} s" if self.status.state == "degraded" else ""
        self.status.change("live", f"connected to {self._broadcaster.url}{away}")

    async def _connect(self, session: LinkSession) -> None:
        resumed: Collection[str] = ()
        if self._was_live and isinstance(self._broadcaster, SupportsResume):
            resumed = frozenset(self._broker_subscriptions.wanted)
            await self._broadcaster.resume(session, resumed)
        else:
            self._prefix_link.held.clear()
            await self._broadcaster.start(session)
        if self._prepare is not None:
            await self._prepare()
        if self._broker_subscriptions.needs_verified_link or (
            self._prefixes is not None and self._prefixes.needs_verified_link
        ):
            answered = self._broker_subscriptions.link_answered = await self.probe.verify(session)
            if self._prefixes is not None:
                self._prefixes.link_answered = answered
        await self._broker_subscriptions.subscribe_all(self._broadcaster, resumed)
        if self._prefixes is not None:
            await self._prefixes.subscribe_all(self._prefix_link, frozenset(self._prefix_link.held))

    async def _run(self, failure: Exception | None) -> None:
        """Watch the link and rebuild it, until the stop. `failure` is why the first link could not be opened."""
        backoff = Backoff(self._settings.max_backoff_seconds)
        # A test ends the loop here, but the tracer of CPython 3.11 loses a coroutine once one that it awaits is
        # cancelled and returns.
        while not self._is_closed:  # pragma: no branch
            live_since = asyncio.get_running_loop().time()
            error = failure or await self._watch()
            if self._is_closed:
                return
            if failure is None:
                self.status.tally.count_lost(error)
            failure = None
            self._degrade(str(error))
            self._retire_session(error)
            if self._was_stable(self.status.session, error, asyncio.get_running_loop().time() - live_since):
                backoff.reset()
            await self._reopen(backoff)

    def _was_stable(self, session: LinkSession, error: Exception, seconds: float) -> bool:
        # A link on which nothing ever arrived was not stable, however long it took to find that out.
        is_proven = session.received_any or not isinstance(error, SilentLinkError)
        return is_proven and seconds > self._stable_seconds

    async def _watch(self) -> Exception:
        """Run what keeps a live link in order; return why the link ended."""
        session = self.status.session
        error: BaseException = BrokerUnavailableError("the link ended")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._sync_subscriptions(self._broker_subscriptions, self._broadcaster))
                if self._prefixes is not None:
                    group.create_task(self._sync_subscriptions(self._prefixes, self._prefix_link))
                group.create_task(self._periodic_checks())
                if self._broadcaster.capabilities.brokered:
                    group.create_task(self.probe.watch(session))
                for link_task in self._link_tasks:
                    group.create_task(link_task())
                await session.failure
        except* BrokerError as errors:
            error = errors
        except* Exception as errors:  # a fault of an adapter or of this package: logged, and treated as a lost link
            self._journal.log(
                logger,
                ADAPTER_FAULT,
                "unexpected error on the link to %(url)s",
                url=self._broadcaster.url,
                exc_info=errors,
            )
            error = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, Exception)
        return error

    async def _sync_subscriptions(self, subscriptions: BrokerSubscriptions, link: Subscribes) -> None:
        """Keep the broker in line with the wanted channels, or prefixes.

        A subscription without an answer shows that the publish path is dead. Nothing else would: no probe is sent while
        messages arrive, and a process that only receives publishes nothing that could time out.
        """
        settings = self._settings
        seconds = min(2 * settings.probe_interval_seconds, settings.subscribe_timeout_seconds)
        brokered = self._broadcaster.capabilities.brokered
        try:
            await subscriptions.run(link, answer_seconds=seconds if brokered else None)
        except TimeoutError:
            raise SilentLinkError(f"the link is silent: no answer to a subscription within {seconds:g} s") from None

    async def _periodic_checks(self) -> None:
        """Once per probe interval, subscribe again to what was refused, and let the adapter check the link.

        A check without an answer counts like a missed probe: it can use a connection that no probe uses.
        """
        interval = self._settings.probe_interval_seconds
        missed = 0
        while True:
            if not missed:
                await asyncio.sleep(interval)
            self._broker_subscriptions.retry_refused()
            if self._prefixes is not None:
                self._prefixes.retry_refused()
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

    def _retire_session(self, error: Exception) -> None:
        """Ignore further reports of the session, and open a gap on every channel that it had confirmed.

        What it had received after a gap that it found while it resumed is dropped with it, so that gap is opened too.
        """
        session = self.status.session
        session.retired = True
        resumes = self._broadcaster.capabilities.resumes
        self._hub.open_gap(ALL, f"the link to the broker was lost: {error}", resumed=resumes)
        for channels, reason in session.unreported_gaps:
            self._hub.open_gap(channels, reason, "adapter")
        self._forget_link(error)

    def _forget_link(self, error: Exception) -> None:
        ended = not isinstance(error, SilentLinkError)
        self._broker_subscriptions.forget_link(ended=ended)
        if self._prefixes is not None:
            self._prefixes.forget_link(ended=ended)

    async def _reopen(self, backoff: Backoff) -> None:
        """Try to open the link until it is live, or until the stop."""
        while not self._is_closed:
            # Suspend before any other await: messages delivered to a retired session are discarded.
            await self._stop_broadcaster(suspend=self._was_live)
            await asyncio.sleep(backoff.next())
            try:
                return await self._open(self._settings.start_timeout_seconds)
            except Exception as error:  # of the broker, or a fault of the adapter: either may be gone at the next try
                self._outage.log(error, self._broadcaster.url)
                self._retire_session(error)

    async def _stop_broadcaster(self, *, suspend: bool = False) -> None:
        try:
            async with PatientTimeout(self._stop_seconds):
                if suspend and isinstance(self._broadcaster, SupportsResume):
                    await self._broadcaster.suspend()
                else:
                    await self._broadcaster.stop()
        except Exception as error:  # a fault of the adapter; the next start must be tried all the same
            self._journal.log(
                logger,
                ADAPTER_FAULT,
                "the adapter of %(url)s failed to stop",
                url=self._broadcaster.url,
                exc_info=error,
            )

    def _degrade(self, reason: str) -> None:
        if self.status.state != "degraded":
            self._outage = OutageLog(first_line_seconds=self._outage_log_seconds)
        self.status.change("degraded", reason)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            words = "the supervisor of the link failed, nothing is delivered any more"
            self._journal.log(logger, LINK_SUPERVISOR_FAILED, words, exc_info=error)
            self.status.change("degraded", f"the supervisor of the link failed: {error!r}")
