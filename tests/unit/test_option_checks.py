"""`backplane.option_checks`: a wrong option is refused with the one that was probably meant."""

from __future__ import annotations

import inspect
from dataclasses import fields, make_dataclass, replace
from functools import partial
from math import inf, nan
from typing import TYPE_CHECKING, Any

import pytest

from backplane import Backlog, ConfigurationError, Limits, Settings
from backplane.option_checks import did_you_mean, is_number

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Settings, "Settings has no option 'max_buffer_byte' (did you mean 'max_buffer_bytes'?); known are start, "),
        (
            Limits,
            "Limits has no option 'max_buffer_byte' (did you mean 'max_burst'?); known are heartbeat_seconds, ",
        ),
        (
            Backlog,
            "Backlog has no option 'max_buffer_byte' (did you mean 'max_bytes'?); known are when_full, latest_by, ",
        ),
        (partial(replace, Settings()), "Settings has no option 'max_buffer_byte' (did you mean "),
    ],
    ids=["Settings", "Limits", "Backlog", "replace"],
)
def test_unknown_option(make: Callable[..., Any], words: str) -> None:
    """An unknown option is refused with the one that was probably meant, and all known ones."""
    with pytest.raises(ConfigurationError) as refused:
        make(max_buffer_byte=1)
    assert str(refused.value).startswith(words)


def test_option_of_another_class() -> None:
    """The error for an option of another class names that class."""
    with pytest.raises(ConfigurationError, match=r"^Settings has no option 'max_channels' \(Limits has\); known are"):
        Settings(max_channels=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def test_signature() -> None:
    """The decorated class has its original signature."""
    assert "linger_seconds" in inspect.signature(Settings).parameters


def test_no_guess() -> None:
    """No hint is given where no known word is similar."""
    assert did_you_mean("xyz", ["redis"]) == ""


@pytest.mark.parametrize("base", [Settings, Limits, Backlog])
def test_subclass_with_an_option_of_its_own(base: type) -> None:
    """A subclass may add an option of any type, which is not checked here."""
    subclass = make_dataclass("Own", [("region", str, "eu")], bases=(base,), frozen=True, kw_only=True)
    assert subclass(region="us").region == "us"
    with pytest.raises(ConfigurationError, match=r"max_\w+ must be a (whole|finite) number"):
        subclass(**{next(option.name for option in fields(base) if option.name.startswith("max_")): "us"})


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, True), (-1.5, True), (inf, True), (nan, False), (True, False), ("1", False), (None, False)],
    ids=repr,
)
def test_is_number(value: object, expected: bool) -> None:
    """An `int` or a `float` is a number, infinity too; a `bool`, NaN and any other value are not."""
    assert is_number(value) is expected
