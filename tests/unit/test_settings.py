"""`backplane.settings`: defaults and validation."""

from dataclasses import FrozenInstanceError, asdict, fields
from typing import Any

import pytest

from backplane.errors import ConfigurationError
from backplane.settings import Settings

DEFAULTS = {
    "start": "strict",
    "start_timeout_seconds": 4.0,
    "outage": "raise",
    "max_buffer_bytes": 1_048_576,
    "max_buffer_messages": 1_024,
    "publish_timeout_seconds": 2.0,
    "subscribe_timeout_seconds": 5.0,
    "authorize_timeout_seconds": 5.0,
    "refuse_after_accept": False,
    "path_test": True,
    "linger_seconds": 1.0,
    "probe_interval_seconds": 5.0,
    "max_backoff_seconds": 5.0,
    "drain_seconds": 5.0,
    "handler_grace_seconds": 10.0,
    "log_names": True,
    "max_connections": None,
    "worker_heartbeat_seconds": 3.0,
    "worker_down_seconds": 10.0,
    "max_recall_messages": 1_000,
    "max_recall_bytes": 4_194_304,
    "recall_timeout_seconds": 2.0,
    "repair_timeout_seconds": 10.0,
    "max_held_messages": 10_000,
    "max_ring_bytes": 33_554_432,
}
CHOICES = ["start", "outage"]
SWITCHES = ["refuse_after_accept", "path_test", "log_names"]
NUMBERS = [field.name for field in fields(Settings) if field.name not in [*CHOICES, *SWITCHES]]
OPTIONAL = ["max_connections"]
WHOLE = [
    *OPTIONAL,
    "max_buffer_bytes",
    "max_buffer_messages",
    "max_recall_messages",
    "max_recall_bytes",
    "max_held_messages",
    "max_ring_bytes",
]


def test_defaults() -> None:
    """The defaults are the documented ones."""
    assert asdict(Settings()) == DEFAULTS


def test_every_default_is_documented() -> None:
    """Each setting is described with its default."""
    assert Settings.__doc__ is not None
    assert Settings.__doc__.count("Defaults to") == len(DEFAULTS)
    assert [name for name in DEFAULTS if f"{name}: " not in Settings.__doc__] == []


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("-inf"), float("nan")])
def test_out_of_range(name: str, value: float) -> None:
    """A value that is not more than 0 and finite is refused by its name."""
    options: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=f"^{name} must be "):
        Settings(**options)


def test_no_limit() -> None:
    """`None` is no limit, where there may be none."""
    assert Settings(max_connections=None) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in NUMBERS
        for value in (True, "1", None, b"1", [1], 1j)
        if value is not None or name not in OPTIONAL
    ],
)
def test_ill_typed(name: str, value: object) -> None:
    """What is no number, a bool too, is refused by its name."""
    options: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=f"^{name} must be a (whole|finite) number more than 0, not "):
        Settings(**options)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("value", ["", "Lazy", None, 1, True])
def test_unknown_choice(name: str, value: object) -> None:
    """A choice that is not known is refused with those that are."""
    options: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=f"^{name} must be one of (strict, lazy|raise, buffer), not "):
        Settings(**options)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", [1, 0, None, "yes"])
def test_switch(name: str, value: object) -> None:
    """What is neither yes nor no is refused."""
    options: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=rf"^{name} must be one of False, True, not "):
        Settings(**options)
    given: dict[str, Any] = {name: not DEFAULTS[name]}
    assert getattr(Settings(**given), name) is not DEFAULTS[name]


@pytest.mark.parametrize("name", WHOLE)
def test_counts_are_whole(name: str) -> None:
    """A bound of bytes or messages is a whole number."""
    options: dict[str, Any] = {name: 1.5}
    with pytest.raises(ConfigurationError, match=rf"^{name} must be a whole number more than 0, not 1\.5$"):
        Settings(**options)


@pytest.mark.parametrize("name", NUMBERS)
def test_whole_numbers_are_numbers(name: str) -> None:
    """A duration may be written without a decimal point."""
    options: dict[str, Any] = {name: 3}
    assert getattr(Settings(**options), name) == 3


def test_frozen_and_keyword_only() -> None:
    """Settings cannot change under a running backplane, and are always named."""
    settings: Any = Settings()
    with pytest.raises(FrozenInstanceError):
        settings.linger_seconds = 2.0
    settings_class: Any = Settings
    with pytest.raises(TypeError, match="positional argument"):
        settings_class(1.0)
