"""`backplane.explain.near_names`: which names resemble one."""

from __future__ import annotations

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
