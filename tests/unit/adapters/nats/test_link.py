"""`backplane.adapters.nats.link`: which command an answer of the server concerns; the test plays the server."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backplane import BrokerError, BrokerUnavailableError, PublishError, PublishOutcomeUnknownError
from backplane.adapters.nats.link import NatsLink
from backplane.adapters.nats.login import NatsLogin, Tls
from backplane.adapters.nats.options import NatsOptions
from backplane.adapters.nats.servers import Server
from backplane.broadcaster import BrokerUrl
from backplane.testing import RecordingSink
from tests.unit.adapters.nats.played_login import no_context

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

INFO = b'INFO {"server_id":"ONE","version":"2.9.10","max_payload":1048576}\r\n'
TIMEOUT_SECONDS = 60


class PlayedServer:
    """Sends one client what the test decides."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def until(self, command: bytes) -> bytes:
        """Read until the client has sent `command`; return all that it sent."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return await self._reader.readuntil(command)

    def send(self, *lines: bytes) -> None:
        """Send lines."""
        self._writer.write(b"".join(line + b"\r\n" for line in lines))

    def close(self) -> None:
        """Close the connection after what was sent."""
        self._writer.close()


class Played:
    """A link and the server at its other end.

    Attributes:
        sink: What the link reports to.
        lost: The losses that it reports.
        infos: How many INFO it received.
        line_limits: The limits that it found.
        link: The link.
        server: The other end.
    """

    def __init__(self, port: int) -> None:
        self.sink = RecordingSink()
        self.lost: list[BrokerError] = []
        self.infos = 0
        self.line_limits: dict[str, int] = {}
        self.link = NatsLink(
            self.sink,
            Server("127.0.0.1", port, "localhost"),
            on_lost=lambda _, error: self.lost.append(error),
            on_info=self._count,
            max_pending_bytes=10_000_000,
            line_limits=self.line_limits,
        )
        self.server: PlayedServer

    def _count(self, _: NatsLink) -> None:
        self.infos += 1


@asynccontextmanager
async def played() -> AsyncGenerator[Played]:
    """Return a link that is logged in, and its server."""
    connected: asyncio.Future[PlayedServer] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set_result(PlayedServer(reader, writer))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, limit=1_000_000)
    port: int = listener.sockets[0].getsockname()[1]
    both = Played(port)
    login = NatsLogin(BrokerUrl.parse("nats://localhost"), NatsOptions())
    opening = asyncio.create_task(login.open(both.link, Tls(False, False, no_context)))
    server = both.server = await connected
    server.send(INFO.strip())
    await server.until(b"PING\r\n")
    server.send(b"PONG")
    await server.until(b"PING\r\n")
    server.send(b"PONG")
    await opening
    try:
        yield both
    finally:
        both.link.abort()
        await both.link.closed.wait()
        server.close()
        listener.close()


async def test_every_subscription_has_a_confirmation_of_its_own() -> None:
    """An error that names no command concerns the one subscription that awaits its PONG, and no other."""
    async with played() as both:
        asked = asyncio.create_task(both.link.subscribe({b"a": "a", b"b": "b", b"c": "c"}))
        await both.server.until(b"SUB a 1\r\nPING\r\nSUB b 2\r\nPING\r\nSUB c 3\r\nPING\r\nPING\r\n")
        both.server.send(b"PONG", b"-ERR 'no idea'", b"PONG", b"PONG", b"PONG")
        answer = await asked
        assert (answer.refused, answer.unconfirmed) == ({}, {"b": "no idea"})
        await both.server.until(b"UNSUB 2\r\nPING\r\n")  # the server may have it nevertheless
        both.server.send(b"MSG b 2 1", b"x", b"MSG c 3 1", b"y")
        await both.sink.until(lambda: bool(both.sink.delivered))
        assert both.sink.delivered == [("c", b"y")]


async def wildcard(both: Played, *prefixes: str, number: int = 1) -> bytes:
    """Subscribe to prefixes, the first ones of the link; return the queue group."""
    asked = asyncio.create_task(both.link.subscribe_prefixes(prefixes))
    sent = await both.server.until(b" %d\r\nPING\r\nPING\r\n" % number)
    both.server.send(b"PONG", b"PONG")
    assert (await asked).refused == {}
    verb, subject, group, _ = sent.split(b"\r\n")[0].split(b" ")
    assert (verb, subject) == (b"SUB", b"*")
    return group


async def test_a_channel_from_before_the_wildcard_is_received_by_its_own_subscription() -> None:
    """The server sends two copies, of which that of the channel counts, also while only a prefix wants it."""
    async with played() as both:
        asked: asyncio.Task[object] = asyncio.create_task(both.link.subscribe({b"a1": "a1"}))
        await both.server.until(b"SUB a1 1\r\nPING\r\nPING\r\n")
        both.server.send(b"PONG", b"PONG")
        await asked
        await wildcard(both, "a", number=2)
        both.server.send(b"MSG a1 2 1", b"x", b"MSG a1 1 1", b"x", b"MSG b1 2 1", b"-", b"MSG a2 2 1", b"y")
        await both.sink.until(lambda: len(both.sink.delivered) == 2)
        asked = asyncio.create_task(both.link.unsubscribe(["a1"]))  # it lingers
        await both.server.until(b"PING\r\n")
        both.server.send(b"MSG a1 2 1", b"z", b"MSG a1 1 1", b"z", b"PONG")
        await asked
        asked = asyncio.create_task(both.link.subscribe({b"a1": "a1"}))
        assert await both.server.until(b"PING\r\n") == b"PING\r\n"
        both.server.send(b"PONG", b"MSG a1 1 1", b"1", b"MSG a1 2 1", b"1", b"MSG =41 2 1", b"-")
        await asked
        await both.sink.until(lambda: len(both.sink.delivered) == 4)
        assert both.sink.delivered == [("a1", b"x"), ("a2", b"y"), ("a1", b"z"), ("a1", b"1")]


async def test_a_channel_after_the_wildcard_shares_its_queue_group() -> None:
    """The server gives each message to one of both, so either is delivered, until the server has dropped it."""
    async with played() as both:
        group = await wildcard(both, "a", "b")
        asked: asyncio.Task[object] = asyncio.create_task(both.link.subscribe({b"a1": "a1"}))
        await both.server.until(b"SUB a1 " + group + b" 2\r\nPING\r\nPING\r\n")
        both.server.send(b"MSG a1 1 1", b"1", b"PONG", b"PONG", b"MSG a1 2 1", b"2", b"MSG a1 1 1", b"3")
        await asked
        asked = asyncio.create_task(both.link.unsubscribe(["a1"]))
        await both.server.until(b"UNSUB 2\r\nPING\r\n")
        both.server.send(b"MSG a1 2 1", b"4", b"PONG", b"MSG a1 1 1", b"5")
        await asked
        await both.sink.until(lambda: len(both.sink.delivered) == 5)
        assert both.sink.payloads("a1") == [b"1", b"2", b"3", b"4", b"5"]


async def test_the_wildcard_ends_with_its_last_prefix() -> None:
    """What it receives until then is delivered to channels of its group; those that linger end with their prefix."""
    async with played() as both:
        asked: asyncio.Task[object] = asyncio.create_task(both.link.subscribe({b"b1": "b1"}))
        await both.server.until(b"PING\r\nPING\r\n")
        both.server.send(b"PONG", b"PONG")
        await asked
        group = await wildcard(both, "a", "b", number=2)
        asked = asyncio.create_task(both.link.subscribe({b"a1": "a1"}))
        await both.server.until(b"PING\r\nPING\r\n")
        both.server.send(b"PONG", b"PONG")
        await asked
        asked = asyncio.create_task(both.link.unsubscribe(["b1"]))
        await both.server.until(b"PING\r\n")
        both.server.send(b"PONG")
        await asked
        asked = asyncio.create_task(both.link.unsubscribe_prefixes(["b"]))
        assert await both.server.until(b"PING\r\n") == b"UNSUB 1\r\nPING\r\n"
        both.server.send(b"PONG")
        await asked
        asked = asyncio.create_task(both.link.unsubscribe_prefixes(["a"]))
        await both.server.until(b"PING\r\n")
        both.server.send(b"PONG")
        await both.server.until(b"UNSUB 2\r\nPING\r\nPING\r\n")
        both.server.send(b"MSG a1 2 1", b"1", b"MSG a2 2 1", b"-", b"PONG", b"PONG", b"MSG a1 3 1", b"2")
        await asked
        await both.sink.until(lambda: len(both.sink.delivered) == 2)
        assert both.sink.delivered == [("a1", b"1"), ("a1", b"2")]
        assert await wildcard(both, "a", number=4) == group


@pytest.mark.parametrize("is_refused", [True, False])
async def test_a_wildcard_that_the_server_does_not_accept(*, is_refused: bool) -> None:
    """Every prefix is refused, or not confirmed; then it is dropped at the server, which may have it."""
    async with played() as both:
        asked = asyncio.create_task(both.link.subscribe_prefixes(["a", "b"]))
        await both.server.until(b" 1\r\nPING\r\nPING\r\n")
        error = b"-ERR 'Permissions Violation for Subscription to \"*\"'" if is_refused else b"-ERR 'no idea'"
        both.server.send(error, b"PONG", b"PONG")
        commands = b"PING\r\n" if is_refused else b"UNSUB 1\r\nPING\r\nPING\r\n"
        assert await both.server.until(commands) == commands
        both.server.send(b"MSG a1 1 1", b"-", b"PONG", *([] if is_refused else [b"PONG"]))
        answer = await asked
        assert (answer.refused if is_refused else answer.unconfirmed).keys() == {"a", "b"}
        assert not both.sink.delivered
        await wildcard(both, "a", number=2)


async def test_a_revoked_wildcard_ends_the_link() -> None:
    """A prefix cannot be revoked alone, so a server that takes the wildcard away ends the link."""
    async with played() as both:
        await wildcard(both, "a")
        both.server.send(b'-ERR \'Permissions Violation for Subscription to "*" (sid "1")\'')
        await both.link.closed.wait()
        assert [error.reason.count("Permissions Violation") for error in both.lost] == [1]
        for call in (both.link.unsubscribe_prefixes(["a"]), both.link.subscribe_prefixes(["a"])):
            with pytest.raises(BrokerUnavailableError):
                await call


async def test_a_lingering_subscription_that_is_revoked_is_a_gap() -> None:
    """Only a prefix wants its channel, which has a gap then, and is received by the wildcard from there on."""
    async with played() as both:
        asked: asyncio.Task[object] = asyncio.create_task(both.link.subscribe({b"a1": "a1"}))
        await both.server.until(b"PING\r\nPING\r\n")
        both.server.send(b"PONG", b"PONG")
        await asked
        await wildcard(both, "a", number=2)
        asked = asyncio.create_task(both.link.unsubscribe(["a1"]))
        await both.server.until(b"PING\r\n")
        both.server.send(b"PONG")
        await asked
        both.server.send(b'-ERR \'Permissions Violation for Subscription to "a1" (sid "1")\'')
        both.server.send(b"MSG a1 2 1", b"1")
        await both.sink.until(lambda: bool(both.sink.delivered))
        assert [channels for channels, _ in both.sink.gaps] == [frozenset({"a1"})]
        assert (both.sink.delivered, both.sink.revocations) == ([("a1", b"1")], [])


async def test_publishes_with_an_unattributed_error_have_an_unknown_outcome() -> None:
    """An error that names no command leaves the publishes unknown that await the same PONG, and no others."""
    async with played() as both:
        first = asyncio.create_task(both.link.publish(b"a", b"1"))
        await both.server.until(b"PUB a 1\r\n1\r\nPING\r\n")
        second = [asyncio.create_task(both.link.publish(b"a", b"2")) for _ in range(2)]
        await both.server.until(b"PUB a 1\r\n2\r\nPUB a 1\r\n2\r\nPING\r\n")
        both.server.send(b"PONG", b"-ERR 'no idea'", b"PONG")
        await first
        for publish in second:
            with pytest.raises(PublishOutcomeUnknownError, match="no idea"):
                await publish
        assert both.link.is_open


async def test_denied_publish_and_denied_subscription_are_distinguished() -> None:
    """A refusal names a publish or a subscription to a subject, and concerns that one, with a queue or without."""
    async with played() as both:
        published = asyncio.create_task(both.link.publish(b"a", b"1"))
        subscribed = asyncio.create_task(both.link.subscribe({b"a": "a"}))
        await both.server.until(b"PUB a 1\r\n1\r\nPING\r\nSUB a 1\r\nPING\r\nPING\r\n")
        both.server.send(b"-ERR 'Permissions Violation for Publish to \"a\"'", b"PONG")
        error = b'-ERR \'Permissions Violation for Subscription to "a" using queue "q" (sid "1")\''
        both.server.send(error, b"PONG", b"PONG")
        with pytest.raises(PublishError, match="Publish"):
            await published
        assert (await subscribed).refused.keys() == {"a"}
        assert not both.sink.revocations


async def test_a_refusal_of_a_long_subject_is_attributed() -> None:
    """The subject that a refusal names is compared whole, however long; the message of the error is bounded."""
    subject = b"a" * 900
    async with played() as both:
        published = asyncio.create_task(both.link.publish(subject, b"1"))
        subscribed = asyncio.create_task(both.link.subscribe({subject: "a"}))
        await both.server.until(b"PING\r\nSUB " + subject + b" 1\r\nPING\r\nPING\r\n")
        both.server.send(b"-ERR 'Permissions Violation for Publish to \"%b\"'" % subject, b"PONG")
        both.server.send(b"-ERR 'Permissions Violation for Subscription to \"%b\"'" % subject, b"PONG", b"PONG")
        with pytest.raises(PublishError, match="Publish") as raised:
            await published
        assert len(str(raised.value)) < 400
        assert (await subscribed).refused.keys() == {"a"}


@pytest.mark.parametrize("denied", ['to "a" (sid "1")', 'to "a"', 'to "a" using queue "q" (sid "1")'])
async def test_refusal_of_a_standing_subscription_revokes_it(denied: str) -> None:
    """A subscription that the server removes is revoked, and dropped there too, while a publish awaits its PONG."""
    error = f"-ERR 'Permissions Violation for Subscription {denied}'".encode()
    async with played() as both:
        asked = asyncio.create_task(both.link.subscribe({b"a": "a", b"b": "b"}))
        await both.server.until(b"PING\r\nPING\r\n")
        both.server.send(b"PONG", b"PONG", b"PONG")
        await asked
        published = asyncio.create_task(both.link.publish(b"a", b"1"))
        await both.server.until(b"PUB a 1\r\n1\r\nPING\r\n")
        both.server.send(error, b"PONG", b"MSG a 1 1", b"x")
        await published
        assert [channels for channels, _ in both.sink.revocations] == [{"a"}]
        await both.server.until(b"UNSUB 1\r\nPING\r\n")
        both.server.send(error, b"MSG b 2 1", b"y")
        await both.sink.until(lambda: bool(both.sink.delivered))
        assert both.sink.delivered == [("b", b"y")]
        assert len(both.sink.revocations) == 1


async def test_a_subscription_revoked_with_its_confirmation_is_unconfirmed() -> None:
    """A subscription that is confirmed and removed in one read is unconfirmed for the call that subscribed."""
    async with played() as both:
        asked = asyncio.create_task(both.link.subscribe({b"a": "a"}))
        await both.server.until(b"SUB a 1\r\nPING\r\nPING\r\n")
        both.server.send(b"PONG", b"PONG", b'-ERR \'Permissions Violation for Subscription to "a" (sid "1")\'')
        assert (await asked).unconfirmed.keys() == {"a"}


async def test_a_cancelled_subscription_that_is_refused_is_forgotten() -> None:
    """The refusal is applied although the caller was cancelled: the next call subscribes at the server again."""
    async with played() as both:
        asked = asyncio.create_task(both.link.subscribe({b"a": "a"}))
        await both.server.until(b"SUB a 1\r\nPING\r\nPING\r\n")
        asked.cancel()
        await asyncio.wait([asked])
        both.server.send(b"-ERR 'maximum subscriptions exceeded'", b"PONG", b"PONG")
        await both.server.until(b"UNSUB 1\r\nPING\r\n")
        both.server.send(b"PONG")
        again = asyncio.create_task(both.link.subscribe({b"a": "a"}))
        await both.server.until(b"SUB a 2\r\nPING\r\nPING\r\n")
        both.server.send(b"PONG", b"PONG")
        assert not (await again).unconfirmed


async def test_error_that_no_command_awaits_ends_the_link() -> None:
    """An error that no command awaits can concern any subscription: the link is lost, with the error as reason."""
    async with played() as both:
        both.server.send(b"-ERR 'something is wrong'")
        await both.link.closed.wait()
        assert "something is wrong" in str(both.lost[0])


async def test_error_while_a_channel_is_dropped_ends_the_link() -> None:
    """An UNSUB cannot be refused, so an error during `unsubscribe` concerns another subscription: the link is lost."""
    async with played() as both:
        asked = asyncio.create_task(both.link.unsubscribe([]))
        await both.server.until(b"PING\r\n")
        both.server.send(b"-ERR 'something is wrong'")
        with pytest.raises(BrokerUnavailableError, match="something is wrong"):
            await asked
        assert len(both.lost) == 1


async def test_earlier_refusal_is_not_the_reason_of_a_later_end() -> None:
    """The reason of an end is not the error of commands that were confirmed since."""
    async with played() as both:
        asked = asyncio.create_task(both.link.subscribe({b"a": "a"}))
        await both.server.until(b"PING\r\nPING\r\n")
        both.server.send(b"-ERR 'maximum subscriptions exceeded'", b"PONG", b"PONG")
        await asked
        await both.server.until(b"UNSUB 1\r\nPING\r\n")
        both.server.send(b"PONG")
        both.server.close()
        await both.link.closed.wait()
        assert "closed by the server" in str(both.lost[0])


@pytest.mark.parametrize(
    ("error", "refused"), [("Maximum Payload Violation", "large"), ("maximum control line exceeded", "long")]
)
async def test_publish_that_ended_the_connection_is_refused(error: str, refused: str) -> None:
    """The publish over which the server ended the connection was not published; the others have an unknown outcome."""
    async with played() as both:
        calls = {
            "large": asyncio.create_task(both.link.publish(b"a", b"x" * 100)),
            "long": asyncio.create_task(both.link.publish(b"a" * 100, b"x")),
            "other": asyncio.create_task(both.link.publish(b"a", b"x")),
        }
        await both.server.until(b"PING\r\n")
        both.server.send(f"-ERR '{error}'".encode())
        both.server.close()
        answers = dict(zip(calls, await asyncio.gather(*calls.values(), return_exceptions=True), strict=True))
        assert [name for name, answer in answers.items() if type(answer) is PublishError] == [refused]
        assert [type(answer) for answer in answers.values()].count(PublishOutcomeUnknownError) == 2
        assert both.line_limits == ({"ONE": 64} if refused == "long" else {})


async def test_a_burst_is_sent_in_pieces() -> None:
    """Many publishes of one pass of the event loop are sent in several writes, each confirmed by its own PONG."""
    async with played() as both:
        publishes = asyncio.gather(*[both.link.publish(b"a", b"x" * 1000) for _ in range(1000)])
        sent = await both.server.until(b"PING\r\n")
        assert len(sent) < 100_000
        both.server.send(b"PONG")
        for _ in range(1_000_000 // len(sent)):
            await both.server.until(b"PING\r\n")
            both.server.send(b"PONG")
        await publishes


async def test_an_info_at_any_time_is_followed() -> None:
    """Each INFO replaces the one before."""
    async with played() as both:
        both.server.send(INFO.strip().replace(b"1048576", b"10"), b"-ERR 'end'")
        await both.link.closed.wait()
        assert (both.infos, both.link.max_payload_bytes) == (2, 10)


async def test_a_request_and_a_publish_have_one_order() -> None:
    """Both are sent in the order of the calls, and the reply, not the PONG, answers the request."""
    async with played() as both:
        asked = asyncio.create_task(both.link.request(b"a", b"1", b"NATS/1.0\r\n\r\n"))
        published = asyncio.create_task(both.link.publish(b"a", b"2"))
        sent = await both.server.until(b"PUB a 1\r\n2\r\nPING\r\n")
        subscribed, ping, hpub, *_ = sent.split(b"\r\n")
        replies = subscribed.split()[1]
        assert (ping, hpub) == (b"PING", b"HPUB a %b 12 13" % replies.replace(b"*", b"1"))
        both.server.send(b"PONG", b"PONG")
        await published
        assert not asked.done()
        both.server.send(b"HMSG %b 1 12 14" % replies.replace(b"*", b"1"), b"NATS/1.0\r\n\r\nok")
        assert await asked == [(b"NATS/1.0\r\n\r\n", b"ok")]


async def test_a_request_without_a_reply_has_an_unknown_outcome() -> None:
    """Where the connection ends after the PONG and before the reply, it is unknown what was done."""
    async with played() as both:
        asked = asyncio.create_task(both.link.request(b"a", b"1"))
        await both.server.until(b"\r\n1\r\nPING\r\n")
        both.server.send(b"PONG", b"PONG")
        both.server.close()
        with pytest.raises(PublishOutcomeUnknownError, match="before the server replied"):
            await asked


@pytest.mark.parametrize(
    ("refusal", "is_final"),
    [(b'Permissions Violation for Subscription to "%b"', True), (b"maximum subscriptions exceeded", False)],
)
async def test_a_refused_subscription_to_replies_fails_the_requests(refusal: bytes, *, is_final: bool) -> None:
    """The caller gets the reason, and the next request subscribes again."""
    async with played() as both:
        for turn in (1, 2):
            asked = asyncio.create_task(both.link.request(b"a", b"1"))
            sent = await both.server.until(b"\r\n1\r\nPING\r\n")
            replies = sent.split()[1]
            assert sent.startswith(b"SUB %b %d\r\nPING\r\nPUB a " % (replies, turn))
            both.server.send(b"-ERR '%b'" % refusal.replace(b"%b", replies), b"PONG", b"PONG")
            with pytest.raises(BrokerError, match="Violation" if is_final else "exceeded") as raised:
                await asked
            assert raised.value.retriable is not is_final


async def test_a_link_without_replies_ends() -> None:
    """Where the server takes the subscription to replies away, the link is lost: nothing would be answered."""
    async with played() as both:
        asked = asyncio.create_task(both.link.request(b"a", b"1"))
        replies = (await both.server.until(b"\r\n1\r\nPING\r\n")).split()[1]
        both.server.send(b"PONG", b"PONG", b"-ERR 'Permissions Violation for Subscription to \"%b\"'" % replies)
        with pytest.raises(PublishOutcomeUnknownError):
            await asked
        assert "Subscription" in str(both.lost[0])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from(
                [b"PONG\r\n", b"PING\r\n", b"INFO {}\r\n", b"INFO [\r\n", b'INFO {"max_payload":"x"}\r\n', b"-ERR\r\n"]
            ),
            st.sampled_from([b"MSG a 1 -5\r\n", b"MSG a 1 1\r\nx\r\n", b"+OK\r\n", b"INFO " + b"[" * 9999 + b"\r\n"]),
        ),
        max_size=8,
    )
)
def test_any_bytes_of_a_server_at_worst_lose_the_link(pieces: list[bytes]) -> None:
    """Whatever a server sends, every caller gets an answer, and the loss is reported once, with a reason."""

    async def run() -> None:
        async with played() as both:
            asked = asyncio.create_task(both.link.subscribe({b"a": "a"}))
            published = asyncio.create_task(both.link.publish(b"a", b"1"))
            await both.server.until(b"PING\r\n")
            both.server.send(*pieces)
            both.server.close()
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await both.link.closed.wait()
                await asyncio.gather(asked, published, return_exceptions=True)
            assert len(both.lost) == 1
            assert str(both.lost[0])

    asyncio.run(run())
