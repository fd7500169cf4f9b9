"""`backplane.fanout.broker_subscriptions`: the wanted channels, and how the broker is brought in line with them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from backplane.errors import BrokerUnavailableError, SubscribeError
from backplane.fanout.broker_subscriptions import BrokerSubscriptions
from tests.unit.doubles import ControlledBroadcaster, following, run_passes, until_idle
from tests.unit.kit import AT_ONCE, NEVER

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

pytestmark = pytest.mark.anyio


@pytest.fixture
def broadcaster() -> ControlledBroadcaster:
    """Return a broker that the test controls."""
    return ControlledBroadcaster()


def subscriptions_of(
    *, linger_seconds: float = NEVER, timeout_seconds: float = 10.0, batch_size: int = 500
) -> BrokerSubscriptions:
    """Return the subscriptions of a worker, which by default drop no channel within a test."""
    return BrokerSubscriptions(linger_seconds=linger_seconds, timeout_seconds=timeout_seconds, batch_size=batch_size)


async def test_acquire(broadcaster: ControlledBroadcaster) -> None:
    """A wanted channel is subscribed at the broker, and then confirmed."""
    broker_subscriptions = subscriptions_of()
    async with following(broker_subscriptions, broadcaster):
        await broker_subscriptions.acquire("a")
        assert broadcaster.channels == {"a"}
        assert (set(broker_subscriptions.wanted), set(broker_subscriptions.confirmed)) == ({"a"}, {"a"})


async def test_acquire_waits_for_the_broker(broadcaster: ControlledBroadcaster) -> None:
    """A channel is not confirmed before the broker has answered."""
    broker_subscriptions = subscriptions_of()
    broadcaster.subscribe_gate.close()
    async with following(broker_subscriptions, broadcaster):
        joining = asyncio.create_task(broker_subscriptions.acquire("a"))
        await broadcaster.until(lambda: broadcaster.calls == [("subscribe", ("a",))])
        assert (joining.done(), set(broker_subscriptions.wanted), set(broker_subscriptions.confirmed)) == (
            False,
            {"a"},
            set(),
        )
        broadcaster.subscribe_gate.open()
        await joining
        assert set(broker_subscriptions.confirmed) == {"a"}


async def test_concurrent_acquires_share_one_subscription(broadcaster: ControlledBroadcaster) -> None:
    """A hundred joins of one channel, before, during and after the request to the broker, cause one request."""
    broker_subscriptions = subscriptions_of()
    broadcaster.subscribe_gate.close()
    async with following(broker_subscriptions, broadcaster):
        joining = [asyncio.create_task(broker_subscriptions.acquire("a")) for _ in range(50)]
        await broadcaster.until(lambda: broadcaster.calls == [("subscribe", ("a",))])
        joining += [asyncio.create_task(broker_subscriptions.acquire("a")) for _ in range(50)]
        await until_idle()
        broadcaster.subscribe_gate.open()
        await asyncio.gather(*joining)
        await broker_subscriptions.acquire("a")
        assert broadcaster.calls == [("subscribe", ("a",))]


async def test_release_lingers(broadcaster: ControlledBroadcaster) -> None:
    """A released channel stays wanted for the linger time, and is then unsubscribed once."""
    broker_subscriptions = subscriptions_of(linger_seconds=0.001)
    async with following(broker_subscriptions, broadcaster):
        await broker_subscriptions.acquire("a")
        broker_subscriptions.release("a")
        broker_subscriptions.release("a")
        assert (set(broker_subscriptions.wanted), broadcaster.channels) == ({"a"}, {"a"})
        await broadcaster.until(lambda: broadcaster.channels == set())
        assert broadcaster.calls == [("subscribe", ("a",)), ("unsubscribe", ("a",))]
        assert (set(broker_subscriptions.wanted), set(broker_subscriptions.confirmed)) == (set(), set())


async def test_release_of_what_is_not_wanted(broadcaster: ControlledBroadcaster) -> None:
    """Releasing a channel that is not wanted changes nothing."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    async with following(broker_subscriptions, broadcaster):
        broker_subscriptions.release("a")
        await until_idle()
        assert broadcaster.calls == []


async def test_acquire_again_while_lingering(broadcaster: ControlledBroadcaster) -> None:
    """A channel that is acquired again within the linger time stays subscribed, without a request."""
    broker_subscriptions = subscriptions_of()
    async with following(broker_subscriptions, broadcaster):
        await broker_subscriptions.acquire("a")
        for _ in range(10):
            broker_subscriptions.release("a")
            await broker_subscriptions.acquire("a")
        await broker_subscriptions.acquire("b")
        assert broadcaster.calls == [("subscribe", ("a",)), ("subscribe", ("b",))]


