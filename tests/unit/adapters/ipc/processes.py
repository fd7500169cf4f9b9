"""Processes that use `ipc://`: this one, and others that run commands of a test."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from backplane.adapters.ipc import IpcBroadcaster
from backplane.adapters.ipc.folder import open_folder
from backplane.broker.registry import broadcaster_from_url
from backplane.testing.recording import RecordingSink

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path
    from types import TracebackType

__all__ = ["MEBIBYTE", "Process", "Worker", "folder_of", "impatient", "no_garbage_collection", "sockets", "wait_until"]

MEBIBYTE = 1024 * 1024

PROCESS = """
import asyncio, json, os, signal, sys, time
from backplane.message import ALL
from backplane.history_rules import History, HistoryRules
from backplane.broker.registry import broadcaster_from_url

class Sink:
    def deliver(self, channel, payload, position=None):
        report("deliver", channel, len(payload), payload[:32].decode("latin-1"))
    def gap(self, channels, reason):
        report("gap", None if channels is ALL else sorted(channels), reason)
    def lost(self, error):
        report("lost", str(error))

def report(*values):
    print(json.dumps(values), flush=True)

async def main():
    adapter = broadcaster_from_url(sys.argv[1])
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        command, *arguments = json.loads(line)
        if command == "start":
            await adapter.start(Sink())
        elif command == "stop":
            await adapter.stop()
        elif command == "subscribe":
            await adapter.subscribe(arguments)
        elif command == "subscribe_prefixes":
            await adapter.subscribe_prefixes(arguments)
        elif command == "publish":
            channel, payload, size, times = arguments
            for _ in range(times):
                await adapter.publish(channel, payload.encode("latin-1").ljust(size, b"."))
        elif command == "publish_and_die":
            channel, times = arguments
            for number in range(times):
                await adapter.publish(channel, b"%d" % number)
            os.kill(os.getpid(), signal.SIGKILL)
        elif command == "prepare":
            await adapter.prepare(HistoryRules(dict.fromkeys(arguments, History())))
        elif command == "keep":
            channel, payload, size, times = arguments
            for _ in range(times):
                await adapter.keep(channel, payload.encode("latin-1").ljust(size, b"."), History())
        elif command == "keep_with_key":
            channel, payload, key = arguments
            receipt = await adapter.keep(channel, payload.encode(), History(), key=key.encode())
            report("receipt", str(receipt.position), receipt.duplicate)
        elif command == "write_and_die":
            adapter._node.log._announce = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            await adapter.keep(arguments[0], b"last", History())
        elif command == "fork":
            child = os.fork()
            if not child:
                while True:
                    signal.pause()
            report("forked", child)
        report("done", command)

asyncio.run(main())
"""


class Process:
    """Another process with an adapter. It reads a command per line, and writes a report per line.

    Attributes:
        reports: Every report so far: of commands that are done, and of calls to the sink.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.reports: list[list[Any]] = []

    @classmethod
    async def spawn(cls, url: str) -> Process:
        """Start the process; its adapter is not started yet."""
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(sys.executable, "-c", PROCESS, url, stdin=pipe, stdout=pipe))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.communicate()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def gaps(self) -> list[list[str] | None]:
        """The channels of each gap that was reported to its sink; `None` for all."""
        return [report[1] for report in self.reports if report[0] == "gap"]

    @property
    def delivered(self) -> list[tuple[str, str]]:
        """Channel and first bytes of each message that was delivered to its sink."""
        return [(report[1], report[3]) for report in self.reports if report[0] == "deliver"]

    def command(self, *command: Any) -> None:
        """Send a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")

    async def run(self, *command: Any) -> None:
        """Send a command and wait until it is done."""
        self.command(*command)
        done = ["done", command[0]]
        times = self.reports.count(done)
        await self.until(lambda: self.reports.count(done) > times)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read reports until `condition` holds."""
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            while not condition():
                line = await self._process.stdout.readline()
                assert line, f"the process ended; its last reports: {self.reports[-5:]}"
                self.reports.append(json.loads(line))

    async def received(self, messages: set[tuple[str, str]]) -> None:
        """Wait until all of `messages` were delivered to its sink."""
        await self.until(lambda: messages <= set(self.delivered))

    async def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def ended(self) -> None:
        """Wait for its end."""
        await self._process.wait()

    async def freeze(self) -> None:
        """Stop it, and wait until the kernel reports that it is stopped."""
        self._process.send_signal(signal.SIGSTOP)
        await asyncio.to_thread(os.waitid, os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let it run again."""
        self._process.send_signal(signal.SIGCONT)


class Worker:
    """An adapter of this process, with its sink."""

    def __init__(self, url: str) -> None:
        adapter = broadcaster_from_url(url)
        assert isinstance(adapter, IpcBroadcaster)
        self.adapter = adapter
        self.sink = RecordingSink()

    async def __aenter__(self) -> Self:
        await self.adapter.start(self.sink)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.adapter.stop()

    async def received_all_of(self, other: Worker, channel: str) -> None:
        """Wait for a last message of `other`, and so for everything that `other` published before."""
        count = len(self.sink.delivered)
        await other.adapter.publish(channel, b"barrier")
        await self.sink.until(lambda: (channel, b"barrier") in self.sink.delivered[count:])


@contextmanager
def no_garbage_collection() -> Generator[None]:
    """While the time of a pass is taken: a collection of what all the tests hold takes longer."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def wait_until(holds: Callable[[], bool]) -> None:
    """Poll a state of the operating system, which sends no event, until it holds."""
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.005)


def impatient(url: str, seconds: float) -> str:
    """Return the fixture `url` with a short limit for a peer that does not answer, for a test of that limit."""
    return url.replace("peer_timeout_seconds=20", f"peer_timeout_seconds={seconds}")


def folder_of(directory: Path) -> Path:
    """Return the folder that the fixture `url` leads to."""
    return open_folder("app", directory)


def sockets(directory: Path) -> set[str]:
    """Return the names of the sockets in that folder."""
    return {path.name for path in folder_of(directory).iterdir()}
