"""Processes of `ipc://` that publish large messages to channels with a history, each killed while it does.

    python -m tests.chaos.kept_writers <url> <folder> <kills> <seed>

Forks them, because an import of the package takes longer than most of them live. Each writes to `<folder>/<name>` a
line for each message that was confirmed: channel and number.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from itertools import count
from pathlib import Path

from backplane import Backplane
from tests.chaos.kept import KEPT, RULES

SIZES = [100, 10_000, 300_000, 1_500_000]


async def publish(url: str, path: Path, seed: int) -> None:
    """Publish until killed."""
    chance = random.Random(seed)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    async with Backplane(url, history=RULES) as backplane:
        for number in count():
            for channel in KEPT:
                await backplane.publish(channel, f"{path.name} {number} ".ljust(chance.choice(SIZES), "."))
                os.write(descriptor, f"{channel} {number}\n".encode())
            await asyncio.sleep(0.005)


def main(url: str, folder: Path, kills: int, seed: int) -> None:
    """Fork one after the other, and kill each at a random moment after its first message."""
    chance = random.Random(seed)
    for number in range(kills):
        path = folder / f"k{number}"
        pid = os.fork()
        if not pid:
            try:
                asyncio.run(publish(url, path, seed + number))
            finally:
                os._exit(1)
        while not (path.exists() and path.stat().st_size):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
