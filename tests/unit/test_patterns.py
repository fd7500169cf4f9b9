"""`backplane.patterns`: what matches a pattern, and prefixes."""

from __future__ import annotations

import random
import re
import time

import pytest

from backplane.patterns import Pattern, Prefixes


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("prices.*", ["prices.", "prices.a", "prices.a.b"], ["prices", "price.a", "Prices.a", "xprices.a"]),
        ("*", ["a", "*", "日本\n"], []),
        ("**", ["a"], []),
        ("a*b*c", ["abc", "axbyc", "abcbc", "abbcc"], ["ab", "ac", "acb", "xabc"]),
        ("*a*", ["a", "xay"], ["b", "A"]),
        ("aba*aba", ["abaaba", "abaxaba"], ["aba", "ababa"]),
        ("a", ["a"], ["aa", ""]),
        ("a*", ["a*", "a>"], ["b"]),
        ("[a-z].?*", ["[a-z].?x"], ["b.cx"]),
    ],
)
def test_what_matches(pattern: str, matching: list[str], other: list[str]) -> None:
    """`*` is any run of characters, also none; every other character is itself."""
    compiled = Pattern(pattern)
    assert [channel for channel in [*matching, *other] if compiled.matches(channel)] == matching
    assert (compiled.text, compiled.prefix) == (pattern, pattern.partition("*")[0])


def test_it_matches_what_a_regular_expression_matches() -> None:
    """Any pattern and any channel: the same answer as of the expression that tries every division."""
    choose = random.Random(20)
    for _ in range(5_000):
        pattern = "".join(choose.choices("ab*", k=choose.randrange(1, 8)))
        channel = "".join(choose.choices("ab", k=choose.randrange(9)))
        expression = ".*".join(re.escape(part) for part in pattern.split("*"))
        assert Pattern(pattern).matches(channel) is bool(re.fullmatch(expression, channel)), (pattern, channel)


@pytest.mark.parametrize("pattern", ["*a" * 120 + "*b", "*" * 10_000, "a*" * 5_000 + "b", "*" + "a*" * 100 + "b"])
def test_a_hostile_pattern_takes_no_time(pattern: str) -> None:
    """A thousand matches of a pattern on which a regular expression would not end in a lifetime."""
    compiled, began = Pattern(pattern), time.process_time()
    for _ in range(1_000):
        compiled.matches("a" * 255)
    assert time.process_time() - began < 10


def test_prefixes() -> None:
    """A key is covered by any prefix that it begins with, of text and of bytes; the empty one covers all."""
    prefixes: Prefixes[str] = Prefixes()
    assert not prefixes
    assert not prefixes.covers("a")
    prefixes.add(["a.", "a.b.", "日"])
    prefixes.add(["a."])
    assert [key for key in ("a.", "a.b.c", "a", "", "日本", "b") if prefixes.covers(key)] == ["a.", "a.b.c", "日本"]
    assert prefixes.of("a.b.c") == ["a.", "a.b."]
    assert prefixes.of("a.b.") == ["a.", "a.b."]
    assert prefixes.of("a") == []
    prefixes.remove(["a.", "not there"])
    assert prefixes.of("a.b.c") == ["a.b."]
    prefixes.add([""])
    assert prefixes.of("") == [""]
    assert prefixes.covers("x")
    prefixes.clear()
    assert not prefixes
    assert not prefixes.covers("x")


def test_prefixes_are_a_collection() -> None:
    """They are listed, and found again as they are; what begins with one is not one."""
    prefixes = Prefixes[str]()
    prefixes.add(["a.", ""])
    assert sorted(prefixes) == ["", "a."]
    assert ("a." in prefixes, "a.b" in prefixes) == (True, False)


def test_prefixes_of_bytes() -> None:
    """Bytes are looked up the same way."""
    prefixes: Prefixes[bytes] = Prefixes()
    prefixes.add([b"a."])
    assert prefixes.of(b"a.b") == [b"a."]
