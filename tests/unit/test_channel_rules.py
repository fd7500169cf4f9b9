"""`backplane.channel_rules`: rules of channels by pattern; patterns of histories: test_history_rules.py."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.channel_rules import ChannelRules
from backplane.errors import ConfigurationError


class Colour:
    """A rule."""

    def __init__(self, name: str) -> None:
        self.name = name


def rules(**by_pattern: Any) -> ChannelRules[Colour]:
    """Return rules."""
    return ChannelRules("colours", Colour, by_pattern)


def test_the_first_pattern_that_matches_decides() -> None:
    """`*` is any run of characters, also none, and every other character is itself."""
    given = rules(**{"a*": Colour("red"), "*.b": Colour("blue"), "**": Colour("grey")})
    names = {channel: rule.name for channel in ("a.b", "a", "x.b", "xb", "é\n") if (rule := given.rule_of(channel))}
    assert names == {"a.b": "red", "a": "red", "x.b": "blue", "xb": "grey", "é\n": "grey"}
    assert [given.pattern_of(channel) for channel in names] == ["a*", "a*", "*.b", "**", "**"]
    assert [pattern for pattern, _ in given] == ["a*", "*.b", "**"]
    assert given


@pytest.mark.parametrize("channel", ["$backplane/workers", "$backplane/", "$backplane/presence/room:1"])
def test_reserved_channels_match_no_pattern(channel: str) -> None:
    """The channels of this package itself have no rule, also where a pattern would match them."""
    given = rules(**{"*": Colour("red"), "$backplane/*": Colour("blue")})
    assert (given.rule_of(channel), given.pattern_of(channel)) == (None, None)
    assert given.rule_of("$backplane") is not None


def test_no_rules() -> None:
    """Without a pattern no channel has a rule."""
    assert not rules()
    assert rules().rule_of("a") is None


def test_the_cache_is_bounded() -> None:
    """Clients can name any number of channels; a rule is found all the same."""
    given = rules(**{"a*": Colour("red")})
    for number in range(25_000):
        assert given.rule_of(f"b{number}") is None
    assert given.rule_of("a") is not None
    assert len(given._cache) <= 10_000  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ({"": Colour("red")}, "colours: a pattern of channels is a text such as 'orders:\\*', not ''"),
        ({7: Colour("red")}, "colours: a pattern of channels is a text such as 'orders:\\*', not 7"),
        ({"a": "red"}, "colours: the rule of 'a' must be a Colour\\(...\\), not 'red'"),
        ({"a": None}, "colours: the rule of 'a' must be a Colour\\(...\\), not None"),
    ],
)
def test_wrong_rules(patterns: Any, words: str) -> None:
    """A pattern that is none, and a rule of another class, raise an error that names the option."""
    with pytest.raises(ConfigurationError, match=words):
        ChannelRules("colours", Colour, patterns)
