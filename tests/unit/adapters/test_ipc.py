"""What is particular to `ipc://`; the contract itself is pinned by the conformance suite."""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import socket
import stat
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from backplane.adapters.ipc import IpcBroadcaster, wire
from backplane.adapters.ipc.folder import bind_socket, connect_socket, open_folder
from backplane.adapters.ipc.peer import Ledger
from backplane.broker.registry import broadcaster_from_url
from backplane.errors import BrokerError, ConfigurationError
from backplane.testing.recording import RecordingSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import TracebackType

pytestmark = pytest.mark.anyio

MEBIBYTE = 1024 * 1024

PROCESS = """
import asyncio, json, os, signal, sys, time
from backplane.message import ALL
from backplane.broker.registry import broadcaster_from_url

class Sink:
    def deliver(self, channel, payload, position=None):
        say("deliver", channel, len(payload), payload[:32].decode("latin-1"))
    def gap(self, channels, reason):
        say("gap", None if channels is ALL else sorted(channels), reason)
    def lost(self, error):
        say("lost", str(error))

def say(*words):
    print(json.dumps(words), flush=True)

async def main():
    adapter = broadcaster_from_url(sys.argv[1])
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        command, *words = json.loads(line)
        if command == "start":
            await adapter.start(Sink())
        elif command == "stop":
            await adapter.stop()
        elif command == "subscribe":
            await adapter.subscribe(words)
        elif command == "publish":
            channel, payload, size, times = words
            for _ in range(times):
                await adapter.publish(channel, payload.encode("latin-1").ljust(size, b"."))
        elif command == "publish_and_die":
            channel, times = words
            for number in range(times):
                await adapter.publish(channel, b"%d" % number)
            os.kill(os.getpid(), signal.SIGKILL)
        elif command == "fork":
            child = os.fork()
            if not child:
                while True:
                    signal.pause()
            say("forked", child)
        say("done", command)

asyncio.run(main())
"""


class Process:
    """Another worker process, told what to do by the line; what its sink hears comes back by the line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.heard: list[list[Any]] = []

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
        """The channels of each gap its sink heard of; `None` for all."""
        return [words[1] for words in self.heard if words[0] == "gap"]

    @property
    def delivered(self) -> list[tuple[str, str]]:
        """Channel and first bytes of each message its sink heard."""
        return [(words[1], words[3]) for words in self.heard if words[0] == "deliver"]

    def tell(self, *words: Any) -> None:
        """Give it a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")

    async def ask(self, *words: Any) -> None:
        """Tell it and wait until it is done."""
        self.tell(*words)
        done = ["done", words[0]]
        times = self.heard.count(done)
        await self.until(lambda: self.heard.count(done) > times)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read what it hears until `condition` holds."""
        assert self._process.stdout is not None
        async with asyncio.timeout(15):
            while not condition():
                line = await self._process.stdout.readline()
                assert line, f"it ended; heard {self.heard[-5:]}"
                self.heard.append(json.loads(line))

    async def hears(self, messages: set[tuple[str, str]]) -> None:
        """Wait until its sink has heard all of `messages`."""
        await self.until(lambda: messages <= set(self.delivered))

    async def kill(self) -> None:
        """End it without a goodbye."""
        self._process.kill()
        await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def ended(self) -> None:
        """Wait for its end."""
        await self._process.wait()

    async def freeze(self) -> None:
        """Stop it, and wait until the kernel says that it stands still."""
        self._process.send_signal(signal.SIGSTOP)
        status = Path(f"/proc/{self.pid}/stat")
        await fact(lambda: status.read_text().rsplit(")", 1)[1].split()[0] == "T")

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

    async def hears(self, other: Worker, channel: str) -> None:
        """Wait for a message of `other`, and so for everything `other` had said before."""
        count = len(self.sink.delivered)
        await other.adapter.publish(channel, b"barrier")
        await self.sink.until(lambda: (channel, b"barrier") in self.sink.delivered[count:])


async def fact(holds: Callable[[], bool]) -> None:
    """Look at a fact of the operating system, which sends no event, until it holds."""
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path, which pytest's own is not: a Unix socket has 107 bytes for it."""
    with tempfile.TemporaryDirectory(prefix="ipc") as path:
        yield Path(path)


