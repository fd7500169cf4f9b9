"""A secret of a URL stands in no repr, log, error or chain of errors, on any adapter."""

from __future__ import annotations

import asyncio
import logging
import struct
import sys
import traceback
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from pamqp import commands
from pamqp.frame import marshal

from backplane import Backplane, Settings
from backplane.adapters.kafka.login import Security, Token
from backplane.broadcaster import BrokerUrl
from backplane.broker.registry import broadcaster_from_url
from backplane.errors import BackplaneError, BrokerAuthenticationError, ConfigurationError
from backplane.sync import SyncBackplane
from tests.brokers.process import free_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

SECRET = "hunter2"
HASTY = Settings(start_timeout_seconds=0.2, publish_timeout_seconds=0.2)

# {port} is one at which no server listens, `handed_out.fail` a callable that raises the secret.
URLS = [
    f"memory://alice:{SECRET}@here",
    f"redis://alice:{SECRET}@127.0.0.1:{{port}}",
    f"rediss://:{SECRET}@127.0.0.1:{{port}}",
    f"unix://alice:{SECRET}@/no/such/socket",
    f"redis+sentinel://alice:{SECRET}@127.0.0.1:{{port}}/service?sentinel_password={SECRET}",
    f"redis+cluster://alice:{SECRET}@127.0.0.1:{{port}}",
    f"nats://alice:{SECRET}@127.0.0.1:{{port}}",
    f"tls://{SECRET}@127.0.0.1:{{port}}",
    f"kafka://alice:{SECRET}@127.0.0.1:{{port}}?sasl_mechanism=SCRAM-SHA-256",
    f"kafka://alice:{SECRET}@127.0.0.1:{{port}}?tls=true",
    f"postgres://alice:{SECRET}@127.0.0.1:{{port}}/shop",
    "postgres://127.0.0.1:{port}?credentials=handed_out:fail",
    f"amqp://alice:{SECRET}@127.0.0.1:{{port}}/shop",
    f"amqps://alice:{SECRET}@127.0.0.1:{{port}}/shop",
    "amqp://127.0.0.1:{port}?credentials=handed_out:fail",
    "redis://127.0.0.1:{port}?credentials=handed_out:fail",
    "nats://127.0.0.1:{port}?credentials=handed_out:fail",
    "kafka://127.0.0.1:{port}?credentials=handed_out:fail",
]


def name_of(url: str) -> str:
    """Return the name of a case."""
    return url.partition("@")[0].replace(SECRET, "x")[:24]


@pytest.fixture(autouse=True)
def handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a module of the application whose callable fails with the secret."""

    def fail() -> str:
        raise PermissionError(f"{SECRET} has expired") from ValueError(SECRET)

    module = ModuleType("handed_out")
    vars(module)["fail"] = fail
    vars(module)["login"] = lambda: ("alice", SECRET)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def objects_of(found: object, seen: dict[int, object]) -> Iterator[object]:
    """Yield an object and whatever of this package it holds, over any number of steps."""
    if id(found) in seen:
        return
    seen[id(found)] = found
    if isinstance(found, list | tuple | set | frozenset):
        held: list[Any] = list(found)  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(found, dict):
        held = list(found.values())  # pyright: ignore[reportUnknownArgumentType]
    elif type(found).__module__.startswith("backplane"):
        yield found
        names = [*getattr(found, "__dict__", ()), *(name for kind in type(found).__mro__ for name in _slots(kind))]
        held = [getattr(found, name, None) for name in names]
    else:
        return
    for each in held:
        yield from objects_of(each, seen)


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


@pytest.mark.parametrize("url", URLS, ids=name_of)
def test_reprs(url: str) -> None:
    """No object that is made of a URL shows its secret, neither by `repr` nor by `str`."""
    url = url.format(port=1)
    for made in (Backplane(url), SyncBackplane(url), broadcaster_from_url(url), BrokerUrl.parse(url)):
        found = list(objects_of(made, {}))
        assert made in found
        # A lone user name is a token on NATS alone, which its adapter knows.
        shown = [f"{each!r} {each!s}" for each in found if not isinstance(made, BrokerUrl) or made.password]
        assert [text for text in shown if SECRET in text] == []


@pytest.mark.parametrize("scheme", ["redis", "nats", "kafka", "postgres", "amqp", "redis+sentinel", "redis+cluster"])
def test_a_url_that_lacks_its_host(scheme: str) -> None:
    """Of `redis://alice:password` nothing after the colon is repeated: it was meant as the password."""
    with pytest.raises(ConfigurationError, match="is not host:port") as refused:
        broadcaster_from_url(f"{scheme}://alice:{SECRET}/service".removesuffix("" if "+" in scheme else "/service"))
    assert SECRET not in "".join(traceback.format_exception(refused.value))


def test_repr_of_what_kafka_logs_in_with() -> None:
    """What is handed to each connection shows neither password nor token."""
    security = Security(ssl_context=None, mechanism="PLAIN", username="alice", password=SECRET, token=Token(SECRET))
    assert SECRET not in f"{security!r} {security!s} {security.token!r}"
    assert "alice" in repr(security)


@pytest.mark.parametrize("url", URLS[1:], ids=name_of)
def test_errors_and_log(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A start that fails, and a publish from synchronous code, show no secret: no traceback, no cause, no log."""
    caplog.set_level(logging.DEBUG)
    url = url.format(port=free_port())
    with pytest.raises(BackplaneError) as start:
        asyncio.run(Backplane(url, settings=HASTY).start())
    with SyncBackplane(url, settings=HASTY) as outside, pytest.raises(BackplaneError) as publish:
        outside.publish("a", "x")
    for error in (start.value, publish.value):
        assert SECRET not in "".join(traceback.format_exception(error))
        assert SECRET not in repr(error)
    assert SECRET not in caplog.text


