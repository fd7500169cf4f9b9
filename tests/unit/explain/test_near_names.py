"""`backplane.explain.near_names`: which names resemble one."""

from __future__ import annotations

from difflib import SequenceMatcher

import pytest

from backplane.explain.near_names import near_names


@pytest.mark.parametrize(
    ("name", "others", "near"),
    [
        ("orders:42", ["orders:42"], ()),
        ("orders:42", ["order:42", "x"], ("order:42",)),
        ("orders:42", ["Orders:42", "orders-42"], ("orders-42", "Orders:42")),
        ("orders:42", ["shop:orders:42"], ("shop:orders:42",)),
        ("orders:42", [" orders:42"], (" orders:42",)),
        ("orders:42", ["prices:7", "orders:9999999"], ()),
        ("a", ["ab", "b"], ()),
    ],
)
def test_near_names(name: str, others: list[str], near: tuple[str, ...]) -> None:
    """Case, blanks, separators, a prefix, or few other letters; no name that only shares its beginning."""
    assert sorted(near_names(name, others)) == sorted(near)


def test_many_and_long_names() -> None:
    """Of a hundred thousand names, and of very long ones, only a part is compared, and three are returned at most."""
    many = (f"orders:{number}" for number in range(100_000))
    assert len(near_names("orders:5", many)) == 3
    assert near_names("o" * 10_000, ["o" * 9_999]) == ("o" * 9_999,)
    assert near_names("o" * 9_998 + "xy", ["o" * 9_997 + "abc"]) == ()


def test_hostile_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of one letter repeated take longest: only a few of them are compared by letters."""
    compared: list[str] = []
    set_seq1 = SequenceMatcher[str].set_seq1

    def counted(matcher: SequenceMatcher[str], name: str) -> None:
        compared.append(name)
        set_seq1(matcher, name)

    monkeypatch.setattr(SequenceMatcher, "set_seq1", counted)
    assert len(near_names("a" * 98, ["a" * 97 + chr(0x4E00 + number) for number in range(10_000)])) == 3
    assert sum(len(name) * 98 for name in compared if len(name) > 1) <= 60_000
