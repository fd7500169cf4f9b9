"""SDK clients in the benchmarks, and the scenario that compares their rooms with raw ones."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from backplane.centrifugal.encoding import JSON, PROTOBUF
from backplane.fanout.frames import encode_frame
from benchmarks.choice import Choice, measure_choice
from benchmarks.harness.brokers import Brokers
from benchmarks.harness.candidate import Serving, backplane
from benchmarks.harness.listener import Listener
from benchmarks.harness.publisher import Publisher
from benchmarks.harness.run import Options, Run
from benchmarks.harness.server import Server
from benchmarks.harness.tally import Tally, Window
from benchmarks.harness.text import channel_name, text
from benchmarks.harness.websocket import PLAIN, SDK, SDK_PROTOBUF, Dialect
from benchmarks.scenarios import fanout, saturation, sdk
from benchmarks.scenarios.catalog import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from backplane.centrifugal.encoding import Encoding

RUN = "abcdefgh"
ENCODINGS = pytest.mark.parametrize(
    ("dialect", "encoding"), [(SDK, JSON), (SDK_PROTOBUF, PROTOBUF)], ids=["json", "protobuf"]
)


@contextmanager
def accepting(talk: Callable[[socket.socket], None]) -> Generator[tuple[int, list[bytes]]]:
    """Accept one client, and answer its handshake, then `talk`; yields the port, and where its request is put."""
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            end, _ = server.accept()
            with end:
                requests.append(end.recv(65536))
                end.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
                talk(end)

        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1], requests
        thread.join()


def payload(end: socket.socket, opcode: int) -> bytes:
    """Return what the next frame of the client holds, which has a mask of 0."""
    data = end.recv(65536)
    assert data[0] & 15 == opcode
    return data[6 : 6 + (data[1] & 127)]


def framed(data: str | bytes) -> bytes:
    """Return a message as the server frames it."""
    return encode_frame(data)


@ENCODINGS
def test_a_client_connects_receives_and_answers_pings(dialect: Dialect, encoding: Encoding) -> None:
    """In both encodings the greeting is a connect, its reply ends the handshake, and a ping is answered."""
    answered: list[Any] = []

    def talk(end: socket.socket) -> None:
        data = payload(end, dialect.opcode)
        commands = encoding.decode(data.decode() if encoding is JSON else data)
        answered.append([(command.id, command.name) for command in commands])
        end.sendall(framed(encoding.reply(1, "connect", {"client": "a" * 36, "ping": 25, "pong": True})))
        for sequence in range(3):
            message = text(RUN, 0, 0, sequence, 0, 84)
            end.sendall(framed(encoding.publication(channel_name(0), message, is_json=False, offset=None)))
            end.sendall(framed(encoding.ping))
            answered.append(payload(end, dialect.opcode))

    with accepting(talk) as (port, requests):
        listener = Listener(RUN, 0, Tally(Window(0, 1 << 40), 1, 1), deflate=False)
        listener.open(port, [0], dialect, may_fail=False)
        while listener.tally.deliveries < 3 or listener.clients[0].pings < 3:
            listener.listen(5)
            listener.count_reads()
        listener.close([0])
    assert requests[0].startswith(b"GET /sdk/pppp")
    ping = encoding.ping.encode() if isinstance(encoding.ping, str) else encoding.ping
    assert answered == [[(1, "connect")], ping, ping, ping]
    counted = listener.result()
    assert (counted.deliveries, counted.missing, counted.duplicates) == (3, 0, 0)
    published = encoding.publication(channel_name(0), "x" * 84, is_json=False, offset=None)
    assert listener.frame_bytes == len(framed(published))


@ENCODINGS
def test_a_publisher_is_a_plain_client(dialect: Dialect, encoding: Encoding) -> None:
    """It connects where plain clients publish, and sends the text alone: no greeting, and nothing around it."""
    received: list[bytes] = []

    def talk(end: socket.socket) -> None:
        received.append(payload(end, PLAIN.opcode))

    with accepting(talk) as (port, requests):
        publisher = Publisher(RUN, 0, port, dialect)
        publisher.set_size(84)
        publisher.open(1, 0)
        publisher.probe(1)
        publisher._publishers[0].sock.close()  # pyright: ignore[reportPrivateUsage]
    assert requests[0].startswith(b"GET /publish ")
    assert received[0].startswith(RUN.encode())
    assert len(received[0]) == 84


@pytest.mark.parametrize("encoding", [JSON, PROTOBUF], ids=["json", "protobuf"])
@pytest.mark.parametrize("size", [128, 130, 1000, 70_000])
def test_the_text_of_a_room_fills_the_payload(encoding: Encoding, size: int) -> None:
    """With what the protocol puts around it, it has the size of the raw text."""
    length = sdk.text_bytes(encoding, size)
    assert len(encoding.publication(channel_name(0), "x" * length, is_json=False, offset=None)) == size


# The scenario, with runs that are made up.


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[Dialect, dict[str, float]]:
    """The figures of each room, in place of a run."""
    figures = {
        dialect: {**dict.fromkeys(("lost", "duplicates", "reordered", "astray"), 0.0), "frame_bytes": 132.0, **found}
        for dialect, found in (
            (PLAIN, {"cpu_us_per_delivery": 2.0, "closed": 0.0}),
            (SDK, {"cpu_us_per_delivery": 2.2, "closed": 1.0}),
            (SDK_PROTOBUF, {"cpu_us_per_delivery": 1.9, "closed": 2.0}),
        )
    }

    def run(server: Server, options: Options) -> Run:
        assert options.channels == 1
        invalid = ["the client itself was saturated: 91 % of a core"] if server.candidate.dialect is SDK else []
        return Run(figures=dict(figures[server.candidate.dialect]), invalid=invalid)

    monkeypatch.setattr(fanout, "run", run)
    monkeypatch.setattr(saturation, "run", run)
    return figures


def run_of(tmp_path: Path) -> Run:
    """Run the scenario."""
    return sdk.run(Server(None, 0, backplane("memory://", Serving()), tmp_path), Options(channels=5))  # type: ignore[arg-type]  # nothing is served


@pytest.mark.usefixtures("measured")
def test_rooms_are_compared_with_the_raw_one(tmp_path: Path) -> None:
    """At saturation and at a rate; faults are added up, and a run of one room that is invalid makes all invalid."""
    found = run_of(tmp_path)
    assert {column for column in SCENARIOS["sdk"].columns if column not in found.figures} == set()
    assert (found.figures["json_times"], found.figures["paced_protobuf_times"]) == (1.1, 0.95)
    assert found.figures["closed"] == 6
    assert found.invalid == ["json: the client itself was saturated: 91 % of a core"] * 2


def test_frames_of_different_sizes_are_not_compared(measured: dict[Dialect, dict[str, float]], tmp_path: Path) -> None:
    """A run in which the rooms send frames of different sizes is invalid."""
    measured[SDK_PROTOBUF]["frame_bytes"] = 133.0
    assert any("frames differ in size" in reason and "protobuf 133 B" in reason for reason in run_of(tmp_path).invalid)


# The scenario and `--sdk`, as they are.


def _ignore(_name: str, _repetition: int, _found: Run | None) -> None:
    """Show no progress."""


def outcomes(scenario: str, **options: float) -> Sequence[Any]:
    """Run a scenario with small numbers on all candidates, floors first."""
    small = {"connections": 20, "seconds": 0.2, "warm_up_seconds": 0.0} | options
    choice = Choice(
        urls=("memory",), only_lane=True, sdk=True, floors=True, repetitions=1, options=tuple(small.items())
    )
    with Brokers() as brokers:
        return measure_choice(scenario, choice, brokers, _ignore).outcomes


@pytest.mark.full
@pytest.mark.timeout(180)
def test_the_scenario_runs() -> None:
    """Its rooms have frames of one size and no faults; floors and `--sdk` are reported with the reason."""
    found = {each.name: each for each in outcomes("sdk")}
    (run,) = found["backplane memory lane"].runs
    assert [run.figures[column] > 0 for column in SCENARIOS["sdk"].columns] == [True] * len(SCENARIOS["sdk"].columns)
    assert [reason for reason in run.invalid if "frames differ" in reason] == []
    assert [run.figures[fault] for fault in ("lost", "duplicates", "reordered", "astray", "closed")] == [0] * 5
    assert found["floor: transport.write"].failed == "it has no rooms of SDK clients beside raw ones"
    assert found["backplane memory SDK JSON"].failed == "the scenario has clients of its own"


@pytest.mark.full
@pytest.mark.timeout(180)
@pytest.mark.parametrize("scenario", ["fanout", "saturation", "memory"])
def test_sdk_clients_in_other_scenarios(scenario: str) -> None:
    """`--sdk` adds a candidate for each encoding, which gets every message."""
    found = {each.name: each for each in outcomes(scenario, connections=200)}
    for encoding in ("JSON", "Protobuf"):
        each = found[f"backplane memory SDK {encoding}"]
        assert each.failed == ""
        assert each.runs[0].figures.get("lost", 0) == each.runs[0].figures["closed"] == 0
