"""`backplane doctor` on real brokers, each with a planted fault."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]
from redis.asyncio import Redis

from backplane import Backplane, Settings
from backplane.adapters.nats.subjects import reserved_subjects
from backplane.cli.doctor import findings_of
from tests.brokers.redis import RedisConfig

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.findings import Finding
    from tests.brokers.broker import Broker
    from tests.conftest import StartNats, StartRedis, StartRedisNode

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested does not depend on it."""
    return "asyncio", {"use_uvloop": True}


HOST = ("files", "workers_loop", "send_spans")
"""Checks that depend on where the tests run, and on what else this process has imported."""

SETTINGS = Settings(worker_heartbeat_seconds=0.3)


async def found(url: str, *channels: str) -> dict[str, Finding]:
    """Return what is found, by check; of several of one check the last one."""
    checks = findings_of(url, channels=channels, seconds=0.45)
    return {finding.check: finding async for finding in checks}


def worker(url: str) -> Backplane:
    """Return a worker."""
    return Backplane(url, cluster=True, settings=SETTINGS)


@asynccontextmanager
async def redis_client(url: str) -> AsyncGenerator[Any]:
    """Return a client of redis-py."""
    client: Any = Redis
    async with client.from_url(url, decode_responses=True) as redis:
        yield redis


# --- Redis Cluster ---


async def test_a_redis_cluster(redis_node: StartRedisNode) -> None:
    """State, nodes, versions and limits of a cluster are stated; a primary without a replica is named."""
    url = redis_node().url
    async with worker(url), worker(url):
        findings = await found(url)
    assert findings["redis_cluster_state"].text == "the state of the cluster is ok, with 16384 of 16384 slots served"
    assert findings["redis_cluster_nodes"].text == "1 of 1 nodes that serve slots are connected"
    assert findings["redis_cluster_replicas"].level == "warning"
    assert findings["redis_cluster_versions"].level == "ok"
    assert "is 1,000 ms" in findings["redis_cluster_timeout"].text
    assert findings["redis_cluster_when_down"].level == "warning"
    assert "CONFIG SET cluster-allow-pubsubshard-when-down no" in findings["redis_cluster_when_down"].cure
    assert findings["redis_output_buffer"].level == "warning"
    assert findings["redis_subscribers"].text == "2 of 2 workers have subscribed to $backplane/control"


async def test_what_an_acl_of_a_cluster_denies(redis_node: StartRedisNode) -> None:
    """What cannot be read is skipped."""
    rules = "alice on >secret ~* &* +@all -config -info -pubsub"
    url = redis_node(RedisConfig(users=(rules,), login="alice:secret")).url
    async with worker(url):
        findings = await found(url)
    checks = ("redis_cluster_versions", "redis_cluster_timeout", "redis_output_buffer", "redis_subscribers")
    assert [findings[check].level for check in checks] == ["skipped"] * 4
    assert "secret" not in str(findings)


# --- Redis ---


async def test_redis_that_is_well(private_redis: StartRedis) -> None:
    """Its limits are stated, and as many workers have subscribed as answer."""
    url = private_redis(RedisConfig(arguments=("--client-output-buffer-limit", "pubsub 256mb 64mb 60"))).url
    async with worker(url), worker(url) as second, second.subscribe("orders"):
        findings = await found(url, "orders")
    assert [check for check, finding in findings.items() if finding.level != "ok" and check not in HOST] == []
    assert findings["redis_output_buffer"].text == "client-output-buffer-limit pubsub is 256 MiB, or 64 MiB for 60 s"
    assert findings["redis_subscribers"].text == "2 of 2 workers have subscribed to $backplane/control"
    assert findings["path"].level == "ok"


async def test_a_small_output_buffer(private_redis: StartRedis) -> None:
    """That of the default cuts the link of a slow worker; so does a smaller one."""
    for arguments, text in (
        ((), "pubsub is 32 MiB, or 8 MiB for 60 s"),
        (("--client-output-buffer-limit", "pubsub 1mb 512kb 5"), "pubsub is 1 MiB, or 0 MiB for 5 s"),
    ):
        url = private_redis(RedisConfig(arguments=arguments)).url
        async with worker(url):
            finding = (await found(url))["redis_output_buffer"]
        assert (finding.level, finding.text.endswith(text)) == ("warning", True), finding
        assert "CONFIG SET client-output-buffer-limit" in finding.cure


