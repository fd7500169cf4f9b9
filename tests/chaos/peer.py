"""A peer for faults of `ipc://`: `python -m tests.chaos.peer URL` prints what it receives.

A line of JSON each: `"ready"`, then `[channel, publisher, number]` for a message and `[channel]` for a gap.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from backplane import Backlog, Backplane, Gap
from tests.chaos.workload import CHANNELS, GREETING


async def main(url: str) -> None:
    """Receive until the process ends."""
    async with (
        Backplane(url) as backplane,
        backplane.subscribe(*CHANNELS, backlog=Backlog(when_full="drop_newest")) as messages,
    ):
        _write("ready")
        async for item in messages:
            if isinstance(item, Gap):
                _write([item.channel])
            else:
                publisher, number, *_ = str(item.data).split()
                if number != GREETING:
                    _write([item.channel, publisher, int(number)])


def _write(line: object) -> None:
    os.write(sys.stdout.fileno(), json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
