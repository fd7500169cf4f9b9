"""`backplane.synchronous.publisher`: `Backplane.sync`, for `def` endpoints, threads and task queues."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from fastapi import BackgroundTasks, FastAPI, WebSocket
from pydantic import BaseModel
from starlette.testclient import TestClient

from backplane import (
    Backlog,
    Backplane,
    ClosedError,
    ConfigurationError,
    Gap,
    History,
    InvalidChannelError,
    InvalidDataError,
    PayloadTooLargeError,
    WrongLoopError,
)
from tests.unit.controlled_adapter import ControlledHistoryAdapter

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane import Subscription

WAIT_SECONDS = 60.0


class Order(BaseModel):
    """A message."""

    item: str


async def received(messages: Subscription) -> str | bytes:
    """Return what is received next."""
    async with asyncio.timeout(WAIT_SECONDS):
        message = await anext(messages)
    assert not isinstance(message, Gap)
    return message.data


@pytest.mark.anyio
async def test_publish_from_a_thread() -> None:
    """A thread publishes through the running event loop, on the open link."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a") as messages:
        await asyncio.to_thread(backplane.sync.publish, "a", {"id": 1})
        assert await received(messages) == '{"id":1}'


@pytest.mark.anyio
async def test_publish_in_the_event_loop() -> None:
    """In the event loop's own thread it would wait for itself: it raises, and names the remedy."""
    async with Backplane("memory://") as backplane:
        with pytest.raises(WrongLoopError, match=r"`await backplane\.publish\(\.\.\.\)` instead"):
            backplane.sync.publish("a", "x")


@pytest.mark.anyio
async def test_publish_from_an_event_loop_in_a_thread() -> None:
    """An event loop in another thread must not be blocked either."""

    async def publish() -> None:
        backplane.sync.publish("a", "x")

    async with Backplane("memory://") as backplane:
        with pytest.raises(WrongLoopError):
            await asyncio.to_thread(asyncio.run, publish())


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("channel", "data", "error"),
    [
        ("", "x", InvalidChannelError),
        ("a", object(), InvalidDataError),
        ("a", "x" * 200, PayloadTooLargeError),
    ],
)
async def test_errors_are_those_of_publish(channel: str, data: object, error: type[Exception]) -> None:
    """The thread gets the errors of `publish`."""
    async with Backplane("memory://?max_payload_bytes=100") as backplane:
        with pytest.raises(error):
            await asyncio.to_thread(backplane.sync.publish, channel, data)


@pytest.mark.anyio
async def test_excluded_connection() -> None:
    """`exclude` leaves out the given subscriber."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a") as messages:
        await asyncio.to_thread(lambda: backplane.sync.publish("a", "x", exclude=messages.id))
        await asyncio.to_thread(backplane.sync.publish, "a", "y")
        assert await received(messages) == "y"


@pytest.mark.anyio
async def test_typed_channel() -> None:
    """A typed channel publishes messages of its type, to the channel that its template names."""
    async with Backplane("memory://") as backplane, backplane.subscribe("orders:7") as messages:
        orders = backplane.sync.channel("orders:{user}", Order)
        assert (orders.name(user=7), repr(orders)) == ("orders:7", "<SyncTypedChannel 'orders:{user}'>")
        await asyncio.to_thread(lambda: orders.publish(Order(item="tea"), user=7))
        assert await received(messages) == '{"item":"tea"}'
        with pytest.raises(InvalidDataError):
            await asyncio.to_thread(lambda: orders.publish({"amount": 2}, user=7))


@pytest.mark.anyio
async def test_100_threads_at_once() -> None:
    """Every publish of 100 threads arrives, those of each thread in its order."""
    async with (
        Backplane("memory://") as backplane,
        backplane.subscribe("a", backlog=Backlog(max_messages=5000)) as messages,
    ):

        def publish(name: int) -> None:
            for number in range(20):
                backplane.sync.publish("a", f"{name} {number}")

        threads = [threading.Thread(target=publish, args=(name,)) for name in range(100)]
        for thread in threads:
            thread.start()
        got = [str(await received(messages)).split() for _ in range(2000)]
        for thread in threads:
            await asyncio.to_thread(thread.join)
    assert all(
        [number for source, number in got if source == str(name)] == [str(n) for n in range(20)] for name in range(100)
    )


@pytest.mark.anyio
async def test_the_stop_ends_a_waiting_thread() -> None:
    """A thread whose publish is pending when the backplane stops gets `ClosedError`."""
    backplane = Backplane("memory://")
    await backplane.start()
    raised: list[BaseException] = []

    def publish() -> None:
        try:
            while True:
                backplane.sync.publish("a", "x")
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=publish)
    thread.start()
    await backplane.stop()
    await asyncio.to_thread(thread.join, WAIT_SECONDS)
    assert [type(error) for error in raised] == [ClosedError]


def test_not_started_and_no_url() -> None:
    """Outside a worker the default `memory://` would reach no other process: it raises, and names BACKPLANE_URL."""
    with pytest.raises(ConfigurationError, match="BACKPLANE_URL"):
        Backplane().sync.publish("a", "x")


def test_not_started_publishes_by_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the backplane is not started, its thread publishes into the history that its rules state."""
    adapter = ControlledHistoryAdapter()
    monkeypatch.setattr("backplane.broker.adapter_source.broadcaster_from_url", Mock(return_value=adapter))
    backplane = Backplane("any://", history={"orders:*": History(max_messages=1)})
    receipts = [backplane.sync.publish("orders:1", "x", idempotency_key=key) for key in ("k", "k", "m", "n")]
    assert [receipt.duplicate for receipt in receipts] == [False, True, False, False]
    assert receipts[-1].position == adapter.log("orders:1").top
    assert len(adapter.log("orders:1").items) == 2
    assert backplane.state == "closed"