async def test_acquire_again_ends_the_lingering(broadcaster: ControlledBroadcaster) -> None:
    """A channel that was acquired again is not dropped at the end of the first linger time."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    async with following(broker_subscriptions, broadcaster):
        await broker_subscriptions.acquire("a")
        broker_subscriptions.release("a")
        await broker_subscriptions.acquire("a")
        await until_idle()
        assert (set(broker_subscriptions.wanted), broadcaster.channels) == ({"a"}, {"a"})


async def test_acquire_again_while_the_unsubscribe_is_pending(broadcaster: ControlledBroadcaster) -> None:
    """A channel that is acquired again before it was unsubscribed stays subscribed, without a request."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    async with following(broker_subscriptions, broadcaster):
        await broker_subscriptions.acquire("a")
        broadcaster.subscribe_gate.close()
        joining = asyncio.create_task(broker_subscriptions.acquire("b"))
        await broadcaster.until(lambda: broadcaster.calls[-1] == ("subscribe", ("b",)))
        broker_subscriptions.release("a")
        await until_idle()
        assert (set(broker_subscriptions.wanted), set(broker_subscriptions.confirmed)) == ({"b"}, set())
        await broker_subscriptions.acquire("a")
        assert set(broker_subscriptions.confirmed) == {"a"}
        broadcaster.subscribe_gate.open()
        await joining
        await broker_subscriptions.acquire("c")
        assert broadcaster.calls == [("subscribe", ("a",)), ("subscribe", ("b",)), ("subscribe", ("c",))]
        assert broadcaster.channels == {"a", "b", "c"}


async def test_acquire_again_while_the_unsubscribe_is_in_flight(broadcaster: ControlledBroadcaster) -> None:
    """A channel that is acquired again while it is unsubscribed is subscribed anew, and not confirmed before."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    async with following(broker_subscriptions, broadcaster):
        await broker_subscriptions.acquire("a")
        broadcaster.unsubscribe_gate.close()
        broker_subscriptions.release("a")
        await broadcaster.until(lambda: broadcaster.calls[-1] == ("unsubscribe", ("a",)))
        joining = asyncio.create_task(broker_subscriptions.acquire("a"))
        await until_idle()
        assert joining.done() is False
        broadcaster.unsubscribe_gate.open()
        await joining
        assert broadcaster.calls == [("subscribe", ("a",)), ("unsubscribe", ("a",)), ("subscribe", ("a",))]
        assert broadcaster.channels == {"a"}


async def test_release_again_while_the_unsubscribe_is_in_flight(broadcaster: ControlledBroadcaster) -> None:
    """A channel that is acquired and released again while it is unsubscribed stays unsubscribed."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    async with following(broker_subscriptions, broadcaster):
        await broker_subscriptions.acquire("a")
        broadcaster.unsubscribe_gate.close()
        broker_subscriptions.release("a")
        await broadcaster.until(lambda: broadcaster.calls[-1] == ("unsubscribe", ("a",)))
        joining = asyncio.create_task(broker_subscriptions.acquire("a"))
        await until_idle()
        broker_subscriptions.release("a")
        with pytest.raises(BrokerUnavailableError, match=r"^channel 'a' was released before the broker confirmed it$"):
            await joining
        broadcaster.unsubscribe_gate.open()
        await broker_subscriptions.acquire("b")
        assert broadcaster.calls == [("subscribe", ("a",)), ("unsubscribe", ("a",)), ("subscribe", ("b",))]


async def test_release_while_the_subscribe_is_in_flight(broadcaster: ControlledBroadcaster) -> None:
    """A channel that is released while it is being subscribed ends unsubscribed."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    broadcaster.subscribe_gate.close()
    async with following(broker_subscriptions, broadcaster):
        joining = asyncio.create_task(broker_subscriptions.acquire("a"))
        await broadcaster.until(lambda: broadcaster.calls == [("subscribe", ("a",))])
        joining.cancel()
        broker_subscriptions.release("a")
        await until_idle()
        assert (joining.cancelled(), set(broker_subscriptions.wanted)) == (True, set())
        broadcaster.subscribe_gate.open()
        await broadcaster.until(lambda: broadcaster.calls == [("subscribe", ("a",)), ("unsubscribe", ("a",))])
        assert (broadcaster.channels, set(broker_subscriptions.confirmed)) == (set(), set())


async def test_acquire_again_while_the_first_subscribe_is_in_flight(broadcaster: ControlledBroadcaster) -> None:
    """A channel that is released and acquired again during one request is confirmed by that request."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    broadcaster.subscribe_gate.close()
    async with following(broker_subscriptions, broadcaster):
        first = asyncio.create_task(broker_subscriptions.acquire("a"))
        await broadcaster.until(lambda: broadcaster.calls == [("subscribe", ("a",))])
        first.cancel()
        broker_subscriptions.release("a")
        await until_idle()
        second = asyncio.create_task(broker_subscriptions.acquire("a"))
        await until_idle()
        broadcaster.subscribe_gate.open()
        await second
        await broker_subscriptions.acquire("b")
        assert broadcaster.calls == [("subscribe", ("a",)), ("subscribe", ("b",))]
        assert broadcaster.doubled == []


