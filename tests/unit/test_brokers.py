"""The brokers of the tests: a fault without effect would make every chaos test pass."""

# pyright: reportUnknownMemberType=false
# The keyword arguments of redis-py's client have no types.

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nats
import psutil
import pytest
from nats.js.api import StreamConfig
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError

from tests.brokers.broker import BrokerMissingError, GivenBroker, ProcessBroker
from tests.brokers.nats import delete_streams
from tests.brokers.process import end, free_port, start, wait_until
from tests.brokers.redis import RedisConfig, empty, shared_redis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import StartNats, StartRedis

NATS_PY: Any = nats

_ECHO = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    while True:
        link, _ = server.accept()
        link.sendall(link.recv(16))
        link.close()
"""


class EchoBroker(ProcessBroker):
    """The smallest broker: echoes what it receives, once per connection."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url = f"echo://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """Run the server above."""
        return [sys.executable, "-c", _ECHO, str(self.port)]

    def answers(self) -> bool:
        """Whether it echoes in time."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=2) as link:
            link.sendall(b"hello")
            return link.recv(16) == b"hello"
        return False


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[EchoBroker]:
    """A running broker."""
    with EchoBroker(tmp_path) as broker:
        yield broker


def test_a_broker_answers_as_soon_as_it_is_started(echo: EchoBroker) -> None:
    """`start` returns when the broker answers, not when its process exists."""
    assert echo.answers()


def test_a_killed_broker_is_restarted_at_the_same_url(echo: EchoBroker) -> None:
    """`kill9` ends it at once; `start` starts it again at the same URL."""
    url = echo.url
    echo.kill9()
    assert not echo.answers()
    echo.start()
    assert (echo.answers(), echo.url) == (True, url)


def test_a_frozen_broker_accepts_and_sends_nothing_until_it_is_thawed(echo: EchoBroker) -> None:
    """`freeze` leaves its port open without a reply, as a hung server does."""
    echo.freeze()
    with socket.create_connection(("127.0.0.1", echo.port), timeout=2):
        assert not echo.answers()
    echo.thaw()
    wait_until(echo.answers, "the thawed broker answers")


def test_a_frozen_broker_can_be_stopped(echo: EchoBroker) -> None:
    """`stop` ends even a broker that is frozen, so that a failed test leaks no process."""
    echo.freeze()
    echo.stop()
    assert not echo.answers()


def test_a_broker_that_cannot_start_raises_the_reason(tmp_path: Path) -> None:
    """A command that ends before the broker answers raises with its output."""
    broker = EchoBroker(tmp_path)
    with socket.create_server(("127.0.0.1", broker.port)), pytest.raises(RuntimeError, match="Address already in use"):
        broker.start()


def test_a_given_broker_cannot_be_broken() -> None:
    """A broker from outside is not `restartable`, and refuses to be killed."""
    broker = GivenBroker("redis://somewhere")
    with broker, pytest.raises(NotImplementedError):
        broker.kill9()
    assert not broker.restartable


def test_a_free_port_is_outside_the_range_of_outgoing_connections() -> None:
    """No client that connects to a stopped broker can be given the broker's own port."""
    assert all(20_000 <= free_port() <= 32_000 for _ in range(50))


def test_a_free_port_is_given_once() -> None:
    """Of two processes that try the same ports in the same order the second is given another one."""
    code = "import random; from tests.brokers.process import free_port; random.seed(7); print(free_port(), flush=True)"
    first, second = ([sys.executable, "-c", f"{code}; input()"], [sys.executable, "-c", code])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = subprocess.PIPE
    with subprocess.Popen(first, env=environment, text=True, stdin=pipe, stdout=pipe) as holding:
        assert holding.stdout is not None
        port = int(holding.stdout.readline())
        other = int(subprocess.run(second, env=environment, capture_output=True, check=True).stdout)
        holding.communicate("\n")
    assert other != port


def test_timeout_of_a_wait_names_the_condition() -> None:
    """A wait that times out names what did not happen."""
    with pytest.raises(TimeoutError, match="the moon is blue"):
        wait_until(lambda: False, "the moon is blue", seconds=0)


def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """`end` does not wait for ever, and returns that SIGKILL was needed."""
    ignoring = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    )
    log = tmp_path / "log"
    process = start([sys.executable, "-c", ignoring], cwd=tmp_path, log=log)
    wait_until(lambda: "ready" in log.read_text(), "it ignores SIGTERM")
    assert not end(process, seconds=0.1)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux notifies a process that its parent died")
