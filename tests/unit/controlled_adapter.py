"""An adapter whose link a test opens, cuts and silences, for the tests of what a link does."""

from __future__ import annotations

import asyncio
import os
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from backplane.broadcaster import BrokerUrl, Capabilities, KeptMessage, Recalled
from backplane.errors import BrokerUnavailableError, PublishOutcomeUnknownError
from backplane.message import Place, Position, Receipt
from tests.unit.doubles import ControlledBroadcaster, Gate

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.broadcaster import Sink
    from backplane.history_rules import History, HistoryRules

__all__ = ["Adapter", "ControlledHistoryAdapter", "ControlledLog", "Recall"]


class Adapter(ControlledBroadcaster):
    """An adapter whose link the test opens, cuts and silences.

    Attributes:
        links: The sink of every `start` that succeeded.
        start_gate, stop_gate, publish_gate: Hold these calls.
        start_errors: What the next tries to start raise, one each.
        start_error: What every try to start raises, if anything.
        stop_error: What `stop` raises, if anything.
        publish_gates: Hold the next publishes, one each.
        publish_errors: What `publish` raises, by channel.
        silent: Whether a publish is accepted and nothing comes back.
        cancel_gate: Holds a `subscribe` that is cancelled, as a client library's cleanup would.
        cancel_error: What a cancelled `subscribe` raises instead, if anything.
        published: Every payload that was accepted.
    """

    def __init__(
        self, *, brokered: bool = False, resumes: bool = False, parts: bool = False, url: str | None = None
    ) -> None:
        super().__init__(None if url is None else BrokerUrl.parse(url))
        self._brokered = brokered
        self._resumes = resumes
        self._parts = parts
        self.links: list[Sink] = []
        self.start_gate = Gate()
        self.stop_gate = Gate()
        self.publish_gate = Gate()
        self.publish_gates: list[Gate] = []
        self.cancel_gate = Gate()
        self.start_errors: list[Exception] = []
        self.start_error: Exception | None = None
        self.stop_error: Exception | None = None
        self.cancel_error: Exception | None = None
        self.publish_errors: dict[str, Exception] = {}
        self.silent = False
        self.published: list[tuple[str, bytes]] = []

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(
            brokered=self._brokered,
            reach="network",
            publish_returns="accepted",
            resumes=self._resumes,
            max_payload_bytes=1024,
            parts=self._parts,
        )

    @property
    def verbs(self) -> list[str]:
        """The calls so far, without their channels."""
        return [verb for verb, _ in self.calls]

    def cut(self) -> None:
        """Lose the present link."""
        self.links[-1].lost(BrokerUnavailableError("cut"))

    async def start(self, sink: Sink) -> None:
        """Open a link, or fail as the test demands."""
        self._record("start")
        await self.start_gate.passage()
        if self.start_errors:
            raise self.start_errors.pop(0)
        if self.start_error is not None:
            raise self.start_error
        self.links.append(sink)
        await super().start(sink)
        self._changed.set()

    async def stop(self) -> None:
        """Close the link, or fail as the test demands."""
        self._record("stop")
        await self.stop_gate.passage()
        if self.stop_error is not None:
            raise self.stop_error
        await super().stop()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Accept, and deliver unless silent."""
        self._record("publish", channel)
        await (self.publish_gates.pop(0) if self.publish_gates else self.publish_gate).passage()
        if channel in self.publish_errors:
            raise self.publish_errors[channel]
        self.published.append((channel, payload))
        if not self.silent:
            await super().publish(channel, payload)
        self._changed.set()

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe; once cancelled, clean up as the test demands."""
        try:
            await super().subscribe(channels)
        except asyncio.CancelledError:
            await self.cancel_gate.passage()
            if self.cancel_error is not None:
                raise self.cancel_error from None
            raise

    def _record(self, verb: str, *channels: str) -> None:
        self.calls.append((verb, channels))
        self._changed.set()


