"""`backplane.fanout.gaps`: which subscribers are notified that messages may be missing, when, and how often."""

from __future__ import annotations

import asyncio

import pytest

from backplane.errors import SubscribeError
from backplane.fanout import gaps
from backplane.message import ALL, Gap
from tests.unit.doubles import RecordingSubscriber, run_passes, until_idle
from tests.unit.kit import counts, crowd, lost, running

pytestmark = pytest.mark.anyio


async def test_gap() -> None:
    """A gap that the adapter reports is delivered at once, between what was received before and after it."""
    async with running() as worker:
        one, two, other = await worker.joined("a"), await worker.joined("a"), await worker.joined("b")
        worker.deliver("a", "1")
        worker.hub.gap(["a"], "a queue overran")
        worker.deliver("a", "2")
        await until_idle()
        expected = ["1", Gap(channel="a", reason="a queue overran"), "2"]
        assert (one.received, two.received, other.received) == (expected, expected, [])


async def test_gap_of_every_channel() -> None:
    """A gap of every channel is delivered once for each channel to each of its subscribers."""
    async with running() as worker:
        one, two = await worker.joined("a", "b"), await worker.joined("b")
        worker.hub.gap(ALL, "lost")
        assert one.received == [lost("a", "lost"), lost("b", "lost")]
        assert two.received == [lost("b", "lost")]


async def test_gap_without_subscribers() -> None:
    """A gap of a channel without subscribers is dropped: a later join does not get it."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        worker.hub.leave("a", subscriber)
        worker.hub.gap(["a", "b"], "a queue overran")
        worker.hub.gap(ALL, "a queue overran")
        one, two = await worker.joined("a"), await worker.joined("b")
        worker.deliver("a", "1")
        worker.deliver("b", "2")
        await until_idle()
        assert (subscriber.received, one.received, two.received) == ([], ["1"], ["2"])


@pytest.mark.parametrize("refused", [False, True], ids=["revoked", "refused"])
async def test_gap_while_a_channel_is_not_subscribed(refused: bool) -> None:
    """A gap on a channel that is not subscribed at the moment is delivered once the channel is confirmed."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        if refused:
            await worker.lose_link()
            worker.adapter.refusals["a"] = "not yours"
            worker.open_link()
            await worker.adapter.until(lambda: len(worker.adapter.calls) == 2)
            await until_idle()
            del worker.adapter.refusals["a"]
        else:
            worker.adapter.channels.clear()
            worker.hub.revoke(["a"], "revoked")
        reported = len(subscriber.received)
        worker.hub.gap(ALL, "a queue overran")
        assert len(subscriber.received) == reported
        worker.broker_subscriptions.retry_refused()
        await worker.adapter.until(lambda: worker.adapter.channels == {"a"})
        await until_idle()
        assert subscriber.received[reported:] == [lost(reason="a queue overran")]


async def test_gap_of_a_lost_link() -> None:
    """A lost link is one gap, when the channel is confirmed again and before the first message of the new link."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        worker.deliver("a", "1")
        await worker.lose_link()
        assert subscriber.received == ["1"]
        worker.open_link()
        await worker.adapter.until(lambda: worker.adapter.channels == {"a"})
        await until_idle()
        assert subscriber.received == ["1", lost()]
        worker.deliver("a", "2")
        await until_idle()
        assert subscriber.received == ["1", lost(), "2"]


async def test_message_before_the_confirmation() -> None:
    """A message of the new link that overtakes the broker's confirmation is preceded by the gap, which comes once."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link()
        worker.deliver("a", "1")
        await until_idle()
        worker.open_link()
        await worker.adapter.until(lambda: worker.adapter.channels == {"a"})
        worker.deliver("a", "2")
        await until_idle()
        assert subscriber.received == [lost(), "1", "2"]


async def test_link_lost_twice_before_it_is_back() -> None:
    """A link that is lost again before the channel is subscribed is one gap, with the last reason."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link("first")
        worker.adapter.subscribe_gate.close()
        worker.open_link()
        await worker.adapter.until(lambda: len(worker.adapter.calls) == 2)
        await worker.lose_link("second")
        worker.adapter.subscribe_gate.open()
        worker.open_link()
        await worker.adapter.until(lambda: worker.adapter.channels == {"a"})
        worker.deliver("a", "1")
        await until_idle()
        assert subscriber.received == [lost(reason="second"), "1"]


async def test_link_lost_twice() -> None:
    """Each loss of a link that was live again is a gap."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        for number in range(3):
            await worker.lose_link(str(number))
            worker.open_link()
            await worker.adapter.until(lambda: worker.adapter.channels == {"a"})
            await until_idle()
        assert subscriber.received == [lost(reason="0"), lost(reason="1"), lost(reason="2")]


