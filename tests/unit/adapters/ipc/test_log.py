"""The history of `ipc://` between processes. What holds for each adapter is tested by the conformance suite."""

# A full disk, and a moment between two looks, are made in the parts.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backplane.adapters.ipc import log_reader, log_writer
from backplane.errors import BrokerError, BrokerUnavailableError, PublishError
from backplane.history_rules import History, HistoryRules
from backplane.message import Place, Position, ShortCheck
from backplane.testing.resume_conformance import compacted
from tests.unit.adapters.ipc.processes import MEBIBYTE, Process, Worker, folder_of, no_garbage_collection, wait_until

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from backplane.broadcaster import Recalled
    from backplane.message import Receipt

pytestmark = pytest.mark.anyio

RULE = History(max_messages=5)
RULES = HistoryRules({"kept*": RULE})


class Keeper(Worker):
    """An adapter of this process that keeps the messages of channels `kept...`.

    Attributes:
        places: The place of each message that was delivered, in order.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.places: list[Place | None] = []
        deliver = self.sink.deliver

        def record(channel: str, payload: bytes, place: Place | None = None) -> None:
            self.places.append(place)
            deliver(channel, payload, place)

        self.sink.deliver = record  # type: ignore[method-assign]

    async def __aenter__(self) -> Keeper:
        await super().__aenter__()
        await self.adapter.prepare(RULES)
        return self

    async def keep(self, channel: str, payload: bytes, key: bytes | None = None) -> Receipt:
        """Keep one message."""
        return await self.adapter.keep(channel, payload, RULE, key=key)

    async def recall(self, channel: str, after: Position | None = None, rule: History = RULE) -> Recalled:
        """Recall everything."""
        return await self.adapter.recall(channel, rule, after=after, limit=1000, max_bytes=100 * MEBIBYTE)


def _log(directory: Path) -> list[Path]:
    return sorted((folder_of(directory) / "history").glob("*.log"))


def _open_files(pid: int, directory: Path) -> list[str]:
    paths = [path for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    return [name for name in (str(path.readlink()) for path in paths) if str(directory) in name]


async def test_all_processes_receive_one_order(url: str, stack: AsyncExitStack) -> None:
    """Whatever two publishers do at once, every subscriber receives the same messages in the same order and places."""
    keepers = [await stack.enter_async_context(Keeper(url)) for _ in range(3)]
    for keeper in keepers:
        await keeper.adapter.subscribe(["kept", "kept too"])

    async def publish(keeper: Keeper, name: str) -> list[Receipt]:
        return [
            await keeper.keep("kept" if number % 3 else "kept too", f"{name} {number}".encode())
            for number in range(100)
        ]

    receipts = await asyncio.gather(publish(keepers[0], "first"), publish(keepers[1], "second"))
    for keeper in keepers:
        await keeper.sink.until(lambda keeper=keeper: len(keeper.sink.delivered) == 200)  # type: ignore[misc]
        assert keeper.sink.delivered == keepers[0].sink.delivered
        assert keeper.places == keepers[0].places
    assert set(keepers[0].places) == {receipt.position for each in receipts for receipt in each}
    for channel in ("kept", "kept too"):
        last = (0, 0)
        for (name, _), place in zip(keepers[0].sink.delivered, keepers[0].places, strict=True):
            if name == channel and place is not None:
                assert (place.before, place.before_check) == last
                last = place.offset, place.check


async def test_other_processes_are_notified_at_once(url: str, stack: AsyncExitStack) -> None:
    """A message reaches another process long before the look that each takes once per second."""
    listener = await stack.enter_async_context(await Process.spawn(url))
    await listener.run("start")
    await listener.run("prepare", "kept*")
    await listener.run("subscribe", "kept")
    keeper = await stack.enter_async_context(Keeper(url))
    start = time.monotonic()
    for number in range(20):
        await keeper.keep("kept", b"%d" % number)
        await listener.until(lambda number=number: len(listener.delivered) == number + 1)  # type: ignore[misc]
    assert time.monotonic() - start < 18  # 20 looks would take 20 seconds


async def test_a_message_whose_writer_was_killed_before_its_notice_is_read_within_a_second(
    url: str, stack: AsyncExitStack
) -> None:
    """Each process looks into the log once per second."""
    keeper = await stack.enter_async_context(Keeper(url))
    await keeper.adapter.subscribe(["kept"])
    writer = await stack.enter_async_context(await Process.spawn(url))
    await writer.run("start")
    await writer.run("prepare", "kept*")
    writer.command("write_and_die", "kept")
    await keeper.sink.until(lambda: keeper.sink.delivered == [("kept", b"last")])
    assert keeper.sink.gaps == []


async def test_a_process_without_the_rule_receives_and_publishes_without_a_place(
    url: str, stack: AsyncExitStack
) -> None:
    """A worker of an older release, or one without the rule, gets each message once; what it publishes is not kept."""
    keeper = await stack.enter_async_context(Keeper(url))
    worker = await stack.enter_async_context(Worker(url))
    for each in (keeper, worker):
        await each.adapter.subscribe(["kept"])
    for number in range(3):
        await keeper.keep("kept", b"%d" % number)
        await worker.adapter.publish("kept", b"plain %d" % number)
    for each in (keeper, worker):
        await each.sink.until(lambda each=each: len(each.sink.delivered) >= 6)  # type: ignore[misc]
        await each.received_all_of(worker if each is keeper else keeper, "kept")
        assert sorted(payload for _, payload in each.sink.delivered if payload != b"barrier") == [
            b"0", b"1", b"2", b"plain 0", b"plain 1", b"plain 2",
        ]  # fmt: skip
    assert {
        place is None
        for (_, payload), place in zip(keeper.sink.delivered, keeper.places, strict=True)
        if b"p" in payload
    } == {True}
    assert [item.payload for item in (await keeper.recall("kept")).items] == [b"0", b"1", b"2"]


async def test_a_channel_without_a_rule_costs_nothing(url: str, directory: Path, stack: AsyncExitStack) -> None:
    """Nothing is written, read or opened for it."""
    keepers = [await stack.enter_async_context(Keeper(url)) for _ in range(2)]
    for keeper in keepers:
        await keeper.adapter.subscribe(["plain"])
    descriptors = set(Path("/proc/self/fd").iterdir())
    await keepers[0].adapter.publish("plain", b"message")
    await keepers[1].sink.until(lambda: keepers[1].sink.delivered == [("plain", b"message")])
    assert set(Path("/proc/self/fd").iterdir()) == descriptors
    assert [path.stat().st_size for path in _log(directory)] == [0]


async def test_the_history_survives_every_process(url: str, stack: AsyncExitStack) -> None:
    """A process that starts after all others have ended resumes from a position of before."""
    async with Keeper(url) as keeper:
        positions = [(await keeper.keep("kept", b"%d" % number)).position for number in range(4)]
        nothing = (await keeper.recall("kept other")).top
    keeper = await stack.enter_async_context(Keeper(url))
    recalled = await keeper.recall("kept", positions[1])
    assert (recalled.found, [item.payload for item in recalled.items]) == (True, [b"2", b"3"])
    assert recalled.top == positions[3]
    await keeper.keep("kept other", b"first")
    assert [item.payload for item in (await keeper.recall("kept other", nothing)).items] == [b"first"]


async def test_a_subscription_begins_with_what_is_published_after_it(url: str, stack: AsyncExitStack) -> None:
    """What is in the log already is recalled, not delivered, also if this process has not read it yet."""
    keeper = await stack.enter_async_context(Keeper(url))
    other = await stack.enter_async_context(Keeper(url))
    await other.adapter.subscribe(["kept other"])
    await keeper.keep("kept", b"before")
    await other.adapter.subscribe(["kept"])
    await keeper.keep("kept", b"after")
    await other.sink.until(lambda: bool(other.sink.delivered))
    assert other.sink.delivered == [("kept", b"after")]
    await other.adapter.unsubscribe(["kept"])
    await keeper.keep("kept", b"later")
    assert [item.payload for item in (await other.recall("kept")).items] == [b"before", b"after", b"later"]
    assert other.sink.delivered == [("kept", b"after")]


async def test_messages_that_are_too_old_are_not_returned(
    url: str, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule's age counts at the time of reading, whatever the log still has."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    keeper = await stack.enter_async_context(Keeper(url))
    positions = [(await keeper.keep("kept", b"%d" % number)).position for number in range(2)]
    now += 0.3
    positions += [(await keeper.keep("kept", b"%d" % number)).position for number in (2, 3)]
    rule = History(max_messages=5, max_age_seconds=0.25)
    recalled = await keeper.recall("kept", rule=rule)
    assert [item.payload for item in recalled.items] == [b"2", b"3"]
    found = [(await keeper.recall("kept", position, rule)).found for position in positions]
    assert found == [False, True, True, True]
    now += 0.3
    assert [(await keeper.recall("kept", position, rule)).found for position in positions] == [False] * 3 + [True]


async def test_limits_of_a_recall_keep_the_nearest_messages(url: str, stack: AsyncExitStack) -> None:
    """With a position the oldest ones after it, without one the newest; each names the one before it."""
    keeper = await stack.enter_async_context(Keeper(url))
    positions = [(await keeper.keep("kept", b"%d" % number * 1000)).position for number in range(5)]
    recall = keeper.adapter.recall
    assert positions[0] is not None
    for limit, max_bytes, after, expected in (
        (2, MEBIBYTE, positions[0], [1, 2]),
        (2, MEBIBYTE, compacted(positions[0]), [1, 2]),
        (2, MEBIBYTE, None, [3, 4]),
        (100, 1500, positions[0], [1, 2]),
        (100, 1500, None, [3, 4]),
        (0, MEBIBYTE, positions[0], []),
        (0, MEBIBYTE, compacted(positions[0]), []),
        (0, MEBIBYTE, None, []),
    ):
        recalled = await recall("kept", RULE, after=after, limit=limit, max_bytes=max_bytes)
        assert [int(item.payload[:1]) for item in recalled.items] == expected
        assert (recalled.found, recalled.more, recalled.top) == (True, True, positions[4])
        for item, number in zip(recalled.items, expected, strict=True):
            before = positions[number - 1]
            assert before is not None
            assert item.place == positions[number]
            assert (item.place.before, item.place.before_check) in ((before.offset, before.check), (None, None))
            assert not isinstance(item.place.before_check, ShortCheck)


async def test_a_key_is_used_once_by_all_processes(url: str, stack: AsyncExitStack) -> None:
    """The second publish with a key returns the receipt of the first, by any process, also by one just started."""
    keeper = await stack.enter_async_context(Keeper(url))
    await keeper.adapter.subscribe(["kept"])
    first = await keeper.keep("kept", b"one", b"key")
    assert not first.duplicate
    assert (await keeper.keep("kept", b"other", b"key")) == type(first)(position=first.position, duplicate=True)
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.run("start")
    await process.run("prepare", "kept*")
    await process.run("keep_with_key", "kept", "one", "key")
    assert process.reports[-2] == ["receipt", str(first.position), True]
    assert not (await keeper.keep("kept", b"two", b"another key")).duplicate
    assert not (await keeper.keep("kept too", b"one", b"key")).duplicate
    assert keeper.sink.delivered == [("kept", b"one"), ("kept", b"two")]


async def test_of_two_processes_that_use_a_key_at_once_one_publishes(url: str, stack: AsyncExitStack) -> None:
    """Every process receives one message, and both publishers get its position; one of them as a duplicate."""
    keeper = await stack.enter_async_context(Keeper(url))
    await keeper.adapter.subscribe(["kept"])
    processes = [await stack.enter_async_context(await Process.spawn(url)) for _ in range(2)]
    for process in processes:
        await process.run("start")
        await process.run("prepare", "kept*")
    for turn in range(50):
        await asyncio.gather(*(process.run("keep_with_key", "kept", "x", f"key {turn}") for process in processes))
    receipts = [[report[1:] for report in process.reports if report[0] == "receipt"] for process in processes]
    assert [one[0] for one in receipts[0]] == [one[0] for one in receipts[1]]
    assert [one[1] for one in receipts[0]] == [not one[1] for one in receipts[1]]
    await keeper.keep("kept", b"barrier")
    await keeper.sink.until(lambda: ("kept", b"barrier") in keeper.sink.delivered)
    assert len(keeper.sink.delivered) == 51


async def test_publishes_stay_in_order_while_a_key_waits_for_the_index(url: str, stack: AsyncExitStack) -> None:
    """A publish without a key does not overtake one with a key that was called before it."""
    keeper = await stack.enter_async_context(Keeper(url))
    for number in range(3000):
        await keeper.keep("kept other", b"%d" % number)
    late = await stack.enter_async_context(Keeper(url))
    await asyncio.gather(
        *(late.keep("kept", b"%d" % number, b"%d" % number if number % 2 else None) for number in range(1, 6))
    )
    assert [item.payload for item in (await keeper.recall("kept")).items] == [b"1", b"2", b"3", b"4", b"5"]


async def test_kept_and_other_messages_stay_in_order_while_the_log_is_read(
    url: str, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that takes one record in each pass, as on a busy machine, delivers all in the order of the calls."""
    monkeypatch.setattr(log_reader, "_SLICE_SECONDS", -1.0)
    monkeypatch.setattr(log_reader, "_RECORDS_PER_CLOCK", 1)
    keepers = [await stack.enter_async_context(Keeper(url)) for _ in range(3)]
    for keeper in keepers[:2]:
        await keeper.adapter.subscribe(["kept", "kept too", "plain"])

    async def publish(name: str, number: int) -> None:
        if number % 3:
            await keepers[0].keep(name, b"%d" % number)
        else:
            await keepers[0].adapter.publish(name, b"%d" % number)

    foreign = asyncio.gather(*(keepers[2].keep("kept too", b"%d" % number) for number in range(300)))
    await asyncio.gather(*(publish("kept", number) for number in range(300)), keepers[0].adapter.publish("plain", b"x"))
    await foreign
    for keeper in keepers[:2]:
        await keeper.sink.until(lambda keeper=keeper: len(keeper.sink.delivered) == 601)  # type: ignore[misc]
        for channel in ("kept", "kept too"):
            assert keeper.sink.payloads(channel) == [b"%d" % number for number in range(300)]


