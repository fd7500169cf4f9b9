"""`backplane.adapters.redis.link`: what is asked on one connection, and whose answer is whose; no server, no socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import hiredis
import pytest

from backplane.adapters.redis.link import PublisherLink, RedisLink, SubscriberLink
from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError
from backplane.testing import RecordingSink
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    from backplane.errors import BrokerError

pytestmark = pytest.mark.anyio

BUSY = b"-BUSY a script runs\r\n"
PUBLISHED = b":0\r\n"


class Wire(asyncio.Transport):
    """What a link writes, kept."""

    def __init__(self, link: RedisLink) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_aborted = False
        link.connection_made(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Stand in for a socket."""
        return self

    def setsockopt(self, *_: object) -> None:
        """Take an option of it."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep what is sent."""
        self.written.append(bytes(data))

    def abort(self) -> None:
        """Note it."""
        self.is_aborted = True


def confirmation(kind: bytes, name: bytes) -> bytes:
    """Return the server's confirmation of one name."""
    return b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n:1\r\n" % (len(kind), kind, len(name), name)


def message(name: bytes, payload: bytes) -> bytes:
    """Return a message as the server sends it."""
    return b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(payload), payload)


def publisher(max_pending_bytes: int = 1000) -> tuple[PublisherLink, Wire, list[BrokerError]]:
    """Return a link that publishes and is in use, with what it writes and its losses."""
    link = PublisherLink(max_pending_bytes)
    wire, losses = Wire(link), list[Any]()
    link.adopt(losses.append)
    return link, wire, losses


def subscriber() -> tuple[SubscriberLink, RecordingSink, list[BrokerError]]:
    """Return a link that receives and is in use, with what it reports."""
    sink = RecordingSink()
    link = SubscriberLink(sink)
    Wire(link)
    losses: list[Any] = []
    link.adopt(losses.append)
    return link, sink, losses


async def test_error_that_nobody_asked_for_is_a_loss() -> None:
    """An error with no command outstanding, on either connection, ends the link with its words."""
    one, _, of_one = publisher()
    two, _, of_two = subscriber()
    links: list[tuple[RedisLink, list[BrokerError]]] = [(one, of_one), (two, of_two)]
    for link, losses in links:
        link.data_received(b"-ERR something happened\r\n:1\r\n")
        (loss,) = losses
        assert "nobody had asked for: ERR something happened" in str(loss)


async def test_error_before_the_first_command_is_its_answer() -> None:
    """What a server sends to a client that it does not let in answers the first question, closed or not."""
    link = PublisherLink(1000)
    Wire(link)
    link.data_received(b"-ERR max number of clients reached\r\n")
    link.connection_lost(None)
    with pytest.raises(hiredis.ReplyError, match="max number"):
        await link.ask(b"PING")


async def test_what_is_not_resp_is_a_loss() -> None:
    """Bytes that are no RESP end the link, and what waits for an answer."""
    link, wire, losses = publisher()
    asking = asyncio.create_task(link.ask(b"PING"))
    await until_idle()
    link.data_received(b"\x15\x03\x03\x00\x02\x02\x46")
    assert (wire.is_aborted, len(losses)) == (True, 1)
    with pytest.raises(BrokerUnavailableError):
        await asking


async def test_unsubscribed_by_the_server_is_revoked() -> None:
    """A subscription that the server ends unasked is reported, once, and its name alone."""
    link, sink, losses = subscriber()
    joining = asyncio.create_task(link.subscribe({b"a": "a", b"b": "b"}))
    await until_idle()
    link.data_received(confirmation(b"subscribe", b"a") + confirmation(b"subscribe", b"b"))
    await joining
    link.data_received(confirmation(b"unsubscribe", b"a") * 2 + confirmation(b"unsubscribe", b"other"))
    link.data_received(message(b"b", b"hello"))
    assert sink.revocations == [(frozenset({"a"}), "the server ended the subscription")]
    assert (sink.delivered, losses) == ([("b", b"hello")], [])


