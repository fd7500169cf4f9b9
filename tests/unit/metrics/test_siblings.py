"""`backplane.metrics.siblings`: the workers of one server find each other, and wait a second at most."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import stat
import tempfile
import weakref
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest

from backplane import Backplane
from backplane.metrics import sibling_folder
from backplane.metrics import siblings as module
from backplane.metrics.siblings import siblings_of
from backplane.metrics.snapshot import snapshot
from backplane.unix_sockets.sockets import bind_socket, connect_socket
from tests.unit.doubles import until_idle
from tests.unit.metrics.workers import workers

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

pytestmark = pytest.mark.anyio

# Where no broker listens: the workers know each other without one.
NO_BROKER = "redis://127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The runtime directory of this process and of the workers that it starts: a short one."""
    with tempfile.TemporaryDirectory(prefix="si") as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", path)
        yield Path(path)


def sockets(directory: Path) -> list[Path]:
    """Return the sockets of all workers."""
    return sorted(directory.glob("backplane/metrics-*/*.sock"))


def test_all_find_each_other(directory: Path) -> None:
    """Whichever is asked shows all, itself first; the folder is private, and empty when all have stopped."""
    with workers(3, NO_BROKER) as started:
        pids = {worker.pid for worker in started}
        for worker in started:
            found, missing = worker.scrape()
            assert (found[0], set(found), len(found), missing) == (worker.pid, pids, 3, [])
        folder = sockets(directory)[0].parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert started[0].ask("scrapes", 50) == (50, 1)
        assert [worker.ask("stop") for worker in started] == ["stopped"] * 3
        assert sockets(directory) == []
        assert [worker.ask("start") for worker in started] == ["started"] * 3
        assert set(started[1].scrape()[0]) == pids


def test_one_is_killed(directory: Path) -> None:
    """A worker that was killed is absent, not missing, and its socket is removed."""
    with workers(3, NO_BROKER) as (first, killed, other):
        killed.send_signal(signal.SIGKILL)
        assert first.scrape() == ([first.pid, other.pid], [])
        assert len(sockets(directory)) == 2
        with workers(1, NO_BROKER) as (successor,):
            assert set(first.scrape()[0]) == {first.pid, other.pid, successor.pid}


def test_a_socket_that_is_left(directory: Path) -> None:
    """What a server that was killed whole has left is removed by the next one, though no worker asks for it."""
    with workers(1, NO_BROKER) as (killed,):
        [path] = sockets(directory)
        killed.send_signal(signal.SIGKILL)
    foreign = path.with_name("0123456789ab-" + path.name.partition("-")[2])
    path.rename(foreign)
    with workers(1, NO_BROKER):
        [path] = sockets(directory)
        assert path != foreign


@pytest.mark.parametrize("way", ["stopped", "blocked"])
def test_one_does_not_answer(way: str) -> None:
    """A worker that is stopped, or whose event loop is blocked, is named after a second, and shown when it goes on."""
    with workers(3, NO_BROKER) as (first, silent, other):
        if way == "stopped":
            silent.send_signal(signal.SIGSTOP)
        else:
            assert silent.ask("block", 8) == "blocking"
        found, missing, seconds = first.ask("scrape", 0)
        assert (found, missing) == ([first.pid, other.pid], [silent.pid])
        assert 0.9 < seconds < 5  # one second, on a busy machine
        silent.send_signal(signal.SIGCONT)
        while first.scrape()[1]:
            pass
        assert set(first.scrape()[0]) == {first.pid, silent.pid, other.pid}


@pytest.mark.parametrize(
    "answer", [b"", b"\n", b"HTTP/1.1 400\r\n\r\n", b'{"at": 1, "metrics": {"backplane_link_up": 5}}\n']
)
def test_one_answers_garbage(directory: Path, answer: bytes) -> None:
    """A sibling that answers anything else is missing, and the others are shown."""
    with workers(2, NO_BROKER) as (first, other):
        path = sockets(directory)[0]
        group = path.name.partition("-")[0]
        listener, name = bind_socket(path.parent, 8, f"{group}-")
        listener.setblocking(True)
        with listener:
            first.send("scrape", 0)
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)
            found, missing, _ = first.result()
        assert (found, missing) == ([first.pid, other.pid], [name.split("-")[1]])


