"""`backplane.adapters.redis.connect`: the race for the first usable address, without a server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane.adapters.redis.connect import first_usable, primary_of, text
from backplane.adapters.redis.error import unavailable
from backplane.adapters.redis.link import RedisLink
from backplane.errors import BrokerAuthenticationError, BrokerError, BrokerUnavailableError
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    from backplane.adapters.redis.link import Address

pytestmark = pytest.mark.anyio

ONE, TWO, THREE = addresses = [("192.0.2.1", 6379), ("192.0.2.2", 6379), ("2001:db8::3", 6379)]


class Network:
    """Addresses that answer when the test lets them."""

    def __init__(self) -> None:
        self.answers: dict[Address, asyncio.Future[RedisLink]] = {}
        self.tried: list[Address] = []
        self.cancelled: list[Address] = []

    async def opened(self, address: Address) -> RedisLink:
        """Wait for the test's answer."""
        self.tried.append(address)
        answer = self.answers.setdefault(address, asyncio.get_running_loop().create_future())
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            self.cancelled.append(address)
            raise

    def answer(self, address: Address, answer: RedisLink | Exception) -> None:
        """Let an address answer, now or as soon as it is tried."""
        future = self.answers.setdefault(address, asyncio.get_running_loop().create_future())
        if isinstance(answer, RedisLink):
            future.set_result(answer)
        else:
            future.set_exception(answer)


async def test_first_address_that_answers_is_the_only_one_tried() -> None:
    """A good first address costs no connection to another."""
    network, link = Network(), RedisLink()
    network.answer(ONE, link)
    assert await first_usable(addresses, network.opened) is link
    assert network.tried == [ONE]
    assert link.loss is None


async def test_failure_moves_on_at_once() -> None:
    """After an address that fails the next is tried without waiting."""
    network, link = Network(), RedisLink()
    network.answer(ONE, unavailable("dead"))
    network.answer(TWO, link)
    async with asyncio.timeout(0.2):
        assert await first_usable(addresses, network.opened) is link


async def test_silent_address_is_overtaken_and_cancelled() -> None:
    """An address that does not answer soon holds nobody up, and nothing of it is left."""
    network, link = Network(), RedisLink()
    network.answer(TWO, link)
    assert await first_usable(addresses, network.opened) is link
    assert (network.tried, network.cancelled) == ([ONE, TWO], [ONE])


async def test_late_winner_is_ended() -> None:
    """Of two that answer in the same moment one is used and the other is ended."""
    network, links = Network(), [RedisLink(), RedisLink()]
    racing = asyncio.create_task(first_usable([ONE, TWO], network.opened))
    while len(network.tried) < 2:
        await asyncio.sleep(0.01)
    network.answer(ONE, links[0])
    network.answer(TWO, links[1])
    winner = await racing
    (loser,) = (link for link in links if link is not winner)
    assert (winner.loss, loser.loss is None) == (None, False)


async def test_cancelled_race_ends_what_came_through() -> None:
    """A race that is cancelled as it is won leaves no connection."""
    network, link = Network(), RedisLink()
    racing = asyncio.create_task(first_usable([ONE], network.opened))
    await until_idle()
    network.answer(ONE, link)
    await asyncio.sleep(0)
    racing.cancel()
    await asyncio.wait([racing])
    assert racing.cancelled()
    assert link.loss is not None


@pytest.mark.parametrize(
    ("failures", "expected", "words"),
    [
        ([unavailable("one"), unavailable("two")], BrokerUnavailableError, "redis: one; two"),
        ([unavailable("one"), BrokerAuthenticationError("no")], BrokerAuthenticationError, "no"),
        ([unavailable("one")], BrokerUnavailableError, "redis: one"),
        ([], BrokerUnavailableError, "redis: the name has no address"),
    ],
)
async def test_no_usable_address_says_all(failures: list[BrokerError], expected: type[Exception], words: str) -> None:
    """Every address' error is in the words, unless one of them cannot be mended by another try."""
    network = Network()
    for address, failure in zip(addresses, failures, strict=False):
        network.answer(address, failure)
    with pytest.raises(BrokerError) as raised:
        await first_usable(addresses[: len(failures)], network.opened)
    assert (type(raised.value), str(raised.value)) == (expected, words)


async def test_fault_is_raised_as_it_is() -> None:
    """What is no error of a broker, a wrong configuration or a bug, is not taken for a dead address."""
    network = Network()
    network.answer(ONE, RuntimeError("a fault"))
    with pytest.raises(RuntimeError, match="a fault"):
        await first_usable(addresses, network.opened)


ROLES: list[tuple[object, str]] = [
    ([b"slave", b"10.0.0.1", 6379, b"connected", 5], "10.0.0.1:6379"),
    ([b"slave", b"::1", 6379, b"connect", -1], "[::1]:6379"),
    ([b"master", 0, []], ""),
    (b"PONG", ""),
    (None, ""),
    (5, ""),
]


@pytest.mark.parametrize(("role", "primary"), ROLES)
def test_primary_of_a_replica(role: object, primary: str) -> None:
    """Only a replica's answer to ROLE names a primary; any other answer names none."""
    assert primary_of(role) == primary


def test_address_as_a_url_writes_it() -> None:
    """IPv6 in brackets, a path as it is."""
    assert [text(THREE), text("/run/redis.sock")] == ["[2001:db8::3]:6379", "/run/redis.sock"]
