"""`backplane.adapters.nats.inspection`: what is found in a server's announcements."""

from __future__ import annotations

import pytest

from backplane.adapters.nats.inspection import inspect_server
from backplane.adapters.nats.server_info import ServerInfo


@pytest.mark.parametrize(
    ("info", "levels"),
    [
        (ServerInfo(max_payload=1_000), ["warning", "ok"]),
        (ServerInfo(max_payload=2_000), ["ok", "ok"]),
        (ServerInfo(max_payload=0), ["ok", "ok"]),
        (ServerInfo(max_payload=2_000, ldm=True), ["ok", "warning"]),
    ],
)
def test_findings(info: ServerInfo, levels: list[str]) -> None:
    """A limit below that of the options, and a server that is about to end, are named with what to do."""
    findings = inspect_server(info, 2_000)
    assert [finding.level for finding in findings] == levels
    assert all(bool(finding.cure) == (finding.level != "ok") for finding in findings)
