"""The times and bounds of a `Backplane`; the options of an adapter are in its URL."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final, Literal, get_args

from backplane.errors import ConfigurationError
from backplane.option_checks import check_number, refuse_unknown_options

__all__ = ["Outage", "Settings", "Start"]

Start = Literal["strict", "lazy"]
"""`strict`: a start without the broker raises. `lazy`: it starts degraded, not ready, and goes on trying."""

Outage = Literal["raise", "buffer"]
"""`raise`: `publish` waits for the broker, then raises. `buffer`: it keeps the message and sends it later."""

_CHOICES: Final = {
    "start": get_args(Start),
    "outage": get_args(Outage),
    "refuse_after_accept": (False, True),
    "path_test": (False, True),
    "log_names": (False, True),
}


@refuse_unknown_options
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Times and bounds of a `Backplane`: `Backplane(url, settings=Settings(publish_timeout_seconds=1))`.

    Waits for the broker are limited by the time in which this process ran: a pause of the process, or an event loop
    that was blocked, does not count as silence of the broker.

    Attributes:
        start: What a start does if the broker cannot be reached: `strict` raises, `lazy` starts degraded and goes on
            trying. Defaults to `strict`.
        start_timeout_seconds: How long `start` tries to reach the broker before it gives up. Defaults to 4.
        outage: What `publish` does while the broker is not available: `raise` after `publish_timeout_seconds`, or
            `buffer`: return at once, and send in the order of each channel once the broker is available. What is
            buffered is lost with the process, and what the broker then refuses is logged. Defaults to `raise`.
        max_buffer_bytes: Most bytes that `buffer` keeps; above it `publish` raises. Defaults to 1 MiB.
        max_buffer_messages: Most messages that `buffer` keeps. Defaults to 1,024.
        publish_timeout_seconds: How long `publish` waits, for a lost link to return and for the broker's answer
            together, before it raises. While the broker works through earlier publishes, the time counts from the last
            of its answers: a burst is no outage, and each publish ends at the latest this long after the one before
            it. Defaults to 2.
        subscribe_timeout_seconds: How long a join waits for the broker's confirmation before it raises. Defaults to 5.
        authorize_timeout_seconds: How long the application's `authorize` may take to answer for one channel before the
            join raises `AuthorizeTimeoutError`: a client that waits counts for `max_connections`. One that leaves
            before it is accepted stops counting at once, where the server reports that (Granian does not). Defaults to
            5.
        refuse_after_accept: How a client is refused: `False` answers its handshake with an HTTP status, of which a
            browser's page sees only close code 1006; `True` accepts it and closes with a `CloseCode` and a reason,
            which the page can read. See `Backplane.connect`. Defaults to `False`.
        linger_seconds: How long a channel stays subscribed at the broker after its last subscriber left, so that a page
            reload costs the broker nothing. Defaults to 1.
        probe_interval_seconds: How long either direction of the link may be quiet, messages or the broker's answers to
            publishes, before the worker sends itself a message through the broker; a link that does not bring it back
            is rebuilt within two intervals. Without any channel the broker's answer is enough. Defaults to 5.
        max_backoff_seconds: Longest pause between two tries to reconnect; the pause is drawn evenly between 0 and a
            bound that doubles from 0.1 up to this. Defaults to 5.
        drain_seconds: Over how long the close of many clients is spread, at random, when the worker ends or must close
            them so that they reload, so that they do not all reconnect at once; from a hundred clients on the whole
            time is used. Must be less than the server's own limit (Gunicorn `--graceful-timeout` 30, Kubernetes
            `terminationGracePeriodSeconds` 30). Defaults to 5.
        handler_grace_seconds: How long a handler may stay in its `connect` block after its connection has ended, for
            any reason. One that iterates ends at once; one that waits for something else, or is in the middle of its
            work, is cancelled after this time (`asyncio.CancelledError`), and again if it swallows that. A drain waits
            as long for handlers. Defaults to 10.
        log_names: Whether the log names channels and users as they are. `False` logs a hash of each, the same for the
            same name, in fields and in sentences, from the start of the backplane on and for the whole process; an
            error is then logged with its place and without its traceback. With a `control_secret` the hashes are made
            with it. What the live page and commands show is not changed. Defaults to `True`.
        max_connections: Most clients of this worker; more are refused with 429. Defaults to none.
        worker_heartbeat_seconds: With `Backplane(cluster=True)`, how often a worker sends a heartbeat to the others;
            above 150 workers it grows, to a fiftieth of a second for each. Every worker must have the same. Defaults to
            3.
        worker_down_seconds: How long no heartbeat of a worker may be received before it counts as ended; at least 3.3
            times the time between two of them. Every worker must have the same. Defaults to 10.
        path_test: Whether `Backplane.explain` publishes a test message on the channel that it is asked about. No client
            receives it; a program of another kind that is subscribed to the channel receives 33 bytes, and on Kafka it
            is a record of the topic. Defaults to `True`.
        max_recall_messages: Most messages of a kept channel that are given back at once, to this worker after a lost
            link or to a client that comes back; what missed more is notified of a gap. Defaults to 1,000.
        max_recall_bytes: Most bytes, likewise. Defaults to 4 MiB.
        recall_timeout_seconds: How long one read of a channel's history may take. Defaults to 2.
        repair_timeout_seconds: For how long, on a link that works, the history of a channel is tried to be read after a
            loss before its subscribers are notified of a gap, while messages that have arrived meanwhile wait for it;
            six times as long while none has. Defaults to 10.
        max_held_messages: Most messages of a kept channel that are held back while those before them are read.
            Defaults to 10,000.
        max_ring_bytes: Most bytes of messages that this worker keeps, of all kept channels together, so that many
            clients that come back cost the broker one read per channel. Defaults to 32 MiB.

    Raises:
        ConfigurationError: An option is not known; or a value is not one of the choices, not a number, not more than 0,
            or not finite.
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
    log_names: bool = True
    max_connections: int | None = None
    worker_heartbeat_seconds: float = 3.0
    worker_down_seconds: float = 10.0
    path_test: bool = True
    max_recall_messages: int = 1_000
    max_recall_bytes: int = 4 * 1024 * 1024
    recall_timeout_seconds: float = 2.0
    repair_timeout_seconds: float = 10.0
    max_held_messages: int = 10_000
    max_ring_bytes: int = 32 * 1024 * 1024

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