def test_not_started_beside_another_one(ipc_url: str) -> None:
    """Outside a worker it starts a thread with a link of its own, and reaches the workers."""

    async def receive(publish: Callable[[], object]) -> str | bytes:
        async with Backplane(ipc_url) as worker, worker.subscribe("a") as messages:
            await asyncio.to_thread(publish)
            return await received(messages)

    outside = Backplane(ipc_url)
    assert asyncio.run(receive(lambda: outside.sync.publish("a", "x"))) == "x"
    assert outside.state == "closed"


# --- in an application ------------------------------------------------------------------------------------------------


def application(url: str = "memory://") -> tuple[FastAPI, Backplane]:
    """Return an application whose endpoints publish from synchronous code in each way."""
    backplane = Backplane(url)
    app = FastAPI(lifespan=backplane.lifespan)

    @app.websocket("/room")
    async def room(websocket: WebSocket) -> None:
        async with backplane.connect(websocket, "room") as connection:
            async for _ in connection:
                pass

    @app.post("/def")
    def publish(text: str) -> None:
        backplane.sync.publish("room", text)

    @app.post("/background")
    async def publish_later(text: str, tasks: BackgroundTasks) -> None:
        tasks.add_task(publish, text)

    @app.post("/misuse")
    def misuse(text: str) -> str:
        try:
            asyncio.run(backplane.publish("room", text))
        except WrongLoopError as error:
            return str(error)
        return ""

    return app, backplane


@pytest.fixture
def client() -> Any:
    """A test client of a running application."""
    app, _ = application()
    with TestClient(app) as made:
        yield made


@pytest.mark.parametrize("path", ["/def", "/background"])
def test_def_endpoint(client: TestClient, path: str) -> None:
    """A `def` endpoint, and a background task, reach the sockets of the worker."""
    with client.websocket_connect("/room") as socket:
        assert client.post(path, params={"text": "hello"}).status_code == 200
        assert socket.receive_text() == "hello"


def test_misuse_in_a_def_endpoint(client: TestClient) -> None:
    """`asyncio.run` in a `def` endpoint is refused with the remedy, and the worker goes on."""
    with client.websocket_connect("/room") as socket:
        for _ in range(45):
            assert "backplane.sync.publish" in client.post("/misuse", params={"text": "x"}).json()
        client.post("/def", params={"text": "hello"})
        assert socket.receive_text() == "hello"


def test_publish_from_a_test() -> None:
    """The thread of a test publishes by `sync`; `asyncio.run` is refused there."""
    app, backplane = application()
    with TestClient(app) as client, client.websocket_connect("/room") as socket:
        with pytest.raises(WrongLoopError):
            asyncio.run(backplane.publish("room", "x"))
        backplane.sync.publish("room", "hello")
        assert socket.receive_text() == "hello"
    assert backplane.state == "closed"
