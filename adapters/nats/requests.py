"""Requests to a NATS server, each a publish with a reply subject of its own, that await their reply.

All reply subjects of a connection are below one wildcard, so one subscription receives every reply:
https://docs.nats.io/nats-concepts/core-nats/reqreply.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from backplane.adapters.nats.subjects import encode_channel
from backplane.channels import RESERVED_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Reply", "Request", "Requests", "status_of"]

_STATUS_LINE: Final = b"NATS/1.0 "


class Reply(NamedTuple):
    """One message that answers a request.

    Attributes:
        headers: As they were received; empty without any.
        payload: What follows them.
    """

    headers: bytes
    payload: bytes


class Request:
    """A request without its reply.

    Attributes:
        reply_to: The subject of its reply.
        size_bytes: How much of it counts as published and not yet answered.
        future: Ends with every message of the reply.
        parts: The messages of a reply in several that were received.
    """

    __slots__ = ("future", "parts", "reply_to", "size_bytes")

    def __init__(self, reply_to: bytes, size_bytes: int) -> None:
        self.reply_to: bytes = reply_to
        self.size_bytes: int = size_bytes
        self.future: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        self.parts: list[Reply] = []


class Requests:
    """The requests of one connection.

    The reply subjects are below the one of the package's own channels: what permits the delivery probe permits them.

    Args:
        prefix: That of every subject.

    Attributes:
        subject: What receives every reply.
        pending_bytes: What was sent and is not answered.
    """

    def __init__(self, prefix: str) -> None:
        # Random, so that no other connection receives these replies.
        self._below = encode_channel(prefix, f"{RESERVED_PREFIX}reply/{os.urandom(12).hex()}") + b"."
        self._waiting: dict[bytes, Request] = {}
        self._last = 0
        self.subject: bytes = self._below + b"*"
        self.pending_bytes: int = 0

    def open(self, size_bytes: int) -> Request:
        """Return a new request; to be ended by `close`."""
        self._last += 1
        request = Request(self._below + b"%d" % self._last, size_bytes)
        self._waiting[request.reply_to] = request
        self.pending_bytes += size_bytes
        return request

    def close(self, request: Request) -> None:
        """Ignore what is received for `request` from now on."""
        del self._waiting[request.reply_to]
        self.pending_bytes -= request.size_bytes

    def receive(self, subject: bytes, headers: bytes, payload: bytes) -> None:
        """Take a message of a reply; one to a request that is closed is ignored."""
        request = self._waiting.get(subject)
        if request is None or request.future.done():
            return
        request.parts.append(Reply(headers, payload))
        if not _is_followed(headers):
            request.future.set_result(request.parts)

    async def settle(self) -> None:
        """Return when every request that was sent has its reply, or has failed."""
        futures = [request.future for request in self._waiting.values()]
        if futures:
            await asyncio.wait(futures)

    def fail(self, error: Callable[[], Exception]) -> None:
        """Fail every request that has no reply."""
        for request in self._waiting.values():
            if not request.future.done():
                request.future.set_exception(error())
                request.future.exception()  # retrieved here, because the caller may have been cancelled


def status_of(headers: bytes) -> int:
    """Return the status that a reply has instead of a payload; 0 without one."""
    digits = headers[len(_STATUS_LINE) : len(_STATUS_LINE) + 3]
    return int(digits) if headers.startswith(_STATUS_LINE) and digits.isdigit() else 0


def _is_followed(headers: bytes) -> bool:
    """Whether another message of the same reply follows: this one is part of a batch, and not its end.

    The server writes its own headers after those of the publisher, which may contain anything.
    """
    pending = headers.rfind(b"\r\nNats-Num-Pending: ")
    return pending > headers.rfind(b"\r\nNats-Time-Stamp: ") and not headers.startswith(_STATUS_LINE)
