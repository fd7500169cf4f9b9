"""`backplane.adapters.shared.connect_race`: the first target that is connected wins, and no other link is left."""

from __future__ import annotations

import asyncio

import pytest

from backplane.adapters.shared.connect_race import NoneConnectedError, first_connected, first_usable
from backplane.errors import BrokerAuthenticationError, BrokerError, BrokerUnavailableError
from tests.unit.doubles import until_idle

pytestmark = pytest.mark.anyio

ONE, TWO, THREE = targets = ["one", "two", "three"]


class Link:
    """A link to a target.

    Attributes:
        is_ended: Whether it was ended.
    """

    def __init__(self) -> None:
        self.is_ended = False

    def end(self) -> None:
        """End it."""
        self.is_ended = True


class Network:
    """Targets that answer when the test decides.

    Attributes:
        tried: The targets, in the order in which they were tried.
        cancelled: Those whose try was cancelled.
    """

    def __init__(self) -> None:
        self._answers: dict[str, asyncio.Future[Link]] = {}
        self.tried: list[str] = []
        self.cancelled: list[str] = []
        self._changed = asyncio.Event()

    async def connect(self, target: str) -> Link:
        """Wait for the test's answer."""
        self.tried.append(target)
        self._changed.set()
        answer = self._answers.setdefault(target, asyncio.get_running_loop().create_future())
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            self.cancelled.append(target)
            raise

    async def has_tried(self, count: int) -> None:
        """Wait until `count` targets were tried."""
        while len(self.tried) < count:
            self._changed.clear()
            await self._changed.wait()

    def answer(self, target: str, answer: Link | Exception) -> None:
        """Answer for a target, now or as soon as it is tried."""
        future = self._answers.setdefault(target, asyncio.get_running_loop().create_future())
        if isinstance(answer, Link):
            future.set_result(answer)
        else:
            future.set_exception(answer)


async def race(network: Network, *among: str, next_after_seconds: float = 10) -> Link:
    """Return the link that wins; an `OSError` of one target lets the next one be tried."""
    return await first_connected(
        among, network.connect, end=Link.end, failures=(OSError,), next_after_seconds=next_after_seconds
    )


async def test_target_that_answers_is_the_only_one_tried() -> None:
    """Where the first target is connected, no other one is tried."""
    network, link = Network(), Link()
    network.answer(ONE, link)
    assert await race(network, *targets) is link
    assert network.tried == [ONE]
    assert not link.is_ended


async def test_next_target_is_tried_at_once_after_a_failure() -> None:
    """After a target that fails the next one is tried without a delay."""
    network, link = Network(), Link()
    network.answer(ONE, OSError("dead"))
    network.answer(TWO, link)
    async with asyncio.timeout(30):
        assert await race(network, *targets) is link


async def test_silent_target_is_cancelled_when_another_answers() -> None:
    """A target that does not answer delays the next one by a moment only, and its try is cancelled."""
    network, link = Network(), Link()
    network.answer(TWO, link)
    assert await race(network, *targets, next_after_seconds=0.01) is link
    assert (network.tried, network.cancelled) == ([ONE, TWO], [ONE])


async def test_second_link_of_the_same_moment_is_ended() -> None:
    """Of two links that open in the same pass of the event loop one is returned and the other is ended."""
    network, links = Network(), [Link(), Link()]
    racing = asyncio.create_task(race(network, ONE, TWO, next_after_seconds=0.01))
    await network.has_tried(2)
    network.answer(ONE, links[0])
    network.answer(TWO, links[1])
    winner = await racing
    assert [link.is_ended for link in links] == [link is not winner for link in links]


async def test_cancelled_race_ends_the_link_it_opened() -> None:
    """A race that is cancelled in the pass in which a link opens leaves no link."""
    network, link = Network(), Link()
    racing = asyncio.create_task(race(network, ONE))
    await until_idle()
    network.answer(ONE, link)
    await asyncio.sleep(0)
    racing.cancel()
    await asyncio.wait([racing])
    assert racing.cancelled()
    assert link.is_ended


async def test_failures_are_raised_in_their_order() -> None:
    """Where every target fails, the error holds each failure."""
    network, failures = Network(), [OSError("one"), OSError("two")]
    for target, failure in zip(targets, failures, strict=False):
        network.answer(target, failure)
    with pytest.raises(NoneConnectedError) as raised:
        await race(network, ONE, TWO)
    assert raised.value.failures == failures


async def test_other_error_is_raised_as_it_is() -> None:
    """A wrong configuration, or a bug, is not taken for a target that is away: no other one is tried."""
    network = Network()
    network.answer(ONE, RuntimeError("a fault"))
    with pytest.raises(RuntimeError, match="a fault"):
        await race(network, *targets)
    assert network.tried == [ONE]


ONE_DOWN, TWO_DOWN = (BrokerUnavailableError(word, adapter="x") for word in ("one", "two"))
REFUSED = BrokerAuthenticationError("no", adapter="x")


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([ONE_DOWN, TWO_DOWN], BrokerUnavailableError("one; two", adapter="nice")),
        ([ONE_DOWN, REFUSED], REFUSED),
        ([ONE_DOWN], ONE_DOWN),
        ([], BrokerUnavailableError("the name has no address", adapter="nice")),
    ],
)
async def test_one_error_names_every_failure(failures: list[BrokerError], expected: BrokerError) -> None:
    """The error holds that of every target, unless a repetition does not help against one: then it is that one."""
    network = Network()
    for target, failure in zip(targets, failures, strict=False):
        network.answer(target, failure)
    with pytest.raises(BrokerError) as raised:
        await first_usable(targets[: len(failures)], network.connect, end=Link.end, adapter="nice")
    assert (type(raised.value), str(raised.value)) == (type(expected), str(expected))


async def test_usable_target_is_returned() -> None:
    """Errors of brokers alone let the next target be tried."""
    network, link = Network(), Link()
    network.answer(ONE, ONE_DOWN)
    network.answer(TWO, link)
    assert await first_usable(targets, network.connect, end=Link.end, adapter="nice") is link
