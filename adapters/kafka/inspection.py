"""What of a topic's configuration can keep messages from workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backplane.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backplane.adapters.kafka.answers import Topology

__all__ = ["INSPECTED_CONFIGS", "inspect_topic"]

INSPECTED_CONFIGS: Final = ("retention.ms", "cleanup.policy")
# A worker that was away for longer than the topic keeps messages has missed some.
_LEAST_RETENTION_MS: Final = 5 * 60 * 1000
_MOST_PARTITIONS: Final = 64


def inspect_topic(topic: str, topology: Topology, config: Mapping[str, str]) -> list[Finding]:
    """Return what was found; what the user may not read is skipped.

    Args:
        topic: Its name.
        topology: Its partitions and their leaders.
        config: Those of `INSPECTED_CONFIGS` that could be read.
    """
    return [_partitions(topic, topology), _retention(topic, config), _cleanup(topic, config)]


def _partitions(topic: str, topology: Topology) -> Finding:
    check, count = "kafka_partitions", len(topology.leaders)
    text = f"topic {topic!r} has {count} partition{'s' * (count != 1)}"
    if without := sorted(partition for partition, leader in topology.leaders.items() if leader < 0):
        cure = "publishes to their channels fail until a broker that has them is back"
        return Finding(check=check, level="error", text=f"{text}, of which {without} have no leader", cure=cure)
    if count > _MOST_PARTITIONS:
        cure = "each adds a cost to every request of every worker: 8 are enough for most"
        return Finding(check=check, level="warning", text=text, cure=cure)
    return Finding(check=check, level="ok", text=text)


def _retention(topic: str, config: Mapping[str, str]) -> Finding:
    check, value = "kafka_retention", config.get("retention.ms", "")
    if not value.lstrip("-").isdecimal():
        return Finding(check=check, level="skipped", text="retention.ms: the user lacks the right DESCRIBE_CONFIGS")
    if 0 <= int(value) < _LEAST_RETENTION_MS:
        text = f"topic {topic!r} keeps messages for {int(value) / 1000:g} s"
        cure = "set retention.ms to more than the longest outage: what is deleted before is a gap"
        return Finding(check=check, level="warning", text=text, cure=cure)
    kept = "for ever" if int(value) < 0 else f"for {int(value) / 60_000:g} min"
    return Finding(check=check, level="ok", text=f"topic {topic!r} keeps messages {kept}")


def _cleanup(topic: str, config: Mapping[str, str]) -> Finding:
    check, value = "kafka_cleanup", config.get("cleanup.policy")
    if value is None:
        return Finding(check=check, level="skipped", text="cleanup.policy: the user lacks the right DESCRIBE_CONFIGS")
    if "compact" in value:
        cure = "set cleanup.policy=delete: a worker that was away misses each message that a later one has replaced"
        return Finding(check=check, level="error", text=f"topic {topic!r} is compacted", cure=cure)
    return Finding(check=check, level="ok", text=f"cleanup.policy is {value}")
