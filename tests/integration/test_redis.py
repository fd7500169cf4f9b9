"""What is particular to Redis: refusals at the start, foreign publishes, ACLs, options, what is left on the server."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from backplane import (
    Backplane,
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    Gap,
    Message,
    PublishError,
    PublishOutcomeUnknownError,
    Settings,
    SubscribeError,
)
from backplane.adapters.redis import connect as redis_connect
from backplane.testing import FaultProxy
from backplane.testing.harness import next_message
from tests.brokers.process import free_port
from tests.brokers.redis import RedisConfig

if TYPE_CHECKING:
    from backplane.adapters.redis.link import Address
    from tests.brokers.broker import Broker
    from tests.conftest import StartRedis

pytestmark = pytest.mark.anyio

HASTY = Settings(start_timeout_seconds=0.5)


def foreign_client(url: str) -> Any:
    """Return a plain client of the broker; its methods are typed too loosely for strict checkers."""
    client: Any = Redis
    return client.from_url(url)


async def test_a_broker_that_is_down_fails_the_start() -> None:
    """With no server there, start raises within five seconds, says where it looked, and shows no password."""
    started = monotonic()
    with pytest.raises(BrokerUnavailableError) as raised:
        await Backplane(f"redis://:hunter2@127.0.0.1:{free_port()}").start()
    assert monotonic() - started < 5
    assert "redis://:***@127.0.0.1:" in str(raised.value)
    assert "hunter2" not in repr(raised.value)


@pytest.mark.parametrize("login", ["", ":hunter2@", "alice:hunter2@", "nobody:hunter2@"])
async def test_a_wrong_password_fails_the_start_at_once(
    private_redis: StartRedis, login: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing or wrong password, or user, raises `BrokerAuthenticationError` in one try and shows no password."""
    broker = private_redis(RedisConfig(password="right", users=("alice on >right +@all &*",)))
    address = broker.url.rpartition("@")[2]
    with caplog.at_level(logging.DEBUG, "backplane"), pytest.raises(BrokerAuthenticationError) as raised:
        await Backplane(f"redis://{login}{address}").start()
    assert raised.value.retriable is False
    assert "hunter2" not in str(raised.value) + caplog.text
    assert raised.value.__cause__ is not None


async def test_a_server_that_never_answers_fails_the_start(redis_broker: Broker) -> None:
    """A server that accepts and stays silent is given up after the time the settings give."""
    async with FaultProxy(redis_broker.url) as proxy:
        proxy.silence()
        with pytest.raises(BrokerUnavailableError, match=r"within 0\.2 s"):
            await Backplane(proxy.url, settings=Settings(start_timeout_seconds=0.2)).start()


async def test_a_certificate_that_is_not_trusted_fails_the_start_at_once(private_redis: StartRedis) -> None:
    """A server whose certificate nobody vouches for is refused without a second try."""
    url = private_redis(RedisConfig(tls=True)).url.partition("?")[0]
    with pytest.raises(BrokerError, match="not trusted") as raised:
        await Backplane(url).start()
    assert raised.value.retriable is False


