"""`backplane.centrifugal.tokens`: which tokens are taken, what they grant, and what every other one ends as."""

from __future__ import annotations

import base64
import builtins
import hashlib
import hmac
import json
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane import (
    ConfigurationError,
    InvalidTokenError,
    MissingDependencyError,
    PermissionExpiredError,
    RefusedError,
    TokenCheckUnavailableError,
    TokenExpiredError,
)
from backplane.centrifugal import tokens as tokens_module
from backplane.centrifugal.tokens import ConnectClaims, JwtTokens, SubscribeClaims

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

SECRET = "0123456789abcdef" * 4
LATER = 4_000_000_000

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def public(key: Any) -> str:
    """Return the public part of a key, in PEM."""
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


def private(key: Any) -> str:
    """Return a key in PEM."""
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem.decode()


def base64url(data: bytes) -> str:
    """Return data as a segment of a token."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def signed(claims: object, header: dict[str, Any] | None = None, key: str = SECRET) -> str:
    """Return a token made by hand, of what no library signs: `claims` is its payload, a text as it is."""
    head = {"alg": "HS256", "typ": "JWT"} | (header or {})
    payload = claims if isinstance(claims, str) else json.dumps(claims)
    text = f"{base64url(json.dumps(head).encode())}.{base64url(payload.encode('utf-8', 'surrogatepass'))}"
    return f"{text}.{base64url(hmac.digest(key.encode(), text.encode(), hashlib.sha256))}"


async def subscribe(token: str, tokens: JwtTokens | None = None) -> SubscribeClaims:
    """Subscribe the user `ada` to the channel `news` with a token."""
    return await (tokens or JwtTokens(SECRET)).subscribe(token, user="ada", channel="news", client="c1")


# --- what tokens grant ---------------------------------------------------------------------------------------------


async def test_connect() -> None:
    """Each claim of a token to connect with has its place."""
    claims = {"sub": "ada", "exp": LATER, "info": {"name": "Ada"}, "channels": ["a", "b"], "data": [1, None]}
    assert await JwtTokens(SECRET).connect(jwt.encode(claims, SECRET)) == ConnectClaims(
        user="ada", info={"name": "Ada"}, expires_at=LATER, channels=("a", "b"), data=[1, None]
    )


@pytest.mark.parametrize("claims", [{}, {"sub": ""}, {"sub": "", "info": None, "channels": None, "data": None}])
async def test_connect_anonymously(claims: dict[str, Any]) -> None:
    """A token without a user, or with an empty one, is of an anonymous user, and never expires without `exp`."""
    assert await JwtTokens(SECRET).connect(signed(claims)) == ConnectClaims(user="")


async def test_subscribe() -> None:
    """Each claim of a token to subscribe with has its place."""
    claims = {"sub": "ada", "channel": "news", "exp": LATER, "info": 1, "data": "x"}
    assert await subscribe(signed(claims)) == SubscribeClaims(expires_at=LATER, data="x")


async def test_subscribe_anonymously() -> None:
    """A token without a user is for the anonymous one."""
    token = signed({"channel": "news"})
    assert await JwtTokens(SECRET).subscribe(token, user="", channel="news", client="c1") == SubscribeClaims()
    with pytest.raises(InvalidTokenError):
        await subscribe(token)


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "ada"},
        {"sub": "ada", "channel": "other"},
        {"sub": "ada", "channel": ["news"]},
        {"sub": "bob", "channel": "news"},
        {"sub": "", "channel": "news"},
        {"sub": "ada", "channel": "news", "client": "c2"},
        {"sub": "ada", "channel": "news", "client": None},
    ],
    ids=repr,
)
async def test_subscribe_with_a_token_for_another(claims: dict[str, Any]) -> None:
    """A token for another channel, user or client, or one to connect with, is invalid for a subscribe."""
    with pytest.raises(InvalidTokenError):
        await subscribe(signed(claims))


async def test_subscribe_with_a_token_for_this_client() -> None:
    """A token can be for one client alone, as Centrifugo 3 made them."""
    assert await subscribe(signed({"sub": "ada", "channel": "news", "client": "c1"})) == SubscribeClaims()


async def test_connect_with_a_token_for_a_channel() -> None:
    """A token to subscribe with is none to connect with: it grants one channel, and not what its user may."""
    with pytest.raises(InvalidTokenError, match="for a channel"):
        await JwtTokens(SECRET).connect(signed({"sub": "ada", "channel": "news"}))


# --- when they expire ----------------------------------------------------------------------------------------------


async def test_expiry_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is valid until `exp`, fractions included, and for the leeway after it."""
    now = 2_000_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    token, hasty, patient = signed({"exp": now - 0.5}), JwtTokens(SECRET, leeway_seconds=0), JwtTokens(SECRET)
    with pytest.raises(TokenExpiredError):
        await hasty.connect(token)
    assert (await hasty.connect(signed({"exp": now + 0.5}))).expires_at == now + 0.5
    assert (await patient.connect(token)).expires_at == now - 0.5
    with pytest.raises(TokenExpiredError):
        await hasty.connect(signed({"exp": now}))
    with pytest.raises(TokenExpiredError):
        await patient.connect(signed({"exp": now - 10}))


