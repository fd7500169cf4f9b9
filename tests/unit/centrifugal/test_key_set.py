"""`backplane.centrifugal.key_set`: keys are fetched off the event loop, once for all, and outlast an outage."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from backplane import InvalidTokenError, TokenCheckUnavailableError
from backplane.centrifugal import key_set
from backplane.centrifugal.tokens import JwtTokens

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

KEYS = {kid: ec.generate_private_key(ec.SECP256R1()) for kid in ("a", "b")}
LOGGER = "backplane.centrifugal.key_set"


class Issuer:
    """An identity provider on loopback.

    Attributes:
        url: Its JWKS.
        kids: The names of the keys that it publishes.
        extra: What it publishes besides.
        status: With what it answers.
        body: What it answers in place of keys.
        fetches: How often it was asked.
        may_answer: Cleared, it holds its answers.
        asked: Set with each request.
    """

    def __init__(self) -> None:
        self.kids: list[str] = ["a"]
        self.extra: list[dict[str, Any]] = []
        self.status = 200
        self.body: bytes | None = None
        self.fetches = 0
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = threading.Event()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.fetches += 1
                issuer.asked.set()
                issuer.may_answer.wait(30)
                answer = issuer.answer() if issuer.body is None else issuer.body
                self.send_response(issuer.status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/keys"

    def answer(self) -> bytes:
        """Return the keys."""
        keys = [ECAlgorithm.to_jwk(KEYS[kid].public_key(), as_dict=True) | {"kid": kid} for kid in self.kids]
        return json.dumps({"keys": keys + self.extra}).encode()

    def tokens(self) -> JwtTokens:
        """Return what checks its tokens."""
        return JwtTokens(self.url, algorithms=["ES256"])


def token(kid: str, header: dict[str, Any] | None = None) -> str:
    """Return a token that one of the keys has signed."""
    return jwt.encode({"sub": "ada"}, KEYS[kid], algorithm="ES256", headers={"kid": kid} if header is None else header)


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    """An issuer, which no proxy of the environment keeps away."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Issuer()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.may_answer.set()
    made.server.shutdown()
    thread.join()
    made.server.server_close()


class Clock:
    """The clock of the key set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(key_set, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the test sets."""
    return Clock(monkeypatch)


def keys_of(tokens: JwtTokens) -> key_set.KeySet:
    """Return its key set."""
    found: key_set.KeySet = vars(tokens)["_key_set"]
    return found


async def settled(tokens: JwtTokens) -> None:
    """Return when no fetch runs."""
    await asyncio.wrap_future(vars(keys_of(tokens))["_fetch"])


async def test_keys_are_fetched_once(issuer: Issuer) -> None:
    """All clients that come at once wait for one fetch, which does not block the event loop."""
    issuer.may_answer.clear()
    tokens = issuer.tokens()
    waiting = [asyncio.create_task(tokens.connect(token("a"))) for _ in range(20)]
    while not issuer.asked.is_set():
        await asyncio.sleep(0.001)  # so the event loop runs while the request does
    issuer.may_answer.set()
    assert {claims.user for claims in await asyncio.gather(*waiting)} == {"ada"}
    assert (await tokens.connect(token("a"))).user == "ada"
    assert issuer.fetches == 1