async def test_gap_is_for_the_subscribers_at_its_begin() -> None:
    """A gap is delivered to the subscribers at its begin that have not left, and to no later one."""
    async with running() as worker:
        one, two = await worker.joined("a"), await worker.joined("a")
        await worker.lose_link()
        later = RecordingSubscriber()
        joining = asyncio.create_task(worker.hub.join("a", later))
        await until_idle()
        worker.hub.leave("a", two)
        worker.open_link()
        await joining
        worker.deliver("a", "1")
        await until_idle()
        assert (one.received, two.received, later.received) == ([lost(), "1"], [], ["1"])


async def test_gap_of_a_channel_that_was_left() -> None:
    """A subscriber that joins a channel which all others left while the link was down gets no gap."""
    async with running() as worker:
        first = await worker.joined("a")
        await worker.lose_link()
        worker.hub.leave("a", first)
        second = RecordingSubscriber()
        joining = asyncio.create_task(worker.hub.join("a", second))
        await until_idle()
        worker.open_link()
        await joining
        worker.deliver("a", "1")
        await until_idle()
        assert (first.received, second.received) == ([], ["1"])


async def test_no_gap_before_the_first_confirmation() -> None:
    """A join that waits for the broker's confirmation has been promised nothing, and gets no gap."""
    async with running() as worker:
        worker.adapter.subscribe_gate.close()
        subscriber = RecordingSubscriber()
        joining = asyncio.create_task(worker.hub.join("a", subscriber))
        await worker.adapter.until(lambda: worker.adapter.calls == [("subscribe", ("a",))])
        worker.hub.gap(ALL, "a queue overran")
        await worker.lose_link()
        worker.adapter.subscribe_gate.open()
        worker.open_link()
        await joining
        worker.deliver("a", "1")
        await until_idle()
        assert subscriber.received == ["1"]


async def test_refused_on_a_new_link() -> None:
    """Subscribers of a channel that is refused on a new link get a gap with the broker's reason."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link()
        worker.adapter.refusals["a"] = "not yours"
        worker.open_link()
        await worker.adapter.until(lambda: len(worker.adapter.calls) == 2)
        await until_idle()
        assert subscriber.received == [lost(reason="the broker refused the channel: not yours")]


async def test_refused_on_a_new_link_while_a_newcomer_waits() -> None:
    """Subscribers of a channel that is refused on a new link get a gap also while another join waits for it."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link()
        worker.adapter.refusals["a"] = "not yours"
        newcomer = asyncio.create_task(worker.joined("a"))
        await until_idle()
        worker.open_link()
        with pytest.raises(SubscribeError):
            await newcomer
        await until_idle()
        assert subscriber.received == [lost(reason="the broker refused the channel: not yours")]


async def test_refused_for_a_while() -> None:
    """A channel that was refused on a new link and later confirmed missed messages in between: that is a second gap."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link()
        worker.adapter.refusals["a"] = "not yours"
        worker.open_link()
        await worker.adapter.until(lambda: len(worker.adapter.calls) == 2)
        await until_idle()
        reported = len(subscriber.received)
        worker.adapter.refusals.clear()
        worker.broker_subscriptions.retry_refused()
        await worker.adapter.until(lambda: worker.adapter.channels == {"a"})
        await until_idle()
        worker.deliver("a", "1")
        await until_idle()
        after = subscriber.received[reported:]
        assert [type(item) for item in after] == [Gap, str]


async def test_refused_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    """A channel that is subscribed to again and refused again is one gap, and one line in the log."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link()
        worker.adapter.refusals["a"] = "not yours"
        worker.open_link()
        await worker.adapter.until(lambda: len(worker.adapter.calls) == 2)
        for calls in (3, 4):
            await until_idle()
            worker.broker_subscriptions.retry_refused()
            await worker.adapter.until(lambda calls=calls: len(worker.adapter.calls) == calls)  # type: ignore[misc]
        await until_idle()
        assert subscriber.received == [lost(reason="the broker refused the channel: not yours")]
        assert caplog.messages == [
            "the broker refuses channels, their subscribers receive nothing: subscription refused: 'a': not yours"
        ]


