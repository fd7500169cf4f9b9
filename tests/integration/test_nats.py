"""Behaviour specific to NATS: refusals at the start, other clients, permissions, limits, clusters, TLS, NKeys."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import nats
import nkeys  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
import pytest

from backplane import (
    Backplane,
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    Gap,
    Message,
    PayloadTooLargeError,
    PublishError,
    PublishOutcomeUnknownError,
    Settings,
    SubscribeError,
)
from backplane.broker.registry import broadcaster_from_url
from backplane.testing import FaultProxy, RecordingSink
from tests.brokers.certificate import self_signed_certificate
from tests.brokers.nats import NatsProcess, server_info
from tests.brokers.nats_accounts import Operator, new_seed
from tests.brokers.process import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from backplane.broadcaster import Broadcaster
    from tests.brokers.broker import Broker
    from tests.brokers.cluster import Cluster
    from tests.conftest import StartNats

pytestmark = pytest.mark.anyio

PROBE = "$backplane/probe/0123abcd"


def user(permissions: str) -> str:
    """Return the configuration of a server with one user, `alice`, whose password is `secret`."""
    return f"authorization {{ users: [{{ user: alice, password: secret, permissions: {permissions} }}] }}"


@asynccontextmanager
async def adapter(url: str) -> AsyncGenerator[tuple[Broadcaster, RecordingSink]]:
    """Return a started adapter, without the core, and its sink."""
    broadcaster, sink = broadcaster_from_url(url), RecordingSink()
    await broadcaster.start(sink)
    try:
        yield broadcaster, sink
    finally:
        await broadcaster.stop()


def knows_two(broker: Broker) -> bool:
    """Whether a server knows both servers of its cluster."""
    return len(server_info(cast("NatsProcess", broker).port).get("connect_urls", ())) == 2


class Relay:
    """A proxy that records what the client sends, and rewrites what the server sends.

    Args:
        broker: The server.
        rewrite: Called with each piece that the server sends; returns what is passed on.
        context: With it the relay speaks TLS to the client from the first byte, and no TLS to the server.

    Attributes:
        sent: What the client sent.
        port: The port that it listens on.
    """

    def __init__(
        self,
        broker: Broker,
        rewrite: Callable[[bytes], bytes] = lambda data: data,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.sent = b""
        self._port = int(broker.url.rpartition(":")[2])
        self._rewrite = rewrite
        self._context = context
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream, down = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, down, to_broker=True))
                group.create_task(self._copy(upstream, writer, to_broker=False))
        finally:
            for end in (writer, down):
                end.transport.abort()
                with suppress(ConnectionError, ssl.SSLError):
                    await end.wait_closed()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_broker: bool) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65536):
                if to_broker:
                    self.sent += data
                writer.write(data if to_broker else self._rewrite(data))
                await writer.drain()
        writer.transport.abort()


async def test_a_missing_broker_fails_the_start() -> None:
    """With no server there, start raises when its time is up, and the error names the URL without its password."""
    started = time.monotonic()
    settings = Settings(start_timeout_seconds=0.5)
    with pytest.raises(BrokerUnavailableError, match="cannot reach") as raised:
        await Backplane(f"nats://alice:hunter2@127.0.0.1:{free_port()}", settings=settings).start()
    assert time.monotonic() - started < 25
    assert "nats://alice:***@127.0.0.1:" in str(raised.value)
    assert "hunter2" not in repr(raised.value)


@pytest.mark.parametrize("login", ["", "alice:hunter2@", "hunter2@"], ids=["none", "password", "token"])
async def test_wrong_credentials_fail_the_start_at_once(private_nats: StartNats, login: str) -> None:
    """Missing or wrong credentials raise `BrokerAuthenticationError` at the first try, without a secret in it."""
    broker = private_nats("authorization { user: alice, password: right }")
    with pytest.raises(BrokerAuthenticationError) as raised:
        await Backplane(broker.url.replace("nats://", f"nats://{login}")).start()
    assert raised.value.retriable is False
    assert "hunter2" not in str(raised.value)


async def test_a_server_that_never_answers_fails_the_start(nats_broker: Broker) -> None:
    """A server that accepts and does not answer fails the start after `start_timeout_seconds`."""
    async with FaultProxy(nats_broker.url) as proxy:
        proxy.silence()
        with pytest.raises(BrokerUnavailableError, match=r"within 0\.2 s"):
            await Backplane(proxy.url, settings=Settings(start_timeout_seconds=0.2)).start()


async def test_a_login_that_was_too_late_is_retriable(private_nats: StartNats) -> None:
    """A login after the time limit of the server is not one with wrong credentials: the error is retriable."""
    broker = private_nats("authorization { user: alice, password: secret, timeout: 0.1 }", login="alice:secret")
    async with FaultProxy(broker.url) as proxy:
        proxy.silence("to_broker")
        with pytest.raises(BrokerUnavailableError, match="Authentication Timeout"):
            await broadcaster_from_url(proxy.url).start(RecordingSink())


async def test_a_token_is_accepted(private_nats: StartNats) -> None:
    """A user name without a password in the URL is the token."""
    broker = private_nats("authorization { token: s3cr3t }", login="s3cr3t")
    async with Backplane(broker.url) as backplane:
        await backplane.publish("room", "hello")


async def test_an_nkey_is_accepted(private_nats: StartNats, tmp_path: Path) -> None:
    """The NKey seed of the file that an option names signs the server's nonce."""
    seed = new_seed(nkeys.PREFIX_BYTE_USER)
    keys: Any = nkeys
    public_key = keys.from_seed(bytearray(seed)).public_key.decode()
    (tmp_path / "seed").write_bytes(seed + b"\n")
    broker = private_nats(f"authorization {{ users: [{{ nkey: {public_key} }}] }}")
    async with Backplane(f"{broker.url}?nkeys_seed={tmp_path / 'seed'}") as backplane:
        await backplane.publish("room", "hello")


