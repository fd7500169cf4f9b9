"""`backplane.centrifugal.command_flow`: the order of one client's commands, and how many run at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from backplane.centrifugal.command import Command
from backplane.centrifugal.command_flow import MOST_RUNNING, CommandFlow
from tests.unit.doubles import until_idle

pytestmark = pytest.mark.anyio


async def test_room() -> None:
    """Another command waits while as many as there may be run, and takes the place of the first one that ends."""
    flow = CommandFlow(None)
    for _ in range(MOST_RUNNING):
        await flow.enter()
    waiting = [asyncio.create_task(flow.enter()) for _ in range(2)]
    await until_idle()
    assert not any(task.done() for task in waiting)
    flow.leave()
    await until_idle()
    assert sum(task.done() for task in waiting) == 1
    flow.leave()
    await asyncio.gather(*waiting)
    flow.leave()  # for which none waits
    await flow.enter()


def command(name: str, channel: str, **body: Any) -> Command:
    """Return a command."""
    return Command(1, name, {"channel": channel, **body})


class Commands:
    """Commands that have their turns in one flow, and what they do."""

    def __init__(self, max_running: int | None = None) -> None:
        self.flow = CommandFlow(max_running)
        self.steps: list[str] = []
        self.go_on = asyncio.Event()

    def run(self, name: str, command: Command, *, waits: bool = False) -> asyncio.Task[None]:
        """Run a command under a name."""
        return asyncio.create_task(self._run(name, command, waits))

    async def _run(self, name: str, command: Command, waits: bool) -> None:
        async with self.flow.turn(command):
            self.steps.append(name)
            if waits:
                await self.go_on.wait()
            self.steps.append(f"end of {name}")


@pytest.mark.parametrize(("max_running", "begun"), [(2, 2), (None, 4)])
async def test_slots(max_running: int | None, begun: int) -> None:
    """As many run at a time as are allowed, subscribes that recover among them; others, and presence, do not count."""
    commands = Commands(max_running)
    recovering = command("subscribe", "d", recover=True)
    wait_for_slots = [command("history", "a"), recovering, command("rpc", "c"), command("publish", "a")]
    tasks = [commands.run(str(number), each, waits=True) for number, each in enumerate(wait_for_slots)]
    await until_idle()
    assert len(commands.steps) == begun
    await asyncio.gather(*(commands.run(name, command(name, "e")) for name in ("subscribe", "unsubscribe")))
    assert commands.steps[begun:] == ["subscribe", "end of subscribe", "unsubscribe", "end of unsubscribe"]
    await asyncio.gather(*(commands.run(name, command(name, "e")) for name in ("presence", "presence_stats")))
    commands.go_on.set()
    await asyncio.gather(*tasks)


async def test_order() -> None:
    """Subscribes and unsubscribes of one channel run one after the other, of another one at the same time."""
    commands = Commands()
    tasks = [
        commands.run("one", command("subscribe", "a"), waits=True),
        commands.run("two", command("unsubscribe", "a")),
        commands.run("other", command("subscribe", "b")),
        commands.run("three", command("subscribe", "a", recover=True)),
    ]
    await until_idle()
    assert commands.steps == ["one", "other", "end of other"]
    commands.go_on.set()
    await asyncio.gather(*tasks)
    assert commands.steps[3:] == ["end of one", "two", "end of two", "three", "end of three"]
    assert not commands.flow._last  # pyright: ignore[reportPrivateUsage]


async def test_one_that_fails_or_is_cancelled_holds_up_none() -> None:
    """The next command of the channel runs."""
    commands = Commands()
    with pytest.raises(KeyError):
        async with commands.flow.turn(command("subscribe", "a")):
            raise KeyError("a fault")
    first, second, third = (commands.run(name, command("subscribe", "a"), waits=True) for name in ("1", "2", "3"))
    await until_idle()
    second.cancel()
    first.cancel()
    commands.go_on.set()
    await third
    await asyncio.gather(first, second, return_exceptions=True)
    assert commands.steps == ["1", "3", "end of 3"]
    assert not commands.flow._last  # pyright: ignore[reportPrivateUsage]
