"""`backplane.adapters.redis.address_race`: which address of a name is used, without a server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane.adapters.redis.address_race import first_usable
from backplane.adapters.redis.errors import unavailable
from backplane.adapters.redis.link import RedisLink
from backplane.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from backplane.adapters.redis.server_info import Address

pytestmark = pytest.mark.anyio

ONE, TWO, _ = addresses = [("192.0.2.1", 6379), ("192.0.2.2", 6379), ("2001:db8::3", 6379)]


class Network:
    """Addresses that answer when the test decides.

    Attributes:
        answers: The answer of each.
        tried: The addresses, in the order in which they were tried.
    """

    def __init__(self) -> None:
        self.answers: dict[Address, asyncio.Future[RedisLink]] = {}
        self.tried: list[Address] = []
        self._changed = asyncio.Event()

    async def open_link(self, address: Address) -> RedisLink:
        """Wait for the test's answer."""
        self.tried.append(address)
        self._changed.set()
        answer = self.answers.setdefault(address, asyncio.get_running_loop().create_future())
        return await asyncio.shield(answer)

    async def has_tried(self, count: int) -> None:
        """Wait until `count` addresses were tried."""
        while len(self.tried) < count:
            self._changed.clear()
            await self._changed.wait()

    def answer(self, address: Address, answer: RedisLink | Exception) -> None:
        """Answer for an address, now or as soon as it is tried."""
        future = self.answers.setdefault(address, asyncio.get_running_loop().create_future())
        if isinstance(answer, RedisLink):
            future.set_result(answer)
        else:
            future.set_exception(answer)


async def test_first_address_that_answers_is_the_only_one_tried() -> None:
    """A good first address costs no connection to another."""
    network, link = Network(), RedisLink()
    network.answer(ONE, link)
    assert await first_usable(addresses, network.open_link) is link
    assert network.tried == [ONE]
    assert link.loss is None


async def test_late_winner_is_ended() -> None:
    """Of two links that open in the same pass of the event loop one is used and the other is ended."""
    network, links = Network(), [RedisLink(), RedisLink()]
    racing = asyncio.create_task(first_usable([ONE, TWO], network.open_link))
    await network.has_tried(2)
    network.answer(ONE, links[0])
    network.answer(TWO, links[1])
    winner = await racing
    (loser,) = (link for link in links if link is not winner)
    assert (winner.loss, loser.loss is None) == (None, False)


async def test_address_that_is_not_usable_is_reported_for_redis() -> None:
    """The errors of all addresses become one of this adapter."""
    network = Network()
    for address in (ONE, TWO):
        network.answer(address, unavailable(address[0]))
    with pytest.raises(BrokerUnavailableError, match=r"redis: 192\.0\.2\.1; 192\.0\.2\.2"):
        await first_usable([ONE, TWO], network.open_link)


async def test_error_that_is_not_of_a_broker_is_raised_as_it_is() -> None:
    """A wrong configuration, or a bug, is not taken for an address that does not answer."""
    network = Network()
    network.answer(ONE, RuntimeError("a fault"))
    with pytest.raises(RuntimeError, match="a fault"):
        await first_usable(addresses, network.open_link)
