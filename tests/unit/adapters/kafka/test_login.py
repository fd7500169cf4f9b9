"""The credentials of a connection."""

# pyright: reportPrivateUsage=false, reportMissingTypeStubs=false

from __future__ import annotations

import re

from backplane.adapters.kafka.login import Security, Token


def test_no_secret_is_shown() -> None:
    """The repr of the credentials has no password and no token."""
    security = Security(
        ssl_context=None, mechanism="PLAIN", username="alice", password="hunter2", token=Token("eyJhbGciOi")
    )
    assert "alice" in repr(security)
    assert not {"hunter2", "eyJhbGciOi"} & set(re.findall(r"\w+", repr(security)))
