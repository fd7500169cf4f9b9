"""`backplane.adapters.nats.servers`: which servers are known, and in which order they are tried."""

from __future__ import annotations

import pytest

from backplane.adapters.nats.servers import Server, Servers

ONE, TWO = Server.parse("one:4222"), Server.parse("two:4222")


def tried(servers: Servers) -> list[str]:
    """Return the servers in the order in which they are tried."""
    return [str(server) for server in servers.in_order()]


@pytest.mark.parametrize(
    ("address", "shown"), [("one", "one:4222"), ("one:1", "one:1"), ("[::1]:1", "[::1]:1"), ("", "localhost:4222")]
)
def test_an_address(address: str, shown: str) -> None:
    """Host and port have defaults, and an IPv6 address stands in brackets."""
    assert str(Server.parse(address)) == shown


def test_both_kinds_are_tried_in_turn() -> None:
    """A server of the URL comes first, then one of the cluster, and so on; the same one is not tried twice."""
    servers = Servers([ONE, TWO])
    servers.learn(["two:4222", "10.0.0.3:4222", "10.0.0.4:4222", "10.0.0.5:4222"], ONE, verified=True)
    found = tried(servers)
    assert sorted([found[0], found[2]]) == ["one:4222", "two:4222"]
    assert sorted([found[1], *found[3:]]) == ["10.0.0.3:4222", "10.0.0.4:4222", "10.0.0.5:4222"]


def test_each_kind_is_shuffled() -> None:
    """Not every worker of an application meets at the same server."""
    servers = Servers([Server.parse(f"{number}:1") for number in range(9)])
    assert len({tuple(tried(servers)) for _ in range(20)}) > 1


def test_one_that_failed_comes_last_of_its_kind() -> None:
    """Of those that failed the one that failed longest ago comes first, until one is reached."""
    servers = Servers([ONE, TWO])
    servers.learn(["three:4222"], ONE, verified=True)
    servers.failed(TWO)
    servers.failed(ONE)
    assert tried(servers) == ["two:4222", "three:4222", "one:4222"]
    servers.reached(ONE)
    assert tried(servers) == ["one:4222", "three:4222", "two:4222"]


def test_earlier_ones_are_kept() -> None:
    """What a server cut off from its cluster announces does not make the others unknown; only very many do."""
    servers = Servers([ONE])
    servers.learn(["two:4222", "three:4222"], ONE, verified=True)
    servers.learn(["two:4222"], ONE, verified=True)
    assert sorted(tried(servers)) == ["one:4222", "three:4222", "two:4222"]
    servers.learn([f"10.0.0.{number}:4222" for number in range(100)], ONE, verified=True)
    assert len(tried(servers)) < 50


def test_what_is_no_address_is_left_out() -> None:
    """A cluster that announces nonsense costs nothing."""
    servers = Servers([ONE])
    servers.learn(["two:4222", "three:notaport", "[", "four:99999"], ONE, verified=True)
    assert tried(servers) == ["one:4222", "two:4222"]


@pytest.mark.parametrize(
    ("address", "verified", "name"),
    [("two:4222", True, "two"), ("10.0.0.2:4222", True, "one"), ("two:4222", False, "one"), ("[::2]:1", False, "one")],
)
def test_whose_certificate_is_believed(address: str, verified: bool, name: str) -> None:
    """A server known by its address, or from words that nobody vouches for, must have the certificate of the first."""
    servers = Servers([ONE])
    servers.learn([address], ONE, verified=verified)
    assert servers.in_order()[1].tls_name == name
