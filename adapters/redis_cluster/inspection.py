"""What of a cluster can keep messages from workers: its state, its nodes, and their configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import hiredis

from backplane.adapters.redis.inspection import compare_subscribers, config_of, inspect_limits
from backplane.adapters.redis.server_info import info_fields
from backplane.adapters.redis_cluster.slots import slot_of
from backplane.adapters.shared.server_address import format_address
from backplane.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from backplane.adapters.redis.link import RedisLink
    from backplane.adapters.redis_cluster.nodes import Nodes

__all__ = ["inspect_cluster"]

_MOST_TIMEOUT_MILLISECONDS: Final = 15_000
_LEVELS: Final = ("error", "warning", "skipped", "ok")


async def inspect_cluster(nodes: Nodes, prefix: str, subscribers: Mapping[str, int]) -> list[Finding]:
    """Return what was found, one entry for each check; of several nodes the worst, with the node.

    Args:
        nodes: The nodes; those that are connected are asked.
        prefix: The prefix of the channels.
        subscribers: How many workers should have subscribed to a channel.

    Raises:
        BrokerUnavailableError: The link to one ended meanwhile.
    """
    links = {format_address(node.host): node.publisher for node in nodes.serving}
    limits = {where: await inspect_limits(link) for where, link in links.items()}
    of_checks = zip(*limits.values(), strict=True)
    return [
        _connected(nodes),
        await _worst("redis_cluster_state", links, _state),
        await _replicas(links),
        await _versions(links),
        await _worst("redis_cluster_timeout", links, _timeout),
        await _worst("redis_cluster_when_down", links, _when_down),
        *(_worst_of(dict(zip(limits, findings, strict=True))) for findings in of_checks),
        *[await _subscribers(nodes, prefix, channel, expected) for channel, expected in subscribers.items()],
    ]


def _connected(nodes: Nodes) -> Finding:
    check, down = "redis_cluster_nodes", len(nodes) - len(nodes.serving)
    text = f"{len(nodes.serving)} of {len(nodes)} nodes that serve slots are connected"
    if down:
        return Finding(check=check, level="error", text=text, cure="the channels of the others have no node at present")
    return Finding(check=check, level="ok", text=text)


async def _state(link: RedisLink) -> Finding:
    check = "redis_cluster_state"
    fields = info_fields(await link.ask(b"CLUSTER", b"INFO"))
    state, served = fields.get("cluster_state", "not stated"), fields.get("cluster_slots_ok", "?")
    text = f"the state of the cluster is {state}, with {served} of 16384 slots served"
    if state != "ok":
        cure = "redis-cli --cluster check: a primary is down, or no node serves some slots"
        return Finding(check=check, level="error", text=text, cure=cure)
    return Finding(check=check, level="ok", text=text)


async def _replicas(links: Mapping[str, RedisLink]) -> Finding:
    check = "redis_cluster_replicas"
    for link in links.values():
        try:
            reply = await link.ask(b"CLUSTER", b"SLOTS")
        except hiredis.ReplyError:
            continue
        alone = sorted({f"{entry[2][0].decode()}:{entry[2][1]}" for entry in reply if len(entry) < 4})
        if not alone:
            return Finding(check=check, level="ok", text="every primary has a replica")
        cure = "the channels of a primary without a replica have no node once it fails: CLUSTER REPLICATE"
        return Finding(check=check, level="warning", text=f"no replica has {', '.join(alone[:5])}", cure=cure)
    return Finding(check=check, level="skipped", text="no node permits CLUSTER SLOTS")


async def _versions(links: Mapping[str, RedisLink]) -> Finding:
    check = "redis_cluster_versions"
    versions: set[str] = set()
    for link in links.values():
        try:
            fields = info_fields(await link.ask(b"INFO", b"server"))
        except hiredis.ReplyError as error:
            return Finding(check=check, level="skipped", text=f"an ACL denies it: {error}")
        versions.add(fields.get("valkey_version") or fields.get("redis_version", "not stated"))
    text = f"the nodes have version {', '.join(sorted(versions))}"
    if len(versions) > 1:
        return Finding(check=check, level="warning", text=text, cure="complete the upgrade of the nodes")
    return Finding(check=check, level="ok", text=text)


async def _timeout(link: RedisLink) -> Finding:
    check, name = "redis_cluster_timeout", "cluster-node-timeout"
    milliseconds = int(await config_of(link, name) or 0)
    text = f"{name} is {milliseconds:,} ms: for about so long the channels of a primary that fails have no node"
    if not milliseconds:
        return Finding(check=check, level="skipped", text=f"{name} could not be read")
    if milliseconds > _MOST_TIMEOUT_MILLISECONDS:
        return Finding(check=check, level="warning", text=text, cure=f"redis-cli CONFIG SET {name} 5000, on every node")
    return Finding(check=check, level="ok", text=text)


async def _when_down(link: RedisLink) -> Finding:
    check, name = "redis_cluster_when_down", "cluster-allow-pubsubshard-when-down"
    value = await config_of(link, name)
    if not value:
        return Finding(check=check, level="skipped", text=f"{name} could not be read")
    if value == "no":
        return Finding(check=check, level="ok", text=f"{name} is no: a node that is cut off refuses messages")
    return Finding(
        check=check,
        level="warning",
        text=f"{name} is {value}: a node that is cut off confirms messages that are lost, until it is found out",
        cure=f"redis-cli CONFIG SET {name} no, on every node",
    )


async def _subscribers(nodes: Nodes, prefix: str, channel: str, expected: int) -> Finding:
    node = nodes.of(slot_of((prefix + channel).encode()))
    if node is None or not node.is_up:
        return Finding(check="redis_subscribers", level="error", text=f"{channel}: {nodes.why_down(node)}")
    try:
        return await compare_subscribers(node.publisher, prefix, channel, expected, command=b"SHARDNUMSUB")
    except hiredis.ReplyError as error:
        return Finding(check="redis_subscribers", level="skipped", text=f"an ACL denies it: {error}")


async def _worst(
    check: str, links: Mapping[str, RedisLink], inspect: Callable[[RedisLink], Awaitable[Finding]]
) -> Finding:
    findings: dict[str, Finding] = {}
    for where, link in links.items():
        try:
            findings[where] = await inspect(link)
        except hiredis.ReplyError as error:
            findings[where] = Finding(check=check, level="skipped", text=f"an ACL denies it: {error}")
    return _worst_of(findings)


def _worst_of(findings: Mapping[str, Finding]) -> Finding:
    """Return the worst, with the node; where all are well, that of the first."""
    order: Sequence[str] = sorted(findings, key=lambda where: _LEVELS.index(findings[where].level))
    worst = findings[order[0]]
    if worst.level == "ok":
        return next(iter(findings.values()))
    return Finding(check=worst.check, level=worst.level, text=f"{order[0]}: {worst.text}", cure=worst.cure)
