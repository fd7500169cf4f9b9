"""`backplane.adapters.shared.wanted_channels`: which channels an adapter delivers."""

from __future__ import annotations

from urllib.parse import quote, unquote

from backplane.adapters.shared.wanted_channels import WantedChannels


def test_names_and_prefixes() -> None:
    """A channel is found by its name or by a prefix, whichever remains."""
    wanted = WantedChannels(str.encode, bytes.decode)
    assert not wanted
    wanted.add(["a.b", "ü"])
    assert (wanted.find(b"a.b"), wanted.find("ü".encode()), wanted.find(b"a.c")) == ("a.b", "ü", None)
    wanted.add_prefixes(["a."])
    assert wanted.has_prefixes
    assert (wanted.find(b"a.b"), wanted.find(b"a.c"), wanted.find(b"b")) == ("a.b", "a.c", None)
    wanted.remove(["a.b", "not there"])
    assert wanted.find(b"a.b") == "a.b"
    wanted.remove_prefixes(["a."])
    assert (wanted.find(b"a.b"), wanted.has_prefixes) == (None, False)
    wanted.remove(["ü"])
    assert not wanted


def test_what_is_no_name_is_not_wanted() -> None:
    """A message of another program whose key is no text is passed over."""
    wanted = WantedChannels(str.encode, bytes.decode)
    wanted.add_prefixes([""])
    assert wanted.find(b"\xff") is None
    assert wanted.find(b"a") == "a"


def test_encoded_names() -> None:
    """Prefixes are compared as they are encoded, and the channel is decoded."""
    wanted = WantedChannels(quote, lambda name: unquote(name, errors="strict"))
    wanted.add_prefixes(["a b"])
    assert wanted.find("a%20b%C3%BC") == "a bü"
    assert wanted.find("a%20%FF") is None
    assert wanted.find("a%20b%FF") is None
