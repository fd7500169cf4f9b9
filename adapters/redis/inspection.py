"""What of a Redis server's configuration can end links of workers, or keep messages from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import hiredis

from backplane.adapters.redis.server_info import info_fields
from backplane.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backplane.adapters.redis.link import RedisLink
    from backplane.findings import Level

__all__ = ["compare_subscribers", "config_of", "describe_server", "inspect_limits", "inspect_server", "other_prefixes"]

_MIB: Final = 1024 * 1024
# What a worker that reads slowly for some seconds may have waiting: the default of Redis is 32 MiB, or 8 for a minute.
_LEAST_HARD_BYTES: Final = 64 * _MIB
_LEAST_SOFT_BYTES: Final = 32 * _MIB
_MOST_CLIENTS_SHARE: Final = 0.8
_CONTROL: Final = "$backplane/control"


async def describe_server(link: RedisLink) -> str:
    """Return name and version of a server; an ACL can deny the version."""
    try:
        fields = info_fields(await link.ask(b"INFO", b"server"))
    except hiredis.ReplyError:
        fields = {}
    if "valkey_version" in fields:  # Valkey reports the version of Redis that it is compatible with too
        return f"Valkey {fields['valkey_version']}"
    return f"Redis {fields.get('redis_version', '(version not granted)')}"


async def inspect_server(
    link: RedisLink, prefix: str, subscribers: Mapping[str, int], *, expects_cluster: bool
) -> list[Finding]:
    """Return what was found; what an ACL denies is skipped.

    Args:
        link: A connection that takes commands.
        prefix: The prefix of the channels.
        subscribers: How many workers should have subscribed to a channel.
        expects_cluster: Whether the URL is that of a cluster.
    """
    findings = [*([] if expects_cluster else await _cluster(link)), *await inspect_limits(link)]
    try:
        for channel, expected in subscribers.items():
            findings.append(await compare_subscribers(link, prefix, channel, expected))
        findings += await _other_prefixes(link, prefix)
    except hiredis.ReplyError as error:
        findings.append(Finding(check="redis_subscribers", level="skipped", text=f"an ACL denies it: {error}"))
    return findings


async def _cluster(link: RedisLink) -> list[Finding]:
    """Return whether the server is a node of a cluster, where the scheme of the URL is that of one server."""
    try:
        fields = info_fields(await link.ask(b"INFO", b"cluster"))
    except hiredis.ReplyError:  # an ACL denies it
        return []
    if fields.get("cluster_enabled") != "1":
        return []
    text = "the server is a node of a cluster, and the URL is that of one server: every node gets every message"
    cure = "redis+cluster:// publishes at the node of each channel, and finds the others where this one fails"
    return [Finding(check="redis_cluster", level="warning", text=text, cure=cure)]


async def inspect_limits(link: RedisLink) -> list[Finding]:
    """Return what was found of the limits of one server."""
    findings: list[Finding] = []
    for check, inspect in (("redis_output_buffer", _output_buffer), ("redis_maxclients", _clients)):
        try:
            findings.append(await inspect(link))
        except hiredis.ReplyError as error:
            findings.append(Finding(check=check, level="skipped", text=f"an ACL denies it: {error}"))
    return findings


async def _output_buffer(link: RedisLink) -> Finding:
    check, name = "redis_output_buffer", "client-output-buffer-limit"
    words = (await config_of(link, name)).split()
    try:
        begin = words.index("pubsub")
        hard, soft, seconds = map(int, words[begin + 1 : begin + 4])
    except ValueError:
        return Finding(check=check, level="skipped", text=f"{name} could not be read")
    text = f"{name} pubsub is {hard // _MIB} MiB, or {soft // _MIB} MiB for {seconds} s"
    if (hard and hard < _LEAST_HARD_BYTES) or (soft and soft < _LEAST_SOFT_BYTES):
        cure = (
            f"redis-cli CONFIG SET {name} 'pubsub 256mb 64mb 60': above it the link of a slow worker is cut, with gaps"
        )
        return Finding(check=check, level="warning", text=text, cure=cure)
    return Finding(check=check, level="ok", text=text if hard or soft else f"{name} pubsub has no limit")


async def _clients(link: RedisLink) -> Finding:
    check = "redis_maxclients"
    most = int(await config_of(link, "maxclients") or 0)
    connected = int(info_fields(await link.ask(b"INFO", b"clients")).get("connected_clients", 0))
    text = f"{connected:,} of {most:,} clients are connected"
    if not most:
        return Finding(check=check, level="skipped", text="maxclients could not be read")
    if connected >= _MOST_CLIENTS_SHARE * most:
        cure = "redis-cli CONFIG SET maxclients: a worker takes two connections, and twice as many in a restart"
        return Finding(check=check, level="warning", text=text, cure=cure)
    return Finding(check=check, level="ok", text=text)


async def compare_subscribers(
    link: RedisLink, prefix: str, channel: str, expected: int, *, command: bytes = b"NUMSUB"
) -> Finding:
    """Compare how many have subscribed to a channel with how many should have.

    Raises:
        hiredis.ReplyError: An ACL denies it.
    """
    reply: Any = await link.ask(b"PUBSUB", command, (prefix + channel).encode())
    found = int(reply[1])
    level: Level = "ok"
    text, cure = f"{found} of {expected} workers have subscribed to {channel}", ""
    if found < expected:
        level, cure = "error", "the link of a worker has lost its subscriptions: restart the one that receives nothing"
    elif found > expected:
        level, text = "warning", f"{found} processes have subscribed to {channel}, and {expected} workers answer"
        cure = "a worker does not answer, or another program has subscribed: redis-cli CLIENT LIST TYPE pubsub"
    return Finding(check="redis_subscribers", level=level, text=text, cure=cure)


async def other_prefixes(link: RedisLink, prefix: str, channel: str) -> list[str]:
    """Return the other prefixes with which a reserved channel has subscribers.

    Raises:
        hiredis.ReplyError: An ACL denies it.
    """
    found: Any = await link.ask(b"PUBSUB", b"CHANNELS", b"*" + channel.encode())
    return sorted({name.decode(errors="replace").removesuffix(channel) for name in found} - {prefix})


async def _other_prefixes(link: RedisLink, prefix: str) -> list[Finding]:
    """Return which other prefixes have workers: one of ours can have another one by mistake."""
    others = await other_prefixes(link, prefix, _CONTROL)
    if not others:
        return []
    names = ", ".join(repr(other) for other in others[:5])
    text = f"workers with other prefixes are on this server: {names}; this URL has {prefix!r}"
    cure = "where they should be one deployment, give all the same ?prefix=; else ignore it"
    return [Finding(check="redis_prefixes", level="warning", text=text, cure=cure)]


async def config_of(link: RedisLink, name: str) -> str:
    """Return a value of the server's configuration, empty where it has none.

    Raises:
        hiredis.ReplyError: An ACL denies it.
    """
    reply: list[bytes] | dict[bytes, bytes] = await link.ask(b"CONFIG", b"GET", name.encode())
    pairs = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=False))  # RESP3 has maps
    return pairs.get(name.encode(), b"").decode()
