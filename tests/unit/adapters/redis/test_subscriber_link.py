"""`backplane.adapters.redis.subscriber_link`: confirmations, messages, and subscriptions that end; no server."""

from __future__ import annotations

import asyncio

import hiredis
import pytest

from backplane.errors import BrokerUnavailableError
from backplane.message import Place
from tests.unit.adapters.redis.recorded_links import (
    BUSY,
    RecordingTransport,
    confirmation,
    message,
    pmessage,
    subscriber,
)
from tests.unit.doubles import until_idle

pytestmark = pytest.mark.anyio


async def test_unsubscribed_by_the_server_is_revoked() -> None:
    """A subscription that the server ends by itself is reported as revoked, once, and no other channel with it."""
    link, sink, losses = subscriber()
    joining = asyncio.create_task(link.subscribe({b"a": "a", b"b": "b"}))
    await until_idle()
    link.data_received(confirmation(b"subscribe", b"a") + confirmation(b"subscribe", b"b"))
    await joining
    link.data_received(confirmation(b"unsubscribe", b"a") * 2 + confirmation(b"unsubscribe", b"other"))
    link.data_received(message(b"b", b"hello"))
    assert sink.revocations == [(frozenset({"a"}), "the server ended the subscription")]
    assert (sink.delivered, losses) == ([("b", b"hello")], [])


async def test_replies_among_messages_answer_their_commands() -> None:
    """Of confirmations, a PONG in its other form, errors and messages in one read each answers its own command."""
    link, sink, _ = subscriber()
    asked = [
        asyncio.create_task(link.subscribe({b"a": "a", b"b": "b"})),
        asyncio.create_task(link.check(b"PING")),
        asyncio.create_task(link.subscribe({b"c": "c"})),
        asyncio.create_task(link.unsubscribe([b"a"])),
    ]
    await until_idle()
    link.data_received(
        confirmation(b"subscribe", b"a")
        + message(b"a", b"dropped already")
        + confirmation(b"subscribe", b"b")
        + message(b"b", b"1")
        + b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"
        + BUSY
        + confirmation(b"unsubscribe", b"a")
    )
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers] == [type(None), list, hiredis.ReplyError, type(None)]
    assert sink.delivered == [("b", b"1")]


async def test_refused_unsubscribe_is_repeated() -> None:
    """An UNSUBSCRIBE that the server refuses drops the names here, and is repeated for those not subscribed again."""
    link, sink, _ = subscriber()
    leaving = asyncio.create_task(link.unsubscribe([b"a", b"b"]))
    await until_idle()
    link.data_received(BUSY)
    await leaving
    joining = asyncio.create_task(link.subscribe({b"b": "b"}))
    await until_idle()
    link.data_received(message(b"a", b"late") + confirmation(b"subscribe", b"b"))
    await joining
    again = asyncio.create_task(link.repeat_unsubscribes())
    await until_idle()
    link.data_received(confirmation(b"unsubscribe", b"a"))
    await again
    link.data_received(message(b"b", b"still here"))
    assert sink.delivered == [("b", b"still here")]


async def test_envelope_is_removed_whether_or_not_a_rule_exists() -> None:
    """What is kept is delivered without its envelope and with its place; what is not, without a place and unchanged."""
    link, _, _ = subscriber()
    received: list[tuple[object, ...]] = []
    link._sink.deliver = lambda *report: received.append(report)  # type: ignore[method-assign]
    joining = asyncio.create_task(link.subscribe({b"a": "a"}))
    await until_idle()
    wrapped = b"\xbfBP\3epoch 8." + (2).to_bytes(8) + (9).to_bytes(4) + (7).to_bytes(4) + b"data"
    plain, foreign = b"\xbfBP\1 and more", b"\xff" * 40
    arrived = (message(b"a", payload) for payload in (wrapped, plain, foreign))
    link.data_received(confirmation(b"subscribe", b"a") + b"".join(arrived))
    await joining
    place = Place(b"epoch 8.", 2, 7, 1, 9)
    assert received == [("a", b"data", place), ("a", plain), ("a", foreign)]


async def test_each_message_is_delivered_once_while_a_name_comes_and_goes() -> None:
    """The confirmations show of which messages the server sends two copies: of those the copy of the name counts."""
    link, sink, _ = subscriber()
    task: asyncio.Task[object] = asyncio.create_task(link.subscribe_prefixes(["a."]))
    await until_idle()
    link.data_received(confirmation(b"psubscribe", b"a.*") + pmessage(b"a.*", b"a.1", b"1"))
    await task
    task = asyncio.create_task(link.subscribe({b"a.1": "a.1"}))
    await until_idle()
    link.data_received(
        pmessage(b"a.*", b"a.1", b"2")
        + confirmation(b"subscribe", b"a.1")
        + message(b"a.1", b"3")
        + pmessage(b"a.*", b"a.1", b"3")
        + pmessage(b"a.*", b"a.2", b"other")
    )
    await task
    task = asyncio.create_task(link.unsubscribe([b"a.1"]))
    await until_idle()
    link.data_received(
        message(b"a.1", b"4")
        + pmessage(b"a.*", b"a.1", b"4")
        + confirmation(b"unsubscribe", b"a.1")
        + pmessage(b"a.*", b"a.1", b"5")
    )
    await task
    assert sink.payloads("a.1") == [b"1", b"2", b"3", b"4", b"5"]
    assert sink.payloads("a.2") == [b"other"]


