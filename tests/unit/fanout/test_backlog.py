"""`backplane.fanout.backlog`: the defaults, and what is refused; `test_outbox.py` has what each policy does."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any, get_args

import pytest

from backplane.errors import ConfigurationError
from backplane.fanout.backlog import Backlog, FullPolicy


def test_defaults() -> None:
    """By default a subscriber that exceeds one MiB or 1,024 messages is ended."""
    assert Backlog() == Backlog(when_full="close", latest_by=None, max_bytes=1024 * 1024, max_messages=1024)


def test_policies() -> None:
    """There are four policies."""
    assert get_args(FullPolicy) == ("close", "drop_oldest", "drop_newest", "latest")


def test_frozen_and_keyword_only() -> None:
    """A backlog is shared by many subscribers and cannot be changed; its options are always named."""
    backlog: Any = Backlog()
    with pytest.raises(FrozenInstanceError):
        backlog.max_bytes = 1
    backlog_class: Any = Backlog
    with pytest.raises(TypeError, match="positional argument"):
        backlog_class("close")


def test_every_default_is_documented() -> None:
    """Each option is described with its default."""
    assert Backlog.__doc__ is not None
    names = [option.name for option in fields(Backlog)]
    assert Backlog.__doc__.count("Defaults to") == len(names)
    assert [name for name in names if f"{name}: " not in Backlog.__doc__] == []


@pytest.mark.parametrize("policy", ["drop", "", None, 1], ids=repr)
def test_unknown_policy(policy: Any) -> None:
    """An unknown policy is refused with the known ones."""
    with pytest.raises(
        ConfigurationError, match=r"^when_full must be one of close, drop_oldest, drop_newest, latest, not "
    ):
        Backlog(when_full=policy)


@pytest.mark.parametrize("name", ["max_bytes", "max_messages"])
@pytest.mark.parametrize(
    "value",
    [0, -1, float("inf"), float("-inf"), float("nan"), 1.5, True, "1", None, b"1", [1], 1j],
    ids=repr,
)
def test_wrong_bound(name: str, value: object) -> None:
    """A bound that lets nothing through, or is not a whole number, is refused by its name: there is always one."""
    options: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=rf"^{name} must be a whole number more than 0, not "):
        Backlog(**options)


@pytest.mark.parametrize("when_full", ["close", "drop_oldest", "drop_newest"])
def test_key_without_latest(when_full: FullPolicy) -> None:
    """A key is refused with a policy that does not ask for it."""
    with pytest.raises(ConfigurationError, match=r"^latest_by needs when_full='latest'$"):
        Backlog(when_full=when_full, latest_by=str)


@pytest.mark.parametrize("key", ["symbol", 0, b""], ids=repr)
def test_key_that_is_no_function(key: Any) -> None:
    """A key that cannot be called is refused at once, before each message that waits fails by it."""
    with pytest.raises(ConfigurationError, match=r"^latest_by must be a function, not "):
        Backlog(when_full="latest", latest_by=key)
