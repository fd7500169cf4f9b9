"""Rules of channels by pattern: the first pattern that matches a channel decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

from backplane.channels import RESERVED_PREFIX
from backplane.errors import ConfigurationError
from backplane.patterns import Pattern

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["ChannelRules"]

_RuleT = TypeVar("_RuleT")

# Channel names can be chosen by clients: the cache of their rules must not grow without bound.
_MAX_CACHED: Final = 10_000


class ChannelRules(Generic[_RuleT]):
    """Rules by pattern. The channels of this package itself (`$backplane/`) match none.

    Args:
        option: The option of `Backplane` that has the rules, for errors.
        rule_type: The class of a rule.
        rules: A rule for each pattern, in which `*` is any run of characters, also none. Every other character is
            itself.

    Raises:
        ConfigurationError: A pattern is no text or empty, or a rule is of another class.
    """

    def __init__(self, option: str, rule_type: type[_RuleT], rules: Mapping[str, _RuleT]) -> None:
        self._rules: dict[str, _RuleT] = {}
        for pattern, rule in rules.items():
            if not (pattern and isinstance(pattern, str)):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigurationError(
                    f"{option}: a pattern of channels is a text such as 'orders:*', not {pattern!r}"
                )
            if not isinstance(rule, rule_type):
                raise ConfigurationError(
                    f"{option}: the rule of {pattern!r} must be a {rule_type.__name__}(...), not {rule!r:.100}"
                )
            self._rules[pattern] = rule
        self._compiled = [(Pattern(pattern), rule) for pattern, rule in self._rules.items()]
        self._cache: dict[str, tuple[str, _RuleT] | None] = {}

    def __iter__(self) -> Iterator[tuple[str, _RuleT]]:
        """Iterate over the patterns with their rules, in their order."""
        return iter(self._rules.items())

    def __bool__(self) -> bool:
        return bool(self._rules)

    def rule_of(self, channel: str) -> _RuleT | None:
        """Return the rule of `channel`, or `None`."""
        match = self._match(channel)
        return None if match is None else match[1]

    def pattern_of(self, channel: str) -> str | None:
        """Return the pattern that decides for `channel`, or `None`."""
        match = self._match(channel)
        return None if match is None else match[0]

    def _match(self, channel: str) -> tuple[str, _RuleT] | None:
        try:
            return self._cache[channel]
        except KeyError:
            pass
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        found = None
        if not channel.startswith(RESERVED_PREFIX):
            matches = ((pattern.text, rule) for pattern, rule in self._compiled if pattern.matches(channel))
            found = next(matches, None)
        self._cache[channel] = found
        return found
