"""`backplane.adapters.nats.login`: how nats-py logs in, and what of the server's answers counts."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager, suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import nkeys  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backplane import Backplane, BrokerError, BrokerUnavailableError, ConfigurationError, MissingDependencyError
from backplane.adapters.nats import login as nats_login
from backplane.adapters.nats.broadcaster import NatsOptions
from backplane.adapters.nats.link import NatsLink
from backplane.adapters.nats.login import NatsLogin, Tls
from backplane.adapters.nats.servers import Server
from backplane.broadcaster import BrokerUrl
from backplane.broker.registry import broadcaster_from_url
from backplane.testing import RecordingSink
from tests.brokers.nats_accounts import Operator, new_seed

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

pytestmark = pytest.mark.anyio

INFO = b'INFO {"server_id":"ONE","nonce":"abc","headers":true,"max_payload":1000}\r\n'
PONG = b"PONG\r\n"
TIMEOUT_SECONDS = 5


def no_context() -> ssl.SSLContext:
    """Stand for a context that is not asked for."""
    raise AssertionError("TLS was not asked for")


class Attempt:
    """A login at a server that the test plays.

    Attributes:
        sent: What the client sent.
        infos: The `server_id` of each INFO of which the link was informed.
        served: Set when the server has sent what it sends before it waits for ever.
        left: Set when the client has closed the connection.
    """

    def __init__(self, port: int, url: str, options: Mapping[str, str]) -> None:
        self.sent = b""
        self.infos: list[str] = []
        self.served = asyncio.Event()
        self.left = asyncio.Event()
        self._login = NatsLogin(BrokerUrl.parse(url), NatsOptions.model_validate(options))
        self.link = NatsLink(
            RecordingSink(),
            Server("127.0.0.1", port, "localhost"),
            on_lost=lambda _link, _error: None,
            on_info=lambda link: self.infos.append(link.info.server_id),
            max_pending_bytes=1000,
            line_limits={},
        )

    async def open(self) -> None:
        """Log in."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await self._login.open(self.link, Tls(False, False, no_context))


@asynccontextmanager
async def attempt(
    greeting: bytes = INFO,
    answer: bytes = PONG,
    *,
    closes: bool = False,
    url: str = "nats://one",
    options: Mapping[str, str] | None = None,
) -> AsyncGenerator[Attempt]:
    """A server that sends `greeting`, `answer` at the first PING and a PONG at each further one.

    If it `closes`, it does so with the answer, and after the greeting where there is no answer.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        if not greeting:
            attempted.served.set()
        answers = answer
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while answers or not closes:
                attempted.sent += (line := await reader.readuntil(b"\r\n"))
                if line == b"PING\r\n":
                    writer.write(answers)
                    attempted.served.set()
                    answers = b"" if closes else PONG
        attempted.left.set()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    attempted = Attempt(listener.sockets[0].getsockname()[1], url, options or {})
    try:
        yield attempted
    finally:
        attempted.link.abort()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await attempted.link.closed.wait()
        listener.close()


async def connect(url: str, **options: str) -> dict[str, Any]:
    """Return the fields of the CONNECT."""
    async with attempt(url=url, options=options) as attempted:
        await attempted.open()
    line, _, rest = attempted.sent.partition(b"\r\n")
    assert (line[:8], rest) == (b"CONNECT ", b"PING\r\nPING\r\n")  # nats-py's, and the link's
    fields: dict[str, Any] = json.loads(line[8:])
    return fields


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nats://one", {}),
        ("nats://alice:hunter2@one", {"user": "alice", "pass": "hunter2"}),
        ("nats://alice:@one", {"user": "alice", "pass": ""}),
        ("nats://s3cr3t@one", {"auth_token": "s3cr3t"}),
    ],
)
async def test_credentials_of_the_url(url: str, expected: dict[str, str]) -> None:
    """User and password, a lone user name as the token, or nothing."""
    fields = await connect(url)
    assert {name: fields[name] for name in ("user", "pass", "auth_token") if name in fields} == expected
    assert (fields["verbose"], fields["protocol"], fields["headers"], fields["echo"]) == (False, 1, True, True)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("s3cr3t", {"auth_token": "s3cr3t"}),
        (("alice", "hunter2"), {"user": "alice", "pass": "hunter2"}),
        (None, "must return a token, "),
        (("alice",), "must return a token, "),
        ("-----BEGIN NATS USER JWT-----\nx\n------END NATS USER JWT------", "holds no JWT and NKey seed of a user"),
    ],
)
async def test_credentials_of_a_callable(
    monkeypatch: pytest.MonkeyPatch, returned: object, expected: dict[str, str] | str
) -> None:
    """A callable is asked at each login; what it returns decides how to log in, or is refused by its type."""
    module = ModuleType("handed_out")
    monkeypatch.setitem(sys.modules, "handed_out", module)
    module.current = lambda: returned  # type: ignore[attr-defined]
    if isinstance(expected, str):
        with pytest.raises((ConfigurationError, BrokerError), match=expected):
            await connect("nats://one", credentials="handed_out:current")
        return
    fields = await connect("nats://one", credentials="handed_out:current")
    assert {name: fields[name] for name in ("user", "pass", "auth_token") if name in fields} == expected


async def test_a_callable_that_fails_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token service that is away for a moment does not end a start for good, whatever its module is called."""

    def current() -> str:
        raise ConnectionError

    module = ModuleType("credentials_here")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module)["current"] = current
    broadcaster = broadcaster_from_url("nats://127.0.0.1:1?credentials=credentials_here:current")
    with pytest.raises(BrokerUnavailableError, match="no credentials: credentials_here:current raised Conn") as raised:
        await broadcaster.start(RecordingSink())
    assert raised.value.retriable


