"""`backplane.centrifugal.rpc`: functions that clients call, typed by pydantic, and the answer to each failure."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, cast

import pytest
from fastapi import Depends
from pydantic import BaseModel, ConfigDict, Field, field_validator

from backplane import BrokerUnavailableError, ClosedError, ConfigurationError, Connection, InvalidChannelError
from backplane.centrifugal.codes import CommandError
from backplane.centrifugal.rpc import RpcRegistry
from backplane.errors import InvalidMessageError
from backplane.journal.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

pytestmark = pytest.mark.anyio

# What is passed on to the functions, which look at nothing of it.
CONNECTION = cast("Connection", SimpleNamespace(id="00", user="ada"))
LOGGER = "backplane.centrifugal.rpc"


class Query(BaseModel):
    """What a client sends."""

    id: int
    limit: int = Field(default=10, alias="pageLimit")


class Order(BaseModel):
    """What it gets."""

    id: int
    total_cents: int = Field(default=0, serialization_alias="totalCents")


class PricedOrder(Order):
    """What the application has."""

    margin: float = 0.5


async def called(function: Callable[..., Any], data: bytes = b"") -> bytes:
    """Return what an RPC returns."""
    rpcs = RpcRegistry()
    rpcs.register("x", function)
    return await rpcs.call("x", CONNECTION, data, Journal())


async def refused(function: Callable[..., Any], data: bytes = b"") -> tuple[int, str, bool]:
    """Return the answer to an RPC that fails."""
    with pytest.raises(CommandError) as caught:
        await called(function, data)
    return caught.value.code, caught.value.message, caught.value.temporary


async def test_typed() -> None:
    """An RPC gets validated data, and its result is sent in its annotated type, by alias."""
    rpcs = RpcRegistry()
    seen: list[Any] = []

    async def get(connection: Connection, query: Query) -> Order:
        seen.extend([connection, query])
        await asyncio.sleep(0)
        return PricedOrder(id=query.id, total_cents=query.limit)

    rpcs.register("orders.get", get)
    data = b'{"id": "7", "pageLimit": 3}'
    assert await rpcs.call("orders.get", CONNECTION, data, Journal()) == b'{"id":7,"totalCents":3}'
    assert seen == [CONNECTION, Query(id=7, pageLimit=3)]


async def test_result_that_fits() -> None:
    """A result need not be an instance of its type."""

    def get(_: Connection) -> Order:
        return {"id": "7"}  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    assert await called(get) == b'{"id":7,"totalCents":0}'


async def test_without_data() -> None:
    """An RPC can take the connection alone, and return nothing; what the client sends is then ignored."""

    def touch(connection: Connection) -> None:
        assert connection is CONNECTION

    assert await called(touch, b"not JSON") == b"null"


async def test_optional_data() -> None:
    """A client that sends no data sends `null`."""

    def get(_: Connection, query: Query | None) -> bool:
        return query is None

    assert await called(get, b"") == b"true"
    assert await called(get, b"null") == b"true"
    assert await called(get, b'{"id": 1}') == b"false"


async def test_raw() -> None:
    """`bytes` is the data as it is on the wire, in both places."""

    async def echo(_: Connection, data: bytes) -> bytes:
        return data[::-1]

    assert await called(echo, b"\x00\xff") == b"\xff\x00"
    assert await called(echo) == b""


async def test_raw_result_of_another_type(caplog: pytest.LogCaptureFixture) -> None:
    """An RPC that returns no bytes, though it is annotated with them, has failed."""

    def get(_: Connection) -> bytes:
        return "text"  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    assert await refused(get) == (100, "internal server error", True)
    assert "TypeError" in caplog.text


class Counter:
    """What has RPCs as methods."""

    async def count(self, _: Connection, step: int) -> int:
        """Return the next number."""
        return step + 1

    def __call__(self, _: Connection, step: int) -> int:
        """Return the one after it."""
        return step + 2


def add(a: int, _: Connection, b: int) -> int:
    """Return the sum."""
    return a + b


@pytest.mark.parametrize(
    ("function", "result"),
    [(Counter().count, b"2"), (Counter(), b"3"), (functools.partial(add, 3), b"4")],
    ids=["method", "object", "partial"],
)
async def test_anything_callable(function: Callable[..., Any], result: bytes) -> None:
    """Methods, objects and partials can be RPCs."""
    assert await called(function, b"1") == result


async def test_unknown_method() -> None:
    """An RPC that does not exist is answered with 104."""
    with pytest.raises(CommandError) as caught:
        await RpcRegistry().call("x", CONNECTION, b"", Journal())
    assert (caught.value.code, caught.value.message, caught.value.temporary) == (104, "method not found", False)


def take(_: Connection, query: Query) -> None:
    """Take a query."""


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"id": "hunter2"}', "id: Input should be a valid integer, unable to parse string as an integer"),
        (b"{}", "id: Field required"),
        (b"", "Input should be an object"),
        (b"[]", "Input should be an object"),
        (b"{", "Invalid JSON: EOF while parsing"),
        (b"\xff", "Invalid JSON"),
        (b"[" * 60_000, "Invalid JSON: recursion limit exceeded"),
    ],
    ids=lambda value: repr(value)[:20],
)
async def test_invalid_data(data: bytes, reason: str) -> None:
    """Data that does not validate is answered with 107 and what is wrong, without the data."""
    code, message, temporary = await refused(take, data)
    assert (code, temporary) == (107, False)
    assert message.startswith(f"bad request: {reason}")
    assert "hunter2" not in message


class Strict(BaseModel):
    """What allows no other fields."""

    model_config = ConfigDict(extra="forbid")


async def test_answer_is_bounded() -> None:
    """A hostile message has a short answer, however long its keys are and however many errors it has."""

    def get(_: Connection, query: list[dict[str, Strict]]) -> None: ...

    code, message, _ = await refused(get, json.dumps([{"k" * 5_000: {"f" * 5_000: 1}}] * 100).encode())
    assert code == 107
    assert len(message) < 1_500


async def test_error_of_the_application() -> None:
    """The application answers with a code, a message and `temporary` of its own, and nothing is logged."""

    async def get(_: Connection) -> None:
        raise CommandError(404, "no such order", temporary=True)

    assert await refused(get) == (404, "no such order", True)


@pytest.mark.parametrize("code", [399, 2000, 0, -1, 100, True, "404", 404.0, None])
def test_code_of_the_application(code: Any) -> None:
    """A code that is none of an application is refused when the error is made."""
    with pytest.raises(ConfigurationError, match="400 to 1999"):
        CommandError(code, "no")


@pytest.mark.parametrize("error", [ClosedError("it has ended"), BrokerUnavailableError("it is down", adapter="redis")])
async def test_passing_failure(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """While the broker is down, or the worker ends, the answer is temporary; that is logged elsewhere."""

    async def get(_: Connection) -> None:
        raise error

    assert await refused(get) == (100, "not available at present: try again later", True)
    assert caplog.records == []


class Picky(BaseModel):
    """What has a validator that fails."""

    id: int

    @field_validator("id")
    @classmethod
    def look_up(cls, value: int) -> int:
        """Look for what is not there."""
        return {1: 1}[value]


def pick(_: Connection, query: Picky) -> None:
    """Take what cannot be validated."""


def explode(_: Connection) -> None:
    """Fail."""
    raise ValueError("hunter2")


def forward(_: Connection) -> None:
    """Raise what would be the client's fault, were it raised by the check of its data."""
    raise InvalidMessageError([{"msg": "hunter2"}])


