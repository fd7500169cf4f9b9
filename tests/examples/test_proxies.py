"""The proxy configurations that docker-compose.yml mounts, run by the real HAProxy and nginx before two servers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, NoReturn

import pytest
from websockets.exceptions import InvalidStatus

from tests.brokers.process import end, free_port, start, wait_until
from tests.examples.example_server import EXAMPLES, SECONDS, ExampleServer, received_close_code
from tests.examples.labelled_clients import connect_labelled, running_labelled

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from websockets.sync.client import ClientConnection

CONFIGURATIONS = [
    "haproxy-layer4.cfg",
    "haproxy-sticky.cfg",
    "nginx-layer4.conf.template",
    "nginx-sticky.conf.template",
]
STICKY = [name for name in CONFIGURATIONS if "sticky" in name]

# Debian packages as a module what nginx's own image has built in.
_STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where the configurations are."""
    return EXAMPLES / "proxies"


@pytest.fixture
def servers(tmp_path: Path, ipc_url: str) -> Iterator[list[ExampleServer]]:
    """Two servers of one worker each, joined by `ipc://`, as in docker-compose.yml."""
    command = [sys.executable, "-m", "backplane.cli", "run", "labelled:app", "--port", "{port}"]
    with ExitStack() as stack:
        yield [stack.enter_context(running_labelled("chat", command, tmp_path, ipc_url)) for _ in range(2)]


@contextmanager
def balancing(configuration: Path, folder: Path, servers: list[ExampleServer]) -> Generator[ExampleServer]:
    """Run a proxy with a configuration, entered when it answers; it must end on SIGTERM."""
    port, log = free_port(), folder / "proxy.log"
    one, two = (f"127.0.0.1:{server.port}" for server in servers)
    values = {"LISTEN": f"127.0.0.1:{port}", "SERVER_1": one, "SERVER_2": two}
    program = configuration.name.partition("-")[0]
    path = _program(program)
    if program == "haproxy":
        command = [path, "-W", "-db", "-f", str(configuration)]
    else:
        # As in nginx's image, variables of the environment are filled in, and those of nginx are kept.
        if "stream {" in configuration.read_text(encoding="utf-8") and not _has_stream(path):
            _skip_without("nginx's stream module (Debian: libnginx-mod-stream)")
        filled = folder / "nginx.conf"
        filled.write_text(Template(configuration.read_text(encoding="utf-8")).safe_substitute(values))
        modules = f"load_module {_STREAM_MODULE};" if _STREAM_MODULE.exists() else ""
        pid = f"pid {folder}/nginx.pid; error_log stderr;"
        command = [path, "-e", "stderr", "-p", str(folder), "-c", str(filled), "-g", f"{modules} daemon off; {pid}"]
    process = start(command, cwd=folder, log=log, env={**os.environ, **values})
    proxy = ExampleServer(process=process, port=port, folder=folder, broker_url=servers[0].broker_url)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return False
        return proxy.request("GET", "/health/ready")[0] == 200

    try:
        wait_until(answers, "the proxy answers", seconds=SECONDS)
        yield proxy
    finally:
        in_time = end(process, seconds=15)
    assert in_time, log.read_text()


def _program(name: str) -> str:
    """Return the path of a program; those of root are not on every PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin") or _skip_without(name)


def _has_stream(nginx: str) -> bool:
    """Whether this nginx can balance at layer 4."""
    version = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=True).stderr
    return _STREAM_MODULE.exists() or ("--with-stream" in version and "--with-stream=dynamic" not in version)


def _skip_without(name: str) -> NoReturn:
    """Skip, but fail in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must not run without {name}", pytrace=False)
    pytest.skip(f"{name} is not installed")


def receive_until(client: ClientConnection, text: str) -> None:
    """Receive until this text arrives."""
    while json.loads(client.recv(timeout=SECONDS)).get("data", {}).get("text") != text:
        pass


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_clients_of_both_servers_share_a_room(
    configuration: str, folder: Path, tmp_path: Path, servers: list[ExampleServer]
) -> None:
    """Clients with the origin of a page behind the proxy are spread over both servers and share the room."""
    with balancing(folder / configuration, tmp_path, servers) as proxy, ExitStack() as stack:
        found: dict[int, ClientConnection] = {}

        def connect() -> bool:
            client, worker = connect_labelled(stack, proxy, "/rooms/a?name=ada", origin=proxy.http_url)
            found.setdefault(worker, client)
            return len(found) == 2

        wait_until(connect, "both servers serve a client", seconds=SECONDS)
        one, other = found.values()
        one.send(json.dumps({"text": "from one"}))
        receive_until(other, "from one")
        other.send(json.dumps({"text": "from other"}))
        receive_until(one, "from other")


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_page_of_another_site_is_refused(
    configuration: str, folder: Path, tmp_path: Path, servers: list[ExampleServer]
) -> None:
    """The check of the origin holds behind the proxy too."""
    with (
        balancing(folder / configuration, tmp_path, servers) as proxy,
        pytest.raises(InvalidStatus) as refused,
        proxy.connect("/rooms/a?name=ada", origin="https://evil.example"),
    ):
        pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("configuration", STICKY)
def test_cookie_brings_a_client_back_to_its_server(
    configuration: str, folder: Path, tmp_path: Path, servers: list[ExampleServer]
) -> None:
    """With the cookie of its first handshake, every later connection of a client goes to the same server."""
    with balancing(folder / configuration, tmp_path, servers) as proxy, ExitStack() as stack:
        first, worker = connect_labelled(stack, proxy, "/rooms/a?name=ada")
        assert first.response is not None
        cookie = first.response.headers["Set-Cookie"].partition(";")[0]
        headers = {"Cookie": cookie}
        again = [connect_labelled(stack, proxy, "/rooms/a?name=ada", additional_headers=headers) for _ in range(6)]
        assert [pid for _, pid in again] == [worker] * 6


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_server_that_ends_sends_its_clients_to_the_other(
    configuration: str, folder: Path, tmp_path: Path, servers: list[ExampleServer]
) -> None:
    """When a server drains, its client is closed with 1012 and, with its cookie, reconnects to the other one."""
    with balancing(folder / configuration, tmp_path, servers) as proxy, ExitStack() as stack:
        client, worker = connect_labelled(stack, proxy, "/rooms/a?name=ada")
        drained = next(server for server in servers if server.process.pid == worker)
        drained.process.terminate()
        assert received_close_code(client) == 1012
        drained.process.wait(SECONDS)
        assert client.response is not None
        headers = {"Cookie": client.response.headers.get("Set-Cookie", "").partition(";")[0]}
        reconnected: list[int] = []

        def reconnect() -> bool:
            try:
                reconnected.append(connect_labelled(stack, proxy, "/rooms/a?name=ada", additional_headers=headers)[1])
            except (OSError, EOFError, InvalidStatus):
                return False
            return True

        wait_until(reconnect, "the client is connected again", seconds=SECONDS)
        assert reconnected != [worker]
