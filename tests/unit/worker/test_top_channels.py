"""`backplane.worker.top_channels`: the largest and the busiest channels of a worker, in a bounded number."""

from __future__ import annotations

from dataclasses import asdict

from backplane.fanout.channel_subscribers import ChannelSubscribers
from backplane.fanout.traffic import Traffic
from backplane.worker.top_channels import MAX_CHANNELS, TopChannels
from tests.unit.doubles import RecordingSubscriber


def channel(subscribers: int, messages: int = 0) -> ChannelSubscribers:
    """Return a channel with so many subscribers, on which messages of four characters were received."""
    traffic = Traffic()
    made = ChannelSubscribers(traffic, traffic.groups.rest)
    for _ in range(subscribers):
        made[RecordingSubscriber()] = 1
    made.messages, made.size_bytes = messages, 4 * messages
    return made


def names(top: TopChannels) -> list[str]:
    """Return the names of the channels, in order."""
    return [each.name for each in top.take()]


def test_the_largest() -> None:
    """Of many channels those with the most subscribers are there, and none of this package itself."""
    channels = {f"room:{number:02}": channel(1) for number in range(30)}
    channels |= {"pair": channel(2), "crowd": channel(3), "$backplane/control": channel(4, 50)}
    found = names(TopChannels(channels))
    assert (found[:3], len(found)) == (["crowd", "pair", "room:29"], MAX_CHANNELS)


def test_the_busiest() -> None:
    """Those with the most messages since they were last taken are there, however few subscribers they have."""
    channels = {f"crowd:{number:02}": channel(2) for number in range(30)}
    channels |= {"was busy": channel(1, 900), "is busy": channel(1, 20)}
    top = TopChannels(channels)
    first = top.take()
    assert [each.name for each in first[:3]] == ["was busy", "is busy", "crowd:29"]
    assert asdict(first[0]) == {"name": "was busy", "subscribers": 1, "messages": 900, "size_bytes": 3600}
    channels["is busy"].messages += 10
    assert names(top)[:2] == ["is busy", "crowd:29"]
    assert names(top)[0] == "crowd:29", "nothing was received"
    top.forget()
    assert names(top)[:2] == ["was busy", "is busy"]


def test_busy_channels_leave_room() -> None:
    """At most half of them are there for their messages alone."""
    channels = {f"busy:{number:02}": channel(1, 10) for number in range(30)}
    channels |= {f"crowd:{number:02}": channel(2) for number in range(30)}
    assert sum(name.startswith("busy") for name in names(TopChannels(channels))) == MAX_CHANNELS // 2


def test_a_channel_that_begins_again() -> None:
    """One whose subscribers have all left counts from 0 again with the next one."""
    channels = {"a": channel(1, 900)}
    top = TopChannels(channels)
    assert names(top) == ["a"]
    channels["a"] = channel(1, 3)
    assert [each.messages for each in top.take()] == [3]