def misname(_: Connection) -> None:
    """Raise an error of this package."""
    raise InvalidChannelError("hunter2")


def mistype(_: Connection) -> int:
    """Return what is not of its type."""
    return "hunter2"  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (explode, "ValueError at test_rpc.py:"),
        (forward, "InvalidMessageError at test_rpc.py:"),
        (misname, "InvalidChannelError at test_rpc.py:"),
        (mistype, "ValidationError at "),
        (pick, "KeyError at "),
    ],
)
async def test_failure(function: Callable[..., Any], name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Any other failure is answered with 100, and logged with its place, without data."""
    assert await refused(function, b'{"id": 5}') == (100, "internal server error", True)
    (record,) = caplog.records
    assert (record.name, record.levelno) == (LOGGER, logging.ERROR)
    assert record.getMessage().startswith(f"the RPC 'x' failed: {name}")
    assert "hunter2" not in caplog.text


async def test_failures_are_logged_in_bursts(caplog: pytest.LogCaptureFixture) -> None:
    """A client that calls an RPC which fails cannot fill the log."""
    rpcs = RpcRegistry()
    rpcs.register("x", explode)
    journal = Journal(burst=1)
    for _ in range(100):
        with pytest.raises(CommandError):
            await rpcs.call("x", CONNECTION, b"", journal)
    assert len(caplog.records) == 1
    journal.flush()


async def test_answers_keep_no_traceback() -> None:
    """Each answer is an exception of its own: one that is raised again grows, and keeps what its frames hold."""
    caught: list[CommandError] = []
    for _ in range(2):
        with pytest.raises(CommandError) as raised:
            await RpcRegistry().call("x", CONNECTION, b"", Journal())
        caught.append(raised.value)
    assert caught[0] is not caught[1]


async def test_cancellation() -> None:
    """A call that is cancelled, at the end of its connection or of its time, ends as cancelled."""

    async def wait(_: Connection) -> None:
        await asyncio.Event().wait()

    call = asyncio.create_task(called(wait))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()


async def test_context() -> None:
    """An RPC runs in the task that calls."""

    def current(_: Connection) -> bool:
        return asyncio.current_task() is this

    this = asyncio.current_task()
    assert await called(current) == b"true"


# --- what cannot be an RPC -----------------------------------------------------------------------------------------


def _nothing() -> None: ...
def _three(_: Connection, a: int, b: int) -> None: ...
def _keyword(_: Connection, *, a: int) -> None: ...
def _variadic(_: Connection, *a: int) -> None: ...
def _default(_: Connection, a: int = 1) -> None: ...
def _dependent(_: Connection, a: int = Depends(_nothing)) -> None: ...
def _annotated(_: Connection, a: Annotated[int, Depends(_nothing)]) -> None: ...
def _first(_: Annotated[Connection, Depends(_nothing)], a: int) -> None: ...
def _bare(_: Connection, a) -> None: ...  # type: ignore[no-untyped-def]  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]
def _open_ended(_: Connection): ...  # type: ignore[no-untyped-def]
def _late(_: Connection, a: Decimal) -> None: ...
def _swapped(_: int, connection: Connection) -> None: ...
def _opaque(_: Connection) -> asyncio.Event | None: ...


REFUSED: dict[str, tuple[object, str]] = {
    "no parameter": (_nothing, "takes the connection and at most one parameter more"),
    "three parameters": (_three, "dependencies are not supported in an RPC: use connection.context"),
    "a keyword": (_keyword, "takes the connection and at most one parameter more"),
    "any number": (_variadic, "takes the connection and at most one parameter more"),
    "a default": (_default, "without a default"),
    "a dependency": (_dependent, "dependencies are not supported"),
    "an annotated dependency": (_annotated, "dependencies are not supported"),
    "a dependency in place of the connection": (_first, "dependencies are not supported"),
    "no annotation": (_bare, "no annotation for 'a'"),
    "no annotation of its result": (_open_ended, "no annotation for its result"),
    "a type for checkers alone": (_late, "name 'Decimal' is not defined.*at runtime, not under TYPE_CHECKING"),
    "swapped parameters": (_swapped, "the RPC 'x', 'connection': pydantic cannot validate"),
    "a result that is not JSON": (_opaque, "the RPC 'x', its result: pydantic cannot validate"),
    "no function": (1, "is not a callable object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    """What cannot be an RPC is refused when it is registered, with what to do."""
    function, reason = REFUSED[case]
    rpcs = RpcRegistry()
    with pytest.raises(ConfigurationError, match=reason):
        rpcs.register("x", cast("Callable[..., Any]", function))
    rpcs.register("x", take)  # and nothing of it is left


@pytest.mark.parametrize("name", ["", None, 1])
def test_name(name: Any) -> None:
    """An RPC has a name that is a text."""
    with pytest.raises(ConfigurationError, match="the name of an RPC"):
        RpcRegistry().register(name, take)


def test_registered_twice() -> None:
    """A name is given once."""
    rpcs = RpcRegistry()
    rpcs.register("x", take)
    with pytest.raises(ConfigurationError, match="there is an RPC 'x' already"):
        rpcs.register("x", explode)
