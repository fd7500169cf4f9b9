"""`backplane.history.hub`: kept channels are repaired in place, and subscribers get what they missed."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from backplane.broadcaster import KeptMessage, Recalled
from backplane.errors import BrokerError, BrokerUnavailableError
from backplane.fanout.codec import encode_path_test
from backplane.history.track import Mended
from backplane.message import Gap, Place, Position
from tests.unit.controlled_adapter import ControlledHistoryAdapter
from tests.unit.doubles import RecordingSubscriber, until_idle
from tests.unit.history.world import history_world
from tests.unit.kit import SETTINGS, warnings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backplane.message import Message
    from backplane.settings import Settings

pytestmark = pytest.mark.anyio

PATH_TEST = encode_path_test(b"TEST_ID8", origin=b"ORIGIN_8", published_at=0.0)


async def test_messages_in_order_are_delivered_without_a_read() -> None:
    """After the read of the first join, messages that follow each other cost no read."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1", "2", "3")
        assert await subscriber.receives(3) == ["1", "2", "3"]
        assert [recall.limit for recall in worker.adapter.recalls] == [0]


async def test_positions_of_messages() -> None:
    """The position of the hub is that of the newest message that was delivered."""
    async with history_world() as worker:
        assert worker.hub.position("k") is None
        subscriber = await worker.joined("k")
        assert subscriber.joins[0].position == worker.hub.position("k") == worker.adapter.log("k").top
        worker.append("k", "1")
        assert worker.hub.position("k") == worker.adapter.log("k").top
        assert subscriber.received == ["1"]


async def test_a_lost_link_is_repaired_in_place() -> None:
    """What was published while the link was down is read and delivered, in order, and no gap is reported."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        await worker.missing("k", "2", "3")
        await worker.settled()
        worker.append("k", "4")
        assert await subscriber.receives(4) == ["1", "2", "3", "4"]
        assert (worker.statistics.repaired, worker.statistics.repaired_messages) == (1, 2)
        assert worker.hub.gaps.reported == 0


async def test_a_channel_without_a_rule_has_its_gap() -> None:
    """A channel without a rule has the gap of a lost link, beside a kept one that has none."""
    async with history_world() as worker:
        plain, kept = await worker.joined("plain"), await worker.joined("k")
        await worker.missing("k", "1")
        assert await kept.receives(1) == ["1"]
        await plain.receives(1)
        assert [type(item) for item in plain.received] == [Gap]


async def test_what_a_repair_gives_back_makes_no_subscriber_slow() -> None:
    """It is given back as at a join, after what arrived before it, whatever the backlog of a subscriber is."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        worker.adapter.skips_live = True
        worker.append("k", *map(str, range(2, 50)))
        worker.adapter.skips_live = False
        worker.append("k", "50")
        await worker.settled()
        worker.append("k", "51")
        assert await subscriber.receives(51) == [*map(str, range(1, 52))]
        assert subscriber.missed == [[*map(str, range(2, 51))]]
        assert subscriber.offers == [["1"], ["51"]]


async def test_what_a_repair_gives_back_follows_what_was_collected() -> None:
    """A message that was collected in the same pass of the event loop comes first."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        kept = worker.history_hub._kept["k"]
        worker.history_hub._take_mended(kept, Mended([KeptMessage(b"2", Place(b"12345678", 2, 0, 1, 0))]))
        worker.append("k", "3")
        assert await subscriber.receives(3) == ["1", "2", "3"]
        assert (subscriber.missed, subscriber.offers) == ([["2"]], [["1"], ["3"]])


@pytest.mark.parametrize("is_served_from", [False, True])
async def test_a_ring_after_a_repair(is_served_from: bool) -> None:
    """A ring from which joins were served goes on through a repair; any other begins anew, and the next join reads."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        if is_served_from:
            await worker.joins("k", rewind=1)
        worker.append("k", "1")
        ring = worker.history_hub._kept["k"].ring
        await worker.missing("k", "2", "3")
        await worker.settled()
        assert (len(ring), ring.is_complete) == ((3, True) if is_served_from else (0, False))
        worker.append("k", "4")
        assert await subscriber.receives(4) == [*"1234"]
        reads = len(worker.adapter.recalls)
        newest, oldest = await worker.joins("k", rewind=1), await worker.joins("k", rewind=4)
        assert [await newest.receives(1), await oldest.receives(4)] == [["4"], [*"1234"]]
        assert len(worker.adapter.recalls) == reads + (not is_served_from)


