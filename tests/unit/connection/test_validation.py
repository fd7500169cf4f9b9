"""`backplane.connection.validation`: foreign JSON is checked in bounded time, and answered in few words."""

from __future__ import annotations

import json
import pickle
import time
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Tag, TypeAdapter
from typing_extensions import TypeAliasType

from backplane.connection.validation import parse, validator_for
from backplane.errors import ConfigurationError, InvalidMessageError

KIBIBYTE = 1024
# The default of `max_message_bytes`.
LARGEST = 64 * KIBIBYTE
# How long one message may occupy the event loop, in seconds of this thread's processor time.
# CPU time, of which a processor that is shared grants less: ten times the 50 ms that a message takes at most on an idle
# one. Without its bounds the validation takes seconds.
MAX_STALL_SECONDS = 0.5


class Order(BaseModel):
    """What most tests parse."""

    number: int
    total_cents: int = Field(default=0, alias="totalCents")


class Placed(BaseModel):
    """One of two events."""

    kind: Literal["placed"] = "placed"
    number: int


class Cancelled(BaseModel):
    """The other one."""

    kind: Literal["cancelled"] = "cancelled"
    reason: str


class A(BaseModel):
    """One of three members of a union."""

    a: int
    b: int
    c: int
    d: int


class B(BaseModel):
    """Another one."""

    e: int
    f: int
    g: int


class C(BaseModel):
    """The last one."""

    h: int
    i: int
    j: int


class Boxes(BaseModel):
    """Collections inside a model."""

    model_config = ConfigDict(extra="forbid")
    listed: list[A | B | C] = []
    named: dict[str, A | B | C] = {}
    several: tuple[A | B | C, ...] = ()


class Typed(BaseModel):
    """A model whose field has the name of a schema's own."""

    type: list[A | B | C]
    fields: dict[str, int] = {}


