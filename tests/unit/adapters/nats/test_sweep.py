"""`backplane.adapters.nats.sweep`: what many channels missed is read once, and is what each would have read itself."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

import pytest

from backplane.adapters.nats import sweep as sweep_module
from backplane.adapters.nats.errors import unavailable
from backplane.adapters.nats.jetstream import StoredMessage, StreamInfo
from backplane.adapters.nats.reading import Reading
from backplane.adapters.nats.sweep import Sweep, worthwhile_start
from backplane.message import Position
from tests.unit.adapters.nats.model_stream import CHANNELS, ModelStream, check

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel waits for the sweep for as long as that takes on a busy machine; one test makes it impatient."""
    monkeypatch.setattr(sweep_module, "_PATIENCE_SECONDS", 60)


def sweep_of(model: ModelStream, start: int, wanted: Mapping[bytes, int]) -> Sweep:
    """Return a sweep of a model."""
    return Sweep(cast("Any", model), model.stream, start, wanted, run=asyncio.create_task)


def quiet_stream() -> ModelStream:
    """Return a stream that does not change while it is read."""
    model = ModelStream(1)
    while len(model.kept("room")) < 4:
        model.change()
    model.is_changing = False
    return model


@pytest.mark.parametrize("has_batches", [False, True])
@pytest.mark.parametrize("block", range(10))
def test_what_is_swept_has_no_hole(block: int, has_batches: bool) -> None:
    """Whatever is published, dropped and expires while it is read: what a channel takes is the log, without a hole."""

    async def run(seed: int) -> int:
        model, chosen, served = ModelStream(seed), random.Random(seed), 0
        model.has_batches = has_batches
        for _ in range(20):
            positions: dict[str, Position] = {}
            for channel in CHANNELS:
                subject = model.stream.subject_of(channel)
                newest = await model.newest(model.stream, subject)
                epoch = model.stream.epoch_of(subject)
                positions[channel] = (
                    Position(epoch, model.state.last_seq, 0)
                    if newest is None
                    else Position(epoch, newest.sequence, crc32(newest.payload))
                )
            for _ in range(chosen.choice((0, 1, 3))):
                model.change()
            wanted = {model.stream.subject_of(channel): after.offset for channel, after in positions.items()}
            sweep = sweep_of(model, chosen.choice(list(wanted.values())), wanted)
            for channel, after in positions.items():
                high = (await model.info(model.stream, b"")).state.last_seq
                assert await sweep.reach(high)
                info = StreamInfo(created="now", config=cast("Any", {}), state=model.state)
                reading = Reading(cast("Any", model), model.stream, channel, info, None, sweep, high)
                limit, max_bytes = chosen.choice((1, 3, 100)), chosen.choice((1, 3, 1000))
                recalled = await reading._swept(after, limit, max_bytes)  # pyright: ignore[reportPrivateUsage]
                if recalled is not None:
                    served += 1
                    assert recalled.found
                    check(model, channel, after, recalled)
                    check(model, channel, after, await reading.recall(after, limit, max_bytes))
        return served

    assert sum(asyncio.run(run(seed)) for seed in range(block * 20, block * 20 + 20)) > 200


async def test_a_channel_takes_once_what_is_known() -> None:
    """A channel gets its messages once, those up to a number; nothing is known of another, nor of older ones."""
    model = quiet_stream()
    subject = model.stream.subject_of("room")
    numbers = [message.sequence for message in model.kept("room")]
    last = model.state.last_seq
    sweep = sweep_of(model, 0, {subject: numbers[0]})
    assert await sweep.reach(last)
    assert sweep.reached == last
    assert sweep.is_usable
    assert sweep.take(model.stream.subject_of("room-2"), 0, last) is None
    assert sweep.take(subject, numbers[0] - 1, last) is None
    found = sweep.take(subject, numbers[1], numbers[-2])
    assert found is not None
    assert [message.sequence for message in found] == numbers[2:-1]
    assert sweep.take(subject, numbers[1], last) is None
    assert not sweep.is_usable


async def test_channels_from_before_the_start_are_read_by_themselves() -> None:
    """What a channel missed before the sweep begins is not known."""
    model = quiet_stream()
    sweep = sweep_of(model, 2, {b"early": 1, b"late": 2})
    assert sweep.take(b"early", 1, 9) is None
    assert sweep.take(b"late", 2, 9) == []


async def test_a_sweep_goes_on() -> None:
    """What came since is read when it is asked for, in one read for all that wait."""
    model = quiet_stream()
    subject, last = model.stream.subject_of("room"), model.state.last_seq
    sweep = sweep_of(model, 0, {subject: 0})
    assert all(await asyncio.gather(sweep.reach(1), sweep.reach(last), sweep.reach(0)))
    model.change()
    while model.state.last_seq == last:
        model.change()
    assert await sweep.reach(model.state.last_seq)
    found = sweep.take(subject, last, model.state.last_seq)
    assert found == [message for message in model.kept("room") if message.sequence > last]


async def test_a_broker_that_fails_ends_it() -> None:
    """Where a read fails, each channel is read by itself."""
    model = quiet_stream()

    async def fails(*_: object, **__: object) -> list[StoredMessage]:
        raise unavailable("the link is lost")

    model.read = fails  # type: ignore[method-assign]
    sweep = sweep_of(model, 0, {b"any": 0})
    assert not await sweep.reach(1)
    assert not sweep.is_usable
    assert not await sweep.reach(1)


async def test_a_sweep_that_finds_too_much_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held is bounded; messages of other channels do not count."""
    monkeypatch.setattr(sweep_module, "_MAX_BYTES", 2)
    model = quiet_stream()
    last = model.state.last_seq
    assert not await sweep_of(model, 0, {model.stream.subject_of("room"): 0}).reach(last)
    assert await sweep_of(model, 0, {b"any": 0}).reach(last)


async def test_no_channel_waits_long_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that takes long is not waited for, and goes on."""
    monkeypatch.setattr(sweep_module, "_PATIENCE_SECONDS", 0.01)
    model, may_read = quiet_stream(), asyncio.Event()
    read = model.read

    async def waits(*arguments: Any, **options: Any) -> Any:
        await may_read.wait()
        return await read(*arguments, **options)

    model.read = waits  # type: ignore[method-assign]
    sweep = sweep_of(model, 0, {b"any": 0})
    assert not await sweep.reach(1)
    assert sweep.is_usable
    may_read.set()
    assert await sweep.reach(1)


@pytest.mark.parametrize(
    ("offsets", "reached", "last", "start"),
    [
        (range(1, 101), 100, 400, 1),
        (range(1, 64), 100, 400, None),  # few channels
        (range(1, 1001), 1000, 1000, None),  # nothing was stored
        (range(1, 1001), 1000, 1100, None),  # much less than there are channels
        ([*range(5000, 5100), 1], 5100, 5400, 5000),  # one has been quiet for long
        (range(0, 10_000, 100), 10_000, 20_000, None),  # most of what was stored is of other channels
        (range(1, 101), 5000, 5300, None),  # all have been quiet for long
    ],
)
def test_where_a_sweep_is_worthwhile(offsets: list[int], reached: int, last: int, start: int | None) -> None:
    """Many channels that missed something, and whose newest messages are not far back, are worth it."""
    assert worthwhile_start(offsets, reached=reached, last=last) == start
