"""docs/tutorial/: each page's commands and files, followed as a newcomer follows them, give what the page shows."""

from __future__ import annotations

from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import ConnectionClosed

from tests.brokers.process import wait_until
from tests.docs.pages import Page, Reader, ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from websockets.sync.client import ClientConnection

    from tests.brokers.broker import Broker
    from tests.conftest import StartRedis

SECONDS = 60.0


@pytest.fixture
def ipc_folder() -> Iterator[str]:
    """A folder for the sockets of `ipc://tutorial`; pytest's are too deep for the path of a Unix socket."""
    with TemporaryDirectory(prefix="bp-") as folder:
        yield folder


@pytest.fixture
def redis(private_redis: StartRedis) -> Broker:
    """A Redis that the page may stop."""
    return private_redis()


def reader_with_redis(page: str, redis: Broker, folder: Path, *named: str) -> Reader:
    """Return a reader whose Redis is that of the test."""
    port = redis.url.rpartition(":")[2]
    replaced = {"localhost:6379": f"127.0.0.1:{port}", "-p 6379": f"-p {port}", **ports(*named)}
    return Reader(page=Page(f"tutorial/{page}.md"), folder=folder, replaced=replaced)


def receive(client: ClientConnection) -> str | bytes:
    """Return the client's next message."""
    return client.recv(timeout=SECONDS)


def clients_of_two_workers(stack: ExitStack, reader: Reader, room: str) -> dict[str, ClientConnection]:
    """Connect clients, until two workers have greeted one each; return these two by the greeting."""
    found: dict[str, ClientConnection] = {}

    def two_workers() -> bool:
        client = stack.enter_context(reader.connect(room=room))
        found.setdefault(str(receive(client)), client)
        return len(found) == 2

    wait_until(two_workers, "two workers serve a client", seconds=SECONDS)
    return found


def test_first_room(tmp_path: Path) -> None:
    """Two clients of a room receive what one sends and what is posted; a client of another room receives neither."""
    reader = Reader(page=Page("tutorial/first-room.md"), folder=tmp_path, replaced=ports("8000"))
    reader.save("room")
    with (
        reader.running("uvicorn room:app"),
        reader.connect() as one,
        reader.connect() as other,
        reader.connect(room="cellar") as elsewhere,
    ):
        one.send("is dinner ready?")
        assert [receive(one), receive(other)] == ["is dinner ready?"] * 2
        reader.run("curl")
        assert [receive(one), receive(other)] == ["Dinner is ready"] * 2
        elsewhere.send("nothing came before")
        assert receive(elsewhere) == "nothing came before"


def test_first_room_in_a_terminal(tmp_path: Path) -> None:
    """The client of the terminal shows that it is connected, and the line that it sent as received."""
    reader = Reader(page=Page("tutorial/first-room.md"), folder=tmp_path, replaced=ports("8000"))
    reader.save("room")
    with reader.running("uvicorn room:app"), reader.connect() as other:
        shown = reader.talk("is dinner ready?")
        assert shown[0].startswith("Connected to ws://127.0.0.1:")
        assert receive(other) == "is dinner ready?"


def test_two_workers_apart(tmp_path: Path) -> None:
    """On `memory://` the workers log the warning of the page, and a client of the other worker receives nothing."""
    reader = Reader(page=Page("tutorial/two-workers.md"), folder=tmp_path, replaced=ports("8000"))
    reader.save("room")
    with ExitStack() as stack:
        log = stack.enter_context(reader.running("uvicorn room:app"))
        reader.wait_for_output(log, "isolated")
        one, other = clients_of_two_workers(stack, reader, "kitchen").values()
        one.send("from one")
        assert receive(one) == "from one"
        other.send("nothing came before")
        assert receive(other) == "nothing came before"


def test_two_workers_joined(tmp_path: Path, ipc_folder: str) -> None:
    """On `ipc://` clients of both workers receive what either sends, and what the command line publishes."""
    replaced = {"ipc://tutorial": f"'ipc://tutorial?peer_timeout_seconds=5&directory={ipc_folder}'", **ports("8000")}
    reader = Reader(page=Page("tutorial/two-workers.md"), folder=tmp_path, replaced=replaced)
    reader.save("room")
    with ExitStack() as stack:
        log = stack.enter_context(reader.running("BACKPLANE_URL=ipc://tutorial uvicorn"))
        pair = clients_of_two_workers(stack, reader, "kitchen").values()
        for sender in pair:
            sender.send("hello")
            assert [receive(client) for client in pair] == ["hello"] * 2
        reader.run("backplane publish")
        assert [receive(client) for client in pair] == ["from a shell"] * 2
        assert "memory://" not in log.read_text()


def test_redis(tmp_path: Path, redis: Broker) -> None:
    """Clients of two servers receive what either sends and what Redis' own client publishes, and `tail` prints it."""
    reader = reader_with_redis("redis", redis, tmp_path, "8000", "8001")
    (tmp_path / "room.py").write_text(Page("tutorial/two-workers.md").example("room"), encoding="utf-8")
    assert reader.run("backplane check").splitlines()[1].startswith("broker      Redis ")
    server = "BACKPLANE_URL=redis://localhost:6379 backplane run room:app --port "
    with (
        reader.running(f"{server}8000"),
        reader.running(f"{server}8001", "8001"),
        reader.connect("8000") as one,
        reader.connect("8001") as other,
        reader.printing("backplane tail") as printed,
    ):
        assert receive(one) != receive(other)
        one.send("from one")
        assert [receive(one), receive(other)] == ["from one"] * 2
        wait_until(lambda: "joined" in printed.read_text(), "tail has joined", seconds=SECONDS)
        reader.run("redis-cli")
        assert [receive(one), receive(other)] == ["from redis-cli"] * 2
        reader.wait_for_output(printed, "tail")


def test_lost_link(tmp_path: Path, redis: Broker) -> None:
    """The log, the failed request and the close of the client are those of the page, with the first `room.py`."""
    reader = reader_with_redis("lost-link", redis, tmp_path, "8000")
    (tmp_path / "room.py").write_text(Page("tutorial/two-workers.md").example("room"), encoding="utf-8")
    with reader.running("BACKPLANE_URL=redis://localhost:6379 backplane run") as log, reader.connect() as one:
        assert str(receive(one)).startswith("you are on worker")
        redis.stop()
        reader.wait_for_output(log, "lost")
        assert "500 Internal Server Error" in reader.run("curl -i -X POST")
        reader.wait_for_output(log, "unavailable")
        redis.start()
        reader.wait_for_output(log, "back")
        with pytest.raises(ConnectionClosed):
            receive(one)
        assert (one.close_code, one.close_reason) == (4000, "messages may have been missed: reload")


def test_lost_link_with_a_message(tmp_path: Path, redis: Broker) -> None:
    """With the page's own `room.py` a request is answered 503, and the client receives the gap and stays connected."""
    reader = reader_with_redis("lost-link", redis, tmp_path, "8000")
    reader.save("room")
    with reader.running("BACKPLANE_URL=redis://localhost:6379 backplane run") as log, reader.connect() as one:
        redis.stop()
        reader.wait_for_output(log, "lost")
        assert "503 Service Unavailable" in reader.run("curl -i http")
        refused = reader.run("curl -i -X POST")
        assert "503 Service Unavailable" in refused
        assert "retry-after:" in refused.lower()
        redis.start()
        assert [receive(one)] == reader.page.output("gap")
        reader.run("curl -i -X POST")
        assert receive(one) == "dinner"
