"""`backplane.presence_types`: presence as the application has it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.errors import ConfigurationError, InvalidDataError, TooManyPresentError
from backplane.presence_types import (
    Presence,
    PresenceRules,
    PresenceView,
    PresentUser,
    Who,
    check_user,
    decode_info,
    encode_info,
)


def test_rule() -> None:
    """The defaults are the documented ones, and 0 is allowed for both."""
    assert (Presence().grace_seconds, Presence().max_entries) == (5.0, 1_000)
    assert Presence(grace_seconds=0, max_entries=0) == Presence(grace_seconds=0.0, max_entries=0)
    rules = PresenceRules({"room:*": Presence(max_entries=1)})
    assert [rules.rule_of(channel) for channel in ("room:1", "a")] == [Presence(max_entries=1), None]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grace_seconds": -1}, "grace_seconds must be a finite number more than 0"),
        ({"grace_seconds": float("inf")}, "grace_seconds must be a finite number more than 0"),
        ({"grace_seconds": "5"}, "grace_seconds must be a finite number more than 0"),
        ({"max_entries": 1.5}, "max_entries must be a whole number more than 0"),
        ({"max_entries": -1}, "max_entries must be a whole number more than 0"),
        ({"grace_second": 5}, "did you mean 'grace_seconds'"),
    ],
)
def test_wrong_rule(options: dict[str, Any], words: str) -> None:
    """A wrong option raises an error that names it."""
    with pytest.raises(ConfigurationError, match=words):
        Presence(**options)


def test_wrong_rules() -> None:
    """A rule that is none is named with its option."""
    rules: Any = {"a": 5}
    with pytest.raises(ConfigurationError, match="presence: the rule of 'a' must be a Presence"):
        PresenceRules(rules)


@pytest.mark.parametrize("user", ["u", "é" * 64, "x" * 128, "__proto__", "\n", " "])
def test_users(user: str) -> None:
    """A user is a text of up to 128 bytes."""
    check_user(user)
    assert Who(user=user).user == user


@pytest.mark.parametrize("user", ["", "é" * 65, "x" * 129, "\ud800", None, 7, b"u"])
def test_wrong_users(user: Any) -> None:
    """Anything else is refused."""
    with pytest.raises(InvalidDataError, match="a user is a text of 1 to 128 bytes in UTF-8"):
        Who(user=user)


@pytest.mark.parametrize("info", [None, 0, "é", {"a": [1, True, None]}, "x" * 254, [], {"__proto__": 1}, "\\ud800"])
def test_info(info: Any) -> None:
    """Anything JSON comes back as it was."""
    assert decode_info(encode_info(info)) == info
    assert Who(user="u", info=info).info == info


@pytest.mark.parametrize("info", ["x" * 255, "é" * 128, object(), float("nan"), float("inf"), "\ud800", b"x", {1, 2}])
def test_wrong_info(info: Any) -> None:
    """What is not JSON, is larger than 256 bytes, or cannot be sent, is refused."""
    with pytest.raises(InvalidDataError, match="the info of a presence"):
        Who(user="u", info=info)


def test_info_in_itself() -> None:
    """A circle is refused."""
    info: list[Any] = []
    info.append(info)
    with pytest.raises(InvalidDataError, match="the info of a presence must be JSON"):
        encode_info(info)


@pytest.mark.parametrize("text", ["", "{", "NaN", "[-Infinity]", '"\\ud800"', '{"\\udfff":1}', "[" * 100_000, "1 2"])
def test_info_of_others(text: str) -> None:
    """What another program sends, and is no JSON or could be sent to no client, is `None`."""
    assert decode_info(text) is None


@pytest.mark.parametrize("text", ['"\\u00e9"', '"\\ud83d\\ude00"', "[1]", '"\\\\ud800"'])
def test_info_of_other_writers(text: str) -> None:
    """Escapes of what can be sent are read."""
    assert decode_info(text) == json.loads(text)


def test_view() -> None:
    """It has the users by name, or raises with their number where they are not known."""
    ada = PresentUser(user="ada")
    assert PresenceView(connections=1, stale=False, _users={"ada": ada}).users == {"ada": ada}
    with pytest.raises(TooManyPresentError) as caught:
        _ = PresenceView(connections=7, stale=False, counts_only=True).users
    assert caught.value.connections == 7
