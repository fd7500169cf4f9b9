"""Workers as a server starts them: processes of one parent, each with the same application, which obey a test."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from backplane import Backplane, Settings
from backplane.metrics.siblings import siblings_of

if TYPE_CHECKING:
    from collections.abc import Generator
    from multiprocessing.connection import Connection

__all__ = ["Worker", "workers"]

_SECONDS = 60


class Worker:
    """One worker: a process with started backplanes, one for each URL.

    Attributes:
        pid: Its process id, as text.
    """

    def __init__(self, urls: list[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, urls))
        self._process.start()
        theirs.close()
        self.pid = str(self._process.pid)

    def ask(self, *command: Any) -> Any:
        """Return what the worker returns to a command."""
        self.send(*command)
        return self.result()

    def send(self, *command: Any) -> None:
        """Send a command; `result` returns what it returns."""
        self._pipe.send(command)

    def result(self) -> Any:
        """Return what it returns next."""
        assert self._pipe.poll(_SECONDS), f"worker {self.pid} does not answer"
        return self._pipe.recv()

    def scrape(self, number: int = 0) -> tuple[list[str], list[str]]:
        """Return which workers a scrape shows, and which it names as missing."""
        found, missing, _ = self.ask("scrape", number)
        return found, missing

    def send_signal(self, number: int) -> None:
        """Send a signal; after SIGKILL the process is gone when this returns."""
        os.kill(int(self.pid), number)
        if number == signal.SIGKILL:
            self._process.join(_SECONDS)

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.join(_SECONDS)
        self._pipe.close()


@contextmanager
def workers(count: int, *urls: str) -> Generator[list[Worker]]:
    """Start workers, and wait until the backplanes of each are started."""
    started = [Worker(list(urls)) for _ in range(count)]
    try:
        for worker in started:
            assert worker.result() == "started"
        yield started
    finally:
        for worker in started:
            worker.end()


def _work(pipe: Connection[Any, Any], urls: list[str]) -> None:
    asyncio.run(_obey(pipe, urls))


async def _obey(pipe: Connection[Any, Any], urls: list[str]) -> None:
    backplanes = [Backplane(url, settings=Settings(start="lazy")) for url in urls]
    siblings = [siblings_of(backplane) for backplane in backplanes]
    for backplane in backplanes:
        await backplane.start()
    pipe.send("started")
    while True:
        match await asyncio.to_thread(pipe.recv):
            case "scrape", int(number):
                began = time.monotonic()
                scrape = await siblings[number].scrape()
                found = [taken["worker"] for taken in scrape.snapshots]
                pipe.send((found, scrape.missing, time.monotonic() - began))
            case ("scrapes", times):
                scrapes = await asyncio.gather(*(siblings[0].scrape() for _ in range(times)))
                pipe.send((len(scrapes), len({id(scrape) for scrape in scrapes})))
            case ("block", seconds):
                pipe.send("blocking")
                time.sleep(seconds)  # as an application that blocks its event loop
            case ("stop",):
                for backplane in backplanes:
                    await backplane.stop()
                pipe.send("stopped")
            case ("start",):
                for backplane in backplanes:
                    await backplane.start()
                pipe.send("started")
            case command:
                raise ValueError(command)