async def test_expiry_of_the_connection_alone() -> None:
    """`expire_at` replaces `exp` as the end of what the token grants, 0 is never; `exp` still holds for the token."""
    tokens = JwtTokens(SECRET)
    assert (await tokens.connect(signed({"exp": LATER, "expire_at": LATER + 1}))).expires_at == LATER + 1
    assert (await tokens.connect(signed({"exp": LATER, "expire_at": 0}))).expires_at is None
    assert (await subscribe(signed({"sub": "ada", "channel": "news", "expire_at": LATER}))).expires_at == LATER
    for claims in ({"exp": 1, "expire_at": LATER}, {"exp": LATER, "expire_at": 1}):
        with pytest.raises(TokenExpiredError):
            await tokens.connect(signed(claims))


async def test_expired_subscribe() -> None:
    """A token to subscribe with expires as well."""
    with pytest.raises(TokenExpiredError):
        await subscribe(signed({"sub": "ada", "channel": "news", "exp": 1}))


@pytest.mark.parametrize("claim", ["nbf", "iat"])
async def test_clock_of_the_issuer(claim: str) -> None:
    """A token of an issuer whose clock is a little ahead is valid, and one of tomorrow is not."""
    tokens = JwtTokens(SECRET)
    assert (await tokens.connect(signed({"sub": "ada", claim: time.time() + 5}))).user == "ada"
    with pytest.raises(InvalidTokenError):
        await tokens.connect(signed({"sub": "ada", claim: time.time() + 86_400}))


def test_place_in_the_tree() -> None:
    """An expired and an invalid token are refusals; the expired one is an expired permission, as plain sockets have."""
    assert issubclass(TokenExpiredError, PermissionExpiredError)
    assert issubclass(InvalidTokenError, RefusedError)
    assert not issubclass(TokenCheckUnavailableError, RefusedError)


# --- claims of wrong types -----------------------------------------------------------------------------------------

WRONG: list[object] = [
    {"exp": str(LATER)},
    {"exp": True},
    {"exp": None},
    {"exp": []},
    {"exp": {}},
    {"exp": 10**50},
    {"exp": 4_000_000_000_000},
    {"exp": LATER, "expire_at": False},
    {"exp": LATER, "expire_at": "0"},
    '{"exp": NaN}',
    '{"exp": Infinity}',
    '{"exp": 1e999}',
    '{"exp": ' + "9" * 5_000 + "}",
    {"nbf": "soon"},
    {"nbf": []},
    {"iat": {}},
    '{"iat": Infinity}',
    '{"nbf": -Infinity}',
    {"jti": 1},
    {"sub": 42},
    {"sub": None},
    {"sub": ["ada"]},
    {"sub": "a" * 129},
    '{"sub": "\\ud800"}',
    '{"info": NaN}',
    '{"info": [{"a": -Infinity}]}',
    '{"data": "\\udfff"}',
    '{"info": ' + "[" * 20_000 + "]" * 20_000 + "}",
    {"channels": "news"},
    {"channels": {"news": {}}},
    {"channels": [1]},
    {"channels": [""]},
    {"channels": ["$backplane/control"]},
    {"channels": ["a" * 256]},
    {"aud": "another service"},
    "[]",
    '"ada"',
    "null",
    "{",
    "",
    "\x00",
    "\ud800",
]


