"""`backplane.adapters.nats.credentials`: the credentials that a login sends, read from its CONNECT."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import nkeys  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
import pytest

from backplane import Backplane, BrokerError, ConfigurationError, MissingDependencyError
from tests.brokers.nats_accounts import Operator, new_seed
from tests.unit.adapters.nats.played_login import connect_fields

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


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
    """The URL gives user and password, a token in place of the user name, or nothing."""
    fields = await connect_fields(url)
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
    """A callable returns a token, or user and password; a value of another form is refused."""
    module = ModuleType("token_service")
    monkeypatch.setitem(sys.modules, "token_service", module)
    module.current = lambda: returned  # type: ignore[attr-defined]
    if isinstance(expected, str):
        with pytest.raises((ConfigurationError, BrokerError), match=expected):
            await connect_fields("nats://one", credentials="token_service:current")
        return
    fields = await connect_fields("nats://one", credentials="token_service:current")
    assert {name: fields[name] for name in ("user", "pass", "auth_token") if name in fields} == expected


async def test_a_line_break_in_a_password_is_escaped() -> None:
    """No credential can send a second command."""
    assert (await connect_fields("nats://alice:a%0D%0APUB@one"))["pass"] == "a\r\nPUB"


async def test_an_nkey_signs(tmp_path: Path) -> None:
    """The public key is sent, with a signature of the server's nonce; spaces around the seed are ignored."""
    seed = new_seed(nkeys.PREFIX_BYTE_USER)
    (tmp_path / "seed").write_bytes(seed + b"\n")
    fields = await connect_fields("nats://one", nkeys_seed=str(tmp_path / "seed"))
    keys: Any = nkeys
    assert fields["nkey"] == keys.from_seed(bytearray(seed)).public_key.decode()
    assert fields["sig"]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
async def test_a_jwt_is_sent(tmp_path: Path, line_end: str) -> None:
    """The JWT of a `.creds` file is sent, with a signature of the nonce, whatever its line ends."""
    file = Operator().write_credentials(tmp_path / "alice.creds")
    jwt = file.read_text().splitlines()[1]
    file.write_text(file.read_text(), newline=line_end)
    fields = await connect_fields("nats://one", user_credentials=str(file))
    assert fields["jwt"] == jwt
    assert fields["sig"]


@pytest.mark.parametrize("option", ["user_credentials", "nkeys_seed", "password_file"])
async def test_a_missing_file_is_named(option: str, tmp_path: Path) -> None:
    """The error for a file that cannot be read names it."""
    with pytest.raises(BrokerError, match="missing"):
        await connect_fields("nats://one", **{option: str(tmp_path / "missing")})


@pytest.mark.parametrize("option", ["user_credentials", "nkeys_seed"])
@pytest.mark.parametrize(
    "text",
    [
        "hunter2",
        "-----BEGIN NATS USER JWT-----\nhunter2\n------END NATS USER JWT------\n",
        "-----BEGIN NATS USER JWT-----\nx\n-----END-----\n-----BEGIN USER NKEY SEED-----\nhunter2\n-----END-----",
    ],
)
async def test_a_file_without_credentials_is_refused(option: str, text: str, tmp_path: Path) -> None:
    """A file without a key is refused, and nothing of its content is shown."""
    (tmp_path / "file").write_text(text)
    with pytest.raises(BrokerError) as raised:
        await connect_fields("nats://one", **{option: str(tmp_path / "file")})
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
    """More than one kind of credentials is refused, and the error names the kinds."""
    with pytest.raises(ConfigurationError, match=" and "):
        Backplane(url)


def test_nkeys_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nkeys every other login works, and NKeys are refused with the command that installs it."""
    monkeypatch.setitem(sys.modules, "nkeys", None)
    Backplane("nats://alice:hunter2@one")
    with pytest.raises(MissingDependencyError, match=r"pip install 'fastapi-backplane\[nats\]'"):
        Backplane("nats://one?nkeys_seed=f")