async def test_cancelled_before_the_request(broadcaster: ControlledBroadcaster) -> None:
    """A channel that is released before its request is never requested."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    broadcaster.subscribe_gate.close()
    async with following(broker_subscriptions, broadcaster):
        first = asyncio.create_task(broker_subscriptions.acquire("a"))
        await broadcaster.until(lambda: broadcaster.calls == [("subscribe", ("a",))])
        second = asyncio.create_task(broker_subscriptions.acquire("b"))
        await until_idle()
        second.cancel()
        broker_subscriptions.release("b")
        await until_idle()
        broadcaster.subscribe_gate.open()
        await first
        await broker_subscriptions.acquire("c")
        assert broadcaster.calls == [("subscribe", ("a",)), ("subscribe", ("c",))]


async def test_cancelling_one_of_two(broadcaster: ControlledBroadcaster) -> None:
    """A join that is cancelled does not undo another join of its channel."""
    broker_subscriptions = subscriptions_of()
    broadcaster.subscribe_gate.close()
    async with following(broker_subscriptions, broadcaster):
        joining = [asyncio.create_task(broker_subscriptions.acquire("a")) for _ in range(2)]
        await broadcaster.until(lambda: broadcaster.calls == [("subscribe", ("a",))])
        joining[0].cancel()
        broadcaster.subscribe_gate.open()
        await joining[1]
        assert (joining[0].cancelled(), set(broker_subscriptions.confirmed)) == (True, {"a"})


async def test_refused(broadcaster: ControlledBroadcaster) -> None:
    """A refused channel raises the broker's reason, and the others of the batch are confirmed."""
    broker_subscriptions = subscriptions_of()
    broadcaster.refusals["b"] = "not yours"
    async with following(broker_subscriptions, broadcaster):
        results = await asyncio.gather(
            *(broker_subscriptions.acquire(channel) for channel in "abc"), return_exceptions=True
        )
        assert broadcaster.calls == [("subscribe", ("a", "b", "c"))]
        assert (results[0], results[2]) == (None, None)
        assert isinstance(results[1], SubscribeError)
        assert results[1].refused == {"b": "not yours"}
        assert set(broker_subscriptions.confirmed) == {"a", "c"}


async def test_refused_leaves_nothing(broadcaster: ControlledBroadcaster) -> None:
    """A refused channel that is released is forgotten, without a request."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    broadcaster.refusals["a"] = "not yours"
    async with following(broker_subscriptions, broadcaster):
        with pytest.raises(SubscribeError):
            await broker_subscriptions.acquire("a")
        broker_subscriptions.release("a")
        await until_idle()
        broker_subscriptions.retry_refused()
        await until_idle()
        assert broadcaster.calls == [("subscribe", ("a",))]
        assert (set(broker_subscriptions.wanted), set(broker_subscriptions.confirmed)) == (set(), set())


async def test_refused_once(broadcaster: ControlledBroadcaster) -> None:
    """A channel that was refused is requested again by the next join."""
    broker_subscriptions = subscriptions_of()
    broadcaster.refusals["a"] = "not yours"
    async with following(broker_subscriptions, broadcaster):
        with pytest.raises(SubscribeError):
            await broker_subscriptions.acquire("a")
        broadcaster.refusals.clear()
        await broker_subscriptions.acquire("a")
        assert broadcaster.channels == {"a"}


async def test_refused_once_is_not_subscribed_twice(broadcaster: ControlledBroadcaster) -> None:
    """A channel that was refused and then confirmed is not requested again by the retry of refusals."""
    broker_subscriptions = subscriptions_of()
    broadcaster.refusals["a"] = "not yours"
    async with following(broker_subscriptions, broadcaster):
        with pytest.raises(SubscribeError):
            await broker_subscriptions.acquire("a")
        broadcaster.refusals.clear()
        await broker_subscriptions.acquire("a")
        broker_subscriptions.retry_refused()
        await until_idle()
        assert broadcaster.calls == [("subscribe", ("a",)), ("subscribe", ("a",))]
        assert broadcaster.doubled == []


async def test_timeout(broadcaster: ControlledBroadcaster) -> None:
    """A broker that does not answer in time is unavailable."""
    broker_subscriptions = subscriptions_of(timeout_seconds=0.01)
    broadcaster.subscribe_gate.close()
    async with following(broker_subscriptions, broadcaster):
        with pytest.raises(
            BrokerUnavailableError, match=r"^the broker did not confirm channel 'a' within 0\.01 s$"
        ) as caught:
            await broker_subscriptions.acquire("a")
        assert caught.value.__suppress_context__


async def test_confirmed_after_the_timeout(broadcaster: ControlledBroadcaster) -> None:
    """A channel that was not released after a timeout is still requested, and can be confirmed."""
    broker_subscriptions = subscriptions_of(timeout_seconds=0.01)
    broadcaster.subscribe_gate.close()
    async with following(broker_subscriptions, broadcaster):
        with pytest.raises(BrokerUnavailableError):
            await broker_subscriptions.acquire("a")
        broadcaster.subscribe_gate.open()
        await broker_subscriptions.acquire("a")
        assert broadcaster.calls == [("subscribe", ("a",))]


async def test_batches(broadcaster: ControlledBroadcaster) -> None:
    """At most 500 channels are requested at a time, in the order in which they were acquired or released."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    names = [str(number) for number in range(1_201)]
    async with following(broker_subscriptions, broadcaster):
        await asyncio.gather(*(broker_subscriptions.acquire(name) for name in names))
        for name in names:
            broker_subscriptions.release(name)
        await broadcaster.until(lambda: broadcaster.channels == set())
    sizes = [(verb, len(channels)) for verb, channels in broadcaster.calls]
    assert sizes[:3] == [("subscribe", 500), ("subscribe", 500), ("subscribe", 201)]
    assert {verb for verb, _ in sizes[3:]} == {"unsubscribe"}
    assert max(size for _, size in sizes) == 500
    assert [name for _, channels in broadcaster.calls[:3] for name in channels] == names
    assert sorted(name for _, channels in broadcaster.calls[3:] for name in channels) == sorted(names)


