"""The tokens with which clients connect and subscribe: JSON Web Tokens, or whatever the application checks itself."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Final, Protocol

from backplane.centrifugal.key_set import KeySet
from backplane.channels import validate_channel
from backplane.connection.expiry import moment_of
from backplane.errors import (
    ConfigurationError,
    InvalidChannelError,
    InvalidDataError,
    InvalidTokenError,
    MissingDependencyError,
    TokenCheckUnavailableError,
    TokenExpiredError,
)
from backplane.option_checks import is_number
from backplane.presence_types import check_user

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

__all__ = ["ConnectClaims", "JwtTokens", "SubscribeClaims", "Tokens"]

_HMAC: Final = frozenset({"HS256", "HS384", "HS512"})
_PUBLIC_KEY: Final = frozenset({
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES256K", "ES384", "ES512", "EdDSA",
})  # fmt: skip

# PyJWT looks at each character of a token before it checks the signature, 40 ns each.
_MAX_CHARACTERS: Final = 16_384

# `exp` is checked here: PyJWT rounds it, and takes the text "1" and `true` for a number.
_OPTIONS: Final[Any] = {"verify_exp": False, "enforce_minimum_key_length": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectClaims:
    """What a token states of a client that connects.

    Attributes:
        user: Names the user, 1 to 128 bytes in UTF-8; empty for an anonymous one.
        info: Anything JSON, of at most 256 bytes, that other clients see with the user, in presence, joins and
            publications.
        expires_at: When the connection expires, in seconds since the epoch; `None` for never. The SDK gets a new token
            before that.
        channels: The channels that the server subscribes the client to. They grant nothing else.
        data: Anything JSON that the client gets with the reply to its connect.
    """

    user: str
    info: Any = None
    expires_at: float | None = None
    channels: Sequence[str] = ()
    data: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscribeClaims:
    """What a token grants to a client that subscribes to one channel.

    Attributes:
        expires_at: When the subscription expires, in seconds since the epoch; `None` for never. The SDK gets a new
            token before that.
        data: Anything JSON that the client gets with the reply to its subscribe.
    """

    expires_at: float | None = None
    data: Any = None


class Tokens(Protocol):
    """Checks the tokens of clients. `JwtTokens` does, and so may an object of the application.

    Each method is a function or a coroutine function. A plain function runs in the event loop and must not block. An
    answer is due within 4 s. What they raise other than the errors below is logged, and answered as a temporary error.
    """

    def connect(self, token: str, /) -> ConnectClaims | Awaitable[ConnectClaims]:
        """Return what a token states of a client that connects, or comes back for more time (`refresh`).

        Raises:
            TokenExpiredError: The SDK gets a new token, and tries again.
            InvalidTokenError: The client is closed, and stays away.
            TokenCheckUnavailableError: The SDK tries again, with a pause that grows.
        """
        ...

    def subscribe(
        self, token: str, /, *, user: str, channel: str, client: str
    ) -> SubscribeClaims | Awaitable[SubscribeClaims]:
        """Return what a token grants to a client that subscribes to `channel`, or comes back for more time.

        Args:
            token: The token.
            user: The user of the connection, empty for an anonymous one.
            channel: The channel. A token for another one is invalid.
            client: The id of the connection.

        Raises:
            TokenExpiredError: The SDK gets a new token, and tries again.
            InvalidTokenError: The subscription is refused.
            TokenCheckUnavailableError: The SDK tries again, with a pause that grows.
        """
        ...


class JwtTokens:
    """Checks JSON Web Tokens, with the claims that Centrifugo has for them; needs `fastapi-backplane[jwt]`.

    - Both kinds: `exp`, when the token and what it grants end, in seconds since the epoch (without it: never);
      `expire_at`, where the connection or subscription ends at another time, 0 for never; `nbf`, `iat`, `aud`, `iss` as
      RFC 7519 has them.
    - To connect: `sub`, the user, a text, empty or left out for an anonymous one; `info`, `channels`, `data` as in
      `ConnectClaims`. A token with `channel` is none to connect with.
    - To subscribe: `channel`, which is required; `sub`, the user of the connection; `client`, where the token is for
      one connection alone; `data` as in `SubscribeClaims`. Presence is by user, so there is no `info` of one channel.

    Other claims are ignored. The signature is checked first, by an algorithm that is allowed here, never by one that
    only the token names. A token with a claim of the wrong type is invalid, and so is one of more than 16,384
    characters. No error, log line or `repr` holds a token or a key.

    Args:
        key: A secret, for `HS256`, `HS384` and `HS512`; or a public key in PEM, or the URL of a JWKS (`https://...`) of
            an identity provider, for the others. The keys of a JWKS are fetched in a thread, kept for 5 minutes, and
            used for up to an hour while it cannot be reached. A token must then name its key (`kid`) unless there is
            only one.
        algorithms: The algorithms that are allowed, all for a secret or all for public keys. Defaults to `HS256`.
        audience: Of these, a token must name one in `aud`. Defaults to none: a token with `aud` is then invalid, since
            it is for another service.
        issuer: Of these, a token must have one in `iss`. Defaults to any.
        leeway_seconds: By how much the clock of the issuer may differ from this one. Defaults to 10: a token is valid
            for so long after its `exp`.

    Raises:
        MissingDependencyError: PyJWT, or cryptography, is not installed.
        ConfigurationError: The key is empty, too short for an algorithm, a private key, or not of the algorithms' kind;
            an algorithm is unknown, or `none`.
    """

    def __init__(
        self,
        key: str | bytes,
        *,
        algorithms: Sequence[str] = ("HS256",),
        audience: str | Sequence[str] | None = None,
        issuer: str | Sequence[str] | None = None,
        leeway_seconds: float = 10.0,
    ) -> None:
        try:
            import jwt
        except ImportError as error:
            raise _missing(error) from error
        _check_algorithms(algorithms)
        if not is_number(leeway_seconds) or not 0 <= leeway_seconds < inf:
            raise ConfigurationError(f"leeway_seconds must be a finite number of 0 or more, not {leeway_seconds!r}")
        is_url = isinstance(key, str) and key.startswith(("https://", "http://"))
        if is_url and not _HMAC.isdisjoint(algorithms):
            raise ConfigurationError(f"a JWKS holds public keys, which {', '.join(algorithms)} cannot be checked with")
        self._jwt = jwt.PyJWT()
        self._key_set = KeySet(str(key)) if is_url else None
        prepared = [] if is_url else [_prepared(key, algorithm) for algorithm in algorithms]
        self._key: Any = prepared[0] if prepared else None  # alike for all algorithms of one kind
        self._algorithms = list(algorithms)
        self._audience = _names("audience", audience)
        self._issuer = _names("issuer", issuer)
        self._leeway_seconds = leeway_seconds

    def __repr__(self) -> str:
        return f"<JwtTokens {' '.join(self._algorithms)}>"

    async def connect(self, token: str, /) -> ConnectClaims:
        """As `Tokens.connect`."""
        claims = await self._claims(token)
        if "channel" in claims:
            raise InvalidTokenError("the token is for a channel, and not to connect with")
        return ConnectClaims(
            user=_user(claims),
            info=_json(claims, "info"),
            expires_at=self._expires_at(claims),
            channels=_channels(claims),
            data=_json(claims, "data"),
        )

    async def subscribe(self, token: str, /, *, user: str, channel: str, client: str) -> SubscribeClaims:
        """As `Tokens.subscribe`."""
        claims = await self._claims(token)
        if claims.get("channel") != channel:
            raise InvalidTokenError("the token is not for this channel")
        if claims.get("sub", "") != user or claims.get("client", client) != client:
            raise InvalidTokenError("the token is for another user, or another client")
        return SubscribeClaims(expires_at=self._expires_at(claims), data=_json(claims, "data"))

    async def _claims(self, token: str) -> dict[str, Any]:
        """Return the claims of a token whose signature, `nbf`, `iat`, `aud` and `iss` are right."""
        if len(token) > _MAX_CHARACTERS:
            raise InvalidTokenError(f"the token is longer than {_MAX_CHARACTERS:,} characters")
        try:
            return self._jwt.decode(
                token,
                self._key if self._key_set is None else await self._key_set.key_of(token),
                algorithms=self._algorithms,
                options=_OPTIONS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_seconds,
            )
        except (InvalidTokenError, TokenCheckUnavailableError):
            raise
        except Exception as error:  # PyJWT raises others than its own too
            raise InvalidTokenError(f"the token is invalid: {type(error).__name__}") from None  # it can hold the token

    def _expires_at(self, claims: dict[str, Any]) -> float | None:
        """Return when what the token grants expires.

        Raises:
            TokenExpiredError: It has expired.
        """
        expires_at = self._moment("exp", claims["exp"]) if "exp" in claims else None
        if "expire_at" not in claims:
            return expires_at
        other = claims["expire_at"]
        return None if is_number(other) and other == 0 else self._moment("expire_at", other)

    def _moment(self, name: str, value: object) -> float:
        if not is_number(value):
            raise InvalidTokenError(f"{name} is not a number of seconds since the epoch")
        if value <= time.time() - self._leeway_seconds:
            raise TokenExpiredError("the token has expired")
        try:
            moment = moment_of(value)
        except ConfigurationError:
            raise InvalidTokenError(f"{name} is not a number of seconds since the epoch") from None
        assert moment is not None
        return moment


def _user(claims: dict[str, Any]) -> str:
    user: Any = claims.get("sub", "")
    try:
        if user != "":
            check_user(user)
    except InvalidDataError:
        raise InvalidTokenError("sub is not a text of at most 128 bytes in UTF-8") from None
    return str(user)


def _channels(claims: dict[str, Any]) -> tuple[str, ...]:
    channels: Any = claims.get("channels")
    if channels is None:
        return ()
    if not isinstance(channels, list):
        raise InvalidTokenError("channels is not a list")
    try:
        return tuple(validate_channel(channel) for channel in channels)  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
    except InvalidChannelError:
        raise InvalidTokenError("channels holds what is no name of a channel") from None


def _json(claims: dict[str, Any], name: str) -> Any:
    """Return a claim that is JSON: Python reads NaN, infinities and lone surrogates too, which no client does."""
    value = claims.get(name)
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise InvalidTokenError(f"{name} is not JSON") from None
    return value


def _names(option: str, value: str | Sequence[str] | None) -> list[str] | None:
    names = [value] if isinstance(value, str) else value
    unchecked: Any = names
    if names is not None and (not names or not all(isinstance(name, str) and name for name in unchecked)):
        raise ConfigurationError(f"{option} is a text, a sequence of texts or None, not {value!r:.100}")
    return None if names is None else list(names)


def _check_algorithms(algorithms: Sequence[str]) -> None:
    import jwt

    unknown = [name for name in algorithms if name not in _HMAC | _PUBLIC_KEY]
    if unknown or not algorithms or isinstance(algorithms, str):
        known = ", ".join(sorted(_HMAC | _PUBLIC_KEY))
        raise ConfigurationError(f"algorithms is a sequence of names, of {known}, not {algorithms!r:.100}")
    if len({name in _HMAC for name in algorithms}) > 1:
        raise ConfigurationError(
            "algorithms are all for a secret (HS...) or all for public keys: with both, a token could be signed with "
            "the public key in place of the secret"
        )
    try:
        for name in algorithms:
            jwt.get_algorithm_by_name(name)
    except NotImplementedError as error:
        raise _missing(error) from error


def _prepared(key: str | bytes, algorithm: str) -> Any:
    """Return a key in the form in which it is used, which takes as long to make as a signature to check.

    Raises:
        ConfigurationError: It is not of the algorithm's kind, or not long enough.
    """
    import jwt

    checker = jwt.get_algorithm_by_name(algorithm)
    try:
        prepared: Any = checker.prepare_key(key)
        text = key if isinstance(key, str) else key.decode("latin-1")
        is_usable = checker.check_key_length(prepared) is None and "PRIVATE KEY" not in text
    except Exception:  # each algorithm has errors of its own for what is no key
        prepared, is_usable = None, False
    if is_usable:
        return prepared
    if algorithm in _HMAC:
        raise ConfigurationError(
            f"the key is none for {algorithm}: a secret of {int(algorithm[2:]) // 8} random bytes or more, as "
            "secrets.token_hex(64) returns; a public key needs algorithms of its own, as in algorithms=('RS256',)"
        )
    raise ConfigurationError(
        f"the key is none for {algorithm}: a public key of that kind in PEM, RSA of 2048 bits or more"
    )


def _missing(error: Exception) -> MissingDependencyError:
    return MissingDependencyError(
        f"JwtTokens needs a package that is not installed ({error}): pip install 'fastapi-backplane[jwt]'"
    )