def test_several_backplanes() -> None:
    """Each backplane of an application finds that of its siblings: of another prefix, broker or purpose none."""
    urls = (NO_BROKER, NO_BROKER, "redis://127.0.0.1:1/0?prefix=a:", "redis://127.0.0.1:1/1")
    with workers(2, *urls) as (first, other):
        for number in range(len(urls)):
            assert first.scrape(number) == ([first.pid, other.pid], [])


async def test_another_server() -> None:
    """The workers of another parent process are none of its siblings; a worker without a server is alone."""
    with workers(1, NO_BROKER) as (worker,):
        async with Backplane("memory://") as backplane:
            alone = await siblings_of(backplane).scrape()
        assert [taken["worker"] for taken in alone.snapshots] == [str(os.getpid())]
        assert worker.scrape() == ([worker.pid], [])


@pytest.fixture
def as_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has been started by a server."""
    monkeypatch.setattr(module, "server_pid", os.getppid)


@pytest.mark.usefixtures("as_worker")
async def test_before_the_start_and_after_the_stop(directory: Path) -> None:
    """A scrape shows this worker at any time, and a socket exists from the start to the stop."""
    backplane = Backplane("memory://")
    siblings = siblings_of(backplane)
    assert siblings_of(backplane) is siblings
    assert len((await siblings.scrape()).snapshots) == 1
    assert sockets(directory) == []
    async with backplane:
        assert len(sockets(directory)) == 1
        assert len((await siblings.scrape()).snapshots) == 1
    assert sockets(directory) == []
    assert len((await siblings.scrape()).snapshots) == 1


@pytest.mark.usefixtures("as_worker")
async def test_made_after_the_start(directory: Path) -> None:
    """Where it is made too late, this worker is found from its first scrape on."""
    async with Backplane("memory://") as backplane:
        siblings = siblings_of(backplane)
        assert sockets(directory) == []
        await siblings.scrape()
        assert len(sockets(directory)) == 1
    assert sockets(directory) == []


@pytest.mark.usefixtures("as_worker")
def test_an_event_loop_that_ends_without_a_stop(directory: Path) -> None:
    """After it, the next start listens anew, on a socket that replaces the old one."""
    backplane = Backplane("memory://")
    siblings_of(backplane)

    async def start() -> list[Path]:
        await backplane.start()
        return sockets(directory)

    async def restart() -> list[Path]:
        async with backplane:
            return sockets(directory)

    first = asyncio.run(start())
    second = asyncio.run(restart())
    assert (len(first), len(second)) == (1, 1)
    assert first != second
    assert sockets(directory) == []


@pytest.mark.usefixtures("as_worker")
async def test_another_event_loop_asks() -> None:
    """The endpoint may be served by another event loop than that of the backplane, in another thread."""
    async with Backplane("memory://") as backplane:
        siblings = siblings_of(backplane)
        await siblings.scrape()
        found = await asyncio.to_thread(lambda: asyncio.run(siblings.scrape()))
        assert found.snapshots[0]["metrics"]["backplane_link_up"] == [[[], 1]]


@pytest.mark.usefixtures("as_worker")
@pytest.mark.parametrize("place", ["long", "open", "file", "none"])
async def test_an_unusual_temporary_directory(
    directory: Path, monkeypatch: pytest.MonkeyPatch, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the usual folder cannot be used the workers meet in the next one; where none can, a warning names it."""
    strange = {"long": directory / ("x" * 120), "open": directory / "open", "file": directory / "file" / "x"}
    (directory / "open").mkdir()
    (directory / "open").chmod(0o777)
    (directory / "file").write_text("")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(strange.get(place, directory / "missing")))
    monkeypatch.setattr(sibling_folder, "_LAST_RESORT", directory / "file" / "y" if place == "none" else directory)
    if place == "none":
        monkeypatch.setattr(tempfile, "gettempdir", _no_directory)
    async with Backplane("memory://") as backplane:
        siblings = siblings_of(backplane)
        assert len((await siblings.scrape()).snapshots) == 1
        assert len(list(directory.rglob("*.sock"))) == (0 if place == "none" else 1)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [("siblings=False" in text and "Not a directory" in text) for text in warned] == [True] * (place == "none")