async def test_cancelled_client(issuer: Issuer) -> None:
    """A client that leaves while keys are fetched does not take them from the others."""
    issuer.may_answer.clear()
    tokens = issuer.tokens()
    leaving, staying = (asyncio.create_task(tokens.connect(token("a"))) for _ in range(2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    issuer.may_answer.set()
    assert (await staying).user == "ada"
    assert leaving.cancelled()
    assert issuer.fetches == 1


async def test_new_key(issuer: Issuer, clock: Clock) -> None:
    """A key that the issuer has added is found by the next fetch, and one that it does not have is invalid."""
    tokens = issuer.tokens()
    await tokens.connect(token("a"))
    issuer.kids.append("b")
    clock.now += 5
    assert (await tokens.connect(token("b"))).user == "ada"
    clock.now += 5
    with pytest.raises(InvalidTokenError, match="no key of its issuer"):
        await tokens.connect(token("a", {"kid": "c"}))
    assert issuer.fetches == 3


async def test_made_up_keys(issuer: Issuer, clock: Clock) -> None:
    """A flood of tokens that name unknown keys causes one fetch within 5 s, and delays no client whose key is known."""
    tokens = issuer.tokens()
    await tokens.connect(token("a"))
    clock.now += 4.9
    for number in range(20):
        with pytest.raises(TokenCheckUnavailableError):
            await tokens.connect(token("a", {"kid": f"c{number}"}))
        assert (await tokens.connect(token("a"))).user == "ada"
    assert issuer.fetches == 1


async def test_wrong_signature(issuer: Issuer) -> None:
    """A token that names a key and is signed by another one is invalid, and so is one of another algorithm."""
    tokens = issuer.tokens()
    with pytest.raises(InvalidTokenError, match="InvalidSignatureError"):
        await tokens.connect(token("b", {"kid": "a"}))
    with pytest.raises(InvalidTokenError, match="InvalidAlgorithmError"):
        await tokens.connect(jwt.encode({"sub": "ada"}, "x" * 64, algorithm="HS256", headers={"kid": "a"}))


async def test_secret_in_the_key_set(issuer: Issuer) -> None:
    """A secret that an issuer publishes by mistake checks nothing (CVE-2026-48526), nor does a key for encryption."""
    secret = {"kty": "oct", "k": "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg", "kid": "s", "alg": "HS256"}
    other = ECAlgorithm.to_jwk(KEYS["b"].public_key(), as_dict=True) | {"kid": "b", "use": "enc"}
    issuer.extra = [secret, other]
    tokens = issuer.tokens()
    with pytest.raises(InvalidTokenError, match="InvalidAlgorithmError"):
        await tokens.connect(jwt.encode({"sub": "ada"}, "x" * 32, algorithm="HS256", headers={"kid": "s"}))
    with pytest.raises(TokenCheckUnavailableError):
        await tokens.connect(token("b"))


async def test_weak_key(issuer: Issuer) -> None:
    """A token signed with an RSA key of 1024 bits is invalid, whatever its issuer publishes."""
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    issuer.extra = [RSAAlgorithm.to_jwk(weak.public_key(), as_dict=True) | {"kid": "w"}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyJWT warns of the key
        forged = jwt.encode({"sub": "ada"}, weak, algorithm="RS256", headers={"kid": "w"})
    with pytest.raises(InvalidTokenError, match="InvalidKeyError"):
        await JwtTokens(issuer.url, algorithms=["RS256"]).connect(forged)


async def test_key_without_a_name(issuer: Issuer) -> None:
    """A token need not name its key where there is only one."""
    assert (await issuer.tokens().connect(token("a", {}))).user == "ada"
    issuer.kids.append("b")
    with pytest.raises(InvalidTokenError):
        await issuer.tokens().connect(token("a", {}))


async def test_no_token(issuer: Issuer) -> None:
    """What is no token causes no fetch."""
    for text in ("", "a.b.c", token("a", {"kid": "a", "crit": ["x"]})):
        with pytest.raises(InvalidTokenError):
            await issuer.tokens().connect(text)
    assert issuer.fetches == 0


async def test_keys_are_fetched_again(issuer: Issuer, clock: Clock) -> None:
    """After 5 minutes keys are fetched again, and no client waits for that; a key that is gone is then invalid."""
    tokens = issuer.tokens()
    await tokens.connect(token("a"))
    issuer.kids = ["b"]
    issuer.may_answer.clear()
    clock.now += 300
    assert (await tokens.connect(token("a"))).user == "ada"
    issuer.may_answer.set()
    await settled(tokens)
    clock.now += 5
    with pytest.raises(InvalidTokenError):
        await tokens.connect(token("a"))
    assert (await tokens.connect(token("b"))).user == "ada"


async def test_outage(issuer: Issuer, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """While the issuer fails, known keys are used for an hour; after that, and for others, the error is temporary.

    The begin of the outage and its end are logged, once.
    """
    caplog.set_level(logging.INFO, LOGGER)
    tokens = issuer.tokens()
    await tokens.connect(token("a"))
    issuer.status = 503
    for _ in range(3):
        clock.now += 600
        assert (await tokens.connect(token("a"))).user == "ada"
        await settled(tokens)
    with pytest.raises(TokenCheckUnavailableError, match=r"the keys of 127\.0\.0\.1"):
        await tokens.connect(token("b"))
    clock.now += 1_800
    with pytest.raises(TokenCheckUnavailableError):
        await tokens.connect(token("a"))
    issuer.status = 200
    clock.now += 5
    assert (await tokens.connect(token("a"))).user == "ada"
    assert [(record.levelname, record.message) for record in caplog.records] == [
        (
            "WARNING",
            "the keys of 127.0.0.1 cannot be fetched: "
            'Fail to fetch data from the url, err: "HTTP Error 503: Service Unavailable"',
        ),
        ("INFO", "the keys of 127.0.0.1 are fetched again"),
    ]


@pytest.mark.parametrize("body", [b"<html>hunter2", b"[]", b'{"keys": []}', b'{"keys": [1]}', b"\xff"], ids=repr)
async def test_answer_that_holds_no_keys(issuer: Issuer, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """An issuer that answers something else is as one that fails, and its answer is not logged."""
    issuer.body = body
    with pytest.raises(TokenCheckUnavailableError):
        await issuer.tokens().connect(token("a"))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "hunter2" not in caplog.text


async def test_issuer_that_does_not_answer(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client waits for a limited time, and the fetch goes on for those that come later."""
    monkeypatch.setattr(key_set, "_WAIT_SECONDS", 0.05)
    issuer.may_answer.clear()
    tokens = JwtTokens(issuer.url, algorithms=["ES256"])
    vars(keys_of(tokens))["_client"].timeout = 30
    with pytest.raises(TokenCheckUnavailableError):
        await tokens.connect(token("a"))
    issuer.may_answer.set()
    await settled(tokens)
    assert (await tokens.connect(token("a"))).user == "ada"
    assert issuer.fetches == 1


async def test_no_thread(issuer: Issuer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where the system refuses a thread, the error is temporary."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(key_set, "start_thread", refuse)
    with pytest.raises(TokenCheckUnavailableError):
        await issuer.tokens().connect(token("a"))
    assert caplog.messages == ["the keys of 127.0.0.1 cannot be fetched: RuntimeError"]
