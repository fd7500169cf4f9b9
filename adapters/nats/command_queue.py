"""The commands of one connection, from the call that sends them to the PONG that confirms them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Final, TypeVar

from backplane.adapters.nats.errors import unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.adapters.nats.command_groups import CommandGroup

__all__ = ["CommandQueue"]

# A burst of commands is sent in pieces of this size, so that the server processes one while the next is prepared.
_WRITE_BYTES: Final = 64 * 1024

_Group = TypeVar("_Group", bound="CommandGroup")


class CommandQueue:
    """Gathers commands into groups, and sends those of one pass of the event loop in one write, or a few.

    Attributes:
        unsent: The groups whose commands are not sent yet; the last one can be added to.
        pending_bytes: What was published and is not confirmed.
        longest_confirmed: Arguments of the longest command that the server has confirmed, in bytes.
        synced_at: When the last command that the server has confirmed was sent, by the monotonic clock: what the server
            had sent to this connection until then is received. Minus infinity before the first one.
    """

    __slots__ = (
        "_commands",
        "_commands_bytes",
        "_flush_is_due",
        "_lost",
        "_unconfirmed",
        "_write",
        "longest_confirmed",
        "pending_bytes",
        "synced_at",
        "unsent",
    )

    def __init__(self) -> None:
        self._commands: list[bytes] = []
        self._commands_bytes: int = 0
        self._flush_is_due: bool = False
        self._lost: str = "the link is lost"  # empty while it is open
        self._unconfirmed: deque[CommandGroup] = deque()
        self._write: Callable[[bytes], object] | None = None
        self.unsent: list[CommandGroup] = []
        self.pending_bytes: int = 0
        self.longest_confirmed: int = 0
        self.synced_at: float = float("-inf")

    @property
    def awaited(self) -> CommandGroup | None:
        """The group that the next PONG confirms: the server processes in order, so an error concerns this one."""
        return self._unconfirmed[0] if self._unconfirmed else None

    def open(self, write: Callable[[bytes], object]) -> None:
        """Accept commands from now on, and send them by `write`."""
        self._write = write
        self._lost = ""

    def begin(self, group: _Group) -> _Group:
        """Make `group` that of the commands sent next, and return it.

        Raises:
            BrokerUnavailableError: The connection has ended.
        """
        if self._lost:
            raise unavailable(self._lost)
        if self.unsent:
            self._commands.append(b"PING\r\n")
        self.unsent.append(group)
        return group

    def send(self, command: bytes) -> None:
        """Send a command of the group that was begun last, at the latest at the end of this pass of the event loop."""
        self._commands.append(command)
        self._commands_bytes += len(command)
        if self._commands_bytes >= _WRITE_BYTES:
            self._flush()
        elif not self._flush_is_due:
            self._flush_is_due = True
            asyncio.get_running_loop().call_soon(self._flush_at_end)

    def confirm(self) -> None:
        """Take a PONG: answer the group that awaits it.

        Raises:
            ValueError: None does.
        """
        if not self._unconfirmed:
            raise ValueError("a PONG without a PING")
        group = self._unconfirmed.popleft()
        self.pending_bytes -= group.size_bytes
        self.longest_confirmed = max(self.longest_confirmed, group.longest_line)
        self.synced_at = group.sent_at
        group.confirm()

    def close(self, reason: str, last_error: str) -> None:
        """Fail every group, and accept no command any more.

        Args:
            reason: Why the connection ended.
            last_error: The last error of the server that no PONG followed; empty without one.
        """
        self._lost = f"the link is lost: {last_error}" if last_error else "the link is lost"
        while self._unconfirmed:
            self._unconfirmed.popleft().fail(reason, last_error)
        while self.unsent:
            self.unsent.pop().fail(reason, None)
        self._commands.clear()

    def _flush_at_end(self) -> None:
        self._flush_is_due = False
        if self.unsent:
            self._flush()

    def _flush(self) -> None:
        self._commands.append(b"PING\r\n")
        now = time.monotonic()
        for group in self.unsent:
            group.sent_at = now
        self._unconfirmed.extend(self.unsent)
        self.unsent.clear()
        data = b"".join(self._commands)
        self._commands.clear()
        self._commands_bytes = 0
        assert self._write is not None
        self._write(data)
