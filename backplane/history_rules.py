"""Which channels have a history, and how much of it is kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backplane.errors import ConfigurationError
from backplane.option_checks import check_number, refuse_unknown_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["History", "HistoryRules"]

_DEFAULT_MESSAGES: Final = 100
_DEFAULT_AGE_SECONDS: Final = 600.0
# Channel names can be chosen by clients: the cache of their rules must not grow without bound.
_MAX_CACHED: Final = 10_000


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


class HistoryRules:
    """The rules of a `Backplane`, by pattern: the first pattern that matches a channel decides.

    Args:
        rules: A rule for each pattern, in which `*` is any run of characters, also none. Every other character is
            itself.

    Raises:
        ConfigurationError: A pattern is no text or empty, or a rule is no `History`.
    """

    def __init__(self, rules: Mapping[str, History]) -> None:
        self._rules: dict[str, History] = {}
        for pattern, rule in rules.items():
            if not (pattern and isinstance(pattern, str)):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigurationError(
                    f"history: a pattern of channels is a text such as 'orders:*', not {pattern!r}"
                )
            if not isinstance(rule, History):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigurationError(f"history: the rule of {pattern!r} must be a History(...), not {rule!r:.100}")
            self._rules[pattern] = rule
        self._compiled = [(pattern, _compiled(pattern), rule) for pattern, rule in self._rules.items()]
        self._cache: dict[str, tuple[str, History] | None] = {}

    def __iter__(self) -> Iterator[tuple[str, History]]:
        """Iterate over the patterns with their rules, in their order."""
        return iter(self._rules.items())

    def __bool__(self) -> bool:
        return bool(self._rules)

    def rule_of(self, channel: str) -> History | None:
        """Return the rule of `channel`, or `None`."""
        match = self._match(channel)
        return None if match is None else match[1]

    def pattern_of(self, channel: str) -> str | None:
        """Return the pattern that decides for `channel`, or `None`."""
        match = self._match(channel)
        return None if match is None else match[0]

    def _match(self, channel: str) -> tuple[str, History] | None:
        try:
            return self._cache[channel]
        except KeyError:
            pass
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        found = next(
            ((pattern, rule) for pattern, compiled, rule in self._compiled if compiled.fullmatch(channel)), None
        )
        self._cache[channel] = found
        return found


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in re.split(r"\*+", pattern)), re.DOTALL)
