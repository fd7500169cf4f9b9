"""The bare application with one fault planted, so that a test can check whether the harness finds it.

`BENCH_FAULT` names it: `drop`, `double`, `swap` or `delay` (by 50 ms). It affects one delivery: the fourth message
to the first socket that joined.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from benchmarks.servers import bare_asgi

_FAULT = os.environ["BENCH_FAULT"]
_SEQUENCE = "pppppppd"  # 4, as benchmarks.harness.text writes it
_PROBE = "oooo"
_DELAY_SECONDS = 0.05


class _FirstSocket:
    taken = False


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Serve one socket."""
    if scope["type"] == "websocket" and scope["path"] != "/publish" and not _FirstSocket.taken:
        _FirstSocket.taken = True
        send = _with_fault(send)
    await bare_asgi.app(scope, receive, send)


def _with_fault(send: Any) -> Any:
    held: list[Any] = []

    async def faulty(message: Any) -> None:
        text = message.get("text", "")
        if not text or text[12:16] == _PROBE:
            await send(message)
            return
        if text[16:24] == _SEQUENCE:
            await at_fault(message)
            return
        await send(message)
        while held:
            await send(held.pop())

    async def at_fault(message: Any) -> None:
        if _FAULT == "swap":
            held.append(message)
        elif _FAULT == "double":
            await send(message)
            await send(message)
        elif _FAULT == "delay":
            await asyncio.sleep(_DELAY_SECONDS)
            await send(message)
        else:
            assert _FAULT == "drop", _FAULT

    return faulty
