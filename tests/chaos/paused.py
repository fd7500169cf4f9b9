"""A worker that another process pauses: `python -m tests.chaos.paused URL LOOP`.

It publishes to itself until its input ends. It prints `"ready"` as a line of JSON, and at the end one with its
counts.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from itertools import count
from typing import Any

import uvloop

from backplane import Backlog, Backplane, Gap
from tests.chaos.workload import QUICK

_PUBLISHERS = 4


async def main(url: str) -> dict[str, Any]:
    """Publish without pause from some tasks, and keep the outcome of each message, until the end of the input."""
    published: Counter[str] = Counter()
    received: list[str] = []
    gaps: list[str] = []
    states: list[str] = []
    over = asyncio.Event()
    arrived = asyncio.Event()
    backplane = Backplane(url, settings=QUICK)

    async def receive() -> None:
        async with backplane.subscribe("room", backlog=Backlog(max_messages=1_000_000)) as messages:
            ready.set()
            async for item in messages:
                if isinstance(item, Gap):
                    gaps.append(item.reason)
                else:
                    received.append(str(item.data))
                    arrived.set()

    async def publish(name: int) -> None:
        for number in count():
            if over.is_set():
                return
            try:
                await backplane.publish("room", f"{name} {number}")
            except Exception as error:
                published[type(error).__name__] += 1
            else:
                published["ok"] += 1

    async with backplane:
        backplane.on_state(lambda change: states.append(f"{change.new}: {change.reason}"))
        ready = asyncio.Event()
        receiving = asyncio.create_task(receive())
        await ready.wait()
        publishing = [asyncio.create_task(publish(name)) for name in range(_PUBLISHERS)]
        print(json.dumps("ready"), flush=True)  # noqa: T201
        await asyncio.to_thread(sys.stdin.read)
        over.set()
        await asyncio.gather(*publishing)
        async with asyncio.timeout(30):
            while len(received) < published["ok"]:
                arrived.clear()
                await arrived.wait()
        seen = {"published": published, "received": len(received), "gaps": gaps, "states": list(states)}
    receiving.cancel()
    return seen


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if sys.argv[2] == "uvloop" else None) as runner:
        print(json.dumps(runner.run(main(sys.argv[1]))), flush=True)  # noqa: T201
