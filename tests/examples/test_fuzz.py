"""Every example with clients that send anything: no unhandled error, nothing left, the right close codes."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import jwt
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.brokers.process import wait_until
from tests.examples.example_server import EXAMPLES, SECONDS, ExampleServer, running
from tests.examples.raw_client import BINARY, CLOSE, CONTINUATION, PING, TEXT, RawClient, close_frame, frame

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "s" * 32
LANE = ("--ws", "backplane.server.uvicorn:DirectLaneProtocol")

# What Uvicorn logs for it, at the level ERROR: a mistake of the client, which the application cannot handle.
# After its own close frame it fails to close again, which cuts a client that is about to be cut (Uvicorn 0.54).
NOT_UTF8 = (
    r"ERROR: +Invalid UTF-8 sequence received from client\.\nTraceback.*?UnicodeDecodeError: [^\n]*\n"
    r"(.{0,300}?Traceback(?:(?!INFO: ).)*?websockets\.exceptions\.InvalidState: connection is closing\n)?"
)

# The codes with which a server or an example may close; 1011 would be an unhandled error.
CLOSE_CODES = {1000, 1002, 1003, 1007, 1009, 4503, 4029}


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a client uses one example.

    Attributes:
        sends: What a normal client sends; `None` where it sends nothing.
        receives: Part of a message that it then receives; `None` where it receives nothing.
    """

    name: str
    path: str
    sends: str | None = None
    receives: str | None = None
    environment: dict[str, str] = field(default_factory=dict[str, str])
    options: tuple[str, ...] = LANE


CASES = [
    Case(name="echo", path="/", sends="hello", receives="hello"),
    Case(name="echo", path="/", sends="hello", receives="hello", options=()),
    Case(name="chat", path="/rooms/a?name=ada", sends='{"text": "hello"}', receives='"hello"'),
    Case(name="chat", path="/rooms/a?name=ada", sends='{"text": "hello"}', receives='"hello"', options=()),
    Case(name="endpoint", path="/rooms/a", receives="welcome to a"),
    Case(name="notifications", path="/users/ada"),
    Case(name="dashboard", path="/readings", receives='"worker"'),
    Case(name="upload", path="/rooms/a", sends="hello", receives="invalid message"),
    Case(name="proxy", path="/", sends="hello", receives="hello"),
    Case(
        name="login", path="/inbox/ada", sends="hello", receives="invalid message", environment={"JWT_SECRET": SECRET}
    ),
    Case(name="room_presence", path="/rooms/a?name=ada", sends='{"typing": true}', receives='"typing":true'),
    Case(name="one_session", path="/session/ada", sends="hello", receives="hello"),
    Case(
        name="ban",
        path="/rooms/a?user=ada",
        sends="hello",
        receives="ada: hello",
        environment={"ADMIN_TOKEN": SECRET, "BANS": ":memory:"},  # a list of its own for each request
    ),
    Case(name="room_sse", path="/rooms/a", sends='{"text": "hello"}', receives='"hello"'),
    Case(name="from_broadcaster", path="/", sends="hello", receives="hello"),
]


def test_every_example_with_a_socket_is_here() -> None:
    """No example is left out; notify_task.py serves no clients."""
    assert {case.name for case in CASES} == {path.stem for path in EXAMPLES.glob("*.py")} - {"notify_task"}


@pytest.fixture(
    scope="module", params=CASES, ids=[f"{case.name} {'with the lane' if case.options else ''}" for case in CASES]
)
def case(request: pytest.FixtureRequest) -> Case:
    """Each example in turn."""
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def server(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExampleServer]:
    """The example on one worker, which must end without an error in its log."""
    with ExitStack() as stack:
        environment = dict(case.environment)

        def start(name: str, *options: str) -> ExampleServer:
            command = [sys.executable, "-m", "uvicorn", f"{name}:app", "--port", "{port}", "--no-access-log", *options]
            folder = tmp_path_factory.mktemp(name)
            started = running(command, folder, broker_url="memory://", environment=environment, tolerated=NOT_UTF8)
            return stack.enter_context(started)

        if case.name == "proxy":
            environment["UPSTREAM_URL"] = f"{start('echo').ws_url}/"
        yield start(case.name, *case.options)


@pytest.fixture(scope="module")
def headers(case: Case) -> dict[str, str]:
    """The headers that a client must send."""
    if case.name != "login":
        return {}
    claims = {"sub": "ada", "exp": int(time.time()) + 600}
    return {"Cookie": f"token={jwt.encode(claims, SECRET, algorithm='HS256')}", "X-Forwarded-For": ""}


def serve_a_normal_client(server: ExampleServer, case: Case, headers: dict[str, str]) -> None:
    """Fail if a client that keeps to the protocol is not served."""
    with server.connect(case.path, additional_headers=headers) as client:
        if case.sends is not None:
            client.send(case.sends)
        while case.receives is not None and case.receives not in str(client.recv(timeout=SECONDS)):
            pass
        assert client.ping().wait(SECONDS)
    assert client.close_code == 1000


UPLOAD = b'{"name": "a", "size_bytes": 5, "sha256": "%s"}' % (b"0" * 64)

SLOW_CHECKS_OFF = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


def repeat(one: bytes, times: int) -> bytes:
    """Return the same frame many times."""
    return one * times