async def test_each_message_is_delivered_once_while_a_prefix_comes_and_goes() -> None:
    """A name that is subscribed by itself gets nothing twice from a prefix, and nothing after either is gone."""
    link, sink, _ = subscriber()
    task: asyncio.Task[object] = asyncio.create_task(link.subscribe({b"a.1": "a.1"}))
    await until_idle()
    link.data_received(confirmation(b"subscribe", b"a.1"))
    await task
    task = asyncio.create_task(link.subscribe_prefixes(["a."]))
    await until_idle()
    link.data_received(
        message(b"a.1", b"1")
        + confirmation(b"psubscribe", b"a.*")
        + message(b"a.1", b"2")
        + pmessage(b"a.*", b"a.1", b"2")
    )
    await task
    task = asyncio.create_task(link.unsubscribe_prefixes(["a."]))
    await until_idle()
    link.data_received(
        message(b"a.1", b"3")
        + pmessage(b"a.*", b"a.1", b"3")
        + pmessage(b"a.*", b"a.2", b"late")
        + confirmation(b"punsubscribe", b"a.*")
        + message(b"a.1", b"4")
    )
    await task
    assert sink.delivered == [("a.1", b"1"), ("a.1", b"2"), ("a.1", b"3"), ("a.1", b"4")]


async def test_a_refused_prefix_leaves_the_others() -> None:
    """A PSUBSCRIBE is refused as a whole, so it is halved; what begins with a refused prefix takes its place."""
    link, sink, _ = subscriber()
    transport = RecordingTransport(link)
    noperm = b"-NOPERM no access\r\n"
    task = asyncio.create_task(link.subscribe_prefixes(["a", "a.b", "c"]))
    answers = [noperm, noperm, confirmation(b"psubscribe", b"c*"), confirmation(b"psubscribe", b"a.b*")]
    for answer in answers:
        await until_idle()
        link.data_received(answer)
    assert {prefix: str(error) for prefix, error in (await task).items()} == {"a": "NOPERM no access"}
    link.data_received(pmessage(b"a.b*", b"a.b1", b"1") + pmessage(b"c*", b"c", b"2"))
    assert sink.delivered == [("a.b1", b"1"), ("c", b"2")]
    assert [written.split(b"\r\n")[2:-1:2] for written in transport.written] == [
        [b"PSUBSCRIBE", b"a*", b"c*"],
        [b"PSUBSCRIBE", b"a*"],
        [b"PSUBSCRIBE", b"c*"],
        [b"PSUBSCRIBE", b"a.b*"],
    ]


async def test_refused_punsubscribe_is_repeated() -> None:
    """A PUNSUBSCRIBE that the server does not accept drops the prefix here, and is sent again at the next check."""
    link, sink, _ = subscriber()
    task = asyncio.create_task(link.subscribe_prefixes(["a", "b"]))
    await until_idle()
    link.data_received(confirmation(b"psubscribe", b"a*") + confirmation(b"psubscribe", b"b*"))
    await task
    leaving = asyncio.create_task(link.unsubscribe_prefixes(["a"]))
    await until_idle()
    link.data_received(BUSY)
    await leaving
    link.data_received(pmessage(b"a*", b"a1", b"late") + pmessage(b"b*", b"b1", b"wanted"))
    again = asyncio.create_task(link.repeat_unsubscribes())
    await until_idle()
    link.data_received(confirmation(b"punsubscribe", b"a*"))
    await again
    assert sink.delivered == [("b1", b"wanted")]
    await link.repeat_unsubscribes()


async def test_a_cancelled_change_is_settled_before_the_next() -> None:
    """A PUNSUBSCRIBE whose caller was cancelled is answered before the same prefix is subscribed again."""
    link, sink, _ = subscriber()
    task = asyncio.create_task(link.subscribe_prefixes(["a"]))
    await until_idle()
    link.data_received(confirmation(b"psubscribe", b"a*"))
    await task
    leaving = asyncio.create_task(link.unsubscribe_prefixes(["a"]))
    await until_idle()
    leaving.cancel()
    again = asyncio.create_task(link.subscribe_prefixes(["a"]))
    await until_idle()
    link.data_received(confirmation(b"punsubscribe", b"a*"))
    await until_idle()
    link.data_received(confirmation(b"psubscribe", b"a*") + pmessage(b"a*", b"a1", b"1"))
    await again
    assert sink.delivered == [("a1", b"1")]
    assert leaving.cancelled()


async def test_a_pattern_that_the_server_ends_is_a_lost_link() -> None:
    """A prefix cannot be revoked alone: a server that ends the subscription by itself ends the link."""
    link, _, losses = subscriber()
    task = asyncio.create_task(link.subscribe_prefixes(["a"]))
    await until_idle()
    link.data_received(confirmation(b"psubscribe", b"a*"))
    await task
    link.data_received(confirmation(b"punsubscribe", b"other*"))
    assert not losses
    link.data_received(confirmation(b"punsubscribe", b"a*"))
    assert [error.reason for error in losses] == ["the server ended the subscription to a pattern"]
    with pytest.raises(BrokerUnavailableError):
        await link.unsubscribe_prefixes(["a"])
    with pytest.raises(BrokerUnavailableError):
        await link.subscribe_prefixes(["a"])


async def test_what_is_kept_is_delivered_to_a_prefix_with_its_place() -> None:
    """A script publishes a kept message in an envelope, and a pattern gets it as a name does."""
    link, sink, _ = subscriber()
    task = asyncio.create_task(link.subscribe_prefixes([""]))
    await until_idle()
    wrapped = b"\xbfBP\3epoch 8." + (2).to_bytes(8) + (9).to_bytes(4) + (7).to_bytes(4) + b"data"
    link.data_received(confirmation(b"psubscribe", b"*") + pmessage(b"*", b"a", wrapped))
    await task
    assert (sink.delivered, sink.places) == ([("a", b"data")], [Place(b"epoch 8.", 2, 7, 1, 9)])
