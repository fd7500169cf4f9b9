"""`backplane.adapters.shared.prefixes`: which prefixes cover others, and which channels they match."""

from __future__ import annotations

from backplane.adapters.shared.prefixes import Prefixes, outermost


def test_outermost_prefixes_cover_the_others() -> None:
    """A prefix that begins with another one is covered by it, whatever sorts between them."""
    assert outermost(["a.b", "a", "b", "a!", "a.b.c", "ab"]) == ("a", "b")
    assert outermost(["orders.", "orders", ""]) == ("",)
    assert outermost([]) == ()


def test_a_channel_is_matched_while_one_of_its_prefixes_is_wanted() -> None:
    """A channel stays matched until the last of the prefixes that it begins with is gone."""
    prefixes = Prefixes()
    assert not prefixes.match("orders.1")
    prefixes.add(["orders.", "orders.1"])
    assert prefixes.match("orders.1")
    assert prefixes.match("orders.2")
    prefixes.discard(["orders.", "never there"])
    assert (prefixes.match("orders.1"), prefixes.match("orders.2")) == (True, False)
    prefixes.discard(["orders.1"])
    assert not prefixes.match("orders.1")


def test_the_empty_prefix_matches_every_channel() -> None:
    """The empty prefix stands for every channel, and covers all others."""
    prefixes = Prefixes()
    prefixes.add(["", "a"])
    assert prefixes.match("ü")
    assert prefixes.outermost == ("",)
