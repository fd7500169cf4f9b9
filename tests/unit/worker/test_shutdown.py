"""`backplane.drain`: what a signal does before the server acts on it, or beside it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from backplane.worker.shutdown import draining_on_signals, stagger_window
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    from collections.abc import Generator

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0


class Server:
    """A server that handles SIGTERM in a Python function, as Uvicorn does.

    Attributes:
        signals: Every signal that it handled.
    """

    def __init__(self) -> None:
        self.signals: list[int] = []
        self.was_notified = asyncio.Event()

    def handle(self, number: int, _: object) -> None:
        """Record a signal."""
        self.signals.append(number)
        self.was_notified.set()

    async def notified(self) -> None:
        """Wait until it has handled one."""
        await asyncio.wait_for(self.was_notified.wait(), WAIT_SECONDS)


class Drain:
    """A drain that lasts until the test lets it end.

    Attributes:
        begun: How often it began.
        error: What it raises in the end, if anything.
        hurried: Whether the server goes on ending meanwhile.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.hurried = False
        self.error: Exception | None = None
        self.may_end = asyncio.Event()
        self._has_begun = asyncio.Event()

    async def __call__(self, hurried: bool) -> None:
        """Drain."""
        self.begun += 1
        self.hurried = hurried
        self._has_begun.set()
        await self.may_end.wait()
        if self.error is not None:
            raise self.error

    async def begins(self) -> None:
        """Wait until it has begun."""
        await asyncio.wait_for(self._has_begun.wait(), WAIT_SECONDS)


@pytest.fixture(autouse=True)
def restored() -> Generator[None]:
    """Keep the handlers of the test run."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
async def server() -> Server:
    """Return a server that has installed its handler."""
    made = Server()
    signal.signal(signal.SIGTERM, made.handle)
    return made


def terminate() -> None:
    """Send SIGTERM to this process."""
    os.kill(os.getpid(), signal.SIGTERM)


async def test_drain_comes_before_the_server(server: Server) -> None:
    """The server handles SIGTERM once, when the drain has ended."""
    drain = Drain()
    with draining_on_signals(drain):
        terminate()
        await drain.begins()
        await until_idle()
        assert server.signals == []
        drain.may_end.set()
        await server.notified()
        await until_idle()
    assert (drain.begun, server.signals) == (1, [signal.SIGTERM])


async def test_second_signal_does_not_wait(server: Server) -> None:
    """A second SIGTERM cancels the drain; the server handles the signal once, and at once."""
    drain = Drain()
    with draining_on_signals(drain):
        terminate()
        await drain.begins()
        terminate()
        await server.notified()
        await until_idle()
        assert (drain.begun, server.signals) == (1, [signal.SIGTERM])


async def test_one_signal_of_each_kind_is_no_hurry(server: Server) -> None:
    """At Ctrl-C a worker gets SIGINT from the terminal and SIGTERM from its parent: the drain goes on."""
    signal.signal(signal.SIGINT, server.handle)
    drain = Drain()
    with draining_on_signals(drain):
        os.kill(os.getpid(), signal.SIGINT)
        await drain.begins()
        terminate()
        await until_idle()
        assert server.signals == []
        drain.may_end.set()
        await server.notified()
        await until_idle()
    assert (drain.begun, server.signals) == (1, [signal.SIGINT])


async def test_signal_after_the_drain_reaches_the_server(server: Server) -> None:
    """When the drain is over a further SIGTERM is the server's alone: it may force its end."""
    drain = Drain()
    drain.may_end.set()
    with draining_on_signals(drain):
        terminate()
        await server.notified()
        await until_idle()
        server.was_notified.clear()
        terminate()
        await server.notified()
    assert (drain.begun, server.signals) == (1, [signal.SIGTERM] * 2)


async def test_drain_that_raises_still_ends_the_server(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """An error in the drain is logged, and the server ends all the same."""
    drain = Drain()
    drain.error = RuntimeError("a fault")
    drain.may_end.set()
    with draining_on_signals(drain):
        terminate()
        await server.notified()
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "the drain failed; the server ends all the same"
    ]