@pytest.fixture
def url(directory: Path) -> str:
    """An application of this test alone."""
    return f"ipc://app?directory={directory}"


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """What is entered here ends with the test."""
    async with AsyncExitStack() as stack:
        yield stack


def folder_of(directory: Path) -> Path:
    """Return the folder behind `url`."""
    return open_folder("app", directory)


def sockets(directory: Path) -> set[str]:
    """Return what is in it."""
    return {path.name for path in folder_of(directory).iterdir()}


# -- several processes -----------------------------------------------------------------------------------------------


async def test_two_processes_that_start_at_once_hear_each_other(url: str, stack: AsyncExitStack) -> None:
    """However two starts interleave, the first publish after start and subscribe reaches the other process."""
    first, second = [await stack.enter_async_context(await Process.spawn(url)) for _ in range(2)]
    for turn in range(25):
        await asyncio.gather(*(process.ask("start") for process in (first, second)))
        await asyncio.gather(*(process.ask("subscribe", "a") for process in (first, second)))
        first.tell("publish", "a", f"first {turn}", 0, 1)
        second.tell("publish", "a", f"second {turn}", 0, 1)
        both = {("a", f"first {turn}"), ("a", f"second {turn}")}
        await asyncio.gather(*(process.hears(both) for process in (first, second)))
        await asyncio.gather(*(process.ask("stop") for process in (first, second)))
    assert first.gaps == second.gaps == []


async def test_what_a_killed_publisher_published_arrives(url: str, stack: AsyncExitStack) -> None:
    """A process that kills itself right after its last publish returned has lost nothing, and leaves no gap."""
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.ask("start")
    worker = await stack.enter_async_context(Worker(url))
    await worker.adapter.subscribe(["a"])
    process.tell("publish_and_die", "a", 100)
    await worker.sink.until(lambda: len(worker.sink.delivered) == 100)
    assert worker.sink.payloads("a") == [b"%d" % number for number in range(100)]
    await process.ended()
    assert worker.sink.gaps == []


async def test_writing_to_a_dead_publisher_loses_nothing_of_what_it_said(url: str, stack: AsyncExitStack) -> None:
    """Subscribing between the death of a peer and the reading of its last messages does not drop them."""
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.ask("start")
    worker = await stack.enter_async_context(Worker(url))
    await worker.adapter.subscribe(["a"])
    death = os.pidfd_open(process.pid)
    process.tell("publish_and_die", "a", 3)
    await asyncio.sleep(0)  # uvloop sends the command only now
    select.select([death], [], [], 10)  # this event loop stands still until the process is dead
    os.close(death)
    await worker.adapter.subscribe(["b"])
    await worker.adapter.publish("x", b"")
    await worker.sink.until(lambda: len(worker.sink.delivered) == 3)
    assert worker.sink.gaps == []


async def test_a_child_does_not_keep_its_parent_alive(url: str, stack: AsyncExitStack) -> None:
    """A process that is killed is gone for its peers, though a child that it forked lives on."""
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.ask("start")
    worker = await stack.enter_async_context(Worker(url))
    await process.ask("fork")
    (child,) = [words[1] for words in process.heard if words[0] == "forked"]
    stack.callback(os.kill, child, signal.SIGKILL)
    await process.ask("subscribe", "a")
    await worker.adapter.publish("a", b"the parent still receives")
    await process.hears({("a", "the parent still receives")})
    assert await worker.adapter.describe() == "Unix sockets, 1 other process"
    process.signal(signal.SIGKILL)
    async with asyncio.timeout(10):
        while await worker.adapter.describe() != "Unix sockets, 0 other processes":
            await asyncio.sleep(0.005)
    os.kill(child, 0)  # it lives


async def test_a_process_that_dies_idle_leaves_no_gap_and_no_socket(
    url: str, directory: Path, stack: AsyncExitStack
) -> None:
    """The one that met a killed process removes its socket, and knows that nothing was lost."""
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.ask("start")
    worker = await stack.enter_async_context(Worker(url))
    await worker.adapter.subscribe(["a"])
    assert len(sockets(directory)) == 2
    await process.kill()
    await fact(lambda: len(sockets(directory)) == 1)
    await worker.adapter.subscribe(["b"])
    assert worker.sink.gaps == []