async def test_messages_that_arrive_before_the_read_wait() -> None:
    """What arrives while the missed messages are read is delivered after them."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        worker.adapter.recall_gate.close()
        worker.adapter.states_check = False  # so that no message proves anything by itself
        await worker.missing("k", "2")
        await worker.adapter.until(lambda: len(worker.adapter.recalls) == 2)
        worker.append("k", "3")
        await until_idle()
        assert subscriber.received == ["1"]
        worker.adapter.recall_gate.open()
        assert await subscriber.receives(3) == ["1", "2", "3"]


async def test_a_message_that_names_its_predecessor_proves_that_nothing_is_missing() -> None:
    """After a lost link, a message whose predecessor is the last one by its check ends the doubt without the read."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        worker.adapter.recall_gate.close()
        await worker.missing("k")
        await worker.adapter.until(lambda: len(worker.adapter.recalls) == 2)
        worker.append("k", "2")
        assert await subscriber.receives(2) == ["1", "2"]
        assert worker.statistics.proved == 1
        worker.adapter.recall_gate.open()
        await worker.settled()
        assert subscriber.received == ["1", "2"]


async def test_a_message_that_was_skipped_is_read() -> None:
    """A message that shows that one before it is missing waits until that is read."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        worker.adapter.skips_live = True
        worker.append("k", "2")
        worker.adapter.skips_live = False
        worker.append("k", "3")
        assert await subscriber.receives(3) == ["1", "2", "3"]


async def test_too_much_missed_is_one_gap() -> None:
    """Where the broker no longer has what was missed, one gap is reported, with the position after which all comes."""
    async with history_world() as worker:
        subscriber = await worker.joined("few:1")
        worker.append("few:1", "1")
        await worker.missing("few:1", *"234567")
        await worker.settled()
        worker.append("few:1", "8")
        first, gap, last = await subscriber.receives(3)
        assert isinstance(gap, Gap)
        assert (first, last, gap.channel) == ("1", "8", "few:1")
        assert gap.position is not None
        assert gap.position.offset == 7
        assert worker.statistics.repaired == 0


async def test_lost_newest_messages_are_a_gap() -> None:
    """A broker that lost its newest messages and uses their offsets again is noticed by the check."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1", "2", "3")
        await subscriber.receives(3)
        await worker.degrade()
        worker.adapter.log("k").lose_newest(2)
        worker.append("k", "other", "others", "more")
        worker.adapter.start_gate.open()
        await subscriber.receives(4)
        await worker.settled()
        worker.append("k", "5")
        await subscriber.receives(5)
        assert [item if isinstance(item, str) else type(item) for item in subscriber.received] == [
            "1",
            "2",
            "3",
            Gap,
            "5",
        ]


@pytest.mark.parametrize("reports", ["gap", "revoked"])
async def test_a_reported_loss_is_repaired(reports: str) -> None:
    """A loss that the adapter reports while the link is open is repaired too, and one on a plain channel is a gap."""
    async with history_world() as worker:
        kept, plain = await worker.joined("k"), await worker.joined("plain")
        worker.append("k", "1")
        worker.adapter.skips_live = True
        worker.append("k", "2")
        worker.adapter.skips_live = False
        sink = worker.adapter.links[-1]
        (sink.gap if reports == "gap" else sink.revoked)(["k", "plain"], "dropped")
        assert await kept.receives(2) == ["1", "2"]
        assert await plain.receives(1) == [Gap(channel="plain", reason="dropped")]


