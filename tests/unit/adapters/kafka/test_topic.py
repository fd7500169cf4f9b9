"""Which topics can be used, and what their configuration limits."""

from __future__ import annotations

import pytest

from backplane.adapters.kafka.answers import Topology
from backplane.adapters.kafka.target import Target
from backplane.adapters.kafka.topic import TopicLimits, check_topic, read_limits
from backplane.errors import BrokerError


def topology(*, error: int = 0, leaders: dict[int, int] | None = None) -> Topology:
    """Return the topology of a topic at the brokers 1 and 2."""
    addresses = {1: ("a", 9092), 2: ("b", 9092)}
    leaders = {0: 1, 1: 2} if leaders is None else leaders
    return Topology(addresses=addresses, leaders=leaders, controller=1, error=error, cluster=None)


def target(*, partitions: int | None = 8) -> Target:
    """Return a target that may create its topic, or not."""
    return Target(
        url="kafka://a",
        servers=[("a", 9092)],
        topic="rooms",
        partitions=partitions,
        replicas=-1,
        connect_timeout_seconds=1,
        request_timeout_seconds=1,
    )


def test_a_topic_with_a_leader_for_each_partition_can_be_used() -> None:
    """The topology of a usable topic is returned unchanged."""
    usable = topology()
    assert check_topic(usable, target()) is usable


@pytest.mark.parametrize(("code", "problem", "retriable"), [
    (3, "does not exist: create it", False),
    (5, "LeaderNotAvailable", True),
    (17, "no legal name", False),
    (29, "grant DESCRIBE, READ and WRITE", False),
    (9999, "9999", True),
])  # fmt: skip
def test_an_error_of_the_topic_is_raised_with_its_remedy(code: int, problem: str, *, retriable: bool) -> None:
    """An error that can pass is retriable; one that a person has to correct is not."""
    with pytest.raises(BrokerError, match=problem) as raised:
        check_topic(topology(error=code), target())
    assert raised.value.retriable is retriable


def test_the_option_that_would_create_a_missing_topic_is_named() -> None:
    """Where the topic may not be created, the error names the option."""
    with pytest.raises(BrokerError, match="set create_topic=true"):
        check_topic(topology(error=3), target(partitions=None))


@pytest.mark.parametrize("leaders", [{}, {0: 1, 1: -1}, {0: 1, 1: 3}])
def test_a_topic_without_a_leader_for_each_partition_is_waited_for(leaders: dict[int, int]) -> None:
    """No partitions, no leader, and a leader without an address are retriable errors."""
    with pytest.raises(BrokerError, match="partitions") as raised:
        check_topic(topology(leaders=leaders), target())
    assert raised.value.retriable


def test_the_limits_of_a_topic_are_read_from_its_configuration() -> None:
    """The largest payload is 400 bytes below `max.message.bytes`."""
    config = {"max.message.bytes": "1048588", "cleanup.policy": "compact,delete", "compression.type": "producer"}
    assert read_limits(config) == TopicLimits(max_payload_bytes=1_048_188, is_compacted=True)


def test_a_configuration_that_the_user_may_not_read_limits_nothing() -> None:
    """Without the right DESCRIBE_CONFIGS there are no limits, and no warning."""
    assert read_limits({}) == TopicLimits()
