"""`backplane.adapters.nats.requests`: which reply answers which request, and when one in several parts has ended."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.adapters.nats.errors import unavailable
from backplane.adapters.nats.requests import Requests, status_of
from backplane.errors import BrokerUnavailableError

pytestmark = pytest.mark.anyio

PART = b"NATS/1.0\r\nNats-Time-Stamp: 1\r\nNats-Num-Pending: 1\r\nNats-Last-Sequence: 1\r\n\r\n"
END = b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\n\r\n"


async def test_replies_are_attributed_by_their_subject() -> None:
    """Each request gets its own reply, in any order; one that is closed gets none, and nothing is left of it."""
    requests = Requests("shop.")
    first, second, third = (requests.open(10) for _ in range(3))
    assert requests.pending_bytes == 30
    requests.close(third)
    for request in (third, second, first):
        requests.receive(request.reply_to, b"", request.reply_to)
        requests.receive(request.reply_to, b"", b"again")
    for request in (first, second):
        assert [reply.payload for reply in await request.future] == [request.reply_to]
        assert request.reply_to.startswith(requests.subject.removesuffix(b"*"))
        requests.close(request)
    assert not third.future.done()
    assert requests.subject.startswith(b"shop.=24backplane.reply.")
    assert requests.pending_bytes == 0


async def test_two_connections_share_no_reply_subject() -> None:
    """The subjects of replies are random."""
    assert Requests("").subject != Requests("").subject


async def test_a_reply_in_parts_ends_with_its_status() -> None:
    """Messages of a batch are gathered until its end; the headers of a publisher do not prolong a reply."""
    requests = Requests("")
    batch, forged = requests.open(1), requests.open(1)
    requests.receive(batch.reply_to, PART, b"1")
    requests.receive(batch.reply_to, PART, b"2")
    assert not batch.future.done()
    requests.receive(batch.reply_to, END, b"")
    assert [reply.payload for reply in await batch.future] == [b"1", b"2", b""]
    requests.receive(forged.reply_to, b"NATS/1.0\r\nNats-Num-Pending: 1\r\nNats-Time-Stamp: 1\r\n\r\n", b"x")
    assert [reply.payload for reply in await forged.future] == [b"x"]


async def test_every_open_request_fails_with_the_connection() -> None:
    """Those without a reply raise; those with one keep it."""
    requests = Requests("")
    answered, open_, cancelled = (requests.open(1) for _ in range(3))
    requests.receive(answered.reply_to, b"", b"x")
    cancelled.future.cancel()
    settling = asyncio.create_task(requests.settle())
    await asyncio.sleep(0)
    assert not settling.done()
    requests.fail(lambda: unavailable("the end"))
    await settling
    assert (await answered.future)[0].payload == b"x"
    with pytest.raises(BrokerUnavailableError, match="the end"):
        await open_.future


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"", 0),
        (b"NATS/1.0\r\n\r\n", 0),
        (b"NATS/1.0 503\r\n\r\n", 503),
        (b"NATS/1.0 404 Message Not Found\r\n\r\n", 404),
    ],
)
def test_a_status_is_in_the_first_line(headers: bytes, status: int) -> None:
    """A reply without a payload has a number there."""
    assert status_of(headers) == status


@given(st.binary(max_size=30))
def test_any_headers_have_a_status(headers: bytes) -> None:
    """Whatever the headers are, the status is a number of at most three digits."""
    for tried in (headers, b"NATS/1.0 " + headers):
        assert 0 <= status_of(tried) <= 999