async def test_a_refused_channel() -> None:
    """Subscribers of a kept channel that the broker now refuses are notified, and once more when it is confirmed."""
    async with history_world(settings=replace(SETTINGS, probe_interval_seconds=0.05)) as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        worker.adapter.refusals["k"] = "no permission"
        await worker.missing("k", "2")
        await subscriber.receives(2)
        worker.append("k", "3")
        del worker.adapter.refusals["k"]
        await subscriber.receives(3)
        await worker.settled()
        worker.append("k", "4")
        first, refused, back, last = await subscriber.receives(4)
        assert isinstance(refused, Gap)
        assert isinstance(back, Gap)
        assert (first, last) == ("1", "4")
        assert "no permission" in refused.reason


async def test_an_unkept_message_is_delivered_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """A message that its publisher did not keep is delivered; it is counted, and logged once per channel."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        worker.deliver("k", "unkept", "again")
        worker.append("k", "2")
        assert await subscriber.receives(4) == ["1", "unkept", "again", "2"]
        assert worker.statistics.unkept == 2
    assert len([line for line in warnings_of(caplog) if "without history" in line]) == 1


async def test_a_malformed_message_is_dropped_and_leaves_no_hole() -> None:
    """A malformed kept payload is dropped, and what follows it needs no read."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        worker.adapter.append("k", b"\xbfBP")
        worker.append("k", "2")
        assert await subscriber.receives(2) == ["1", "2"]
        assert worker.hub.malformed == 1
        assert len(worker.adapter.recalls) == 1
        await worker.degrade()
        worker.adapter.append("k", b"\xbfBP")
        worker.append("k", "3")
        worker.adapter.start_gate.open()
        assert await subscriber.receives(3) == ["1", "2", "3"]
        assert worker.hub.malformed == 2


