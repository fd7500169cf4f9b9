"""Commands to a NATS server that one PONG confirms, and who waits for it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Group", "Publishes", "Round", "Subscription", "line_refused", "unavailable"]

_PAYLOAD_TOO_LARGE: Final = "maximum payload violation"
_LINE_TOO_LONG: Final = "maximum control line exceeded"


class Group(ABC):
    """What awaits one PONG.

    Attributes:
        size_bytes: What of it counts as published and not yet confirmed.
        longest_line: Arguments of its longest command, in bytes.
    """

    __slots__ = ("longest_line", "size_bytes")

    def __init__(self) -> None:
        self.size_bytes: int = 0
        self.longest_line: int = 0

    @abstractmethod
    def doubt(self, words: str) -> bool:
        """Take a refusal that names nobody; return whether somebody here can be concerned."""

    @abstractmethod
    def confirm(self) -> None:
        """The PONG is there."""

    @abstractmethod
    def fail(self, words: str, last_words: str | None) -> None:
        """The connection ended before; `last_words` of the server are `None` where nothing was sent."""


class Publishes(Group):
    """Publishes, each of which can be refused by its subject."""

    __slots__ = ("_doubts", "_publishes", "_refused")

    def __init__(self) -> None:
        super().__init__()
        self._publishes: list[tuple[bytes, int, int, asyncio.Future[None]]] = []
        self._refused: dict[bytes, str] = {}
        self._doubts = ""

    def add(self, subject: bytes, line_bytes: int, payload_bytes: int) -> asyncio.Future[None]:
        """Add one; the future returned ends with the answer to it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._publishes.append((subject, line_bytes, payload_bytes, future))
        self.size_bytes: int = self.size_bytes + len(subject) + payload_bytes
        if line_bytes > self.longest_line:
            self.longest_line = line_bytes
        return future

    def refuse(self, subject: bytes, words: str) -> bool:
        """Refuse the publishes to `subject`; return whether there are some."""
        self._refused[subject] = words
        return any(known == subject for known, *_ in self._publishes)

    def doubt(self, words: str) -> bool:
        """Leave the outcome of all of them unknown."""
        self._doubts = words
        return True

    def confirm(self) -> None:
        """Answer each."""
        for subject, _, _, future in self._publishes:
            if future.done():  # cancelled
                continue
            if subject in self._refused:
                future.set_exception(PublishError(self._refused[subject], adapter="nats"))
            elif self._doubts:
                future.set_exception(_unknown(f"the server refused something: {self._doubts}"))
            else:
                future.set_result(None)

    def fail(self, words: str, last_words: str | None) -> None:
        """Answer each; what the server ended the connection for was certainly not published."""
        largest = max((size for _, _, size, _ in self._publishes), default=0)
        for _, line, size, future in self._publishes:
            if future.done():
                continue
            reason = (last_words or "").lower()
            too_large = reason == _PAYLOAD_TOO_LARGE and size == largest
            if last_words is None:
                future.set_exception(unavailable(words))
            elif too_large or (reason == _LINE_TOO_LONG and line == self.longest_line):
                future.set_exception(PublishError(words, adapter="nats"))
            else:
                future.set_exception(_unknown(f"{words}, before the server confirmed"))


class Subscription(Group):
    """One subscription.

    Args:
        subject: What it is for.
        number: Its id.
        line_bytes: Arguments of its command, in bytes.
        on_refused: Called at the PONG with the words of a refusal.
        on_doubted: Called at the PONG with words of which nobody knows whether they are a refusal for good.
    """

    __slots__ = ("_doubts", "_number", "_on_doubted", "_on_refused", "_refused", "_subject")

    def __init__(
        self,
        subject: bytes,
        number: bytes,
        line_bytes: int,
        on_refused: Callable[[str], None],
        on_doubted: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.longest_line = line_bytes
        self._subject = subject
        self._number = number
        self._on_refused = on_refused
        self._on_doubted = on_doubted
        self._refused = ""
        self._doubts = ""

    def refuse(self, subject: bytes, number: str | None, words: str) -> bool:
        """Take a refusal for `subject`, and for this id where one is named; return whether that is meant."""
        is_meant = subject == self._subject and number in (None, self._number.decode())
        if is_meant:
            self._refused = words
        return is_meant

    def doubt(self, words: str) -> bool:
        """Take it for refused, for now."""
        self._doubts = words
        return True

    def confirm(self) -> None:
        """Report a refusal."""
        if self._refused:
            self._on_refused(self._refused)
        elif self._doubts:
            self._on_doubted(self._doubts)

    def fail(self, words: str, last_words: str | None) -> None:
        """Nobody waits here: the call that asked waits for the end of its round."""


class Round(Group):
    """What no refusal concerns; `confirmed` waits for its answer, and so for all before it."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        super().__init__()
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def confirmed(self) -> None:
        """Return at the PONG.

        Raises:
            BrokerUnavailableError: The connection ended before.
        """
        await asyncio.shield(self._future)

    def doubt(self, words: str) -> bool:
        """Refuse it: there is nobody."""
        return False

    def confirm(self) -> None:
        """Let it return."""
        self._future.set_result(None)

    def fail(self, words: str, last_words: str | None) -> None:
        """Let it raise."""
        self._future.set_exception(unavailable(words))
        self._future.exception()  # whoever asked may have been cancelled


def line_refused(size_bytes: int) -> str:
    """Return the reason for a command that is longer than the server accepts."""
    return f"its subject takes {size_bytes:,} bytes of a control line, more than the server accepts (max_control_line)"


def unavailable(words: str) -> BrokerUnavailableError:
    """Return the error for a link that is not there."""
    return BrokerUnavailableError(words, adapter="nats")


def _unknown(words: str) -> PublishOutcomeUnknownError:
    return PublishOutcomeUnknownError(f"{words}; it may have been published", adapter="nats")
