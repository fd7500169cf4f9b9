"""`backplane.presence.wire`: every message survives its text, and no text raises."""

# pyright: reportPrivateUsage=false, reportUnknownArgumentType=false, reportUnknownLambdaType=false

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from backplane.presence.wire import (
    MAX_TEXT,
    Beacon,
    Delta,
    Fact,
    Goodbye,
    Heartbeat,
    Refused,
    Request,
    Snapshot,
    State,
    decode,
    encode,
)
from tests.unit.presence.kit import A, B, entry

if TYPE_CHECKING:
    from backplane.presence.wire import Message

ENTRIES = {"k": entry("k", "ü", '{"a":1}', 1.5)}
MESSAGES: list[Message] = [
    Heartbeat(A, 1, {"host": "h", "package": "1", "pid": 1, "started": 1.5, "connections": 0}),
    Goodbye(A, 2),
    Delta(A, 0, 1, ENTRIES, ["g"], Request(A, {B: 3}, True, 1, 7), 1),
    Delta(A, 1, 2, {}, [], None, 0),
    Snapshot(A, 1, ENTRIES),
    Snapshot(A, 1, 7),
    Beacon(A, 3, 1),
    Request(A, {B: 3}, False, 0, 7),
    State(A, "c", {B: Fact(1, ENTRIES, 0.5, 1.0), A: Fact(2, 3, 0.0, 0.0)}, True, 7),
    State(A, "c", {B: Fact(1, None, 0.0, 0.0)}, False, 7),
]
BIG = 10**100


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_survives_its_text(message: Message) -> None:
    """What is decoded equals what was encoded."""
    assert decode(encode(message)) == message


@pytest.mark.parametrize("message", MESSAGES)
def test_extra_fields_are_ignored(message: Message) -> None:
    """A later version may add fields."""
    assert decode(json.dumps([*json.loads(encode(message)), "more"])) == message


def test_an_unknown_kind_is_not_invalid() -> None:
    """A later version may add kinds."""
    assert decode('["later",1]') is Refused.UNKNOWN


DELTA: list[Any] = ["delta", A, 1, 2, {"k": ["u", "{}", 1]}, ["g"], [{B: 1}, False, 1], 1]


def with_field(index: int, value: object) -> str:
    """Return the text of a delta with another field."""
    return json.dumps([*DELTA[:index], value, *DELTA[index + 1 :]])


def each(index: int, *values: object) -> list[str]:
    """Return the texts of a delta with each of these values in place of a field."""
    return [with_field(index, value) for value in values]


HOSTILE: list[str] = [
    "",
    "null",
    "{}",
    "[]",
    "[1]",
    "[[]]",
    '["delta"]',
    "[" * 100_000,
    f'["beacon","{A}",{"9" * 5_000},1]',
    f'["beacon","{A}",NaN,1]',
    f'["beacon","{A}",Infinity,1]',
    *each(1, 1, None, "", "a" * 15, "ä" * 16, "-" * 16, [A]),
    *each(2, 1.0, True, "1", -1, BIG, None, [], 2, 3),
    *each(3, 0, 2.0, False, BIG),
    *each(4, 1, None, [], {"k": 1}, {"k": []}, {"": ["u", "", 1]}, {"k" * 65: ["u", "", 1]}),
    *each(4, {"k": [1, "", 1]}, {"k": ["u", {}, 1]}, {"k": ["u", "", "1"]}, {"k": ["u", "", True]}),
    *(with_field(4, {"k": ["u", "", value]}) for value in (-1, 1e13, BIG, None)),
    *(with_field(4, {"k": [value, "", 1]}) for value in ("u" * 129, "ü" * 65, "\ud800", None)),
    with_field(4, {"k": ["u", "i" * 257, 1]}),
    with_field(4, {"ü": ["u", "", 1]}),
    *each(5, None, {}, [1], [""], "g"),
    *each(6, 1, [], [{}, 1, 1], [[], True, 1], [{B: -1}, True, 1], [{"x": 1}, True, 1]),
    *each(7, None, 1.5, -1),
    json.dumps(["snap", A, 1, []]),
    json.dumps(["view", A, "c" * 256, {}, True, 1]),
    json.dumps(["view", A, "c", {B: [0, {}, 0, 0]}, True, 1]),
    json.dumps(["view", A, "c", {B: [1, {}]}, True, 1]),
    json.dumps(["beat", A, 1, []]),
    " " * (MAX_TEXT + 1),
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_message_is_refused(text: str) -> None:
    """Nothing is raised."""
    assert decode(text) is Refused.INVALID


def test_a_heartbeat_keeps_what_is_well_formed() -> None:
    """What a worker states of itself is for people: the rest is left out."""
    info = {"host": "h" * 256, "package": 1, "pid": True, "started": "x", "connections": 3, "more": BIG}
    assert decode(json.dumps(["beat", A, 1, info])) == Heartbeat(A, 1, {"connections": 3})


def test_entries_without_an_info_share_one_text() -> None:
    """Most entries may have none: each would hold a text of its own."""
    texts = [json.dumps(["delta", A, 0, 1, {"k": ["u", "null", 1.5]}, [], None, 1]) for _ in range(2)]
    infos = [found.changed["k"].info for text in texts if isinstance(found := decode(text), Delta)]
    assert infos == ["null", "null"]
    assert infos[0] is infos[1]


@pytest.mark.parametrize("text", [f' ["bye","{A}",1]', f'["bye","{A}",1]\n', f'\t["bye","{A}",1] '])
def test_whitespace_around_a_message_is_none_of_it(text: str) -> None:
    """It is JSON all the same; more text is not."""
    assert decode(text) == Goodbye(A, 1)
    assert decode(f"{text}1") is Refused.INVALID


def test_random_damage_raises_nothing() -> None:
    """A text that is cut, or has other characters, is a message or refused."""
    random = Random(5)
    for _ in range(3_000):
        text = list(encode(random.choice(MESSAGES)))
        for _ in range(random.randint(1, 4)):
            text[random.randrange(len(text))] = random.choice('[]{}",:0-9eE.x\\u')
        decode("".join(text[: random.randint(0, len(text))]) if random.random() < 0.3 else "".join(text))