class ControlledLog:
    """The history of one channel, as a broker has it.

    Attributes:
        epoch: Its epoch.
        items: What is kept, oldest first.
        top: Position of the newest message there was.
        without_message: Positions that no message has, and that can be resumed.
    """

    def __init__(self) -> None:
        self.epoch = os.urandom(8)
        self.items: list[KeptMessage] = []
        self.top = Position(self.epoch, 0, 0)
        self.without_message: set[Position] = set()

    def append(self, payload: bytes, *, most: int) -> Place:
        """Add a message, and keep `most` and one more; return its place."""
        place = Place(self.epoch, self.top.offset + 1, zlib.crc32(payload), self.top.offset, self.top.check)
        self.items = [*self.items, KeptMessage(payload, place)][-(most + 1) :]
        self.top = Position(place.epoch, place.offset, place.check)
        return place

    def drop_oldest(self, count: int) -> None:
        """Forget the `count` oldest messages, as limits and age do."""
        del self.items[:count]

    def lose_newest(self, count: int) -> None:
        """Lose the `count` newest messages, and use their offsets again, as a failover does."""
        last = self.items[-count].place
        del self.items[-count:]
        assert last.before is not None
        assert last.before_check is not None
        self.top = Position(self.epoch, last.before, last.before_check)

    def holds(self, position: Position) -> bool:
        """Whether `position` can be resumed, by the rule of `SupportsHistory`."""
        if position.epoch != self.epoch:
            return False
        return (
            position == self.top
            or position in self.without_message
            or any(
                (position.offset, position.check)
                in ((item.place.offset, item.place.check), (item.place.before, item.place.before_check))
                for item in self.items
            )
        )


class Recall(NamedTuple):
    """One call of `recall`."""

    channel: str
    after: Position | None
    limit: int
    max_bytes: int


