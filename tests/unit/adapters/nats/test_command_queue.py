"""`backplane.adapters.nats.command_queue`: what is sent in one write, and which PONG confirms what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backplane.adapters.nats.command_groups import PublishGroup, RoundTrip
from backplane.adapters.nats.command_queue import CommandQueue
from backplane.errors import BrokerUnavailableError, PublishOutcomeUnknownError
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    import asyncio

pytestmark = pytest.mark.anyio


def opened() -> tuple[CommandQueue, list[bytes]]:
    """Return a queue, and the list of its writes."""
    queue, written = CommandQueue(), list[bytes]()
    queue.open(written.append)
    return queue, written


def publish(queue: CommandQueue, command: bytes) -> asyncio.Future[None]:
    """Send a publish in a group of its own."""
    answer = queue.begin(PublishGroup()).add(b"room", len(command), 1)
    queue.pending_bytes += 5
    queue.send(command)
    return answer


async def test_commands_of_one_pass_are_one_write() -> None:
    """Groups of one pass of the event loop are sent together, each followed by a PING."""
    queue, written = opened()
    for command in (b"1 ", b"2 "):
        queue.begin(RoundTrip())
        queue.send(command)
    assert written == []
    await until_idle()
    assert written == [b"1 PING\r\n2 PING\r\n"]


async def test_each_pong_confirms_the_oldest_group() -> None:
    """Groups are confirmed in the order in which they were sent, and their bytes are no longer pending."""
    queue, _ = opened()
    first, second = publish(queue, b"1 "), publish(queue, b"22 ")
    await until_idle()
    queue.confirm()
    assert (first.done(), second.done(), queue.pending_bytes, queue.longest_confirmed) == (True, False, 5, 2)
    queue.confirm()
    assert (second.done(), queue.pending_bytes, queue.longest_confirmed) == (True, 0, 3)
    with pytest.raises(ValueError, match="a PONG without a PING"):
        queue.confirm()


async def test_close_separates_sent_from_unsent() -> None:
    """A publish that was sent has an unknown outcome, one that was not is unavailable, and later ones are refused."""
    queue, written = opened()
    sent = publish(queue, b"1 ")
    await until_idle()
    unsent = publish(queue, b"2 ")
    queue.close("the connection ended: stopped", "stopped")
    assert isinstance(sent.exception(), PublishOutcomeUnknownError)
    assert isinstance(unsent.exception(), BrokerUnavailableError)
    with pytest.raises(BrokerUnavailableError, match="the link is lost: stopped"):
        queue.begin(RoundTrip())
    await until_idle()
    assert written == [b"1 PING\r\n"]


async def test_a_queue_that_is_not_open_refuses_commands() -> None:
    """Before the login is complete no command is accepted."""
    with pytest.raises(BrokerUnavailableError, match="the link is lost"):
        CommandQueue().begin(RoundTrip())