async def test_a_removed_history_is_begun_anew(url: str, directory: Path, stack: AsyncExitStack) -> None:
    """Within a second each process goes over to the new log, with a gap, and with positions of another epoch."""
    keepers = [await stack.enter_async_context(Keeper(url)) for _ in range(2)]
    for keeper in keepers:
        await keeper.adapter.subscribe(["kept"])
    before = (await keepers[0].keep("kept", b"before")).position
    await keepers[1].sink.until(lambda: bool(keepers[1].sink.delivered))
    shutil.rmtree(folder_of(directory) / "history")
    for keeper in keepers:
        await keeper.sink.until(lambda keeper=keeper: bool(keeper.sink.gaps))  # type: ignore[misc]
    after = (await keepers[0].keep("kept", b"after")).position
    await keepers[1].sink.until(lambda: ("kept", b"after") in keepers[1].sink.delivered)
    assert before is not None
    assert after is not None
    assert before.epoch != after.epoch
    for keeper in keepers:
        assert [names for names, _ in keeper.sink.gaps] == [frozenset(["kept"])]
        recalled = await keeper.recall("kept", before)
        assert (recalled.found, recalled.top) == (False, after)


async def test_a_process_that_only_publishes_goes_on_after_the_history_was_removed(
    url: str, directory: Path, stack: AsyncExitStack
) -> None:
    """The publish itself notices that the folder is gone."""
    keeper = await stack.enter_async_context(Keeper(url))
    await keeper.keep("kept", b"before")
    shutil.rmtree(folder_of(directory) / "history")
    keeper.adapter._started().log._writer.close()
    await keeper.keep("kept", b"after")
    assert [item.payload for item in (await keeper.recall("kept")).items] == [b"after"]