async def test_run_ends_with_the_link(broadcaster: ControlledBroadcaster) -> None:
    """An error of the link ends `run`, and is raised to the supervisor."""
    broker_subscriptions = subscriptions_of()
    broadcaster.error = BrokerUnavailableError("gone")
    async with following(broker_subscriptions, broadcaster) as task:
        joining = asyncio.create_task(broker_subscriptions.acquire("a"))
        with pytest.raises(BrokerUnavailableError, match=r"^gone$"):
            await task
        assert joining.done() is False
    with pytest.raises(BrokerUnavailableError, match="stopped"):
        await joining


async def test_new_link(broadcaster: ControlledBroadcaster) -> None:
    """On a new link every wanted channel, the lingering ones too, is subscribed in batches of at most 500."""
    broker_subscriptions = subscriptions_of()
    names = [str(number) for number in range(700)]
    async with following(broker_subscriptions, broadcaster):
        await asyncio.gather(*(broker_subscriptions.acquire(name) for name in names))
        broker_subscriptions.release(names[0])
        broadcaster.calls.clear()
        broadcaster.channels.clear()
        broker_subscriptions.forget_link()
        assert (len(broker_subscriptions.wanted), len(broker_subscriptions.confirmed)) == (700, 0)
        await broker_subscriptions.subscribe_all(broadcaster)
        assert [(verb, len(channels)) for verb, channels in broadcaster.calls] == [
            ("subscribe", 500),
            ("subscribe", 200),
        ]
        assert (broadcaster.channels, set(broker_subscriptions.confirmed)) == (set(names), set(names))


async def test_join_across_links(broadcaster: ControlledBroadcaster) -> None:
    """A join that waits while the link is lost is confirmed by the next one."""
    broker_subscriptions = subscriptions_of()
    broadcaster.subscribe_gate.close()
    async with following(broker_subscriptions, broadcaster) as task:
        joining = asyncio.create_task(broker_subscriptions.acquire("a"))
        await broadcaster.until(lambda: broadcaster.calls == [("subscribe", ("a",))])
        task.cancel()
        await asyncio.wait([task])
        broker_subscriptions.forget_link()
        await until_idle()
        assert joining.done() is False
        broadcaster.subscribe_gate.open()
        await broker_subscriptions.subscribe_all(broadcaster)
        await joining
        assert set(broker_subscriptions.confirmed) == {"a"}


async def test_released_before_the_link_was_lost(broadcaster: ControlledBroadcaster) -> None:
    """A channel released on a link that is lost before the unsubscription is confirmed only on the next link."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    async with following(broker_subscriptions, broadcaster) as task:
        await broker_subscriptions.acquire("a")
        broadcaster.subscribe_gate.close()
        other = asyncio.create_task(broker_subscriptions.acquire("b"))
        await broadcaster.until(lambda: broadcaster.calls[-1] == ("subscribe", ("b",)))
        broker_subscriptions.release("a")
        await until_idle()
        task.cancel()
        await asyncio.wait([task])
        broker_subscriptions.forget_link()
        broadcaster.calls.clear()
        broadcaster.channels.clear()
        joining = asyncio.create_task(broker_subscriptions.acquire("a"))
        await until_idle()
        assert joining.done() is False
        broadcaster.subscribe_gate.open()
        await broker_subscriptions.subscribe_all(broadcaster)
        await asyncio.gather(joining, other)
        assert [(verb, set(channels)) for verb, channels in broadcaster.calls] == [("subscribe", {"a", "b"})]


async def test_dropped_while_the_link_is_down(broadcaster: ControlledBroadcaster) -> None:
    """A channel that is dropped while the link is down is neither subscribed nor unsubscribed on the next one."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    async with following(broker_subscriptions, broadcaster):
        await asyncio.gather(broker_subscriptions.acquire("a"), broker_subscriptions.acquire("b"))
        broadcaster.calls.clear()
        broadcaster.channels.clear()
        broker_subscriptions.forget_link()
        broker_subscriptions.release("a")
        await until_idle()
        await broker_subscriptions.subscribe_all(broadcaster)
        assert broadcaster.calls == [("subscribe", ("b",))]


