"""`backplane.worker.server_shutdown`: the drain runs before its server ends."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import uvicorn
from starlette.applications import Starlette

from backplane.worker.server_shutdown import drain_at_the_end
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0


class Drain:
    """A drain that lasts until the test lets it end.

    Attributes:
        begun: Set when it has begun.
        may_end: Set by the test.
        error: What it raises in the end, if anything.
    """

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, hurried: bool) -> None:
        """Drain."""
        assert not hurried
        self.begun.set()
        await self.may_end.wait()
        if self.error is not None:
            raise self.error


class DrainingServer:
    """Uvicorn on a free port, without signal handlers, whose lifespan registers drains.

    Attributes:
        server: The server.
        has_ended: Whether its lifespan has ended.
    """

    def __init__(self, *drains: Callable[[bool], Coroutine[None, None, None]]) -> None:
        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncGenerator[None]:
            async with AsyncExitStack() as stack:
                for drain in drains:
                    stack.enter_context(drain_at_the_end(drain))
                self.started.set()
                yield
            self.has_ended = True

        self.started = asyncio.Event()
        self.has_ended = False
        self.server = uvicorn.Server(uvicorn.Config(Starlette(lifespan=lifespan), port=0, log_config=None))

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        """Serve; in the end the server has ended by itself."""
        serving = asyncio.create_task(self.server._serve())  # pyright: ignore[reportPrivateUsage]
        await asyncio.wait_for(self.started.wait(), WAIT_SECONDS)
        yield
        await asyncio.wait_for(serving, WAIT_SECONDS)
        assert self.has_ended
        assert self.server.shutdown == uvicorn.Server.shutdown.__get__(self.server)  # the original method is restored


async def test_drain_comes_before_the_server_ends() -> None:
    """`should_exit` drains first, whatever sets it; the end of the lifespan comes last."""
    drain = Drain()
    uvicorn_server = DrainingServer(drain)
    async with uvicorn_server.serving():
        uvicorn_server.server.should_exit = True
        await asyncio.wait_for(drain.begun.wait(), WAIT_SECONDS)
        await until_idle()
        assert not uvicorn_server.has_ended
        drain.may_end.set()


async def test_several_drains_come_one_after_the_other() -> None:
    """Two backplanes of one application drain in turn, the inner one first."""
    outer, inner = Drain(), Drain()
    uvicorn_server = DrainingServer(outer, inner)
    async with uvicorn_server.serving():
        uvicorn_server.server.should_exit = True
        await asyncio.wait_for(inner.begun.wait(), WAIT_SECONDS)
        assert not outer.begun.is_set()
        inner.may_end.set()
        await asyncio.wait_for(outer.begun.wait(), WAIT_SECONDS)
        outer.may_end.set()


async def test_second_signal_does_not_wait() -> None:
    """A second signal ends the drain early."""
    drain = Drain()
    uvicorn_server = DrainingServer(drain)
    async with uvicorn_server.serving():
        uvicorn_server.server.handle_exit(signal.SIGTERM, None)
        await asyncio.wait_for(drain.begun.wait(), WAIT_SECONDS)
        uvicorn_server.server.handle_exit(signal.SIGTERM, None)


async def test_drain_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The server ends all the same."""
    drain = Drain()
    drain.error = RuntimeError("a fault")
    drain.may_end.set()
    uvicorn_server = DrainingServer(drain)
    async with uvicorn_server.serving():
        uvicorn_server.server.should_exit = True
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "the drain failed; the server ends all the same"
    ]


async def test_nothing_is_done_outside_of_a_lifespan() -> None:
    """A backplane that a handler, a script or a test starts leaves the server alone."""
    uvicorn_server = DrainingServer()
    async with uvicorn_server.serving():
        with drain_at_the_end(Drain()):
            assert "shutdown" not in vars(uvicorn_server.server)
        uvicorn_server.server.should_exit = True
