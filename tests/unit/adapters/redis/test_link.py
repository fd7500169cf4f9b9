"""`backplane.adapters.redis.link`: which reply belongs to which command, and what ends a link; without a server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import hiredis
import pytest

from backplane.adapters.redis.publisher_link import PublisherLink
from backplane.errors import BrokerUnavailableError
from tests.unit.adapters.redis.recorded_links import RecordingTransport, publisher, subscriber
from tests.unit.doubles import run_passes, until_idle

if TYPE_CHECKING:
    from backplane.adapters.redis.link import RedisLink
    from backplane.errors import BrokerError

pytestmark = pytest.mark.anyio


async def test_unsolicited_error_ends_the_link() -> None:
    """An error reply without a command, on either connection, ends the link with the text of the error."""
    publishing, _, of_publishing = publisher()
    receiving, _, of_receiving = subscriber()
    links: list[tuple[RedisLink, list[BrokerError]]] = [(publishing, of_publishing), (receiving, of_receiving)]
    for link, losses in links:
        link.data_received(b"-ERR something happened\r\n:1\r\n")
        (loss,) = losses
        assert "an unsolicited reply: ERR something happened" in str(loss)


async def test_error_before_the_first_command_is_its_reply() -> None:
    """The error that a server sends to a client that it refuses is the reply to the first command, closed or not."""
    link = PublisherLink(1000)
    RecordingTransport(link)
    link.data_received(b"-ERR max number of clients reached\r\n")
    link.connection_lost(None)
    with pytest.raises(hiredis.ReplyError, match="max number"):
        await link.ask(b"PING")


async def test_what_is_not_resp_ends_the_link() -> None:
    """Bytes that are not RESP end the link, and every command that awaits a reply fails."""
    link, transport, losses = publisher()
    asking = asyncio.create_task(link.ask(b"PING"))
    await until_idle()
    link.data_received(b"\x15\x03\x03\x00\x02\x02\x46")
    assert (transport.is_aborted, len(losses)) == (True, 1)
    with pytest.raises(BrokerUnavailableError):
        await asking


@pytest.mark.parametrize("late", [False, True])
async def test_check_without_a_reply_ends_the_link_at_the_next(late: bool) -> None:
    """A check whose reply is missing at the next check ends the link; a reply that is only read late does not."""
    link, _, losses = publisher()
    first = asyncio.create_task(link.check(b"PING"))
    await until_idle()
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.create_task(link.check(b"PING"))
    await run_passes(1)  # it has begun, and no timer has run: its grace is shorter than a busy machine's pauses
    if late:  # the reply arrived during a pause and is read in the passes after it
        link.data_received(b"+PONG\r\n")
        await until_idle()
        link.data_received(b"+PONG\r\n")
        assert await second == b"PONG"
        assert losses == []
    else:
        with pytest.raises(BrokerUnavailableError, match="no answer from one check to the next"):
            await second
        assert len(losses) == 1
