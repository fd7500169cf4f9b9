"""`backplane.worker.cluster_options`: which of the options of a `Backplane` make it a worker of a cluster."""

from __future__ import annotations

import pytest

from backplane.control.surveys import Surveys
from backplane.errors import ConfigurationError
from backplane.presence_types import Presence, PresenceRules
from backplane.worker.cluster_options import ClusterOptions

RULES = PresenceRules({"room:*": Presence()})
NONE = PresenceRules({})


def options(cluster: object, presence: PresenceRules = NONE) -> ClusterOptions:
    """Return checked options."""
    return ClusterOptions(presence=presence, cluster=cluster, secret=b"x" * 16, surveys=Surveys())


@pytest.mark.parametrize(
    ("cluster", "presence", "mode"),
    [
        (False, NONE, None),
        (True, NONE, "member"),
        (False, RULES, "member"),
        (True, RULES, "member"),
        ("observer", NONE, "observer"),
        ("observer", RULES, "observer"),
    ],
)
def test_mode(cluster: object, presence: PresenceRules, mode: str | None) -> None:
    """Presence implies the cluster, and an observer is none of its workers in any case."""
    given = options(cluster, presence)
    assert (given.mode, given.presence, given.secret) == (mode, presence, b"x" * 16)


@pytest.mark.parametrize("cluster", [1, 0, None, "member", "", [], 1.0])
def test_wrong(cluster: object) -> None:
    """Anything else raises an error that names the choices."""
    with pytest.raises(ConfigurationError, match="cluster must be True, False or 'observer'"):
        options(cluster)