async def test_a_line_break_in_a_password_stays_inside() -> None:
    """No credential can put a second command on the wire."""
    assert (await connect("nats://alice:a%0D%0APUB@one"))["pass"] == "a\r\nPUB"


async def test_an_nkey_signs(tmp_path: Path) -> None:
    """The public key is shown, and the server's nonce signed; blanks around the seed do not count."""
    seed = new_seed(nkeys.PREFIX_BYTE_USER)
    (tmp_path / "seed").write_bytes(seed + b"\n")
    fields = await connect("nats://one", nkeys_seed=str(tmp_path / "seed"))
    keys: Any = nkeys
    assert fields["nkey"] == keys.from_seed(bytearray(seed)).public_key.decode()
    assert fields["sig"]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
async def test_a_jwt_is_shown(tmp_path: Path, line_end: str) -> None:
    """Of a file of credentials the JWT is shown, and the nonce signed, whatever ends its lines."""
    file = Operator().write_credentials(tmp_path / "alice.creds")
    jwt = file.read_text().splitlines()[1]
    file.write_text(file.read_text(), newline=line_end)
    fields = await connect("nats://one", user_credentials=str(file))
    assert fields["jwt"] == jwt
    assert fields["sig"]


@pytest.mark.parametrize("option", ["user_credentials", "nkeys_seed", "password_file"])
async def test_a_file_that_is_missing(option: str, tmp_path: Path) -> None:
    """A file of credentials that cannot be read is named."""
    with pytest.raises(BrokerError, match="missing"):
        await connect("nats://one", **{option: str(tmp_path / "missing")})


@pytest.mark.parametrize("option", ["user_credentials", "nkeys_seed"])
@pytest.mark.parametrize(
    "text",
    [
        "hunter2",
        "-----BEGIN NATS USER JWT-----\nhunter2\n------END NATS USER JWT------\n",
        "-----BEGIN NATS USER JWT-----\nx\n-----END-----\n-----BEGIN USER NKEY SEED-----\nhunter2\n-----END-----",
    ],
)
async def test_a_file_that_holds_something_else(option: str, text: str, tmp_path: Path) -> None:
    """A file without a key is refused, and nothing of it is shown."""
    (tmp_path / "file").write_text(text)
    with pytest.raises(BrokerError) as raised:
        await connect("nats://one", **{option: str(tmp_path / "file")})
    assert raised.value.retriable is False
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "nats://alice:x@one?password_file=f",
        "nats://alice:x@one?nkeys_seed=f",
        "nats://token@one?user_credentials=f",
        "nats://one?nkeys_seed=f&user_credentials=f",
        "nats://token@one?credentials=a:b",
        "nats://one?user_credentials=f&credentials=a:b",
        "nats://alice@one?password_file=f&nkeys_seed=f",
    ],
)
def test_two_kinds_of_credentials_are_refused(url: str) -> None:
    """A login takes one kind, and the error names the two."""
    with pytest.raises(ConfigurationError, match=" and "):
        Backplane(url)


