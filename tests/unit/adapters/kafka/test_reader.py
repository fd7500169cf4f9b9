"""Positions, and the answers of a broker to a fetch."""

# pyright: reportPrivateUsage=false, reportMissingTypeStubs=false

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from backplane.adapters.kafka.answers import LATEST, Fetched, Position
from backplane.adapters.kafka.protocol import NO_TOPIC_ID
from backplane.adapters.kafka.reader import FetchPolicy, KafkaReader
from backplane.adapters.kafka.ring import HistoryRings
from backplane.errors import BrokerUnavailableError
from backplane.history_rules import History, HistoryRules
from backplane.testing import RecordingSink
from tests.unit.adapters.kafka.doubles import ScriptedNodes, Tasks, log_batch
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    from backplane.adapters.kafka.link import KafkaLink
    from backplane.broadcaster import Sink

NOT_AUTHORIZED = 29


@pytest.mark.anyio
async def test_a_partition_that_returns_to_a_broker_is_read_there_again(tasks: Tasks) -> None:
    """A broker that led no partition for a while, which ended the reading there, is read again when it leads one."""
    link, reader = ScriptedNodes(), KafkaReader(FetchPolicy(wait_ms=500), tasks.spawn)
    await reader.open(cast("KafkaLink", link), cast("Sink", object()))
    for leader, other in ((1, 2), (2, 1), (1, 2)):
        await link.nodes[leader].requested.wait()
        assert link.nodes[leader].positions.keys() == {0}
        link.move_to(other)
        await reader.update_partitions()
        link.nodes[leader].answer([])
        await until_idle()
        assert not link.nodes[leader].requested.is_set()
    reader.close()


@pytest.mark.anyio
@pytest.mark.parametrize("code", [6, 100, 103, 9999, -1])
async def test_an_error_of_a_fetch_that_cannot_be_recovered_loses_the_link(tasks: Tasks, code: int) -> None:
    """A partition that moved, a topic with another id, and an unlisted code end the link."""
    link, reader = ScriptedNodes(), KafkaReader(FetchPolicy(wait_ms=500), tasks.spawn)
    await reader.open(cast("KafkaLink", link), RecordingSink())
    await link.nodes[1].requested.wait()
    link.nodes[1].answer([Fetched(0, code, b"", 0)])
    with pytest.raises(BrokerUnavailableError, match="cannot be read"):
        await tasks.first
    reader.close()


@pytest.mark.anyio
async def test_a_right_that_is_withdrawn_revokes_every_channel(tasks: Tasks) -> None:
    """If the broker refuses reading from now on, the subscriptions are revoked and the reader is closed."""
    link, reader, sink = ScriptedNodes(), KafkaReader(FetchPolicy(wait_ms=500), tasks.spawn), RecordingSink()
    await reader.open(cast("KafkaLink", link), sink)
    reader.wanted.add(["a", "b"])
    await link.nodes[1].requested.wait()
    link.nodes[1].answer([Fetched(0, NOT_AUTHORIZED, b"", 0)])
    await sink.until(lambda: sink.revocations != [])
    ((channels, reason),) = sink.revocations
    assert channels == {"a", "b"}
    assert not reader.is_open
    assert not reader.wanted
    assert "grant READ" in reason


@pytest.mark.anyio
async def test_a_log_that_diverged_from_what_was_read_is_a_gap(tasks: Tasks) -> None:
    """If the log was truncated and has grown again, reading continues where it diverged from what was read."""
    link, reader, sink = ScriptedNodes(), KafkaReader(FetchPolicy(wait_ms=500), tasks.spawn), RecordingSink()
    link.nodes[1].ends[LATEST] = Position(20, 4)
    await reader.open(cast("KafkaLink", link), sink)
    await link.nodes[1].requested.wait()
    assert link.nodes[1].positions == {0: Position(20, 4)}
    link.nodes[1].answer([Fetched(0, 0, b"", 30, Position(12, 3))])
    await link.nodes[1].requested.wait()
    assert link.nodes[1].positions == {0: Position(12, 3)}
    assert [channels for channels, _ in sink.gaps] == [None]
    reader.close()


