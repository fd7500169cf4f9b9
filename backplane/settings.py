"""Every knob of a `Backplane` that is not the broker's own."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final, Literal, get_args

from backplane.errors import ConfigurationError
from backplane.option_checks import check_number, refuse_unknown_options

__all__ = ["Outage", "Settings", "Start"]

Start = Literal["strict", "lazy"]
"""`strict`: a start without the broker raises. `lazy`: it comes up degraded, not ready, and goes on trying."""

Outage = Literal["raise", "buffer"]
"""`raise`: `publish` waits for the broker, then raises. `buffer`: it keeps the message, and sends it at the return."""

_CHOICES: Final = {"start": get_args(Start), "outage": get_args(Outage), "refuse_after_accept": (False, True)}


@refuse_unknown_options
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Times and bounds of a `Backplane`: `Backplane(url, settings=Settings(publish_timeout_seconds=1))`.

    What waits for the broker is limited in the time in which this process ran: neither a pause of the process nor a
    blocked event loop is taken for the broker's silence.

    Attributes:
        start: What a start does where the broker cannot be reached: `strict` raises, `lazy` comes up degraded and goes
            on trying. Defaults to `strict`.
        start_timeout_seconds: How long `start` tries to reach the broker before it gives up. Defaults to 4.
        outage: What `publish` does while the broker is away: `raise` after `publish_timeout_seconds`, or `buffer`:
            return at once, and send in order of each channel when it is back. What is buffered is lost with the
            process, and what the broker then refuses is logged. Defaults to `raise`.
        max_buffer_bytes: Most bytes that `buffer` keeps; above it `publish` raises. Defaults to 1 MiB.
        max_buffer_messages: Most messages that `buffer` keeps. Defaults to 1,024.
        publish_timeout_seconds: How long `publish` waits, for a lost link to return and for the broker's answer
            together, before it raises. While the broker works off what was published before it, the time counts from
            the last of these answers: a burst is no outage, and each publish ends this long after the one before it at
            the latest. Defaults to 2.
        subscribe_timeout_seconds: How long a join waits for the broker's confirmation before it raises. Defaults to 5.
        authorize_timeout_seconds: How long the application's `authorize` may take to answer for one channel before the
            join raises `AuthorizeTimeoutError`: a client that waits takes a place of `max_connections`. One that leaves
            before it is accepted gives it back at once, where the server reports that (Granian does not). Defaults to
            5.
        refuse_after_accept: How a client is refused: `False` answers its handshake with an HTTP status, of which a
            browser's page learns nothing but close code 1006; `True` accepts it and closes with a `CloseCode` and a
            reason, which the page reads. See `Backplane.connect`. Defaults to `False`.
        linger_seconds: How long a channel stays subscribed at the broker after its last subscriber left, so that a page
            reload costs the broker nothing. Defaults to 1.
        probe_interval_seconds: How long either direction of the link may be quiet, messages or the broker's answers to
            publishes, before the worker sends itself a message through the broker; a link that carries none back is
            rebuilt within two intervals. Without any channel the broker's answer is enough. Defaults to 5.
        max_backoff_seconds: Longest pause between two tries to reconnect; the pause is drawn evenly between 0 and a
            bound that doubles from 0.1 up to this. Defaults to 5.
        drain_seconds: Over how long many sockets are closed, at random, when the worker ends or must ask them to
            reload, so that their clients do not return all at once; a hundred or more take the whole of it. Must be
            less than the server's own limit (Gunicorn `--graceful-timeout` 30, Kubernetes
            `terminationGracePeriodSeconds` 30). Defaults to 5.
        handler_grace_seconds: How long a handler may stay in its `connect` block after its connection has ended, as the
            client left or for any other reason. One that iterates learns of the end at once; one that waits for
            something else, or is in the middle of its work, is cancelled after this time (`asyncio.CancelledError`),
            and again if it swallows that. A drain waits as long for handlers. Defaults to 10.
        max_outbox_bytes: Most bytes that wait for one slow subscriber. Defaults to 1 MiB.
        max_outbox_messages: Most messages that wait for one slow subscriber. Defaults to 1,024.
        max_connections: Most clients of this worker; more are refused with 429. Defaults to none.
        max_connections_per_client: Most of them with the same `client_key` (`Backplane.connect`, `Backplane.sse`). If
            the application gives none, it is the client's address, of IPv6 the first 64 bits. Clients whose address the
            server does not know, such as those behind a proxy over a Unix socket, are not counted for it; the first one
            logs a warning with the cure. Defaults to none.

    Raises:
        ConfigurationError: An option is not known; or a value is no known choice, not a number, not more than 0, or not
            finite.
    """

    start: Start = "strict"
    start_timeout_seconds: float = 4.0
    outage: Outage = "raise"
    max_buffer_bytes: int = 1024 * 1024
    max_buffer_messages: int = 1024
    publish_timeout_seconds: float = 2.0
    subscribe_timeout_seconds: float = 5.0
    authorize_timeout_seconds: float = 5.0
    refuse_after_accept: bool = False
    linger_seconds: float = 1.0
    probe_interval_seconds: float = 5.0
    max_backoff_seconds: float = 5.0
    drain_seconds: float = 5.0
    handler_grace_seconds: float = 10.0
    max_outbox_bytes: int = 1024 * 1024
    max_outbox_messages: int = 1024
    max_connections: int | None = None
    max_connections_per_client: int | None = None

    def __post_init__(self) -> None:
        for option in fields(Settings):  # a subclass checks its own
            value = getattr(self, option.name)
            if option.name in _CHOICES:
                _check_choice(option.name, value)
            elif value is not None or option.default is not None:
                check_number(option.name, value, whole=not isinstance(option.default, float))


def _check_choice(name: str, value: Any) -> None:
    choices: tuple[object, ...] = _CHOICES[name]
    if value not in choices or type(value) is not type(choices[0]):  # 1 is equal to True
        raise ConfigurationError(f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}")
