"""`backplane.typed_channel`: channels whose messages have a type."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter
from typing_extensions import TypedDict

from backplane import Backplane, Gap, History, Message
from backplane.errors import ConfigurationError, InvalidChannelError, InvalidDataError
from backplane.typed_channel import TypedChannel, names_of
from tests.unit.controlled_adapter import ControlledHistoryAdapter
from tests.unit.keeping_hub import KeepingHub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0
IDLE = Backplane("memory://")


class Order(BaseModel):
    """What most tests publish."""

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


@dataclass(frozen=True)
class Point:
    """A plain dataclass."""

    x: int
    y: int


class Pair(TypedDict):
    """A typed dict."""

    left: int
    right: int


async def take(messages: AsyncIterator[Any], count: int = 1) -> list[Any]:
    """Return the next `count` items."""
    async with asyncio.timeout(WAIT_SECONDS):
        return [await anext(messages) for _ in range(count)]


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        ("orders:{id}", {"id": 42}, "orders:42"),
        ("orders", {}, "orders"),
        ("{room}", {"room": "a:b"}, "a:b"),
        ("shop:{shop}:orders:{id}", {"shop": "berlin", "id": 7}, "shop:berlin:orders:7"),
        ("room-{id}", {"id": "0f8fad5b-d9cb-469f-a165-70867728950e"}, "room-0f8fad5b-d9cb-469f-a165-70867728950e"),
        ("{{x}}:{id}", {"id": "é"}, "{x}:é"),
        ("orders:{id}", {"id": "{id}"}, "orders:{id}"),
        ("orders:{id}", {"id": "{0.__class__}"}, "orders:{0.__class__}"),
    ],
)
def test_name(template: str, values: dict[str, Any], expected: str) -> None:
    """Placeholders are filled with the values as text, which is taken as it is."""
    assert TypedChannel(IDLE, template, Order).name(**values) == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "'orders:{shop}:{id}' takes shop, id: missing shop, id"),
        ({"shop": 1}, "'orders:{shop}:{id}' takes shop, id: missing id"),
        ({"shop": 1, "id": 2, "room": 3}, "'orders:{shop}:{id}' takes shop, id: unknown room"),
        ({"shop": 1, "ID": 2}, "'orders:{shop}:{id}' takes shop, id: missing id; unknown ID"),
        ({"shop": 1, "id": None}, "'orders:{shop}:{id}': id is None, which names no channel"),
        ({"shop": b"1", "id": 2}, "'orders:{shop}:{id}': shop is bytes, which names no channel"),
    ],
)
def test_wrong_placeholders(values: dict[str, Any], words: str) -> None:
    """Missing, unknown and senseless values are refused like wrong arguments of a call."""
    with pytest.raises(TypeError) as raised:
        TypedChannel(IDLE, "orders:{shop}:{id}", Order).name(**values)
    assert str(raised.value) == words


@pytest.mark.parametrize("name", ["self", "message", "template", "model", "channel", "when_full", "cls", "args"])
async def test_placeholder_named_as_a_parameter(name: str) -> None:
    """A placeholder may have any name that is no option: `name`, `publish` and `subscribe` all take it."""
    async with Backplane("memory://") as backplane:
        numbers = backplane.channel(f"numbers:{{{name}}}", int)
        values: dict[str, Any] = {name: "a"}
        async with numbers.subscribe(**values) as messages:
            await numbers.publish(5, **values)
            assert (numbers.name(**values), await anext(messages)) == ("numbers:a", 5)


def test_no_placeholders() -> None:
    """A template without placeholders takes none."""
    with pytest.raises(TypeError, match=r"^'news' takes no placeholders: unknown id$"):
        TypedChannel(IDLE, "news", Order).name(id=1)


@pytest.mark.parametrize(
    ("template", "values", "words"),
    [
        ("orders:{id}", {"id": ""}, "id is empty"),
        ("orders:{id}", {"id": "1:admin"}, "id must not hold ':'"),
        ("orders/{id}.{part}", {"id": 1, "part": "../2"}, "part must not hold '.'"),
        ("{a}-{b}", {"a": "x-y", "b": "z"}, "a must not hold '-'"),
        ("{a} and {b}", {"a": "x and y", "b": "z"}, "a must not hold ' '"),
        ("{a}xx{b}", {"a": "x", "b": "y"}, "a must not hold 'x'"),
        ("orders:{id}", {"id": "x" * 255}, "at most 255 bytes"),
        ("orders:{id}", {"id": "\ud800"}, "lone surrogate"),
        ("${app}/{id}", {"app": "backplane", "id": "probe"}, "reserved"),
    ],
)
def test_value_cannot_break_out(template: str, values: dict[str, Any], words: str) -> None:
    """A value is refused that is empty, reaches another template's channels, or makes the channel illegal."""
    with pytest.raises(InvalidChannelError) as raised:
        TypedChannel(IDLE, template, Order).name(**values)
    assert words in str(raised.value)


