"""Every example against clients that send anything: no error that nobody handles, nothing left, the right codes."""

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
from tests.examples.raw import BINARY, CLOSE, CONTINUATION, PING, TEXT, RawClient, close_frame, frame
from tests.examples.site import EXAMPLES, SECONDS, Site, running

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "s" * 32
LANE = ("--ws", "backplane.server.uvicorn:DirectLaneProtocol")

# Uvicorn's own words for it, at the level ERROR: that the client is wrong is nothing the application could handle.
# Behind a close of its own it fails to close again, which cuts the client, as it is about to be (Uvicorn 0.54).
NOT_UTF8 = (
    r"ERROR: +Invalid UTF-8 sequence received from client\.\nTraceback.*?UnicodeDecodeError: [^\n]*\n"
    r"(.{0,300}?Traceback(?:(?!INFO: ).)*?websockets\.exceptions\.InvalidState: connection is closing\n)?"
)

# What a server, or an example, may say of nonsense; 1011 would be an error nobody thought of.
ANSWERS = {1000, 1002, 1003, 1007, 1009, 4503, 4029}


@dataclass(frozen=True, kw_only=True)
class Case:
    """How one example is talked to.

    Attributes:
        says: What a normal client says; nothing where it has nothing to say.
        hears: What is then within something that it hears; nothing where it hears nothing by itself.
    """

    name: str
    path: str
    says: str | None = None
    hears: str | None = None
    environment: dict[str, str] = field(default_factory=dict[str, str])
    options: tuple[str, ...] = LANE


CASES = [
    Case(name="echo", path="/", says="hello", hears="hello"),
    Case(name="echo", path="/", says="hello", hears="hello", options=()),
    Case(name="chat", path="/rooms/a?name=ada", says='{"text": "hello"}', hears='"hello"'),
    Case(name="chat", path="/rooms/a?name=ada", says='{"text": "hello"}', hears='"hello"', options=()),
    Case(name="endpoint", path="/rooms/a", hears="welcome to a"),
    Case(name="notifications", path="/users/ada"),
    Case(name="dashboard", path="/readings", hears='"worker"'),
    Case(name="upload", path="/rooms/a", says="hello", hears="invalid message"),
    Case(name="proxy", path="/", says="hello", hears="hello"),
    Case(name="login", path="/inbox/ada", says="hello", hears="invalid message", environment={"JWT_SECRET": SECRET}),
    Case(name="room_sse", path="/rooms/a", says='{"text": "hello"}', hears='"hello"'),
    Case(name="from_broadcaster", path="/", says="hello", hears="hello"),
]


def test_every_example_with_a_socket_is_here() -> None:
    """No example is forgotten; notify_task.py serves nobody."""
    assert {case.name for case in CASES} == {path.stem for path in EXAMPLES.glob("*.py")} - {"notify_task"}


