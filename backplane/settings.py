"""Every knob of a `Backplane` that is not the broker's own."""

from __future__ import annotations

from dataclasses import dataclass, fields

from backplane.errors import ConfigurationError

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Times and bounds of a `Backplane`: `Backplane(url, settings=Settings(publish_timeout_seconds=1))`.

    Attributes:
        start_timeout_seconds: How long `start` tries to reach the broker before it raises. Defaults to 4.
        publish_timeout_seconds: How long `publish` waits, for a lost link to return and for the broker's answer
            together, before it raises. Defaults to 2.
        subscribe_timeout_seconds: How long a join waits for the broker's confirmation before it raises. Defaults to 5.
        linger_seconds: How long a channel stays subscribed at the broker after its last subscriber left, so that a page
            reload costs the broker nothing. Defaults to 1.
        probe_interval_seconds: How often a worker, while it hears nothing, sends itself a message through the broker; a
            link that carries none back is rebuilt within two intervals. Defaults to 5.
        max_backoff_seconds: Longest pause between two tries to reconnect; the pause is drawn evenly between 0 and a
            bound that doubles from 0.1 up to this. Defaults to 5.
        max_outbox_bytes: Most bytes that wait for one slow subscriber. Defaults to 1 MiB.
        max_outbox_messages: Most messages that wait for one slow subscriber. Defaults to 1,024.

    Raises:
        ConfigurationError: A value is not a number, not more than 0, or not finite.
    """

    start_timeout_seconds: float = 4.0
    publish_timeout_seconds: float = 2.0
    subscribe_timeout_seconds: float = 5.0
    linger_seconds: float = 1.0
    probe_interval_seconds: float = 5.0
    max_backoff_seconds: float = 5.0
    max_outbox_bytes: int = 1024 * 1024
    max_outbox_messages: int = 1024

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            whole = isinstance(option.default, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                kind = "a whole number" if whole else "a number"
                raise ConfigurationError(f"{option.name} must be {kind}, not {value!r}")
            if not 0 < value < float("inf"):
                raise ConfigurationError(f"{option.name} must be more than 0 and finite, not {value!r}")