async def test_few_clients(private_redis: StartRedis) -> None:
    """A server that takes hardly any more connections is named before it refuses one."""
    url = private_redis(RedisConfig(arguments=("--maxclients", "11"))).url
    async with redis_client(url) as first, redis_client(url) as second, worker(url), worker(url):
        await first.ping()
        await second.ping()
        finding = (await found(url))["redis_maxclients"]
    assert (finding.level, finding.text.endswith(" of 11 clients are connected")) == ("warning", True), finding


async def test_another_program_has_subscribed(private_redis: StartRedis) -> None:
    """More have subscribed than answer."""
    url = private_redis().url
    async with worker(url), redis_client(url) as redis, redis.pubsub() as other:
        await other.subscribe("$backplane/control")
        assert (await other.get_message(timeout=30))["type"] == "subscribe"
        finding = (await found(url))["redis_subscribers"]
    assert (finding.level, finding.text) == (
        "warning",
        "2 processes have subscribed to $backplane/control, and 1 workers answer",
    )


async def test_another_prefix(private_redis: StartRedis) -> None:
    """A worker that was given another prefix is seen on the same server."""
    url = private_redis().url
    async with worker(f"{url}?prefix=shop:"), worker(f"{url}?prefix=shoq:"):
        findings = await found(f"{url}?prefix=shop:")
    assert findings["workers"].text == "1 worker seen, 1 of them with figures"
    assert findings["redis_prefixes"].level == "warning"
    assert findings["redis_prefixes"].text == (
        "workers with other prefixes are on this server: 'shoq:'; this URL has 'shop:'"
    )


async def test_what_an_acl_denies(private_redis: StartRedis) -> None:
    """What cannot be read is skipped; channels of the package that are denied are an error, with what to grant."""
    rules = "alice on >secret ~* &* +@all -config -info -pubsub|numsub"
    url = private_redis(RedisConfig(users=(rules,), login="alice:secret")).url
    async with worker(url):
        findings = await found(url)
    for check in ("redis_output_buffer", "redis_maxclients", "redis_subscribers"):
        assert findings[check].level == "skipped"
    rules = "bob on >secret ~* resetchannels &backplane-check-* +@all"
    url = private_redis(RedisConfig(users=(rules,), login="bob:secret")).url
    findings = await found(url)
    assert (findings["broker"].level, findings["reserved"].level) == ("ok", "error")
    assert "must be allowed to publish and to subscribe" in findings["reserved"].cure
    assert "secret" not in str(findings)


# --- NATS ---


async def test_nats(private_nats: StartNats) -> None:
    """A small `max_payload` is named."""
    url = private_nats("max_payload: 65536").url
    async with worker(url):
        findings = await found(url)
    assert (findings["nats_max_payload"].level, findings["nats_lame_duck"].level) == ("warning", "ok")
    assert findings["nats_max_payload"].text.startswith("max_payload of the server is 65,536 bytes, below the option")


async def test_nats_permissions(private_nats: StartNats) -> None:
    """A user that may not use the package's own subjects is shown what to allow."""
    denied = f'{{ deny: "{reserved_subjects("")}" }}'
    config = f"""
    authorization {{ users: [{{
        user: ada, password: secret, permissions: {{ publish: {denied}, subscribe: {denied} }}
    }}] }}
    """
    findings = await found(private_nats(config, login="ada:secret").url)
    assert (findings["broker"].level, findings["reserved"].level) == ("ok", "error")
    assert "permissions" in findings["reserved"].text.lower()
    assert "secret" not in str(findings)


# --- Kafka ---


async def topic(broker: Broker, partitions: int, **configs: str) -> str:
    """Create a topic; return the URL of workers that use it."""
    name = f"doctor-{uuid4()}"
    settings = {key.replace("_", "."): value for key, value in configs.items()}
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=broker.url.removeprefix("kafka://"))
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=settings)])
    finally:
        await admin.close()
    return f"{broker.url}?topic={name}"


async def test_kafka(kafka_broker: Broker) -> None:
    """A topic that keeps messages for seconds, that is compacted, or has hundreds of partitions, is named."""
    async with asyncio.timeout(120):
        url = await topic(kafka_broker, 2, retention_ms="60000", cleanup_policy="compact,delete")
        async with worker(url):
            findings = await found(url)
        assert (findings["kafka_partitions"].level, findings["kafka_retention"].level) == ("ok", "warning")
        assert findings["kafka_retention"].text.endswith(" keeps messages for 60 s")
        assert (findings["kafka_cleanup"].level, findings["workers"].level) == ("error", "ok")
