"""Commands to a NATS server that one PONG confirms, and the callers that wait for it.

The server processes commands in order and answers a PING only. So commands are sent in groups, each followed by a PING:
the PONG confirms the group, and a refusal that is received before it concerns this group.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any, Final, Protocol

from backplane.adapters.nats.errors import outcome_unknown, unavailable
from backplane.concurrency.shared_future import outcome_of
from backplane.errors import PublishError

__all__ = ["LINE_TOO_LONG", "CommandGroup", "PublishGroup", "RoundTrip", "SubscribeAnswers", "SubscribeGroup"]

LINE_TOO_LONG: Final = "maximum control line exceeded"
"""Why a server ends the connection over a longer command than it accepts, in lower case."""

_PAYLOAD_TOO_LARGE: Final = "maximum payload violation"


class CommandGroup(ABC):
    """What awaits one PONG.

    Attributes:
        size_bytes: How much of it counts as published and not yet confirmed.
        longest_line: Arguments of its longest command, in bytes.
        sent_at: When it was sent, by the monotonic clock.
    """

    __slots__ = ("longest_line", "sent_at", "size_bytes")

    def __init__(self) -> None:
        self.sent_at: float = 0.0
        self.size_bytes: int = 0
        self.longest_line: int = 0

    @abstractmethod
    def refuse_unattributed(self, reason: str) -> bool:
        """Take a refusal that names no command; return whether it can concern a command of this group."""

    @abstractmethod
    def confirm(self) -> None:
        """Answer the callers: the PONG was received."""

    @abstractmethod
    def fail(self, reason: str, last_error: str | None) -> None:
        """Fail the callers: the connection ended before the PONG.

        Args:
            reason: Why it ended.
            last_error: The last error that the server sent; `None` where the group was not sent.
        """


class PublishGroup(CommandGroup):
    """Publishes. A refusal names the subject of the publish that it concerns."""

    __slots__ = ("_publishes", "_refused", "_unattributed")

    def __init__(self) -> None:
        super().__init__()
        self._publishes: list[tuple[bytes, int, int, asyncio.Future[Any], bool]] = []
        self._refused: dict[bytes, str] = {}
        self._unattributed: str = ""

    def add(self, subject: bytes, line_bytes: int, payload_bytes: int) -> asyncio.Future[None]:
        """Add a publish; the future returned ends with its answer."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add(subject, line_bytes, payload_bytes, future, is_request=False)
        return future

    def add_request(self, subject: bytes, line_bytes: int, payload_bytes: int, future: asyncio.Future[Any]) -> None:
        """Add a publish with a reply subject: `future` fails as that of `add`, and a PONG alone does not end it."""
        self._add(subject, line_bytes, payload_bytes, future, is_request=True)

    def _add(
        self, subject: bytes, line_bytes: int, payload_bytes: int, future: asyncio.Future[Any], *, is_request: bool
    ) -> None:
        self._publishes.append((subject, line_bytes, payload_bytes, future, is_request))
        self.size_bytes: int = self.size_bytes + len(subject) + payload_bytes
        if line_bytes > self.longest_line:
            self.longest_line = line_bytes

    def refuse(self, subject: bytes, reason: str) -> bool:
        """Refuse the publishes to `subject`; return whether there are any."""
        self._refused[subject] = reason
        return any(known == subject for known, *_ in self._publishes)

    def refuse_unattributed(self, reason: str) -> bool:
        """Leave the outcome of every publish unknown."""
        self._unattributed = reason
        return True

    def confirm(self) -> None:
        """Answer each publish."""
        for subject, _, _, future, is_request in self._publishes:
            if future.done():  # cancelled, or the reply was received before the PONG
                continue
            if subject in self._refused:
                future.set_exception(PublishError(self._refused[subject], adapter="nats"))
            elif self._unattributed:
                future.set_exception(outcome_unknown(f"the server refused something: {self._unattributed}"))
            elif not is_request:
                future.set_result(None)

    def fail(self, reason: str, last_error: str | None) -> None:
        """Fail each publish. The one over which the server ended the connection was certainly not published."""
        largest = max((size for _, _, size, _, _ in self._publishes), default=0)
        error = (last_error or "").lower()
        for _, line, size, future, _ in self._publishes:
            if future.done():
                continue
            too_large = error == _PAYLOAD_TOO_LARGE and size == largest
            if last_error is None:
                future.set_exception(unavailable(reason))
            elif too_large or (error == LINE_TOO_LONG and line == self.longest_line):
                future.set_exception(PublishError(reason, adapter="nats"))
            else:
                future.set_exception(outcome_unknown(f"{reason}, before the server confirmed"))


class SubscribeAnswers(Protocol):
    """What subscriptions report to at their PONG: one for many, since each has few objects of its own."""

    def refused(self, number: bytes, /, reason: str) -> None:
        """Take the refusal of the subscription with this id."""

    def unconfirmed(self, number: bytes, /, reason: str) -> None:
        """Take an error of which it is unknown whether it is a final refusal."""


class SubscribeGroup(CommandGroup):
    """One subscription, because the refusal of a subscription does not always name its subject.

    Args:
        subject: What it subscribes to.
        number: Its id.
        line_bytes: Arguments of its command, in bytes.
        answers: What it reports to.
    """

    __slots__ = ("_answers", "_number", "_refused", "_subject", "_unattributed")

    def __init__(self, subject: bytes, number: bytes, line_bytes: int, answers: SubscribeAnswers) -> None:
        super().__init__()
        self.longest_line = line_bytes
        self._subject = subject
        self._number = number
        self._answers = answers
        self._refused: str = ""
        self._unattributed: str = ""

    def refuse(self, subject: bytes, number: str | None, reason: str) -> bool:
        """Take a refusal for `subject`, and for this id where it names one; return whether this one is meant."""
        is_meant = subject == self._subject and number in (None, self._number.decode())
        if is_meant:
            self._refused = reason
        return is_meant

    def refuse_unattributed(self, reason: str) -> bool:
        """Leave the subscription unconfirmed: the server may accept it later."""
        self._unattributed = reason
        return True

    def confirm(self) -> None:
        """Report a refusal."""
        if self._refused:
            self._answers.refused(self._number, self._refused)
        elif self._unattributed:
            self._answers.unconfirmed(self._number, self._unattributed)

    def fail(self, reason: str, last_error: str | None) -> None:
        """Do nothing: the caller waits for the `RoundTrip` after its subscriptions, which fails too."""


class RoundTrip(CommandGroup):
    """Commands that the server does not refuse, or none. Its PONG confirms every group before it too."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        super().__init__()
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def confirmed(self) -> None:
        """Return at the PONG.

        Raises:
            BrokerUnavailableError: The connection ended before.
        """
        await outcome_of(self._future)

    def refuse_unattributed(self, reason: str) -> bool:
        """Return false: no command here can be refused."""
        return False

    def confirm(self) -> None:
        """Let `confirmed` return."""
        self._future.set_result(None)

    def fail(self, reason: str, last_error: str | None) -> None:
        """Let `confirmed` raise."""
        self._future.set_exception(unavailable(reason))
        self._future.exception()  # retrieved here, because the caller may have been cancelled