async def test_many_refused_channels_are_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Many refused channels are logged as one line for the first and one for the rest; each is a gap."""
    names = [f"room{number}" for number in range(50)]
    async with running() as worker:
        subscriber = await worker.joined(*names)
        worker.hub.open_gap(names, "lost")
        worker.hub.gaps.notify_refused(dict.fromkeys(names[:30], "not yours"))
        worker.hub.gaps.notify_refused(dict.fromkeys(names, "not yours"))
        assert len(subscriber.received) == 50
        words = "the broker refuses channels, their subscribers receive nothing: subscription refused: "
        assert [line.partition(words)[2][:8] for line in caplog.messages] == ["'room0':", "'room30'"]


async def test_unconfirmed_on_a_new_link(caplog: pytest.LogCaptureFixture) -> None:
    """Subscribers of a channel that a new link leaves unconfirmed get one gap while it does, and one when it does not.

    A subscriber that joins meanwhile has missed nothing, and gets none.
    """
    async with running() as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link()
        worker.adapter.unconfirmed["a"] = "no place"
        worker.open_link()
        newcomer = asyncio.create_task(worker.joined("a"))
        await worker.adapter.until(lambda: len(worker.adapter.calls) == 8)  # two more than it takes
        await until_idle()
        gap = lost(reason="the broker has not confirmed the channel again: no place")
        assert subscriber.received == [gap]
        assert caplog.messages == [
            "the broker does not confirm channels, their subscribers receive nothing: not confirmed yet: 'a': no place"
        ]
        worker.adapter.unconfirmed.clear()
        late = await newcomer
        worker.deliver("a", "1")
        await until_idle()
        assert subscriber.received == [gap, gap, "1"]
        assert late.received == ["1"]


async def test_unconfirmed_and_then_refused() -> None:
    """The final refusal of a channel that was unconfirmed is another gap, with the broker's reason."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link()
        worker.adapter.unconfirmed["a"] = "no place"
        worker.open_link()
        await worker.adapter.until(lambda: len(worker.adapter.calls) == 6)
        await until_idle()
        assert len(subscriber.received) == 1
        worker.adapter.unconfirmed.clear()
        worker.adapter.refusals["a"] = "not yours"
        await worker.adapter.until(lambda: len(worker.adapter.calls) == 7)
        await until_idle()
        assert subscriber.received[1] == lost(reason="the broker refused the channel: not yours")


@pytest.mark.parametrize("at_once", [True, False], ids=["gap", "open_gap"])
async def test_gap_during_a_long_fan_out(at_once: bool) -> None:
    """A gap follows everything received before it, for all subscribers, at whichever slice the fan-out is."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        subscribers = await crowd(worker, "a", 10)
        others = await crowd(worker, "b", 4)
        worker.deliver("a", "1")
        worker.deliver("b", "x")
        await run_passes(1)
        worker.deliver("a", "2")
        if at_once:
            worker.hub.gap(["a"], "overrun")
        else:
            worker.hub.open_gap(["a"], "overrun")
        if at_once:
            assert [subscriber.received[:2] for subscriber in subscribers] == [["1", "2"]] * 10
        worker.deliver("a", "3")
        await run_passes(20)
        assert [subscriber.received for subscriber in subscribers] == [["1", "2", lost(reason="overrun"), "3"]] * 10
        assert [subscriber.received for subscriber in others] == [["x"]] * 4


async def test_many_subscribers_are_notified_in_slices() -> None:
    """Few are notified at once, the others in later passes, each before what follows the gap on its channel."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        subscribers, others = await crowd(worker, "a", 10), await crowd(worker, "b", 4)
        worker.deliver("a", "1")
        worker.hub.gap(ALL, "overrun")
        assert [subscriber.received for subscriber in subscribers] == [["1", lost(reason="overrun")]] * 3 + [["1"]] * 7
        assert counts(others) == (0,)
        worker.deliver("a", "2")
        worker.hub.leave("a", subscribers[-1])
        late = await worker.joined("a")
        await run_passes(1)
        assert 3 < sum(lost(reason="overrun") in subscriber.received for subscriber in subscribers) < 9
        await run_passes(20)
        expected = ["1", lost(reason="overrun"), "2"]
        assert [subscriber.received for subscriber in subscribers] == [expected] * 9 + [["1"]]
        assert [subscriber.received for subscriber in others] == [[lost("b", "overrun")]] * 4
        assert late.received == ["2"]


async def test_two_gaps_of_many_subscribers() -> None:
    """A second gap follows the first one, also where not every subscriber has been notified of that."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        subscribers = await crowd(worker, "a", 10)
        worker.hub.gap(["a"], "first")
        worker.deliver("a", "1")
        worker.hub.gap(["a"], "second")
        worker.deliver("a", "2")
        await run_passes(20)
        expected = [lost(reason="first"), "1", lost(reason="second"), "2"]
        assert [subscriber.received for subscriber in subscribers] == [expected] * 10


async def test_a_gap_delivers_nothing_of_other_channels() -> None:
    """What was received of other channels is delivered in its own slices, as without the gap."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        subscriber, others = await worker.joined("a"), await crowd(worker, "b", 10)
        worker.deliver("b", "x")
        worker.hub.gap(["a"], "overrun")
        assert (subscriber.received, counts(others)) == ([lost(reason="overrun")], (0,))
        await run_passes(20)
        assert [other.received for other in others] == [["x"]] * 10


