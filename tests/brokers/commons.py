"""The brokers that a whole run shares, whichever of its processes need them.

The process that started the run starts each when a test first asks for it, and ends it after the last test. So it
outlives every worker of `pytest -n`, one that crashes too, and does not outlive the run, not even one that is killed.
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack, suppress
from multiprocessing.connection import Client, Listener
from threading import Lock
from typing import TYPE_CHECKING

import pytest

from tests.brokers.process import LastingThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.brokers.broker import Broker

    Make = Callable[[], Broker]
    Place = tuple[str, int, bytes]

__all__ = ["COMMONS", "Commons", "CommonsElsewhere"]


class Commons:
    """In the process that started the run."""

    def __init__(self) -> None:
        self._brokers: dict[str, Broker] = {}
        self._stack = ExitStack()
        self._lock = Lock()

    def take(self, name: str, make: Make) -> Broker:
        """Return the broker of that name: made and started the first time, not to be ended by who asks.

        Raises:
            BrokerMissingError: This machine has none.
        """
        with self._lock:
            if name not in self._brokers:
                self._brokers[name] = self._start(name, make)
            return self._brokers[name]

    def close(self) -> None:
        """End all brokers that were started here."""
        with self._lock:
            self._stack.close()

    def serve(self) -> Place:
        """Serve other processes from now on, until this one ends; returns what `CommonsElsewhere` needs."""
        key = secrets.token_bytes(16)
        listener = Listener(("127.0.0.1", 0), authkey=key)
        LastingThread(target=self._serve, args=[listener]).start()
        host, port = listener.address
        return str(host), int(port), key

    def _serve(self, listener: Listener) -> None:
        while True:
            with suppress(OSError, EOFError), listener.accept() as link:  # who asks may have been killed
                link.send(self._answer(*link.recv()))

    def _answer(self, name: str, make: Make) -> Broker | Exception | None:
        try:
            broker = self.take(name, make)
        except Exception as error:  # raised where it was asked for
            return error
        return broker if broker.shareable else None

    def _start(self, name: str, make: Make) -> Broker:
        return self._stack.enter_context(make())


class CommonsElsewhere(Commons):
    """In a worker: the brokers run in the process that started it, but for those that no other process can use.

    Args:
        place: What `Commons.serve` returned there.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    def _start(self, name: str, make: Make) -> Broker:
        host, port, key = self._place
        with Client((host, port), authkey=key) as link:
            link.send((name, make))
            answer = link.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer or super()._start(name, make)


COMMONS = pytest.StashKey[Commons]()
"""Where the configuration of a run has them."""
