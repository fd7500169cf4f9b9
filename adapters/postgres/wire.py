r"""How a message is written into notifications, and read from them.

One PostgreSQL channel carries all channels of the application, because `LISTEN` of thousands of names is quadratic. A
payload of PostgreSQL is text of less than 8,000 bytes, so a message of this package is one notification, or several:

    \1<number> <channel>\n<base64 of the data>     the message, or its last part
    \2<number> <channel>\n<base64 of the data>     a part that others follow
    \3<word>                                       a test of the way by one process, of no interest to others
    \4                                             rows were added to the table of `durable=true`

The number keeps equal messages of one transaction apart, of which PostgreSQL would deliver one. The parts of a message
are in one transaction, so they are delivered together: PostgreSQL orders notifications by commits.

Anything else is a notification of another program, as a trigger sends it: `<channel>\n<text>`.
"""

from __future__ import annotations

import asyncio
from binascii import a2b_base64, b2a_base64
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from backplane.adapters.shared.wanted_channels import WantedChannels

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DOORBELL",
    "MAX_NOTIFICATION_BYTES",
    "NotificationReader",
    "encode_channel",
    "encode_message",
    "statement_of_test",
]

MAX_NOTIFICATION_BYTES: Final = 7_999
"""Largest payload of a notification that PostgreSQL accepts."""

_LAST: Final = "\1"
_PART: Final = "\2"
_TEST: Final = "\3"
DOORBELL: Final = "\4"
"""A notification that announces rows, and holds none: see `schema`."""
# Every character but controls, % and what is not ASCII.
_PLAIN: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

_numbers: Final = count()  # of the process, as two publishers of it can write into one transaction


@lru_cache(maxsize=4096)
def encode_channel(channel: str) -> str:
    """Return a channel as ASCII without controls: the database can have any encoding."""
    return quote(channel, safe=_PLAIN)


def _decode_channel(name: str) -> str:
    return unquote(name, errors="strict")


def statement_of_test(notify: str, word: str) -> str:
    """Return the statement that sends a test.

    Args:
        notify: The PostgreSQL channel, which the options restrict to letters, digits and underscores.
        word: Hexadecimal digits.
    """
    return f"SELECT pg_notify('{notify}', chr({ord(_TEST)}) || '{word}')"


def encode_message(channel: str, payload: bytes) -> list[str]:
    """Return the notifications of a message, in their order."""
    name = encode_channel(channel)
    notification = _notification(_LAST, name, payload)
    if len(notification) <= MAX_NOTIFICATION_BYTES:
        return [notification]
    room = (MAX_NOTIFICATION_BYTES - len(name) - 20) // 4 * 3
    last = (len(payload) - 1) // room * room
    return [
        _notification(_LAST if start == last else _PART, name, payload[start : start + room])
        for start in range(0, len(payload), room)
    ]


def _notification(kind: str, name: str, data: bytes) -> str:
    return f"{kind}{next(_numbers):x} {name}\n{b2a_base64(data, newline=False).decode()}"


class _Unfinished:
    """A message of which parts were received.

    Attributes:
        name: Its channel, as notifications have it.
        parts: What was received; `None` where its channel is not subscribed, and it is only read to its end.
        size: Their length together.
    """

    __slots__ = ("name", "parts", "size")

    def __init__(self, name: str, *, is_wanted: bool) -> None:
        self.name = name
        self.parts: list[str] | None = [] if is_wanted else None
        self.size = 0


class NotificationReader:
    """Joins notifications to messages again, and passes on those of the subscribed channels.

    Args:
        deliver: Called with channel and payload of each.
        gap: Called with a channel and a reason where a message of it cannot be read.
        max_payload_bytes: Largest message, which another process sends.

    Attributes:
        tests_received: The words of the tests that were received.
        test_received: Set with each of them.
        wanted: The channels whose messages are passed on.
        on_rows: Called where rows were added to the table of `durable=true`.
    """

    def __init__(
        self,
        deliver: Callable[[str, bytes], None],
        gap: Callable[[str, str], None],
        max_payload_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self._deliver = deliver
        self._gap = gap
        self._max_text = max_payload_bytes * 4 // 3 + 4
        self.wanted: WantedChannels[str] = WantedChannels(encode_channel, _decode_channel)
        self._unfinished: _Unfinished | None = None
        self.tests_received: set[str] = set()
        self.test_received: asyncio.Event = asyncio.Event()
        self.on_rows: Callable[[], None] = lambda: None

    def read(self, notification: str) -> None:
        """Take the next notification of the PostgreSQL channel."""
        head, _, body = notification.partition("\n")
        kind = head[:1]
        if kind not in (_LAST, _PART):
            if head and "\n" in notification:
                if self.wanted.find(encode_channel(head)) is not None:
                    self._deliver(head, body.encode())
            elif kind == _TEST:
                self.tests_received.add(head[1:])
                self.test_received.set()
            elif kind == DOORBELL:
                self.on_rows()
            return
        name = head.partition(" ")[2]
        if kind == _PART or self._unfinished is not None:
            whole = self._join(kind, name, body)
            if whole is None:
                return
            body = whole
        channel = self.wanted.find(name)
        if channel is None:
            return
        try:
            payload = a2b_base64(body)
        except ValueError:
            self._gap(channel, "a notification is malformed")
            return
        self._deliver(channel, payload)

    def _join(self, kind: str, name: str, body: str) -> str | None:
        """Add a part; return the whole message with its last one, where it is wanted."""
        unfinished = self._unfinished
        if unfinished is not None and unfinished.name != name:
            self._give_up(unfinished, "the rest of a message is missing")
            unfinished = None
        if unfinished is None:
            if kind == _LAST:
                self._unfinished = None
                return body
            unfinished = self._unfinished = _Unfinished(name, is_wanted=self.wanted.find(name) is not None)
        if unfinished.parts is not None:
            unfinished.parts.append(body)
            unfinished.size += len(body)
            if unfinished.size > self._max_text:
                self._give_up(unfinished, "a message is too large")
        if kind == _PART:
            return None
        self._unfinished = None
        return None if unfinished.parts is None else "".join(unfinished.parts)

    def _give_up(self, unfinished: _Unfinished, reason: str) -> None:
        if unfinished.parts is not None:
            unfinished.parts = None
            self._gap(unquote(unfinished.name), reason)
