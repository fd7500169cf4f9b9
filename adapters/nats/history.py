"""The history of channels on NATS: one JetStream stream for each pattern.

A message is published to a subject of the stream, which stores it and republishes it to the plain subject of the
channel: https://docs.nats.io/nats-concepts/jetstream/streams#republish. So every worker receives it as it receives any
other message, also one that knows nothing of the history.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Final
from zlib import crc32

from backplane.adapters.nats.channel_log import ChannelLogs, Session, Stream
from backplane.adapters.nats.channel_order import ChannelOrder
from backplane.adapters.nats.errors import unavailable
from backplane.adapters.nats.jetstream import (
    DUPLICATE_WINDOW_SECONDS,
    NO_STREAM,
    JetStream,
    JetStreamError,
    NoResponderError,
    answer_of,
)
from backplane.adapters.nats.reading import Reading
from backplane.adapters.nats.requests import status_of
from backplane.adapters.nats.subjects import reserved_subjects
from backplane.adapters.nats.sweep import Sweep, worthwhile_start
from backplane.adapters.shared.error_chain import reason_of
from backplane.concurrency.shared_future import outcome_of
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError, BrokerUnavailableError, PayloadTooLargeError, PublishError
from backplane.journal.events import HISTORY_CREATED, HISTORY_LOST, HISTORY_MISFIT, HISTORY_RETRY
from backplane.journal.writing import write
from backplane.message import Position, Receipt

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from backplane.adapters.nats.jetstream import StreamInfo
    from backplane.adapters.nats.link import NatsLink
    from backplane.adapters.nats.options import NatsOptions
    from backplane.adapters.nats.requests import Reply
    from backplane.broadcaster import Recalled
    from backplane.history_rules import HistoryRules

__all__ = ["NatsHistory"]

logger: Final = logging.getLogger("backplane.adapters.nats.history")

_API_SECONDS: Final = 5.0
# Each may have a payload in flight, and a server ends a connection that has 64 MiB to read.
_MAX_RECALLS_AT_ONCE: Final = 32
_RESTORE_SECONDS: Final = 1.0
_NO_RESPONDER: Final = 503
_DUPLICATE_IN_PROCESS: Final = 10158
_TOO_MANY_REQUESTS: Final = 10167
_NANOSECONDS: Final = 1_000_000_000
_FORGETS_KEYS: Final = (
    "; it forgets idempotency keys too early, so a message that is sent again can be published twice: raise its "
    "duplicate_window with 'nats stream edit'"
)


class NatsHistory:
    """Keeps and reads the history, on the link of a `NatsBroadcaster`.

    Args:
        options: Those of the adapter.

    Attributes:
        logs: Which channels have a history.
        order: That of the messages of one channel.
    """

    def __init__(self, options: NatsOptions) -> None:
        self._options = options
        self._streams: dict[str, Stream] = {}
        self._due: dict[Stream, asyncio.Task[StreamInfo]] = {}
        self._restoring: dict[Stream, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._reads = asyncio.Semaphore(_MAX_RECALLS_AT_ONCE)
        self._sweeps: dict[Stream, Sweep | None] = {}  # on the present link
        self._differs: set[str] = set()  # streams of which it is logged that their configuration is another
        self._was_prepared = False
        self.logs: ChannelLogs = ChannelLogs(self._look)
        self.order: ChannelOrder = ChannelOrder()

    async def prepare(self, link: NatsLink, rules: HistoryRules) -> None:
        """Find or create the stream of each pattern. See `SupportsHistory.prepare`."""
        self.logs.end()
        self._sweeps = {}
        jetstream = JetStream(link)
        streams = {
            pattern: known
            if (known := self._streams.get(pattern)) is not None and known.rule == rule
            else Stream(pattern, rule, self._options.prefix)
            for pattern, rule in rules
        }
        self._reads = asyncio.Semaphore(_MAX_RECALLS_AT_ONCE)
        try:
            async with PatientTimeout(_API_SECONDS), asyncio.TaskGroup() as group:
                for stream in streams.values():
                    group.create_task(self._prepare(jetstream, stream))
        except TimeoutError:
            raise unavailable(f"JetStream did not answer within {_API_SECONDS:g} s") from None
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        self._streams, self._was_prepared = streams, True
        self.logs.begin(rules, streams, Session(link))

    async def stop(self) -> None:
        """End what runs; the link is closed."""
        self.logs.end()
        self._sweeps = {}
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def keep(self, link: NatsLink, channel: str, payload: bytes, *, key: bytes | None) -> Receipt:
        """Publish to the stream. See `SupportsHistory.keep`."""
        stream = self._prepared_stream(link, channel)
        subject = stream.subject_of(channel)
        headers = b"" if key is None else b"NATS/1.0\r\nNats-Msg-Id: %b\r\n\r\n" % _message_id(subject, key)
        if len(headers) + len(payload) > link.max_payload_bytes:
            raise PayloadTooLargeError(len(headers) + len(payload), link.max_payload_bytes)
        reply = await self._publish(link, stream, channel, payload, headers)
        if status_of(reply.headers) == _NO_RESPONDER:
            await self._missing(link, stream)
        try:
            answer = answer_of(reply)
        except JetStreamError as error:
            if error.number == _DUPLICATE_IN_PROCESS:
                raise unavailable("a message with the same key is being stored at this moment; try again") from error
            raise PublishError(error.reason, adapter="nats", retriable=error.number == _TOO_MANY_REQUESTS) from error
        epoch, offset = stream.epoch_of(subject), int(answer["seq"])
        if not answer.get("duplicate"):
            return Receipt(position=Position(epoch, offset, crc32(payload)))
        first = await JetStream(link).at(stream, offset)
        check = crc32(first.payload) if first is not None else 0  # of one that is gone: it cannot be resumed anyway
        return Receipt(position=Position(epoch, offset, check), duplicate=True)

    async def recall(
        self, link: NatsLink, channel: str, *, after: Position | None, limit: int, max_bytes: int
    ) -> Recalled:
        """Read from the stream. See `SupportsHistory.recall`."""
        stream = self._prepared_stream(link, channel)
        log, session = self.logs.get(channel), self.logs.session
        if log is not None and log.subscribed_in is not session:
            log = None
        try:
            info = await self._info(link, stream)
            sweep, high = None, info.state.last_seq
            if after is not None and limit and self.logs.session is session:
                sweep = self._sweep_of(link, stream, high)
            if sweep is not None:
                if await sweep.reach(high):
                    info = await self._info(link, stream)
                else:
                    sweep = None
            async with self._reads:
                reading = Reading(JetStream(link), stream, channel, info, self.logs.get(channel), sweep, high)
                recalled = await reading.recall(after, limit, max_bytes)
        except NoResponderError as error:
            self._restore(link, stream)
            raise unavailable(f"the stream {stream.name} has no server at the moment: {error.reason}") from error
        except JetStreamError as error:
            if error.number != NO_STREAM:
                raise
            self._restore(link, stream)
            raise unavailable(f"the stream {stream.name} is missing, and is created again") from error
        if log is not None and self.logs.session is session:
            log.recalled(recalled.top)
        return recalled

    def _sweep_of(self, link: NatsLink, stream: Stream, last: int) -> Sweep | None:
        """Return the sweep of what a stream has stored since the last link; begin it where that is worthwhile."""
        if stream not in self._sweeps:
            received, reached = self.logs.received(stream), self.logs.reached_before(stream)
            start = None if reached is None else worthwhile_start(received.values(), reached=reached, last=last)
            self._sweeps[stream] = (
                None if start is None else Sweep(JetStream(link), stream, start, received, run=self._run_sweep)
            )
        sweep = self._sweeps[stream]
        if sweep is not None and (not sweep.is_usable or last < sweep.reached):
            sweep = self._sweeps[stream] = None  # in the latter case what it has read was lost
        return sweep

    def _run_sweep(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name="backplane-nats-sweep")
        self._own(task)
        return task

    async def _publish(self, link: NatsLink, stream: Stream, channel: str, payload: bytes, headers: bytes) -> Reply:
        await self.order.enter_keep(channel)
        try:
            return (await link.request(stream.subject_of(channel), payload, headers))[0]
        except PublishError as error:
            if "permissions" not in error.reason.lower():
                raise
            raise PublishError(f"{reason_of(error)}; grant publish to {stream.subjects}", adapter="nats") from error
        finally:
            self.order.leave_keep(channel)

    def _prepared_stream(self, link: NatsLink, channel: str) -> Stream:
        session, stream = self.logs.session, self.logs.stream_of(channel)
        if session is None or session.link is not link:
            raise unavailable("the history is not prepared on this link yet")
        if stream is None:
            raise BrokerError(f"no rule gives {channel!r} a history: name it in Backplane(history=...)", adapter="nats")
        return stream

    async def _prepare(self, jetstream: JetStream, stream: Stream) -> None:
        try:
            seen = stream.seen
            self._follow(stream, await self._find_or_create(jetstream, stream), seen)
            # So that a missing permission to read shows at the start.
            await jetstream.at(stream, 1)
            await jetstream.first(stream, stream.subject_of("x"))
            await jetstream.read(stream, stream.subject_of("x"), 1, limit=1, max_bytes=1, by_leader=False)
        except NoResponderError as error:
            if self._was_prepared or jetstream.link.info.jetstream:
                raise
            raise BrokerError(
                f"{jetstream.link.server} has no JetStream, which keeps the history: start it with -js, or "
                "with jetstream {} in its configuration",
                adapter="nats",
            ) from error
        except JetStreamError as error:
            raise BrokerError(f"{error.reason}, for the stream {stream.name}", adapter="nats") from error
        except BrokerError as error:
            if "permissions" not in error.reason.lower():
                raise
            hint = self._to_grant(stream, is_subscription="subscription" in error.reason.lower())
            raise BrokerError(f"{error.reason}; {hint}", adapter="nats") from error

    def _to_grant(self, stream: Stream, *, is_subscription: bool) -> str:
        """Return what a user must be permitted who publishes, subscribes and reads."""
        if is_subscription:
            return f"grant subscribe to {reserved_subjects(self._options.prefix)}"
        calls = ("STREAM.INFO", "STREAM.CREATE", "STREAM.MSG.GET", "DIRECT.GET")
        api = [f"$JS.API.{call}.{stream.name}" for call in calls]
        return f"grant publish to {', '.join((stream.subjects, *api))}"

    async def _find_or_create(self, jetstream: JetStream, stream: Stream) -> StreamInfo:
        try:
            return await jetstream.info(stream)
        except JetStreamError as error:
            if error.number != NO_STREAM:
                raise
        words = "stream %(stream)s, which keeps the history of %(channel)r, is created"
        write(logger, HISTORY_CREATED, words, stream=stream.name, channel=stream.pattern)
        return await jetstream.create(
            stream,
            storage=self._options.history_storage,
            replicas=self._options.history_replicas,
            max_bytes=self._options.history_max_bytes,
        )

    def _follow(self, stream: Stream, info: StreamInfo, seen: int) -> None:
        """Take what the server knows of a stream.

        Args:
            stream: The stream.
            info: The answer.
            seen: `stream.seen` when it was asked.
        """
        config = info.config
        republish = config.republish or {}
        if stream.subjects not in config.subjects or republish.get("dest") != stream.republished_to:
            raise BrokerError(
                f"the stream {stream.name} is not usable: it must have the subjects {stream.subjects!r} and republish "
                f"to {stream.republished_to!r}; correct it by 'nats stream edit', or delete it",
                adapter="nats",
            )
        stream.replicas, stream.allows_direct = config.num_replicas, config.allow_direct
        stream.max_per_subject = config.max_msgs_per_subject if config.max_msgs_per_subject > 0 else 1 << 62
        stream.max_age_seconds = config.max_age / _NANOSECONDS if config.max_age > 0 else float("inf")
        if info.created != stream.created:
            if stream.created:
                words = "stream %(stream)s was deleted and created again: its history begins anew"
                write(logger, HISTORY_LOST, words, stream=stream.name)
            stream.created, stream.seen = info.created, 0
        elif info.state.last_seq < seen:
            words = "stream %(stream)s has lost its newest messages: it ends at %(last)d"
            write(logger, HISTORY_LOST, words, stream=stream.name, last=info.state.last_seq)
            stream.seen = info.state.last_seq
            self.logs.forget_newest(stream)
        stream.reached = info.state.last_seq
        self._compare(stream, info)

    def _compare(self, stream: Stream, info: StreamInfo) -> None:
        """Log once where a stream is configured otherwise than here. It is used as it is: workers must not fight."""
        config, rule = info.config, stream.rule
        wanted = {
            "max_msgs_per_subject": rule.max_messages + 1,
            "max_age": int(max(rule.max_age_seconds, DUPLICATE_WINDOW_SECONDS) * _NANOSECONDS),
            "storage": self._options.history_storage,
            "num_replicas": self._options.history_replicas,
            "duplicate_window": DUPLICATE_WINDOW_SECONDS * _NANOSECONDS,
            "allow_direct": True,
        }
        if self._options.history_max_bytes:
            wanted["max_bytes"] = self._options.history_max_bytes
        others = {name: getattr(config, name) for name, value in wanted.items() if getattr(config, name) != value}
        if others and stream.name not in self._differs:
            self._differs.add(stream.name)
            hint = _FORGETS_KEYS if config.duplicate_window < DUPLICATE_WINDOW_SECONDS * _NANOSECONDS else ""
            ours = {name: wanted[name] for name in others}
            write(
                logger,
                HISTORY_MISFIT,
                "stream %(stream)s, of the channels %(channel)r, is used as it is: it has %(reason)s",
                stream=stream.name,
                channel=stream.pattern,
                reason=f"{others}, and this process is configured for {ours}{hint}",
            )

    def _look(self, stream: Stream) -> None:
        """Ask for a stream that may have been created again."""
        session = self.logs.session
        if session is not None:
            self._info_task(session.link, stream)

    async def _info(self, link: NatsLink, stream: Stream) -> StreamInfo:
        """Return what the server knows of a stream from now on; one request serves all calls of a pass of the loop."""
        return await outcome_of(self._info_task(link, stream))

    def _info_task(self, link: NatsLink, stream: Stream) -> asyncio.Task[StreamInfo]:
        task = self._due.get(stream)
        if task is None:
            task = self._due[stream] = asyncio.create_task(self._ask(link, stream), name="backplane-nats-stream-info")
            self._own(task)
        return task

    async def _ask(self, link: NatsLink, stream: Stream) -> StreamInfo:
        try:
            await asyncio.sleep(0)
        finally:
            del self._due[stream]
        seen = stream.seen
        try:
            async with PatientTimeout(_API_SECONDS):
                info = await JetStream(link).info(stream)
        except TimeoutError:
            raise unavailable(f"JetStream did not answer within {_API_SECONDS:g} s") from None
        self._follow(stream, info, seen)
        return info

    async def _missing(self, link: NatsLink, stream: Stream) -> None:
        """Wait a moment for the stream that does not exist, or has no server; then raise."""
        await asyncio.wait((self._restore(link, stream),), timeout=_RESTORE_SECONDS)
        raise unavailable(f"the stream {stream.name} was missing, or has no server at the moment; not published")

    def _restore(self, link: NatsLink, stream: Stream) -> asyncio.Task[None]:
        """Create the stream again if it does not exist any more."""
        task = self._restoring.get(stream)
        if task is None:
            task = asyncio.create_task(self._create_again(link, stream), name="backplane-nats-restore-stream")
            self._restoring[stream] = task
            self._own(task)
        return task

    async def _create_again(self, link: NatsLink, stream: Stream) -> None:
        try:
            with suppress(TimeoutError):
                async with PatientTimeout(_API_SECONDS):
                    await self._prepare(JetStream(link), stream)
        except BrokerUnavailableError as error:
            words = "stream %(stream)s is not available: %(reason)s"
            write(logger, HISTORY_RETRY, words, level=logging.DEBUG, stream=stream.name, reason=error.reason)
        except BrokerError as error:
            words = "stream %(stream)s cannot be created again: %(reason)s"
            write(logger, HISTORY_RETRY, words, stream=stream.name, reason=error.reason)
        finally:
            del self._restoring[stream]

    def _own(self, task: asyncio.Task[StreamInfo] | asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: a caller that waits for the task raises it


def _message_id(subject: bytes, key: bytes) -> bytes:
    """Return the id by which the server finds a duplicate, among the messages of all channels of the stream."""
    return blake2b(subject + b"\n" + key, digest_size=16).hexdigest().encode()
