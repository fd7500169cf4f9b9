"""Which channels have a history, and how much of it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backplane.channel_rules import ChannelRules
from backplane.errors import ConfigurationError
from backplane.option_checks import check_number, refuse_unknown_options

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["History", "HistoryRules"]

_DEFAULT_MESSAGES: Final = 100
_DEFAULT_AGE_SECONDS: Final = 600.0


@refuse_unknown_options
@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """How much of a channel is kept, so that a subscriber that was away gets what it missed.

    Every process that publishes to a channel, or subscribes to it, must have the same rule for it.

    Attributes:
        max_messages: How many messages are kept per channel: a subscriber that missed more is notified of a gap. With
            `latest` it is 1. Defaults to 100.
        max_age_seconds: How long a message is kept. Defaults to 600.
        latest: Only the newest message counts, as of a price: a join begins with it, what comes back gets it alone, and
            no gap is ever reported. Defaults to `False`.

    Raises:
        ConfigurationError: An option is not known, or a value is not a number more than 0.
    """

    max_messages: int = _DEFAULT_MESSAGES
    max_age_seconds: float = _DEFAULT_AGE_SECONDS
    latest: bool = False

    def __post_init__(self) -> None:
        check_number("max_messages", self.max_messages, whole=True)
        check_number("max_age_seconds", self.max_age_seconds)
        if self.latest not in (True, False):
            raise ConfigurationError(f"latest must be True or False, not {self.latest!r}")
        if self.latest and self.max_messages not in (1, _DEFAULT_MESSAGES):
            raise ConfigurationError("latest=True keeps one message: leave max_messages out")
        if self.latest:
            object.__setattr__(self, "max_messages", 1)


class HistoryRules(ChannelRules[History]):
    """The histories of a `Backplane`, by pattern.

    Args:
        rules: A rule for each pattern, in which `*` is any run of characters, also none. Every other character is
            itself.

    Raises:
        ConfigurationError: A pattern is no text or empty, or a rule is no `History`.
    """

    def __init__(self, rules: Mapping[str, History]) -> None:
        super().__init__("history", History, rules)