async def test_answers_find_their_questions_among_messages() -> None:
    """Confirmations, a PONG of either form, errors and messages in one read go to whom they belong."""
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
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in found] == [type(None), list, hiredis.ReplyError, type(None)]
    assert sink.delivered == [("b", b"1")]


async def test_refused_unsubscribe_is_asked_again() -> None:
    """An UNSUBSCRIBE that the server does not take drops the name here, and is made up for unless wanted again."""
    link, sink, _ = subscriber()
    leaving = asyncio.create_task(link.unsubscribe([b"a", b"b"]))
    await until_idle()
    link.data_received(BUSY)
    await leaving
    joining = asyncio.create_task(link.subscribe({b"b": "b"}))
    await until_idle()
    link.data_received(message(b"a", b"late") + confirmation(b"subscribe", b"b"))
    await joining
    again = asyncio.create_task(link.unsubscribe_abandoned())
    await until_idle()
    link.data_received(confirmation(b"unsubscribe", b"a"))
    await again
    link.data_received(message(b"b", b"still here"))
    assert sink.delivered == [("b", b"still here")]


@pytest.mark.parametrize("late", [False, True])
async def test_check_without_an_answer_ends_the_link_at_the_next(late: bool) -> None:
    """A question that is owed its answer when the next is due ends the link; one that was read late does not."""
    link, _, losses = publisher()
    first = asyncio.create_task(link.check(b"PING"))
    await until_idle()
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.create_task(link.check(b"PING"))
    await until_idle()
    if late:  # it arrived during a pause, and is read in the passes after it
        link.data_received(b"+PONG\r\n")
        await until_idle()
        link.data_received(b"+PONG\r\n")
        assert await second == b"PONG"
        assert losses == []
    else:
        with pytest.raises(BrokerUnavailableError, match="no answer from one check to the next"):
            await second
        assert len(losses) == 1


async def test_publishes_before_adoption_wait_in_order() -> None:
    """What is published on a link that is not in use yet leaves in order when it is, what was cancelled left out."""
    link = PublisherLink(1000)
    wire = Wire(link)
    tasks = [asyncio.create_task(link.publish(b"room", payload)) for payload in (b"1", b"22", b"333")]
    await until_idle()
    assert wire.written == []
    tasks[1].cancel()
    await asyncio.wait(tasks[1:2])
    link.adopt(lambda _: None)
    (sent,) = wire.written
    assert (sent.find(b"$1\r\n1\r\n") < sent.find(b"$3\r\n333\r\n"), b"22" in sent) == (True, False)
    link.data_received(PUBLISHED * 2)
    await asyncio.gather(tasks[0], tasks[2])


async def test_end_of_a_link_separates_sent_from_unsent() -> None:
    """What had left is unknown, what had not is certainly not published, and a successor sends that."""
    link, _, _ = publisher()
    sent = asyncio.create_task(link.publish(b"room", b"sent"))
    await until_idle()
    unsent = asyncio.create_task(link.publish(b"room", b"unsent"))
    await asyncio.sleep(0)  # one pass: it has been called, and not been flushed
    successor = PublisherLink(1000)
    successor.inherit(link)
    link.connection_lost(None)
    with pytest.raises(PublishOutcomeUnknownError):
        await sent
    wire = Wire(successor)
    successor.adopt(lambda _: None)
    assert b"unsent" in wire.written[0]
    successor.data_received(PUBLISHED)
    await unsent


async def test_protocol_error_ends_the_link_and_leaves_nothing_unknown() -> None:
    """After a command that the server could not read, those after it were certainly not carried out."""
    link, _, losses = publisher()
    tasks = [asyncio.create_task(link.publish(b"room", b"%d" % number)) for number in range(3)]
    await until_idle()
    link.data_received(PUBLISHED + b"-ERR Protocol error: invalid bulk length\r\n")
    first, second, third = await asyncio.gather(*tasks, return_exceptions=True)
    assert (first, type(second), type(third)) == (None, PublishError, BrokerUnavailableError)
    assert len(losses) == 1


async def test_pending_bytes_are_given_back() -> None:
    """The bound counts what awaits its answer: answered, refused and cancelled ones make room again."""
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