def test_nkeys_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nkeys every other login works, and NKeys are refused with the command that installs it."""
    monkeypatch.setitem(sys.modules, "nkeys", None)
    Backplane("nats://alice:hunter2@one")
    with pytest.raises(MissingDependencyError, match=r"pip install 'fastapi-backplane\[nats\]'"):
        Backplane("nats://one?nkeys_seed=f")


async def test_every_info_of_a_login_counts() -> None:
    """An INFO, and a PING, between CONNECT and PONG is no answer to the login; the link knows the last INFO."""
    async with attempt(answer=b'PING\r\nINFO {"server_id":"TWO"}\r\n' + PONG) as attempted:
        await attempted.open()
        assert attempted.infos == ["ONE", "TWO"]


async def test_nothing_after_the_login_is_lost() -> None:
    """What the server sends after the PONG, more than the login's reader holds, reaches the link."""
    infos = b"".join(b'INFO {"server_id":"%d"}\r\n' % number for number in range(20_000))
    async with attempt(answer=PONG + infos) as attempted:
        await attempted.open()
        await attempted.link.settle()
        assert attempted.infos == ["ONE", *map(str, range(20_000))]


@pytest.mark.parametrize("last", [b"", b'INFO {"server_id":"TWO"}\r\n'])
async def test_an_end_with_the_login_is_noticed(last: bytes) -> None:
    """A server that accepts the login and closes the connection at once is not waited for."""
    async with attempt(answer=PONG + last, closes=True) as attempted:
        with pytest.raises(BrokerUnavailableError, match="the connection ended"):
            await attempted.open()
        assert not attempted.link.is_up


@pytest.mark.parametrize(
    ("greeting", "answer", "words"),
    [
        (b"", b"", "closed by the server"),
        (b"INFO", b"", "INFO"),
        (b"INFO []\r\n", b"", "an INFO that cannot be read"),
        (b"INFO " + b"[" * 9999 + b"\r\n", b"", "an INFO that cannot be read"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", "HTTP/1.1 400"),
        (b"x" * 200_000, b"", "the connection ended"),
        (INFO, b"", "closed by the server"),
        (INFO + b"-ERR 'maximum connections exceeded'\r\n", b"", "ended: maximum connections exceeded"),
        (INFO, b"-ERR 'maximum connections exceeded'\r\n", "ended: maximum connections exceeded"),
        (INFO, b"-ERR\r\n", "closed by the server"),
        (INFO, b"INFO x\r\n", "an INFO that cannot be read"),
    ],
)
async def test_a_login_that_fails(greeting: bytes, answer: bytes, words: str) -> None:
    """Whatever comes in place of INFO and PONG ends the login, with what the server has to report."""
    async with attempt(greeting, answer, closes=True) as attempted:
        with pytest.raises(BrokerUnavailableError, match=words):
            await attempted.open()


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "a\0b", "none"])
async def test_a_host_that_cannot_be_one(host: str) -> None:
    """A name that no resolver takes, as a cluster may announce it, is an error of the broker."""
    async with attempt() as attempted:
        attempted.link.server = Server(host, 4222, "localhost")
        with pytest.raises((BrokerError, OSError)):
            await attempted.open()


async def test_a_login_that_is_cancelled_leaves_no_connection() -> None:
    """Wherever a login is cancelled, its connection ends."""
    for greeting, answer in [(b"", b""), (INFO, b""), (INFO, b"PING\r\n")]:
        async with attempt(greeting, answer) as attempted:
            opening = asyncio.create_task(attempted.open())
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await attempted.served.wait()
                opening.cancel()
                await asyncio.wait([opening])
                await attempted.left.wait()
            assert opening.cancelled()


async def test_nothing_leaves_in_clear_that_must_not() -> None:
    """Whatever nats-py makes of an INFO, the transport on which TLS is wanted sends nothing without."""
    async with attempt() as attempted:
        stream = cast("Any", nats_login)._Stream(attempted.link, Tls(True, False, no_context))
        with pytest.raises(BrokerError, match="not encrypted"):
            stream.write(b"CONNECT")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from([b"PONG\r\n", b"PING\r\n", b"+OK\r\n", b"-ERR\r\n", b"MSG a 1 1\r\nx\r\n", b"INFO {}\r\n"]),
            st.sampled_from([b'INFO {"connect_urls":["[","::",""]}\r\n', b'INFO {"nonce":1}\r\n', b"INFO null\r\n"]),
        ),
        max_size=6,
    )
)
def test_any_bytes_of_a_server_fail_the_login_at_worst(pieces: list[bytes]) -> None:
    """Whatever a server sends, a login ends with a link, or with an error of the broker."""

    async def run() -> None:
        async with attempt(INFO, b"".join(pieces), closes=True) as attempted:
            with suppress(BrokerError, OSError):
                await attempted.open()

    asyncio.run(run())
