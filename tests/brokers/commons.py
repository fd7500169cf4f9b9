"""The brokers that all processes of a run share.

The process that started the run starts each broker when a test first needs it, and ends it after the last test. So a
broker outlives every worker of `pytest -n`, even one that crashes, but not the run, even if that is killed.
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
    """Shared brokers, in the process that started the run."""

    def __init__(self) -> None:
        self._brokers: dict[str, Broker] = {}
        self._stack = ExitStack()
        self._lock = Lock()

    def take(self, name: str, make: Make) -> Broker:
        """Return the broker of that name, created and started the first time. The caller must not end it.

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
        """Serve other processes from now on, until this one ends; return the address for `CommonsElsewhere`."""
        key = secrets.token_bytes(16)
        listener = Listener(("127.0.0.1", 0), authkey=key)
        LastingThread(target=self._serve, args=[listener]).start()
        host, port = listener.address
        return str(host), int(port), key

    def _serve(self, listener: Listener) -> None:
        while True:
            with suppress(OSError, EOFError), listener.accept() as link:  # the other process may have been killed
                link.send(self._answer(*link.recv()))

    def _answer(self, name: str, make: Make) -> Broker | Exception | None:
        try:
            broker = self.take(name, make)
        except Exception as error:  # raised in the process that requested it
            return error
        return broker if broker.shareable else None

    def _start(self, name: str, make: Make) -> Broker:
        return self._stack.enter_context(make())


class CommonsElsewhere(Commons):
    """Shared brokers, in a worker: they run in the process that started it, unless no other process can use them.

    Args:
        place: The result of `Commons.serve` there.
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
"""The key of the shared brokers in the configuration of a run."""
