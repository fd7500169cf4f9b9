"""Official SDKs as clients: a program for each, which a test drives over its stdin and stdout.

A command is one line of JSON, `{"id": 1, "command": "publish", ...}`, answered by the event `done` with the same `id`
and a `result` or an `error` (`code`, `message`; the code is below 100 where it is not the server's). An event is one
line of JSON with its name in `event`. Every program knows the same of both:

    connect         url, token, tokens, data, max_ping_delay, default_delays
    subscribe       channel, token, tokens, data, recoverable, positioned, join_leave, states
    unsubscribe     channel
    publish         channel, data                   presence, presence_stats    channel
    rpc             method, data                    history     channel, limit, since, reverse
    send            data (not Python)               disconnect, quit

`data` is a JSON value, or `base64` stands in its place: bytes, on Protobuf. `tokens` are what the SDK's `getToken`
returns, in turn, the last one from then on, and `null` refuses; so are `states`, positions that `getState` returns.
The SDK's pauses before it reconnects and subscribes again are 20 to 100 ms unless `default_delays`.

    connecting, disconnected                        code, reason
    connected                                       client, data
    error, subscription_error                       code, message
    message                                         data
    subscribing, unsubscribed                       channel, code, reason
    subscribed                                      channel, recoverable, positioned, was_recovering, recovered,
                                                    position (offset, epoch), data
    publication                                     channel, offset (0: none), data, tags, info
    join, leave                                     channel, info (user, client, conn_info, chan_info)
    get_token, get_subscription_token, get_state    what the SDK asked its application for
    server_subscribing, server_subscribed, server_unsubscribed, server_publication, server_join, server_leave

Client-side subscriptions and those of the server differ in the name of the event alone.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from tests.sdk.install import go_client, node_modules

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncGenerator, Callable

__all__ = ["PROGRAMS", "Event", "Program", "SdkClient", "SdkError", "running"]

Event = dict[str, Any]

_HERE: Final = Path(__file__).parent
_PATIENCE_SECONDS: Final = 60.0
_END_SECONDS: Final = 30.0
_MAX_LINE_BYTES: Final = 2**24


@dataclass(frozen=True, slots=True)
class Program:
    """One SDK in one encoding.

    Attributes:
        sdk: Which SDK.
        encoding: What it speaks.
    """

    sdk: Literal["js", "python", "go"]
    encoding: Literal["json", "protobuf"]

    def __str__(self) -> str:
        return f"{self.sdk}-{self.encoding}"

    def command(self) -> tuple[list[str], Path]:
        """Return how it is run, and in which folder; what it needs is installed.

        Raises:
            MissingError: It cannot be installed here.
        """
        if self.sdk == "js":
            return ["node", str(_HERE / "client.mjs"), self.encoding], node_modules()
        if self.sdk == "go":
            return [str(go_client()), self.encoding], _HERE
        return [sys.executable, str(_HERE / "client.py"), self.encoding], _HERE


_SDKS: Final = ("js", "python", "go")
_ENCODINGS: Final = ("json", "protobuf")
PROGRAMS: Final = [Program(sdk, encoding) for sdk in _SDKS for encoding in _ENCODINGS]
"""Every SDK in each encoding."""


class SdkError(Exception):
    """A command failed.

    Attributes:
        code: The error's code; below 100 it is not the server's.
        message: The error's message.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class SdkClient:
    """One client in a program of its own.

    Attributes:
        program: Its SDK and encoding.
        events: What it has reported so far, without `done`.
    """

    def __init__(self, program: Program, process: Process) -> None:
        self.program = program
        self.events: list[Event] = []
        self._process = process
        self._taken: set[int] = set()
        self._results: dict[int, Event] = {}
        self._commands = 0
        self._reported = asyncio.Condition()
        self._over = False

    def send(self, command: str, **arguments: Any) -> int:
        """Send a command without a wait for its end; return its id."""
        self._commands += 1
        line = json.dumps({"id": self._commands, "command": command, **arguments})
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        return self._commands

    async def result(self, command_id: int) -> Any:
        """Wait for the end of a command, and return its result.

        Raises:
            SdkError: It failed.
        """
        await self._wait(lambda: command_id in self._results, f"the end of command {command_id}")
        done = self._results[command_id]
        if error := done.get("error"):
            raise SdkError(error["code"], error["message"])
        return done["result"]

    async def call(self, command: str, **arguments: Any) -> Any:
        """Send a command, wait for its end, and return its result.

        Raises:
            SdkError: It failed.
        """
        return await self.result(self.send(command, **arguments))

    async def wait_for(self, event: str, **fields: Any) -> Event:
        """Wait for an event with these fields that no earlier wait has returned, and return it.

        Raises:
            TimeoutError: None came within 20 s.
        """
        wanted = {"event": event, **fields}

        def find() -> int | None:
            places = (place for place in range(len(self.events)) if place not in self._taken)
            return next((place for place in places if _has(self.events[place], wanted)), None)

        await self._wait(lambda: find() is not None, f"the event {wanted}")
        place = find()
        assert place is not None
        self._taken.add(place)
        return self.events[place]

    async def read(self) -> None:
        """Read what the program writes until it ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            event: Event = json.loads(line)
            async with self._reported:
                if event["event"] == "done":
                    self._results[event["id"]] = event
                else:
                    self.events.append(event)
                self._reported.notify_all()
        async with self._reported:
            self._over = True
            self._reported.notify_all()

    async def _wait(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS), self._reported:
                await self._reported.wait_for(lambda: self._over or condition())
        except TimeoutError:
            raise TimeoutError(f"not within {_PATIENCE_SECONDS:g} s: {what}; {self._report()}") from None
        assert condition(), f"the program has ended without {what}; {self._report()}"

    def _report(self) -> str:
        return "\n".join([f"events of {self.program}:", *map(json.dumps, self.events)])


@asynccontextmanager
async def running(program: Program, folder: Path) -> AsyncGenerator[SdkClient]:
    """Run a program during the block; then it must end with status 0, with nothing on stderr.

    A program whose test dies ends with its stdin.

    Args:
        program: What is run.
        folder: Where its stderr is written.
    """
    command, cwd = program.command()
    log = folder / f"{program}.stderr"
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=cwd, stdin=PIPE, stdout=PIPE, stderr=errors, start_new_session=True, limit=_MAX_LINE_BYTES
        )
    client = SdkClient(program, process)
    reader = asyncio.create_task(client.read())
    try:
        yield client
    finally:
        status = await _end(process, reader)
    assert (status, log.read_text()) == (0, "")


async def _end(process: Process, reader: asyncio.Task[None]) -> int:
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(_END_SECONDS):
            await reader
    except TimeoutError:
        process.kill()
    return await process.wait()


def _has(event: Event, wanted: Event) -> bool:
    return all(event.get(field) == value for field, value in wanted.items())