async def test_a_gap_of_a_channel_that_rests() -> None:
    """What a channel collects while it rests after a long fan-out is delivered before a gap."""
    async with running(slice_size=3, pass_seconds=0.0, most_rest_seconds=60.0) as worker:
        subscribers = await crowd(worker, "a", 10)
        timer = asyncio.get_running_loop().call_later(60, lambda: None)
        worker.hub._resting["a"] = timer  # pyright: ignore[reportPrivateUsage]
        worker.deliver("a", "1")
        worker.hub.gap(["a"], "overrun")
        assert timer.cancelled()
        await run_passes(20)
        assert [subscriber.received for subscriber in subscribers] == [["1", lost(reason="overrun")]] * 10


async def test_subscriber_that_raises_at_a_gap(caplog: pytest.LogCaptureFixture) -> None:
    """A subscriber that raises at a gap affects neither the other subscribers nor the caller."""
    async with running() as worker:
        bad, good = await worker.joined("a"), await worker.joined("a")

        def fail(_: Gap) -> None:
            raise KeyError("a fault")

        bad.gap = fail  # type: ignore[method-assign,assignment]
        worker.hub.gap(["a"], "overrun")
        assert good.received == [Gap(channel="a", reason="overrun")]
        assert [line.partition(": KeyError at test_gaps.py:")[0] for line in caplog.messages] == [
            "a subscriber of channel 'a' failed",
            "messages may be missing on 1 channels, such as 'a', of 2 subscribers: overrun",
        ]
        assert "a fault" not in caplog.text


async def test_many_refusals_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Refusals of hundreds of channels in one answer are one line in the log, and each is a gap."""
    names = [f"room-{number}" for number in range(400)]
    async with running() as worker:
        subscriber = await worker.joined(*names)
        await worker.lose_link()
        worker.adapter.refusals |= dict.fromkeys(names, "not yours")
        worker.open_link()
        await worker.adapter.until(lambda: len(worker.adapter.calls[-1][1]) == 400)
        await until_idle()
        assert len(subscriber.received) == 400
        (line,) = caplog.messages
        assert line.endswith("(and 395 more)")


async def test_refusal_on_a_resumed_link_follows_what_was_received() -> None:
    """Messages that a resumed link delivered before the broker refused the channel come before the gap."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        worker.hub.open_gap(["a"], "the link was lost", resumed=True)
        worker.deliver("a", "1")
        worker.hub.gaps.notify_refused({"a": "not yours"})
        await until_idle()
        assert subscriber.received == ["1", lost(reason="the broker refused the channel: not yours")]


async def test_gap_that_is_open_is_not_reopened() -> None:
    """Where a gap is open, another reason changes neither its reason nor what its subscribers were notified of."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        gaps = worker.hub.gaps
        gaps.reopen("a", "the first reason")
        gaps.notify_refused({"a": "not yours"})
        gaps.reopen("a", "the second reason")
        gaps.notify_refused({"a": "not yours"})
        assert subscriber.received == [lost("a", "the broker refused the channel: not yours")]


async def test_a_gap_of_many_channels_takes_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few channels are reported at once, the others later, each once and before a message that arrives meanwhile."""
    monkeypatch.setattr(gaps, "_CHANNELS_AT_ONCE", 3)
    monkeypatch.setattr(gaps, "_CHANNELS_PER_CALL", 2)
    names = [f"channel {number}" for number in range(1_000)]
    async with running() as worker:
        subscriber = await worker.joined(*names)
        worker.hub.gap(ALL, "overrun")
        assert subscriber.received == [lost(name, "overrun") for name in names[:3]]
        worker.deliver(names[-1], "1")
        assert subscriber.received == [lost(name, "overrun") for name in (*names[:3], names[-1])]
        await run_passes(2)
        assert 3 < len(subscriber.received) < len(names)
        await until_idle()
        expected = [lost(name, "overrun") for name in (*names[:3], names[-1], *names[3:-1])]
        assert [item for item in subscriber.received if item != "1"] == expected
        assert worker.hub.gaps.reported == len(names)


async def test_a_link_lost_while_a_gap_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not reported yet when the link is lost is reported once, when the next link has confirmed its channel."""
    monkeypatch.setattr(gaps, "_CHANNELS_AT_ONCE", 1)
    async with running() as worker:
        subscriber = await worker.joined("a", "b")
        worker.hub.gap(["a", "b"], "overrun")
        assert subscriber.received == [lost("a", "overrun")]
        worker.hub.open_gap(ALL, "lost")
        worker.broker_subscriptions.forget_link()
        await until_idle()
        assert subscriber.received == [lost("a", "overrun")]
        await worker.lose_link()
        worker.open_link()
        await until_idle()
        assert sorted(gap.channel for gap in subscriber.received[1:] if isinstance(gap, Gap)) == ["a", "b"]
