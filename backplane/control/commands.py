"""Applies the commands that this worker receives, each once and in their order, and answers those that ask for it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from backplane.channels import validate_channel
from backplane.close_codes import check_close, close_reason
from backplane.control.messages import Answer, Command, parse_command
from backplane.control.surveys import SurveyError
from backplane.errors import BackplaneError, InvalidDataError, PayloadTooLargeError
from backplane.fanout.codec import to_client_data
from backplane.journal.events import CLUSTER_FAILED, COMMAND_FAILED, COMMAND_REJECTED, HOOK_FAILED
from backplane.journal.place import place_of
from backplane.option_checks import check_number

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from backplane.cluster.bus import ClusterBus
    from backplane.control.client_index import ClientIndex, ControlledClient
    from backplane.control.surveys import Surveys
    from backplane.journal.journal import Journal

__all__ = ["CommandReceiver", "data_arguments"]

logger: Final = logging.getLogger("backplane.control.commands")

# A command of an earlier time can be received again: after an outage, from a broker that resumes, or by one that
# recorded it. Ids are kept for longer than a command counts.
_MAX_AGE_SECONDS: Final = 300.0
_KEPT_SECONDS: Final = 2 * _MAX_AGE_SECONDS + 60
# About 20 MB. Above it, at 150 commands per second, commands count for a shorter time.
_MAX_KEPT: Final = 100_000
# Commands that wait: each takes as long as the clients that it concerns.
_MAX_WAITING: Final = 10_000
# Clients in one pass of the event loop: to begin to close one takes some 50 µs, to look whether one is selected 0.3.
_SLICE: Final = 100
_SEARCH_SLICE: Final = 5_000
# Joins by commands at a time: each asks `authorize` and the broker.
_MAX_JOINS: Final = 100
_MAX_SURVEY_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 1.0


class CommandReceiver:
    """Applies commands.

    What takes no time (`disconnect`, `leave`, `send`, `count`) is done in the order in which the commands are received,
    for many clients in slices. Joins and surveys wait for others: each begins in its turn and goes on beside.

    Args:
        bus: Where answers are sent.
        clients: The clients of this worker.
        surveys: The handlers of the application.
        journal: How failures are logged.

    Attributes:
        applied: Commands that were applied.
        rejected: Messages that are no command, or one that cannot be applied, or of another time.
    """

    def __init__(self, bus: ClusterBus, clients: ClientIndex, surveys: Surveys, journal: Journal) -> None:
        self._bus = bus
        self._clients = clients
        self._surveys = surveys
        self._journal = journal
        self._seen: dict[str, tuple[float, float]] = {}  # when each id was received and issued, oldest first
        self._forgotten_until = float("-inf")
        self._waiting: deque[Command] = deque()
        self._applying: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._joins: dict[tuple[str, str], asyncio.Task[bool]] = {}
        self._join_slots = asyncio.Semaphore(_MAX_JOINS)
        self._kinds: dict[str, Callable[[Command], Awaitable[Any]]] = {
            "disconnect": self._disconnect,
            "leave": self._leave,
            "send": self._send,
            "count": self._count,
        }
        self._slow_kinds: dict[str, Callable[[Command], Coroutine[Any, Any, Any]]] = {
            "join": self._join,
            "survey": self._survey,
        }
        self.applied: int = 0
        self.rejected: int = 0

    def add_kind(self, kind: str, apply: Callable[[Command], Awaitable[Any]]) -> None:
        """Apply commands of one more kind, which takes no time, by a function that returns the answer."""
        self._kinds[kind] = apply

    def add_slow_kind(self, kind: str, apply: Callable[[Command], Coroutine[Any, Any, Any]]) -> None:
        """Apply commands of one more kind, which takes time and goes on beside the commands after it."""
        self._slow_kinds[kind] = apply

    def received(self, _topic: str, text: str, /) -> None:
        """Apply a command, unless it was applied before."""
        command = parse_command(text)
        if command is None:
            return self._reject("it is no command")
        if abs(time.time() - command.issued_at) > _MAX_AGE_SECONDS or command.issued_at <= self._forgotten_until:
            return self._reject("it was issued at another time, or by a clock that differs")
        if not self._is_first(command) or command.selector.worker not in (None, self._bus.worker):
            return
        if len(self._waiting) >= _MAX_WAITING:
            return self._reject("too many wait already")
        self._waiting.append(command)
        if self._applying is None:
            self._applying = self._run(self._apply_all())

    def gap(self, _topic: str, /) -> None:
        """Commands may have been missed: nothing can be done here; one that is to be confirmed was not."""

    async def stop(self) -> None:
        """End what is in progress. A function of the application that ignores that is not waited for."""
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_STOP_SECONDS)

    def _is_first(self, command: Command) -> bool:
        """Return whether a command was not received before."""
        now, seen = asyncio.get_running_loop().time(), self._seen
        if command.id in seen:
            return False
        while seen:
            oldest = next(iter(seen))
            received_at, issued_at = seen[oldest]
            if len(seen) >= _MAX_KEPT:
                self._forgotten_until = max(self._forgotten_until, issued_at)
            elif now - received_at <= _KEPT_SECONDS:
                break
            del seen[oldest]
        seen[command.id] = now, command.issued_at
        return True

    def _run(self, action: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(action, name="backplane-command")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _apply_all(self) -> None:
        try:
            while self._waiting:
                command = self._waiting.popleft()
                if (apply := self._kinds.get(command.kind)) is not None:
                    self._answer(command, *await self._applied(apply(command)))
                elif (begin := self._slow_kinds.get(command.kind)) is not None:
                    self._run(self._apply_beside(command, begin))
                    await asyncio.sleep(0)  # until it has begun
                else:
                    self._answer(command, False, f"this worker does not know the command {command.kind!r:.100}")
        finally:
            self._applying = None

    async def _apply_beside(self, command: Command, begin: Callable[[Command], Coroutine[Any, Any, Any]]) -> None:
        self._answer(command, *await self._applied(begin(command)))

    async def _applied(self, result: Awaitable[Any]) -> tuple[bool, Any]:
        """Return whether a command succeeded, and its answer."""
        try:
            value = await result
        except SurveyError as error:
            self.applied += 1
            if error.__cause__ is not None:
                words = "a survey failed: %(error)s"
                self._journal.log(logger, HOOK_FAILED, words, hook="survey", error=error, exc_info=error.__cause__)
            return False, str(error)
        except BackplaneError as error:  # of its arguments
            self._reject(f"its arguments cannot be used: {type(error).__name__}")
            return False, type(error).__name__
        except Exception as error:
            self._journal.log(logger, COMMAND_FAILED, "a command failed: %(error)s", error=place_of(error))
            return False, type(error).__name__
        self.applied += 1
        return True, value

    def _reject(self, fault: str) -> None:
        self.rejected += 1
        self._journal.log(
            logger, COMMAND_REJECTED, "dropped a message on the control channel: %(reason)s", reason=fault
        )

    def _answer(self, command: Command, succeeded: bool, value: Any) -> None:
        """Answer, where that is asked for, without waiting for the broker."""
        if command.reply_to is not None:
            answer = Answer(id=command.id, worker=self._bus.worker, succeeded=succeeded, value=value)
            self._run(self._send_answer(command.reply_to, answer))

    async def _send_answer(self, inbox: str, answer: Answer) -> None:
        try:
            text = answer.encode()
        except InvalidDataError:
            fault = f"the answer is not JSON, but {type(answer.value).__name__}"
            text = Answer(id=answer.id, worker=answer.worker, succeeded=False, value=fault).encode()
        try:
            await self._bus.send(inbox, text)
        except PayloadTooLargeError as error:
            fault = f"the answer takes {error.size_bytes:,} bytes, and the broker takes {error.limit_bytes:,}"
            short = Answer(id=answer.id, worker=answer.worker, succeeded=False, value=fault)
            self._bus.send_soon(inbox, short.encode())
        except BackplaneError as error:
            self._journal.log(logger, CLUSTER_FAILED, "could not answer a command: %(reason)s", reason=error)

    # --- the kinds; each returns to how many connections it applied, and a survey its answer ---

    async def _disconnect(self, command: Command) -> int:
        code, reason = command.arguments.get("code"), command.arguments.get("reason")
        check_close(code, reason)
        assert isinstance(code, int)
        assert isinstance(reason, str)
        count, reason = 0, close_reason(code, reason)
        async for client in self._slices(command):
            # Nothing is delivered any more as soon as this begins; the close frame can take a second.
            self._run(self._close(client, code, reason))
            count += 1
        return count

    async def _leave(self, command: Command) -> int:
        channel, count = _channel_of(command), 0
        async for client in self._slices(command):
            if (joining := self._joins.pop((client.id, channel), None)) is not None:
                joining.cancel()
                count += 1
            elif channel in client.channels:
                await client.leave(channel)
                count += 1
        return count

    async def _send(self, command: Command) -> int:
        data, count = _data_of(command), 0
        async for client in self._slices(command):
            client.send(data)
            count += 1
        return count

    async def _count(self, command: Command) -> int:
        count = 0
        async for clients in self._selected(command):
            count += len(clients)
        return count

    async def _join(self, command: Command) -> int:
        channel = _channel_of(command)
        joins = [
            self._joins.get((client.id, channel)) or self._begin_join(client, channel)
            for client in self._clients.select(command.selector)
            if channel not in client.channels
        ]
        if joins:
            await asyncio.wait(joins)
        return sum(not join.cancelled() and join.result() for join in joins)

    async def _survey(self, command: Command) -> Any:
        name, seconds = command.arguments.get("name"), command.arguments.get("seconds")
        check_number("seconds", seconds)
        assert isinstance(seconds, int | float)
        if not isinstance(name, str):
            raise InvalidDataError("the name of a survey is a text")
        return await self._surveys.answer(name, command.arguments.get("question"), min(seconds, _MAX_SURVEY_SECONDS))

    # ---

    async def _slices(self, command: Command) -> AsyncIterator[ControlledClient]:
        """Yield the clients that a command selects, a slice in each pass of the event loop."""
        number = 0
        async for clients in self._selected(command):
            for client in clients:
                if not client.is_over:  # it can have ended since it was selected
                    yield client
                number += 1
                if not number % _SLICE:
                    await asyncio.sleep(0)

    async def _selected(self, command: Command) -> AsyncIterator[list[ControlledClient]]:
        """Yield the clients that a command selects, found in several passes of the event loop where they are many."""
        for number, clients in enumerate(self._clients.select_in_slices(command.selector, _SEARCH_SLICE)):
            if number:
                await asyncio.sleep(0)
            yield clients

    async def _close(self, client: ControlledClient, code: int, reason: str) -> None:
        try:
            await client.close(code, reason)
        except Exception as error:
            words = "a connection could not be closed: %(error)s"
            self._journal.log(logger, COMMAND_FAILED, words, error=place_of(error), **client.named)

    def _begin_join(self, client: ControlledClient, channel: str) -> asyncio.Task[bool]:
        key = client.id, channel
        join = self._joins[key] = self._run(self._join_one(client, channel))
        join.add_done_callback(lambda _: self._joins.pop(key, None) if self._joins.get(key) is join else None)
        return join

    async def _join_one(self, client: ControlledClient, channel: str) -> bool:
        try:
            async with self._join_slots:
                await client.join(channel)
        except BackplaneError as error:  # it is refused, or has ended meanwhile
            self._log_join(client, channel, error)
        except Exception as error:  # of the application's `authorize`
            self._log_join(client, channel, place_of(error))
        else:
            return True
        return False

    def _log_join(self, client: ControlledClient, channel: str, error: object) -> None:
        words = "a command could not join a connection: %(error)s"
        self._journal.log(
            logger, COMMAND_FAILED, words, level=logging.WARNING, channel=channel, error=error, **client.named
        )


def _channel_of(command: Command) -> str:
    channel: Any = command.arguments.get("channel")
    return validate_channel(channel)


def data_arguments(data: str | bytes) -> dict[str, Any]:
    """Return the arguments of a command that sends `data`: text, or binary data in base64."""
    return {"data": data} if isinstance(data, str) else {"data": base64.b64encode(data).decode(), "binary": True}


def _data_of(command: Command) -> str | bytes:
    """Return what `data_arguments` has made arguments of.

    Raises:
        InvalidDataError: It is neither.
    """
    data = command.arguments.get("data")
    if not isinstance(data, str):
        raise InvalidDataError("the data of a command is a text")
    if not command.arguments.get("binary"):
        return to_client_data(data)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidDataError("the binary data of a command is in base64") from None