async def test_dropped_while_a_resumed_link_is_subscribed(broadcaster: ControlledBroadcaster) -> None:
    """A channel of a resumed link is unsubscribed even if it is dropped before its request."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    names = [str(number) for number in range(600)]  # more than one batch
    async with following(broker_subscriptions, broadcaster):
        await asyncio.gather(*(broker_subscriptions.acquire(name) for name in names))
        broker_subscriptions.forget_link()
        broadcaster.subscribe_gate.close()
        broadcaster.calls.clear()
        resuming = asyncio.create_task(broker_subscriptions.subscribe_all(broadcaster, resumed=names))
        await broadcaster.until(lambda: bool(broadcaster.calls))
        for name in names:
            broker_subscriptions.release(name)
        await until_idle()
        broadcaster.subscribe_gate.open()
        await resuming
        await broadcaster.until(lambda: broadcaster.channels == set())
        assert set(broker_subscriptions.wanted) == set()


async def test_unconfirmed_on_a_resumed_link_and_dropped(broadcaster: ControlledBroadcaster) -> None:
    """An unconfirmed channel of a resumed link is unsubscribed when it is dropped."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    async with following(broker_subscriptions, broadcaster):
        await broker_subscriptions.acquire("a")
        broker_subscriptions.forget_link()
        broadcaster.unconfirmed["a"] = "BUSY"
        await broker_subscriptions.subscribe_all(broadcaster, resumed=["a"])
        broker_subscriptions.release("a")
        await broadcaster.until(lambda: broadcaster.channels == set())
        assert broadcaster.calls[-1] == ("unsubscribe", ("a",))


