"""The first usable address of a name.

A name can have several addresses, some of which do not answer, and some of which are no primaries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from backplane.adapters.redis.errors import unavailable
from backplane.adapters.redis.link import RedisLink
from backplane.adapters.shared.connect_race import NoneConnectedError, first_connected
from backplane.adapters.shared.error_chain import reason_of
from backplane.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Sequence

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

    try:
        return await first_connected(
            addresses, connect, end=end, failures=(BrokerError,), next_after_seconds=_NEXT_ADDRESS_SECONDS
        )
    except NoneConnectedError as error:
        failures = [failure for failure in error.failures if isinstance(failure, BrokerError)]
    raise _combined(failures)  # here, because a failure that is raised as it is keeps its own cause


def _combined(failures: Sequence[BrokerError]) -> BrokerError:
    """Return one error for several addresses: the first that a repetition does not help against, else all in one."""
    if not failures:
        return unavailable("the name has no address")
    final = [failure for failure in failures if not failure.retriable]
    if final or len(failures) == 1:
        return (final or failures)[0]
    return unavailable("; ".join(map(reason_of, failures)))
