"""`backplane.adapters.kafka.inspection`: what is found in a topic's configuration."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.adapters.kafka.inspection import inspect_topic


class Leaders:
    """The leaders of some partitions."""

    def __init__(self, leaders: dict[int, int]) -> None:
        self.leaders = leaders


WELL = {"retention.ms": "600000", "cleanup.policy": "delete"}


@pytest.mark.parametrize(
    ("leaders", "config", "levels"),
    [
        ({0: 1}, WELL, ["ok", "ok", "ok"]),
        ({0: 1, 1: -1}, WELL, ["error", "ok", "ok"]),
        (dict.fromkeys(range(65), 1), WELL, ["warning", "ok", "ok"]),
        ({0: 1}, WELL | {"retention.ms": "-1"}, ["ok", "ok", "ok"]),
        ({0: 1}, WELL | {"retention.ms": "1000"}, ["ok", "warning", "ok"]),
        ({0: 1}, WELL | {"cleanup.policy": "compact,delete"}, ["ok", "ok", "error"]),
        ({0: 1}, {}, ["ok", "skipped", "skipped"]),
    ],
)
def test_findings(leaders: dict[int, int], config: dict[str, str], levels: list[str]) -> None:
    """Each fault is named with what to do; what may not be read is skipped."""
    topology: Any = Leaders(leaders)
    findings = inspect_topic("t", topology, config)
    assert [finding.level for finding in findings] == levels
    assert all(bool(finding.cure) == (finding.level in ("warning", "error")) for finding in findings)
