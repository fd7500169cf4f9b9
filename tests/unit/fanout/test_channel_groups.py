"""`backplane.fanout.channel_groups`: few groups, whatever the application names."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from backplane.errors import ConfigurationError
from backplane.fanout.channel_groups import MAX_GROUPS, ChannelGroups, Grouping
from backplane.journal.journal import Journal

pytestmark = pytest.mark.anyio


def names(groups: ChannelGroups) -> list[str]:
    """Return the names of all groups."""
    return [group.name for group in groups.all]


def test_without_groups() -> None:
    """Every channel is in one group, which has no name."""
    groups = ChannelGroups()
    assert groups.of("a") is groups.of("b") is groups.rest
    assert names(groups) == [""]


def test_by_pattern() -> None:
    """The first pattern that matches decides; what matches none is among the others, as is what is named so."""
    groups = ChannelGroups(Grouping.of({"room:vip:*": "vip", "room:*": "rooms", "x": "other"}))
    assert names(groups) == ["other", "vip", "rooms"], "each has its series before its first channel"
    assert [groups.of(channel).name for channel in ("room:1", "room:vip:1", "a", "x")] == [
        "rooms", "vip", "other", "other",
    ]  # fmt: skip
    assert groups.of("room:2") is groups.of("room:3")
    assert names(groups) == ["other", "vip", "rooms"]


def test_a_number_without_bound() -> None:
    """Channels after the first fifty groups are among the others; those of the groups that are there stay in them."""
    groups = ChannelGroups(Grouping.of(lambda channel: channel))
    for number in range(200):
        groups.of(f"{number}")
    assert len(names(groups)) == MAX_GROUPS + 1
    assert (groups.of("7").name, groups.of("199").name) == ("7", "other")


@pytest.mark.parametrize("answer", [None, "", 7, b"x", "x" * 101, "a\nb", "\ud800", ["x"]])
def test_what_is_no_name(answer: Any) -> None:
    """It cannot be the value of a label, so its channels are among the others."""
    groups = ChannelGroups(Grouping.of(lambda _: answer))
    assert (groups.of("a").name, names(groups)) == ("other", ["other"])


async def test_a_function_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Its channel is joined all the same, and the failure is logged, where there is a journal."""
    caplog.set_level(logging.DEBUG)

    def fail(channel: str) -> str:
        raise KeyError(channel)

    assert ChannelGroups(Grouping(fail)).of("a").name == "other"
    assert caplog.records == []
    assert ChannelGroups(Grouping(fail), Journal()).of("a").name == "other"
    assert [(record.getMessage(), record.exc_info is None) for record in caplog.records] == [
        ("channel_group failed", False)
    ]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("rooms", "channel_group must be a mapping such as"),
        (["room:*"], "channel_group must be a mapping such as"),
        ({"": "rooms"}, "channel_group: a pattern of channels is a text"),
        ({"room:*": 7}, "channel_group: the rule of 'room:\\*' must be a str"),
        ({"room:*": ""}, "channel_group: a group is a name of at most 100 characters, not ''"),
        ({"room:*": "a\nb"}, "channel_group: a group is a name of at most 100 characters"),
        ({f"{number}:*": f"{number}" for number in range(51)}, "channel_group takes at most 50 groups, not 51"),
    ],
)
def test_what_is_no_option(option: Any, words: str) -> None:
    """A wrong option is found where the application is made."""
    with pytest.raises(ConfigurationError, match=f"^{words}"):
        Grouping.of(option)


def test_as_many_as_are_allowed() -> None:
    """Many patterns may name one group."""
    Grouping.of({f"{number}:*": f"{number % 50}" for number in range(100)} | {"x": "other"})