# A server, or a proxy in front of it, that repeats the password in its refusal.


async def _repeat_as_redis(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(4096):
        writer.write(f"-WRONGPASS {SECRET} is not the password of alice\r\n".encode() * data.count(b"*"))


async def _repeat_as_nats(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b'INFO {"server_id":"x","version":"2.9.0","max_payload":1048576,"auth_required":true}\r\n')
    await reader.read(4096)
    writer.write(f"-ERR 'Authorization Violation of {SECRET}'\r\n".encode())


async def _repeat_as_postgres(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while struct.unpack("!II", (await reader.read(4096))[:8])[1] == 80877103:  # it asks for TLS first
        writer.write(b"N")
    writer.write(b"R" + struct.pack("!II", 8, 3))  # the password in the clear
    await reader.read(4096)
    fields = (b"SFATAL", b"C28P01", f"M{SECRET} is not the password of alice".encode(), f"D{SECRET}".encode())
    body = b"".join(field + b"\0" for field in fields) + b"\0"
    writer.write(b"E" + struct.pack("!I", len(body) + 4) + body)


async def _repeat_as_amqp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(8)
    writer.write(marshal(commands.Connection.Start(server_properties={}, mechanisms="PLAIN", locales="en_US"), 0))
    await reader.read(4096)
    text = f"ACCESS_REFUSED - {SECRET} is not the password of alice"
    writer.write(marshal(commands.Connection.Close(403, text, 0, 0), 0))
    await reader.read(4096)


@pytest.mark.parametrize("login", [f"alice:{SECRET}@{{}}", "{}?credentials=handed_out:login"], ids=["url", "callable"])
@pytest.mark.parametrize(
    ("scheme", "repeat"),
    [
        ("redis", _repeat_as_redis),
        ("redis+cluster", _repeat_as_redis),
        ("nats", _repeat_as_nats),
        ("postgres", _repeat_as_postgres),
        ("amqp", _repeat_as_amqp),
    ],
)
def test_a_server_that_repeats_a_secret(
    scheme: str,
    repeat: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    login: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its refusal is in the error, and the secret of the login is not, whether the URL or a callable provides it."""
    caplog.set_level(logging.DEBUG)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await repeat(reader, writer)
        writer.close()

    async def start() -> BrokerAuthenticationError:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(BrokerAuthenticationError) as refused:
                await Backplane(f"{scheme}://{login.format(address)}").start()
        return refused.value

    error = asyncio.run(start())
    assert "***" in error.reason
    assert "refused" in str(error)
    assert SECRET not in "".join(traceback.format_exception(error))
    assert SECRET not in caplog.text
