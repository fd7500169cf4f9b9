"""What the others get while some sockets never read."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from benchmarks.harness.run import Load

if TYPE_CHECKING:
    from benchmarks.harness.run import Options, Run
    from benchmarks.harness.server import Server
    from benchmarks.harness.tally import Counted

__all__ = ["run"]


def run(server: Server, options: Options) -> Run:
    """Send at `rate` to `connections` sockets that read, first alone, then beside `stalled` ones that do not.

    The figures are those of the ones that read. A stalled socket is a load only when the kernel's buffers for it (some
    megabytes) are full, so payload times rate times seconds must be more.
    """
    with Load(server, options) as load:
        alone, _ = _measured(load)
    with Load(server, options) as load:
        load.audience[0].call("stall", options.stalled)
        found, counted = _measured(load)
        codes: Counter[int | None] = Counter(load.audience[0].call("stalled_codes"))
        found.invalid += alone.invalid
        found.figures["alone_p99_ms"] = alone.figures["latency_p99_ms"]
        found.figures["times_alone"] = found.figures["latency_p99_ms"] / alone.figures["latency_p99_ms"]
        found.figures["stalled_closed"] = float(options.stalled - codes[None])
        found.figures["silence_ms"] = _longest_silence(counted.slices.tolist(), load.window.start, load.window.end)
        found.notes.append(
            f"{options.stalled} stalled: "
            + ", ".join(f"{count} {_ending(code)}" for code, count in codes.items())
            + f"; {options.rate * options.seconds * options.payload / 2**20:,.0f} MiB were sent to each"
        )
        return found


def _measured(load: Load) -> tuple[Run, Counted]:
    load.connect()
    load.ready()
    before = load.server.resident_bytes()
    load.begin(rate=load.options.rate)
    with load.measured():
        pass
    grown = load.server.resident_bytes() - before
    found, counted = load.finish()
    found.figures["server_mib_grown"] = grown / 2**20
    return found, counted


def _ending(code: int | None) -> str:
    return "still open" if code is None else f"closed by {code}" if code else "cut"


def _longest_silence(slices: list[int], start: int, end: int) -> float:
    """Return the longest stretch without any delivery, to a tenth of a second, in milliseconds."""
    longest = silent = 0
    first, last = start // 100_000 + 1, end // 100_000
    for count in (slices + [0] * last)[first:last]:
        silent = 0 if count else silent + 1
        longest = max(longest, silent)
    return longest * 100.0