@pytest.mark.parametrize("claims", WRONG, ids=lambda claims: str(claims)[:40].encode("ascii", "replace").decode())
async def test_claim_of_a_wrong_type(claims: object) -> None:
    """A token with a claim of a wrong type, rightly signed, is invalid, and nothing else is raised."""
    with pytest.raises(InvalidTokenError):
        await JwtTokens(SECRET).connect(signed(claims))


def test_claim_nested_too_deep() -> None:
    """A claim that can be read and not written is invalid too: the depth depends on the Python and on its stack."""
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(InvalidTokenError, match="info is not JSON"):
        vars(tokens_module)["_json"]({"info": nested}, "info")


@pytest.mark.parametrize("moment", [-1, 0, 1, 1.5, -1e300])
async def test_moment_of_the_past(moment: float) -> None:
    """Any number up to now is a moment of the past."""
    with pytest.raises(TokenExpiredError):
        await JwtTokens(SECRET).connect(signed({"exp": moment}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text(st.characters(categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
CLAIMS = ["sub", "exp", "expire_at", "nbf", "iat", "aud", "iss", "jti", "info", "data", "channels", "channel", "client"]


@settings(max_examples=50)
@given(claims=st.dictionaries(st.sampled_from(CLAIMS), JSON), options=st.sampled_from([{}, {"audience": "a"}]))
async def test_any_claims(claims: dict[str, Any], options: dict[str, Any]) -> None:
    """Whatever an issuer signs, it is taken or refused with an error of the two, and what is taken is JSON."""
    tokens = JwtTokens(SECRET, **options)
    token = signed(claims)
    with suppress(InvalidTokenError, TokenExpiredError):
        taken = await tokens.connect(token)
        json.dumps([taken.user, taken.info, taken.data, *taken.channels], allow_nan=False).encode()
        assert taken.expires_at is None or math.isfinite(taken.expires_at)
    with suppress(InvalidTokenError, TokenExpiredError):
        await subscribe(token, tokens)


@given(token=st.text() | st.text("eyJ.-_=") | st.binary().map(lambda data: f"{base64url(data)}..{base64url(data)}"))
async def test_any_token(token: str) -> None:
    """Whatever a client sends, it is an invalid token."""
    with pytest.raises(InvalidTokenError):
        await JwtTokens(SECRET).connect(token)


# --- attacks -------------------------------------------------------------------------------------------------------

ADA = {"sub": "ada"}


def flipped(token: str) -> str:
    """Return a token with another signature."""
    return token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")


ATTACKS: dict[str, str] = {
    "no algorithm (CVE-2015-2951)": jwt.encode(ADA, "", algorithm="none"),
    "none in other letters": signed(ADA, {"alg": "nOnE"}).rpartition(".")[0] + ".",
    "no signature (CVE-2020-28042)": signed(ADA).rpartition(".")[0] + ".",
    "another signature": flipped(signed(ADA)),
    "an empty key (CVE-2019-20933)": signed(ADA, key=""),
    "another key": signed(ADA, key=SECRET[::-1]),
    "another algorithm of the same key": jwt.encode(ADA, SECRET, algorithm="HS512"),
    "an algorithm that is no text": signed(ADA, {"alg": ["HS256"]}),
    "an algorithm that is null": signed(ADA, {"alg": None}),
    "an algorithm that is not known": signed(ADA, {"alg": "HS257"}),
    "a critical extension (CVE-2026-32597)": signed(ADA, {"crit": ["exp"], "exp": LATER}),
    "an empty list of critical extensions": signed(ADA, {"crit": []}),
    "a detached payload (RFC 7797)": signed(ADA, {"b64": False, "crit": ["b64"]}),
    "a key in the header (CVE-2018-0114)": signed(ADA, {"jwk": {"kty": "oct", "k": base64url(b"x" * 32)}}, "x" * 32),
    "a URL of keys in the header": signed(ADA, {"jku": "http://127.0.0.1:1/keys"}, "x" * 32),
    "a path in the name of the key": signed(ADA, {"kid": "../../dev/null"}, ""),
    "a name of the key that is no text": signed(ADA, {"kid": {"a": 1}}),
    "an encrypted token, of five parts": "a.b.c.d.e",
    "a header of 100,000 brackets": f"{base64url(b'[' * 100_000)}.e30.e30",
    "a token without end": signed(ADA | {"x": "a" * 20_000}),
    "padding that is none": signed(ADA) + "!!!!",
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_attack(attack: str) -> None:
    """A token that is forged in a way known from advisories is invalid."""
    with pytest.raises(InvalidTokenError):
        await JwtTokens(SECRET).connect(ATTACKS[attack])


@pytest.mark.parametrize("key", [RSA_KEY, EC_KEY], ids=["RS256", "ES256"])
async def test_public_key_as_a_secret(key: Any) -> None:
    """A token signed with the public key, as if it were a secret, is invalid (CVE-2016-10555, CVE-2022-29217)."""
    pem = public(key)
    tokens = JwtTokens(pem, algorithms=["RS256" if key is RSA_KEY else "ES256"])
    for secret in (pem, pem.strip(), pem.replace("\n", "")):
        with pytest.raises(InvalidTokenError):
            await tokens.connect(signed(ADA, key=secret))


async def test_claims_are_checked_after_the_signature() -> None:
    """A forged token that has expired is invalid, and not expired: the SDK would ask for another one without end."""
    with pytest.raises(InvalidTokenError):
        await JwtTokens(SECRET).connect(flipped(signed({"exp": 1})))


@pytest.mark.parametrize("claims", [ADA, {"aud": "b"}, {"aud": []}, {"aud": None}, {"aud": 1}, {"aud": "aa"}], ids=repr)
async def test_audience(claims: dict[str, Any]) -> None:
    """Where an audience is expected, a token for another one, or for none, is invalid."""
    tokens = JwtTokens(SECRET, audience=["a", "c"])
    with pytest.raises(InvalidTokenError):
        await tokens.connect(signed(claims))
    assert (await tokens.connect(signed(ADA | {"aud": ["x", "a"]}))).user == "ada"
    assert (await JwtTokens(SECRET, audience="a").connect(signed(ADA | {"aud": "a"}))).user == "ada"


@pytest.mark.parametrize("issuer", ["b", "", 1, ["acme"], "acm", None], ids=repr)
async def test_issuer(issuer: object) -> None:
    """Where an issuer is expected, a token of another one is invalid, also of a part of it (CVE-2024-53861)."""
    with pytest.raises(InvalidTokenError):
        await JwtTokens(SECRET, issuer="acme").connect(signed({"iss": issuer}))
    assert (await JwtTokens(SECRET, issuer=["acme", "x"]).connect(signed(ADA | {"iss": "acme"}))).user == "ada"


# --- keys and options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [(RSA_KEY, "RS256"), (RSA_KEY, "PS512"), (EC_KEY, "ES256"), (ED_KEY, "EdDSA")],
    ids=["RS256", "PS512", "ES256", "EdDSA"],
)
async def test_public_key(key: Any, algorithm: str) -> None:
    """A public key checks what its private one has signed."""
    tokens = JwtTokens(public(key), algorithms=[algorithm])
    assert (await tokens.connect(jwt.encode(ADA, private(key), algorithm=algorithm))).user == "ada"


async def test_secret_in_bytes() -> None:
    """A secret can be bytes, which need not be text."""
    secret = bytes(range(200, 256)) + b"12345678"
    tokens = JwtTokens(secret, algorithms=["HS256", "HS512"])
    assert (await tokens.connect(jwt.encode(ADA, secret, algorithm="HS512"))).user == "ada"


def refused(key: Any, *algorithms: str) -> Callable[[], JwtTokens]:
    """Return what makes tokens with a key that cannot be used."""
    return lambda: JwtTokens(key, algorithms=algorithms or ["HS256"])


REFUSED: dict[str, Callable[[], JwtTokens]] = {
    "no key": refused(""),
    "no text": refused(None),
    "a short secret": refused("hunter2" * 4),
    "a secret too short for one": refused(SECRET[:40], "HS256", "HS512"),
    "a public key as a secret": refused(public(RSA_KEY)),
    "a JWK as a secret": refused(json.dumps({"kty": "oct", "k": "hunter2" * 9})),
    "a private key": refused(private(RSA_KEY), "RS256"),
    "a private key in bytes": refused(private(EC_KEY).encode(), "ES256"),
    "a key of another kind": refused(public(EC_KEY), "RS256"),
    "a secret for public keys": refused(SECRET, "RS256"),
    "a weak public key": refused(public(rsa.generate_private_key(public_exponent=65537, key_size=1024)), "RS256"),
    "both kinds": refused(SECRET, "HS256", "RS256"),
    "none": refused(SECRET, "none"),
    "an unknown algorithm": refused(SECRET, "HS1"),
    "no algorithm": lambda: JwtTokens(SECRET, algorithms=[]),
    "a text of algorithms": lambda: JwtTokens(SECRET, algorithms="HS256"),
    "a JWKS with a secret's algorithm": refused("https://id.example/keys"),
    "a JWKS with a password": refused("https://ada:hunter2@id.example/keys", "RS256"),
    "a JWKS without a host": refused("https:///keys", "RS256"),
    "a JWKS with a port that is none": refused("https://[hunter2/keys", "RS256"),
    "a JWKS with a blank": refused("https://id.example/keys?key=hunter2 x", "RS256"),
    "a negative leeway": lambda: JwtTokens(SECRET, leeway_seconds=-1),
    "an endless leeway": lambda: JwtTokens(SECRET, leeway_seconds=math.inf),
    "an empty audience": lambda: JwtTokens(SECRET, audience=""),
    "an issuer that is no text": lambda: JwtTokens(SECRET, issuer=[1]),  # type: ignore[list-item]
}


@pytest.mark.parametrize("case", REFUSED)
def test_configuration(case: str) -> None:
    """A key that cannot be used safely is refused when the object is made, and no error shows it."""
    with pytest.raises(ConfigurationError) as caught:
        REFUSED[case]()
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in str(error)
        assert SECRET[:20] not in str(error)
        assert "MII" not in str(error)
        error = error.__cause__


async def test_secrets_are_masked() -> None:
    """Neither a `repr` nor an error holds a key or a token."""
    tokens = JwtTokens(SECRET)
    assert repr(tokens) == "<JwtTokens HS256>"
    token = signed({"sub": 1})
    with pytest.raises(InvalidTokenError) as caught:
        await tokens.connect(token)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert str(caught.value) == "the token is invalid: InvalidSubjectError"


def test_without_pyjwt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyJWT the error names the extra to install."""
    importing = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "jwt":
            raise ImportError("No module named 'jwt'")
        return importing(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fastapi-backplane\[jwt\]'"):
        JwtTokens(SECRET)


def test_without_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cryptography, which public keys need, the error names the extra too."""

    def without(name: str) -> None:
        raise NotImplementedError(f"Algorithm '{name}' could not be found. Do you have cryptography installed?")

    monkeypatch.setattr(jwt, "get_algorithm_by_name", without)
    with pytest.raises(MissingDependencyError, match=r"cryptography .*pip install 'fastapi-backplane\[jwt\]'"):
        JwtTokens(public(RSA_KEY), algorithms=["RS256"])
