"""examples/login.py."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import jwt
import pytest
from websockets.exceptions import InvalidStatus

from backplane import CloseCode
from tests.examples.example_server import SECONDS, received_close_code

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

    from tests.examples.conftest import Serve
    from tests.examples.example_server import ExampleServer

SECRET = "s" * 32


def log_in(server: ExampleServer, user: str = "ada", passphrase: str = "analytical") -> str:
    """Return a token from the server."""
    status, body = server.request("POST", "/login", {"user": user, "passphrase": passphrase})
    assert status == 200
    return str(body["token"])


def open_inbox(server: ExampleServer, token: str, owner: str = "ada") -> ClientConnection:
    """Connect with the cookie that a browser would send."""
    return server.connect(f"/inbox/{owner}", additional_headers={"Cookie": f"token={token}"})


def status_of_refusal(server: ExampleServer, token: str, owner: str = "ada") -> int:
    """Return the HTTP status with which the handshake is refused."""
    with pytest.raises(InvalidStatus) as refused:
        open_inbox(server, token, owner)
    return refused.value.response.status_code


def test_user_with_a_token_receives_the_own_inbox(serve: Serve) -> None:
    """A token lets its user join the own inbox."""
    server = serve("login", JWT_SECRET=SECRET)
    with open_inbox(server, log_in(server)) as ada:
        assert server.request("POST", "/inbox/ada?text=hello")[0] == 202
        assert json.loads(ada.recv(timeout=SECONDS)) == {"text": "hello"}


def test_inbox_of_another_is_refused(serve: Serve) -> None:
    """A valid token of another user is refused with 403."""
    server = serve("login", JWT_SECRET=SECRET)
    assert status_of_refusal(server, log_in(server), owner="grace") == 403


def test_wrong_passphrase_is_answered_401(serve: Serve) -> None:
    """Neither an unknown user nor a wrong or empty passphrase gets a token."""
    server = serve("login", JWT_SECRET=SECRET)
    for user, passphrase in (("ada", "wrong"), ("eve", "analytical"), ("eve", ""), ("ada", "")):
        assert server.request("POST", "/login", {"user": user, "passphrase": passphrase})[0] == 401


def test_invalid_token_is_refused(serve: Serve) -> None:
    """No token, a foreign signature, no signature, an expired one and one without an expiry are refused."""
    server = serve("login", JWT_SECRET=SECRET)
    later = int(time.time()) + 600
    tokens = [
        "",
        "nonsense",
        jwt.encode({"sub": "ada", "exp": later}, "x" * 32, algorithm="HS256"),
        jwt.encode({"sub": "ada", "exp": later}, "", algorithm="none"),
        jwt.encode({"sub": "ada", "exp": later - 601}, SECRET, algorithm="HS256"),
        jwt.encode({"sub": "ada"}, SECRET, algorithm="HS256"),
    ]
    assert [status_of_refusal(server, token) for token in tokens] == [403] * len(tokens)


def test_connection_ends_with_its_token(serve: Serve) -> None:
    """At the token's expiry the connection is closed with 4001, not before."""
    server = serve("login", JWT_SECRET=SECRET, TOKEN_SECONDS="2")
    token = log_in(server)
    expires_at: int = jwt.decode(token, SECRET, algorithms=["HS256"])["exp"]
    with open_inbox(server, token) as ada:
        assert received_close_code(ada) == CloseCode.EXPIRED
    assert time.time() >= expires_at


def test_renewed_connection_outlives_its_first_token(serve: Serve) -> None:
    """A new token, sent over the socket, keeps the connection open past the expiry of the first one."""
    server = serve("login", JWT_SECRET=SECRET, TOKEN_SECONDS="2")
    token = log_in(server)
    expires_at: int = jwt.decode(token, SECRET, algorithms=["HS256"])["exp"]
    longer = expires_at + 2
    with open_inbox(server, token) as ada:
        ada.send(json.dumps({"token": jwt.encode({"sub": "ada", "exp": longer}, SECRET, algorithm="HS256")}))
        assert json.loads(ada.recv(timeout=SECONDS)) == {"expires_at": longer}
        assert received_close_code(ada) == CloseCode.EXPIRED
    assert time.time() >= longer


def test_token_of_another_does_not_renew(serve: Serve) -> None:
    """A token of another user, sent to renew, closes the connection with 4503."""
    server = serve("login", JWT_SECRET=SECRET)
    with open_inbox(server, log_in(server)) as ada:
        ada.send(json.dumps({"token": log_in(server, "grace", "compiler")}))
        assert received_close_code(ada) == CloseCode.FORBIDDEN
