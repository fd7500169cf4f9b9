"""Import time of the package over that of pydantic, which every FastAPI application has loaded already."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.micro.figure import Figure

__all__ = ["run"]

# An application with one model, in an event loop, has all of this already.
_LOADED = """
import asyncio, time, pydantic
class Model(pydantic.BaseModel):
    field: int = pydantic.Field(default=1, gt=0)
started = time.perf_counter()
{}
print(time.perf_counter() - started)
"""


def run(rounds: int) -> list[Figure]:
    """Return the figures, each round in an interpreter of its own; the floor is a part of the standard library."""
    statements = {
        "floor: import starlette.applications": "import starlette.applications",
        "import backplane": "import backplane",
    }
    figures = {name: Figure(name) for name in statements}
    for _ in range(rounds):
        for name, statement in statements.items():
            command = [sys.executable, "-c", _LOADED.format(statement)]
            seconds = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            figures[name].microseconds.append(seconds * 1e6)
    return list(figures.values())
