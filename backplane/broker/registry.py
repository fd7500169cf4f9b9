"""URL to adapter: the scheme selects the class, the query string fills its options.

Adapters are found in the entry-point group `backplane.adapters`, by the name of the URL scheme, the built-in ones like
those of third parties. An adapter is imported only when a URL names it.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Final, cast
from urllib.parse import parse_qsl, urlsplit

from pydantic import ValidationError

from backplane.broadcaster import Broadcaster, BrokerUrl, Options
from backplane.errors import ConfigurationError, MissingDependencyError
from backplane.option_checks import did_you_mean

__all__ = ["ENTRY_POINT_GROUP", "broadcaster_from_url"]

ENTRY_POINT_GROUP: Final = "backplane.adapters"
"""Entry-point group in which a package registers its adapters: `myscheme = "my_package:MyBroadcaster"`."""

# Listed here too, so that a source tree that is not installed works, and an error can name the extra to install.
_BUILT_IN: Final[dict[str, tuple[str, str | None]]] = {
    "memory": ("backplane.adapters.memory:MemoryBroadcaster", None),
    "ipc": ("backplane.adapters.ipc:IpcBroadcaster", None),
    "redis": ("backplane.adapters.redis:RedisBroadcaster", "redis"),
    "rediss": ("backplane.adapters.redis:RedisBroadcaster", "redis"),
    "unix": ("backplane.adapters.redis:RedisBroadcaster", "redis"),
    "valkey": ("backplane.adapters.redis:RedisBroadcaster", "redis"),
    "valkeys": ("backplane.adapters.redis:RedisBroadcaster", "redis"),
    "redis+sentinel": ("backplane.adapters.redis.sentinel:RedisSentinelBroadcaster", "redis"),
    "rediss+sentinel": ("backplane.adapters.redis.sentinel:RedisSentinelBroadcaster", "redis"),
    "valkey+sentinel": ("backplane.adapters.redis.sentinel:RedisSentinelBroadcaster", "redis"),
    "valkeys+sentinel": ("backplane.adapters.redis.sentinel:RedisSentinelBroadcaster", "redis"),
    "redis+cluster": ("backplane.adapters.redis_cluster:RedisClusterBroadcaster", "redis"),
    "rediss+cluster": ("backplane.adapters.redis_cluster:RedisClusterBroadcaster", "redis"),
    "valkey+cluster": ("backplane.adapters.redis_cluster:RedisClusterBroadcaster", "redis"),
    "valkeys+cluster": ("backplane.adapters.redis_cluster:RedisClusterBroadcaster", "redis"),
    "nats": ("backplane.adapters.nats:NatsBroadcaster", "nats"),
    "tls": ("backplane.adapters.nats:NatsBroadcaster", "nats"),
    "kafka": ("backplane.adapters.kafka:KafkaBroadcaster", "kafka"),
    "postgres": ("backplane.adapters.postgres:PostgresBroadcaster", "postgres"),
    "postgresql": ("backplane.adapters.postgres:PostgresBroadcaster", "postgres"),
    "amqp": ("backplane.adapters.amqp:AmqpBroadcaster", "amqp"),
    "amqps": ("backplane.adapters.amqp:AmqpBroadcaster", "amqp"),
}


def broadcaster_from_url(url: str) -> Broadcaster:
    """Return the adapter for `url`, configured and not started.

    Raises:
        ConfigurationError: It is not a URL, or has an unknown scheme, or an unknown or ill-typed option.
        MissingDependencyError: The adapter's client library is not installed.
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
    if found is None:
        raise ConfigurationError(
            "a broker URL starts with its scheme, such as memory://, ipc://myapp or redis://localhost:6379"
        )
    scheme = found[1].lower()
    adapter_class = _load(scheme)
    try:
        address = BrokerUrl.parse(url)
    except ValueError as error:
        raise ConfigurationError(f"{scheme}: {error}") from None
    return adapter_class(address, _options(adapter_class, scheme, url))


def _load(scheme: str) -> type[Broadcaster]:
    if scheme not in _BUILT_IN:
        return _load_installed(scheme)
    target, extra = _BUILT_IN[scheme]
    module, _, name = target.partition(":")
    try:
        return cast("type[Broadcaster]", getattr(import_module(module), name))
    except ImportError as error:
        if extra is None:
            raise
        raise MissingDependencyError(
            f"{scheme}:// needs a package that is not installed ({error}): pip install 'fastapi-backplane[{extra}]'"
        ) from error


def _load_installed(scheme: str) -> type[Broadcaster]:
    from importlib.metadata import entry_points  # takes 10 ms, which the built-in adapters save

    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if scheme not in found:
        known = found.keys() | _BUILT_IN.keys()
        raise ConfigurationError(
            f"unknown scheme {scheme!r}{did_you_mean(scheme, known)}; known are {', '.join(sorted(known))}"
        )
    return cast("type[Broadcaster]", found[scheme].load())


def _options(adapter_class: type[Broadcaster], scheme: str, url: str) -> Options:
    known = adapter_class.options_class.model_fields
    given: dict[str, str] = {}
    for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if name not in known:
            names = ", ".join(sorted(known))
            raise ConfigurationError(f"{scheme}: unknown option {name!r}{did_you_mean(name, known)}; known are {names}")
        if name in given:
            raise ConfigurationError(f"{scheme}: option {name!r} is given twice")
        if "\0" in value:  # files, sockets and OpenSSL raise ValueError for it, at the start
            raise ConfigurationError(f"{scheme}: option {name!r} holds the character NUL")
        given[name] = value
    try:
        return adapter_class.options_class.model_validate_strings(given)
    except ValidationError as error:
        # The value is left out: it can be a secret.
        wrong = "; ".join(
            f"{'.'.join(map(str, line['loc']))}: {line['msg']}" for line in error.errors(include_input=False)
        )
        raise ConfigurationError(f"{scheme}: ill-typed option: {wrong}") from None
