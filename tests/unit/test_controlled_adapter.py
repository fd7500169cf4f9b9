"""`tests.unit.controlled_adapter`: the double of an adapter with a history keeps the contract of `SupportsHistory`."""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING

import pytest

from backplane.broadcaster import SupportsHistory
from backplane.errors import BrokerUnavailableError, PublishOutcomeUnknownError
from backplane.history_rules import History
from tests.unit.controlled_adapter import ControlledHistoryAdapter
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    from backplane.message import Place, Position

RULE = History(max_messages=3)


class _Sink:
    """Keeps what is delivered."""

    def __init__(self) -> None:
        self.delivered: list[tuple[str, bytes, Place | None]] = []

    def deliver(self, channel: str, payload: bytes, place: Place | None = None) -> None:
        """Keep it."""
        self.delivered.append((channel, payload, place))

    def gap(self, channels: object, reason: str) -> None:
        """Ignore it."""

    def revoked(self, channels: object, reason: str) -> None:
        """Ignore it."""

    def lost(self, error: Exception) -> None:
        """Ignore it."""


async def _started(*channels: str) -> tuple[ControlledHistoryAdapter, _Sink]:
    adapter, sink = ControlledHistoryAdapter(), _Sink()
    await adapter.start(sink)
    await adapter.subscribe(channels)
    return adapter, sink


async def _payloads(adapter: ControlledHistoryAdapter, after: Position | None, limit: int = 10) -> list[bytes] | None:
    recalled = await adapter.recall("c", RULE, after=after, limit=limit, max_bytes=1000)
    return [item.payload for item in recalled.items] if recalled.found else None


@pytest.mark.anyio
async def test_what_is_kept_is_delivered_with_its_place_and_recalled() -> None:
    """A kept message is delivered live with its place, returns its position, and is read again after the one before."""
    adapter, sink = await _started("c")
    receipts = [await adapter.keep("c", b"%d" % number, RULE) for number in range(3)]
    places = [place for _, _, place in sink.delivered]
    assert [place and (place.before, place.before_check) for place in places] == [
        (0, 0),
        (1, zlib.crc32(b"0")),
        (2, zlib.crc32(b"1")),
    ]
    assert [receipt.position for receipt in receipts] == places
    assert await _payloads(adapter, receipts[0].position) == [b"1", b"2"]
    assert await _payloads(adapter, None, 2) == [b"1", b"2"]
    assert isinstance(adapter, SupportsHistory)


@pytest.mark.anyio
async def test_a_position_is_found_while_its_message_or_the_next_one_is_kept() -> None:
    """Limits drop the oldest; a position is found while what is kept holds or names it, by offset and check."""
    adapter, _ = await _started()
    places = [adapter.append("c", b"%d" % number, most=3) for number in range(6)]
    assert await _payloads(adapter, places[0]) is None
    assert await _payloads(adapter, places[1]) == [b"2", b"3", b"4", b"5"]
    adapter.log("c").lose_newest(2)
    assert await _payloads(adapter, places[5]) is None
    adapter.append("c", b"other", most=3)
    assert await _payloads(adapter, places[4]) is None
    assert await _payloads(adapter, places[3]) == [b"other"]
    adapter.log("c").drop_oldest(10)
    assert await _payloads(adapter, adapter.log("c").top) == []
    adapter.forget("c")
    assert await _payloads(adapter, places[3]) is None


@pytest.mark.anyio
async def test_a_second_keep_with_one_key_stores_nothing() -> None:
    """The second one with a key gets the first one's position and `duplicate`, also after a swallowed answer."""
    adapter, sink = await _started("c")
    adapter.reply_errors = [PublishOutcomeUnknownError("no answer")]
    with pytest.raises(PublishOutcomeUnknownError):
        await adapter.keep("c", b"1", RULE, key=b"k")
    receipt = await adapter.keep("c", b"1", RULE, key=b"k")
    assert receipt.duplicate
    assert receipt.position == adapter.log("c").top
    assert len(sink.delivered) == 1


@pytest.mark.anyio
@pytest.mark.parametrize(("gate", "stored"), [("keep_gate", 0), ("reply_gate", 1)])
async def test_a_keep_without_an_answer_ends_with_the_link(gate: str, stored: int) -> None:
    """A held `keep` has an unknown outcome when the link ends, stored or not."""
    adapter, _ = await _started("c")
    getattr(adapter, gate).close()
    keeping = asyncio.create_task(adapter.keep("c", b"1", RULE))
    await until_idle()
    await adapter.stop()
    with pytest.raises(PublishOutcomeUnknownError):
        await keeping
    assert len(adapter.log("c").items) == stored
    with pytest.raises(BrokerUnavailableError):
        await adapter.keep("c", b"1", RULE)