async def test_a_read_that_fails_is_tried_again() -> None:
    """A read that fails for the moment is tried again, and then repairs."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        worker.adapter.recall_errors = [BrokerUnavailableError("loading")] * 2
        await worker.missing("k", "2")
        assert await subscriber.receives(2) == ["1", "2"]


@pytest.mark.parametrize(
    ("error", "settings"),
    [
        (BrokerError("not permitted"), SETTINGS),
        (BrokerUnavailableError("loading"), replace(SETTINGS, repair_timeout_seconds=0.01)),
    ],
)
async def test_a_history_that_cannot_be_read_is_a_gap(error: BrokerError, settings: Settings) -> None:
    """Where the broker refuses, or does not return the history in time, one gap is reported, and messages go on."""
    async with history_world(settings=settings) as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        worker.adapter.recall_error = error
        await worker.missing("k", "2")
        await worker.settled()
        worker.append("k", "3")
        first, gap, last = await subscriber.receives(3)
        assert isinstance(gap, Gap)
        assert (first, last) == ("1", "3")
        assert str(error) in gap.reason
        joined = await worker.joins("k", since=str(worker.adapter.log("k").items[0].place))
        assert joined.joins[0].gap is not None


async def test_a_read_without_an_answer() -> None:
    """A read that gets no answer in time is tried again."""
    async with history_world(settings=replace(SETTINGS, recall_timeout_seconds=0.05)) as worker:
        subscriber = await worker.joined("k")
        worker.adapter.recall_gate.close()
        await worker.missing("k", "1")
        await worker.adapter.until(lambda: len(worker.adapter.recalls) >= 3)
        worker.adapter.recall_gate.open()
        assert await subscriber.receives(1) == ["1"]


async def test_an_adapter_that_resumes() -> None:
    """Channels of an adapter that continues by itself are not read after a lost link; its gap empties the ring."""
    adapter = ControlledHistoryAdapter(resumes=True)
    async with history_world(adapter) as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        await worker.recover()
        worker.append("k", "2")
        assert await subscriber.receives(2) == ["1", "2"]
        assert len(adapter.recalls) == 1
        adapter.links[-1].gap(["k"], "records are gone")
        assert worker.hub.position("k") is None
        late = await worker.joins("k", since=str(adapter.log("k").top))
        assert late.joins[0].gap is not None
        worker.append("k", "3")
        assert await late.receives(1) == ["3"]
        assert await subscriber.receives(4) == ["1", "2", Gap(channel="k", reason="records are gone"), "3"]


async def test_many_channels_are_repaired() -> None:
    """A thousand channels are repaired after one lost link."""
    async with history_world() as worker:
        subscribers = {f"k{number}": RecordingSubscriber() for number in range(1_000)}
        await asyncio.gather(*(worker.hub.join(channel, subscriber) for channel, subscriber in subscribers.items()))
        for channel in subscribers:
            worker.append(channel, "1")
        await worker.degrade()
        for channel in subscribers:
            worker.append(channel, "2")
        worker.adapter.start_gate.open()
        for subscriber in subscribers.values():
            assert await subscriber.receives(2) == ["1", "2"]
        assert worker.statistics.repaired == 1_000


async def test_channels_that_are_proved_meanwhile_do_not_delay_the_others() -> None:
    """Where messages prove that many channels miss nothing, before their turn, those after them are read all the same.

    And the time of their next repair begins with its first read.
    """
    async with history_world() as worker:
        names = [f"k{number}" for number in range(300)]
        for name in names:
            await worker.joined(name)
            worker.append(name, "1")
        worker.adapter.recall_gate.close()
        recalls = len(worker.adapter.recalls)
        await worker.missing("k")
        await worker.adapter.until(lambda: len(worker.adapter.recalls) > recalls)
        are_read = {recall.channel for recall in worker.adapter.recalls[recalls:]}
        *proved, _ = [name for name in names if name not in are_read]
        for name in proved:
            worker.append(name, "2")
        worker.adapter.recall_gate.open()
        await worker.settled()
        kept_channels = list(worker.history_hub.quiet)
        assert len(kept_channels) == len(names)
        assert [kept.repair_since for kept in kept_channels if kept.repair_since is not None] == []


async def test_a_message_after_a_revocation_is_no_gap() -> None:
    """A message that arrives before the broker has confirmed a revoked channel again is delivered without a gap."""
    async with history_world() as worker:
        kept, plain = await worker.joined("k"), await worker.joined("plain")
        worker.append("k", "1")
        worker.adapter.links[-1].revoked(["k", "plain"], "revoked")
        worker.append("k", "2")
        assert await kept.receives(2) == ["1", "2"]
        assert await plain.receives(1) == [Gap(channel="plain", reason="revoked")]


async def test_an_unexpected_error_of_a_read_costs_no_link(caplog: pytest.LogCaptureFixture) -> None:
    """A fault of the adapter, or an answer that cannot be used, is logged and read again: other channels go on."""
    async with history_world() as worker:
        first, second = await worker.joined("k"), await worker.joined("k2")
        worker.append("k", "1")
        worker.append("k2", "1")
        worker.adapter.recall_errors = [KeyError("fault"), KeyError("fault")]
        await worker.missing("k", "2")
        await worker.settled()
        generation = worker.supervisor.generation
        assert await first.receives(2) == ["1", "2"]
        assert await second.receives(1) == ["1"]
        no_place: Any = None
        worker.adapter.recall_answers = [Recalled(items=[KeptMessage(b"3", no_place)], top=worker.adapter.log("k").top)]
        worker.adapter.skips_live = True
        worker.append("k", "3")
        worker.adapter.skips_live = False
        worker.append("k", "4")
        assert await first.receives(4) == ["1", "2", "3", "4"]
        assert worker.supervisor.generation == generation == 2
    assert "failed unexpectedly" in caplog.text


async def test_a_channel_that_is_left_while_it_is_read_is_not_read_again() -> None:
    """A read that fails for a channel without subscribers is not repeated."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.adapter.recall_gate.close()
        await worker.missing("k", "1")
        await worker.adapter.until(lambda: len(worker.adapter.recalls) == 2)
        worker.hub.leave("k", subscriber)
        worker.adapter.recall_errors = [BrokerUnavailableError("not now")]
        worker.adapter.recall_gate.open()
        await worker.joined("k2")
        assert [recall.channel for recall in worker.adapter.recalls] == ["k", "k", "k2"]


