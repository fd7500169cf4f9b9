"""`backplane.history.repair`: what is read from the broker for which channel, in which order, and what fails."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from backplane.broadcaster import Recalled
from backplane.errors import BrokerError, BrokerUnavailableError
from backplane.history.kept_channel import KeptChannel
from backplane.history.repair import Read, ReadBounds, Repairer
from backplane.history.ring import Ring, RingBudget
from backplane.history.track import Track
from backplane.history_rules import History
from backplane.journal.journal import Journal
from backplane.message import Place, Position
from tests.unit.controlled_adapter import ControlledHistoryAdapter, Recall
from tests.unit.doubles import until_idle
from tests.unit.kit import warnings_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

pytestmark = pytest.mark.anyio

BOUNDS = ReadBounds(max_messages=50, max_bytes=1 << 30, read_seconds=60, repair_seconds=60)
MEBIBYTE = bytes(1 << 20)


@dataclass
class World:
    """A repairer that runs.

    Attributes:
        adapter: The broker that the test controls.
        repairer: The repairer.
        reads: What was read, by channel.
        failures: Why a channel could not be read.
        on_read: Called after each channel that was read.
        has_failed: Set once a channel could not be read.
    """

    adapter: ControlledHistoryAdapter
    repairer: Repairer
    reads: dict[str, Read] = field(default_factory=dict[str, Read])
    failures: dict[str, str] = field(default_factory=dict[str, str])
    on_read: Callable[[], object] = lambda: None
    has_failed: asyncio.Event = field(default_factory=asyncio.Event)

    def read(self, kept: KeptChannel, read: Read) -> None:
        """Take what was read: the channel needs nothing more."""
        self.reads[kept.name] = read
        kept.wants_ring, kept.wants_after = False, None
        if read.in_doubt:
            kept.track.mend(read.recalled)
        self.on_read()

    def failed(self, kept: KeptChannel, reason: str) -> None:
        """Take why a channel could not be read."""
        self.failures[kept.name] = reason
        self.has_failed.set()

    @property
    def recalled(self) -> list[str]:
        """The channels of all reads."""
        return [recall.channel for recall in self.adapter.recalls]


@asynccontextmanager
async def repairing(bounds: ReadBounds = BOUNDS) -> AsyncGenerator[World]:
    """Run a repairer."""
    adapter = ControlledHistoryAdapter()
    made: World
    repairer = Repairer(
        adapter,
        bounds,
        on_read=lambda kept, read: made.read(kept, read),
        on_failed=lambda kept, reason: made.failed(kept, reason),
        journal=Journal(),
    )
    made = World(adapter, repairer)
    running = asyncio.create_task(repairer.run())
    try:
        async with asyncio.timeout(30):
            yield made
    finally:
        running.cancel()
        await asyncio.wait([running])


def in_doubt(name: str = "k", *, max_messages: int = 100) -> KeptChannel:
    """Return a channel whose newest position is to be read."""
    return KeptChannel(name, History(max_messages=max_messages), Track(), Ring(max_messages, 60, RingBudget()))


def settled(name: str = "k", *, at: Position | None = None, max_messages: int = 100) -> KeptChannel:
    """Return a channel that needs nothing."""
    kept = in_doubt(name, max_messages=max_messages)
    kept.track.ask(1)
    kept.track.mend(Recalled(top=at or Position(b"epoch  1", 0, 0)))
    return kept


# -- what is read ------------------------------------------------------------------------------------------------------


async def test_a_new_channel() -> None:
    """Of a channel that was not received before only the newest position is read."""
    async with repairing() as worker:
        place = worker.adapter.append("k", b"1")
        worker.repairer.request(in_doubt())
        await until_idle()
        read = worker.reads["k"]
        assert (read.in_doubt, read.is_whole, read.after) == (True, False, None)
        assert (read.recalled.top, read.recalled.items) == (place, [])
        assert worker.adapter.recalls == [Recall("k", None, 0, BOUNDS.max_bytes)]


async def test_what_a_track_misses() -> None:
    """Of a channel in doubt what came after its last message is read."""
    async with repairing() as worker:
        kept = settled(at=worker.adapter.append("k", b"1"))
        worker.adapter.append("k", b"2")
        kept.lose("the link was lost")
        worker.repairer.request(kept)
        await until_idle()
        read = worker.reads["k"]
        assert (read.in_doubt, read.is_whole, read.after) == (True, False, None)
        assert [item.payload for item in read.recalled.items] == [b"2"]


@pytest.mark.parametrize(("max_messages", "limit"), [(9, 10), (100, 50)])
@pytest.mark.parametrize("is_new", [True, False])
async def test_what_a_ring_should_hold(max_messages: int, limit: int, is_new: bool) -> None:
    """The newest messages are read, one more than the rule keeps, in one read with the position of a new channel."""
    async with repairing() as worker:
        kept = (in_doubt if is_new else settled)(max_messages=max_messages)
        kept.wants_ring = True
        worker.repairer.request(kept)
        await until_idle()
        read = worker.reads["k"]
        assert (read.in_doubt, read.is_whole, read.after) == (is_new, True, None)
        assert [(recall.after, recall.limit) for recall in worker.adapter.recalls] == [(None, limit)]


async def test_a_ring_waits_for_the_doubt() -> None:
    """Of a channel in doubt that was received before, what it misses is read first: that is not all of it."""
    async with repairing() as worker:
        kept = settled(at=worker.adapter.append("k", b"1"))
        kept.lose("the link was lost")
        kept.wants_ring = True
        worker.repairer.request(kept)
        await until_idle()
        assert (worker.reads["k"].in_doubt, worker.reads["k"].is_whole) == (True, False)


async def test_what_came_after_a_position_that_no_message_has() -> None:
    """What a join waits for is read after its position."""
    async with repairing() as worker:
        log = worker.adapter.log("k")
        position = Position(log.epoch, 0, 0)
        log.without_message.add(position)
        kept = settled(at=worker.adapter.append("k", b"1"))
        kept.want_after(position, limit=1)
        worker.repairer.request(kept)
        await until_idle()
        read = worker.reads["k"]
        assert (read.in_doubt, read.is_whole, read.after) == (False, False, position)
        assert [(recall.after, recall.limit) for recall in worker.adapter.recalls] == [(position, 50)]


@pytest.mark.parametrize("first", ["doubt", "ring"])
async def test_such_a_position_waits_for_everything_else(first: str) -> None:
    """Where the channel is in doubt, or its ring is to be filled, that is read, and not after the position."""
    async with repairing() as worker:
        kept = settled(at=worker.adapter.append("k", b"1"))
        kept.want_after(Position(b"epoch  1", 0, 0), limit=1)
        if first == "doubt":
            kept.lose("the link was lost")
        kept.wants_ring = first == "ring"
        worker.repairer.request(kept)
        await until_idle()
        assert worker.reads["k"].after is None


async def test_a_channel_that_needs_nothing_by_then() -> None:
    """A channel whose doubt has ended before its turn is not read."""
    async with repairing() as worker:
        worker.repairer.request(settled())
        await until_idle()
        assert worker.adapter.recalls == []


# -- which channel, and when -------------------------------------------------------------------------------------------


async def test_requests_for_one_channel_share_a_read() -> None:
    """A second request, before the read or during it, changes nothing; one after it reads again."""
    async with repairing() as worker:
        worker.adapter.recall_gate.close()
        kept = in_doubt()
        worker.repairer.request(kept)
        worker.repairer.request(kept)
        await worker.adapter.until(lambda: worker.recalled == ["k"])
        worker.repairer.request(kept)
        worker.adapter.recall_gate.open()
        await until_idle()
        assert worker.recalled == ["k"]
        kept.lose("the link was lost")
        worker.repairer.request(kept)
        await until_idle()
        assert worker.recalled == ["k", "k"]


async def test_a_channel_that_is_left() -> None:
    """A channel that is discarded before its turn is not read."""
    async with repairing() as worker:
        kept = in_doubt()
        worker.repairer.request(kept)
        worker.repairer.discard(kept)
        worker.repairer.discard(kept)
        await until_idle()
        assert worker.adapter.recalls == []


async def test_a_lost_link_ends_every_request() -> None:
    """After a lost link a channel is read once it is requested again, also where a read was in progress."""
    async with repairing() as worker:
        kept, other = in_doubt("k"), in_doubt("k2")
        worker.adapter.recall_gate.close()
        worker.repairer.request(kept)
        await worker.adapter.until(lambda: worker.recalled == ["k"])
        worker.repairer.request(other)
        worker.repairer.link_lost()
        kept.lose("the link was lost")
        worker.repairer.request(kept)
        worker.adapter.recall_gate.open()
        await until_idle()
        assert worker.recalled == ["k", "k"]


async def test_channels_that_hold_messages_come_first() -> None:
    """Of many channels those whose messages wait for the read are read first."""
    async with repairing() as worker:
        waiting = in_doubt("waiting")
        waiting.track.take(Place(b"epoch  1", 5, 50, 4, 40), b"5")
        waiting.track.lost("doubt")
        waiting.track.take(Place(b"epoch  1", 6, 60, 5, 51), b"6")
        assert waiting.track.held
        for number in range(20):
            worker.repairer.request(in_doubt(f"k{number}"))
        worker.repairer.request(waiting)
        await until_idle()
        assert worker.recalled[0] == "waiting"
        assert len(worker.recalled) == 21


async def test_few_channels_are_read_at_once_after_large_ones() -> None:
    """The first batches are small and grow; after one that was large the next is smaller again."""
    async with repairing() as worker:
        worker.on_read = worker.adapter.recall_gate.close
        worker.adapter.recall_gate.close()
        channels = [in_doubt(f"k{number}") for number in range(80)]
        for number, kept in enumerate(channels):
            kept.wants_ring = True
            if 8 <= number < 24:
                worker.adapter.append(kept.name, MEBIBYTE)
            worker.repairer.request(kept)
        sizes, before = list[int](), 0
        while len(worker.reads) < len(channels):
            await until_idle()
            sizes.append(len(worker.recalled) - before)
            before = len(worker.recalled)
            worker.adapter.recall_gate.open()
            await until_idle()
        assert sizes == [8, 16, 8, 16, 32]


async def test_a_batch_is_bounded() -> None:
    """However many channels are requested, at most 32 are read at once."""
    async with repairing() as worker:
        worker.on_read = worker.adapter.recall_gate.close
        worker.adapter.recall_gate.close()
        for number in range(150):
            worker.repairer.request(in_doubt(f"k{number}"))
        sizes, before = list[int](), 0
        while len(worker.reads) < 150:
            await until_idle()
            sizes.append(len(worker.recalled) - before)
            before = len(worker.recalled)
            worker.adapter.recall_gate.open()
            await until_idle()
        assert sizes == [8, 16, 32, 32, 32, 30]


async def test_what_was_read_is_passed_on_at_once() -> None:
    """A channel does not wait for the others that are read at the same time."""
    async with repairing() as worker:
        first, second = in_doubt("first"), in_doubt("second")
        waiting, recall = asyncio.Event(), worker.adapter.recall

        async def recalled(channel: str, rule: History, **arguments: Any) -> Recalled:
            if channel == "second":
                await waiting.wait()
            return await recall(channel, rule, **arguments)

        worker.adapter.recall = recalled  # type: ignore[method-assign]
        worker.repairer.request(first)
        worker.repairer.request(second)
        await until_idle()
        assert list(worker.reads) == ["first"]
        waiting.set()
        await until_idle()
        assert list(worker.reads) == ["first", "second"]


# -- what fails --------------------------------------------------------------------------------------------------------


async def test_a_passing_failure_is_read_again() -> None:
    """Where the broker is not available for the moment, the channel is read until it is, and nothing is logged."""
    async with repairing() as worker:
        worker.adapter.recall_errors = [BrokerUnavailableError("loading")] * 2
        worker.repairer.request(in_doubt())
        await worker.adapter.until(lambda: len(worker.recalled) == 3)
        await until_idle()
        assert (list(worker.reads), worker.failures) == (["k"], {})


async def test_a_refusal_is_final(caplog: pytest.LogCaptureFixture) -> None:
    """Where the broker refuses, the read fails at once, with its reason, and others go on."""
    async with repairing() as worker:
        worker.adapter.recall_errors = [BrokerError("no permission")]
        refused, other = in_doubt("k"), in_doubt("k2")
        worker.repairer.request(refused)
        await until_idle()
        worker.repairer.request(other)
        await worker.adapter.until(lambda: worker.recalled == ["k", "k2"])
        await until_idle()
        assert worker.failures == {"k": "the history cannot be read: no permission"}
        assert list(worker.reads) == ["k2"]
        assert refused.repair_since is None
    assert warnings_of(caplog) == ["the history of channel 'k' cannot be read, which is a gap: no permission"]


async def test_one_failure_keeps_no_other_channel_waiting() -> None:
    """Where one of several reads of a batch fails, the others are taken, and it alone is read again."""
    async with repairing() as worker:
        worker.adapter.recall_errors = [BrokerUnavailableError("loading")]
        for name in ("k1", "k2"):
            worker.repairer.request(in_doubt(name))
        await until_idle()
        assert set(worker.reads) == {"k1", "k2"}
        assert sorted(worker.recalled) in (["k1", "k1", "k2"], ["k1", "k2", "k2"])


@pytest.mark.parametrize("reason", ["loading", "the broker did not answer within 0.01 s"])
async def test_a_repair_that_takes_too_long(reason: str) -> None:
    """Where the broker does not return the history within the time of a repair, the read fails with the reason."""
    async with repairing(BOUNDS._replace(read_seconds=0.01, repair_seconds=0.001)) as worker:
        if reason == "loading":
            worker.adapter.recall_error = BrokerUnavailableError("loading")
        else:
            worker.adapter.recall_gate.close()
        kept = in_doubt()
        kept.repair_since = asyncio.get_running_loop().time() - 1
        worker.repairer.request(kept)
        await worker.has_failed.wait()
        assert worker.failures == {"k": f"the history cannot be read: {reason}"}
        assert worker.reads == {}


@pytest.mark.parametrize(
    ("begun", "is_held", "held_for", "is_tried_again"),
    [
        (59, False, None, True),
        (61, False, None, False),
        (59, True, None, True),
        (59, True, 9, True),
        (59, True, 11, False),
        (59, False, 11, True),
    ],
)
async def test_while_nothing_arrives_a_repair_may_take_longer(
    begun: float, is_held: bool, held_for: float | None, is_tried_again: bool
) -> None:
    """The time of a repair bounds how long messages wait that have arrived; without any it is six times as long."""
    async with repairing(BOUNDS._replace(repair_seconds=10)) as worker:
        kept = settled(at=worker.adapter.append("k", b"1"))
        kept.lose("the link was lost")
        if is_held:
            kept.track.take(Place(b"epoch  1", 9, 90, 8), b"9")
        now = asyncio.get_running_loop().time()
        kept.repair_since = now - begun
        kept.held_since = None if held_for is None else now - held_for
        worker.adapter.recall_errors = [BrokerUnavailableError("no leader")]
        worker.repairer.request(kept)
        await worker.adapter.until(lambda: bool(worker.reads or worker.failures))
        assert ("k" in worker.reads, "k" in worker.failures) == (is_tried_again, not is_tried_again)


async def test_the_time_of_a_repair_begins_with_its_first_read() -> None:
    """However long a channel has waited for its turn, a failure of its first read is passing."""
    async with repairing() as worker:
        kept = in_doubt()
        worker.adapter.recall_gate.close()
        before = asyncio.get_running_loop().time()
        worker.repairer.request(kept)
        assert kept.repair_since is None
        await worker.adapter.until(lambda: worker.recalled == ["k"])
        assert kept.repair_since is not None
        assert kept.repair_since >= before
        worker.adapter.recall_gate.open()
        await until_idle()
        assert kept.repair_since is None
