"""What `backplane doctor` checks of the broker: the way there and back, and what its configuration can do to links."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from backplane.broadcaster import SupportsInspect
from backplane.broker.registry import broadcaster_from_url
from backplane.cli.diagnosis import diagnose, linked
from backplane.errors import BrokerError
from backplane.findings import Finding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

__all__ = ["inspect_broker", "inspect_configuration"]

_MESSAGES: Final = 20
_INSPECT_SECONDS: Final = 5.0
_SLOW_SECONDS: Final = 0.05


async def inspect_broker(url: str, on_progress: Callable[[str], None]) -> AsyncIterator[Finding]:
    """Yield whether the broker can be used, and how long a message takes there and back.

    Where the link opens and messages do not return, what the adapter finds at the broker is yielded: it can be why.
    """
    diagnosis = await diagnose(url, messages=_MESSAGES, on_progress=on_progress)
    if diagnosis.problem is not None:
        text, _, cure = diagnosis.problem.partition("; ")
        yield Finding(check="broker", level="error", text=text, cure=cure)
        if diagnosis.connect_seconds is not None:
            for finding in await inspect_configuration(url, {}):
                if finding.level in ("warning", "error"):
                    yield finding
        return
    yield Finding(
        check="broker", level="ok", text=f"{diagnosis.broker or 'the broker'} is connected, and returns messages"
    )
    median, slow = (diagnosis.round_trip_percentile(percent) for percent in (50, 99))
    text = f"a message returns within {median * 1000:.3g} ms, 99 of 100 within {slow * 1000:.3g} ms"
    if median > _SLOW_SECONDS:
        cure = "each message takes this way: run the broker closer to the workers"
        yield Finding(check="round_trip", level="warning", text=text, cure=cure)
    else:
        yield Finding(check="round_trip", level="ok", text=text)


async def inspect_configuration(url: str, subscribers: Mapping[str, int]) -> list[Finding]:
    """Return what the adapter finds in the configuration of the broker; nothing where it cannot look for anything.

    Args:
        url: The broker.
        subscribers: How many workers should have subscribed to a channel.
    """
    broadcaster = broadcaster_from_url(url)
    if not isinstance(broadcaster, SupportsInspect):
        return []
    try:
        async with asyncio.timeout(_INSPECT_SECONDS), linked(broadcaster):
            return await broadcaster.inspect(subscribers)
    except TimeoutError:
        text = f"the broker did not state its configuration within {_INSPECT_SECONDS:g} s"
    except BrokerError as error:
        text = f"the configuration of the broker could not be read: {error}"
    return [Finding(check="configuration", level="skipped", text=text)]
