"""`backplane.history.joins`: a subscriber that joins a kept channel begins with what it missed."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING
from zlib import crc32

import pytest

from backplane.errors import BrokerError, BrokerUnavailableError
from backplane.message import Place, Position, ShortCheck
from backplane.testing.resume_conformance import compacted
from tests.unit.controlled_adapter import ControlledHistoryAdapter
from tests.unit.doubles import RecordingSubscriber, until_idle
from tests.unit.history.world import HistoryWorld, history_world
from tests.unit.kit import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backplane.broadcaster import Recalled
    from backplane.history_rules import History
    from backplane.message import Joined
    from backplane.settings import Settings

pytestmark = pytest.mark.anyio


async def test_first_visit_with_rewind() -> None:
    """`rewind` gives the newest messages first, and the live ones follow."""
    async with history_world() as worker:
        worker.append("k", *"12345")
        subscriber = await worker.joins("k", rewind=2)
        worker.append("k", "6")
        assert await subscriber.receives(3) == ["4", "5", "6"]
        joined = subscriber.joins[0]
        assert (joined.resumed, joined.gap) == (False, None)
        assert joined.position == worker.adapter.log("k").items[2].place


async def test_rewind_of_everything() -> None:
    """A `rewind` over the number of messages gives all of them, from the beginning."""
    async with history_world() as worker:
        worker.append("k", *"123")
        subscriber = await worker.joins("k", rewind=50)
        assert await subscriber.receives(3) == ["1", "2", "3"]
        position = subscriber.joins[0].position
        assert position is not None
        assert (position.offset, position.check) == (0, 0)


async def test_a_subscriber_that_comes_back_gets_the_rest() -> None:
    """A position gives back exactly what was published after it."""
    async with history_world() as worker:
        worker.append("k", *"123")
        since = str(worker.adapter.log("k").items[0].place)
        subscriber = await worker.joins("k", since=since)
        worker.append("k", "4")
        assert await subscriber.receives(3) == ["2", "3", "4"]
        assert (subscriber.joins[0].resumed, str(subscriber.joins[0].position)) == (True, since)
        assert (worker.statistics.resumed, worker.statistics.not_resumed) == (1, 0)


def twins() -> Iterator[tuple[str, str]]:
    """Yield two texts each, all different, whose checks have the same short form."""
    first: dict[int, str] = {}
    for text in map(str, count()):
        if (other := first.pop(int(ShortCheck.of(crc32(text.encode()))), None)) is not None:
            yield other, text
        else:
            first[int(ShortCheck.of(crc32(text.encode())))] = text


@pytest.mark.parametrize("seed", range(4))
async def test_no_failover_is_hidden_by_a_compact_position(seed: int) -> None:
    """At random, with messages that are lost and replaced: it is resumed where a whole one with its short check is.

    So never where its message is lost, but where the one that has its offset now has the same short check. And whole
    positions are judged as if there were no compact ones.
    """
    choose, texts = random.Random(seed), twins()
    hidden = noticed = 0
    async with history_world() as worker:
        await worker.joined("k")
        log = worker.adapter.log("k")
        given, twin_of = [log.top], dict[int, str]()

        def publish(number: int, *, replaces: bool = False) -> None:
            for _ in range(number):
                text, twin = next(texts)
                if replaces and choose.random() < 0.5:
                    text = twin_of.pop(log.top.offset + 1, text)
                worker.append("k", text)
                twin_of.setdefault(log.top.offset, twin)
                given.append(log.top)

        for _ in range(8):
            publish(2)
            if choose.random() < 0.7:
                await worker.degrade()
                log.lose_newest(choose.randint(1, 2))
                publish(3, replaces=True)
                worker.adapter.start_gate.open()
                await worker.settled()
            short = [await worker.joins("k", since=str(compacted(position))) for position in given]
            whole = [await worker.joins("k", since=str(position)) for position in given]
            resumed = {position.compact for position, one in zip(given, whole, strict=True) if one.joins[0].resumed}
            for position, one, other in zip(given, short, whole, strict=True):
                assert other.joins[0].resumed == log.holds(position)
                assert one.joins[0].resumed == (position.compact in resumed)
                assert not other.joins[0].resumed or one.received == other.received
                hidden += one.joins[0].resumed and not other.joins[0].resumed
                noticed += not one.joins[0].resumed
    assert min(hidden, noticed) > 0


async def test_the_newest_position_costs_no_read() -> None:
    """A subscriber that comes back to a quiet channel, which has subscribers, costs no read."""
    async with history_world() as worker:
        await worker.joined("k")
        worker.append("k", "1")
        reads = len(worker.adapter.recalls)
        subscriber = await worker.joins("k", since=str(worker.adapter.log("k").top))
        assert (subscriber.joins[0].resumed, subscriber.received) == (True, [])
        assert len(worker.adapter.recalls) == reads


@pytest.mark.parametrize(
    "since",
    [
        "garbage",
        "x" * 10_000,
        str(Position(b"12345678", 2, 3)),
        str(compacted(Position(b"12345678", 2, 3))),
        str(Position(bytes(8), 0, 0)),
    ],
)
async def test_a_position_that_is_not_found(since: str) -> None:
    """The subscriber is notified of a gap, never closed, and `rewind` comes after it."""
    async with history_world() as worker:
        worker.append("k", *"123")
        subscriber = await worker.joins("k", since=since, rewind=1)
        joined = subscriber.joins[0]
        assert joined.gap is not None
        assert joined.gap.channel == "k"
        assert (joined.resumed, subscriber.received) == (False, ["3"])
        assert worker.statistics.not_resumed == 1


async def test_a_position_that_this_worker_has_not_received_yet() -> None:
    """A subscriber that another worker has served further waits until this worker is as far, and gets nothing twice."""
    async with history_world() as worker:
        worker.append("k", *"12")
        await worker.joined("k")
        worker.adapter.skips_live = True
        worker.append("k", "3")
        late = worker.adapter.log("k").items[-1]
        reads = len(worker.adapter.recalls)
        joining = asyncio.create_task(worker.joins("k", since=str(late.place)))
        await until_idle()
        assert not joining.done()
        worker.adapter.skips_live = False
        worker.hub.deliver("k", late.payload, late.place)
        worker.append("k", "4")
        subscriber = await joining
        assert (subscriber.joins[0].resumed, await subscriber.receives(1)) == (True, ["4"])
        assert len(worker.adapter.recalls) <= reads + 1


async def test_a_position_that_no_worker_has_received() -> None:
    """One that was lost is waited for during the time of one read, then it is not found."""
    async with history_world(settings=replace(SETTINGS, recall_timeout_seconds=0.05)) as worker:
        worker.append("k", *"12")
        await worker.joined("k")
        top = worker.adapter.log("k").top
        subscriber = await worker.joins("k", since=str(Position(top.epoch, top.offset + 1, 0)), rewind=1)
        assert (subscriber.joins[0].resumed, subscriber.received) == (False, ["2"])
        assert subscriber.joins[0].gap is not None


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (replace(SETTINGS, max_recall_messages=3), "max_recall_messages=3"),
        (replace(SETTINGS, max_recall_bytes=3), "max_recall_bytes=3"),
        (SETTINGS, "does not hold"),
    ],
)
async def test_a_gap_names_the_bound_of_a_read(settings: Settings, named: str) -> None:
    """Where the broker has more than one read may return, the reason of the gap names the settings."""
    async with history_world(settings=settings) as worker:
        worker.append("k", *"123456789")
        since = worker.adapter.log("k").items[0].place if settings is not SETTINGS else "garbage"
        subscriber = await worker.joins("k", since=str(since), rewind=2)
        gap = subscriber.joins[0].gap
        assert gap is not None
        assert named in gap.reason
        assert subscriber.received == ["8", "9"]


async def test_many_that_come_back_at_once_share_one_read() -> None:
    """A thousand subscribers with positions of one channel cost one read, whatever they pass."""
    async with history_world() as worker:
        worker.append("k", *map(str, range(50)))
        places = [str(item.place) for item in worker.adapter.log("k").items]
        subscribers = await asyncio.gather(
            *(worker.joins("k", since=["garbage", *places][number % 51]) for number in range(1_000))
        )
        assert len(worker.adapter.recalls) == 1
        for number, subscriber in enumerate(subscribers):
            index = number % 51
            assert subscriber.received == ([] if index == 0 else [*map(str, range(index, 50))])
            assert subscriber.joins[0].resumed == (index > 0)


async def test_a_join_during_a_repair_waits_for_its_end() -> None:
    """A join while missed messages are read begins after them, and gets none twice."""
    async with history_world() as worker:
        first = await worker.joined("k")
        worker.append("k", "1")
        since = str(worker.adapter.log("k").top)
        worker.adapter.recall_gate.close()
        await worker.missing("k", "2")
        joining = asyncio.create_task(worker.joins("k", since=since))
        await until_idle()
        assert not joining.done()
        worker.adapter.recall_gate.open()
        second = await joining
        worker.append("k", "3")
        assert await second.receives(2) == ["2", "3"]
        assert await first.receives(3) == ["1", "2", "3"]


async def test_a_cancelled_join_leaves_nothing() -> None:
    """A join that is cancelled while the history is read leaves no subscriber."""
    async with history_world() as worker:
        worker.adapter.recall_gate.close()
        joining = asyncio.create_task(worker.joins("k", rewind=1))
        await worker.adapter.until(lambda: len(worker.adapter.recalls) == 1)
        joining.cancel()
        await asyncio.wait([joining])
        assert list(worker.hub.channels) == []
        worker.adapter.recall_gate.open()
        await until_idle()
        subscriber = await worker.joins("k", rewind=1)
        assert subscriber.received == []


async def test_a_join_that_takes_too_long() -> None:
    """A join raises where the history is not read in time, and leaves nothing."""
    async with history_world(settings=replace(SETTINGS, subscribe_timeout_seconds=0.05)) as worker:
        worker.adapter.recall_gate.close()
        with pytest.raises(BrokerUnavailableError, match=r"history of channel 'k' within 0\.05 s"):
            await worker.joins("k")
        assert list(worker.hub.channels) == []


async def test_a_join_at_the_stop() -> None:
    """A join that waits for the history when the backplane stops raises."""
    async with history_world() as worker:
        worker.adapter.recall_gate.close()
        joining = asyncio.create_task(worker.joins("k"))
        await worker.adapter.until(lambda: len(worker.adapter.recalls) == 1)
        worker.hub.close()
        with pytest.raises(BrokerUnavailableError, match="stopped"):
            await joining


async def test_the_same_subscriber_joins_twice_at_once() -> None:
    """Two joins of one subscriber at once give back what it missed once."""
    async with history_world() as worker:
        worker.append("k", "1", "2")
        subscriber = RecordingSubscriber()
        await asyncio.gather(*(worker.hub.join("k", subscriber, rewind=2) for _ in range(2)))
        assert subscriber.received == ["1", "2"]


async def test_latest() -> None:
    """Of a channel of latest values a join gets the newest one, and so does a repair; no gap is ever reported."""
    async with history_world() as worker:
        worker.append("price:1", *"123")
        subscriber = await worker.joins("price:1")
        assert subscriber.received == ["3"]
        await worker.missing("price:1", *(str(number) for number in range(4, 500)))
        assert await subscriber.receives(2) == ["3", "499"]
        again = await worker.joins("price:1", since=str(worker.adapter.log("price:1").top))
        assert (again.received, again.joins[0].resumed) == ([], True)
        stale = await worker.joins("price:1", since=str(Position(b"12345678", 2, 3)))
        assert (stale.received, stale.joins[0].gap) == (["499"], None)
        assert worker.hub.gaps.reported == 0


class LaggingAdapter(ControlledHistoryAdapter):
    """An adapter that resumes, and that reads only when it has received what the broker has.

    Attributes:
        lacking: What it receives before its next read.
        anchors: Positions without a message that its log knows, and after how many messages each is.
    """

    def __init__(self) -> None:
        super().__init__(resumes=True)
        self.lacking: list[tuple[bytes, Place]] = []
        self.anchors: dict[Position, int] = {}

    async def recall(
        self, channel: str, rule: History, *, after: Position | None, limit: int, max_bytes: int
    ) -> Recalled:
        """Receive, then read."""
        assert self.sink is not None
        for payload, place in self.lacking:
            self.sink.deliver(channel, payload, place)
        self.lacking.clear()
        if after is not None and after in self.anchors:
            everything = await super().recall(channel, rule, after=None, limit=1_000, max_bytes=max_bytes)
            return replace(everything, items=everything.items[self.anchors[after] :], found=True)
        return await super().recall(channel, rule, after=after, limit=limit, max_bytes=max_bytes)


async def test_a_position_ahead_of_an_adapter_that_resumes() -> None:
    """One read, which waits for what another worker has received already, is enough: the position is found."""
    adapter = LaggingAdapter()
    async with history_world(adapter) as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        await worker.joins("k", rewind=1)
        adapter.skips_live = True
        adapter.lacking.append((b"2", adapter.append("k", b"2")))
        reads = len(adapter.recalls)
        late = await worker.joins("k", since=str(adapter.log("k").top))
        assert late.joins[0].resumed
        assert len(adapter.recalls) == reads + 1
        assert await subscriber.receives(2) == ["1", "2"]


@pytest.mark.parametrize(("missed_from", "expected"), [(0, ["1", "2"]), (1, ["2"]), (2, [])])
async def test_a_position_of_another_message_in_a_shared_log(missed_from: int, expected: list[str]) -> None:
    """Of an adapter that resumes a position that names no message of the channel is found, and costs one read."""
    adapter = LaggingAdapter()
    async with history_world(adapter) as worker:
        await worker.joined("k")
        worker.append("k", "1", "2")
        top = adapter.log("k").top
        position = Position(top.epoch, missed_from, 12345) if missed_from < 2 else Position(top.epoch, 7, 12345)
        adapter.anchors[position] = missed_from
        await worker.joins("k", rewind=1)
        for since in (compacted(position), position):  # the compact one proves nothing of a whole one
            reads = len(adapter.recalls)
            for _ in range(2):
                late = await worker.joins("k", since=str(since))
                assert late.joins[0].resumed
                assert await late.receives(len(expected)) == expected
            assert len(adapter.recalls) == reads + 1
        late = await worker.joins("k", since=str(compacted(position)))
        assert late.joins[0].resumed
        assert len(adapter.recalls) == reads + 1


@pytest.mark.parametrize(("channel", "resumes"), [("k", False), ("price:1", False), ("price:1", True)])
async def test_a_position_of_what_does_not_arrive(channel: str, resumes: bool) -> None:
    """Where this worker does not receive what a subscriber has, it is read, and all get it; that one is resumed."""
    settings = replace(SETTINGS, recall_timeout_seconds=0.2)
    async with history_world(ControlledHistoryAdapter(resumes=resumes), settings) as worker:
        subscriber = await worker.joins(channel, rewind=1)
        worker.append(channel, "1")
        worker.adapter.skips_live = True
        worker.append(channel, "2", "3")
        worker.adapter.skips_live = False
        late = await worker.joins(channel, since=str(worker.adapter.log(channel).top))
        assert late.joins[0].resumed
        expected = ["1", "2", "3"] if channel == "k" else ["1", "3"]
        assert await subscriber.receives(len(expected)) == expected
        worker.append(channel, "4")
        assert await late.receives(1) == ["4"]
        assert worker.hub.gaps.reported == 0


async def test_made_up_positions_ahead_of_the_worker_cost_few_reads() -> None:
    """Positions after the newest message are not found; whatever clients make up, few are read, and nothing waits."""
    async with history_world(settings=replace(SETTINGS, recall_timeout_seconds=0.2)) as worker:
        subscriber = await worker.joins("k", rewind=1)
        worker.append("k", "1")
        await subscriber.receives(1)
        top, recalls = worker.adapter.log("k").top, len(worker.adapter.recalls)
        made_up = [str(Position(top.epoch, offset, 1)) for offset in range(2, 100)]
        late = await asyncio.gather(*(worker.joins("k", since=since) for since in made_up))
        assert all(one.joins[0].gap is not None for one in late)
        assert len(worker.adapter.recalls) - recalls <= 8
        assert worker.history_hub.in_doubt == worker.statistics.repaired == 0


async def test_a_join_with_rewind_during_a_repair() -> None:
    """What the channel misses is read first, and then what the join needs."""
    async with history_world() as worker:
        first = await worker.joined("k")
        worker.append("k", "1")
        await worker.degrade()
        worker.append("k", "2")
        joining = asyncio.create_task(worker.joins("k", rewind=9))
        await until_idle()
        worker.adapter.start_gate.open()
        second = await joining
        assert (first.received, second.received) == (["1", "2"], ["1", "2"])
        assert [recall.after is None for recall in worker.adapter.recalls] == [True, False, True]


# -- positions that no message has -------------------------------------------------------------------------------------


def after_nothing(worker: HistoryWorld, *offsets: int) -> list[str]:
    """Let a broker have a first message with offset 101, and give out these positions, which no message has."""
    log = worker.adapter.log("k")
    log.top = Position(log.epoch, 100, 0)
    given = [Position(log.epoch, offset, 0) for offset in offsets]
    log.without_message.update(given)
    worker.append("k", "1", "2")
    return [str(position) for position in given]


async def test_a_position_that_no_message_has_costs_one_read() -> None:
    """It is resumed; many that pass it at once, and those that pass it or a later one afterwards, share the read."""
    async with history_world() as worker:
        since, later = after_nothing(worker, 50, 60)
        subscribers = await asyncio.gather(*(worker.joins("k", since=since) for _ in range(50)))
        for again in (since, later):
            subscribers.append(await worker.joins("k", since=again))
        assert {(tuple(each.received), each.joins[0].resumed) for each in subscribers} == {(("1", "2"), True)}
        assert [str(recall.after) for recall in worker.adapter.recalls] == ["None", since]


async def test_several_positions_that_no_message_has() -> None:
    """Each that lies before those that were read costs a read more, and is resumed."""
    async with history_world() as worker:
        positions = after_nothing(worker, 50, 40, 30)
        subscribers = [await worker.joins("k", since=since) for since in positions]
        worker.append("k", "3")
        for subscriber in subscribers:
            assert await subscriber.receives(3) == ["1", "2", "3"]
            assert subscriber.joins[0].resumed
        assert [str(recall.after) for recall in worker.adapter.recalls] == ["None", *positions]


async def test_several_such_positions_at_once() -> None:
    """Joins that pass different ones at once are all resumed."""
    async with history_world() as worker:
        positions = after_nothing(worker, 50, 40, 60, 30)
        subscribers = await asyncio.gather(*(worker.joins("k", since=since) for since in positions))
        assert [(each.received, each.joins[0].resumed) for each in subscribers] == [(["1", "2"], True)] * 4


async def test_positions_that_are_made_up_cost_few_reads() -> None:
    """Of fifty that the broker never gave out at most eight are read, and each join gets its gap."""
    async with history_world() as worker:
        after_nothing(worker)
        epoch = worker.adapter.log("k").epoch
        joining = [worker.joins("k", since=str(Position(epoch, offset, 0)), rewind=1) for offset in range(1, 51)]
        subscribers = await asyncio.gather(*joining)
        assert {(tuple(each.received), each.joins[0].resumed) for each in subscribers} == {(("2",), False)}
        assert all(each.joins[0].gap is not None for each in subscribers)
        reads = [recall for recall in worker.adapter.recalls if recall.after is not None]
        assert 1 <= len(reads) <= 8


async def test_after_a_gap_such_a_position_is_not_resumed() -> None:
    """Where messages were lost after it, what came after it is not known."""
    async with history_world() as worker:
        (since,) = after_nothing(worker, 50)
        assert (await worker.joins("k", since=since)).joins[0].resumed
        watching = await worker.joined("k")
        await worker.degrade()
        log = worker.adapter.log("k")
        log.without_message.clear()
        log.items.clear()
        worker.append("k", "3", "4")
        log.drop_oldest(1)
        worker.adapter.start_gate.open()
        await watching.receives(1)
        await worker.settled()
        late = await worker.joins("k", since=since)
        assert late.joins[0].gap is not None
        assert not late.joins[0].resumed


async def test_such_a_position_whose_read_fails() -> None:
    """Where the broker refuses to read after it, the join gets a gap, and is not kept waiting."""
    async with history_world() as worker:
        (since,) = after_nothing(worker, 50)
        await worker.joins("k", rewind=1)
        await worker.joined("k")
        worker.adapter.recall_errors = [BrokerError("not permitted")]
        late = await worker.joins("k", since=since)
        assert late.joins[0].gap is not None
        again = await worker.joins("k", since=since)
        assert again.joins[0].resumed


async def test_a_ring_that_holds_more_than_is_read() -> None:
    """Where a worker has received more than one read returns, joins cost one read together, and get what it holds."""
    async with history_world(settings=replace(SETTINGS, max_recall_messages=3)) as worker:
        worker.append("k", "older")
        subscriber = await worker.joined("k")
        start = str(worker.adapter.log("k").top)
        worker.append("k", *map(str, range(10)))
        await subscriber.receives(10)
        reads = len(worker.adapter.recalls)
        for _ in range(5):
            late = await worker.joins("k", rewind=6)
            assert late.received == ["4", "5", "6", "7", "8", "9"]
            unknown = await worker.joins("k", since="unknown")
            assert unknown.joins[0].gap is not None
        assert (await worker.joins("k", since=start)).received == [*map(str, range(10))]
        assert len(worker.adapter.recalls) == reads + 1


async def test_joins_for_which_the_rings_have_no_room() -> None:
    """Where the rings of the channels that are joined at once do not fit, each join gets what it missed all the same.

    Afterwards they are emptied.
    """
    async with history_world(settings=replace(SETTINGS, max_ring_bytes=2_000)) as worker:
        channels = [f"k{number}" for number in range(40)]
        for channel in channels:
            worker.append(channel, *"012345")
        sinces = [str(worker.adapter.log(channel).items[1].place) for channel in channels]
        joins = [worker.joins(channel, since=since) for channel, since in zip(channels, sinces, strict=True)]
        late = await asyncio.gather(*joins)
        assert [one.received for one in late] == [["2", "3", "4", "5"]] * len(channels)
        assert all(one.joins[0].resumed for one in late)
        assert sum(len(kept.ring) for kept in worker.history_hub.quiet) <= 4


class FailingSubscriber(RecordingSubscriber):
    """A subscriber that fails at its join, as a function of the application can."""

    def joined(self, joined: Joined) -> None:
        """Fail as if it were cancelled."""
        raise asyncio.CancelledError


@pytest.mark.parametrize("channel", ["k", "plain"])
async def test_a_subscriber_that_fails_at_its_join_is_not_joined(channel: str) -> None:
    """Where the notice of a join raises, the join is undone, and no other."""
    async with history_world() as worker:
        subscriber, failing = await worker.joined(channel), FailingSubscriber()
        with pytest.raises(asyncio.CancelledError):
            await worker.hub.join(channel, failing)
        worker.hub.leave(channel, subscriber)
        assert not worker.hub.channels
        with pytest.raises(asyncio.CancelledError):
            await worker.hub.join(channel, failing, rewind=1 if channel == "k" else 0)
        assert not worker.hub.channels


async def test_more_came_after_a_position_without_a_message_than_is_read() -> None:
    """Where one read does not return all that came after such a position, it is not found."""
    async with history_world(settings=replace(SETTINGS, max_recall_messages=3)) as worker:
        start = str(worker.adapter.log("k").top)
        worker.append("k", *map(str, range(10)))
        late = await worker.joins("k", since=start, rewind=1)
        assert late.joins[0].gap is not None
        assert late.received == ["9"]


async def test_a_message_with_a_hole_before_it_while_a_position_is_judged() -> None:
    """A doubt that begins while the broker is asked for a position is ended as any other, and the join waits for it."""
    async with history_world(settings=replace(SETTINGS, recall_timeout_seconds=1)) as worker:
        subscriber = await worker.joins("k", rewind=1)
        worker.append("k", "1")
        worker.adapter.skips_live = True
        worker.append("k", "2", "3")
        newest = worker.adapter.log("k").items[-1]
        recalls = len(worker.adapter.recalls)
        worker.adapter.recall_gate.close()
        joining = asyncio.create_task(worker.joins("k", since=str(newest.place)))
        await worker.adapter.until(lambda: len(worker.adapter.recalls) > recalls)
        worker.hub.deliver("k", newest.payload, newest.place)
        worker.adapter.recall_gate.open()
        assert (await joining).joins[0].resumed
        assert await subscriber.receives(3) == ["1", "2", "3"]