class Extras(BaseModel):
    """A model whose fields a client names."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, A | B | C]  # pyright: ignore[reportIncompatibleVariableOverride]


class Left(BaseModel):
    """A model that leads to itself in two ways."""

    next: Left | Right | None = None
    x: int = 0


class Right(BaseModel):
    """The other way."""

    next: Left | Right | None = None
    y: int = 0


def unchanged(model: Any) -> Any:
    """Return the model as it is."""
    return model


class Checked(BaseModel):
    """A model that leads to itself in two ways, through validators."""

    next: Annotated[Checked, AfterValidator(unchanged)] | Annotated[Verified, AfterValidator(unchanged)] | None = None


class Verified(BaseModel):
    """The other way."""

    next: Checked | None = None


class Add(BaseModel):
    """A model that leads to itself, with a tag that distinguishes the members."""

    kind: Literal["add"]
    left: Sum


class Number(BaseModel):
    """Where the sum ends."""

    kind: Literal["number"]
    value: int


Sum = Annotated[Add | Number, Field(discriminator="kind")]
Json = TypeAliasType("Json", "dict[str, Json] | list[Json] | str | int | None")
for model in (Left, Right, Checked, Verified, Add):
    model.model_rebuild()

EMPTY_LIST = "[" + ",".join(["{}"] * (LARGEST // 3)) + "]"
EMPTY_DICT = "{" + ",".join(f'"{number}":{{}}' for number in range(LARGEST // 11)) + "}"


@pytest.mark.parametrize("data", ['{"number": 1}', b'{"number": 1}'])
def test_parse(data: str | bytes) -> None:
    """JSON, as text or as bytes, becomes the model."""
    assert parse(Order, data) == Order(number=1)


def test_parse_answer() -> None:
    """The answer holds what is wrong and where, and neither the input nor a URL."""
    with pytest.raises(InvalidMessageError) as raised:
        parse(Order, '{"number": "secret", "totalCents": []}')
    assert raised.value.answer == {
        "error": "invalid message",
        "details": [
            {
                "loc": ["number"],
                "msg": "Input should be a valid integer, unable to parse string as an integer",
                "type": "int_parsing",
            },
            {"loc": ["totalCents"], "msg": "Input should be a valid integer", "type": "int_type"},
        ],
    }
    assert str(raised.value) == (
        "invalid message: number: Input should be a valid integer, unable to parse string as an integer"
    )
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("data", ["", "{", "[" * 100_000, b"\xff", "9" * 10_000, "secret", "\ud800"])
def test_parse_of_no_json(data: str | bytes) -> None:
    """Whatever a client sends that is no JSON is an invalid message and nothing worse."""
    with pytest.raises(InvalidMessageError) as raised:
        parse(Order, data)
    assert "secret" not in json.dumps(raised.value.answer)


def test_parse_names_no_tag() -> None:
    """The tag of a union is not repeated either."""
    union = Annotated[Placed | Cancelled, Field(discriminator="kind")]
    with pytest.raises(InvalidMessageError) as raised:
        parse(union, '{"kind": "<script>"}')
    assert raised.value.answer["details"] == [
        {
            "loc": [],
            "msg": "Input tag does not match any of the expected tags: 'placed', 'cancelled'",
            "type": "union_tag_invalid",
        }
    ]


def test_answer_is_bounded() -> None:
    """A message with very many or very long errors gets a short answer."""
    with pytest.raises(InvalidMessageError) as raised:
        parse(dict[str, int], json.dumps({"x" * 10_000 + str(number): "no" for number in range(1000)}))
    assert len(raised.value.details) == 20
    assert len(json.dumps(raised.value.answer)) < 10_000


def test_error_can_be_pickled() -> None:
    """The error survives a process pool."""
    error = InvalidMessageError([{"loc": ["a", 0], "msg": "wrong", "type": "x"}])
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.answer) == ("invalid message: a.0: wrong", error.answer)


def test_validators_are_made_once() -> None:
    """A type has one validator, a ready adapter is taken as it is, and what cannot be hashed works uncached."""
    ready = TypeAdapter(int)
    assert validator_for(Order) is validator_for(Order)
    assert validator_for(ready).adapter is ready
    assert validator_for(validator_for(Order)) is validator_for(Order)
    assert parse(Annotated[int, {"un": "hashable"}], "7") == 7


def test_order_of_a_union_counts() -> None:
    """Of two unions with the same members, each keeps its own order."""

    class First(BaseModel):
        n: int

    class Second(BaseModel):
        n: int

    assert type(parse(First | Second, '{"n": 1}')) is First
    assert type(parse(Second | First, '{"n": 1}')) is Second


@pytest.mark.parametrize(
    ("model", "data"),
    [
        pytest.param(list[A | B | C], EMPTY_LIST, id="list of a union"),
        pytest.param(dict[str, A | B | C], EMPTY_DICT, id="dict of a union"),
        pytest.param(list[int], "[" + ",".join(['"x"'] * (LARGEST // 4)) + "]", id="list of numbers"),
        pytest.param(Boxes, f'{{"listed":{EMPTY_LIST}}}', id="list in a model"),
        pytest.param(Boxes, f'{{"named":{EMPTY_DICT}}}', id="dict in a model"),
        pytest.param(Boxes, f'{{"several":{EMPTY_LIST}}}', id="tuple in a model"),
        pytest.param(Boxes, EMPTY_DICT, id="unknown fields"),
        pytest.param(Typed, f'{{"type":{EMPTY_LIST}}}', id="list in a field named type"),
        pytest.param(Extras, EMPTY_DICT, id="fields of any name"),
        pytest.param(list[list[A | B | C]], "[" + ",".join(["[{}]"] * (LARGEST // 5)) + "]", id="list of lists"),
        pytest.param(dict[str, Boxes], EMPTY_DICT.replace("{}", '{"x":1}'), id="models in a dict"),
    ],
)
def test_invalid_message_stalls_the_loop_briefly(model: Any, data: str) -> None:
    """One invalid message of the default's size occupies the event loop briefly, and its answer is short."""
    validator = validator_for(model)
    began = time.thread_time()
    with pytest.raises(InvalidMessageError) as raised:
        validator.parse(data)
    assert time.thread_time() - began < MAX_STALL_SECONDS
    assert len(json.dumps(raised.value.answer)) < 8 * KIBIBYTE