async def test_acquired_again_before_it_is_unsubscribed_on_a_resumed_link(broadcaster: ControlledBroadcaster) -> None:
    """A channel of a resumed link is not confirmed before the broker has answered its request."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    names = [str(number) for number in range(600)]  # more than one batch
    async with following(broker_subscriptions, broadcaster):
        broadcaster.unsubscribe_gate.close()
        resuming = asyncio.create_task(broker_subscriptions.subscribe_all(broadcaster, resumed=names))
        await broadcaster.until(lambda: bool(broadcaster.calls))
        joining = asyncio.create_task(broker_subscriptions.acquire(names[-1]))
        await until_idle()
        assert (joining.done(), set(broker_subscriptions.confirmed)) == (False, set())
        broadcaster.unsubscribe_gate.open()
        await asyncio.gather(resuming, joining)
        assert broadcaster.channels == {names[-1]} == set(broker_subscriptions.confirmed)


class Reports:
    """Keeps what the callbacks report."""

    def __init__(self, broker_subscriptions: BrokerSubscriptions) -> None:
        self.confirmed: list[list[str]] = []
        self.refused: list[tuple[str, str]] = []
        self.overdue: list[Mapping[str, str]] = []
        broker_subscriptions.on_confirmed = self.on_confirmed
        broker_subscriptions.on_refused = self.on_refused
        broker_subscriptions.on_overdue = self.overdue.append

    def on_confirmed(self, channels: Collection[str]) -> None:
        """Keep a confirmation."""
        self.confirmed.append(list(channels))

    def on_refused(self, refused: Mapping[str, str]) -> None:
        """Keep refusals."""
        self.refused += refused.items()


async def test_confirmations_are_reported(broadcaster: ControlledBroadcaster) -> None:
    """`on_confirmed` gets each batch that the broker has confirmed, without what it refused."""
    broker_subscriptions = subscriptions_of()
    reports = Reports(broker_subscriptions)
    broadcaster.refusals["b"] = "not yours"
    async with following(broker_subscriptions, broadcaster):
        await asyncio.gather(*(broker_subscriptions.acquire(channel) for channel in "abc"), return_exceptions=True)
    assert reports.confirmed == [["a", "c"]]


async def test_refused_on_a_new_link(broadcaster: ControlledBroadcaster) -> None:
    """A channel that is refused on a new link is reported although no join waits, and requested again on demand."""
    broker_subscriptions = subscriptions_of()
    reports = Reports(broker_subscriptions)
    async with following(broker_subscriptions, broadcaster):
        await broker_subscriptions.acquire("a")
        broadcaster.channels.clear()
        broadcaster.refusals["a"] = "not yours"
        broker_subscriptions.forget_link()
        await broker_subscriptions.subscribe_all(broadcaster)
        assert reports.refused == [("a", "not yours")]
        assert set(broker_subscriptions.confirmed) == set()
        broadcaster.refusals.clear()
        broker_subscriptions.retry_refused()
        await broadcaster.until(lambda: broadcaster.channels == {"a"})
        await until_idle()
        assert (set(broker_subscriptions.confirmed), reports.confirmed[-1]) == ({"a"}, ["a"])


async def test_refused_on_a_new_link_while_a_newcomer_waits(broadcaster: ControlledBroadcaster) -> None:
    """A channel that is refused on a new link is reported also while a new join waits for it."""
    broker_subscriptions = subscriptions_of()
    reports = Reports(broker_subscriptions)
    async with following(broker_subscriptions, broadcaster):
        await broker_subscriptions.acquire("a")
        broadcaster.channels.clear()
        broadcaster.refusals["a"] = "not yours"
        broker_subscriptions.forget_link()
        newcomer = asyncio.create_task(broker_subscriptions.acquire("a"))
        await run_passes(1)
        await broker_subscriptions.subscribe_all(broadcaster)
        with pytest.raises(SubscribeError):
            await newcomer
        assert reports.refused == [("a", "not yours")]


async def test_refused_after_it_was_dropped(
    broadcaster: ControlledBroadcaster, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal of a channel that is not wanted any more changes nothing, and is not reported."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    reports = Reports(broker_subscriptions)
    broadcaster.subscribe_gate.close()
    broadcaster.refusals["a"] = "not yours"
    async with following(broker_subscriptions, broadcaster):
        joining = asyncio.create_task(broker_subscriptions.acquire("a"))
        await broadcaster.until(lambda: broadcaster.calls == [("subscribe", ("a",))])
        joining.cancel()
        broker_subscriptions.release("a")
        await until_idle()
        broadcaster.subscribe_gate.open()
        await broker_subscriptions.acquire("b")
        broker_subscriptions.retry_refused()
        await until_idle()
        assert broadcaster.calls == [("subscribe", ("a",)), ("subscribe", ("b",))]
        assert (set(broker_subscriptions.wanted), set(broker_subscriptions.confirmed)) == ({"b"}, {"b"})
        assert (reports.refused, caplog.messages) == ([], [])


async def test_nothing_to_retry(broadcaster: ControlledBroadcaster) -> None:
    """Where nothing was refused, a retry requests nothing."""
    broker_subscriptions = subscriptions_of()
    async with following(broker_subscriptions, broadcaster):
        await broker_subscriptions.acquire("a")
        broker_subscriptions.retry_refused()
        await until_idle()
        assert broadcaster.calls == [("subscribe", ("a",))]


async def test_close(broadcaster: ControlledBroadcaster) -> None:
    """After the close nothing is wanted, joins that wait raise, and no linger timer is left."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    async with following(broker_subscriptions, broadcaster):
        await broker_subscriptions.acquire("a")
        broadcaster.subscribe_gate.close()
        joining = asyncio.create_task(broker_subscriptions.acquire("b"))
        await broadcaster.until(lambda: broadcaster.calls[-1] == ("subscribe", ("b",)))
        broker_subscriptions.release("a")
        broker_subscriptions.close()
        with pytest.raises(BrokerUnavailableError, match=r"^the backplane was stopped$"):
            await joining
        await until_idle()
        assert (set(broker_subscriptions.wanted), set(broker_subscriptions.confirmed)) == (set(), set())
        assert [verb for verb, _ in broadcaster.calls] == ["subscribe", "subscribe"]


# --- many channels on a new link -----------------------------------------------------------------------------------


def watch_pauses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Return a list that gets the bounds of each pause, and make each pause take no time."""
    bounds: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return 0.0

    monkeypatch.setattr("backplane.fanout.broker_subscriptions.random.uniform", uniform)
    return bounds


@pytest.mark.parametrize(("count", "pauses"), [(1, 0), (500, 0), (501, 1), (1_750, 3)])
async def test_batches_of_a_new_link_are_spread(
    broadcaster: ControlledBroadcaster, monkeypatch: pytest.MonkeyPatch, count: int, pauses: int
) -> None:
    """A pause is made between two batches, none before the first and none after the last."""
    broker_subscriptions = subscriptions_of()
    async with following(broker_subscriptions, broadcaster):
        async with asyncio.TaskGroup() as joining:
            for number in range(count):
                joining.create_task(broker_subscriptions.acquire(str(number)))
        broadcaster.channels.clear()
        broadcaster.calls.clear()
        broker_subscriptions.forget_link()
        bounds = watch_pauses(monkeypatch)
        await broker_subscriptions.subscribe_all(broadcaster)
        assert bounds == [(0, 0.02)] * pauses
        assert len(broadcaster.calls) == pauses + 1
        assert len(broker_subscriptions.confirmed) == count


async def test_pauses_of_very_many_channels_are_bounded_together(
    broadcaster: ControlledBroadcaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many channels there are, the pauses leave the new link time to open."""
    broker_subscriptions = subscriptions_of(batch_size=1)
    async with following(broker_subscriptions, broadcaster):
        await asyncio.gather(*(broker_subscriptions.acquire(str(number)) for number in range(500)))
        broadcaster.channels.clear()
        broker_subscriptions.forget_link()
        bounds = watch_pauses(monkeypatch)
        await broker_subscriptions.subscribe_all(broadcaster)
        assert len(bounds) == 499
        assert sum(high for _, high in bounds) <= 1.0