# An adapter that resumes reads no further than this worker has received.


async def test_a_channel_without_a_rule_is_delivered() -> None:
    """A message of a channel without a rule is delivered as on any hub, and nothing is known of its position."""
    async with history_world() as worker:
        rules = worker.history_hub.rules
        assert (rules.rule_of("plain"), rules.rule_of("k") is None) == (None, False)
        subscriber = await worker.joined("plain")
        worker.deliver("plain", "1")
        assert await subscriber.receives(1) == ["1"]
        assert worker.hub.position("plain") is None
        assert worker.adapter.recalls == []


async def test_a_repetition_is_dropped() -> None:
    """A message that arrives twice is delivered once, and costs no read."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        kept = worker.adapter.log("k").items[0]
        worker.adapter.links[-1].deliver("k", kept.payload, kept.place)
        worker.append("k", "2")
        assert await subscriber.receives(2) == ["1", "2"]
        await until_idle()
        assert len(worker.adapter.recalls) == 1


async def test_an_unconfirmed_channel() -> None:
    """Subscribers of a kept channel that a new link leaves unconfirmed are notified, and once more at its end."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        worker.adapter.unconfirmed["k"] = "no place"
        await worker.missing("k", "2")
        _, unconfirmed = await subscriber.receives(2)
        worker.adapter.unconfirmed.clear()
        *_, back = await subscriber.receives(3)
        await worker.settled()
        worker.append("k", "3")
        assert (await subscriber.receives(4))[3] == "3"
        assert isinstance(unconfirmed, Gap)
        assert isinstance(back, Gap)
        assert unconfirmed.reason == "the broker has not confirmed the channel again: no place"


async def test_a_channel_whose_part_of_the_link_is_down() -> None:
    """It waits for its part as for a link: it is not notified meanwhile, and then gets what it missed."""
    async with history_world(ControlledHistoryAdapter(parts=True)) as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        worker.adapter.unconfirmed["k"] = "its node is down"
        worker.adapter.links[-1].revoked(["k"], "its node was lost")
        worker.append("k", "2")
        worker.broker_subscriptions.on_overdue({"k": "its node is down"})
        worker.adapter.unconfirmed.clear()
        assert await subscriber.receives(2) == ["1", "2"]


async def test_a_notice_of_a_channel_that_misses_nothing() -> None:
    """A channel whose messages are proved has no gap where the broker reports that it is refused."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.broker_subscriptions.on_refused({"k": "no permission", "other": "no permission"})
        worker.append("k", "1")
        assert await subscriber.receives(1) == ["1"]


async def test_a_channel_that_is_revoked_and_then_refused() -> None:
    """Subscribers of a kept channel that the broker revokes and then refuses are notified once, with its reason."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        worker.adapter.refusals["k"] = "no permission"
        worker.adapter.links[-1].revoked(["k"], "access was changed")
        _, gap = await subscriber.receives(2)
        await until_idle()
        assert isinstance(gap, Gap)
        assert "no permission" in gap.reason
        assert len(subscriber.received) == 2


async def test_a_message_before_the_end_of_a_gap_that_the_adapter_reports() -> None:
    """Of an adapter that continues by itself, a message while a gap is open comes after that gap."""
    async with history_world(ControlledHistoryAdapter(resumes=True)) as worker:
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        worker.hub.open_gap(["k"], "records are gone")
        worker.append("k", "2", "3")
        assert await subscriber.receives(4) == ["1", Gap(channel="k", reason="records are gone"), "2", "3"]