payloads = st.one_of(
    st.just(b""),
    st.binary(max_size=200),
    st.text(max_size=50).map(str.encode),
    st.sampled_from([b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"[" * 100_000, b"{}", b"null", b'{"text": 1}']),
    st.sampled_from(
        [b'{"end": true}', b'{"text": "hi"}', b'{"name": "a", "size_bytes": 5, "sha256": "%s"}' % (b"0" * 64)]
    ),
    st.integers(1, 3_000_000).map(bytes),
)

frames = st.one_of(
    st.builds(frame, st.sampled_from([TEXT, BINARY]), payloads),
    st.builds(frame, st.sampled_from([TEXT, BINARY]), payloads, fin=st.just(value=False)),
    st.builds(frame, st.just(CONTINUATION), payloads, fin=st.booleans()),
    st.builds(frame, st.sampled_from([PING, PING + 1]), st.binary(max_size=125)),
    st.builds(
        frame,
        st.integers(0, 15),
        st.binary(max_size=300),
        fin=st.booleans(),
        reserved=st.integers(0, 7),
        masked=st.booleans(),
    ),
    st.builds(frame, st.sampled_from([TEXT, BINARY]), claimed_length=st.integers(0, 2**64 - 1)),
    st.builds(close_frame, st.integers(0, 65535), st.binary(max_size=130)),
    st.builds(repeat, st.builds(frame, st.just(TEXT), st.binary(max_size=20)), st.integers(2, 300)),
    st.binary(max_size=200),
)

endings = st.sampled_from(["close", "cut", "end_writing"])


def test_any_input_is_survived(server: ExampleServer, case: Case, headers: dict[str, str]) -> None:
    """After frames of every kind, floods and cuts, the worker has no connection left, and serves clients."""
    serve_a_normal_client(server, case, headers)
    server.wait_until_idle()
    process = psutil.Process(server.process.pid)
    files_before = process.num_fds()

    @settings(max_examples=50, deadline=None, suppress_health_check=SLOW_CHECKS_OFF)
    @given(st.lists(frames, max_size=6), endings)
    def converse(sent: list[bytes], ending: str) -> None:
        with RawClient(server, case.path, headers) as client:
            for data in sent:
                client.send(data)
            if ending == "cut":
                client.cut()
                return
            if ending == "close":
                client.send(close_frame(1000))
            client.end_writing()
            code = client.received_close_code()
        codes_sent = {int.from_bytes(data[6:8]) for data in map(_unmasked, sent) if data[:1] == bytes([0x80 | CLOSE])}
        assert code is None or code in CLOSE_CODES | codes_sent

    converse()
    server.wait_until_idle()
    wait_until(lambda: process.num_fds() <= files_before, "no socket and no file is left open", seconds=SECONDS)
    serve_a_normal_client(server, case, headers)


def _unmasked(data: bytes) -> bytes:
    """Return a frame with its payload unmasked."""
    return data[:6] + bytes(byte ^ data[2 + index % 4] for index, byte in enumerate(data[6:]))


TOO_LONG = 17 * 1024 * 1024  # above Uvicorn's default limit

WRONG = {
    "not masked": (frame(TEXT, b"hello", masked=False), 1002),
    "unknown opcode": (frame(3, b"hello"), 1002),
    "reserved bit": (frame(TEXT, b"hello", reserved=2), 1002),
    "continuation of nothing": (frame(CONTINUATION, b"hello"), 1002),
    "message within a message": (frame(TEXT, b"hel", fin=False) + frame(TEXT, b"lo"), 1002),
    "ping in parts": (frame(PING, b"hello", fin=False), 1002),
    "ping too long": (frame(PING, b"x" * 126), 1002),
    "length over 2**63": (frame(TEXT, claimed_length=2**63), None),
    "text that is not UTF-8": (frame(TEXT, b"\xff"), 1007),
    "text cut amid a character": (frame(TEXT, b"\xc3"), 1007),
    "frame too long": (frame(BINARY, claimed_length=TOO_LONG), 1009),
    "message over the limit": (frame(BINARY, bytes(1024 * 1024 + 1)), 1009),
    "close frame of one byte": (frame(CLOSE, b"\x03"), 1002),
    "close reason that is not UTF-8": (close_frame(1000, b"\xff"), 1007),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_protocol_error_is_answered_with_its_code(
    server: ExampleServer, case: Case, headers: dict[str, str], wrong: str
) -> None:
    """Whatever the example, the server answers what RFC 6455 forbids with the code that the RFC assigns."""
    data, code = WRONG[wrong]
    with RawClient(server, case.path, headers) as client:
        client.send(data)
        received = client.received_close_code()
    assert received == code or (code is None and received in {1002, 1009})


def is_code(code: int) -> bool:
    """Whether a client may close with a code: RFC 6455 section 7.4, and its registry."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def test_close_code_is_answered_or_refused(server: ExampleServer, case: Case, headers: dict[str, str]) -> None:
    """A code that may be sent is echoed; any other one of the 65,536 is a protocol error."""
    seen: set[int] = set()

    @settings(max_examples=50, deadline=None, suppress_health_check=SLOW_CHECKS_OFF)
    @given(st.one_of(st.integers(0, 65535), st.integers(990, 1020), st.sampled_from([2999, 3000, 4999, 5000, 65535])))
    def close(code: int) -> None:
        with RawClient(server, case.path, headers) as client:
            client.send(close_frame(code))
            assert client.received_close_code() == (code if is_code(code) else 1002)
        seen.add(code)

    close()
    assert len(seen) > 10
