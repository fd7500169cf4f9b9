"""`Broker`, a real broker in the hands of a test, and the three places one comes from."""

from __future__ import annotations

import gc
import signal
import uuid
import warnings
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Self

from tests.brokers.process import end, free_port, start, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Broker", "BrokerMissingError", "ContainerBroker", "GivenBroker", "ProcessBroker", "has_docker"]


class BrokerMissingError(Exception):
    """This machine has no such broker; says what was tried."""


class Broker(ABC):
    """A real broker that belongs to this test run, from entering to leaving it.

    Attributes:
        url: Where it is, as `Backplane` takes it. The same after every restart.
        restartable: Whether the test may break it; a broker given from outside may not be.
        shareable: Whether other processes of the run can use the one that a process has started.
    """

    restartable: ClassVar[bool] = True
    shareable: ClassVar[bool] = False
    url: str

    @property
    def own_url(self) -> str:
        """Where no other test is: of Kafka, which the whole run shares, a topic, each time another one."""
        return f"{self.url}?topic=test-{uuid.uuid4()}" if self.url.startswith("kafka:") else self.url

    @abstractmethod
    def start(self) -> None:
        """Start it, or start it again on the same port; it answers when this returns.

        Raises:
            BrokerMissingError: It cannot run on this machine.
        """

    @abstractmethod
    def stop(self) -> None:
        """End it in the orderly way. Stopping again changes nothing."""

    @abstractmethod
    def kill9(self) -> None:
        """Kill it, as a crash does."""

    @abstractmethod
    def freeze(self) -> None:
        """Stop it where it is: its sockets stay open and the kernel still acknowledges, but nothing answers."""

    @abstractmethod
    def thaw(self) -> None:
        """Let it go on after `freeze`."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class GivenBroker(Broker):
    """A broker that someone else runs, at a URL from the environment."""

    restartable = False
    shareable = True

    def __init__(self, url: str) -> None:
        self.url = url

    def start(self) -> None:
        """Do nothing: it runs."""

    def stop(self) -> None:
        """Do nothing: it is not ours to end."""

    def kill9(self) -> None:
        """Refuse."""
        raise NotImplementedError(f"{self.url} is not ours: look at `restartable` first")

    freeze = thaw = kill9


class ProcessBroker(Broker):
    """A broker as a program of this machine.

    Args:
        folder: An empty folder for its data and its log.

    Attributes:
        start_seconds: How long it may take until it answers.
    """

    shareable = True
    start_seconds: ClassVar[float] = 10.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._log = folder / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __getstate__(self) -> dict[str, object]:
        """Return what another process may know: where it is, not how to end it."""
        return {**self.__dict__, "_process": None}

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not ended since."""
        return self._process is not None

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The command that runs it in the foreground on `port`."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it answers; called until it does."""

    def start(self) -> None:
        """Run the command and wait until it answers.

        Raises:
            RuntimeError: It ended instead; its output follows.
        """
        self.launch()
        self.wait_until_up()

    def launch(self) -> None:
        """Run the command and wait for nothing; from the main thread only."""
        assert self._process is None, "it runs already"
        self._process = start(self.command(), cwd=self.folder, log=self._log)

    def wait_until_up(self) -> None:
        """Wait until it answers: from any thread, so that an event loop can go on meanwhile.

        Raises:
            RuntimeError: It ended instead; its output follows.
        """
        process = self._runtime()
        answered = f"{self.url} answers"
        wait_until(lambda: process.poll() is not None or self.answers(), answered, seconds=self.start_seconds)
        if process.returncode is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}: {self._log.read_text()}")

    def stop(self) -> None:
        """End it by SIGTERM, by SIGKILL if need be."""
        process, self._process = self._process, None
        if process is not None:
            end(process)

    def kill9(self) -> None:
        """Kill it by SIGKILL."""
        process, self._process = self._runtime(), None
        process.kill()
        process.wait()

    def freeze(self) -> None:
        """Send SIGSTOP."""
        self._runtime().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Send SIGCONT."""
        self._runtime().send_signal(signal.SIGCONT)

    def _runtime(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it does not run"
        return self._process


class ContainerBroker(Broker):
    """A broker in a Docker container, on a fixed loopback port so that it comes back where it was.

    Args:
        image: Image and tag.
        inner_port: The port it listens on inside.
    """

    shareable = True

    def __init__(self, image: str, inner_port: int) -> None:
        self.image = image
        self.port = free_port()
        self._inner_port = inner_port
        self._container: Any = None  # testcontainers is imported only where Docker is wanted

    def __getstate__(self) -> dict[str, object]:
        """Return what another process may know: where it is, not how to end it."""
        return {**self.__dict__, "_container": None}

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The container's command; empty for the image's own."""

    def environment(self) -> Mapping[str, str]:
        """The container's environment."""
        return {}

    @abstractmethod
    def answers(self) -> bool:
        """Whether it answers; called until it does."""

    def start(self) -> None:
        """Run the container, or start it again after `kill9`."""
        if self._container is None:
            self._container = self._run()
        else:
            self._container.get_wrapped_container().start()
        wait_until(self.answers, f"{self.url} answers", seconds=60)

    def stop(self) -> None:
        """Remove the container."""
        container, self._container = self._container, None
        if container is not None:
            container.stop()

    def kill9(self) -> None:
        """Kill the container."""
        self._container.get_wrapped_container().kill()

    def freeze(self) -> None:
        """Pause the container."""
        self._container.get_wrapped_container().pause()

    def thaw(self) -> None:
        """Go on after the pause."""
        self._container.get_wrapped_container().unpause()

    def _run(self) -> object:
        container = _docker_container(self.image)
        # Not with_bind_ports, which would listen on every interface.
        container.ports[str(self._inner_port)] = ("127.0.0.1", self.port)
        container.env.update(self.environment())
        return container.with_command(list(self.command()) or None).start()


def has_docker(image: str) -> bool:
    """Whether a Docker engine runs here that could run `image`."""
    try:
        _docker_container(image)
    except BrokerMissingError:
        return False
    return True


def _docker_container(image: str) -> Any:
    try:
        from docker.errors import DockerException  # type: ignore[import-untyped]
        from testcontainers.core.container import DockerContainer
    except ImportError as error:
        raise BrokerMissingError(f"no testcontainers ({error})") from error
    container = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # docker drops its socket unclosed where no engine listens
        with suppress(DockerException):
            container = DockerContainer(image)
        gc.collect()
    if container is None:
        raise BrokerMissingError("no Docker engine")
    return container
