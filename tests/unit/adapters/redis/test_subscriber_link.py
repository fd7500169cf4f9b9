"""`backplane.adapters.redis.subscriber_link`: confirmations, messages, and subscriptions that end; no server."""

from __future__ import annotations

import asyncio

import hiredis
import pytest

from backplane.message import Place
from tests.unit.adapters.redis.recorded_links import BUSY, confirmation, message, subscriber
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
