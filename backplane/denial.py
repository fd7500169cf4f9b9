"""What a client reads that is refused before its socket or its stream begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse

from backplane.errors import InvalidChannelError, RefusedError, SubscribeError, TooManyConnectionsError

if TYPE_CHECKING:
    from backplane.errors import BackplaneError

__all__ = ["denial"]


def denial(error: BackplaneError) -> PlainTextResponse:
    """Return the HTTP answer to an error of a join.

    400 for a channel name that is not legal, 403 for what the broker or the application refuses, 429 for one client too
    many, 503 for anything else. A broker's own words are not repeated.
    """
    if isinstance(error, InvalidChannelError):
        return PlainTextResponse(str(error), 400)
    if isinstance(error, SubscribeError):
        return PlainTextResponse("this channel is not allowed", 403)
    if isinstance(error, TooManyConnectionsError):
        return PlainTextResponse(str(error), 429, headers={"Retry-After": "5"})
    if isinstance(error, RefusedError):
        return PlainTextResponse(str(error), 403)
    return PlainTextResponse("not available, try again later", 503)
