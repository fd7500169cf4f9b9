"""How much may wait for one subscriber, and what happens when that is exceeded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from backplane.errors import ConfigurationError
from backplane.option_checks import check_number, refuse_unknown_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.message import Message

__all__ = ["TOO_SLOW", "Backlog", "FullPolicy"]

TOO_SLOW: Final = "too slow"
"""Why a client, or a consumer, is ended for which more waits than its backlog allows: counted apart from others."""

FullPolicy = Literal["close", "drop_oldest", "drop_newest", "latest"]
"""What happens when a message does not fit into what may wait for a subscriber.

- `close`: the subscriber is ended: a connection is closed with code 1013, an event stream ends, a subscription raises
  `SlowConsumerError`. It can come back and load again what it shows.
- `drop_oldest`: the oldest waiting messages are dropped until the new one fits.
- `drop_newest`: the new message is dropped.
- `latest`: a new message replaces the waiting one of its channel (or of its key, `latest_by`), whether the bound is
  reached or not; one that still does not fit is treated as with `drop_oldest`.
"""


@refuse_unknown_options
@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What may wait for one subscriber: `Backplane(backlog=Backlog(when_full="drop_oldest"))`.

    Messages wait only where a subscriber takes them more slowly than they are published. The bounds apply to all
    channels of a subscriber together. A value can be shared: make one per kind of subscriber, not one per connection.

    What a join gives back (`since`, `rewind`) can be more than this: it raises the bounds by as much until nothing
    waits, so that it makes no subscriber slow. With `latest` the newest of what is given back replaces the rest where
    it waits.

    Attributes:
        when_full: What happens to a message that does not fit; see `FullPolicy`. Defaults to `close`.
        latest_by: With `latest`, the key of a message: of the messages of one channel the last one of each key
            waits. Called with each message that has to wait; must return something hashable and must not block. If
            it raises, that is logged, and the message replaces no other one. Defaults to one message per channel.
        max_bytes: Most bytes that wait (of text: characters). One message that is larger is taken when nothing else
            waits: it could never be delivered otherwise. Defaults to 1 MiB.
        max_messages: Most messages that wait. Defaults to 1,024.

    Raises:
        ConfigurationError: An option or the policy is not known, a bound is not a whole number more than 0, or
            `latest_by` is given without `latest` or is no function.
    """

    when_full: FullPolicy = "close"
    latest_by: Callable[[Message], object] | None = None
    max_bytes: int = 1024 * 1024
    max_messages: int = 1024

    def __post_init__(self) -> None:
        if self.when_full not in get_args(FullPolicy):
            known = ", ".join(get_args(FullPolicy))
            raise ConfigurationError(f"when_full must be one of {known}, not {self.when_full!r}")
        if self.latest_by is not None and self.when_full != "latest":
            raise ConfigurationError("latest_by needs when_full='latest'")
        if self.latest_by is not None and not callable(self.latest_by):  # pyright: ignore[reportUnnecessaryComparison]
            raise ConfigurationError(f"latest_by must be a function, not {self.latest_by!r:.100}")
        check_number("max_bytes", self.max_bytes, whole=True)
        check_number("max_messages", self.max_messages, whole=True)
