"""`backplane.adapters.nats_login`: which CONNECT answers a server's INFO."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import nkeys  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
import pytest

from backplane import Backplane, BrokerError, ConfigurationError, MissingDependencyError
from backplane.adapters.nats import NatsOptions
from backplane.adapters.nats_login import NatsLogin, ServerInfo
from backplane.broadcaster import BrokerUrl
from tests.brokers.nats_accounts import new_seed

if TYPE_CHECKING:
    from pathlib import Path


def connect(url: str, **options: str) -> dict[str, Any]:
    """Return the fields of the CONNECT."""
    login = NatsLogin(BrokerUrl.parse(url), NatsOptions.model_validate(options))
    line = login.command(ServerInfo(nonce="abc"), True)
    assert line.startswith(b"CONNECT ")
    assert line.endswith(b"\r\n")
    fields: dict[str, Any] = json.loads(line[8:])
    return fields


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nats://one", {}),
        ("nats://alice:hunter2@one", {"user": "alice", "pass": "hunter2"}),
        ("nats://s3cr3t@one", {"auth_token": "s3cr3t"}),
    ],
)
def test_credentials_of_the_url(url: str, expected: dict[str, str]) -> None:
    """User and password, a lone user name as the token, or nothing."""
    fields = connect(url)
    assert {name: fields[name] for name in ("user", "pass", "auth_token") if name in fields} == expected
    assert (fields["verbose"], fields["protocol"], fields["headers"], fields["tls_required"]) == (False, 1, True, True)


def test_a_line_break_in_a_password_stays_inside() -> None:
    """No credential can put a second command on the wire."""
    assert connect("nats://alice:a%0D%0APUB@one")["pass"] == "a\r\nPUB"


def test_an_nkey_signs(tmp_path: Path) -> None:
    """The public key is shown, and the server's nonce signed."""
    seed = new_seed(nkeys.PREFIX_BYTE_USER)
    (tmp_path / "seed").write_bytes(seed)
    fields = connect("nats://one", nkeys_seed=str(tmp_path / "seed"))
    keys: Any = nkeys
    assert fields["nkey"] == keys.from_seed(bytearray(seed)).public_key.decode()
    assert fields["sig"]


@pytest.mark.parametrize("option", ["user_credentials", "nkeys_seed", "password_file"])
def test_a_file_that_is_missing(option: str, tmp_path: Path) -> None:
    """A file of credentials that cannot be read is named."""
    with pytest.raises(BrokerError, match="missing"):
        connect("nats://one", **{option: str(tmp_path / "missing")})


@pytest.mark.parametrize("option", ["user_credentials", "nkeys_seed"])
def test_a_file_that_holds_something_else(option: str, tmp_path: Path) -> None:
    """A file without a key is refused, and nothing of it is shown."""
    (tmp_path / "file").write_text("hunter2")
    with pytest.raises(BrokerError) as raised:
        connect("nats://one", **{option: str(tmp_path / "file")})
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "nats://alice:x@one?password_file=f",
        "nats://alice:x@one?nkeys_seed=f",
        "nats://token@one?user_credentials=f",
        "nats://one?nkeys_seed=f&user_credentials=f",
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
