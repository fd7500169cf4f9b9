"""`backplane.adapters.redis.patterns`: patterns of prefixes, and which copy of a message is delivered."""

from __future__ import annotations

import pytest

from backplane.adapters.redis.patterns import Patterns, outermost


@pytest.mark.parametrize("prefix", ["", "orders.", "a*b?c[d]e\\f^-", "\\", "ü\n", "***"])
def test_a_pattern_leads_back_to_its_prefix(prefix: str) -> None:
    """Whatever characters a prefix has, its pattern escapes those with a meaning, and names it again."""
    patterns = Patterns("app[1]:")
    pattern = patterns.pattern_of(prefix)
    assert patterns.prefix_of(pattern) == prefix
    assert pattern.startswith(b"app\\[1\\]:")


def test_special_characters_are_escaped() -> None:
    """In the pattern only the last asterisk is one of its own."""
    assert Patterns().pattern_of("a*b?[c]\\") == rb"a\*b\?\[c\]\\*"


def test_names_that_are_no_channels_are_ignored() -> None:
    """Of a name without the prefix of the options, one that is not UTF-8 and an empty one there is no channel."""
    patterns = Patterns("app:")
    assert patterns.channel_of(b"app:a") is None
    patterns.wanted.add([""])
    names = [b"app:a", b"other:a", b"app:", b"app:\xff", "app:ü".encode()]
    assert [patterns.channel_of(name) for name in names] == ["a", None, None, None, "ü"]


def test_outermost_prefixes_cover_the_others() -> None:
    """A prefix that begins with another one is covered by it, whatever sorts between them."""
    assert outermost(["a.b", "a", "b", "a!", "a.b.c", "ab"]) == ["a", "b"]
    assert outermost(["orders.", "orders", ""]) == [""]
    assert outermost([]) == []


def test_only_the_shortest_pattern_at_the_server_delivers() -> None:
    """Of two patterns that match one channel the server sends two copies: that of the shorter one counts."""
    patterns = Patterns()
    inner, outer = patterns.pattern_of("a.b"), patterns.pattern_of("a.")
    assert patterns.confirmed(inner, subscribed=True)
    assert (patterns.delivers(inner), patterns.delivers(outer)) == (True, False)
    assert patterns.confirmed(outer, subscribed=True)
    assert (patterns.delivers(inner), patterns.delivers(outer)) == (False, True)
    assert not patterns.confirmed(outer, subscribed=True)
    assert patterns.confirmed(outer, subscribed=False)
    assert not patterns.confirmed(outer, subscribed=False)
    assert patterns.delivers(inner)


def test_what_a_shorter_prefix_covers_is_not_asked_for() -> None:
    """One pattern is enough for all prefixes that begin with it; the others are dropped once it is there."""
    patterns = Patterns()
    patterns.wanted.add(["a.b", "c"])
    assert patterns.missing() == [b"a.b*", b"c*"]
    for pattern in patterns.missing():
        patterns.confirmed(pattern, subscribed=True)
    patterns.wanted.add(["a."])
    assert (patterns.missing(), patterns.surplus()) == ([b"a.*"], [])
    patterns.confirmed(b"a.*", subscribed=True)
    assert (patterns.missing(), patterns.surplus()) == ([], [b"a.b*"])


def test_a_shorter_pattern_is_kept_where_the_server_refuses_a_longer_one() -> None:
    """An ACL can permit `a.*` and refuse `a.b.*`: the first is kept for as long as the second is wanted."""
    patterns = Patterns()
    patterns.wanted.add(["a.", "a.b."])
    patterns.confirmed(b"*", subscribed=True)
    patterns.confirmed(b"a.*", subscribed=True)
    patterns.wanted.remove(["a."])
    assert patterns.missing() == []
    assert patterns.missing(exact=True) == [b"a.b.*"]
    assert patterns.surplus() == [b"*"]
    patterns.wanted.remove(["a.b."])
    assert patterns.surplus() == [b"*", b"a.*"]
