"""The demo's server: Gunicorn with Uvicorn workers, as in production, started from Python.

The workers share a table of pids, in which each enters its own once it serves; the last one announces the server.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from uvicorn.importer import import_from_string
from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Announcements", "listen", "serve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcements:
    """Callbacks for what the user should see.

    Attributes:
        ready: Called with the pids once every worker of the first round serves, in one of the workers.
        ended: Called with the pid of a worker that ended unasked, in the master.
        replaced: Called with the pid of a worker that serves in place of one that ended, in the new worker.
    """

    ready: Callable[[Sequence[int]], None]
    ended: Callable[[int], None]
    replaced: Callable[[int], None]


def listen(host: str, port: int) -> socket.socket:
    """Return a socket listening on `host` and `port`, 0 for a free one.

    It listens before Gunicorn starts, which would retry a port in use five times, a second apart.

    Raises:
        OSError: The port is in use, or the address is not one of this machine.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=2048)


def serve(application: str, listener: socket.socket, *, workers: int, announcements: Announcements) -> bool:
    """Serve until Ctrl-C or SIGTERM; return `False` if a worker could not start.

    Runs in the main thread and takes its signal handlers. Every worker has ended on return.

    Args:
        application: The ASGI application, as in `package.module:name`.
        listener: Where to accept clients; closed on return.
        workers: How many.
        announcements: Callbacks for what the user should see.
    """
    master = os.getpid()
    try:
        _Master(_Server(application, listener, workers, announcements)).run()
    except SystemExit as end:
        if os.getpid() != master:
            raise  # a worker ends here too; its exit status is for the master
        return not end.code
    return True


class _Server(BaseApplication):
    def __init__(self, application: str, listener: socket.socket, workers: int, announcements: Announcements) -> None:
        self._application = application
        self._options = {
            "bind": f"fd://{listener.detach()}",  # Gunicorn closes it
            "workers": workers,
            "worker_class": _Worker,
            "loglevel": "warning",
            "graceful_timeout": 4,
            "control_socket_disable": True,
            "post_fork": _prepare_worker,
            "child_exit": _report_end,
        }
        self.booted = _Booted(workers, announcements)
        super().__init__()

    def load_config(self) -> None:
        for option, value in self._options.items():
            if option in self.cfg.settings:  # control_socket_disable came with Gunicorn 25
                self.cfg.set(option, value)

    def load(self) -> Any:
        return import_from_string(self._application)


class _Master(Arbiter):
    """Ends orderly on every signal that ends a program in a terminal.

    Gunicorn reloads on SIGHUP, so the demo would survive its terminal; and on SIGINT it sends its workers SIGQUIT,
    which a Uvicorn worker ignores (uvicorn-worker 0.4).
    """

    app: Any
    log: Any
    handle_int = handle_quit = handle_hup = Arbiter.handle_term

    def setup(self, app: Any) -> None:
        """Set up, and filter the log."""
        super().setup(app)
        for handler in self.log.error_log.handlers:  # Uvicorn's log goes through them too
            handler.addFilter(_adds_information)

    @property
    def ends(self) -> bool:
        """Whether it is stopping."""
        return not self.LISTENERS

    def reap_workers(self) -> None:
        """Raise for the first worker that could not start; for later ones Gunicorn raises out of its stop."""
        try:
            super().reap_workers()
        except HaltServer:
            if not self.ends:
                raise


class _Worker(UvicornWorker):  # type: ignore[misc]
    CONFIG_KWARGS = {"timeout_notify": 1, "timeout_graceful_shutdown": 2, "ws_max_size": 64 * 1024}  # noqa: RUF012
    app: Any
    _serves = False

    async def callback_notify(self) -> None:
        """Called about once a second; the first call comes once the application has started."""
        await super().callback_notify()
        if not self._serves:
            self._serves = True
            self.app.booted.add(self.age, self.pid)
        if os.getppid() != self.ppid:  # a worker must not outlive a killed master
            signal.raise_signal(signal.SIGTERM)


class _Booted:
    """Which workers have started, shared by all of them."""

    def __init__(self, workers: int, announcements: Announcements) -> None:
        self.announcements = announcements
        self._pids = get_context("fork").Array("i", workers)

    def add(self, age: int, pid: int) -> None:
        """Take the `age`-th worker ever forked, counted from 1."""
        if age > len(self._pids):
            return self.announcements.replaced(pid)
        with self._pids.get_lock():
            self._pids[age - 1] = pid
            pids: list[int] = self._pids[:]
        if all(pids):
            self.announcements.ready(pids)
        return None


def _adds_information(record: logging.LogRecord) -> bool:
    message = record.getMessage().strip()
    last_line = message.rpartition("\n")[2]
    if message.startswith("Traceback ") and last_line.startswith("backplane.errors."):
        record.msg, record.args = last_line, ()  # no broker: the reason is enough
    # Not "was sent SIGKILL! Perhaps out of memory?", as the tutorial suggests kill -9.
    return " was sent " not in message


def _prepare_worker(_: _Master, __: _Worker) -> None:
    # Ctrl-C and a closed terminal signal the whole foreground process group: the master alone reacts.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    logging.basicConfig(level=logging.WARNING, format="worker %(process)d: %(message)s")


def _report_end(master: _Master, worker: _Worker) -> None:
    if not master.ends:
        master.app.booted.announcements.ended(worker.pid)