def _no_directory() -> str:
    raise FileNotFoundError(2, "No usable temporary directory found")


@pytest.mark.usefixtures("as_worker")
async def test_the_folder_is_removed(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder that a cleaner has removed costs the others' metrics and a warning, not the scrape."""
    backplane = Backplane("memory://")
    siblings = siblings_of(backplane)
    async with backplane:
        [path] = sockets(directory)
        path.unlink()
        path.parent.rmdir()
        assert len((await siblings.scrape()).snapshots) == 1
    assert "cannot list the other workers" in caplog.text


@pytest.mark.usefixtures("as_worker")
async def test_too_many_ask(directory: Path) -> None:
    """A process that connects without end is closed out, and one that asks after it is answered."""
    backplane, loop = Backplane("memory://"), asyncio.get_running_loop()
    siblings_of(backplane)
    async with backplane, asyncio.timeout(30):
        [path] = sockets(directory)
        with ExitStack() as stack:
            waiting = [stack.enter_context(connect_socket(path)) for _ in range(200)]
            assert await loop.sock_recv(waiting[-1], 1) == b""
        answered = b""
        while not answered:
            with connect_socket(path) as late, suppress(OSError):  # closed out, until the others are noticed to be gone
                await loop.sock_sendall(late, b"metrics\n")
                answered = await loop.sock_recv(late, 10)
        assert answered.startswith(b"{")


@contextmanager
def neighbour(directory: Path, pid: int) -> Generator[socket.socket]:
    """Listen as a sibling of this process would, on a socket in its folder."""
    own = sockets(directory)[0]
    group = own.name.partition("-")[0]
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(own.with_name(f"{group}-{pid}-01234567.sock")))
        listener.listen()
        listener.setblocking(False)
        yield listener


async def answered(listener: socket.socket, answer: bytes) -> None:
    """Answer the next question."""
    loop = asyncio.get_running_loop()
    connection, _ = await loop.sock_accept(listener)
    with connection:
        assert await loop.sock_recv(connection, 100) == b"metrics\n"
        await loop.sock_sendall(connection, answer)


