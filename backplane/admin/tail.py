"""The messages of a channel as the live page shows them: few a second, the beginning of each, and what was left out."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from backplane.errors import SlowConsumerError
from backplane.fanout.backlog import Backlog
from backplane.journal.events import HOOK_FAILED
from backplane.journal.place import place_of
from backplane.journal.writing import write
from backplane.message import Gap, Message

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from backplane.core import Backplane
    from backplane.fanout.subscription import Subscription

__all__ = ["MAX_MESSAGES_PER_SECOND", "MAX_SHOWN_BYTES", "Redact", "tail"]

logger: Final = logging.getLogger("backplane.admin.tail")

Redact = "Callable[[Message], str]"

MAX_MESSAGES_PER_SECOND: Final = 50
"""Of one page; the rest is counted."""

MAX_SHOWN_BYTES: Final = 2048
"""Of each message."""

# A page never holds anything up: what it does not take in time is dropped, and counted.
_BACKLOG: Final = Backlog(max_messages=200, max_bytes=1024 * 1024, when_full="drop_oldest")
_COLLECT_SECONDS: Final = 0.2
_HEARTBEAT_SECONDS: Final = 5.0


async def tail(
    backplane: Backplane, channel: str, redact: Callable[[Message], str] | None
) -> AsyncGenerator[tuple[str, Any] | None]:
    """Yield events `messages` with what is published to `channel` from now on, until the backplane drains.

    Each event is what came in 0.2 seconds: `messages`, at most 50 a second, and `not_shown`, how many more there were.
    The first one, `joined`, states that the subscription stands. `authorize` of the backplane is not asked: the right
    to tail is the visitor's.

    Args:
        backplane: Where to subscribe.
        channel: The channel.
        redact: Returns what is shown of a message in place of its data.

    Raises:
        InvalidChannelError, BrokerError: It could not be subscribed to.
    """
    async with backplane.subscribe(channel, backlog=_BACKLOG, exact=True) as subscription:
        yield "joined", {"channel": channel, "at": time.time()}
        budget, dropped = _Budget(), 0
        while (items := await _collect(subscription)) is not None:
            shown = budget.take(items)
            not_shown = len(items) - len(shown) + subscription.dropped - dropped
            dropped = subscription.dropped
            if items:
                yield "messages", {"messages": [_view(item, redact) for item in shown], "not_shown": not_shown}
            else:
                yield None
    yield "ended", {"reason": "this worker ends: connect again"}


async def _collect(subscription: Subscription) -> list[Message | Gap] | None:
    """Return what comes within a moment after the first message; nothing after a silence, `None` at the end."""
    loop, items = asyncio.get_running_loop(), list[Message | Gap]()
    try:
        async with asyncio.timeout(_HEARTBEAT_SECONDS) as deadline:
            while True:
                items.append(await anext(subscription))
                if len(items) == 1:
                    deadline.reschedule(loop.time() + _COLLECT_SECONDS)
                if len(items) % 50 == 0:  # a subscription that has something never suspends
                    await asyncio.sleep(0)
    except TimeoutError:
        return items
    except (StopAsyncIteration, SlowConsumerError):
        return items or None


class _Budget:
    """How many messages may still be shown in this second."""

    def __init__(self) -> None:
        self._left: int = MAX_MESSAGES_PER_SECOND
        self._second: int = 0

    def take(self, items: list[Message | Gap]) -> list[Message | Gap]:
        """Return the newest that may be shown, and every gap."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._left = second, MAX_MESSAGES_PER_SECOND
        shown = list[Message | Gap]()
        for item in reversed(items):
            if isinstance(item, Gap):
                shown.append(item)
            elif self._left > 0:
                self._left -= 1
                shown.append(item)
        return shown[::-1]


def _view(item: Message | Gap, redact: Callable[[Message], str] | None) -> dict[str, Any]:
    if isinstance(item, Gap):
        return {"gap": item.reason}
    text, is_cut = _text_of(item, redact)
    return {
        "text": text,
        "is_cut": is_cut,
        "is_binary": isinstance(item.data, bytes),
        "bytes": item.size_bytes,
        "at": item.published_at,
        "position": None if item.position is None else str(item.position),
        "publisher": None if item.origin is None else item.origin.hex(),
        "excluded": None if item.excluded is None else item.excluded.hex(),
    }


def _text_of(message: Message, redact: Callable[[Message], str] | None) -> tuple[str, bool]:
    """Return what is shown of a message, and whether that is a part."""
    if redact is not None:
        try:
            text = str(redact(message))
        except Exception as error:  # a failure of the application's function must not show what it should hide
            write(
                logger, HOOK_FAILED, "%(hook)s of admin_routes failed: %(error)s", hook="redact", error=place_of(error)
            )
            text = "(redact failed)"
    elif isinstance(message.data, bytes):
        return message.data[: MAX_SHOWN_BYTES // 3].hex(" "), len(message.data) > MAX_SHOWN_BYTES // 3
    else:
        text = message.data
    return text[:MAX_SHOWN_BYTES], len(text) > MAX_SHOWN_BYTES