async def test_joins_on_a_live_link_are_not_delayed(
    broadcaster: ControlledBroadcaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joins on a live link are not delayed by pauses."""
    bounds = watch_pauses(monkeypatch)
    broker_subscriptions = subscriptions_of()
    async with following(broker_subscriptions, broadcaster):
        await asyncio.gather(*(broker_subscriptions.acquire(str(number)) for number in range(1_200)))
        assert bounds == []


async def test_unconfirmed_channel_is_requested_again(broadcaster: ControlledBroadcaster) -> None:
    """A channel without a final answer is requested again until the broker confirms it; the others do not wait."""
    broker_subscriptions = subscriptions_of()
    broadcaster.unconfirmed["a"] = "BUSY a script runs"
    async with following(broker_subscriptions, broadcaster):
        joining = asyncio.create_task(broker_subscriptions.acquire("a"))
        await broker_subscriptions.acquire("b")
        await broadcaster.until(lambda: broadcaster.calls.count(("subscribe", ("a",))) >= 2)
        assert (joining.done(), set(broker_subscriptions.confirmed)) == (False, {"b"})
        broadcaster.unconfirmed.clear()
        await joining
        assert (set(broker_subscriptions.confirmed), broadcaster.channels) == ({"a", "b"}, {"a", "b"})


async def test_channel_that_stays_unconfirmed_is_overdue(broadcaster: ControlledBroadcaster) -> None:
    """A channel that is unconfirmed until the pauses are longest is reported, and not before.

    So a passing state of the broker causes no gap.
    """
    broker_subscriptions = subscriptions_of()
    reports = Reports(broker_subscriptions)
    async with following(broker_subscriptions, broadcaster):
        await broker_subscriptions.acquire("a")
        broker_subscriptions.forget_link()
        broadcaster.unconfirmed["a"] = "no place"
        await broker_subscriptions.subscribe_all(broadcaster)
        await broadcaster.until(lambda: len(broadcaster.calls) == 5)
        await until_idle()
        assert reports.overdue == []
        await broadcaster.until(lambda: len(broadcaster.calls) == 6)
        await until_idle()
        assert reports.overdue == [{"a": "no place"}]
        broadcaster.unconfirmed.clear()
        await broker_subscriptions.acquire("a")
        assert (reports.confirmed[-1], len(reports.overdue)) == (["a"], 1)


async def test_unconfirmed_channel_in_time_names_the_reason(broadcaster: ControlledBroadcaster) -> None:
    """A join whose channel stays unconfirmed raises that the broker is unavailable, with its last reason."""
    broker_subscriptions = subscriptions_of(timeout_seconds=0.02)
    broadcaster.unconfirmed["a"] = "BUSY a script runs"
    async with following(broker_subscriptions, broadcaster):
        with pytest.raises(BrokerUnavailableError, match=r"did not confirm channel 'a' within 0\.02 s: BUSY a script"):
            await broker_subscriptions.acquire("a")


async def test_unconfirmed_channel_that_is_then_refused(broadcaster: ControlledBroadcaster) -> None:
    """A channel that was unconfirmed and is then refused raises the refusal."""
    broker_subscriptions = subscriptions_of()
    broadcaster.unconfirmed["a"] = "not now"
    async with following(broker_subscriptions, broadcaster):
        joining = asyncio.create_task(broker_subscriptions.acquire("a"))
        await broadcaster.until(lambda: len(broadcaster.calls) == 1)
        broadcaster.refusals["a"] = "never"
        broadcaster.unconfirmed.clear()
        with pytest.raises(SubscribeError, match="'a': never"):
            await joining


async def test_revocation_that_overtakes_the_confirmation_is_not_lost(broadcaster: ControlledBroadcaster) -> None:
    """A subscription that is revoked while its confirmation is being received is requested again."""
    broker_subscriptions = subscriptions_of()
    broadcaster.subscribe_gate.close()
    async with following(broker_subscriptions, broadcaster):
        joining = asyncio.create_task(broker_subscriptions.acquire("a"))
        await broadcaster.until(lambda: len(broadcaster.calls) == 1)
        broadcaster.subscribe_gate.open()
        broker_subscriptions.revoke(["a"], "revoked")
        await joining
        assert broadcaster.calls == [("subscribe", ("a",))] * 2
        assert set(broker_subscriptions.confirmed) == {"a"}


async def test_pauses_of_repeated_revocations_double(
    broadcaster: ControlledBroadcaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the broker confirms and revokes in turn, the pauses double up to one second."""
    pauses: list[float] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def record(delay: float, callback: Any, *args: Any, **options: Any) -> asyncio.TimerHandle:
        if getattr(callback, "__name__", "") == "_pause_over":
            pauses.append(delay)
            delay = 0
        return call_later(delay, callback, *args, **options)

    broker_subscriptions = subscriptions_of()
    async with following(broker_subscriptions, broadcaster):
        await broker_subscriptions.acquire("a")
        monkeypatch.setattr(loop, "call_later", record)
        for _ in range(6):
            broker_subscriptions.revoke(["a"], "revoked")
            await broker_subscriptions.acquire("a")
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]


