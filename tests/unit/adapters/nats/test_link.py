"""`backplane.adapters.nats.link`: whom an answer of the server concerns, spoken to by a server that the test plays."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backplane import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError
from backplane.adapters.nats.broadcaster import NatsOptions
from backplane.adapters.nats.link import NatsLink
from backplane.adapters.nats.login import NatsLogin, Tls
from backplane.adapters.nats.servers import Server
from backplane.broadcaster import BrokerUrl
from backplane.testing import RecordingSink

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator

    from backplane.errors import BrokerError

pytestmark = pytest.mark.anyio

INFO = b'INFO {"server_id":"ONE","version":"2.9.10","max_payload":1048576}\r\n'
TIMEOUT_SECONDS = 5


class PlayedServer:
    """Answers as the test says, to one client."""

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
    """A link and the server at its other end."""

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


def no_context() -> ssl.SSLContext:
    """Stand for a context that is not asked for."""
    raise AssertionError("TLS was not asked for")


@asynccontextmanager
async def played() -> AsyncGenerator[Played]:
    """A link that is logged in."""
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
    """A refusal that names nobody concerns the one subscription that awaits its PONG, and no other."""
    async with played() as both:
        asked = asyncio.create_task(both.link.subscribe({b"a": "a", b"b": "b", b"c": "c"}))
        await both.server.until(b"SUB a 1\r\nPING\r\nSUB b 2\r\nPING\r\nSUB c 3\r\nPING\r\nPING\r\n")
        both.server.send(b"PONG", b"-ERR 'no idea'", b"PONG", b"PONG", b"PONG")
        answer = await asked
        assert (answer.refused, answer.unconfirmed) == ({}, {"b": "no idea"})
        await both.server.until(b"UNSUB 2\r\nPING\r\n")  # the server may have it all the same
        both.server.send(b"MSG b 2 1", b"x", b"MSG c 3 1", b"y")
        await both.sink.until(lambda: bool(both.sink.delivered))
        assert both.sink.delivered == [("c", b"y")]


async def test_publishes_beside_an_unknown_refusal_have_an_unknown_outcome() -> None:
    """A refusal that names nobody leaves every publish unknown that awaits the same PONG, and none before or after."""
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


async def test_a_publish_that_is_denied_leaves_a_subscription_alone() -> None:
    """Of a publish and a subscription to one subject the refusal says which it concerns, with a queue or without."""
    async with played() as both:
        published = asyncio.create_task(both.link.publish(b"a", b"1"))
        subscribed = asyncio.create_task(both.link.subscribe({b"a": "a"}))
        await both.server.until(b"PUB a 1\r\n1\r\nPING\r\nSUB a 1\r\nPING\r\nPING\r\n")
        both.server.send(b"-ERR 'Permissions Violation for Publish to \"a\"'", b"PONG")
        words = b'-ERR \'Permissions Violation for Subscription to "a" using queue "q" (sid "1")\''
        both.server.send(words, b"PONG", b"PONG")
        with pytest.raises(PublishError, match="Publish"):
            await published
        assert (await subscribed).refused.keys() == {"a"}
        assert not both.sink.revocations


async def test_a_refusal_of_a_long_subject_is_attributed() -> None:
    """However long the subject that a refusal names, it is compared whole; the words for a person are bounded."""
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


@pytest.mark.parametrize("words", ['to "a" (sid "1")', 'to "a"', 'to "a" using queue "q" (sid "1")'])
async def test_a_refusal_without_a_question_revokes(words: str) -> None:
    """A standing subscription that the server removes is revoked and dropped there too, also beside other questions."""
    async with played() as both:
        asked = asyncio.create_task(both.link.subscribe({b"a": "a", b"b": "b"}))
        await both.server.until(b"PING\r\nPING\r\n")
        both.server.send(b"PONG", b"PONG", b"PONG")
        await asked
        published = asyncio.create_task(both.link.publish(b"a", b"1"))
        await both.server.until(b"PUB a 1\r\n1\r\nPING\r\n")
        both.server.send(f"-ERR 'Permissions Violation for Subscription {words}'".encode(), b"PONG", b"MSG a 1 1", b"x")
        await published
        assert [channels for channels, _ in both.sink.revocations] == [{"a"}]
        await both.server.until(b"UNSUB 1\r\nPING\r\n")
        both.server.send(f"-ERR 'Permissions Violation for Subscription {words}'".encode(), b"MSG b 2 1", b"y")
        await both.sink.until(lambda: bool(both.sink.delivered))
        assert both.sink.delivered == [("b", b"y")]
        assert len(both.sink.revocations) == 1


async def test_a_subscription_revoked_with_its_confirmation_is_unconfirmed() -> None:
    """A subscription that is confirmed and removed in one piece of bytes is reported to the call that asked for it."""
    async with played() as both:
        asked = asyncio.create_task(both.link.subscribe({b"a": "a"}))
        await both.server.until(b"SUB a 1\r\nPING\r\nPING\r\n")
        both.server.send(b"PONG", b"PONG", b'-ERR \'Permissions Violation for Subscription to "a" (sid "1")\'')
        assert (await asked).unconfirmed.keys() == {"a"}


async def test_a_cancelled_subscription_that_is_refused_is_forgotten() -> None:
    """The refusal counts though nobody waits for it any more: who asks again, asks the server."""
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


async def test_a_refusal_that_concerns_nobody_ends_the_link() -> None:
    """Where nobody who awaits an answer can be meant, all subscriptions may be: the link is lost, with the words."""
    async with played() as both:
        both.server.send(b"-ERR 'something is wrong'")
        await both.link.closed.wait()
        assert "something is wrong" in str(both.lost[0])


async def test_a_refusal_does_not_concern_who_drops_a_channel() -> None:
    """Nor can it concern a call of `unsubscribe`, which then has no answer."""
    async with played() as both:
        asked = asyncio.create_task(both.link.unsubscribe([]))
        await both.server.until(b"PING\r\n")
        both.server.send(b"-ERR 'something is wrong'")
        with pytest.raises(BrokerUnavailableError, match="something is wrong"):
            await asked
        assert len(both.lost) == 1


async def test_words_of_an_earlier_refusal_do_not_explain_a_later_end() -> None:
    """A connection that ends long after a refusal ends for another reason."""
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
    ("words", "refused"), [("Maximum Payload Violation", "large"), ("maximum control line exceeded", "long")]
)
async def test_what_the_server_ended_the_connection_for_is_refused(words: str, refused: str) -> None:
    """Of the publishes under way the one that ended the connection was certainly not published, the others may be."""
    async with played() as both:
        calls = {
            "large": asyncio.create_task(both.link.publish(b"a", b"x" * 100)),
            "long": asyncio.create_task(both.link.publish(b"a" * 100, b"x")),
            "other": asyncio.create_task(both.link.publish(b"a", b"x")),
        }
        await both.server.until(b"PING\r\n")
        both.server.send(f"-ERR '{words}'".encode())
        both.server.close()
        answers = dict(zip(calls, await asyncio.gather(*calls.values(), return_exceptions=True), strict=True))
        assert [name for name, error in answers.items() if type(error) is PublishError] == [refused]
        assert [type(error) for error in answers.values()].count(PublishOutcomeUnknownError) == 2
        assert both.line_limits == ({"ONE": 64} if refused == "long" else {})


async def test_a_burst_leaves_in_pieces() -> None:
    """Publishes of one pass that are many leave in several writes, each confirmed: the server works meanwhile."""
    async with played() as both:
        publishes = asyncio.gather(*[both.link.publish(b"a", b"x" * 1000) for _ in range(1000)])
        sent = await both.server.until(b"PING\r\n")
        assert len(sent) < 100_000
        both.server.send(b"PONG")
        for _ in range(1_000_000 // len(sent)):
            await both.server.until(b"PING\r\n")
            both.server.send(b"PONG")
        await publishes


async def test_an_info_at_any_time_counts() -> None:
    """Each INFO replaces the one before."""
    async with played() as both:
        both.server.send(INFO.strip().replace(b"1048576", b"10"), b"-ERR 'end'")
        await both.link.closed.wait()
        assert (both.infos, both.link.max_payload_bytes) == (2, 10)


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
def test_any_bytes_of_a_server_lose_the_link_at_worst(pieces: list[bytes]) -> None:
    """Whatever a server sends, who waits gets an answer, and an end is reported once, with a reason."""

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
