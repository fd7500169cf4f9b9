"""Behaviour specific to Redis: refusals at the start, other clients, ACLs, options, cleanup at the server."""

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
    Backlog,
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
from backplane.adapters.redis import RedisBroadcaster
from backplane.adapters.redis.options import RedisOptions
from backplane.broadcaster import BrokerUrl, SupportsPrefixes
from backplane.broker.registry import broadcaster_from_url
from backplane.testing import FaultProxy, RecordingSink
from backplane.testing.harness import next_message
from tests.brokers.process import free_port
from tests.brokers.redis import RedisConfig

if TYPE_CHECKING:
    from backplane.adapters.redis.server_info import Address
    from tests.brokers.broker import Broker
    from tests.conftest import StartRedis

pytestmark = pytest.mark.anyio

HASTY = Settings(start_timeout_seconds=1)


def foreign_client(url: str) -> Any:
    """Return a client of redis-py; `Any`, because its methods are typed too loosely for strict checkers."""
    client: Any = Redis
    return client.from_url(url)


async def test_a_missing_broker_fails_the_start() -> None:
    """With no server there, start raises when its time is up, and the error names the URL without its password."""
    started = monotonic()
    with pytest.raises(BrokerUnavailableError) as raised:
        await Backplane(f"redis://:hunter2@127.0.0.1:{free_port()}", settings=HASTY).start()
    assert monotonic() - started < 25
    assert "redis://:***@127.0.0.1:" in str(raised.value)
    assert "hunter2" not in repr(raised.value)


