"""Applies the commands that this worker receives, each once, and answers those that ask for it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from backplane.close_codes import close_reason
from backplane.control.messages import Answer, Command, parse_command
from backplane.control.surveys import SurveyError
from backplane.errors import BackplaneError, PayloadTooLargeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from backplane.cluster.bus import ClusterBus
    from backplane.control.client_index import ClientIndex, ControlledClient
    from backplane.control.surveys import Surveys
    from backplane.log_bursts import LogBursts

__all__ = ["CommandReceiver"]

logger: Final = logging.getLogger("backplane.control.commands")

# A command of an earlier time can be received again: after an outage, from a broker that resumes, or by one that
# recorded it. Ids are kept for longer than a command counts.
_MAX_AGE_SECONDS: Final = 300.0
_KEPT_SECONDS: Final = 2 * _MAX_AGE_SECONDS + 60
_MAX_KEPT: Final = 100_000
_MAX_SURVEY_SECONDS: Final = 60.0


class CommandReceiver:
    """Applies commands.

    Args:
        bus: Where answers are sent.
        clients: The clients of this worker.
        surveys: The handlers of the application.
        bursts: How failures are logged.

    Attributes:
        applied: Commands that were applied.
        rejected: Messages that are no command, or one of another time.
    """

    def __init__(self, bus: ClusterBus, clients: ClientIndex, surveys: Surveys, bursts: LogBursts) -> None:
        self._bus = bus
        self._clients = clients
        self._surveys = surveys
        self._bursts = bursts
        self._seen: dict[str, float] = {}  # when each id was received, oldest first
        self._tasks: set[asyncio.Task[None]] = set()
        self._kinds: dict[str, Callable[[Command], Awaitable[Any]]] = {
            "disconnect": self._disconnect,
            "leave": self._leave,
            "join": self._join,
            "send": self._send,
            "count": self._count,
            "survey": self._survey,
        }
        self.applied: int = 0
        self.rejected: int = 0

    def received(self, _topic: str, text: str, /) -> None:
        """Apply a command, unless it was applied before."""
        command = parse_command(text)
        if command is None or abs(time.time() - command.issued_at) > _MAX_AGE_SECONDS:
            self.rejected += 1
            self._bursts.log(logger, logging.WARNING, "dropped a message on the control channel: %s", _fault(command))
            return
        if not self._is_first(command):
            return
        if command.kind not in self._kinds or command.selector.worker not in (None, self._bus.worker):
            return
        self.applied += 1
        self._run(self._apply(command))

    def gap(self, _topic: str, /) -> None:
        """Commands may have been missed: nothing can be done here; one that is to be confirmed was not."""

    async def stop(self) -> None:
        """End what is in progress."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _is_first(self, command: Command) -> bool:
        """Return whether a command was not received before."""
        now, seen = asyncio.get_running_loop().time(), self._seen
        while seen and (len(seen) > _MAX_KEPT or now - next(iter(seen.values())) > _KEPT_SECONDS):
            del seen[next(iter(seen))]
        if command.id in seen:
            return False
        seen[command.id] = now
        return True

    def _run(self, action: Coroutine[Any, Any, None]) -> None:
        """Run in a task, which begins after those of earlier commands."""
        task = asyncio.create_task(action, name="backplane-command")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _apply(self, command: Command) -> None:
        succeeded, value = True, None
        try:
            value = await self._kinds[command.kind](command)
        except SurveyError as error:
            succeeded, value = False, str(error)
            if error.__cause__ is not None:
                self._bursts.log(logger, logging.ERROR, "%s", error, exc_info=error.__cause__)
        except Exception as error:  # of arguments that another version, or another program, has sent
            succeeded, value = False, type(error).__name__
            self._bursts.log(logger, logging.ERROR, "command %r failed", command.kind, exc_info=error)
        if command.reply_to is not None:
            await self._answer(command, succeeded, value)

    async def _answer(self, command: Command, succeeded: bool, value: Any) -> None:
        assert command.reply_to is not None
        worker = self._bus.worker
        try:
            text = Answer(id=command.id, worker=worker, succeeded=succeeded, value=value).encode()
        except (TypeError, ValueError, RecursionError):
            error = f"the answer is not JSON, but {type(value).__name__}"
            text = Answer(id=command.id, worker=worker, succeeded=False, value=error).encode()
        try:
            await self._bus.send(command.reply_to, text)
        except PayloadTooLargeError as error:
            short = f"the answer takes {error.size_bytes:,} bytes, and the broker takes {error.limit_bytes:,}"
            self._bus.send_soon(
                command.reply_to, Answer(id=command.id, worker=worker, succeeded=False, value=short).encode()
            )
        except BackplaneError as error:
            self._bursts.log(logger, logging.WARNING, "could not answer a command: %s", error)

    # --- the kinds; each returns to how many connections it applied, and a survey its answer ---

    async def _disconnect(self, command: Command) -> int:
        code = int(command.arguments["code"])
        reason = close_reason(code, str(command.arguments["reason"]))
        clients = self._clients.select(command.selector)
        for client in clients:
            self._run(client.close(code, reason))  # nothing is delivered any more; the close frame can take a second
        return len(clients)

    async def _leave(self, command: Command) -> int:
        channel = str(command.arguments["channel"])
        clients = [client for client in self._clients.select(command.selector) if channel in client.channels]
        await self._for_each(clients, lambda client: client.leave(channel))
        return len(clients)

    async def _join(self, command: Command) -> int:
        channel = str(command.arguments["channel"])
        clients = [client for client in self._clients.select(command.selector) if channel not in client.channels]
        return await self._for_each(clients, lambda client: client.join(channel))

    async def _send(self, command: Command) -> int:
        data = command.arguments["data"]
        if command.arguments.get("binary"):
            data = bytes.fromhex(data)
        clients = self._clients.select(command.selector)
        for client in clients:
            client.send(data)
        return len(clients)

    async def _count(self, command: Command) -> int:
        return len(self._clients.select(command.selector))

    async def _survey(self, command: Command) -> Any:
        arguments = command.arguments
        seconds = min(float(arguments["seconds"]), _MAX_SURVEY_SECONDS)
        return await self._surveys.answer(str(arguments["name"]), arguments["question"], seconds)

    async def _for_each(
        self, clients: list[ControlledClient], action: Callable[[ControlledClient], Awaitable[None]]
    ) -> int:
        """Do the same with some clients at once; return with how many it succeeded."""
        results = await asyncio.gather(*map(action, clients), return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):  # a join that is refused, a client that has ended meanwhile
                self._bursts.log(logger, logging.WARNING, "a command failed for a connection: %s", result)
        return sum(result is None for result in results)


def _fault(command: Command | None) -> str:
    return "it is no command" if command is None else "it was issued at another time, or by a clock that differs"