@given(
    st.sampled_from(["{a}:{b}", "{a}-{b}", "{a}::{b}", "x{a}xx{b}x", "{a}.{b}-", "{a} of {b}"]),
    st.lists(st.tuples(st.text("ab:-. xof", min_size=1, max_size=6), st.text("ab:-. xof", min_size=1, max_size=6))),
)
def test_different_values_make_different_names(template: str, pairs: list[tuple[str, str]]) -> None:
    """No two sets of values share a channel."""
    channel = TypedChannel(IDLE, template, Order)
    names: dict[str, tuple[str, str]] = {}
    for first, second in pairs:
        try:
            name = channel.name(a=first, b=second)
        except InvalidChannelError:
            continue
        assert names.setdefault(name, (first, second)) == (first, second)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("orders:{", "cannot be used"),
        ("orders:{}", "a placeholder is a plain name: orders:{id}"),
        ("orders:{0}", "a placeholder is a plain name"),
        ("orders:{id.x}", "a placeholder is a plain name"),
        ("orders:{id[0]}", "a placeholder is a plain name"),
        ("orders:{id!r}", "a placeholder is a plain name"),
        ("orders:{id:>10}", "a placeholder is a plain name"),
        ("orders:{exclude}", "the placeholder 'exclude' is an option"),
        ("orders:{idempotency_key}", "the placeholder 'idempotency_key' is an option"),
        ("orders:{backlog}", "the placeholder 'backlog' is an option"),
        ("orders:{id}:{id}", "the placeholder 'id' is taken twice"),
        ("orders:{a}{b}", "something must stand between {a} and {b}"),
    ],
)
def test_wrong_template(template: str, words: str) -> None:
    """A template that is none, or whose names could be ambiguous, is refused where it is written."""
    with pytest.raises(ConfigurationError) as raised:
        TypedChannel(IDLE, template, Order)
    assert words in str(raised.value)


def test_wrong_channel_without_placeholders() -> None:
    """A template that is a channel by itself is checked at once."""
    with pytest.raises(InvalidChannelError):
        TypedChannel(IDLE, "", Order)


@pytest.mark.parametrize("model", [object(), "Undefined"], ids=["object", "undefined"])
def test_wrong_model(model: object) -> None:
    """What pydantic cannot validate is refused where it is written, a name that nothing defines too."""
    with pytest.raises(ConfigurationError, match="pydantic cannot validate"):
        TypedChannel(IDLE, "orders", model)


# --- publish and subscribe -----------------------------------------------------------------------------------------


async def test_publish_is_json_text_by_alias() -> None:
    """A model travels as JSON text, once encoded, with its aliases, to the channel its placeholders name."""
    history = {"kept:*": History()}
    async with Backplane("memory://", history=history) as backplane, backplane.subscribe("orders:42", "kept:42") as raw:
        for kind, is_json in (("orders", False), ("kept", True)):
            await TypedChannel(backplane, kind + ":{id}", Order).publish(Order(number=1, totalCents=250), id=42)
            item = (await take(aiter(raw)))[0]
            assert isinstance(item, Message)
            assert (item.data, item.is_json) == ('{"number":1,"totalCents":250}', is_json)


@pytest.mark.parametrize(
    ("model", "message", "received"),
    [
        (Order, Order(number=1), Order(number=1)),
        (Order, {"number": "1"}, Order(number=1)),
        (Placed | Cancelled, Cancelled(reason="late"), Cancelled(reason="late")),
        (Placed | Cancelled, {"kind": "placed", "number": 3}, Placed(number=3)),
        (Point, Point(1, 2), Point(1, 2)),
        (Pair, {"left": 1, "right": 2}, {"left": 1, "right": 2}),
        (list[int], [1, 2], [1, 2]),
        (TypeAdapter(int | None), None, None),
        (str, "text", "text"),
    ],
)
async def test_types(model: Any, message: Any, received: Any) -> None:
    """Whatever pydantic can validate is received as it was published; a dict becomes the model."""
    async with Backplane("memory://") as backplane:
        channel = TypedChannel(backplane, "x", model)
        async with channel.subscribe() as messages:
            await channel.publish(message)
            assert await take(messages) == [received]


async def test_idempotency_key() -> None:
    """A typed channel passes the key on, and returns the receipt; so does one for synchronous code."""
    async with Backplane(ControlledHistoryAdapter(), history={"orders:*": History()}) as backplane:
        first = await backplane.channel("orders:{id}", int).publish(1, id=1, idempotency_key="k")
        orders = backplane.sync.channel("orders:{id}", int)
        second = await asyncio.to_thread(lambda: orders.publish(1, id=1, idempotency_key="k"))
        assert first.position is not None
        assert (first.duplicate, second.duplicate, second.position) == (False, True, first.position)


