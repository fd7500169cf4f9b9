"""`backplane.connection.limits`: the defaults, and what is refused."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from backplane.connection.limits import Limits
from backplane.errors import ConfigurationError

NUMBERS = [option.name for option in fields(Limits) if option.name != "heartbeat_message"]
WHOLE = ["max_message_bytes", "max_burst", "max_channels", "max_running_commands", "max_connections_per_client"]


def test_defaults() -> None:
    """The defaults keep a client alive, bound what it sends and joins, and close no client for silence or age."""
    assert Limits() == Limits(
        heartbeat_seconds=30.0,
        heartbeat_message=None,
        idle_timeout_seconds=None,
        max_age_seconds=None,
        max_message_bytes=64 * 1024,
        max_messages_per_second=None,
        max_burst=None,
        max_channels=1000,
        max_running_commands=32,
        max_connections_per_client=None,
    )


@pytest.mark.parametrize("name", NUMBERS)
def test_none_switches_off(name: str) -> None:
    """Every limit can be switched off."""
    options: dict[str, Any] = {name: None}
    assert getattr(Limits(**options), name) is None


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -1, -0.5, float("nan"), float("inf"), "1", True, False, b"1"], ids=repr)
def test_what_is_no_limit(name: str, value: object) -> None:
    """What is no number, or not more than 0, or not finite, is refused with its name and value."""
    options: dict[str, Any] = {name: value}
    with pytest.raises(
        ConfigurationError, match=rf"^{name} must be a (whole|finite) number more than 0, or None, not "
    ):
        Limits(**options)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [0.5, 1.0, 2.5])
def test_counts_are_whole(name: str, value: float) -> None:
    """Half a message would let none through at all: a count is a whole number."""
    options: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=rf"^{name} must be a whole number more than 0, or None, not {value}$"):
        Limits(**options)


@pytest.mark.parametrize("message", ["ping", b"", "", {"type": "ping"}, 0, float("nan")], ids=repr)
def test_heartbeat_message_is_no_number(message: object) -> None:
    """A heartbeat may be anything that can be sent, a number too."""
    assert Limits(heartbeat_message=message).heartbeat_message is message


@pytest.mark.parametrize("message", [object(), {"type": object()}, "\ud800"], ids=["object", "inside", "surrogate"])
def test_heartbeat_message_that_cannot_be_sent(message: object) -> None:
    """What no client could be sent is refused by its name, before a heartbeat is due."""
    with pytest.raises(ConfigurationError, match=r"^heartbeat_message cannot be sent: "):
        Limits(heartbeat_message=message)


def test_immutable() -> None:
    """Limits are shared by many connections, and cannot be changed under them."""
    limits: Any = Limits()
    with pytest.raises(FrozenInstanceError):
        limits.max_channels = 1