@pytest.mark.usefixtures("as_worker")
async def test_what_siblings_answer(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is none is missing, and logged; the others are shown, in the order of the processes."""
    backplane = Backplane("memory://")
    siblings = siblings_of(backplane)
    async with backplane, asyncio.timeout(30):
        pids = (12, 7, 9)
        answers = json.dumps(snapshot(backplane)).encode() + b"\n", b'{"at": 1, "metrics": {}}\n', b"no\n"
        with ExitStack() as stack:
            listeners = [stack.enter_context(neighbour(directory, pid)) for pid in pids]
            async with asyncio.TaskGroup() as answering:
                for listener, answer in zip(listeners, answers, strict=True):
                    answering.create_task(answered(listener, answer))
                scrape = await siblings.scrape()
        assert [taken["worker"] for taken in scrape.snapshots] == [str(os.getpid()), "7", "12"]
        assert scrape.missing == ["9"]
        assert [record.getMessage()[:37] for record in caplog.records] == ["worker 9 did not answer a scrape with"]


@pytest.mark.usefixtures("as_worker")
async def test_missing_for_another_event_loop(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A scrape in another event loop names what is missing, and leaves the log to the event loop of the backplane."""
    backplane = Backplane("memory://")
    siblings = siblings_of(backplane)
    async with backplane, asyncio.timeout(30):
        with neighbour(directory, 7) as listener:
            scrape, _ = await asyncio.gather(
                asyncio.to_thread(lambda: asyncio.run(siblings.scrape())), answered(listener, b"no\n")
            )
        assert (scrape.missing, caplog.records) == (["7"], [])


@pytest.mark.usefixtures("as_worker")
async def test_a_sibling_that_is_gone(directory: Path) -> None:
    """Where no process listens any more the worker has ended: it is neither shown nor missing."""
    backplane = Backplane("memory://")
    siblings = siblings_of(backplane)
    async with backplane:
        with neighbour(directory, 7):
            pass
        scrape = await siblings.scrape()
        assert (len(scrape.snapshots), scrape.missing) == (1, [])
        one, other = await asyncio.gather(siblings.scrape(), siblings.scrape())
        assert one is other, "scrapes at the same time share the answers"


@pytest.mark.usefixtures("as_worker")
async def test_a_first_scrape_in_another_event_loop(directory: Path) -> None:
    """A worker listens in the event loop of its backplane alone."""
    async with Backplane("memory://") as backplane:
        siblings = siblings_of(backplane)
        found = await asyncio.to_thread(lambda: asyncio.run(siblings.scrape()))
        assert (len(found.snapshots), sockets(directory)) == (1, [])


@pytest.mark.usefixtures("as_worker")
async def test_figures_that_cannot_be_read(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of this package is an error in the log of the worker that has it, which serves on."""
    backplane, loop = Backplane("memory://"), asyncio.get_running_loop()
    siblings_of(backplane)
    async with backplane, asyncio.timeout(30):
        monkeypatch.setattr(module, "snapshot", Mock(side_effect=ZeroDivisionError))
        [path] = sockets(directory)
        with connect_socket(path) as asking:
            await loop.sock_sendall(asking, b"metrics\n")
            assert await loop.sock_recv(asking, 10) == b""
        await until_idle()
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "the metrics of this worker could not be read for another one")
    ]


@pytest.mark.usefixtures("as_worker")
async def test_a_stop_while_one_asks(directory: Path) -> None:
    """It waits for no process that has connected and does not ask."""
    backplane, loop = Backplane("memory://"), asyncio.get_running_loop()
    siblings_of(backplane)
    await backplane.start()
    [path] = sockets(directory)
    with connect_socket(path) as silent:
        await until_idle()
        async with asyncio.timeout(30):
            await backplane.stop()
            assert await loop.sock_recv(silent, 1) == b""


@pytest.mark.usefixtures("as_worker")
async def test_what_is_left_in_the_folder(directory: Path) -> None:
    """A start removes sockets on which no process listens, of any server, and nothing else."""
    async with Backplane("memory://") as first:
        await siblings_of(first).scrape()
        [own] = sockets(directory)
        dead, alive, other = (own.with_name(f"{digit * 12}-7-01234567.sock") for digit in "abc")
        note = own.with_name("note.txt")
        note.write_text("")
        with ExitStack() as stack:
            for path, kind in ((dead, socket.SOCK_STREAM), (alive, socket.SOCK_STREAM), (other, socket.SOCK_DGRAM)):
                listener = stack.enter_context(closing(socket.socket(socket.AF_UNIX, kind)))
                listener.bind(str(path))
                if path is alive:
                    listener.listen()
            os.utime(dead, (0, 0))  # its process is not about to listen
            second = Backplane("memory://")
            siblings_of(second)
            async with second:
                assert {path.name for path in own.parent.iterdir()} >= {own.name, alive.name, other.name, note.name}
                assert not dead.exists()


async def test_a_backplane_that_is_discarded() -> None:
    """Siblings do not keep a backplane alive."""
    backplane = Backplane("memory://")
    siblings_of(backplane)
    gone = weakref.ref(backplane)
    del backplane
    gc.collect()
    assert gone() is None