async def test_handler_is_restored(server: Server) -> None:
    """After the block SIGTERM is the server's again, also where the block raised."""
    with draining_on_signals(Drain()):
        assert signal.getsignal(signal.SIGTERM) != server.handle
    assert signal.getsignal(signal.SIGTERM) == server.handle
    with suppress(RuntimeError), draining_on_signals(Drain()):
        raise RuntimeError("a fault")
    assert signal.getsignal(signal.SIGTERM) == server.handle


async def test_handler_set_meanwhile_is_kept(server: Server) -> None:
    """What the application has installed inside the block is not undone."""
    other = Server()
    with draining_on_signals(Drain()):
        signal.signal(signal.SIGTERM, other.handle)
    assert signal.getsignal(signal.SIGTERM) == other.handle


async def test_block_that_ends_while_draining_ends_the_drain(server: Server) -> None:
    """A server that ends for another reason, such as SIGINT, ends the drain, and handles the signal."""
    drain = Drain()
    with draining_on_signals(drain):
        terminate()
        await drain.begins()
    await until_idle()
    assert server.signals == [signal.SIGTERM]
    assert [task for task in asyncio.all_tasks() if task.get_name() == "backplane-drain"] == []


async def test_two_drains_one_inside_the_other(server: Server) -> None:
    """Two backplanes of one application drain one after the other, then the server handles the signal."""
    outer, inner = Drain(), Drain()
    with draining_on_signals(outer), draining_on_signals(inner):
        terminate()
        await inner.begins()
        assert outer.begun == 0
        inner.may_end.set()
        await outer.begins()
        assert server.signals == []
        outer.may_end.set()
        await server.notified()
        await until_idle()
    assert (signal.getsignal(signal.SIGTERM), server.signals) == (server.handle, [signal.SIGTERM])


@pytest.mark.parametrize("default", [signal.SIG_DFL, signal.SIG_IGN])
async def test_no_handler_is_left_alone(default: Any) -> None:
    """Where no handler of SIGTERM is set, none is put before it."""
    signal.signal(signal.SIGTERM, default)
    with draining_on_signals(Drain()):
        assert signal.getsignal(signal.SIGTERM) is default
    assert signal.getsignal(signal.SIGTERM) is default


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_handler_of_the_event_loop_goes_on_beside_the_drain(number: signal.Signals) -> None:
    """`loop.add_signal_handler`, on asyncio as on uvloop, cannot be put off: the drain runs beside it, in a hurry."""
    drain, loop, notified = Drain(), asyncio.get_running_loop(), asyncio.Event()
    drain.may_end.set()
    loop.add_signal_handler(number, notified.set)
    try:
        before = signal.getsignal(number)
        with draining_on_signals(drain):
            os.kill(os.getpid(), number)
            await asyncio.wait_for(notified.wait(), WAIT_SECONDS)
            await drain.begins()
            await until_idle()
        assert (drain.begun, drain.hurried, signal.getsignal(number)) == (1, True, before)
    finally:
        loop.remove_signal_handler(number)


async def test_ctrl_c_of_a_program_is_left_alone() -> None:
    """Where Ctrl-C is `KeyboardInterrupt`, as in every program that is no server, it stays so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with draining_on_signals(Drain()):
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


async def test_other_threads_leave_signals_alone(server: Server) -> None:
    """An event loop in another thread, as Starlette's TestClient runs one, changes nothing and does not fail."""
    entered: list[object] = []

    async def run() -> None:
        with draining_on_signals(Drain()):
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert entered == [server.handle]


@pytest.mark.parametrize(("sockets", "expected"), [(0, 0.0), (1, 0.05), (50, 2.5), (100, 5.0), (10_000, 5.0)])
def test_spread_grows_with_the_sockets(sockets: int, expected: float) -> None:
    """A few sockets are closed soon, a hundred or more take the whole time, never longer."""
    assert stagger_window(sockets, 5.0) == pytest.approx(expected)
