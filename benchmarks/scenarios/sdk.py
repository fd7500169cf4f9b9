"""CPU per delivery of rooms of SDK clients beside a raw room of the same bytes, at saturation and at a rate.

The rooms take turns on one server, in the same processes, and each is the first one in every third run: neither a drift
of the machine nor a server that has just started favors one of them. The text of a room of SDK clients is shorter by
what the protocol puts around it: the frames of all rooms have the same size.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Final

from backplane.centrifugal.encoding import JSON, PROTOBUF
from benchmarks.harness.figures import FAULTS
from benchmarks.harness.run import Run
from benchmarks.harness.text import channel_name
from benchmarks.harness.websocket import PLAIN, SDK, SDK_PROTOBUF
from benchmarks.scenarios import fanout, saturation

if TYPE_CHECKING:
    from backplane.centrifugal.encoding import Encoding
    from benchmarks.harness.run import Options
    from benchmarks.harness.server import Server
    from benchmarks.harness.websocket import Dialect

__all__ = ["COLUMNS", "run", "text_bytes"]

COLUMNS: Final = tuple(
    f"{prefix}{name}"
    for prefix in ("", "paced_")
    for name in ("json_times", "protobuf_times", "raw_us", "json_us", "protobuf_us")
)
"""The figures of the table."""

_PUBLISHERS: Final = 16
_ROOMS: Final[dict[str, tuple[Dialect, Encoding | None]]] = {
    "raw": (PLAIN, None),
    "json": (SDK, JSON),
    "protobuf": (SDK_PROTOBUF, PROTOBUF),
}
_turns: Final = count()


def run(server: Server, options: Options) -> Run:
    """Measure each room at saturation, by 16 publishers, then each one at `rate`.

    `payload` is what a frame holds, in each room.
    """
    found = Run(figures=dict.fromkeys(FAULTS, 0.0))
    options = replace(options, channels=1)
    first = next(_turns) % len(_ROOMS)
    rooms = [*_ROOMS.items()][first:] + [*_ROOMS.items()][:first]
    for prefix, scenario, publishers in (("", saturation, _PUBLISHERS), ("paced_", fanout, options.publishers)):
        sizes: dict[str, float] = {}
        for name, (dialect, encoding) in rooms:
            size = options.payload if encoding is None else text_bytes(encoding, options.payload)
            each = scenario.run(server.speaking(dialect), replace(options, payload=size, publishers=publishers))
            sizes[name] = each.figures["frame_bytes"]
            found.figures[f"{prefix}{name}_us"] = each.figures.get("cpu_us_per_delivery", 0.0)
            for fault in FAULTS:
                found.figures[fault] += each.figures[fault]
            found.invalid += [f"{name}: {reason}" for reason in each.invalid]
            found.notes += [f"{name}: {note}" for note in each.notes]
        _compare(found, prefix, sizes)
    return found


def _compare(found: Run, prefix: str, sizes: dict[str, float]) -> None:
    """Add the ratios to the raw room, if the frames of all rooms have the same size."""
    if len(set(sizes.values())) > 1:
        found.invalid.append(
            "frames differ in size: " + ", ".join(f"{name} {size:g} B" for name, size in sizes.items())
        )
    raw = found.figures[f"{prefix}raw_us"]
    for name in sizes:
        if name != "raw" and raw:
            found.figures[f"{prefix}{name}_times"] = found.figures[f"{prefix}{name}_us"] / raw


def text_bytes(encoding: Encoding, payload: int) -> int:
    """Return how long a text is that the protocol makes as many bytes of as `payload`."""
    size = payload
    while size > 0 and len(encoding.publication(channel_name(0), "x" * size, is_json=False, offset=None)) > payload:
        size -= 1
    return size
