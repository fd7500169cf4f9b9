"""A NATS operator with one account and its users, as JWTs signed by keys of the test.

Their format is that of https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/jwt.
"""

from __future__ import annotations

import base64
import json
import os
import time
from typing import TYPE_CHECKING, Any

import nkeys  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Operator", "new_seed"]

_KEYS: Any = nkeys
_NO_LIMITS = {"subs": -1, "data": -1, "payload": -1}
_NO_ACCOUNT_LIMITS = {**_NO_LIMITS, "imports": -1, "exports": -1, "conn": -1, "leaf": -1, "wildcards": True}


class Operator:
    """An operator with one account.

    Args:
        limits: Limits of the account: `payload`, `subs`.

    Attributes:
        config: Lines for the server's configuration.
    """

    def __init__(self, **limits: int) -> None:
        self._operator, self._account = _new_key(_KEYS.PREFIX_BYTE_OPERATOR), _new_key(_KEYS.PREFIX_BYTE_ACCOUNT)
        operator_jwt = _jwt(self._operator, self._operator, {"type": "operator"})
        account = {"type": "account", "limits": {**_NO_ACCOUNT_LIMITS, **limits}}
        preload = f"{{ {self._account.public_key.decode()}: {_jwt(self._operator, self._account, account)} }}"
        self.config = f"operator: {operator_jwt}\nresolver: MEMORY\nresolver_preload: {preload}\n"

    def write_credentials(self, file: Path, *, seconds: int | None = None) -> Path:
        """Write the credentials of a new user, valid for `seconds`; return the file."""
        user = _new_key(_KEYS.PREFIX_BYTE_USER)
        user_jwt = _jwt(self._account, user, {"type": "user", **_NO_LIMITS}, seconds)
        file.write_text(
            f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        return file


def new_seed(kind: int) -> bytes:
    """Return a fresh seed; `kind` is one of `nkeys.PREFIX_BYTE_...`."""
    seed: bytes = _KEYS.encode_seed(os.urandom(32), kind)
    return seed


def _new_key(kind: int) -> Any:
    return _KEYS.from_seed(bytearray(new_seed(kind)))


def _jwt(issuer: Any, subject: Any, claims: Mapping[str, object], seconds: int | None = None) -> str:
    header = {"typ": "JWT", "alg": "ed25519-nkey"}
    body = {
        "iss": issuer.public_key.decode(),
        "sub": subject.public_key.decode(),
        "name": claims["type"],
        "jti": "of-a-test",
        "iat": 1_700_000_000,
        "nats": {"version": 2, **claims},
        **({} if seconds is None else {"exp": int(time.time()) + seconds}),
    }
    signed = b".".join(_base64(json.dumps(part).encode()) for part in (header, body))
    return (signed + b"." + _base64(issuer.sign(signed))).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