async def test_exclude() -> None:
    """An excluded connection does not receive it."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a") as out, backplane.subscribe("a") as other:
        channel = TypedChannel(backplane, "a", int)
        await channel.publish(1, exclude=out.id)
        await channel.publish(2)
        assert [item.data for item in await take(aiter(other), 2)] == ["1", "2"]
        assert [item.data for item in await take(aiter(out))] == ["2"]


async def test_publish_of_something_else() -> None:
    """What is not of the type is refused before it is sent, in words that repeat nothing of it."""
    async with Backplane("memory://") as backplane:
        channel = TypedChannel(backplane, "orders:{id}", Order)
        with pytest.raises(InvalidDataError) as raised:
            await channel.publish({"number": "secret"}, id=1)
        assert str(raised.value) == (
            "not a message for 'orders:{id}': "
            "number: Input should be a valid integer, unable to parse string as an integer"
        )


async def test_publish_of_a_spoiled_model() -> None:
    """A model that was given a value of another type later is refused too."""
    order = Order(number=1)
    object.__setattr__(order, "number", "secret")
    with pytest.raises(InvalidDataError, match=r"^not a message for 'orders'"):
        await TypedChannel(IDLE, "orders", Order).publish(order)


async def test_foreign_publish(caplog: pytest.LogCaptureFixture) -> None:
    """What is not of the type is dropped, counted, and logged in few lines, without its content."""
    async with Backplane("memory://") as backplane:
        orders = TypedChannel(backplane, "orders:{id}", Order)
        async with orders.subscribe(id=1) as messages:
            for data in ("secret", '{"number": "secret"}', b"\xff", "{}", "[]"):
                await backplane.publish("orders:1", data)
            await orders.publish(Order(number=7), id=1)
            assert await take(messages) == [Order(number=7)]
        assert (orders.invalid, backplane.statistics().invalid_published) == (5, 5)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"dropped a message on channel 'orders:1': {kind}"
        for kind in ("json_invalid", "int_parsing", "json_invalid", "missing", "model_type")
    ]


async def test_gap_and_end() -> None:
    """A gap comes in its place, and the iteration ends with the backplane."""
    backplane = Backplane("memory://")
    numbers = TypedChannel(backplane, "n", int)
    async with backplane, numbers.subscribe() as messages:
        await numbers.publish(1)
        assert await take(messages) == [1]
        running = backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert running is not None
        running.hub.gap(["n"], "overrun")
        await numbers.publish(2)
        assert await take(messages, 2) == [Gap(channel="n", reason="overrun"), 2]
        await backplane.stop()
        async with asyncio.timeout(WAIT_SECONDS):
            assert [item async for item in messages] == []


async def test_cancelled_iteration_loses_nothing() -> None:
    """After a wait that was given up the next message is received all the same."""
    async with Backplane("memory://") as backplane:
        numbers = TypedChannel(backplane, "n", int)
        async with numbers.subscribe() as messages:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await anext(messages)
            await numbers.publish(1)
            assert await take(messages) == [1]


# --- history ---------------------------------------------------------------------------------------------------------


async def test_resume() -> None:
    """A typed consumer goes on from the position that it stored."""
    async with Backplane("memory://") as backplane:
        runtime = backplane._lifecycle.running()  # pyright: ignore[reportPrivateUsage]
        runtime.hub = hub = KeepingHub(runtime.broker_subscriptions)
        numbers = TypedChannel(backplane, "kept:{id}", int)
        for number in range(3):
            hub.keep("kept:1", number)
        async with numbers.subscribe(id=1, rewind=2) as messages:
            assert (await take(messages, 1), messages.resumed) == ([1], False)
            stored = str(messages.position)
        async with numbers.subscribe(id=1, since=stored) as messages:
            assert (await take(messages, 1), messages.resumed) == ([2], True)
            assert messages.position == hub.position("kept:1")


@pytest.mark.parametrize(
    ("template", "names", "others"),
    [
        ("news", ["news"], ["news1", "new"]),
        ("orders:{id}", ["orders:1", "orders:a-b c"], ["orders:", "orders:1:2", "order:1"]),
        ("a-{x}.{y}", ["a-b.c", "a-b c.d"], ["a-b.", "a-b.c.d", "a-.c"]),
        ("{{x}}{y}", ["{x}1", "{x}é"], ["{x}", "x1"]),
        ("{all}", ["x", "a:b\n"], []),
    ],
)
def test_names_of_a_template(template: str, names: list[str], others: list[str]) -> None:
    """The pattern matches what the template can be filled to, and nothing else."""
    pattern = names_of(template)
    assert [name for name in (*names, *others) if pattern.fullmatch(name)] == names
