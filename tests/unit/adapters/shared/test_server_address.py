"""`backplane.adapters.shared.server_address`: how errors write the address of a server."""

from __future__ import annotations

import pytest

from backplane.adapters.shared.server_address import format_address, format_server
from backplane.broadcaster import BrokerUrl


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("192.0.2.1", 6379), "192.0.2.1:6379"),
        (("2001:db8::3", 6379), "[2001:db8::3]:6379"),
        ("/run/redis.sock", "/run/redis.sock"),
    ],
)
def test_address_is_written_as_in_a_url(address: tuple[str, int] | str, text: str) -> None:
    """An IPv6 address stands in brackets, and a path as it is."""
    assert format_address(address) == text


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("amqp://me:secret@one/shop", "amqp://me:***@one/shop"),
        ("amqp://me:secret@one,two/shop", "amqp://me:***@one,two/shop, server one:5672,"),
    ],
)
def test_only_one_of_several_servers_is_named(url: str, text: str) -> None:
    """Where the URL has one server, the address is not repeated."""
    assert format_server(BrokerUrl.parse(url), ("one", 5672)) == text