def test_a_program_does_not_outlive_a_run_that_exits_without_cleanup(tmp_path: Path) -> None:
    """A run ended by `os._exit`, as pytest-timeout does, leaves no broker running."""
    run = """
import os, pathlib, sys
from tests.brokers.process import start
folder = pathlib.Path(sys.argv[1])
command = [sys.executable, "-c", "import signal; signal.pause()"]
print(start(command, cwd=folder, log=folder / "log").pid, flush=True)
os._exit(1)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    died = subprocess.run([sys.executable, "-c", run, tmp_path], env=environment, capture_output=True, check=False)
    assert died.returncode == 1
    wait_until(lambda: not _runs(int(died.stdout)), "the program ends with its parent")


def _runs(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_without_any_redis_the_reasons_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where Redis cannot be started, the error names each attempt."""
    monkeypatch.delenv("BACKPLANE_TEST_REDIS_URL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(BrokerMissingError, match="no BACKPLANE_TEST_REDIS_URL, no redis-server, no Docker engine"):
        shared_redis(tmp_path).start()


def test_a_given_url_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """BACKPLANE_TEST_REDIS_URL is used before a server is started."""
    monkeypatch.setenv("BACKPLANE_TEST_REDIS_URL", "redis://elsewhere:1")
    assert shared_redis(tmp_path).url == "redis://elsewhere:1"


def test_redis_is_restarted_at_the_same_url_and_empty(private_redis: StartRedis) -> None:
    """A Redis that was killed keeps its URL and no data."""
    broker = private_redis()
    with Redis.from_url(broker.url) as client:
        client.set("key", "value")
    broker.kill9()
    broker.start()
    with Redis.from_url(broker.url) as client:
        assert client.get("key") is None


def test_emptied_redis_holds_no_key(private_redis: StartRedis) -> None:
    """The keys of every database are deleted, except where the server is given by a URL: they can belong to others."""
    broker = private_redis()
    with Redis.from_url(broker.url) as client, Redis.from_url(f"{broker.url}/1") as other:
        client.set("key", "value")
        other.set("key", "value")
        empty(GivenBroker(broker.url))
        assert (client.dbsize(), other.dbsize()) == (1, 1)
        empty(broker)
        assert (client.dbsize(), other.dbsize()) == (0, 0)


@pytest.mark.anyio
async def test_nats_holds_no_stream_after_their_deletion(private_nats: StartNats) -> None:
    """Every stream is deleted, except where the server is given by a URL: they can belong to others."""
    broker = private_nats(jetstream=True)
    client = await NATS_PY.connect(broker.url)
    jetstream = client.jetstream()
    for number in range(3):
        await jetstream.add_stream(StreamConfig(name=f"stream-{number}", subjects=[f"subject-{number}.*"]))
    delete_streams(GivenBroker(broker.url))
    assert (await jetstream.account_info()).streams == 3
    delete_streams(broker)
    assert (await jetstream.account_info()).streams == 0
    await client.close()


def test_redis_can_require_a_password(private_redis: StartRedis) -> None:
    """The URL contains the password, and without it commands are refused."""
    broker = private_redis(RedisConfig(password="secret"))
    with Redis.from_url(broker.url) as client:
        assert client.ping()
    with Redis.from_url(broker.url.replace(":secret@", "")) as client, pytest.raises(AuthenticationError):
        client.ping()


def test_redis_can_refuse_channels_to_a_user(private_redis: StartRedis) -> None:
    """A user with an ACL may publish to the channels of its rules only."""
    rules = "alice on >wonder resetchannels &allowed +@all"
    with Redis.from_url(private_redis(RedisConfig(users=(rules,), login="alice:wonder")).url) as client:
        assert client.publish("allowed", "x") == 0
        with pytest.raises(NoPermissionError):
            client.publish("forbidden", "x")


def test_redis_can_use_tls(private_redis: StartRedis) -> None:
    """The URL names the authority that signed the server's certificate."""
    broker = private_redis(RedisConfig(tls=True))
    assert broker.url.startswith("rediss://")
    with Redis.from_url(broker.url) as client:
        assert client.ping()


def test_redis_takes_further_arguments(private_redis: StartRedis) -> None:
    """Further arguments are passed to the server's command line."""
    config = RedisConfig(arguments=("--client-output-buffer-limit", "pubsub 1mb 512kb 5"))
    with Redis.from_url(private_redis(config).url) as client:
        limits = client.config_get("client-output-buffer-limit")
    assert "pubsub 1048576 524288 5" in str(limits["client-output-buffer-limit"])
