"""`Broker`, a real broker that a test controls: given by a URL, a local program, or a container."""

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
    """This machine has no such broker; the message lists what was tried."""


class Broker(ABC):
    """A real broker for this test run, started on entry and stopped on exit.

    Attributes:
        url: Its URL for `Backplane`. The same after every restart.
        restartable: Whether a test may stop or kill it; not a broker that is given by a URL.
        shareable: Whether other processes of the run can use it.
    """

    restartable: ClassVar[bool] = True
    shareable: ClassVar[bool] = False
    url: str

    @property
    def own_url(self) -> str:
        """A URL that no other test uses: on Kafka and RabbitMQ, which the run shares, with a new name each time."""
        option = {"kafka": "topic", "amqp": "exchange"}.get(self.url.partition(":")[0])
        return self.url if option is None else f"{self.url}?{option}=test-{uuid.uuid4()}"

    @abstractmethod
    def start(self) -> None:
        """Start it, also after an end, on the same port; it answers when this returns.

        Raises:
            BrokerMissingError: It cannot run on this machine.
        """

    @abstractmethod
    def stop(self) -> None:
        """Stop it in an orderly way. A second call does nothing."""

    @abstractmethod
    def kill9(self) -> None:
        """Kill it, as a crash does."""

    @abstractmethod
    def freeze(self) -> None:
        """Suspend it: its sockets stay open and the kernel acknowledges, but no request is answered."""

    @abstractmethod
    def thaw(self) -> None:
        """Resume it after `freeze`."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class GivenBroker(Broker):
    """A broker that runs outside the test run, at a URL from the environment."""

    restartable = False
    shareable = True

    def __init__(self, url: str) -> None:
        self.url = url

    def start(self) -> None:
        """Do nothing: it is running."""

    def stop(self) -> None:
        """Do nothing: it does not belong to the test run."""

    def kill9(self) -> None:
        """Refuse."""
        raise NotImplementedError(f"{self.url} does not belong to the test run: check `restartable` first")

    freeze = thaw = kill9


class ProcessBroker(Broker):
    """A broker that is a program of this machine.

    Args:
        folder: An empty folder for its data and its log.

    Attributes:
        start_seconds: How long it may take to answer after its start.
    """

    shareable = True
    start_seconds: ClassVar[float] = 30.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._log = folder / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __getstate__(self) -> dict[str, object]:
        """Return the state for another process: with the address, without the handle that ends it."""
        return {**self.__dict__, "_process": None}

    @property
    def is_running(self) -> bool:
        """Whether it was started and not ended since."""
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
        """Run the command without waiting; from the main thread only."""
        assert self._process is None, "it runs already"
        self._process = start(self.command(), cwd=self.folder, log=self._log)

    def wait_until_up(self) -> None:
        """Wait until it answers: from any thread, so that an event loop can run meanwhile.

        Raises:
            RuntimeError: It ended instead; its output follows.
        """
        process = self._runtime()
        answered = f"{self.url} answers"
        wait_until(lambda: process.poll() is not None or self.answers(), answered, seconds=self.start_seconds)
        if process.returncode is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}: {self._log.read_text()}")

    def stop(self) -> None:
        """End it by SIGTERM, or by SIGKILL if it does not end."""
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
    """A broker in a Docker container, on a fixed loopback port, which a restart keeps.

    Args:
        image: Image and tag.
        inner_port: The port it listens on inside.
    """

    shareable = True

    def __init__(self, image: str, inner_port: int) -> None:
        self.image = image
        self.port = free_port()
        self._inner_port = inner_port
        self._container: Any = None  # testcontainers is imported only where Docker is used

    def __getstate__(self) -> dict[str, object]:
        """Return the state for another process: with the address, without the handle that ends it."""
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
        """Resume the container."""
        self._container.get_wrapped_container().unpause()

    def _run(self) -> object:
        container = _docker_container(self.image)
        # Not with_bind_ports, which listens on every interface.
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
