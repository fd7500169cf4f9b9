"""`backplane.adapters.nats.reading`: what is read while the stream changes, from replicas that lack the newest."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from backplane.adapters.nats.channel_log import ChannelLogs, Session
from backplane.adapters.nats.jetstream import StreamInfo
from backplane.adapters.nats.reading import Reading
from backplane.history_rules import HistoryRules
from backplane.message import Position
from backplane.testing.resume_conformance import compacted
from tests.unit.adapters.nats.model_stream import CHANNELS, RULE, ModelStream, check


def reading(model: ModelStream, channel: str, log: object = None) -> Reading:
    """Return a reading of a channel."""
    info = StreamInfo(created="now", config=cast("Any", {}), state=model.state)
    return Reading(cast("Any", model), model.stream, channel, info, cast("Any", log))


@pytest.mark.parametrize("block", range(20))
def test_what_is_found_has_no_hole(block: int) -> None:
    """Whatever is published, dropped and expires while it is read: what is given back is the log, without a hole."""

    async def run(seed: int) -> int:
        model, chosen = ModelStream(seed), random.Random(seed)
        positions: list[tuple[str, Position]] = []
        found = 0
        for _ in range(40):
            channel = chosen.choice(CHANNELS)
            mine = [position for owner, position in positions[-20:] if owner == channel]
            after = chosen.choice([None, *mine])
            asked = compacted(after) if after is not None and len(positions) % 2 else after
            limit = chosen.choice((0, 1, 3, 100))
            recalled = await reading(model, channel).recall(asked, limit, chosen.choice((1, 3, 1000)))
            check(model, channel, after, recalled)
            assert not any(position.is_compact for position in (recalled.top, *(item.place for item in recalled.items)))
            if after is not None:
                wrong = Position(after.epoch, after.offset, after.check ^ 1)
                wrong = compacted(wrong) if len(positions) % 2 else wrong
                assert not (await reading(model, channel).recall(wrong, limit, 1000)).found
            found += recalled.found and after is not None
            positions += [(channel, item.place) for item in recalled.items]
            positions.append((channel, recalled.top))
        return found

    assert sum(asyncio.run(run(seed)) for seed in range(block * 50, block * 50 + 50)) > 80


def test_a_compact_position_takes_nothing_of_what_was_swept() -> None:
    """What was swept for the track of its channel is left to that: the stream is read, with the same result."""

    async def run() -> None:
        model = ModelStream(1)
        model.is_changing = False
        channel = CHANNELS[0]
        while not model.log[model.stream.subject_of(channel)]:
            model.change()
        top = (await reading(model, channel).recall(None, 1, 1000)).top
        used = reading(model, channel)
        used._sweep = cast("Any", SimpleNamespace())  # pyright: ignore[reportPrivateUsage]
        recalled = await used.recall(compacted(top), 100, 1000)
        assert (recalled.found, recalled.items, recalled.top, recalled.top.is_compact) == (True, [], top, False)

    asyncio.run(run())


@pytest.mark.parametrize("block", range(10))
def test_what_a_subscribed_worker_knows_is_true(block: int) -> None:
    """Through lost links and expiry, a position that a subscribed worker resumes from misses nothing."""

    async def run(seed: int) -> int:
        model, chosen = ModelStream(seed), random.Random(seed)
        model.is_changing = False
        logs = ChannelLogs(lambda _: None)
        rules = HistoryRules({"*": RULE})
        last: dict[str, Position] = {}
        seen = dict.fromkeys(CHANNELS, 0)
        found = 0
        for _ in range(40):
            session = Session(cast("Any", SimpleNamespace(synced_at=float("inf"))))
            logs.begin(rules, {"*": model.stream}, session)
            for channel in CHANNELS:
                logs.subscribed(channel)
                after = last.get(channel)
                if after is not None and after.offset % 2:
                    after = compacted(after)
                recalled = await reading(model, channel, logs.get(channel)).recall(after, 100, 1000)
                check(model, channel, after, recalled)
                assert not recalled.top.is_compact
                if channel in last and recalled.found:
                    found += 1
                    missed = [message.sequence for message in model.log[model.stream.subject_of(channel)]]
                    assert [item.place.offset for item in recalled.items] == [
                        number for number in missed if number > seen[channel]
                    ]
                last[channel] = recalled.items[-1].place if recalled.items else recalled.top
                seen[channel] = max([0, *(message.sequence for message in model.log[model.stream.subject_of(channel)])])
                log = logs.get(channel)
                assert log is not None
                log.recalled(last[channel])
            model.stream.reached = model.state.last_seq
            logs.end()
            for _ in range(chosen.choice((0, 1, 2))):
                model.change()
        return found

    assert sum(asyncio.run(run(seed)) for seed in range(block * 20, block * 20 + 20)) > 300