async def test_a_publisher_that_dies_with_bytes_in_memory_leaves_a_gap(url: str, stack: AsyncExitStack) -> None:
    """What was still in the memory of a killed publisher is lost, and the peer it was for reports a gap."""
    publisher, listener = [await stack.enter_async_context(await Process.spawn(url)) for _ in range(2)]
    await publisher.ask("start")
    await listener.ask("start")
    await listener.ask("subscribe", "a")
    await listener.freeze()
    await publisher.ask("publish", "a", "big", MEBIBYTE // 8, 40)
    await publisher.kill()
    listener.thaw()
    await listener.until(lambda: bool(listener.gaps))
    assert listener.gaps == [None]
    assert 0 < len(listener.delivered) < 40


async def test_a_frozen_peer_that_was_not_cut_misses_nothing(url: str, stack: AsyncExitStack) -> None:
    """Within the bound, what a stopped process did not read waits for it, and it reports no gap."""
    listener = await stack.enter_async_context(await Process.spawn(url))
    await listener.ask("start")
    await listener.ask("subscribe", "a")
    worker = await stack.enter_async_context(Worker(url))
    await listener.freeze()
    for number in range(32):
        await worker.adapter.publish("a", b"%d " % number + bytes(MEBIBYTE // 8))
    listener.thaw()
    await listener.until(lambda: len(listener.delivered) == 32)
    assert [int(text.split(" ")[0]) for _, text in listener.delivered] == list(range(32))
    assert listener.gaps == []


async def test_a_peer_too_far_behind_is_cut_and_reports_one_gap(url: str, stack: AsyncExitStack) -> None:
    """A stopped process holds nobody up; once it runs it reports one gap and hears what is published from then on."""
    url += "&max_peer_backlog_bytes=100000"
    listener = await stack.enter_async_context(await Process.spawn(url))
    await listener.ask("start")
    await listener.ask("subscribe", "a", "b")
    worker = await stack.enter_async_context(Worker(url))
    await listener.freeze()
    for number in range(40):
        await worker.adapter.publish("a", b"%d " % number + bytes(MEBIBYTE // 8))
    listener.thaw()
    await listener.until(lambda: bool(listener.gaps))
    await worker.adapter.publish("a", b"after")
    await listener.until(lambda: ("a", "after") in listener.delivered)
    assert listener.gaps == [None]
    assert [words[0] for words in listener.heard[-2:]] == ["gap", "deliver"]


async def test_a_message_larger_than_the_bound_passes_alone(url: str, stack: AsyncExitStack) -> None:
    """A single message may be larger than the backlog: only what comes behind it can be too much."""
    url += "&max_peer_backlog_bytes=1000"
    listener = await stack.enter_async_context(Worker(url))
    publisher = await stack.enter_async_context(Worker(url))
    await listener.adapter.subscribe(["a"])
    await publisher.adapter.publish("a", bytes(4 * MEBIBYTE))
    await listener.sink.until(lambda: bool(listener.sink.delivered))
    assert listener.sink.delivered == [("a", bytes(4 * MEBIBYTE))]
    assert listener.sink.gaps == []


async def test_a_frozen_peer_holds_up_one_subscription_once(url: str, stack: AsyncExitStack) -> None:
    """A peer that does not confirm is waited for once; when it runs again the gap of exactly these channels is told."""
    url += "&peer_timeout_seconds=0.5"
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.ask("start")
    worker = await stack.enter_async_context(Worker(url))
    await worker.adapter.subscribe(["early"])
    await process.freeze()

    async def subscribe_meanwhile() -> None:
        await asyncio.sleep(0.2)  # in the middle of the other wait
        await worker.adapter.subscribe(["meanwhile"])

    await asyncio.gather(worker.adapter.subscribe(["late"]), subscribe_meanwhile())
    start = time.monotonic()
    for number in range(10):
        await worker.adapter.subscribe([f"later {number}"])
    assert time.monotonic() - start < 0.5
    process.thaw()
    expected = {"late", "meanwhile", *(f"later {number}" for number in range(10))}
    await worker.sink.until(lambda: expected <= {name for names, _ in worker.sink.gaps for name in names or ()})
    assert all(names is not None and "early" not in names for names, _ in worker.sink.gaps)
    await process.ask("publish", "late", "now", 0, 1)
    await worker.sink.until(lambda: ("late", b"now") in worker.sink.delivered)
    assert process.gaps == []


async def test_a_pause_of_this_process_is_no_silence_of_a_peer(
    url: str, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """Who was blocked itself while its peers confirmed goes on without none of them, and reports no gap."""
    url += "&peer_timeout_seconds=0.5"
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.ask("start")
    worker = await stack.enter_async_context(Worker(url))
    asyncio.get_running_loop().call_soon(time.sleep, 1.5)
    await worker.adapter.subscribe(["room"])
    await process.ask("publish", "room", "now", 0, 1)
    await worker.sink.until(lambda: ("room", b"now") in worker.sink.delivered)
    assert (worker.sink.gaps, caplog.messages) == ([], [])


async def test_a_late_peer_that_dies_leaves_a_gap(url: str, stack: AsyncExitStack) -> None:
    """A peer that died before it confirmed a subscription may have published: the gap is told at its death."""
    url += "&peer_timeout_seconds=0.2"
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.ask("start")
    worker = await stack.enter_async_context(Worker(url))
    await process.freeze()
    await worker.adapter.subscribe(["late"])
    assert worker.sink.gaps == []
    await process.kill()
    await worker.sink.until(lambda: bool(worker.sink.gaps))
    assert len(worker.sink.gaps) == 1


@pytest.mark.parametrize("publishes", [True, False])
async def test_a_start_goes_on_without_a_frozen_peer(url: str, stack: AsyncExitStack, *, publishes: bool) -> None:
    """A peer that was stopped during our start reports a gap if and only if something was published without it."""
    url += "&peer_timeout_seconds=0.2"
    process = await stack.enter_async_context(await Process.spawn(url))
    await process.ask("start")
    await process.ask("subscribe", "a")
    await process.freeze()
    worker = await stack.enter_async_context(Worker(url))
    await worker.adapter.subscribe(["b"])
    if publishes:
        await worker.adapter.publish("a", b"missed")
    process.thaw()
    await worker.sink.until(lambda: bool(worker.sink.gaps))
    await process.ask("subscribe", "c")  # confirmed by us: we know its channels
    await worker.adapter.publish("a", b"heard")
    await process.until(lambda: bool(process.delivered))
    assert process.delivered == [("a", "heard")]
    assert [names is None or "a" in names for names in process.gaps] == ([True] if publishes else [])


# -- leaving ---------------------------------------------------------------------------------------------------------


async def test_a_goodbye_leaves_no_gap(url: str, directory: Path, stack: AsyncExitStack) -> None:
    """A peer that stops in order takes its socket along, and those who stay report nothing."""
    staying = await stack.enter_async_context(Worker(url))
    other = await stack.enter_async_context(Worker(url))
    await staying.adapter.subscribe(["a"])
    for _ in range(10):
        async with Worker(url) as leaving:
            await leaving.adapter.subscribe(["a"])
            await leaving.adapter.publish("a", b"last words")
    for _ in range(3):  # the goodbye lies on another connection: a few passes of the event loop
        await staying.hears(other, "a")
    assert len(sockets(directory)) == 2
    assert staying.sink.payloads("a").count(b"last words") == 10
    assert staying.sink.gaps == []


async def test_stop_flushes_what_was_published(url: str, stack: AsyncExitStack) -> None:
    """Messages that did not fit into the kernel's buffer still reach a peer that reads, before the goodbye."""
    listener = await stack.enter_async_context(Worker(url))
    await listener.adapter.subscribe(["a"])
    async with Worker(url) as leaving:
        for _ in range(6):
            await leaving.adapter.publish("a", bytes(MEBIBYTE))
    await listener.sink.until(lambda: len(listener.sink.delivered) == 6)
    assert listener.sink.gaps == []


async def test_stop_does_not_wait_for_a_frozen_peer(url: str, stack: AsyncExitStack) -> None:
    """A goodbye is given half a second; the peer that did not read its messages reports a gap."""
    listener = await stack.enter_async_context(await Process.spawn(url))
    await listener.ask("start")
    await listener.ask("subscribe", "a")
    async with Worker(url) as leaving:
        await listener.freeze()
        for _ in range(6):
            await leaving.adapter.publish("a", bytes(MEBIBYTE))
        start = time.monotonic()
    assert time.monotonic() - start < 2
    listener.thaw()
    await listener.until(lambda: bool(listener.gaps))
    assert listener.gaps == [None]


def test_an_adapter_starts_again_in_another_event_loop(url: str) -> None:
    """Nothing of the first run is left in the second."""
    adapter = broadcaster_from_url(url)

    async def run() -> list[tuple[str, bytes]]:
        sink = RecordingSink()
        await adapter.start(sink)
        await adapter.publish("a", b"nobody listens")
        await adapter.subscribe(["a"])
        await adapter.publish("a", b"heard")
        await adapter.stop()
        return sink.delivered

    assert [asyncio.run(run()) for _ in range(2)] == [[("a", b"heard")]] * 2


# -- the folder ------------------------------------------------------------------------------------------------------


async def test_different_names_never_meet(directory: Path, stack: AsyncExitStack) -> None:
    """Names that look alike, in one directory, are applications of their own."""
    names = ["app", "App", "app/", "app.", "a%70p/1", "app-1", "x" * 300, "x" * 299 + "y"]
    workers = [await stack.enter_async_context(Worker(f"ipc://{name}?directory={directory}")) for name in names]
    for worker in workers:
        await worker.adapter.subscribe(["a"])
    twin = await stack.enter_async_context(Worker(f"ipc://{names[0]}?directory={directory}"))
    for worker, name in zip(workers, names, strict=True):
        await worker.adapter.publish("a", name.encode())
    await workers[0].hears(twin, "a")
    assert workers[0].sink.payloads("a") == [b"app", b"barrier"]
    assert [worker.sink.payloads("a") for worker in workers[1:]] == [[name.encode()] for name in names[1:]]


async def test_the_folder_is_private(url: str, directory: Path) -> None:
    """Folder and socket are for this user alone, whatever the umask; the sticky bit keeps cleaners away."""
    mask = os.umask(0)
    try:
        async with Worker(url):
            folder = folder_of(directory)
            (path,) = folder.iterdir()
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert stat.S_IMODE(path.stat().st_mode) == 0o1600
    finally:
        os.umask(mask)


async def test_a_folder_open_to_others_is_refused(url: str, directory: Path) -> None:
    """Someone else could have put a socket there."""
    folder_of(directory).chmod(0o770)
    with pytest.raises(BrokerError, match="open to other users") as caught:
        await Worker(url).__aenter__()
    assert not caught.value.retriable


async def test_a_symbolic_link_for_a_folder_is_refused(url: str, directory: Path) -> None:
    """Someone else could have put it there to lead us elsewhere."""
    folder = folder_of(directory)
    (directory / "elsewhere").mkdir(mode=0o700)
    folder.rmdir()
    folder.symlink_to(directory / "elsewhere")
    with pytest.raises(BrokerError, match="not a directory"):
        await Worker(url).__aenter__()


async def test_a_folder_of_another_user_is_refused(url: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner could read and answer for us."""
    folder_of(directory)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(BrokerError, match="belongs to user"):
        await Worker(url).__aenter__()


@pytest.mark.parametrize(("owner", "mode", "problem"), [
    (12345, 0o755, "belongs to user 12345"), (None, 0o777, "can be written by other users"),
])  # fmt: skip
def test_a_path_that_another_user_could_replace_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch, owner: int | None, mode: int, problem: str
) -> None:
    """Whoever owns or may write a folder above ours could put another one in its place."""
    parent = directory / "parent"
    parent.mkdir()
    parent.chmod(mode)
    found = os.stat_result((parent.stat().st_mode, 0, 0, 1, owner or os.geteuid(), 0, 0, 0, 0, 0))
    stat_of = Path.stat

    def stat_as_told(path: Path, **options: bool) -> os.stat_result:
        return found if path == parent else stat_of(path, **options)

    monkeypatch.setattr(Path, "stat", stat_as_told)
    with pytest.raises(BrokerError, match=problem):
        open_folder("app", parent / "own")
    monkeypatch.undo()
    parent.chmod(0o1777)  # as /tmp is
    assert open_folder("app", parent / "own").is_dir()


async def test_a_peer_of_another_user_is_refused(
    url: str, directory: Path, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process of another user that found a way to the sockets is neither answered nor received from."""
    worker = await stack.enter_async_context(Worker(url))
    (name,) = sockets(directory)
    listener, foreign = bind_socket(folder_of(directory), 1)
    stack.callback(listener.close)
    folder = folder_of(directory)
    monkeypatch.setattr("backplane.adapters.ipc.folder.os.geteuid", lambda: os.getuid() + 1)
    with socket.socket(socket.AF_UNIX) as ours:
        ours.setblocking(False)
        ours.connect(str(folder / name))
        assert await asyncio.get_running_loop().sock_recv(ours, 1) == b""
    assert f"refused a connection of user {os.getuid()}" in caplog.text
    with pytest.raises(ConnectionRefusedError):
        connect_socket(folder / foreign)
    assert f"ignored the socket {folder / foreign} of user {os.getuid()}" in caplog.text
    assert worker.sink.losses == []


@pytest.mark.parametrize("runtime", [True, False])
def test_the_default_folder_is_private_in_every_part(
    directory: Path, monkeypatch: pytest.MonkeyPatch, *, runtime: bool
) -> None:
    """Without `directory` it stands in the runtime directory, else in a folder of this user in the temporary one."""
    if runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    else:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(directory))
    folder = open_folder("app", None)
    assert folder.parent == directory / ("backplane" if runtime else f"backplane-{os.geteuid()}")
    folder.parent.chmod(0o755)
    with pytest.raises(BrokerError, match="open to other users"):
        open_folder("app", None)


async def test_a_directory_too_long_for_a_socket_is_named(directory: Path) -> None:
    """The limit of the operating system is met with words, not with its error."""
    with pytest.raises(ConfigurationError, match="too long for a Unix socket"):
        await Worker(f"ipc://app?directory={directory / ('x' * 100)}").__aenter__()


@pytest.mark.parametrize("url", ["ipc://", "ipc:///", "ipc://me:secret@app", "ipc://app?directory=here"])
def test_a_url_that_cannot_work_is_refused_at_once(url: str) -> None:
    """A missing name, a user, a relative directory: each is told before anything is opened, and no secret with it."""
    with pytest.raises(ConfigurationError) as caught:
        broadcaster_from_url(url)
    assert "secret" not in str(caught.value)


async def test_stale_sockets_are_removed_by_whoever_meets_them(url: str, directory: Path) -> None:
    """A socket nobody listens on any more is removed, one on which its process is only about to listen is not."""
    stale, stale_name = bind_socket(folder_of(directory), 1)
    stale.close()
    with socket.socket(socket.AF_UNIX) as coming:
        coming.bind(str(folder_of(directory) / "1-00000000.sock"))
        async with Worker(url):
            assert stale_name not in sockets(directory)
            assert "1-00000000.sock" in sockets(directory)
        os.utime(folder_of(directory) / "1-00000000.sock", (0, 0))  # its process died before it listened
        async with Worker(url):
            assert "1-00000000.sock" not in sockets(directory)


# -- what others may send --------------------------------------------------------------------------------------------

GARBAGE = {
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "an unknown version": wire.frame(wire.HELLO, b"1-00000000.sock", b"backplane ipc 999"),
    "no hello": wire.frame(wire.MESSAGE, b"a", b"payload"),
    "a path": wire.hello_frame("../../1-00000000.sock"),
    "too much": wire.hello_frame("1-00000000.sock") + b"\x03\x00\x00\xff\xff\xff\xff",
    "a torn interest": wire.hello_frame("1-00000000.sock") + wire.frame(wire.INTEREST, payload=b"\1\0\5abc"),
    "the wrong way": wire.hello_frame("1-00000000.sock") + wire.frame(wire.MESSAGE, b"a", b"payload"),
}


@pytest.mark.parametrize("garbage", list(GARBAGE))
async def test_garbage_costs_only_its_connection(
    url: str, directory: Path, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture, garbage: str
) -> None:
    """A connection that does not speak the protocol is dropped, several with one warning; nobody else notices."""
    worker = await stack.enter_async_context(Worker(url))
    (name,) = sockets(directory)
    twin = await stack.enter_async_context(Worker(url))
    await worker.adapter.subscribe(["a"])
    for _ in range(3):
        reader, writer = await asyncio.open_unix_connection(folder_of(directory) / name)
        writer.write(GARBAGE[garbage])
        await reader.read()  # dropped
        writer.close()
    await worker.hears(twin, "a")
    assert [record.levelname for record in caplog.records if "payload" not in record.getMessage()] == ["WARNING"]
    assert worker.sink.delivered == [("a", b"barrier")]
    assert worker.sink.gaps == []


async def test_a_socket_that_answers_garbage_is_left_alone(
    url: str, directory: Path, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """A foreign listener, or a peer of another version, neither holds up the start nor is tried for ever."""
    dials = 0

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dials
        dials += 1
        writer.write(b"220 hello\r\n")
        writer.close()

    server = await asyncio.start_unix_server(answer, folder_of(directory) / "1-00000000.sock")
    stack.push_async_callback(server.wait_closed)
    stack.callback(server.close)
    worker = await stack.enter_async_context(Worker(url + "&peer_timeout_seconds=30"))
    twin = await stack.enter_async_context(Worker(url + "&peer_timeout_seconds=30"))
    await worker.adapter.subscribe(["a"])
    await worker.hears(twin, "a")
    assert dials == 2  # one from each
    assert len(caplog.records) == 4


# -- frames and interest, without I/O --------------------------------------------------------------------------------


def test_frames_survive_any_cut() -> None:
    """However the bytes are cut on their way, the same frames come out."""
    chance = random.Random(1)
    frames = [
        (chance.randrange(10), bytes(chance.randrange(5)), chance.randbytes(chance.choice([0, 1, 100, 5000])))
        for _ in range(200)
    ]
    stream = b"".join(wire.frame(*each) for each in frames)
    for largest in (1, 2, 8, 1000, 1_000_000):
        decoder, out, offset = wire.Decoder(5000), list[tuple[int, bytes, bytes]](), 0
        while offset < len(stream):
            size = chance.randint(1, largest)
            out += decoder.feed(stream[offset : offset + size])
            offset += size
        assert out == frames
        assert not decoder.inside_frame


def test_a_decoder_knows_when_it_is_inside_a_frame() -> None:
    """Between two frames nothing is missing; anywhere else something is."""
    decoder = wire.Decoder(100)
    whole = wire.frame(wire.MESSAGE, b"a", b"payload")
    assert list(decoder.feed(whole + whole[:3])) == [(wire.MESSAGE, b"a", b"payload")]
    assert decoder.inside_frame
    assert list(decoder.feed(whole[3:])) == [(wire.MESSAGE, b"a", b"payload")]
    assert not decoder.inside_frame


def test_a_ledger_confirms_only_what_was_said() -> None:
    """A ticket is confirmed with its last chunk, whatever was asked before and after."""
    ledger = Ledger()
    many = [b"%060d" % number for number in range(3000)]
    first, second = ledger.want(many, wanted=True), 0
    told: list[bytes] = []
    while chunk := ledger.next_chunk():
        assert ledger.next_chunk() == []  # one at a time
        second = second or ledger.want([b"x", many[0]], wanted=True)
        told += [key for key, _ in chunk]
        assert not ledger.has_confirmed(first)
        ledger.confirm(with_gap=False)
    assert ledger.has_confirmed(first)
    assert ledger.has_confirmed(second)
    assert ledger.all_confirmed
    assert set(told) == {*many, b"x"}


def test_a_ledger_that_starts_again_confirms_open_tickets_with_the_last_chunk() -> None:
    """After a new connection a part of the channels confirms nothing that was asked before."""
    ledger = Ledger()
    many = [b"%060d" % number for number in range(3000)]
    ticket = ledger.want(many, wanted=True)
    ledger.next_chunk()
    ledger.restart(many)
    chunks = 0
    while not ledger.has_confirmed(ticket):
        assert ledger.next_chunk()
        ledger.confirm(with_gap=False)
        chunks += 1
    assert chunks == 3
    assert ledger.all_confirmed


def test_a_ledger_tells_the_gap_of_a_channel_once_and_only_while_it_is_wanted() -> None:
    """Missed channels come back with their confirmation, without those dropped meanwhile."""
    ledger = Ledger()
    ledger.want([b"a", b"b"], wanted=True)
    ledger.missed.update([b"a", b"b"])
    ledger.want([b"b"], wanted=False)
    ledger.next_chunk()
    assert ledger.confirm(with_gap=False) == {b"a"}
    assert ledger.missed == set()