async def test_a_file_of_credentials_is_accepted(private_nats: StartNats, tmp_path: Path) -> None:
    """The JWT of the file that an option names is sent, with the nonce signed by its key."""
    operator = Operator()
    credentials = operator.write_credentials(tmp_path / "alice.creds")
    broker = private_nats(operator.config)
    async with Backplane(f"{broker.url}?user_credentials={credentials}") as backplane:
        await backplane.publish("room", "hello")
    with pytest.raises(BrokerAuthenticationError):
        await Backplane(broker.url).start()


@pytest.mark.parametrize("source", ["file", "callable"])
async def test_credentials_that_expire_are_renewed(
    private_nats: StartNats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """A link that the server closes when its user expires is opened again with the credentials that are current then.

    https://github.com/nats-io/nats.py/issues/193
    """
    operator = Operator()
    broker = private_nats(operator.config)
    credentials = operator.write_credentials(tmp_path / "alice.creds", seconds=3)
    module = ModuleType("tokens_of_this_test")
    vars(module)["current"] = credentials.read_text
    monkeypatch.setitem(sys.modules, module.__name__, module)
    option = f"user_credentials={credentials}" if source == "file" else f"credentials={module.__name__}:current"
    url = f"{broker.url}?{option}"
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        operator.write_credentials(credentials)
        gap = await anext(messages)
        assert isinstance(gap, Gap)
        assert "Expired" in gap.reason
        await backplane.publish("room", "hello")
        assert isinstance(await anext(messages), Message)


@pytest.mark.parametrize("login", ["password: s3cr3t, user: alice", "token: s3cr3t"], ids=["password", "token"])
async def test_a_password_in_a_file_is_accepted(private_nats: StartNats, tmp_path: Path, login: str) -> None:
    """The password, or the token, is read from a file at each login."""
    broker = private_nats(f"authorization {{ {login} }}", login="alice" if "user" in login else "")
    secret = tmp_path / "secret"
    secret.write_text("wrong\n")
    adapter = broadcaster_from_url(f"{broker.url}?password_file={secret}")
    with pytest.raises(BrokerAuthenticationError):
        await adapter.start(RecordingSink())
    secret.write_text("s3cr3t\n")
    await adapter.start(RecordingSink())
    await adapter.stop()


async def test_tls(private_nats: StartNats, tmp_path: Path) -> None:
    """A link over TLS works where the options name the authority, and is refused at once otherwise."""
    certificate = self_signed_certificate(tmp_path)
    broker = private_nats(f'tls {{ cert_file: "{certificate}", key_file: "{tmp_path / "key.pem"}" }}')
    url = broker.url.replace("nats://", "tls://")
    async with Backplane(f"{url}?tls_ca_certs={certificate}") as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", b"x" * 500_000)
        received = await anext(messages)
        assert isinstance(received, Message)
        assert received.data == b"x" * 500_000
    for untrusting in (url, broker.url):  # the server requires TLS in both cases
        with pytest.raises(BrokerError, match="not trusted") as raised:
            await Backplane(untrusting).start()
        assert raised.value.retriable is False


async def test_the_next_server_of_the_url_is_used(nats_broker: Broker) -> None:
    """Where several servers are in the URL, one that answers is enough."""
    address = nats_broker.url.removeprefix("nats://")
    for _ in range(4):  # they are tried in a random order
        async with Backplane(f"nats://127.0.0.1:{free_port()},{address}") as backplane:
            await backplane.publish("room", "hello")


async def test_silent_servers_delay_another_by_a_second_each(nats_broker: Broker) -> None:
    """Servers that accept and do not answer delay the next one by a second each, not by the time limit."""
    async with FaultProxy(nats_broker.url) as one, FaultProxy(nats_broker.url) as two:
        one.silence()
        two.silence()
        addresses = ",".join(url.removeprefix("nats://") for url in (one.url, two.url, nats_broker.url))
        for _ in range(3):  # they are tried in a random order
            broadcaster = broadcaster_from_url(f"nats://{addresses}?connect_timeout_seconds=30")
            async with asyncio.timeout(30):
                await broadcaster.start(RecordingSink())
            await broadcaster.publish("room", b"hello")
            await broadcaster.stop()


async def test_a_publish_of_another_client_is_received(nats_broker: Broker) -> None:
    """What a client of nats-py publishes, with headers or without, is text where it is UTF-8, else binary."""
    client: Any = nats
    foreign = await client.connect(nats_broker.url)
    async with Backplane(nats_broker.url) as backplane, backplane.subscribe("foreign") as messages:
        await foreign.publish("foreign", b"hello")
        await foreign.publish("foreign", "grüße".encode(), headers={"Trace": "1"})
        await foreign.publish("foreign", b"\xff\0")
        await foreign.publish("foreign", b"")
        received = [await anext(messages) for _ in range(4)]
    await foreign.close()
    assert [item.data for item in received if isinstance(item, Message)] == ["hello", "grüße", b"\xff\0", ""]


async def test_a_channel_that_permissions_deny_fails_alone(private_nats: StartNats) -> None:
    """A denied subject raises for its own subscriber, a denied publish for its publisher; other channels go on."""
    permissions = "{ publish: { deny: secrets }, subscribe: { deny: secrets } }"
    users = f"{{ user: alice, password: secret, permissions: {permissions} }}"
    broker = private_nats(f"authorization {{ users: [{users}] }}", login="alice:secret")
    async with Backplane(broker.url) as backplane, backplane.subscribe("room") as messages:
        with pytest.raises(SubscribeError, match="secrets"):
            async with backplane.subscribe("secrets"):
                pass
        with pytest.raises(PublishError, match="Permissions Violation"):
            await backplane.publish("secrets", "x")
        await backplane.publish("room", "still here")
        assert (await anext(messages)).channel == "room"


async def test_the_servers_limit_of_payloads_is_applied(private_nats: StartNats) -> None:
    """A server that accepts less than the option lowers the limit; what exceeds it raises before it is sent."""
    broker = private_nats("max_payload: 1000")
    async with Backplane(broker.url) as backplane, backplane.subscribe("room") as messages:
        with pytest.raises(PayloadTooLargeError) as raised:
            await backplane.publish("room", "x" * 1000)
        assert raised.value.limit_bytes == 1000
        await backplane.publish("room", "x" * 979)  # and 21 of the header
        assert (await anext(messages)).channel == "room"


async def test_joins_over_the_limit_of_subscriptions_fail(private_nats: StartNats) -> None:
    """Of twenty joins at a server that accepts ten, ten raise with its error, and ten receive what is published.

    The error names no subscription (https://github.com/nats-io/nats.go/issues/921).
    """
    broker = private_nats("max_subscriptions: 10")
    channels = [f"room-{number}" for number in range(20)]
    async with adapter(broker.url) as (broadcaster, sink):
        with pytest.raises(SubscribeError) as raised:
            await broadcaster.subscribe(channels)
        assert not raised.value.refused
        assert set(raised.value.unconfirmed.values()) == {"maximum subscriptions exceeded"}
        held = [channel for channel in channels if channel not in raised.value.unconfirmed]
        assert len(held) == 10
        await asyncio.gather(*[broadcaster.publish(channel, b"hello") for channel in channels])
        assert [channel for channel, _ in sink.delivered] == held
        await broadcaster.unsubscribe(held[:1])
        await broadcaster.subscribe(list(raised.value.unconfirmed)[:1])
        assert not sink.losses


async def test_a_join_over_the_limit_waits_for_a_free_place(private_nats: StartNats) -> None:
    """A join over the limit waits until another subscription ends, and raises with the server's error if none does."""
    broker = private_nats("max_subscriptions: 1")
    settings = Settings(subscribe_timeout_seconds=3, linger_seconds=0.01)
    async with Backplane(broker.url, settings=settings) as backplane:
        async with backplane.subscribe("one"):
            with pytest.raises(BrokerUnavailableError, match="maximum subscriptions exceeded"):
                async with backplane.subscribe("two"):
                    pass
        async with backplane.subscribe("three") as messages:
            await backplane.publish("three", "hello")
            assert (await anext(messages)).channel == "three"


async def test_a_lower_limit_of_subscriptions_after_a_restart_is_reported(private_nats: StartNats) -> None:
    """Of five subscribers at a server that restarts with a limit of three, two get a gap with its error as reason.

    When the limit is gone, they get another gap, and what is published after it.
    """
    broker = private_nats("")
    assert isinstance(broker, NatsProcess)
    names = [f"room-{number}" for number in range(5)]
    async with Backplane(broker.url) as backplane, AsyncExitStack() as stack:
        rooms = [await stack.enter_async_context(backplane.subscribe(name)) for name in names]
        broker.kill9()
        broker.configure("max_subscriptions: 3")
        broker.start()
        gaps = [await anext(room) for room in rooms]
        full = [number for number, gap in enumerate(gaps) if "maximum subscriptions" in cast("Gap", gap).reason]
        assert len(full) == 2
        broker.kill9()
        broker.configure("")
        broker.start()
        for number in full:
            assert isinstance(await anext(rooms[number]), Gap)
            await backplane.publish(names[number], "hello")
            assert isinstance(await anext(rooms[number]), Message)


async def test_the_probe_is_refused_over_the_limit(private_nats: StartNats) -> None:
    """Where an application holds every subscription that the server allows, its probe is refused and not retried."""
    broker = private_nats("max_subscriptions: 1")
    async with adapter(broker.url) as (broadcaster, _):
        await broadcaster.subscribe(["room"])
        with pytest.raises(SubscribeError, match="maximum subscriptions") as raised:
            await broadcaster.subscribe([PROBE])
        assert raised.value.retriable is False
        assert "allow" not in str(raised.value)  # no permission would help


async def test_an_accounts_limit_of_subscriptions(private_nats: StartNats, tmp_path: Path) -> None:
    """The limit of an account is reported as that of the server is."""
    operator = Operator(subs=3)
    credentials = operator.write_credentials(tmp_path / "alice.creds")
    broker = private_nats(operator.config)
    async with adapter(f"{broker.url}?user_credentials={credentials}") as (broadcaster, sink):
        with pytest.raises(SubscribeError) as raised:
            await broadcaster.subscribe([f"room-{number}" for number in range(5)])
        assert len(raised.value.unconfirmed) == 2
        assert not sink.losses


@pytest.mark.parametrize("denied", ["publish", "subscribe"])
async def test_a_refusal_is_attributed(private_nats: StartNats, denied: str) -> None:
    """A publish and a subscription to one channel at the same time get each its own answer.

    https://github.com/nats-io/nats.go/issues/330
    """
    broker = private_nats(user(f"{{ {denied}: {{ deny: room }} }}"), login="alice:secret")
    async with adapter(broker.url) as (broadcaster, _):
        for calls in [(0, 1), (1, 0)] * 5:  # in either order
            both = [broadcaster.publish("room", b"x"), broadcaster.subscribe(["room"])]
            answers = await asyncio.gather(*[both[number] for number in calls], return_exceptions=True)
            published, subscribed = (answers[calls.index(number)] for number in (0, 1))
            assert isinstance(published, PublishError) == (denied == "publish")
            assert isinstance(subscribed, SubscribeError) == (denied == "subscribe")
            if denied == "publish":
                await broadcaster.unsubscribe(["room"])


async def test_a_subscription_that_is_no_longer_permitted_is_revoked(private_nats: StartNats) -> None:
    """Permissions that are reloaded without a channel revoke its subscription; the others are not affected."""
    broker = private_nats(user("{ subscribe: { allow: [room, hall] } }"), login="alice:secret")
    assert isinstance(broker, NatsProcess)
    async with adapter(broker.url) as (broadcaster, sink):
        await broadcaster.subscribe(["room", "hall"])
        broker.reload(user("{ subscribe: { allow: [hall] } }"))
        await sink.until(lambda: bool(sink.revocations))
        assert [channels for channels, _ in sink.revocations] == [{"room"}]
        assert "Permissions Violation" in sink.revocations[0][1]
        with pytest.raises(SubscribeError) as raised:
            await broadcaster.subscribe(["room"])
        assert raised.value.refused.keys() == {"room"}
        await broadcaster.publish("hall", b"hello")
        assert sink.delivered == [("hall", b"hello")]
        assert not sink.losses


async def test_a_subscription_that_is_permitted_again_has_a_gap(private_nats: StartNats) -> None:
    """A subscriber whose channel is revoked and then permitted again gets a gap, and what is published after it."""
    broker = private_nats(user("{ subscribe: { allow: [room] } }"), login="alice:secret")
    assert isinstance(broker, NatsProcess)
    settings = Settings(probe_interval_seconds=0.2)
    async with Backplane(broker.url, settings=settings) as backplane, backplane.subscribe("room") as messages:
        broker.reload(user("{ subscribe: { allow: [hall] } }"))
        assert isinstance(await anext(messages), Gap)
        broker.reload(user("{ subscribe: { allow: [room] } }"))
        while True:  # until the core has subscribed again
            await backplane.publish("room", "hello")
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    if isinstance(await anext(messages), Message):
                        break


async def test_one_wildcard_permits_the_reserved_channels(private_nats: StartNats) -> None:
    """A user with one permission, the wildcard of the package's own subjects, can subscribe to the probe."""
    for prefix in ("", "shop."):
        grant = f'{{ allow: ["{prefix}=24backplane.>"] }}'
        broker = private_nats(user(f"{{ publish: {grant}, subscribe: {grant} }}"), login="alice:secret")
        async with adapter(f"{broker.url}?prefix={prefix}") as (broadcaster, sink):
            await broadcaster.subscribe([PROBE])
            await broadcaster.publish(PROBE, b"")
            assert sink.delivered == [(PROBE, b"")]


@pytest.mark.parametrize("denied", ["publish", "subscribe"])
async def test_a_refused_probe_names_the_subjects_to_permit(private_nats: StartNats, denied: str) -> None:
    """Where the package's own channels are refused, the error names the wildcard to permit."""
    broker = private_nats(user(f'{{ {denied}: {{ allow: ["shop.room"] }} }}'), login="alice:secret")
    async with adapter(f"{broker.url}?prefix=shop.") as (broadcaster, _):
        with pytest.raises(BrokerError, match=r'"shop\.=24backplane\.>"'):
            await (broadcaster.publish(PROBE, b"") if denied == "publish" else broadcaster.subscribe([PROBE]))


async def test_the_accounts_limit_of_payloads_is_applied(private_nats: StartNats, tmp_path: Path) -> None:
    """An account's `max_payload` below the server's is known after the login; what exceeds it is not sent.

    https://github.com/nats-io/nats.go/issues/480
    """
    operator = Operator(payload=2048)
    credentials = operator.write_credentials(tmp_path / "alice.creds")
    broker = private_nats(operator.config)
    url = f"{broker.url}?user_credentials={credentials}"
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        with pytest.raises(PayloadTooLargeError) as raised:
            await backplane.publish("room", "x" * 5000)
        assert raised.value.limit_bytes == 2048
        await backplane.publish("room", "still here")
        assert isinstance(await anext(messages), Message)


async def test_a_channel_over_the_limit_of_a_control_line_fails_alone(private_nats: StartNats) -> None:
    """A subject over the server's `max_control_line` ends one link; from then on it is refused before it is sent."""
    broker = private_nats("max_control_line: 512")
    long = "\N{GRINNING FACE}" * 60
    async with Backplane(broker.url) as backplane, backplane.subscribe("room") as messages:
        with pytest.raises(SubscribeError, match="max_control_line"):
            async with backplane.subscribe(long):
                pass
        assert isinstance(await anext(messages), Gap)
        with pytest.raises(PublishError, match="max_control_line"):
            await backplane.publish(long, "hello")
        generation = (await backplane.health()).generation
        with pytest.raises(SubscribeError, match="max_control_line"):
            async with backplane.subscribe(long[1:]):
                pass
        await backplane.publish("room", "hello")
        assert isinstance(await anext(messages), Message)
        assert (await backplane.health()).generation == generation == 2


async def test_the_publish_that_ended_the_connection_is_refused(private_nats: StartNats) -> None:
    """The publish over which the server ended the connection is refused; others have an unknown outcome."""
    broker = private_nats("max_control_line: 512")
    async with adapter(broker.url) as (broadcaster, sink):
        long = broadcaster.publish("\N{GRINNING FACE}" * 60, b"x")
        answers = await asyncio.gather(long, broadcaster.publish("room", b"x"), return_exceptions=True)
        assert [type(answer) for answer in answers] == [PublishError, PublishOutcomeUnknownError]
        await sink.until(lambda: bool(sink.losses))


async def test_the_other_servers_of_a_cluster_are_learned(nats_cluster: Cluster) -> None:
    """Where the only server in the URL is gone, another one of the cluster is used, also at the next start."""
    named = nats_cluster.nodes[0]
    async with Backplane(named.url) as backplane, backplane.subscribe("room") as messages:
        named.kill9()
        assert isinstance(await anext(messages), Gap)
        await backplane.publish("room", "hello")
        assert isinstance(await anext(messages), Message)
    await backplane.start()
    await backplane.publish("room", "hello")
    await backplane.stop()
    named.launch()  # the fixture stops all servers


async def test_a_learned_server_shows_the_certificate_of_the_named_one(private_nats: StartNats, tmp_path: Path) -> None:
    """Over TLS a server that is known by its IP address is accepted if its certificate holds the name in the URL."""
    certificate = self_signed_certificate(tmp_path, names="DNS:localhost")
    ports = [free_port(), free_port()]
    routes = ", ".join(f"nats://127.0.0.1:{port}" for port in ports)
    tls = f'tls {{ cert_file: "{certificate}", key_file: "{tmp_path / "key.pem"}" }}'
    brokers = [
        private_nats(f"cluster {{ name: rooms, listen: 127.0.0.1:{port}, routes: [{routes}] }}\n{tls}")
        for port in ports
    ]
    await asyncio.to_thread(wait_until, lambda: all(knows_two(broker) for broker in brokers), "a cluster of two")
    url = f"tls://localhost:{cast('NatsProcess', brokers[0]).port}?tls_ca_certs={certificate}"
    async with adapter(url) as (broadcaster, sink):
        brokers[0].kill9()
        await sink.until(lambda: bool(sink.losses))
        await broadcaster.stop()
        await broadcaster.start(sink)
        await broadcaster.publish("room", b"hello")
    brokers[0].start()  # the fixture stops it


async def test_a_server_in_lame_duck_mode_is_left_in_time(nats_cluster: Cluster) -> None:
    """A server in lame duck mode is left for another one, and no publish meanwhile has an unknown outcome."""
    node = cast("NatsProcess", nats_cluster.nodes[0])
    async with adapter(node.url) as (broadcaster, sink):
        await broadcaster.subscribe(["room"])
        node.enter_lame_duck_mode()
        published = 0
        while not sink.losses:
            await broadcaster.publish("room", b"%d" % published)
            published += 1
        assert "lame duck" in str(sink.losses[0])
        answer = asyncio.gather(*[broadcaster.publish("room", b"last") for _ in range(10)])
        await asyncio.sleep(0)  # they have been called
        await broadcaster.stop()
        await answer
        assert len(sink.payloads("room")) == published + 10
        await broadcaster.start(sink)
        await broadcaster.publish("room", b"elsewhere")
        assert len(sink.losses) == 1


async def test_the_only_server_is_not_left_in_lame_duck_mode(private_nats: StartNats) -> None:
    """Where no other server accepts the login, one in lame duck mode is used until it closes the connection."""
    broker = private_nats("lame_duck_duration: 30s\nlame_duck_grace_period: 2s")
    assert isinstance(broker, NatsProcess)
    async with adapter(broker.url) as (broadcaster, sink):
        await broadcaster.subscribe(["room"])
        broker.enter_lame_duck_mode()
        await sink.until(lambda: bool(sink.losses), timeout_seconds=60)
        assert "lame duck" not in str(sink.losses[0])


async def test_a_stripped_offer_of_tls_is_refused(private_nats: StartNats, tmp_path: Path) -> None:
    """Where TLS is required, nothing is sent to a server whose INFO, rewritten by an attacker, offers no TLS."""
    certificate = self_signed_certificate(tmp_path)
    tls = f'tls {{ cert_file: "{certificate}", key_file: "{tmp_path / "key.pem"}" }}\nallow_non_tls: true'
    broker = private_nats(f"authorization {{ user: alice, password: hunter2 }}\n{tls}")

    def strip(data: bytes) -> bytes:
        return data.replace(b'"tls_required":true', b'"tls_required":false').replace(b'"tls_available":true,', b"")

    async with Relay(broker, strip) as relay:
        for scheme, options in [("tls", ""), ("nats", f"?tls_ca_certs={certificate}")]:
            with pytest.raises(BrokerError, match="no TLS") as raised:
                await Backplane(f"{scheme}://alice:hunter2@127.0.0.1:{relay.port}{options}").start()
            assert raised.value.retriable is False
        assert relay.sent == b""


async def test_bytes_before_the_handshake_end_the_connection(private_nats: StartNats, tmp_path: Path) -> None:
    """Bytes that an attacker injects before the TLS handshake end the connection, and nothing is sent."""
    certificate = self_signed_certificate(tmp_path)
    broker = private_nats(f'tls {{ cert_file: "{certificate}", key_file: "{tmp_path / "key.pem"}" }}')

    def inject(data: bytes) -> bytes:
        return data + b"PONG\r\nPONG\r\n" if data.startswith(b"INFO") else data

    async with Relay(broker, inject) as relay:
        with pytest.raises(BrokerUnavailableError):
            await Backplane(
                f"tls://127.0.0.1:{relay.port}?tls_ca_certs={certificate}", settings=Settings(start_timeout_seconds=0.5)
            ).start()
        assert b"CONNECT" not in relay.sent


async def test_tls_first(nats_broker: Broker, tmp_path: Path) -> None:
    """With `tls_first` the handshake is done before the INFO, as a server with `handshake_first` expects."""
    certificate = self_signed_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, tmp_path / "key.pem")
    async with Relay(nats_broker, context=context) as relay:
        url = f"tls://127.0.0.1:{relay.port}?tls_ca_certs={certificate}&connect_timeout_seconds=0.3"
        async with Backplane(f"{url}&tls_first=true") as backplane, backplane.subscribe("first") as messages:
            await backplane.publish("first", b"x" * 500_000)
            assert isinstance(await anext(messages), Message)
        with pytest.raises(BrokerUnavailableError, match="tls_first=true"):
            await broadcaster_from_url(url).start(RecordingSink())
    with pytest.raises(BrokerUnavailableError, match="tls_first=false"):
        await broadcaster_from_url(f"{nats_broker.url}?tls_first=true").start(RecordingSink())