@pytest.mark.anyio
async def test_a_hole_in_one_partition_is_no_gap_of_a_history_in_another(tasks: Tasks) -> None:
    """Of the channels with a history only those of the partition may miss messages; any other channel may."""
    link, sink = ScriptedNodes(), RecordingSink()
    link.topology = replace(link.topology, leaders={0: 1, 1: 1})
    reader, rings = (
        KafkaReader(FetchPolicy(wait_ms=500), tasks.spawn),
        HistoryRings(1000, HistoryRules({"k*": History()})),
    )
    reader.keep(rings)
    await reader.open(cast("KafkaLink", link), sink)
    kept = [f"k{number}" for number in range(10)]
    reader.wanted.add([*kept, "plain"])
    here = {name for name in kept if rings.partition_of(name.encode()) == 0}
    assert 0 < len(here) < len(kept)
    await link.nodes[1].requested.wait()
    link.nodes[1].answer([Fetched(0, 0, b"", 30, Position(0, 3))])
    await link.nodes[1].requested.wait()
    assert [channels for channels, _ in sink.gaps] == [frozenset({*here, "plain"})]
    reader.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("topic_id", "first", "expected"),
    [
        (b"i" * 16, [Fetched(0, 0, b"", 14, Position(12, 3))], Position(12, 3)),
        (b"i" * 16, [Fetched(0, 1, b"", 14)], Position(14, 5)),
        (NO_TOPIC_ID, [], Position(14, 5)),
    ],
    ids=["diverged", "nothing-in-common", "no-epochs"],
)
async def test_a_log_that_ends_before_the_position_is_read_from_where_it_diverged(
    tasks: Tasks, topic_id: bytes, first: list[Fetched], expected: Position
) -> None:
    """After an outage in which a log was truncated, everything after the common part is read, where that is known."""
    link, reader, sink = ScriptedNodes(), KafkaReader(FetchPolicy(wait_ms=500), tasks.spawn), RecordingSink()
    node = link.nodes[1]
    link.topology = replace(link.topology, topic_id=topic_id)
    node.ends[LATEST] = Position(20, 4)
    await reader.open(cast("KafkaLink", link), sink)
    reader.close()
    node.ends[LATEST], node.first = Position(14, 5), first
    await reader.open(cast("KafkaLink", link), sink)
    await node.requested.wait()
    assert node.positions == {0: expected}
    assert [channels for channels, _ in sink.gaps] == [None]
    reader.close()


@pytest.mark.anyio
async def test_records_that_the_broker_cannot_read_are_skipped(tasks: Tasks) -> None:
    """Records that the broker itself finds damaged are skipped in growing steps, each reported as a gap."""
    link, reader, sink = ScriptedNodes(), KafkaReader(FetchPolicy(wait_ms=500), tasks.spawn), RecordingSink()
    await reader.open(cast("KafkaLink", link), sink)
    link.nodes[1].ends[LATEST] = Position(100)
    for expected in (0, 1, 3, 7):
        await link.nodes[1].requested.wait()
        assert link.nodes[1].positions[0].offset == expected
        link.nodes[1].answer([Fetched(0, 2, b"", 100)])
    reader.close()


@pytest.mark.anyio
async def test_unreadable_records_do_not_cause_a_gap_each(tasks: Tasks) -> None:
    """The first of them is reported at once, all later ones within the set time as one gap at its end."""
    link, sink = ScriptedNodes(), RecordingSink()
    reader = KafkaReader(FetchPolicy(wait_ms=500), tasks.spawn, unreadable_seconds=0.2)
    await reader.open(cast("KafkaLink", link), sink)
    for number in range(5):
        await link.nodes[1].requested.wait()
        data = log_batch(b"x", base=number)
        data[-1] ^= 1
        link.nodes[1].answer([Fetched(0, 0, bytes(data), number + 1)])
    assert len(sink.gaps) == 1
    await sink.until(lambda: len(sink.gaps) == 2)
    reader.close()
