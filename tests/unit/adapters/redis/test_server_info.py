"""`backplane.adapters.redis.server_info`: what the replies to ROLE and INFO contain."""

from __future__ import annotations

import pytest

from backplane.adapters.redis.server_info import primary_of

ROLES: list[tuple[object, str]] = [
    ([b"slave", b"10.0.0.1", 6379, b"connected", 5], "10.0.0.1:6379"),
    ([b"slave", b"::1", 6379, b"connect", -1], "[::1]:6379"),
    ([b"master", 0, []], ""),
    (b"PONG", ""),
    (None, ""),
    (5, ""),
]


@pytest.mark.parametrize(("role", "primary"), ROLES)
def test_only_a_replica_names_a_primary(role: object, primary: str) -> None:
    """The reply of a replica to ROLE holds the address of its primary; no other reply holds one."""
    assert primary_of(role) == primary
