"""The first usable address of a name.

A name can have several addresses, some of which do not answer, and some of which are no primaries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from backplane.adapters.redis.link import RedisLink
from backplane.adapters.shared import connect_race

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

    from backplane.adapters.redis.server_info import Address

__all__ = ["first_usable"]

# After it the next address is tried as well: the delay that RFC 8305 recommends.
_NEXT_ADDRESS_SECONDS: Final = 0.25

_L = TypeVar("_L", bound=RedisLink)


async def first_usable(addresses: Collection[Address], connect: Callable[[Address], Coroutine[Any, Any, _L]]) -> _L:
    """Return the first link that `connect` returns for one of `addresses`, tried in their order; end all others.

    Raises:
        BrokerError: None is usable.
    """

    def end(link: _L) -> None:
        link.end("another address was faster")

    return await connect_race.first_usable(
        addresses, connect, end=end, adapter="redis", next_after_seconds=_NEXT_ADDRESS_SECONDS
    )