async def test_the_certificate_is_one_for_the_name(private_redis: StartRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever address of a name is connected to, the certificate must hold the name of the URL."""
    broker = private_redis(RedisConfig(tls=True))  # its certificate is for localhost and 127.0.0.1
    port = int(broker.url.rpartition(":")[2].partition("?")[0])

    async def resolve(*_: object) -> list[Address]:
        return [("127.0.0.1", port)]

    monkeypatch.setattr(redis_connect, "_resolve", resolve)
    async with Backplane(broker.url.replace("127.0.0.1", "localhost")) as backplane:
        await backplane.publish("room", "hello")
    with pytest.raises(BrokerError, match=r"not trusted.*name\.example") as raised:
        await Backplane(broker.url.replace("127.0.0.1", "name.example")).start()
    assert raised.value.retriable is False


async def test_a_foreign_publish_arrives_as_it_is(redis_broker: Broker) -> None:
    """What another client publishes is text where it is UTF-8, else binary; a header that makes no sense is dropped."""
    async with (
        foreign_client(redis_broker.url) as foreign,
        Backplane(redis_broker.url) as backplane,
        backplane.subscribe("foreign") as messages,
    ):
        for payload in (b"hello", "grüße".encode(), b"\xff\0", b"\xbfBP\x07malformed", b""):
            await foreign.publish("foreign", payload)
        heard = [await anext(messages) for _ in range(4)]
    assert [item.data for item in heard if isinstance(item, Message)] == ["hello", "grüße", b"\xff\0", ""]


async def test_the_prefix_separates_applications(redis_broker: Broker) -> None:
    """Two prefixes on one server do not meet, and the prefix is what stands on the server."""
    async with (
        Backplane(f"{redis_broker.url}?prefix=one:") as one,
        Backplane(f"{redis_broker.url}?prefix=two:") as two,
        foreign_client(redis_broker.url) as foreign,
        one.subscribe("room") as messages,
    ):
        await two.publish("room", "from two")
        await foreign.publish("one:room", "from outside")
        assert (await anext(messages)) == Message(channel="room", data="from outside")


async def test_a_process_that_only_publishes_opens_no_subscription(private_redis: StartRedis) -> None:
    """Publishing from a script holds one connection and subscribes to nothing, the probe included."""
    broker = private_redis()
    async with foreign_client(broker.url) as observer, Backplane(broker.url) as backplane:
        await backplane.publish("room", "hello")
        assert await observer.pubsub_channels() == []
        assert len(await observer.client_list()) == 2


async def test_nothing_is_left_on_the_server(private_redis: StartRedis) -> None:
    """After the last leave, and the moment it lingers, the server holds no subscription of the channel any more."""
    broker = private_redis()
    settings = Settings(linger_seconds=0.02)
    async with foreign_client(broker.url) as observer, Backplane(broker.url, settings=settings) as backplane:
        async with backplane.subscribe("room", "other"):
            assert sorted(await observer.pubsub_channels()) == [b"other", b"room"]
        async with asyncio.timeout(5):
            while await observer.pubsub_channels():
                await asyncio.sleep(0.01)


async def test_a_channel_an_acl_denies_fails_alone(private_redis: StartRedis) -> None:
    """A denied channel raises for its own subscriber, a denied publish for its publisher; the rest goes on."""
    broker = private_redis(RedisConfig(users=("alice on >secret +@all resetchannels &room-*",), login="alice:secret"))
    async with Backplane(broker.url) as backplane, backplane.subscribe("room-1") as messages:
        with pytest.raises(SubscribeError, match="secrets"):
            async with backplane.subscribe("secrets"):
                pass
        with pytest.raises(PublishError, match="NOPERM"):
            await backplane.publish("secrets", "x")
        await backplane.publish("room-1", "still here")
        assert (await anext(messages)).channel == "room-1"


async def test_one_denied_channel_of_a_thousand_after_a_reconnect(private_redis: StartRedis) -> None:
    """A rule that tightens while the link is away costs one channel its subscription and a gap, not the other 999."""
    broker = private_redis(RedisConfig(users=("alice on >secret +@all allchannels",), login="alice:secret"))
    root = broker.url.replace("alice:secret@", "")
    channels = [f"room-{number}" for number in range(1000)]
    async with (
        foreign_client(root) as observer,
        FaultProxy(broker.url) as proxy,
        Backplane(proxy.url, settings=Settings(max_backoff_seconds=0.2)) as backplane,
        backplane.subscribe(*channels, max_outbox_messages=5000) as messages,
    ):
        rules = [f"&{channel}" for channel in channels if channel != "room-500"]
        await observer.execute_command("ACL", "SETUSER", "alice", "resetchannels", *rules)
        async with asyncio.timeout(10):
            # The rule itself ends the connection of whoever holds a channel it no longer allows.
            gaps = [await anext(messages) for _ in range(1000)]
            assert all(isinstance(item, Gap) for item in gaps)
            await backplane.wait_for_state("live")
            await asyncio.gather(*(backplane.publish(channel, "") for channel in channels if channel != "room-500"))
            heard = {(await anext(messages)).channel for _ in range(999)}
        assert heard == set(channels) - {"room-500"}
        assert [gap.channel for gap in gaps if isinstance(gap, Gap) and "refused" in gap.reason] == ["room-500"]


async def test_a_reply_that_is_lost_leaves_the_outcome_unknown(redis_broker: Broker) -> None:
    """A publish whose answer does not come back raises as unknown, and is not sent a second time."""
    async with (
        FaultProxy(redis_broker.url) as proxy,
        Backplane(proxy.url) as backplane,
        Backplane(redis_broker.url) as outside,
        outside.subscribe("room") as messages,
    ):
        publishing = asyncio.create_task(backplane.publish("room", "once"))
        await anext(messages)  # the server has it; now the link goes before, or after, its answer came through
        proxy.cut()
        await asyncio.wait([publishing])
        error = publishing.exception()
        assert error is None or isinstance(error, PublishOutcomeUnknownError)
        await outside.publish("room", "barrier")
        heard = await anext(messages)
        assert isinstance(heard, Message)
        assert heard.data == "barrier"


@pytest.mark.parametrize("url", ["redis://localhost:notaport", "redis://localhost/room", "redis://localhost:99999"])
def test_a_url_that_makes_no_sense_is_refused(url: str) -> None:
    """A port that is none, and a path that is no database number, are refused before anything is opened."""
    with pytest.raises(ConfigurationError, match="redis:"):
        Backplane(url)


async def test_a_unix_socket(private_redis: StartRedis, tmp_path: Path) -> None:
    """`unix://` with the path of a socket, and a password, works as an address does."""
    path = tmp_path / "redis.sock"
    private_redis(RedisConfig(password="right", arguments=("--unixsocket", str(path))))
    settings = Settings(probe_interval_seconds=0.2)
    async with (
        Backplane(f"unix://:right@{path}", settings=settings) as backplane,
        backplane.subscribe("room") as messages,
    ):
        await backplane.publish("room", "hello")
        assert (await next_message(messages)).data == "hello"
    with pytest.raises(BrokerAuthenticationError, match=r"unix://:\*\*\*@/"):
        await Backplane(f"unix://:hunter2@{path}").start()
    with pytest.raises(BrokerUnavailableError, match="No such file"):
        await Backplane(f"unix://{path}.not", settings=Settings(start_timeout_seconds=0.1)).start()


@pytest.mark.parametrize("tls", [False, True], ids=["valkey", "valkeys"])
async def test_the_schemes_of_valkey(private_redis: StartRedis, tls: bool) -> None:
    """`valkey://` and `valkeys://` are `redis://` and `rediss://`."""
    url = private_redis(RedisConfig(tls=tls)).url.replace("redis", "valkey", 1)
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        assert (await next_message(messages)).data == "hello"


async def test_a_password_that_is_missing_has_words(private_redis: StartRedis) -> None:
    """A server that wants a password nobody gave, and one that wants none, are named as such."""
    guarded, open_ = private_redis(RedisConfig(password="right")), private_redis()
    with pytest.raises(BrokerAuthenticationError, match="wants a password and the URL has none"):
        await Backplane(guarded.url.replace(":right@", "")).start()
    with pytest.raises(BrokerAuthenticationError, match="without any password configured"):
        await Backplane(open_.url.replace("//", "//:hunter2@")).start()


async def test_tls_to_a_plain_port_names_the_other_scheme(private_redis: StartRedis) -> None:
    """A server without TLS does not answer a handshake; the error names the scheme for it."""
    url = private_redis().url.replace("redis", "rediss", 1) + "?connect_timeout_seconds=0.3"
    with pytest.raises(BrokerUnavailableError, match="speaks no TLS, the scheme is redis://"):
        await Backplane(url, settings=HASTY).start()


async def test_clear_text_to_a_port_of_tls_names_the_other_scheme(private_redis: StartRedis) -> None:
    """A server with TLS ends a connection in clear without a word; the error names the scheme for it."""
    url = private_redis(RedisConfig(tls=True)).url.replace("rediss", "redis", 1).partition("?")[0]
    with pytest.raises(BrokerUnavailableError, match="speaks TLS, the scheme is rediss://"):
        await Backplane(url, settings=HASTY).start()


async def test_whoever_strips_tls_gets_no_password() -> None:
    """A place in between that answers `rediss://` in clear receives a handshake, and neither user nor password."""
    received = bytearray()

    async def strip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            received.extend(await reader.read(65_536))
            writer.write(b"+OK\r\n+PONG\r\n-ERR this server speaks no TLS\r\n")
            received.extend(await reader.read(65_536))
        writer.transport.abort()

    server = await asyncio.start_server(strip, "127.0.0.1", 0)
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for scheme in ("rediss", "valkeys"):
            with pytest.raises(BrokerError):
                await Backplane(f"{scheme}://alice:hunter2@{address}?ssl_cert_reqs=none", settings=HASTY).start()
    assert received.startswith(b"\x16\x03")
    assert b"hunter2" not in received
    assert b"alice" not in received


async def test_credentials_are_asked_for_at_each_connect(
    private_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that was exchanged while the link stood is used for the next, and shown nowhere."""
    broker = private_redis(RedisConfig(users=("alice on >first +@all ~* &*",)))
    tokens = ["first"]
    module = ModuleType("tokens_of_this_test")
    vars(module)["current"] = lambda: ("alice", tokens[-1])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    url = f"{broker.url}?credentials=tokens_of_this_test:current"
    async with (
        foreign_client(broker.url) as operator,
        Backplane(url, settings=Settings(max_backoff_seconds=0.1)) as backplane,
        backplane.subscribe("room") as messages,
    ):
        await operator.execute_command("ACL", "SETUSER", "alice", "resetpass", ">second")
        tokens.append("second")
        for kind in ("normal", "pubsub"):
            await operator.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        assert isinstance(await anext(messages), Gap)
        await backplane.publish("room", "hello")
        assert (await next_message(messages)).data == "hello"
        assert await operator.execute_command("ACL", "WHOAMI") == b"default"


async def test_a_certificate_of_the_client_that_is_missing_is_hinted_at(private_redis: StartRedis) -> None:
    """A server that wants a client's certificate ends the connection; the error names the options."""
    broker = private_redis(RedisConfig(tls=True))
    async with foreign_client(broker.url) as operator:
        await operator.config_set("tls-auth-clients", "yes")
    with pytest.raises(BrokerUnavailableError, match="set ssl_certfile and ssl_keyfile"):
        await Backplane(broker.url, settings=HASTY).start()
    certificate = broker.url.partition("ssl_ca_certs=")[2]
    key = str(Path(certificate).parent / "key.pem")
    async with Backplane(f"{broker.url}&ssl_certfile={certificate}&ssl_keyfile={key}") as backplane:
        await backplane.publish("room", "hello")


@pytest.mark.parametrize(("options", "warnings"), [("", 1), ("?prefix=shop:", 0)])
async def test_a_server_that_others_use_is_warned_of(
    private_redis: StartRedis, options: str, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A Redis with keys in it is shared: without a prefix the first start has one warning, with the cure."""
    url = private_redis().url
    async with Backplane(url):  # empty: nobody else is there
        pass
    assert "holds keys" not in caplog.text
    async with foreign_client(url) as other:
        await other.set("session:1", "alice")
    backplane = Backplane(url + options)
    for _ in range(2):
        async with backplane:
            pass
    assert caplog.text.count("holds keys, so others seem to use it") == warnings
