"""Publish from synchronous code outside the web workers: scripts, Celery tasks, Django and Flask views.

    from backplane.sync import SyncBackplane

    backplane = SyncBackplane()                  # at import; opens nothing, and survives forks
    backplane.publish("orders", {"id": 42})

Inside a web worker the ordinary `Backplane` has the same, for `def` endpoints and threads:
`backplane.sync.publish(...)`.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from backplane.concurrency.affinity import refuse_in_event_loop
from backplane.core import Backplane
from backplane.errors import ConfigurationError
from backplane.settings import Settings
from backplane.synchronous.publisher import SyncPublisher, SyncTypedChannel
from backplane.synchronous.publisher_thread import PublisherThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from backplane.connection.connection import Connection
    from backplane.history_rules import History
    from backplane.message import Receipt
    from backplane.message_tracing import MessageTracing
    from backplane.synchronous.publisher import AsyncPublisher

_T = TypeVar("_T")

__all__ = ["SyncBackplane", "SyncPublisher", "SyncTypedChannel"]


class SyncBackplane(SyncPublisher):
    """Publishes from synchronous code, to the subscribers of the web workers, and sends them commands.

    It cannot subscribe.

    Opens nothing until the first publish, which starts one daemon thread with an event loop and connects to the broker.
    One object serves all threads. A forked process gets a thread and a connection of its own with its first publish;
    those of its parent are not touched. Under gevent the thread is a real one, and a waiting greenlet blocks no other.

    Each publish waits for the broker's answer, so nothing is left to be sent at the end of the process. Only with
    `Settings(outage="buffer")` the end of the process loses what still waits, unless `close` or the interpreter's
    ordinary exit, which wait for at most two seconds, can send it.

    Args:
        url: The broker, that of the web workers. Defaults to the environment variable `BACKPLANE_URL`.
        settings: Times and bounds; those that concern publishing apply.
        history: Which channels have a history, exactly as in the `Backplane` of the web workers: what is published to
            such a channel without the rule is received and not kept. Defaults to none.
        control_secret: That of the web workers, where they have one: without it they drop commands of this process
            (`disconnect` and others). Defaults to none.
        tracing: Spans of publishes, as in `Backplane`. Defaults to none.

    Raises:
        ConfigurationError: There is no URL, or it, a setting, a rule or the secret is wrong. `memory://` is not the
            default here: it would reach no other process.
        MissingDependencyError: The adapter's client library is not installed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        settings: Settings | None = None,
        history: Mapping[str, History] | None = None,
        control_secret: str | bytes | None = None,
        tracing: MessageTracing | None = None,
    ) -> None:
        url = url or os.environ.get("BACKPLANE_URL")
        if not url:
            raise ConfigurationError(
                "SyncBackplane needs the broker of the web workers: set BACKPLANE_URL, or give a URL. "
                "memory:// reaches this process only, so it is used where it is given explicitly"
            )
        if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without type checks
            raise ConfigurationError(f"SyncBackplane takes a URL, as each process opens a link, not {url!r:.100}")
        settings = settings or Settings()
        history = dict(history or {})
        make = partial(
            Backplane, url, settings=settings, history=history, control_secret=control_secret, tracing=tracing
        )
        backplane = make()
        transactions = backplane._transactions  # pyright: ignore[reportPrivateUsage]  # its adapter is never opened
        super().__init__(backplane, transactions)
        self._url = backplane.url
        self._threads = PublisherThreads(make, settings)

    def __repr__(self) -> str:
        return f"<SyncBackplane {self.url}>"

    @property
    def url(self) -> str:
        """The broker's URL, without options and with its password masked."""
        return self._url

    def publish(
        self,
        channel: str,
        data: object,
        *,
        exclude: Connection | str | None = None,
        idempotency_key: str | bytes | None = None,
    ) -> Receipt:
        """Publish `data` to every subscriber of `channel`, on every web worker.

        As `SyncPublisher.publish`. The first one of a process connects, for up to `start_timeout_seconds`.
        """
        return super().publish(channel, data, exclude=exclude, idempotency_key=idempotency_key)

    def _run(self, verb: Callable[[AsyncPublisher], Coroutine[Any, Any, _T]]) -> _T:
        refuse_in_event_loop()
        return self._threads.run(verb)

    def close(self) -> None:
        """Close the link and end the thread, within two seconds. Closing again changes nothing.

        It is done at the exit of the interpreter too.
        """
        self._threads.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