async def test_a_burst_of_publishes_is_confirmed(nats_broker: Broker) -> None:
    """Fifty thousand publishes at the same time are all confirmed and delivered, in order, without a lost link."""
    async with adapter(nats_broker.url) as (broadcaster, sink):
        await broadcaster.subscribe(["burst"])
        payloads = [b"%d" % number for number in range(50_000)]
        await asyncio.gather(*[broadcaster.publish("burst", payload) for payload in payloads])
        assert sink.payloads("burst") == payloads
        assert not sink.losses


async def test_a_connection_closed_during_a_pause_is_a_loss(private_nats: StartNats) -> None:
    """Where the server closed the connection of a paused process, every subscriber gets a gap."""
    broker = private_nats('ping_interval: "100ms"\nping_max: 2')
    async with Backplane(broker.url) as backplane, backplane.subscribe("room") as messages:
        time.sleep(1)  # the event loop is blocked
        assert isinstance(await anext(messages), Gap)
        cast("NatsProcess", broker).reload("")  # a busy machine pauses for 200 ms too
        item: Message | Gap | None = None
        while not isinstance(item, Message):
            with suppress(PublishError):
                await backplane.publish("room", "hello")
                item = await anext(messages)


async def test_the_system_keeps_an_idle_connection_alive(nats_broker: Broker) -> None:
    """TCP keepalive is on: a worker without channels sends no probe, and a NAT drops an idle connection."""
    async with adapter(nats_broker.url) as (broadcaster, _):
        await broadcaster.publish("room", b"x")
        link = cast("Any", broadcaster)._link
        connection: socket.socket = link._transport.get_extra_info("socket")
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60