async def test_a_loss_that_is_reported_without_a_subscription() -> None:
    """What is reported of a channel that the broker has not confirmed is read once it has."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        await worker.degrade()
        reads = len(worker.adapter.recalls)
        worker.hub.gap(["k"], "dropped")
        await until_idle()
        assert len(worker.adapter.recalls) == reads
        worker.append("k", "1")
        worker.adapter.start_gate.open()
        assert await subscriber.receives(1) == ["1"]


async def test_a_history_that_does_not_lead_to_what_was_received() -> None:
    """Where what is read does not join what has arrived, it is read three times, and the gap states why."""
    async with history_world() as worker:
        worker.append("k", "1")
        await worker.joined("k")
        worker.append("k", "2")
        worker.adapter.log("k").items.clear()
        late = await worker.joins("k", since=str(Position(worker.adapter.log("k").epoch, 1, 1)), rewind=9)
        gap = late.joins[0].gap
        assert gap is not None
        assert gap.reason == "the history has moved on while it was read"
        assert late.received == ["2"]
        assert len(worker.adapter.recalls) == 4


async def test_a_read_that_fails_after_the_last_subscriber_left() -> None:
    """A read that fails for a channel that was left concerns no later join of it."""
    async with history_world() as worker:
        worker.append("k", "1")
        worker.adapter.recall_gate.close()
        joining = asyncio.create_task(worker.joins("k", rewind=1))
        await worker.adapter.until(lambda: len(worker.adapter.recalls) == 1)
        joining.cancel()
        await asyncio.wait([joining])
        worker.adapter.recall_errors = [BrokerError("not permitted")]
        again = asyncio.create_task(worker.joins("k", rewind=1))
        await until_idle()
        worker.adapter.recall_gate.open()
        subscriber = await again
        assert (subscriber.received, subscriber.joins[0].gap) == (["1"], None)


class Rival(RecordingSubscriber):
    """A subscriber that makes its rival leave as soon as it gets anything.

    Attributes:
        leave_rival: Does that.
    """

    leave_rival: Callable[[], None]

    def offer(self, messages: Sequence[Message]) -> None:
        """Take messages."""
        self.leave_rival()
        super().offer(messages)

    def offer_missed(self, messages: Sequence[Message]) -> None:
        """Take messages that were missed."""
        self.leave_rival()
        super().offer_missed(messages)

    def gap(self, gap: Gap) -> None:
        """Take a gap."""
        self.leave_rival()
        super().gap(gap)


@pytest.mark.parametrize("fault", ["link", "refused", "history"])
async def test_a_channel_that_is_left_while_another_one_is_repaired(fault: str) -> None:
    """What was read for a channel is dropped if its last subscriber leaves because of what it gets on another one."""
    async with history_world() as worker:
        rivals = {"k1": Rival(), "k2": Rival()}
        rivals["k1"].leave_rival = lambda: worker.hub.leave("k2", rivals["k2"])
        rivals["k2"].leave_rival = lambda: worker.hub.leave("k1", rivals["k1"])
        for channel, subscriber in rivals.items():
            await worker.hub.join(channel, subscriber)
        worker.adapter.recall_gate.close()
        worker.adapter.recall_error = BrokerError("not permitted") if fault == "refused" else None
        recalls = len(worker.adapter.recalls)
        await worker.degrade()
        for channel in rivals:
            if fault == "history":
                worker.adapter.forget(channel)
            worker.append(channel, "1")
        worker.adapter.start_gate.open()
        await worker.adapter.until(lambda: len(worker.adapter.recalls) == recalls + 2)
        worker.adapter.recall_gate.open()
        await worker.settled()
        assert len(worker.hub.channels) == 1
        assert sorted(len(subscriber.received) for subscriber in rivals.values()) == [0, 1]


@pytest.mark.parametrize("error", [None, BrokerError("not permitted")])
async def test_a_request_for_a_channel_that_was_left(error: BrokerError | None) -> None:
    """What is read for a channel that its last subscriber has left meanwhile concerns no later join of it."""
    async with history_world() as worker:
        left = await worker.joined("k")
        kept = worker.history_hub._kept["k"]
        worker.hub.leave("k", left)
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        assert await subscriber.receives(1) == ["1"]
        kept.lose("doubt")
        worker.adapter.recall_errors = [] if error is None else [error]
        recalls = len(worker.adapter.recalls)
        worker.history_hub.repairer.request(kept)
        await worker.adapter.until(lambda: len(worker.adapter.recalls) > recalls)
        await until_idle()
        worker.append("k", "2")
        assert await subscriber.receives(2) == ["1", "2"]
        assert (kept.track.doubt, worker.hub.gaps.reported) == ("doubt", 0)


@pytest.mark.parametrize("kept", [False, True], ids=["beside the history", "in the log"])
async def test_a_path_test_on_a_kept_channel(kept: bool, caplog: pytest.LogCaptureFixture) -> None:
    """It is reported, and neither delivered, nor given back, nor taken for a message that its publisher did not keep.

    A broker whose log has everything has it too: then it leaves no hole.
    """
    reported: list[tuple[str, bytes]] = []
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.hub.on_path_test = lambda channel, test_id: reported.append((channel, test_id))
        worker.append("k", "1")
        if kept:
            worker.adapter.append("k", PATH_TEST)
        else:
            worker.hub.deliver("k", PATH_TEST)
        worker.append("k", "2")
        assert await subscriber.receives(2) == ["1", "2"]
        assert (reported, worker.hub.path_tests) == ([("k", b"TEST_ID8")], 1)
        assert (worker.hub.malformed, worker.statistics.unkept, worker.statistics.repaired) == (0, 0, 0)
        late = await worker.joins("k", rewind=2)
        assert await late.receives(2) == ["1", "2"]
    assert warnings_of(caplog) == []


async def test_a_path_test_that_was_missed() -> None:
    """One that is read after a lost link has not arrived, and is not reported."""
    reported: list[tuple[str, bytes]] = []
    async with history_world() as worker:
        worker.hub.on_path_test = lambda channel, test_id: reported.append((channel, test_id))
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        await worker.degrade()
        worker.adapter.append("k", PATH_TEST, most=100)
        worker.append("k", "2")
        worker.adapter.start_gate.open()
        assert await subscriber.receives(2) == ["1", "2"]
        assert (reported, worker.hub.path_tests, worker.hub.malformed, worker.hub.gaps.reported) == ([], 0, 0, 0)


async def test_a_path_test_that_is_held_back() -> None:
    """One that arrives while its channel is in doubt is reported at once, and once."""
    reported: list[tuple[str, bytes]] = []
    async with history_world() as worker:
        worker.hub.on_path_test = lambda channel, test_id: reported.append((channel, test_id))
        subscriber = await worker.joined("k")
        worker.append("k", "1")
        await until_idle()
        worker.hub.gap(["k"], "doubt")
        worker.adapter.append("k", PATH_TEST, most=100)
        assert reported == [("k", b"TEST_ID8")]
        worker.append("k", "2")
        assert await subscriber.receives(2) == ["1", "2"]
        assert (len(reported), worker.hub.malformed, worker.hub.gaps.reported) == (1, 0, 0)


async def test_a_malformed_message_that_is_given_back_is_counted() -> None:
    """What a repair reads and cannot decode is dropped and counted, as what arrives is; the others are delivered."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        await worker.degrade()
        worker.adapter.append("k", b"\xbfBP\x09", most=100)
        worker.append("k", "2")
        worker.adapter.start_gate.open()
        assert await subscriber.receives(1) == ["2"]
        assert (worker.hub.malformed, worker.hub.gaps.reported) == (1, 0)
