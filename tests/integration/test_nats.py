"""What is particular to NATS: refusals at the start, foreign publishes, permissions, limits, clusters, TLS, NKeys."""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING, Any

import nats
import nkeys  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
import pytest

from backplane import (
    Backplane,
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    Message,
    PayloadTooLargeError,
    PublishError,
    Settings,
    SubscribeError,
)
from backplane.testing import FaultProxy
from tests.brokers.certificate import self_signed_certificate
from tests.brokers.process import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from tests.brokers.broker import Broker
    from tests.conftest import StartNats

pytestmark = pytest.mark.anyio


async def test_a_broker_that_is_down_fails_the_start() -> None:
    """With no server there, start raises within five seconds, says where it looked, and shows no password."""
    started = monotonic()
    with pytest.raises(BrokerUnavailableError, match="cannot reach") as raised:
        await Backplane(f"nats://alice:hunter2@127.0.0.1:{free_port()}").start()
    assert monotonic() - started < 5
    assert "nats://alice:***@127.0.0.1:" in str(raised.value)
    assert "hunter2" not in repr(raised.value)


@pytest.mark.parametrize("login", ["", "alice:hunter2@", "hunter2@"], ids=["none", "password", "token"])
async def test_wrong_credentials_fail_the_start_at_once(private_nats: StartNats, login: str) -> None:
    """Missing or wrong credentials raise `BrokerAuthenticationError` in one try and show no secret."""
    broker = private_nats("authorization { user: alice, password: right }")
    with pytest.raises(BrokerAuthenticationError) as raised:
        await Backplane(broker.url.replace("nats://", f"nats://{login}")).start()
    assert raised.value.retriable is False
    assert "hunter2" not in str(raised.value)


async def test_a_server_that_never_answers_fails_the_start(nats_broker: Broker) -> None:
    """A server that accepts and stays silent is given up after the time the settings give."""
    async with FaultProxy(nats_broker.url) as proxy:
        proxy.silence()
        with pytest.raises(BrokerUnavailableError, match=r"within 0\.2 s"):
            await Backplane(proxy.url, settings=Settings(start_timeout_seconds=0.2)).start()


async def test_a_token_lets_in(private_nats: StartNats) -> None:
    """A lone user name in the URL is the token."""
    broker = private_nats("authorization { token: s3cr3t }", login="s3cr3t")
    async with Backplane(broker.url) as backplane:
        await backplane.publish("room", "hello")


async def test_an_nkey_lets_in(private_nats: StartNats, tmp_path: Path) -> None:
    """A file with an NKey seed, named by an option, signs the server's challenge."""
    keys: Any = nkeys
    seed: bytes = keys.encode_seed(os.urandom(32), keys.PREFIX_BYTE_USER)
    public_key = keys.from_seed(bytearray(seed)).public_key.decode()
    (tmp_path / "seed").write_bytes(seed)
    broker = private_nats(f"authorization {{ users: [{{ nkey: {public_key} }}] }}")
    async with Backplane(f"{broker.url}?nkeys_seed={tmp_path / 'seed'}") as backplane:
        await backplane.publish("room", "hello")


async def test_tls(private_nats: StartNats, tmp_path: Path) -> None:
    """A link over TLS works with the authority named, and is refused at once without."""
    certificate = self_signed_certificate(tmp_path)
    broker = private_nats(f'tls {{ cert_file: "{certificate}", key_file: "{tmp_path / "key.pem"}" }}')
    url = broker.url.replace("nats://", "tls://")
    async with Backplane(f"{url}?tls_ca_certs={certificate}") as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", b"x" * 500_000)
        heard = await anext(messages)
        assert isinstance(heard, Message)
        assert heard.data == b"x" * 500_000
    with pytest.raises(BrokerError, match="not trusted") as raised:
        await Backplane(url).start()
    assert raised.value.retriable is False


async def test_the_next_server_of_a_cluster_is_taken(nats_broker: Broker) -> None:
    """Of several servers in the URL one that answers is enough."""
    address = nats_broker.url.removeprefix("nats://")
    for _ in range(4):  # they are tried in a random order
        async with Backplane(f"nats://127.0.0.1:{free_port()},{address}") as backplane:
            await backplane.publish("room", "hello")


async def test_a_foreign_publish_arrives_as_it_is(nats_broker: Broker) -> None:
    """What a bare nats-py client publishes, headers or not, is text where it is UTF-8, else binary."""
    client: Any = nats
    foreign = await client.connect(nats_broker.url)
    async with Backplane(nats_broker.url) as backplane, backplane.subscribe("foreign") as messages:
        await foreign.publish("foreign", b"hello")
        await foreign.publish("foreign", "grüße".encode(), headers={"Trace": "1"})
        await foreign.publish("foreign", b"\xff\0")
        await foreign.publish("foreign", b"")
        heard = [await anext(messages) for _ in range(4)]
    await foreign.close()
    assert [item.data for item in heard if isinstance(item, Message)] == ["hello", "grüße", b"\xff\0", ""]


async def test_a_channel_that_permissions_deny_fails_alone(private_nats: StartNats) -> None:
    """A denied subject raises for its own subscriber, a denied publish for its publisher; the rest goes on."""
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


async def test_the_limit_of_the_server_counts(private_nats: StartNats) -> None:
    """A server that takes less than the option says lowers the limit; what is over it raises before the wire."""
    broker = private_nats("max_payload: 1000")
    async with Backplane(broker.url) as backplane, backplane.subscribe("room") as messages:
        with pytest.raises(PayloadTooLargeError) as raised:
            await backplane.publish("room", "x" * 1000)
        assert raised.value.limit_bytes == 1000
        await backplane.publish("room", "x" * 979)  # and 21 of the header
        assert (await anext(messages)).channel == "room"