class ControlledHistoryAdapter(Adapter):
    """An adapter that keeps messages, whose history a test fills, trims and makes fail.

    Adapters of one URL with a host deliver to each other; give them one `logs` for one history. A `keep` that waits
    while the link is stopped raises `PublishOutcomeUnknownError`, as a real one does. Age is not applied.

    Attributes:
        logs: The history of each channel.
        keep_gate: Holds `keep` before it stores.
        reply_gate: Holds `keep` after it has stored and delivered: the broker's answer is swallowed.
        keep_errors: What the next calls of `keep` raise, one each, before anything is stored; `None`: nothing.
        reply_errors: What the next calls of `keep` that store raise after that, one each; `None`: nothing.
        skips_live: Whether what is kept is stored and not delivered.
        states_check: Whether a place states the check of the message before it.
        keeps_history: Whether `capabilities.keeps` is `server`, or `nothing`.
        deduplicates: As in `Capabilities`.
        live_may_skip: As in `Capabilities`.
        kept: Channel, payload and key of every call of `keep`, before anything else.
        recalls: Every call of `recall`.
        recall_gate: Holds `recall`.
        recall_errors: What the next calls of `recall` raise, one each, once they are through the gate.
        recall_error: What every `recall` raises then, if anything.
        recall_answers: What the next calls of `recall` return in place of what is kept, one each.
        prepared: What `prepare` was given, one for each link.
        prepare_gate: Holds `prepare`.
        prepare_error: What `prepare` raises, if anything.
    """

    def __init__(
        self,
        *,
        brokered: bool = False,
        resumes: bool = False,
        parts: bool = False,
        url: str | None = None,
        logs: dict[str, ControlledLog] | None = None,
    ) -> None:
        super().__init__(brokered=brokered, resumes=resumes, parts=parts, url=url)
        self.logs: dict[str, ControlledLog] = {} if logs is None else logs
        self.keep_gate = Gate()
        self.reply_gate = Gate()
        self.keep_errors: list[Exception | None] = []
        self.reply_errors: list[Exception | None] = []
        self.skips_live = False
        self.states_check = True
        self.keeps_history = True
        self.deduplicates = True
        self.live_may_skip = False
        self.kept: list[tuple[str, bytes, bytes | None]] = []
        self.recalls: list[Recall] = []
        self.recall_gate = Gate()
        self.recall_errors: list[Exception] = []
        self.recall_error: Exception | None = None
        self.recall_answers: list[Recalled] = []
        self.prepared: list[HistoryRules] = []
        self.prepare_gate = Gate()
        self.prepare_error: Exception | None = None
        self._receipts: dict[tuple[str, bytes], Receipt] = {}
        self._link_ended = asyncio.Event()

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return replace(
            super().capabilities,
            keeps="server" if self.keeps_history else "nothing",
            deduplicates=self.deduplicates,
            live_may_skip=self.live_may_skip,
        )

    def log(self, channel: str) -> ControlledLog:
        """Return the history of `channel`, which begins here if there is none."""
        return self.logs.setdefault(channel, ControlledLog())

    def append(self, channel: str, payload: bytes, *, most: int = 100) -> Place:
        """Store and deliver a message of another process."""
        place = self.log(channel).append(payload, most=most)
        if not self.skips_live:
            live = Place(place.epoch, place.offset, place.check, place.before, place.before_check)
            if not self.states_check:
                live.before_check = None
            for adapter in list(self._bus):
                if adapter.sink is not None and channel in adapter.channels:
                    adapter.sink.deliver(channel, payload, live)
        self._changed.set()
        return place

    def forget(self, channel: str) -> None:
        """Lose the whole history of `channel`; the next one has another epoch."""
        self.logs.pop(channel, None)

    async def start(self, sink: Sink) -> None:
        """Open a link, or fail as the test demands."""
        await super().start(sink)
        self._link_ended = asyncio.Event()

    async def stop(self) -> None:
        """Close the link: what waits for an answer of the broker gets none."""
        self._link_ended.set()
        await super().stop()

    async def prepare(self, rules: HistoryRules) -> None:
        """Take the rules, or fail as the test demands."""
        self._record("prepare")
        await self.prepare_gate.passage()
        if self.prepare_error is not None:
            raise self.prepare_error
        self.prepared.append(rules)

    async def keep(self, channel: str, payload: bytes, rule: History, *, key: bytes | None = None) -> Receipt:
        """Store and deliver once for each key, or fail before or after it as the test demands."""
        self._check_not_stopped()
        self._record("keep", channel)
        self.kept.append((channel, payload, key))
        await self._answer(self.keep_gate)
        if (error := self.keep_errors.pop(0) if self.keep_errors else None) is not None:
            raise error
        first = None if key is None else self._receipts.get((channel, key))
        if first is None:
            self.published.append((channel, payload))
            self.append(channel, payload, most=rule.max_messages)
            receipt = Receipt(position=self.log(channel).top)
            if key is not None:
                self._receipts[channel, key] = receipt
        else:
            receipt = replace(first, duplicate=True)
        await self._answer(self.reply_gate)
        if (error := self.reply_errors.pop(0) if self.reply_errors else None) is not None:
            raise error
        return receipt

    async def recall(
        self, channel: str, rule: History, *, after: Position | None, limit: int, max_bytes: int
    ) -> Recalled:
        """Read, or fail as the test demands."""
        self._check_not_stopped()
        self._record("recall", channel)
        self.recalls.append(Recall(channel, after, limit, max_bytes))
        await self.recall_gate.passage()
        self._check_not_stopped()
        if self.recall_errors:
            raise self.recall_errors.pop(0)
        if self.recall_error is not None:
            raise self.recall_error
        if self.recall_answers:
            return self.recall_answers.pop(0)
        log = self.log(channel)
        if after is not None and not log.holds(after):
            return Recalled(top=log.top, found=False)
        start = 0 if after is None else after.offset
        following = [item for item in log.items if item.place.offset > start]
        chosen = following[:limit] if after is not None else following[len(following) - min(limit, len(following)) :]
        items, size = list[KeptMessage](), 0
        for item in chosen if after is not None else reversed(chosen):
            items.append(item)
            size += len(item.payload)
            if size > max_bytes:
                break
        if after is None:
            items.reverse()
        return Recalled(items=items, top=log.top, more=len(items) < len(following))

    async def _answer(self, gate: Gate) -> None:
        """Pass the gate, unless the link ends first."""
        if gate.is_open:
            return
        ended = asyncio.ensure_future(self._link_ended.wait())
        passage = asyncio.ensure_future(gate.passage())
        try:
            await asyncio.wait([ended, passage], return_when=asyncio.FIRST_COMPLETED)
            if not passage.done():
                raise PublishOutcomeUnknownError("the link ended before the broker's answer", adapter="controlled")
        finally:
            ended.cancel()
            passage.cancel()
