"""`backplane.tracing.destinations`: what spans state of the broker, and which template a channel has."""

from __future__ import annotations

import re

import pytest

from backplane.broadcaster import BrokerUrl
from backplane.tracing.destinations import Templates, broker_attributes


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://bus", ("memory", None, None)),
        ("ipc://chat", ("ipc", None, None)),
        ("redis://someone:secret@broker.example:6380/1", ("redis", "broker.example", 6380)),
        ("rediss://broker.example", ("redis", "broker.example", None)),
        ("valkeys://broker.example", ("valkey", "broker.example", None)),
        ("redis+sentinel://one:26379,two:26379/main", ("redis", "one", 26379)),
        ("unix:///run/redis.sock", ("redis", "/run/redis.sock", None)),
        ("tls://[::1]:4222", ("nats", "::1", 4222)),
        ("kafka://", ("kafka", "localhost", None)),
        ("amqps://me:secret@one/shop", ("rabbitmq", "one", None)),
        ("postgres://me@one:5433,two/shop", ("postgresql", "one", 5433)),
        ("example://host:port", ("example", "localhost", None)),
    ],
)
def test_broker(url: str, expected: tuple[str, str | None, int | None]) -> None:
    """A span names the broker's kind and its first server, and no user, password or application."""
    attributes = broker_attributes(BrokerUrl.parse(url))
    names = ("messaging.system", "server.address", "server.port")
    assert tuple(attributes.get(name) for name in names) == expected
    assert len(attributes) == sum(value is not None for value in expected)


def test_templates() -> None:
    """The first template that matches names a channel, else the pattern of its rule; later ones are noticed."""
    templates = Templates()

    def pattern_of(channel: str) -> str | None:
        return "kept:*" if channel.startswith("kept:") else None

    assert [templates.template_of(name, pattern_of) for name in ("kept:1", "orders:1")] == ["kept:*", None]
    for template, names in (("orders:{id}", "orders:[^:]+"), ("{all}", ".+"), ("orders:{id}", "nothing")):
        templates.add(template, re.compile(names))
    assert [templates.template_of(name, pattern_of) for name in ("kept:1", "orders:1")] == ["{all}", "orders:{id}"]


def test_any_number_of_channels() -> None:
    """What is remembered of channels is bounded, whatever their number."""
    templates = Templates()
    templates.add("a{x}", re.compile("a.+"))
    for number in range(30_000):
        assert templates.template_of(f"a{number}", str) == "a{x}"
    assert len(templates._found) <= 10_000  # pyright: ignore[reportPrivateUsage]