@pytest.fixture(
    scope="module", params=CASES, ids=[f"{case.name} {'with the lane' if case.options else ''}" for case in CASES]
)
def case(request: pytest.FixtureRequest) -> Case:
    """One example after the other."""
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def site(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The example on one worker, which in the end must stop without a complaint in its log."""
    with ExitStack() as stack:
        environment = dict(case.environment)

        def start(name: str, *options: str) -> Site:
            command = [sys.executable, "-m", "uvicorn", f"{name}:app", "--port", "{port}", "--no-access-log", *options]
            folder = tmp_path_factory.mktemp(name)
            started = running(command, folder, broker_url="memory://", environment=environment, tolerated=NOT_UTF8)
            return stack.enter_context(started)

        if case.name == "proxy":
            environment["UPSTREAM_URL"] = f"{start('echo').ws_url}/"
        yield start(case.name, *case.options)


@pytest.fixture(scope="module")
def headers(case: Case) -> dict[str, str]:
    """What a client must bring along."""
    if case.name != "login":
        return {}
    claims = {"sub": "ada", "exp": int(time.time()) + 600}
    return {"Cookie": f"token={jwt.encode(claims, SECRET, algorithm='HS256')}", "X-Forwarded-For": ""}


def serve_a_normal_client(site: Site, case: Case, headers: dict[str, str]) -> None:
    """Fail if somebody who keeps to the rules is not served."""
    with site.connect(case.path, additional_headers=headers) as client:
        if case.says is not None:
            client.send(case.says)
        while case.hears is not None and case.hears not in str(client.recv(timeout=SECONDS)):
            pass
        assert client.ping().wait(SECONDS)
    assert client.close_code == 1000


UPLOAD = b'{"name": "a", "size_bytes": 5, "sha256": "%s"}' % (b"0" * 64)

UNHURRIED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


def flood(one: bytes, times: int) -> bytes:
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
    st.builds(flood, st.builds(frame, st.just(TEXT), st.binary(max_size=20)), st.integers(2, 300)),
    st.binary(max_size=200),
)

endings = st.sampled_from(["close", "cut", "end_writing"])


def test_anything_is_survived(site: Site, case: Case, headers: dict[str, str]) -> None:
    """After frames of every kind, floods and cuts, the worker is as before: nobody connected, everybody served."""
    serve_a_normal_client(site, case, headers)
    site.wait_until_idle()
    process = psutil.Process(site.process.pid)
    files_before = process.num_fds()

    @settings(max_examples=50, deadline=None, suppress_health_check=UNHURRIED)
    @given(st.lists(frames, max_size=6), endings)
    def converse(sent: list[bytes], ending: str) -> None:
        with RawClient(site, case.path, headers) as client:
            for data in sent:
                client.send(data)
            if ending == "cut":
                client.cut()
                return
            if ending == "close":
                client.send(close_frame(1000))
            client.end_writing()
            code = client.code_of_end()
        codes_sent = {int.from_bytes(data[6:8]) for data in map(_unmasked, sent) if data[:1] == bytes([0x80 | CLOSE])}
        assert code is None or code in ANSWERS | codes_sent

    converse()
    site.wait_until_idle()
    wait_until(lambda: process.num_fds() <= files_before, "no socket and no file is left open", seconds=SECONDS)
    serve_a_normal_client(site, case, headers)


def _unmasked(data: bytes) -> bytes:
    """Return a frame with its payload as it was before it was masked."""
    return data[:6] + bytes(byte ^ data[2 + index % 4] for index, byte in enumerate(data[6:]))


TOO_LONG = 17 * 1024 * 1024  # above what Uvicorn takes by default

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
def test_what_breaks_the_protocol_is_answered_with_its_code(
    site: Site, case: Case, headers: dict[str, str], wrong: str
) -> None:
    """Whatever the example, the server ends what RFC 6455 forbids with the code that it names for that."""
    data, code = WRONG[wrong]
    with RawClient(site, case.path, headers) as client:
        client.send(data)
        answered = client.code_of_end()
    assert answered == code or (code is None and answered in {1002, 1009})


def is_code(code: int) -> bool:
    """Return whether a client may close with a code: RFC 6455 section 7.4, and its registry."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def test_close_code_is_answered_or_refused(site: Site, case: Case, headers: dict[str, str]) -> None:
    """A code that may travel is sent back, any other one of the 65,536 is a breach of the protocol."""
    seen: set[int] = set()

    @settings(max_examples=50, deadline=None, suppress_health_check=UNHURRIED)
    @given(st.one_of(st.integers(0, 65535), st.integers(990, 1020), st.sampled_from([2999, 3000, 4999, 5000, 65535])))
    def close(code: int) -> None:
        with RawClient(site, case.path, headers) as client:
            client.send(close_frame(code))
            assert client.code_of_end() == (code if is_code(code) else 1002)
        seen.add(code)

    close()
    assert len(seen) > 10
