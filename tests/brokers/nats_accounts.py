"""A NATS operator with one account and one user, as JWTs signed by keys of the test's own.

Their format is that of https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/jwt.
"""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Any

import nkeys  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["new_seed", "operator_config"]

_KEYS: Any = nkeys
_NO_LIMITS = {"subs": -1, "data": -1, "payload": -1}


def operator_config(folder: Path, limits: Mapping[str, int]) -> tuple[str, Path]:
    """Return lines for the server's configuration, and the file of credentials of the one user.

    Args:
        folder: Where the file is written.
        limits: Of the account: `payload`, `subs`.
    """
    operator, account, user = (
        _KEYS.from_seed(bytearray(new_seed(kind)))
        for kind in (_KEYS.PREFIX_BYTE_OPERATOR, _KEYS.PREFIX_BYTE_ACCOUNT, _KEYS.PREFIX_BYTE_USER)
    )
    unlimited = {**_NO_LIMITS, "imports": -1, "exports": -1, "conn": -1, "leaf": -1, "wildcards": True}
    operator_jwt = _jwt(operator, operator, {"type": "operator"})
    account_jwt = _jwt(operator, account, {"type": "account", "limits": {**unlimited, **limits}})
    user_jwt = _jwt(account, user, {"type": "user", **_NO_LIMITS})
    credentials = folder / "user.creds"
    credentials.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    preload = f"{{ {account.public_key.decode()}: {account_jwt} }}"
    return f"operator: {operator_jwt}\nresolver: MEMORY\nresolver_preload: {preload}\n", credentials


def new_seed(kind: int) -> bytes:
    """Return a fresh seed; `kind` is one of `nkeys.PREFIX_BYTE_...`."""
    seed: bytes = _KEYS.encode_seed(os.urandom(32), kind)
    return seed


def _jwt(issuer: Any, subject: Any, claims: Mapping[str, object]) -> str:
    header = {"typ": "JWT", "alg": "ed25519-nkey"}
    body = {
        "iss": issuer.public_key.decode(),
        "sub": subject.public_key.decode(),
        "name": claims["type"],
        "jti": "of-a-test",
        "iat": 1_700_000_000,
        "nats": {"version": 2, **claims},
    }
    signed = b".".join(_base64(json.dumps(part).encode()) for part in (header, body))
    return (signed + b"." + _base64(issuer.sign(signed))).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
