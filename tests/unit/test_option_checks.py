"""`backplane.option_checks`: a wrong option is refused with the one that was meant."""

from __future__ import annotations

import inspect
from dataclasses import fields, make_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from backplane import ConfigurationError, Limits, Settings
from backplane.option_checks import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Settings, "Settings has no option 'max_outbox_byte' (did you mean 'max_outbox_bytes'?); known are start, "),
        (Limits, "Limits has no option 'max_outbox_byte'; known are heartbeat_seconds, heartbeat_message, "),
        (partial(replace, Settings()), "Settings has no option 'max_outbox_byte' (did you mean "),
    ],
    ids=["Settings", "Limits", "replace"],
)
def test_unknown_option(make: Callable[..., Any], words: str) -> None:
    """An unknown option is refused like one of a URL: with the one that was probably meant, and all that are known."""
    with pytest.raises(ConfigurationError) as refused:
        make(max_outbox_byte=1)
    assert str(refused.value).startswith(words)


def test_option_of_another_class() -> None:
    """What belongs to the other class is sent there."""
    with pytest.raises(ConfigurationError, match=r"^Settings has no option 'max_channels' \(Limits has\); known are"):
        Settings(max_channels=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def test_signature() -> None:
    """Editors and `help` still see the options."""
    assert "linger_seconds" in inspect.signature(Settings).parameters


def test_no_guess() -> None:
    """Nothing is guessed where nothing is close."""
    assert did_you_mean("xyz", ["redis"]) == ""


@pytest.mark.parametrize("base", [Settings, Limits])
def test_subclass_with_an_option_of_its_own(base: type) -> None:
    """A subclass of the application may add an option of any type, and checks it itself."""
    subclass = make_dataclass("Own", [("region", str, "eu")], bases=(base,), frozen=True, kw_only=True)
    assert subclass(region="us").region == "us"
    with pytest.raises(ConfigurationError, match=r"max_\w+ must be a (whole|finite) number"):
        subclass(**{next(option.name for option in fields(base) if option.name.startswith("max_")): "us"})
