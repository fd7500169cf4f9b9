"""The promises of a `Backplane` with `History` rules, each as a test that runs on any adapter that keeps messages.

Part of `backplane.testing.HistoryConformance`.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

from backplane import Backlog, Backplane, Gap, Message, Settings
from backplane.broker.registry import broadcaster_from_url
from backplane.fanout.codec import encode_path_test
from backplane.history_rules import History, HistoryRules
from backplane.message import Position, Receipt
from backplane.testing.harness import started_worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from backplane import Subscription
    from backplane.broadcaster import Broadcaster
    from backplane.testing.proxy import FaultProxy

__all__ = ["HISTORY_RULES", "ResumeConformance", "compacted"]

HISTORY_RULES: Final = HistoryRules(
    {
        "few:*": History(max_messages=5),
        "many:*": History(max_messages=1000),
        "brief:*": History(max_age_seconds=1),
        "newest:*": History(latest=True),
        "*": History(),
    }
)
"""The rules of the suite: every channel is kept."""

_WAIT_SECONDS: Final = 30.0
_ROOMY: Final = Backlog(max_messages=20_000, max_bytes=64 * 1024 * 1024)


class ResumeConformance:
    """What was missed is given back: to who comes back with a position, and to a worker whose link breaks."""

    # -- coming back ---------------------------------------------------------------------------------------------------

    async def test_a_subscriber_gets_exactly_what_it_missed(self, url: str, room: str) -> None:
        """With each position that was received, on another worker, what was published after it comes, then the rest."""
        async with kept_backplane(url) as one, kept_backplane(url) as other:
            async with one.subscribe(room) as messages:
                receipts = [await other.publish(room, str(number)) for number in range(10)]
                received = await next_messages(messages, 10)
                assert [message.data for message in received] == [str(number) for number in range(10)]
                assert [message.position for message in received] == [receipt.position for receipt in receipts]
                assert messages.position(room) == receipts[-1].position
            positions = [str(message.position) for message in received]
            for missed, position in enumerate(positions, start=1):
                async with other.subscribe(room, since=position) as messages:
                    assert str(messages.position(room)) == position
                    expected = [str(number) for number in range(missed, 9 + missed)]
                    assert await data_of(messages, 9) == expected
                    await one.publish(room, str(9 + missed))
                    assert await data_of(messages, 1) == [str(9 + missed)]
            assert other.statistics().resumed == len(positions)

    async def test_a_compact_position_resumes(self, url: str, room: str) -> None:
        """With the short check of each position the same comes; with another one, or of another epoch, a gap."""
        async with kept_backplane(url) as one, kept_backplane(url) as other:
            async with one.subscribe(room) as messages:
                begin = messages.position(room)
                assert begin is not None
                positions = [begin, *[(await other.publish(room, str(number))).position for number in range(5)]]
            for _ in range(2):  # the second time from the memory of the workers
                for missed, position in enumerate(positions):
                    assert position is not None
                    since = str(compacted(position))
                    for backplane in (one, other):
                        async with backplane.subscribe(room, since=since) as messages:
                            assert str(messages.position(room)) == since
                            assert await data_of(messages, 5 - missed) == [str(number) for number in range(missed, 5)]
                        page = await backplane.history(room, since=since)
                        assert (page.complete, page.position) == (True, positions[-1])
                    for lost in (
                        Position(position.epoch, position.offset, position.check ^ 1),
                        Position(secrets.token_bytes(8), position.offset, position.check),
                    ):
                        async with other.subscribe(room, since=str(compacted(lost))) as messages:
                            assert isinstance(await next_item(messages), Gap)
            assert (one.statistics().resumed, one.statistics().not_resumed) == (12, 0)
            assert (other.statistics().resumed, other.statistics().not_resumed) == (12, 24)

    async def test_the_position_of_an_empty_channel_resumes(self, url: str, room: str) -> None:
        """A subscriber that was there before the first message, and left, gets everything when it comes back."""
        async with kept_backplane(url) as one, kept_backplane(url) as other:
            async with one.subscribe(room) as messages:
                begin = str(messages.position(room))
            for number in range(5):
                await other.publish(room, str(number))
            for backplane in (one, other):
                for _ in range(2):
                    async with backplane.subscribe(room, since=begin) as messages:
                        assert await data_of(messages, 5) == ["0", "1", "2", "3", "4"]
                        assert str(messages.position(room)) != begin

    async def test_a_first_visit_gets_the_newest(self, url: str, room: str) -> None:
        """With `rewind` the newest messages come first, at most so many, and then what is published."""
        async with kept_backplane(url) as one, kept_backplane(url) as other:
            for number in range(5):
                await one.publish(room, str(number))
            for rewind in (0, 1, 3, 5, 50):
                async with other.subscribe(room, since="", rewind=rewind) as messages:
                    kept = await history_of(one, room)
                    live = str(len(kept))
                    await one.publish(room, live)
                    expected = [*kept[max(0, len(kept) - rewind) :], live]
                    assert await data_of(messages, len(expected)) == expected

    async def test_what_cannot_be_resumed_is_one_gap(self, url: str, room: str) -> None:
        """A position that is too old, foreign or no position at all is a gap, then `rewind`, and no error."""
        few = f"few:{secrets.token_hex(8)}"
        async with kept_backplane(url) as one, kept_backplane(url) as other:
            old = (await one.publish(few, "old")).position
            for number in range(20):
                await one.publish(few, str(number))
            foreign = (await one.publish(room, "foreign")).position
            for since in (str(old), str(foreign), "x", "x" * 10_000, "\0", "ü"):
                for rewind in (0, 2):
                    async with other.subscribe(few, since=since, rewind=rewind) as messages:
                        gap = await next_item(messages)
                        assert isinstance(gap, Gap)
                        assert gap.channel == few
                        newest = (await history_of(one, few))[-rewind:] if rewind else []
                        await one.publish(few, "live")
                        assert await data_of(messages, rewind + 1) == [*newest, "live"]
            assert other.statistics().not_resumed == 12
            assert other.statistics().resumed == 0

    async def test_of_a_latest_value_the_newest_comes(self, url: str) -> None:
        """A join begins with the newest value; who has it gets nothing, who has not gets it alone; never a gap."""
        room = f"newest:{secrets.token_hex(8)}"
        async with kept_backplane(url) as one, kept_backplane(url) as other:
            positions = [str((await one.publish(room, str(number))).position) for number in range(5)]
            for since in (None, "", positions[0], positions[3], "garbage"):
                async with other.subscribe(room, since=since) as messages:
                    assert await data_of(messages, 1) == ["4"]
            async with other.subscribe(room, since=positions[-1]) as messages:
                await one.publish(room, "5")
                assert await data_of(messages, 1) == ["5"]

    async def test_the_history_is_read_in_pages(self, url: str, room: str) -> None:
        """`Backplane.history` returns what was published, page by page, without a subscription."""
        async with kept_backplane(url) as one, kept_backplane(url) as other:
            positions = [(await one.publish(room, str(number))).position for number in range(10)]
            newest = await other.history(room, limit=4)
            assert [message.data for message in newest.messages] == ["6", "7", "8", "9"]
            assert (newest.complete, newest.more, newest.position) == (True, True, positions[-1])
            read: list[object] = []
            since, more = positions[1], True
            while more:
                page = await other.history(room, since=since, limit=3)
                assert page.complete
                read += [message.data for message in page.messages]
                since, more = page.position, page.more
            assert read == [str(number) for number in range(2, 10)]
            assert since == positions[-1]

    async def test_a_path_test_is_in_no_history(self, url: str, room: str) -> None:
        """What is read, given back, or the newest value, is the same with a path test between the messages."""
        test = encode_path_test(b"TEST_ID8", origin=bytes(8), published_at=0.0)
        newest = f"newest:{secrets.token_hex(8)}"
        async with kept_backplane(url) as one, kept_backplane(url) as other, started_worker(url) as outside:
            async with one.subscribe(room, newest) as messages:
                first = await other.publish(room, "0")
                await outside.broadcaster.publish(room, test)
                await other.publish(room, "1")
                assert await data_of(messages, 2) == ["0", "1"]
                await outside.broadcaster.publish(room, test)
                await other.publish(newest, "value")
                await outside.broadcaster.publish(newest, test)
                assert await data_of(messages, 1) == ["value"]
                await other.publish(room, "2")
                assert await data_of(messages, 1) == ["2"]
                statistics = one.statistics()
                assert (statistics.path_tests, statistics.malformed, statistics.unkept) == (3, 0, 0)
            for backplane in (one, other):
                await outside.broadcaster.publish(room, test)
                for limit in (1, 2, 3):
                    page = await backplane.history(room, limit=limit)
                    assert [message.data for message in page.messages] == ["0", "1", "2"][-limit:]
                page = await backplane.history(room, since=first.position, limit=2)
                assert ([message.data for message in page.messages], page.complete) == (["1", "2"], True)
                async with backplane.subscribe(room, since=str(first.position)) as messages:
                    assert await data_of(messages, 2) == ["1", "2"]
                async with backplane.subscribe(newest) as messages:
                    assert await data_of(messages, 1) == ["value"]
                assert backplane.statistics().malformed == 0

    async def test_joins_meet_the_live_messages(self, url: str) -> None:
        """While messages are published all the time, 500 joins with `since` or `rewind` have no hole and no repetition.

        Twenty clients come and go. Each has everything in the end from its first visit on.
        """
        room = f"many:{secrets.token_hex(8)}"
        async with kept_backplane(url) as one, kept_backplane(url) as other:
            published = 0

            async def publish() -> None:
                nonlocal published
                while True:
                    await one.publish(room, str(published))
                    published += 1
                    await asyncio.sleep(0.001)

            async def visit(seed: int) -> None:
                choose = random.Random(seed)
                received: list[int] = []
                since: str | None = None
                for _ in range(25):
                    rewind = choose.choice((0, 5))
                    async with other.subscribe(room, since=since, rewind=rewind, backlog=_ROOMY) as messages:
                        until = published + choose.randint(0, 3)
                        while not received or received[-1] < until:
                            received += [int(data) for data in await data_of(messages, 1)]
                        since = str(messages.position(room))
                    await asyncio.sleep(choose.random() * 0.02)
                assert received == list(range(received[0], received[-1] + 1))

            publishing = asyncio.create_task(publish())
            try:
                async with asyncio.timeout(2 * _WAIT_SECONDS), asyncio.TaskGroup() as group:
                    for seed in range(20):
                        group.create_task(visit(seed))
            finally:
                publishing.cancel()
                await asyncio.wait([publishing])
            assert other.statistics().resumed == 20 * 24
            assert other.statistics().gaps == 0

    async def test_clients_that_come_back_at_once_share_the_reads(self, url: str, room: str) -> None:
        """A thousand joins of ten channels with good positions, and some with bad ones, cost at most twenty reads."""
        adapter = broadcaster_from_url(url)
        reads = counted(adapter)
        async with kept_backplane(url) as one, kept_backplane(adapter) as other:
            rooms = [f"{room}-{number}" for number in range(10)]
            positions = {
                name: [str((await one.publish(name, str(number))).position) for number in range(20)] for name in rooms
            }

            async def come_back(number: int) -> None:
                name = rooms[number % 10]
                missed = number // 10 % 10
                async with other.subscribe(name, since=positions[name][19 - missed]) as messages:
                    assert await data_of(messages, missed) == [str(one) for one in range(20 - missed, 20)]

            async def come_in_vain(number: int) -> None:
                name = rooms[number % 10]
                async with other.subscribe(name, since=str(Position(secrets.token_bytes(8), number, 1))) as messages:
                    assert isinstance(await next_item(messages), Gap)

            async with asyncio.timeout(_WAIT_SECONDS), other.subscribe(*rooms):
                await asyncio.gather(*(come_back(number) for number in range(1000)))
                await asyncio.gather(*(come_in_vain(number) for number in range(200)))
            assert 1 <= len(reads) <= 20
            assert (other.statistics().resumed, other.statistics().not_resumed) == (1000, 200)

    # -- publishing ----------------------------------------------------------------------------------------------------

    async def test_a_worker_without_the_rule_is_received_live(
        self, url: str, room: str, keeps_everything: bool
    ) -> None:
        """What a worker without the rule publishes is received, counted and in no history; it receives everything."""
        async with kept_backplane(url) as one, kept_backplane(url) as other, Backplane(url) as without_rule:
            async with other.subscribe(room) as messages, without_rule.subscribe(room) as plain:
                first = await one.publish(room, "kept 1")
                assert (await without_rule.publish(room, "not kept")).position is None
                second = await one.publish(room, "kept 2")
                received = await next_messages(messages, 3)
                for all_data in ([message.data for message in received], await data_of(plain, 3)):
                    # Between workers there is no order of what is kept and what is not.
                    assert [data for data in all_data if data != "not kept"] == ["kept 1", "kept 2"]
                    assert "not kept" in all_data
            if keeps_everything:
                return
            positions = {message.data: message.position for message in received}
            assert positions == {"kept 1": first.position, "not kept": None, "kept 2": second.position}
            assert other.statistics().unkept == 1
            assert await history_of(one, room) == ["kept 1", "kept 2"]

    @pytest.mark.usefixtures("needs_keys")
    async def test_a_publish_with_a_key_ends_once(self, brokered_url: str, proxy: FaultProxy, room: str) -> None:
        """While the link is cut again and again, each publish with a key returns, and is there once, in order."""
        async with (
            kept_backplane(brokered_url) as outside,
            proxy,
            kept_backplane(proxy.url) as backplane,
            outside.subscribe(room, backlog=_ROOMY) as messages,
        ):
            cutting = asyncio.create_task(cut_at_random(proxy, seed=1))
            published, receipt = 0, Receipt()
            try:
                async with asyncio.timeout(_WAIT_SECONDS):
                    while not cutting.done() or published < 50:
                        receipt = await backplane.publish(room, str(published), idempotency_key=f"key-{published}")
                        assert receipt.position is not None
                        published += 1
                        await asyncio.sleep(0.01)
            finally:
                await ended(cutting)
            again = await backplane.publish(room, "again", idempotency_key=f"key-{published - 1}")
            assert (again.duplicate, again.position) == (True, receipt.position)
            await outside.publish(room, "end")
            assert await data_of(messages, published + 1) == [*(str(number) for number in range(published)), "end"]

    # -- a link that breaks --------------------------------------------------------------------------------------------

    async def test_a_lost_link_is_repaired_without_a_gap(self, brokered_url: str, proxy: FaultProxy, room: str) -> None:
        """While the link is cut again and again, a subscriber receives everything: once, in order, without a gap."""
        room = f"many:{room}"  # a busy machine takes long to connect again, and publishes meanwhile
        async with kept_backplane(brokered_url) as outside, proxy, kept_backplane(proxy.url) as backplane:
            async with backplane.subscribe(room, f"{room}-2", backlog=_ROOMY) as messages:
                cutting = asyncio.create_task(cut_at_random(proxy, seed=2))
                published = 0
                while not cutting.done():
                    await outside.publish(room, str(published))
                    await outside.publish(f"{room}-2", str(published))
                    published += 1
                    await asyncio.sleep(0.02)
                await cutting
                received = await next_messages(messages, 2 * published)
            for name in (room, f"{room}-2"):
                data = [message.data for message in received if message.channel == name]
                assert data == [str(number) for number in range(published)]
            assert backplane.statistics().gaps == 0
            assert (await backplane.health()).generation > 3

    async def test_more_missed_than_is_kept_is_one_gap(self, brokered_url: str, proxy: FaultProxy) -> None:
        """Where the broker no longer has what was missed, there is one gap, and then everything in order."""
        if broadcaster_from_url(brokered_url).capabilities.resumes:
            pytest.skip("the adapter itself continues where it was: capabilities.resumes is True")
        few, other = f"few:{secrets.token_hex(8)}", f"many:{secrets.token_hex(8)}"
        async with kept_backplane(brokered_url) as outside, proxy, kept_backplane(proxy.url) as backplane:
            async with backplane.subscribe(few, other) as messages:
                await outside.publish(few, "before")
                assert await data_of(messages, 1) == ["before"]
                proxy.refuse()
                async with asyncio.timeout(_WAIT_SECONDS):
                    await backplane.wait_for_state("degraded")
                for number in range(20):
                    await outside.publish(few, str(number))
                    await outside.publish(other, str(number))
                proxy.heal()
                items = [await next_item(messages) for _ in range(21)]
                await outside.publish(few, "after")
                assert await data_of(messages, 1) == ["after"]
            on_few = [item for item in items if item.channel == few]
            assert [type(item) for item in on_few[:1]] == [Gap]
            assert all(isinstance(item, Message) for item in on_few[1:])
            on_other = [item.data for item in items if isinstance(item, Message) and item.channel == other]
            assert on_other == [str(number) for number in range(20)]
            assert backplane.statistics().gaps == 1

    async def test_many_channels_are_repaired(self, brokered_url: str, proxy: FaultProxy, room: str) -> None:
        """A thousand channels that miss a message each, and a thousand that miss none, are repaired without a gap."""
        async with kept_backplane(brokered_url) as outside, proxy, kept_backplane(proxy.url) as backplane:
            missing = [f"{room}-{number}" for number in range(1000)]
            quiet = [f"quiet-{room}-{number}" for number in range(1000)]
            async with backplane.subscribe(room, backlog=_ROOMY) as messages:
                for start in range(0, 1000, 250):
                    names = missing[start : start + 250] + quiet[start : start + 250]
                    await asyncio.gather(*(messages.join(name) for name in names))
                proxy.refuse()
                async with asyncio.timeout(_WAIT_SECONDS):
                    await backplane.wait_for_state("degraded")
                for start in range(0, 1000, 250):
                    await asyncio.gather(*(outside.publish(name, name) for name in missing[start : start + 250]))
                proxy.heal()
                received = await next_messages(messages, 1000)
                assert sorted((message.channel, message.data) for message in received) == [
                    (name, name) for name in sorted(missing)
                ]
                await asyncio.gather(*(outside.publish(name, name) for name in quiet))
                received = await next_messages(messages, 1000)
                assert sorted(message.channel for message in received) == sorted(quiet)
            assert backplane.statistics().gaps == 0


# -- steps -------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def kept_backplane(url: str | Broadcaster) -> AsyncGenerator[Backplane]:
    """Run a backplane with the rules of the suite, which reconnects faster than the defaults do."""
    settings = Settings(
        publish_timeout_seconds=5,
        subscribe_timeout_seconds=30,
        linger_seconds=0.02,
        probe_interval_seconds=30,
        max_backoff_seconds=0.2,
    )
    async with Backplane(url, history=dict(HISTORY_RULES), settings=settings) as backplane:
        yield backplane


def compacted(position: Position) -> Position:
    """Return a position as a client that keeps no more than its epoch and one number passes it back."""
    assert position.compact is not None
    return Position.from_compact(position.epoch, position.compact)


async def next_item(messages: Subscription) -> Message | Gap:
    """Return the next message or gap."""
    async with asyncio.timeout(_WAIT_SECONDS):
        return await anext(messages)


async def next_messages(messages: Subscription, count: int) -> list[Message]:
    """Return the next messages; a gap fails the test."""
    received: list[Message] = []
    async with asyncio.timeout(_WAIT_SECONDS):
        while len(received) < count:
            item = await anext(messages)
            assert isinstance(item, Message), (item, len(received), count)
            received.append(item)
    return received


async def data_of(messages: Subscription, count: int) -> list[str]:
    """Return the data of the next messages; a gap fails the test."""
    return [str(message.data) for message in await next_messages(messages, count)]


async def history_of(backplane: Backplane, channel: str) -> list[str]:
    """Return the data of everything that is kept."""
    page = await backplane.history(channel, limit=1000)
    return [str(message.data) for message in page.messages]


async def cut_at_random(proxy: FaultProxy, *, seed: int) -> None:
    """Break the link a dozen times in the ways that a proxy knows."""
    choose = random.Random(seed)
    for _ in range(3):
        for fault in (proxy.cut, proxy.finish, proxy.refuse, lambda: proxy.cut_after(choose.randint(1, 200))):
            fault()
            await asyncio.sleep(choose.random() * 0.3)
            proxy.heal()
            await asyncio.sleep(choose.random() * 0.3)


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task, and wait for its end."""
    task.cancel()
    await asyncio.wait([task])


def counted(adapter: Any) -> list[str]:
    """Return a list to which each read of the adapter adds its channel."""
    reads: list[str] = []
    recall: Callable[..., Awaitable[Any]] = adapter.recall

    async def counted_recall(channel: str, *arguments: Any, **options: Any) -> Any:
        reads.append(channel)
        return await recall(channel, *arguments, **options)

    adapter.recall = counted_recall
    return reads
