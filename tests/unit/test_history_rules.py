"""`backplane.history_rules`: which channels have a history."""

from typing import Any

import pytest

from backplane.errors import ConfigurationError
from backplane.history_rules import History, HistoryRules


@pytest.mark.parametrize(
    ("channel", "max_messages"),
    [
        ("orders:eu", 7),
        ("orders:", 7),
        ("orders:a\nb", 7),
        ("price:x:y", 1),
        ("a.b", 5),
        ("axb", None),
        ("orders", None),
        ("my orders:eu", None),
    ],
)
def test_patterns(channel: str, max_messages: int | None) -> None:
    """`*` is any run of characters, and every other character is itself."""
    rules = HistoryRules(
        {"orders:*": History(max_messages=7), "price:*:*": History(latest=True), "a.b": History(max_messages=5)}
    )
    for _ in range(2):  # the second time from the cache
        rule = rules.rule_of(channel)
        assert (rule and rule.max_messages) == max_messages


def test_the_first_match_decides() -> None:
    """Of several patterns that match, the first one decides."""
    rules = HistoryRules({"a*": History(max_messages=1), "*": History(max_messages=2)})
    assert [rules.pattern_of(channel) for channel in ("ab", "b")] == ["a*", "*"]
    assert [pattern for pattern, _ in rules] == ["a*", "*"]


def test_many_channels() -> None:
    """The cache of rules is bounded, as clients can name channels."""
    rules = HistoryRules({"a*": History()})
    for number in range(20_001):
        rules.rule_of(f"a{number}")
    assert rules.rule_of("a0") == History()
    assert len(rules._cache) <= 10_000  # pyright: ignore[reportPrivateUsage]


def test_no_rules() -> None:
    """Without rules no channel has one."""
    assert not HistoryRules({})
    assert HistoryRules({}).rule_of("a") is None
    assert HistoryRules({}).pattern_of("a") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_messages": 0}, "max_messages must be a whole number more than 0"),
        ({"max_messages": 1.5}, "max_messages must be a whole number more than 0"),
        ({"max_age_seconds": -1}, "max_age_seconds must be a finite number more than 0"),
        ({"latest": "yes"}, "latest must be True or False"),
        ({"latest": True, "max_messages": 7}, "latest=True keeps one message"),
        ({"max_mesages": 7}, "did you mean 'max_messages'"),
    ],
)
def test_wrong_rule(options: dict[str, Any], message: str) -> None:
    """A wrong option raises an error that names it."""
    with pytest.raises(ConfigurationError, match=message):
        History(**options)


@pytest.mark.parametrize(
    ("rules", "message"),
    [({"": History()}, "a pattern"), ({1: History()}, "a pattern"), ({"a": 7}, "the rule of 'a' must be a History")],
)
def test_wrong_rules(rules: Any, message: str) -> None:
    """A wrong pattern, or a rule that is no `History`, raises an error that names it."""
    with pytest.raises(ConfigurationError, match=message):
        HistoryRules(rules)
