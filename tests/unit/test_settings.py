"""`backplane.settings`: defaults and validation."""

from dataclasses import FrozenInstanceError, asdict, fields
from typing import Any

import pytest

from backplane.errors import ConfigurationError
from backplane.settings import Settings

DEFAULTS = {
    "start_timeout_seconds": 4.0,
    "publish_timeout_seconds": 2.0,
    "subscribe_timeout_seconds": 5.0,
    "linger_seconds": 1.0,
    "probe_interval_seconds": 5.0,
    "max_backoff_seconds": 5.0,
    "max_outbox_bytes": 1_048_576,
    "max_outbox_messages": 1_024,
}
NAMES = [field.name for field in fields(Settings)]
WHOLE = ["max_outbox_bytes", "max_outbox_messages"]


def test_defaults() -> None:
    """The defaults are the documented ones."""
    assert asdict(Settings()) == DEFAULTS


def test_every_default_is_documented() -> None:
    """Each setting is described with its default."""
    assert Settings.__doc__ is not None
    assert Settings.__doc__.count("Defaults to") == len(NAMES)
    assert [name for name in NAMES if f"{name}: " not in Settings.__doc__] == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("-inf"), float("nan")])
def test_out_of_range(name: str, value: float) -> None:
    """A value that is not more than 0 and finite is refused by its name."""
    options: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=f"^{name} must be "):
        Settings(**options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [True, "1", None, b"1", [1], 1j])
def test_ill_typed(name: str, value: object) -> None:
    """What is no number, a bool too, is refused by its name."""
    options: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=f"^{name} must be a (whole )?number, not "):
        Settings(**options)


@pytest.mark.parametrize("name", WHOLE)
def test_counts_are_whole(name: str) -> None:
    """A bound of bytes or messages is a whole number."""
    options: dict[str, Any] = {name: 1.5}
    with pytest.raises(ConfigurationError, match=rf"^{name} must be a whole number, not 1\.5$"):
        Settings(**options)


@pytest.mark.parametrize("name", NAMES)
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
