"""Load clients and publishers as processes of their own, called from here."""

from __future__ import annotations

import multiprocessing
import select
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from benchmarks.harness.capacity import allow_many_files
from benchmarks.harness.listener import Listener
from benchmarks.harness.publisher import Plan, Publisher, PublishReport
from benchmarks.harness.sockets import Client, connect
from benchmarks.harness.tally import Tally, Window
from benchmarks.harness.text import channel_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

    from benchmarks.harness.tally import Counted
    from benchmarks.harness.websocket import Dialect

__all__ = ["AudienceReport", "RemoteAudience", "RemoteError", "RemotePublisher", "Shape"]

_ANSWER_SECONDS = 120.0
_CONNECTED_IN_ONE_GO = 1000


class RemoteError(Exception):
    """Something failed in a process of the harness; holds its traceback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What every process of a run knows.

    Attributes:
        run: What marks its texts.
        epoch: Its zero, on the monotonic clock, in nanoseconds.
        port: Where the server is.
        dialect: What its clients send.
        channels: How many there are.
        publishers: How many publish to each.
        size: Bytes of a message.
        deflate: Whether clients offer compression.
        addresses: Over how many addresses they are spread.
        read_every_seconds: How long the audience sleeps between two reads of its sockets.
    """

    run: str
    epoch: int
    port: int
    dialect: Dialect
    channels: int = 1
    publishers: int = 1
    size: int = 128
    deflate: bool = False
    addresses: int = 1
    read_every_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class AudienceReport:
    """What an audience received, by which codes its sockets were closed, and the bytes of a frame; 0 if not known."""

    counted: Counted
    closed: dict[int, int]
    frame_bytes: int


class _Audience:
    """The other end of `RemoteAudience`."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._stalled: list[Client] = []
        self._listener = Listener(
            shape.run,
            shape.epoch,
            Tally(Window(0, 0), shape.channels, shape.publishers),
            deflate=shape.deflate,
            addresses=shape.addresses,
        )

    def serve(self, pipe: Connection) -> None:
        self._listener.poll.register(pipe.fileno(), select.EPOLLIN)
        while not self._listener.listen(1.0) or _answer(self, pipe):
            time.sleep(self._shape.read_every_seconds)

    def connect(self, channels: Sequence[int], at_once: int, first: int, may_fail: bool = False) -> list[float]:
        """Open clients, not so many without a pause that those before them answer no pings."""
        shape, seconds, batch = self._shape, list[float](), max(at_once, _CONNECTED_IN_ONE_GO)
        for start in range(0, len(channels), batch):
            opened = self._listener.open(
                shape.port,
                channels[start : start + batch],
                shape.dialect,
                at_once=at_once,
                first=first,
                may_fail=may_fail,
            )
            seconds += [client.seconds for client in opened]
            self._listener.catch_up()
        return seconds

    def disconnect(self, count: int) -> None:
        """Close the oldest `count` that are open."""
        clients = self._listener.clients
        self._listener.close([index for index, client in enumerate(clients) if client.closed is None][:count])

    def stall(self, count: int) -> None:
        shape = self._shape
        path = shape.dialect.listen_path.format(channel=channel_name(0))
        self._stalled = connect(shape.port, [path] * count, shape.dialect, receive_bytes=4096)

    def stalled_codes(self) -> list[int | None]:
        """Read what the kernel holds for the stalled ones; `None` for those that are still open then."""
        for client in self._stalled:
            with suppress(BlockingIOError, OSError):
                while client.closed is None:
                    client.sock.settimeout(0.2)
                    data = client.sock.recv(1 << 20)
                    client.texts(data)
                    if not data:
                        client.closed = 0
        return [client.closed for client in self._stalled]

    def begin(self, window: Window) -> None:
        self._listener.tally.window = window

    def all_probed(self) -> bool:
        return bool(self._listener.tally.probed.all())

    def deliveries(self) -> int:
        self._listener.count_reads()
        return self._listener.tally.deliveries

    def open_count(self) -> int:
        return sum(client.closed is None for client in self._listener.clients)

    def pings(self) -> int:
        return sum(client.pings for client in self._listener.clients)

    def finish(self) -> AudienceReport:
        return AudienceReport(self._listener.result(), dict(self._listener.closed()), self._listener.frame_bytes)


class _Remote:
    """A process that executes the calls which arrive on its pipe."""

    def __init__(self, serve: Callable[[Connection, Shape], None], shape: Shape) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, shape), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """The process whose CPU time is measured."""
        assert self.process.pid is not None
        return self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def send(self, name: str, *arguments: object) -> None:
        """Send a call without waiting; `receive` takes the answer."""
        self._pipe.send((name, arguments))

    def receive(self, seconds: float = _ANSWER_SECONDS) -> Any:
        """Return the answer, for which it has `seconds`.

        Raises:
            RemoteError: It failed in the process, or the process does not answer.
        """
        try:
            answered = self._pipe.poll(seconds)
            failed, value = self._pipe.recv() if answered else (True, "it does not answer")
        except EOFError:
            failed, value = True, "it has ended"
        if failed:
            raise RemoteError(f"{type(self).__name__}: {value}")
        return value

    def ready(self) -> bool:
        """Whether the answer is there."""
        return self._pipe.poll()

    def call(self, name: str, *arguments: object) -> Any:
        """Send a call, and return the answer."""
        self.send(name, *arguments)
        return self.receive()


class RemoteAudience(_Remote):
    """Sockets that receive."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(_serve_audience, shape)

    def finish(self) -> AudienceReport:
        """Return what they received."""
        report: AudienceReport = self.call("finish")
        return report


class RemotePublisher(_Remote):
    """The publishers."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(_serve_publisher, shape)

    def start(self, plan: Plan) -> None:
        """Start publishing; `report` waits for the end."""
        self.send("publish", plan)

    def report(self) -> PublishReport:
        """Wait for the end, and return what was published."""
        report: PublishReport = self.receive()
        return report


def _serve_audience(pipe: Connection, shape: Shape) -> None:
    allow_many_files()
    _Audience(shape).serve(pipe)


def _serve_publisher(pipe: Connection, shape: Shape) -> None:
    publisher = Publisher(shape.run, shape.epoch, shape.port, shape.dialect)
    publisher.set_size(shape.size)
    while True:
        while not pipe.poll():
            publisher.settle(0.02)
        if not _answer(publisher, pipe):
            return


def _answer(target: object, pipe: Connection) -> bool:
    """Execute one call; returns whether there may be more."""
    try:
        name, arguments = pipe.recv()
    except (EOFError, ConnectionResetError):  # the harness has ended, perhaps with an answer unread
        return False
    try:
        answer = (False, getattr(target, name)(*arguments))
    except Exception:
        answer = (True, traceback.format_exc())
    with suppress(BrokenPipeError):
        pipe.send(answer)
    return True
