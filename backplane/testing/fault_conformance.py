"""The promises of a `Broadcaster` under faults other than the end of a connection, each as a test for any adapter.

Part of `backplane.testing.BroadcasterConformance`. What only a broker can do comes from hooks: fixtures that a suite
overrides. Where its broker cannot do it, the override skips and gives the reason; a test without its hook is skipped.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from backplane import Backlog, Backplane, BrokerError, Gap, PublishError, Receipt, SubscribeError
from backplane.broker.registry import broadcaster_from_url
from backplane.testing.harness import next_message, quick_backplane, started_worker
from backplane.testing.proxy import FaultProxy, PassingWay
from backplane.testing.recording import RecordingSink

if TYPE_CHECKING:
    from backplane import Subscription

__all__ = ["FaultConformance"]

# Longer than each limit of `quick_backplane`: an answer, and two probes of half a second, may take one second.
_PAUSE_SECONDS = 1.5
_BURST = 10_000
# Once, and again where the adapter lets the broker discard the repetition, until the publish has run out of time.
_MAX_SENT = 5

TakeAway = Callable[[str], Awaitable[None]]
FailOver = Callable[[], Awaitable[str]]
Strip = Callable[[PassingWay, bytes], bytes]


class FaultConformance:
    """A pause, a burst, a fatal channel or message, a revocation, a failover, stripped TLS."""

    # -- hooks ---------------------------------------------------------------------------------------------------------

    @pytest.fixture
    def take_away(self) -> TakeAway | None:
        """How to make the broker revoke all subscriptions to a channel on open links."""
        return None

    @pytest.fixture
    def crowded(self) -> tuple[str, Sequence[str]] | None:
        """A URL, and channels of which the broker there refuses some without naming them."""
        return None

    @pytest.fixture
    def fail_over(self) -> FailOver | None:
        """How to replace the server that `proxy` leads to, while the old one still answers on open links.

        `await fail_over()` returns the URL of the new server, past the proxy. Use `FaultProxy.lead_to` for it.
        """
        return None

    @pytest.fixture
    def strip_tls(self) -> tuple[str, Strip] | None:
        """A URL that asks for TLS, with a password, and what an attacker does to make the client go without.

        `strip(way, data)` returns what passes: see `FaultProxy.rewrite`.
        """
        return None

    # -- promises ------------------------------------------------------------------------------------------------------

    async def test_a_pause_of_the_process_is_no_outage(self, url: str) -> None:
        """Calls in flight while the event loop is blocked are answered: no unknown outcome, no gap, no new link."""
        async with (
            quick_backplane(url, probe_interval_seconds=0.5) as backplane,
            backplane.subscribe("room") as messages,
        ):
            changes: list[str] = []
            backplane.on_state(lambda change: changes.append(change.reason))
            for passes in (1, 2, 5):  # not yet written, in flight, perhaps answered
                publishing = [asyncio.create_task(backplane.publish("room", f"{passes} {n}")) for n in range(5)]
                joining = asyncio.create_task(messages.join(f"other-{passes}"))
                for _ in range(passes):
                    await asyncio.sleep(0)
                time.sleep(_PAUSE_SECONDS)  # noqa: ASYNC251  # the fault
                await asyncio.gather(*publishing)
                await joining
                assert await received(messages, 5) == [f"{passes} {n}" for n in range(5)]
            assert changes == []

    async def test_a_burst_is_no_outage(self, url: str) -> None:
        """Ten thousand publishes at once are all answered, however long that takes, on the same link."""
        async with (
            quick_backplane(url) as backplane,
            backplane.subscribe("room", backlog=Backlog(max_messages=2 * _BURST, max_bytes=64 * _BURST)) as messages,
        ):
            changes: list[str] = []
            backplane.on_state(lambda change: changes.append(change.reason))
            await asyncio.gather(*(backplane.publish("room", str(number)) for number in range(_BURST)))
            assert await received(messages, _BURST) == [str(number) for number in range(_BURST)]
            assert changes == []

    async def test_a_channel_that_ends_links_is_refused_alone(self, brokered_url: str, proxy: FaultProxy) -> None:
        """Where one channel ends every link, its join is refused, the others are restored, and links last again."""
        async with (
            proxy,
            quick_backplane(proxy.url) as backplane,
            quick_backplane(brokered_url) as outside,
            backplane.subscribe("room") as messages,
        ):
            proxy.cut_on(lambda sent: b"fatal" in sent)
            async with asyncio.timeout(30):
                (error,) = await asyncio.gather(messages.join("fatal"), return_exceptions=True)
            await passes_through(outside, messages)
            if error is None:  # the name does not reach the broker as it is
                return
            assert isinstance(error, SubscribeError)
            assert list(error.refused) == ["fatal"]
            links = (await backplane.health()).generation
            with pytest.raises(SubscribeError):
                await messages.join("fatal")
            await passes_through(outside, messages)
            assert (await backplane.health()).generation == links

    async def test_a_message_that_ends_links_is_not_repeated_without_end(
        self, brokered_url: str, proxy: FaultProxy
    ) -> None:
        """A message that ends the link raises and is not repeated without end: the next ones pass."""
        sent: list[bytes] = []
        async with (
            proxy,
            quick_backplane(proxy.url) as backplane,
            quick_backplane(brokered_url) as outside,
            backplane.subscribe("room") as messages,
        ):
            proxy.cut_on(lambda data: b"fatal" in data and not sent.append(data))  # type: ignore[func-returns-value]
            async with asyncio.timeout(30):
                (error,) = await asyncio.gather(backplane.publish("room", "fatal"), return_exceptions=True)
            await passes_through(outside, messages)
            await passes_through(backplane, messages)
            if isinstance(error, Receipt):  # the bytes do not reach the broker as they are
                return
            assert isinstance(error, PublishError)
            assert len(sent) <= _MAX_SENT

    async def test_a_subscription_that_is_taken_away_is_a_gap(
        self, brokered_url: str, take_away: TakeAway | None
    ) -> None:
        """A subscription that the broker revokes is reported, and restored after a gap, on the same link."""
        if take_away is None:
            pytest.skip("this broker revokes no subscription: no fixture take_away")
        async with quick_backplane(brokered_url) as backplane, quick_backplane(brokered_url) as outside:
            async with backplane.subscribe("room") as messages:
                await passes_through(outside, messages)
                await take_away("room")
                async with asyncio.timeout(30):
                    assert isinstance(await anext(messages), Gap)
                await passes_through(outside, messages)
            assert (await backplane.health()).generation == 1

    @pytest.mark.usefixtures("brokered_url")
    async def test_a_refusal_without_a_name_confirms_nothing(self, crowded: tuple[str, Sequence[str]] | None) -> None:
        """Where the broker refuses some channels of many without naming them, no other one counts as confirmed."""
        if crowded is None:
            pytest.skip("this broker names what it refuses: no fixture crowded")
        url, channels = crowded
        async with started_worker(url) as worker:
            with pytest.raises(SubscribeError) as raised:
                await worker.broadcaster.subscribe(channels)
            doubtful = {**raised.value.refused, **raised.value.unconfirmed}
            confirmed = [channel for channel in channels if channel not in doubtful]
            assert doubtful
            for channel in confirmed:
                await worker.broadcaster.publish(channel, b"")
            await worker.sink.until(lambda: {name for name, _ in worker.sink.delivered}.issuperset(confirmed))

    async def test_a_replaced_server_is_found(
        self, brokered_url: str, proxy: FaultProxy, fail_over: FailOver | None
    ) -> None:
        """A link to a server that was replaced is given up for the new one, with a gap, though the old one answers."""
        if fail_over is None:
            pytest.skip("no server of this broker can be replaced here: no fixture fail_over")
        async with (
            proxy,
            quick_backplane(proxy.url, probe_interval_seconds=0.5) as backplane,
            backplane.subscribe("room") as messages,
        ):
            new_url = await fail_over()
            async with asyncio.timeout(30):
                assert isinstance(await anext(messages), Gap)
            async with quick_backplane(new_url) as outside:
                await passes_through(outside, messages)

    @pytest.mark.usefixtures("brokered_url")
    async def test_tls_that_is_stripped_is_an_error(self, strip_tls: tuple[str, Strip] | None) -> None:
        """A URL that asks for TLS gets TLS or an error: no password is sent in the clear."""
        if strip_tls is None:
            pytest.skip("no TLS that could be stripped: no fixture strip_tls")
        url, strip = strip_tls
        password = broadcaster_from_url(url).url.password
        assert password
        async with FaultProxy(url) as proxy:
            proxy.rewrite(strip)
            proxy.record()
            stripped = broadcaster_from_url(proxy.url)
            with pytest.raises(BrokerError):
                await stripped.start(RecordingSink())
            await stripped.stop()
            assert password.encode() not in proxy.recorded("to_broker")


async def received(messages: Subscription, count: int) -> list[str]:
    """Return the next messages; a gap fails the test."""
    data: list[str] = []
    async with asyncio.timeout(30):
        while len(data) < count:
            item = await anext(messages)
            assert not isinstance(item, Gap), item
            data.append(str(item.data))
    return data


async def passes_through(publisher: Backplane, messages: Subscription) -> None:
    """Publish into the room until one of these messages has arrived: the first ones may still be part of a gap."""
    sent: set[str] = set()

    async def arrival() -> None:
        while (await next_message(messages)).data not in sent:
            pass

    arriving = asyncio.create_task(arrival())
    async with asyncio.timeout(30):
        while not arriving.done():
            sent.add(word := secrets.token_hex(8))
            await publisher.publish("room", word)
            await asyncio.wait([arriving], timeout=0.2)
    await arriving
