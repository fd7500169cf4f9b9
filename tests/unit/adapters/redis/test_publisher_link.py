"""`backplane.adapters.redis.publisher_link`: the order of publishes, their outcome, their bound; no server."""

from __future__ import annotations

import asyncio

import pytest

from backplane.adapters.redis.publisher_link import PublisherLink
from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError
from tests.unit.adapters.redis.recorded_links import BUSY, PUBLISHED, RecordingTransport, publisher
from tests.unit.doubles import until_idle

pytestmark = pytest.mark.anyio


async def test_publishes_before_adoption_wait_in_order() -> None:
    """What is published before the link is adopted is sent in order at the adoption, without what was cancelled."""
    link = PublisherLink(1000)
    transport = RecordingTransport(link)
    tasks = [asyncio.create_task(link.publish(b"room", payload)) for payload in (b"1", b"22", b"333")]
    await until_idle()
    assert transport.written == []
    tasks[1].cancel()
    await asyncio.wait(tasks[1:2])
    link.adopt(lambda _: None)
    (sent,) = transport.written
    assert (sent.find(b"$1\r\n1\r\n") < sent.find(b"$3\r\n333\r\n"), b"22" in sent) == (True, False)
    link.data_received(PUBLISHED * 2)
    await asyncio.gather(tasks[0], tasks[2])


async def test_end_of_a_link_separates_sent_from_unsent() -> None:
    """At the end of a link what was sent has an unknown outcome, and what was not is sent by the next link."""
    link, _, _ = publisher()
    sent = asyncio.create_task(link.publish(b"room", b"sent"))
    await until_idle()
    unsent = asyncio.create_task(link.publish(b"room", b"unsent"))
    await asyncio.sleep(0)  # one pass: publish has run, and the flush has not
    successor = PublisherLink(1000)
    successor.inherit(link)
    link.connection_lost(None)
    with pytest.raises(PublishOutcomeUnknownError):
        await sent
    transport = RecordingTransport(successor)
    successor.adopt(lambda _: None)
    assert b"unsent" in transport.written[0]
    successor.data_received(PUBLISHED)
    await unsent


async def test_protocol_error_ends_the_link_and_leaves_nothing_unknown() -> None:
    """Commands after one that the server could not read were certainly not executed: none has an unknown outcome."""
    link, _, losses = publisher()
    tasks = [asyncio.create_task(link.publish(b"room", b"%d" % number)) for number in range(3)]
    await until_idle()
    link.data_received(PUBLISHED + b"-ERR Protocol error: invalid bulk length\r\n")
    first, second, third = await asyncio.gather(*tasks, return_exceptions=True)
    assert (first, type(second), type(third)) == (None, PublishError, BrokerUnavailableError)
    assert len(losses) == 1


async def test_pending_bytes_are_given_back() -> None:
    """`max_pending_bytes` counts what awaits a reply: answered, refused and cancelled publishes make room again."""
    link, _, _ = publisher(max_pending_bytes=10)
    for reply in (PUBLISHED, BUSY):
        first = asyncio.create_task(link.publish(b"r", b"12345"))
        await until_idle()
        with pytest.raises(PublishError, match="await the server's answer") as raised:
            await link.publish(b"r", b"12345")
        assert raised.value.retriable
        link.data_received(reply)
        await asyncio.wait([first])
        first.exception()
    cancelled = asyncio.create_task(link.publish(b"r", b"12345"))
    await asyncio.sleep(0)
    cancelled.cancel()
    await until_idle()
    last = asyncio.create_task(link.publish(b"r", b"12345"))
    await until_idle()
    link.data_received(PUBLISHED)
    await last