@pytest.mark.parametrize("model", [Left, Left | Right, list[Left], dict[str, Right], Checked])
def test_exponential_union_is_refused(model: Any) -> None:
    """A union that leads to itself through several members is refused, naming the cure."""
    with pytest.raises(ConfigurationError, match="give the union a discriminator"):
        validator_for(model)


@pytest.mark.parametrize(
    ("model", "data", "parsed"),
    [
        (Sum, '{"kind":"add","left":{"kind":"number","value":1}}',
         Add(kind="add", left=Number(kind="number", value=1))),
        (Json, '{"a":[1,{"b":null}]}', {"a": [1, {"b": None}]}),
        (Boxes, '{"listed":[{"h":1,"i":2,"j":3}],"named":{"x":{"e":1,"f":2,"g":3}}}',
         Boxes(listed=[C(h=1, i=2, j=3)], named={"x": B(e=1, f=2, g=3)})),
        (dict[int, str], '{"7":"x"}', {7: "x"}),
        (Annotated[Placed, Tag("placed")] | Annotated[Cancelled, Tag("cancelled")], '{"number":1}', Placed(number=1)),
        (TypeAdapter(list[int], config=ConfigDict(strict=True)), "[1]", [1]),
    ],
)  # fmt: skip
def test_bounds_change_nothing_for_a_valid_message(model: Any, data: str, parsed: object) -> None:
    """What is valid parses as pydantic alone parses it, a discriminated recursion and plain JSON included."""
    assert parse(model, data) == parsed
    assert parse(model, data) == (model if isinstance(model, TypeAdapter) else TypeAdapter(model)).validate_json(data)


def test_config_of_an_adapter_counts() -> None:
    """The configuration that a ready adapter was made with is kept."""
    with pytest.raises(InvalidMessageError, match="valid integer"):
        parse(TypeAdapter(list[int], config=ConfigDict(strict=True)), '["1"]')
    assert parse(list[int], '["1"]') == [1]


def test_sequence_reports_its_first_invalid_item() -> None:
    """Of a sequence the first invalid item is reported, with all that is wrong with it."""
    with pytest.raises(InvalidMessageError) as raised:
        parse(list[Order], '[{"number": 1}, {}, {"number": "x"}]')
    assert [detail["loc"] for detail in raised.value.details] == [[1, "number"]]


def test_labelled_union() -> None:
    """A union whose members have labels is bounded, and parses as pydantic alone parses it."""
    model = list[Annotated[A, Tag("a")] | Annotated[B, Tag("b")]]
    assert parse(model, '[{"e":1,"f":2,"g":3}]') == [B(e=1, f=2, g=3)]
    with pytest.raises(InvalidMessageError) as raised:
        parse(model, EMPTY_LIST)
    assert {tuple(detail["loc"][:2]) for detail in raised.value.details} == {(0, "a"), (0, "b")}


class Outer(BaseModel):
    """Leads to its union by both members, each within a validator."""

    next: Annotated[Outer, AfterValidator(id)] | Annotated[Inner, AfterValidator(id)] | None = None


class Inner(BaseModel):
    """The other member."""

    outer: Outer | None = None


def test_exponential_union_of_wrapped_members() -> None:
    """A validator around a member does not hide that it leads to its union."""
    with pytest.raises(ConfigurationError, match="give the union a discriminator"):
        validator_for(Outer)


def test_member_within_many_wrappers() -> None:
    """A member of a union may stand within any number of validators."""
    member: Any = int
    for _ in range(30):
        member = Annotated[member, AfterValidator(lambda number: number + 1)]
    assert parse(list[member | str], "[1]") == [31]