async def test_a_channel_whose_messages_were_removed_resumes_from_its_last_position(
    url: str, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of the whole log removes a quiet channel's messages: nothing was missed, so no gap is found."""
    monkeypatch.setattr(log_writer, "_MAX_SEGMENT_BYTES", 64 * 1024)
    keeper = await stack.enter_async_context(Keeper(f"{url}&max_history_bytes={MEBIBYTE}"))
    await keeper.adapter.subscribe(["kept", "kept other"])
    old = (await keeper.keep("kept", b"first")).position
    last = (await keeper.keep("kept", b"last")).position
    for _ in range(20):
        await keeper.keep("kept other", bytes(MEBIBYTE // 10))
    assert last is not None
    for after in (last, compacted(last)):
        recalled = await keeper.recall("kept", after)
        assert (recalled.found, recalled.items, recalled.top) == (True, [], last)
        assert not recalled.top.is_compact
    assert not (await keeper.recall("kept", old)).found
    assert (await keeper.recall("kept")).items == []
    nothing = (await keeper.recall("kept never")).top
    await keeper.keep("kept", b"new")
    for after in (last, compacted(last)):
        recalled = await keeper.recall("kept", after)
        assert (recalled.found, [item.payload for item in recalled.items]) == (True, [b"new"])
        place = recalled.items[0].place
        assert (place.before, place.before_check) == (last.offset, last.check)
        assert not isinstance(place.before_check, ShortCheck)
    await keeper.keep("kept never", b"first")
    recalled = await keeper.recall("kept never", nothing)
    assert (recalled.found, [item.payload for item in recalled.items]) == (True, [b"first"])
    assert not (await keeper.recall("kept never", Position(nothing.epoch, 0, 0))).found


async def test_a_full_disk_refuses_a_publish_and_delivers_nothing(
    url: str, directory: Path, stack: AsyncExitStack
) -> None:
    """The publisher gets the error; its subscribers and the log have nothing of it."""
    keeper = await stack.enter_async_context(Keeper(url))
    await keeper.adapter.subscribe(["kept"])
    writer = keeper.adapter._started().log._writer
    await keeper.keep("kept", b"before")
    writer.close()
    full = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115  # the writer closes it
    writer._file = full
    with pytest.raises(PublishError, match="No space left"):
        await keeper.keep("kept", b"refused")
    writer.close()
    await keeper.keep("kept", b"after")
    assert keeper.sink.payloads("kept") == [b"before", b"after"]


async def test_a_frozen_process_costs_the_others_nothing_and_misses_nothing(url: str, stack: AsyncExitStack) -> None:
    """However much is published meanwhile, it reads everything from the log afterwards, without a gap."""
    url += "&max_peer_backlog_bytes=100000"
    listener = await stack.enter_async_context(await Process.spawn(url))
    await listener.run("start")
    await listener.run("prepare", "kept*")
    await listener.run("subscribe", "kept")
    keeper = await stack.enter_async_context(Keeper(url))
    await listener.freeze()
    for number in range(1000):
        await keeper.keep("kept", b"%d " % number + b"." * 1000)
    listener.thaw()
    await listener.until(lambda: len(listener.delivered) == 1000)
    assert [int(text.split(" ")[0]) for _, text in listener.delivered] == list(range(1000))
    assert listener.gaps == []


async def test_the_event_loop_runs_while_a_long_log_is_read(url: str, stack: AsyncExitStack) -> None:
    """Building the index takes no long pass of the event loop."""
    writer = await stack.enter_async_context(Keeper(url))
    await asyncio.gather(*(writer.keep("kept", b"%d" % number) for number in range(30_000)))
    longest: list[float] = []
    while not longest or (min(longest) >= 0.03 and len(longest) < 5):  # a shared processor makes some of them slow
        reader = await stack.enter_async_context(Keeper(url))
        passes = 0
        longest.append(0.0)
        subscribing = asyncio.ensure_future(reader.adapter.subscribe(["kept"]))
        with no_garbage_collection():
            while not subscribing.done():
                start = time.thread_time()
                await asyncio.sleep(0)
                longest[-1] = max(longest[-1], time.thread_time() - start)
                passes += 1
        assert passes > 5
        assert (await reader.recall("kept")).items[-1].payload == b"29999"
    assert min(longest) < 0.03


async def test_a_subscription_that_is_cancelled_while_the_log_is_read_leaves_nothing(
    url: str, stack: AsyncExitStack
) -> None:
    """The next one reads on, and the channel of the first is not delivered."""
    writer = await stack.enter_async_context(Keeper(url))
    await asyncio.gather(*(writer.keep("kept", b"%d" % number) for number in range(10_000)))
    reader = await stack.enter_async_context(Keeper(url))
    subscribing = asyncio.ensure_future(reader.adapter.subscribe(["kept"]))
    await asyncio.sleep(0)
    subscribing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await subscribing
    await reader.adapter.subscribe(["kept other"])
    await writer.keep("kept", b"cancelled")
    await writer.keep("kept other", b"received")
    await reader.sink.until(lambda: bool(reader.sink.delivered))
    assert reader.sink.delivered == [("kept other", b"received")]


async def test_a_stop_ends_what_waits_for_the_log(url: str, directory: Path, stack: AsyncExitStack) -> None:
    """A subscription or a recall that waits is unavailable, and no descriptor stays open."""
    writer = await stack.enter_async_context(Keeper(url))
    await asyncio.gather(*(writer.keep("kept", b"%d" % number) for number in range(10_000)))
    reader = Keeper(url)
    await reader.__aenter__()
    waiting: list[asyncio.Task[Any]] = [
        asyncio.ensure_future(reader.adapter.subscribe(["kept"])),
        asyncio.ensure_future(reader.recall("kept")),
        asyncio.ensure_future(reader.keep("kept", b"x", b"key")),
    ]
    await asyncio.sleep(0)
    await reader.adapter.stop()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [BrokerUnavailableError] * 3
    await writer.adapter.stop()
    assert not _open_files(os.getpid(), directory)
    with pytest.raises(BrokerUnavailableError):
        await writer.keep("kept", b"late")


async def test_a_forked_child_holds_no_descriptor_of_the_log(url: str, directory: Path, stack: AsyncExitStack) -> None:
    """It could move the place at which its parent writes, and would keep removed segments on the disk."""
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.run("start")
    await process.run("prepare", "kept*")
    await process.run("subscribe", "kept")
    await process.run("keep", "kept", "x", 10, 1)
    await process.run("fork")
    child = next(report[1] for report in process.reports if report[0] == "forked")
    try:
        assert _open_files(process.pid, directory)
        await wait_until(lambda: not _open_files(child, directory))
    finally:
        os.kill(child, signal.SIGKILL)


async def test_keeping_without_rules_is_an_error(url: str, stack: AsyncExitStack) -> None:
    """Without `prepare` nothing is kept, and the error names it; no folder is made."""
    worker = await stack.enter_async_context(Worker(url))
    await worker.adapter.prepare(HistoryRules({}))
    with pytest.raises(BrokerUnavailableError, match="prepare"):
        await worker.adapter.keep("kept", b"x", RULE)
    await worker.adapter.subscribe(["kept"])


async def test_a_folder_of_another_user_is_refused_at_the_start(
    url: str, directory: Path, stack: AsyncExitStack
) -> None:
    """`prepare` raises an error that is tried again only where that can help."""
    worker = await stack.enter_async_context(Worker(url))
    (folder_of(directory) / "history").touch()
    with pytest.raises(BrokerError, match="history") as caught:
        await worker.adapter.prepare(RULES)
    assert caught.value.retriable


async def test_removed_messages_are_reported_to_a_process_that_had_not_read_them(
    url: str, stack: AsyncExitStack
) -> None:
    """One gap, and then what the log has; a position of before is not found."""
    listener = await stack.enter_async_context(await Process.spawn(url))
    await listener.run("start")
    await listener.run("prepare", "kept*")
    await listener.run("subscribe", "kept")
    keeper = await stack.enter_async_context(Keeper(f"{url}&max_history_bytes={MEBIBYTE}"))
    await listener.freeze()
    for number in range(40):
        await keeper.keep("kept", b"%d " % number + bytes(MEBIBYTE // 10))
    listener.thaw()
    await listener.until(lambda: any(text.startswith("39 ") for _, text in listener.delivered))
    assert listener.gaps == [["kept"]]
    numbers = [int(text.split(" ")[0]) for _, text in listener.delivered]
    assert numbers == sorted(set(numbers))


async def test_a_segment_that_was_removed_from_the_middle_is_a_gap_once(
    url: str, directory: Path, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it held is not found; what is published afterwards is."""
    monkeypatch.setattr(log_writer, "_MAX_SEGMENT_BYTES", 64 * 1024)
    keeper = await stack.enter_async_context(Keeper(url))
    await keeper.adapter.subscribe(["kept"])
    rule = History(max_messages=1000)
    positions = [(await keeper.keep("kept", b"%d " % number + bytes(30_000))).position for number in range(12)]
    _log(directory)[1].unlink()
    keeper.adapter._started().log._look()
    assert not (await keeper.recall("kept", positions[0], rule)).found
    recalled = await keeper.recall("kept", positions[-1], rule)
    assert (recalled.found, recalled.items) == (True, [])
    await keeper.keep("kept", b"new")
    assert [item.payload for item in (await keeper.recall("kept", positions[-1], rule)).items] == [b"new"]


async def test_a_stray_segment_before_the_log_is_passed_over_at_once(
    url: str, directory: Path, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped for minutes can make an old segment again: a later one reads the rest nevertheless."""
    monkeypatch.setattr(log_writer, "_MAX_SEGMENT_BYTES", 64 * 1024)
    keeper = await stack.enter_async_context(Keeper(url))
    for number in range(12):
        await keeper.keep("kept", b"%d " % number + bytes(30_000))
    for path in _log(directory)[:2]:
        path.write_bytes(b"")
    late = await stack.enter_async_context(Keeper(url))
    await late.adapter.subscribe(["kept"])
    assert [item.payload[:2] for item in (await late.recall("kept")).items] == [
        b"6 ",
        b"7 ",
        b"8 ",
        b"9 ",
        b"10",
        b"11",
    ]
    assert late.sink.gaps == []