@pytest.mark.parametrize("login", ["", ":hunter2@", "alice:hunter2@", "bob:hunter2@"])
async def test_a_wrong_password_fails_the_start_at_once(
    private_redis: StartRedis, login: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing or wrong password or user raises `BrokerAuthenticationError` at the first try, without the password."""
    broker = private_redis(RedisConfig(password="right", users=("alice on >right +@all &*",)))
    address = broker.url.rpartition("@")[2]
    with caplog.at_level(logging.DEBUG, "backplane"), pytest.raises(BrokerAuthenticationError) as raised:
        await Backplane(f"redis://{login}{address}").start()
    assert raised.value.retriable is False
    assert "hunter2" not in str(raised.value) + caplog.text
    assert raised.value.__cause__ is not None


async def test_a_server_that_never_answers_fails_the_start(redis_broker: Broker) -> None:
    """A server that accepts and does not answer fails the start after `start_timeout_seconds`."""
    async with FaultProxy(redis_broker.url) as proxy:
        proxy.silence()
        with pytest.raises(BrokerUnavailableError, match=r"within 0\.2 s"):
            await Backplane(proxy.url, settings=Settings(start_timeout_seconds=0.2)).start()


async def test_an_untrusted_certificate_fails_the_start_at_once(private_redis: StartRedis) -> None:
    """A server whose certificate no authority has signed is refused without a second try."""
    url = private_redis(RedisConfig(tls=True)).url.partition("?")[0]
    with pytest.raises(BrokerError, match="not trusted") as raised:
        await Backplane(url).start()
    assert raised.value.retriable is False


async def test_the_certificate_must_hold_the_name(private_redis: StartRedis) -> None:
    """Whichever address of a name is used, the certificate must hold the name of the URL."""
    broker = private_redis(RedisConfig(tls=True))  # its certificate is for localhost and 127.0.0.1
    address, _, query = broker.url.partition("?")
    options = RedisOptions(ssl_ca_certs=query.removeprefix("ssl_ca_certs="))

    async def resolve(_: str, port: int) -> list[Address]:
        return [("127.0.0.1", port)]

    def at(name: str) -> Backplane:
        url = BrokerUrl.parse(address.replace("127.0.0.1", name))
        return Backplane(RedisBroadcaster(url, options, resolve=resolve))

    async with at("localhost") as backplane:
        await backplane.publish("room", "hello")
    with pytest.raises(BrokerError, match=r"not trusted.*name\.example") as raised:
        await at("name.example").start()
    assert raised.value.retriable is False


async def test_a_publish_of_another_client_is_received(redis_broker: Broker) -> None:
    """What another client publishes is text where it is UTF-8, else binary; a malformed header is dropped."""
    async with (
        foreign_client(redis_broker.url) as foreign,
        Backplane(redis_broker.url) as backplane,
        backplane.subscribe("foreign") as messages,
    ):
        for payload in (b"hello", "grüße".encode(), b"\xff\0", b"\xbfBP\x07malformed", b""):
            await foreign.publish("foreign", payload)
        received = [await anext(messages) for _ in range(4)]
    assert [item.data for item in received if isinstance(item, Message)] == ["hello", "grüße", b"\xff\0", ""]


async def test_the_prefix_separates_applications(redis_broker: Broker) -> None:
    """Applications with different prefixes do not share channels; at the server a channel begins with the prefix."""
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
    """A process that only publishes holds one connection, and has no subscription, not even that of the probe."""
    broker = private_redis()
    async with foreign_client(broker.url) as observer, Backplane(broker.url) as backplane:
        await backplane.publish("room", "hello")
        assert await observer.pubsub_channels() == []
        assert len(await observer.client_list()) == 2


async def test_no_subscription_is_left_on_the_server(private_redis: StartRedis) -> None:
    """After the last leave, and `linger_seconds`, the server has no subscription of the channel any more."""
    broker = private_redis()
    settings = Settings(linger_seconds=0.02)
    async with foreign_client(broker.url) as observer, Backplane(broker.url, settings=settings) as backplane:
        async with backplane.subscribe("room", "other"):
            assert sorted(await observer.pubsub_channels()) == [b"other", b"room"]
        async with asyncio.timeout(30):
            while await observer.pubsub_channels():
                await asyncio.sleep(0.01)


async def test_a_pattern_that_an_acl_denies_fails_alone(private_redis: StartRedis) -> None:
    """An ACL permits the pattern that it names and no other: the rest raise, with the line that grants them."""
    granted = "alice on >secret +@all resetchannels &shop:* &shop:a\\\\*b* &shop:a.*"
    url = private_redis(RedisConfig(users=(granted,), login="alice:secret")).url
    broadcaster, sink = broadcaster_from_url(f"{url}?prefix=shop:"), RecordingSink()
    await broadcaster.start(sink)
    assert isinstance(broadcaster, SupportsPrefixes)
    with pytest.raises(SubscribeError, match=r"SETUSER alice \+psubscribe \+punsubscribe &shop:x\*"):
        await broadcaster.subscribe_prefixes(["a.", "a.b", "x"])
    await broadcaster.unsubscribe_prefixes(["a."])  # the pattern stays, because a longer one would be denied
    await broadcaster.publish("a.1", b"not wanted any more")
    await broadcaster.publish("a.b1", b"1")
    await broadcaster.publish("x1", b"denied")
    await broadcaster.subscribe_prefixes([""])
    await broadcaster.publish("y", b"2")
    await sink.until(lambda: len(sink.delivered) == 2)
    assert sink.delivered == [("a.b1", b"1"), ("y", b"2")]
    await broadcaster.stop()


async def test_a_channel_that_an_acl_denies_fails_alone(private_redis: StartRedis) -> None:
    """A denied channel raises for its own subscriber, a denied publish for its publisher; other channels go on."""
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
    """Where an ACL denies one channel from now on, it alone is refused after the reconnect; the other 999 are back."""
    broker = private_redis(RedisConfig(users=("alice on >secret +@all allchannels",), login="alice:secret"))
    root = broker.url.replace("alice:secret@", "")
    channels = [f"room-{number}" for number in range(1000)]
    async with (
        foreign_client(root) as observer,
        FaultProxy(broker.url) as proxy,
        Backplane(proxy.url, settings=Settings(max_backoff_seconds=0.2)) as backplane,
        backplane.subscribe(*channels, backlog=Backlog(max_messages=5000)) as messages,
    ):
        rules = [f"&{channel}" for channel in channels if channel != "room-500"]
        await observer.execute_command("ACL", "SETUSER", "alice", "resetchannels", *rules)
        async with asyncio.timeout(30):
            # The new rule ends every connection that is subscribed to a channel it no longer allows.
            gaps = [await anext(messages) for _ in range(1000)]
            assert all(isinstance(item, Gap) for item in gaps)
            await backplane.wait_for_state("live")
            await asyncio.gather(*(backplane.publish(channel, "") for channel in channels if channel != "room-500"))
            received = {(await anext(messages)).channel for _ in range(999)}
        assert received == set(channels) - {"room-500"}
        assert [gap.channel for gap in gaps if isinstance(gap, Gap) and "refused" in gap.reason] == ["room-500"]


async def test_a_lost_reply_leaves_the_outcome_unknown(redis_broker: Broker) -> None:
    """A publish whose reply is lost raises `PublishOutcomeUnknownError`, and is not sent a second time."""
    async with (
        FaultProxy(redis_broker.url) as proxy,
        Backplane(proxy.url) as backplane,
        Backplane(redis_broker.url) as outside,
        outside.subscribe("room") as messages,
    ):
        publishing = asyncio.create_task(backplane.publish("room", "once"))
        await anext(messages)  # the server has it; the link is lost before its reply is read, or after
        proxy.cut()
        await asyncio.wait([publishing])
        error = publishing.exception()
        assert error is None or isinstance(error, PublishOutcomeUnknownError)
        await outside.publish("room", "barrier")
        received = await anext(messages)
        assert isinstance(received, Message)
        assert received.data == "barrier"


@pytest.mark.parametrize("url", ["redis://localhost:notaport", "redis://localhost/room", "redis://localhost:99999"])
def test_a_malformed_url_is_refused(url: str) -> None:
    """A malformed port, and a path that is not a database number, are refused before anything is opened."""
    with pytest.raises(ConfigurationError, match="redis:"):
        Backplane(url)


async def test_a_unix_socket(private_redis: StartRedis, tmp_path: Path) -> None:
    """`unix://` with the path of a socket, and a password, works as a host and port do."""
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
    """`valkey://` and `valkeys://` work as `redis://` and `rediss://`."""
    url = private_redis(RedisConfig(tls=tls)).url.replace("redis", "valkey", 1)
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        assert (await next_message(messages)).data == "hello"


async def test_a_missing_or_superfluous_password_is_named(private_redis: StartRedis) -> None:
    """The error for a server that requires a password, and for one that requires none, explains it."""
    guarded, open_ = private_redis(RedisConfig(password="right")), private_redis()
    with pytest.raises(BrokerAuthenticationError, match="wants a password and the URL has none"):
        await Backplane(guarded.url.replace(":right@", "")).start()
    with pytest.raises(BrokerAuthenticationError, match="without any password configured"):
        await Backplane(open_.url.replace("//", "//:hunter2@")).start()


async def test_tls_to_a_plain_port_names_the_other_scheme(private_redis: StartRedis) -> None:
    """A server without TLS does not answer a handshake; the error names the scheme without TLS."""
    url = private_redis().url.replace("redis", "rediss", 1) + "?connect_timeout_seconds=0.3"
    with pytest.raises(BrokerUnavailableError, match="speaks no TLS, the scheme is redis://"):
        await broadcaster_from_url(url).start(RecordingSink())


async def test_no_tls_to_a_port_with_tls_names_the_other_scheme(private_redis: StartRedis) -> None:
    """A server with TLS closes an unencrypted connection without a reply; the error names the scheme with TLS."""
    url = private_redis(RedisConfig(tls=True)).url.replace("rediss", "redis", 1).partition("?")[0]
    with pytest.raises(BrokerUnavailableError, match="speaks TLS, the scheme is rediss://"):
        await broadcaster_from_url(url).start(RecordingSink())


async def test_an_attacker_that_strips_tls_receives_no_password() -> None:
    """A proxy that answers `rediss://` unencrypted receives a TLS handshake, and neither user nor password."""
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


async def test_credentials_are_read_at_each_connect(private_redis: StartRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that was rotated while the link was up is used at the next connect."""
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


async def test_a_missing_client_certificate_is_named(private_redis: StartRedis) -> None:
    """A server that requires a client's certificate closes the connection; the error names the options."""
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
async def test_a_shared_server_causes_a_warning(
    private_redis: StartRedis, options: str, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A Redis that holds keys is shared: without a prefix the first start logs one warning, which names the option."""
    url = private_redis().url
    async with Backplane(url):  # empty: no other application uses it
        pass
    assert "holds keys" not in caplog.text
    async with foreign_client(url) as other:
        await other.set("session:1", "alice")
    backplane = Backplane(url + options)
    for _ in range(2):
        async with backplane:
            pass
    assert caplog.text.count("holds keys, so others seem to use it") == warnings