async def test_unconfirmed_channel_that_is_dropped_is_not_requested(broadcaster: ControlledBroadcaster) -> None:
    """A channel that is dropped before the broker's final answer is not requested again."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    broadcaster.unconfirmed["a"] = "not now"
    async with following(broker_subscriptions, broadcaster):
        joining = asyncio.create_task(broker_subscriptions.acquire("a"))
        await broadcaster.until(lambda: len(broadcaster.calls) == 1)
        joining.cancel()
        broker_subscriptions.release("a")
        await until_idle()
        broadcaster.unconfirmed.clear()
        await broker_subscriptions.acquire("b")
        assert broadcaster.calls == [("subscribe", ("a",)), ("subscribe", ("b",))]


async def test_unconfirmed_on_an_old_link_is_requested_once_on_the_new_one(broadcaster: ControlledBroadcaster) -> None:
    """The pause that began on the lost link does not cause a second request on the new one."""
    broker_subscriptions = subscriptions_of()
    broadcaster.unconfirmed["a"] = "not now"
    async with following(broker_subscriptions, broadcaster):
        joining = asyncio.create_task(broker_subscriptions.acquire("a"))
        await broadcaster.until(lambda: len(broadcaster.calls) == 1)
        broadcaster.unconfirmed.clear()
        broker_subscriptions.forget_link()
        await broker_subscriptions.subscribe_all(broadcaster)
        await joining
        await asyncio.sleep(0.1)  # longer than the pause
        assert broadcaster.calls == [("subscribe", ("a",))] * 2


async def test_channel_revoked_before_its_unsubscription_is_requested_again(
    broadcaster: ControlledBroadcaster,
) -> None:
    """A channel that is revoked while its unsubscription is due is not confirmed when it is acquired again."""
    broker_subscriptions = subscriptions_of(linger_seconds=AT_ONCE)
    async with following(broker_subscriptions, broadcaster):
        await broker_subscriptions.acquire("a")
        broadcaster.subscribe_gate.close()
        joining = asyncio.create_task(broker_subscriptions.acquire("b"))  # its request delays the unsubscription
        await broadcaster.until(lambda: ("subscribe", ("b",)) in broadcaster.calls)
        broker_subscriptions.release("a")
        await until_idle()
        assert "a" not in broker_subscriptions.wanted
        broadcaster.channels.discard("a")
        broker_subscriptions.revoke(["a"], "revoked")
        again = asyncio.create_task(broker_subscriptions.acquire("a"))
        await until_idle()
        assert not again.done()
        broadcaster.subscribe_gate.open()
        await asyncio.gather(joining, again)
        assert broadcaster.channels == {"a", "b"}


async def test_revoked_channel_is_requested_again(broadcaster: ControlledBroadcaster) -> None:
    """A revoked subscription is not confirmed any more, and is requested again; others are not affected."""
    broker_subscriptions = subscriptions_of()
    async with following(broker_subscriptions, broadcaster):
        await broker_subscriptions.acquire("a")
        await broker_subscriptions.acquire("b")
        broadcaster.channels.discard("a")
        broker_subscriptions.revoke(["a", "never joined"], "revoked")
        assert set(broker_subscriptions.confirmed) == {"b"}
        await broadcaster.until(lambda: broadcaster.channels == {"a", "b"})
        await broker_subscriptions.acquire("a")
        assert broadcaster.calls[-1] == ("subscribe", ("a",))


async def test_acquire_after_the_close(broadcaster: ControlledBroadcaster) -> None:
    """After the close a channel cannot be acquired."""
    broker_subscriptions = subscriptions_of()
    async with following(broker_subscriptions, broadcaster):
        broker_subscriptions.close()
        with pytest.raises(BrokerUnavailableError, match=r"^the backplane was stopped$"):
            await broker_subscriptions.acquire("a")
