"""A secret of a URL stands in no repr, log, error or chain of errors, on any adapter."""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from backplane import Backplane, Settings
from backplane.adapters.kafka.login import Security, Token
from backplane.broadcaster import BrokerUrl
from backplane.broker.registry import broadcaster_from_url
from backplane.errors import BackplaneError, ConfigurationError
from backplane.sync import SyncBackplane
from tests.brokers.process import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

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
