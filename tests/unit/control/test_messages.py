"""`backplane.control.messages`: what is sent, and what anything else that is received is taken for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from backplane import InvalidDataError
from backplane.cluster.topics import inbox_of
from backplane.control.messages import Answer, Command, Selector, parse_answer, parse_command

WORKER = "0123456789abcdef"
INBOX = inbox_of(WORKER)


def command(**changed: Any) -> str:
    """Return the text of a command with some parts changed."""
    parts: dict[str, Any] = {
        "name": "command",
        "id": "1",
        "kind": "disconnect",
        "selector": {"user": "u"},
        "arguments": {},
        "reply_to": None,
        "issued_at": 1.0,
    }
    return json.dumps(list((parts | changed).values()))


def test_a_command_is_parsed_as_it_was_sent() -> None:
    """All parts come back; two commands have different ids."""
    selector = Selector(user="ä", connection="1", channel="c", worker="w", exclude="2", opened_before=1.5)
    sent = Command(kind="disconnect", selector=selector, arguments={"code": 4503, "reason": "é"}, reply_to=INBOX)
    assert parse_command(sent.encode()) == sent
    assert Command(kind="x").id != Command(kind="x").id
    assert Selector(user="u").as_json() == {"user": "u"}


def test_further_elements_are_ignored() -> None:
    """A later version may add elements."""
    assert parse_command(command(more=[1, 2])) is not None
    assert parse_answer(json.dumps(["answer", "1", WORKER, True, 5, "more"])) is not None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("hello", id="no JSON"),
        pytest.param("null", id="null"),
        pytest.param("{}", id="object"),
        pytest.param("[]", id="nothing"),
        pytest.param('["command"]', id="short"),
        pytest.param("[" * 100_000, id="nested, open"),
        pytest.param("[" * 100_000 + "]" * 100_000, id="nested"),
        pytest.param("1" * 100_000, id="a long number"),
        pytest.param(command(issued_at=0)[:-2] + "NaN]", id="NaN"),
        pytest.param(command(issued_at=0)[:-2] + "Infinity]", id="infinity"),
        pytest.param(command(name="cmd"), id="another message"),
        pytest.param(command(id=1), id="a number as id"),
        pytest.param(command(id=""), id="an empty id"),
        pytest.param(command(id="x" * 65), id="a long id"),
        pytest.param(command(kind=None), id="no kind"),
        pytest.param(command(selector=[]), id="a list as selector"),
        pytest.param(command(selector={"user": 1}), id="a number as user"),
        pytest.param(command(selector={"user": None}), id="null as user"),
        pytest.param(command(selector={"user": "u", "role": "x"}), id="an unknown selector"),
        pytest.param(command(selector={"__class__": "x"}), id="an attribute"),
        pytest.param(command(selector={"user": "u", "opened_before": True}), id="a bool as moment"),
        pytest.param(command(selector={"user": "u", "opened_before": "1"}), id="a text as moment"),
        pytest.param(command(arguments=None), id="no arguments"),
        pytest.param(command(reply_to="chat"), id="an answer to a channel"),
        pytest.param(command(reply_to="$backplane/control"), id="an answer as a command"),
        pytest.param(command(reply_to=7), id="an answer to a number"),
        pytest.param(command(issued_at=True), id="a bool as time"),
        pytest.param(command(issued_at="1"), id="a text as time"),
        pytest.param(command(issued_at=None), id="no time"),
    ],
)
def test_what_is_no_command(text: str) -> None:
    """Each of these is none, without an error."""
    assert parse_command(text) is None


@pytest.mark.parametrize(
    "parts",
    [
        ["answer", "1", WORKER, 1, 5],
        ["answer", "1", WORKER, None, 5],
        ["answer", 1, WORKER, True, 5],
        ["answer", "", WORKER, True, 5],
        ["answer", "x" * 65, WORKER, True, 5],
        ["answer", "1", "someone", True, 5],
        ["answer", "1", "x" * 10_000, True, 5],
        ["answer", "1", WORKER, True],
        ["command", "1", WORKER, True, 5],
        {"answer": 1},
    ],
)
def test_what_is_no_answer(parts: object) -> None:
    """Each of these is none, without an error."""
    assert parse_answer(json.dumps(parts)) is None


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "9" * 5_000])
def test_answers_of_numbers_that_are_none(value: str) -> None:
    """JSON has none of these: an application could not pass them on."""
    assert parse_answer(f'["answer","1","{WORKER}",true,{{"load":{value}}}]') is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(INBOX),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(st.lists(JSON, max_size=8))
def test_anything_is_parsed_without_an_error(parts: list[Any]) -> None:
    """Whatever JSON is received, it is a command or an answer, or none."""
    for name in ("command", "answer"):
        text = json.dumps([name, *parts])
        parsed = parse_command(text), parse_answer(text)
        assert None in parsed


class Load(BaseModel):
    """An answer of an application."""

    sockets: int


@dataclass
class Place:
    """Another one."""

    name: str


@pytest.mark.parametrize(
    ("value", "received"),
    [
        (Load(sockets=3), {"sockets": 3}),
        ([Place("é")], [{"name": "é"}]),
        ({1: float("nan")}, {"1": None}),
        ("𝄞\u0000", "𝄞\u0000"),
        (None, None),
        (True, True),
    ],
)
def test_answers_are_what_publish_takes(value: object, received: object) -> None:
    """Models and dataclasses are serialized as in `publish`."""
    answer = parse_answer(Answer(id="1", worker=WORKER, succeeded=True, value=value).encode())
    assert answer == Answer(id="1", worker=WORKER, succeeded=True, value=received)


def circle() -> list[Any]:
    """Return a list that holds itself."""
    endless: list[Any] = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize("value", [object(), b"\xff", "\ud800", circle(), {object(): 1}])
def test_what_is_no_json(value: object) -> None:
    """It raises this package's error, at the sender."""
    with pytest.raises(InvalidDataError, match="must be JSON"):
        Answer(id="1", worker=WORKER, succeeded=True, value=value).encode()
    with pytest.raises(InvalidDataError, match="must be JSON"):
        Command(kind="survey", arguments={"question": value}).encode()
