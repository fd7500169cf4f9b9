"""What spans state of where a message goes: the broker, the channel, and the template that names many channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

if TYPE_CHECKING:
    import re
    from collections.abc import Callable

    from opentelemetry.util.types import AttributeValue

    from backplane.broadcaster import BrokerUrl

__all__ = ["Templates", "broker_attributes"]

_SYSTEMS: Final = {
    "rediss": "redis",
    "unix": "redis",
    "valkeys": "valkey",
    "tls": "nats",
    "postgres": "postgresql",
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
}
_MAX_CACHED: Final = 10_000


class Templates:
    """The templates of typed channels, which name their spans: there are few of them, and any number of channels.

    Attributes:
        known: By template, which names it has.
    """

    def __init__(self) -> None:
        self.known: dict[str, re.Pattern[str]] = {}
        self._found: dict[str, str | None] = {}

    def add(self, template: str, names: re.Pattern[str]) -> None:
        """Take a template; a second time changes nothing."""
        if template not in self.known:
            self.known[template] = names
            self._found.clear()

    def template_of(self, channel: str, pattern_of: Callable[[str], str | None]) -> str | None:
        """Return the template of a channel; else the pattern of its rule, or `None`."""
        try:
            found = self._found[channel]
        except KeyError:
            if len(self._found) >= _MAX_CACHED:
                self._found.clear()
            found = next((template for template, names in self.known.items() if names.fullmatch(channel)), None)
            self._found[channel] = found
        return pattern_of(channel) if found is None else found


def broker_attributes(url: BrokerUrl) -> dict[str, AttributeValue]:
    """Return what every span of a backplane states of its broker."""
    scheme = url.scheme.partition("+")[0]
    attributes: dict[str, AttributeValue] = {"messaging.system": _SYSTEMS.get(scheme, scheme)}
    if url.scheme == "unix":
        attributes["server.address"] = url.path
    elif scheme not in ("memory", "ipc"):
        server = _server(url.netloc.partition(",")[0])
        attributes["server.address"] = server.hostname or "localhost"
        if server.port is not None:
            attributes["server.port"] = server.port
    return attributes


def _server(text: str) -> SplitResult:
    try:
        server = urlsplit(f"//{text}")
        _ = server.port
    except ValueError:  # the adapter refuses it, or reads it in another way
        return urlsplit("//")
    return server
