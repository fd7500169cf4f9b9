"""`backplane.adapters.redis.publisher_link`: the order of publishes, their outcome, their bound; no server."""

from __future__ import annotations

import asyncio

import hiredis
import pytest

from backplane.adapters.redis.link import pack_command
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


NOSCRIPT = b"-NOSCRIPT No matching script. Please use EVAL.\r\n"
LOADED = b"$1\r\nx\r\n" * 3


def script(payload: bytes) -> bytes:
    """Return a command that runs a script."""
    return pack_command((b"EVALSHA", b"digest", b"0", payload))


async def test_scripts_and_publishes_are_sent_in_one_order() -> None:
    """Commands that run a script and PUBLISH leave in one write, in the order of the calls."""
    link, transport, _ = publisher()
    tasks = [
        asyncio.create_task(link.keep(script(b"1"))),
        asyncio.create_task(link.publish(b"room", b"2")),
        asyncio.create_task(link.recall(script(b"3"))),
    ]
    await until_idle()
    (sent,) = transport.written
    assert sent.startswith(script(b"1"))
    assert sent.endswith(script(b"3"))
    assert b"PUBLISH" in sent
    link.data_received(b"$4\r\nkept\r\n" + PUBLISHED + b"*0\r\n")
    assert await asyncio.gather(*tasks) == [b"kept", None, []]


async def test_lost_scripts_are_loaded_and_the_commands_repeated() -> None:
    """What is refused without the scripts is repeated in order, before what was published meanwhile."""
    link, transport, losses = publisher()
    tasks = [asyncio.create_task(link.keep(script(payload))) for payload in (b"one", b"two", b"cancelled")]
    reading = asyncio.create_task(link.recall(script(b"read")))
    await until_idle()
    link.data_received(NOSCRIPT)
    tasks.append(asyncio.create_task(link.publish(b"room", b"later")))
    tasks[2].cancel()
    await until_idle()
    assert len(transport.written) == 1
    link.data_received(NOSCRIPT * 3)
    loads, repeated, later = transport.written[1:4], transport.written[4], transport.written[5]
    assert all(b"SCRIPT" in load for load in loads)
    assert repeated == script(b"one") + script(b"two") + script(b"read")
    assert b"later" in later
    link.data_received(LOADED + b"+1\r\n+2\r\n+3\r\n" + PUBLISHED)
    assert await asyncio.gather(*tasks[:2], tasks[3], reading) == [b"1", b"2", None, b"3"]
    assert losses == []


async def test_lost_scripts_twice_raise() -> None:
    """A server that goes on without the scripts is not asked without end; the error is that of the server."""
    link, _, _ = publisher()
    tasks = [asyncio.create_task(link.keep(script(b"1"))), asyncio.create_task(link.recall(script(b"2")))]
    await until_idle()
    link.data_received(NOSCRIPT * 2)
    link.data_received(b"-NOPERM no\r\n" * 3 + NOSCRIPT * 2)
    for task in tasks:
        with pytest.raises(hiredis.ReplyError, match="NOSCRIPT"):
            await task


async def test_lost_scripts_do_not_let_a_later_publish_overtake() -> None:
    """Where a publish after a refused command was executed, the command is not repeated: it was not published."""
    link, transport, _ = publisher()
    keeping = asyncio.create_task(link.keep(script(b"first")))
    reading = asyncio.create_task(link.recall(script(b"read")))
    publishing = asyncio.create_task(link.publish(b"room", b"second"))
    executed = asyncio.create_task(link.publish(b"room", b"third"))
    await until_idle()
    link.data_received(NOSCRIPT * 2 + BUSY)
    assert not keeping.done()
    link.data_received(PUBLISHED)
    with pytest.raises(BrokerUnavailableError, match="lost its scripts"):
        await keeping
    with pytest.raises(PublishError, match="BUSY"):
        await publishing
    await executed
    assert transport.written[-1] == script(b"read")
    assert len(transport.written) == 5
    link.data_received(LOADED + b"*0\r\n")
    assert await reading == []


async def test_end_of_a_link_fails_what_waits_for_the_scripts_as_not_published() -> None:
    """What the server refused without its scripts was certainly not published; what has no answer may be."""
    link, _, _ = publisher()
    refused, sent = (asyncio.create_task(link.keep(script(payload))) for payload in (b"1", b"2"))
    await until_idle()
    link.data_received(NOSCRIPT)
    link.connection_lost(None)
    with pytest.raises(BrokerUnavailableError):
        await refused
    with pytest.raises(PublishOutcomeUnknownError):
        await sent
    with pytest.raises(BrokerUnavailableError):
        await link.keep(script(b"3"))
    with pytest.raises(BrokerUnavailableError):
        await link.recall(script(b"3"))


async def test_recall_on_a_link_that_ends_is_unavailable() -> None:
    """A read without a reply raises that the broker is unavailable, and not an error of a publish."""
    link, _, _ = publisher()
    reading = asyncio.create_task(link.recall(script(b"1")))
    await until_idle()
    link.connection_lost(None)
    with pytest.raises(BrokerUnavailableError, match="EVALSHA"):
        await reading
