"""The broker is killed and comes back: what was lost, what came late, and how many gaps were reported."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness.run import Load
from benchmarks.harness.sockets import connect
from benchmarks.harness.text import channel_name
from benchmarks.harness.websocket import PLAIN

if TYPE_CHECKING:
    from benchmarks.harness.run import Options, Run
    from benchmarks.harness.server import Server
    from benchmarks.harness.sockets import Client
    from benchmarks.harness.tally import Counted

__all__ = ["run"]

_LATE_MICROSECONDS = 1_000_000


def run(server: Server, options: Options) -> Run:
    """Kill the broker at a third of the window, start it again half a second later, and go on publishing.

    Clients that are cut come back.

    `lost` counts deliveries that never came of messages that were not refused to their publisher; `late` those that
    took over a second; `all_back_ms` is from the broker's return until every socket receives again.
    """
    assert options.break_broker is not None
    assert options.mend_broker is not None
    url = server.candidate.broker_url
    with Load(server, options, late_milliseconds=250) as load:
        gap_listener = _gap_listener(server)
        load.connect()
        load.ready()
        load.begin(rate=options.rate)
        with load.measured():
            third = (load.window.end - load.window.start) // 3
            load.sleep_until(load.window.start + third)
            options.break_broker(url)
            load.sleep_until(load.window.start + third + 500_000)
            options.mend_broker(url)
            mended = load.now()
            while load.now() < load.window.end:
                load.reconnect()
                time.sleep(0.05)
        found, counted = load.finish()
        found.slices = counted.slices.tolist()
        figures = found.figures
        back = _back(counted, mended, options.connections)
        if back is None:
            found.notes.insert(0, "after the broker's return no message reached every socket")
        else:
            figures["all_back_ms"] = back
        if gap_listener is not None:
            figures["gaps"] = float(len(_texts(gap_listener)))
        figures["lost"] = max(load.undelivered(counted) - figures["refused"] * options.connections, 0.0)
        figures["late"] = float(_late(counted))
        return found


def _back(counted: Counted, mended: int, connections: int) -> float | None:
    """Return when the first message published after the return had reached every socket; `None` if none had."""
    whole = (counted.receivers >= connections) & (counted.intended >= mended)
    return float((counted.last[whole].min() - mended) / 1000) if whole.any() else None


def _late(counted: Counted) -> int:
    late = (counted.receivers > 0) & (counted.last - counted.intended > _LATE_MICROSECONDS)
    return int(np.sum(counted.receivers[late]))


def _gap_listener(server: Server) -> Client | None:
    if server.candidate.kind != "backplane":
        return None
    return connect(server.port, [f"/gaps/{channel_name(0)}"], PLAIN)[0]


def _texts(client: Client) -> list[bytes]:
    """Return the texts that have come."""
    texts: list[bytes] = []
    with suppress(BlockingIOError):
        while data := client.sock.recv(65536):
            texts += client.texts(data)
    return texts
