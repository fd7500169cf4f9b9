"""Names that resemble one that is not there: written otherwise, or with a letter too many."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from heapq import nlargest
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["near_names"]

_MOST: Final = 3
_LEAST_RATIO: Final = 0.75
_MAX_SCANNED: Final = 10_000
# A comparison by letters takes up to a quarter of a microsecond for each pair of letters, one of either name. The event
# loop stands meanwhile, so there are only so many pairs for all names together.
_MAX_PAIRS: Final = 60_000
_MOST_ADDED: Final = 24
_NOT_ALPHANUMERIC: Final = re.compile(r"[\W_]+")


def near_names(name: str, others: Iterable[str]) -> tuple[str, ...]:
    """Return up to three of `others` that resemble `name` most, without the name itself.

    First those that differ in case, blanks or separators alone, or by a part before or after it; then those with few
    other letters. Of very many or very long names only a part is compared by letters.
    """
    plain = _plain(name)
    found: list[tuple[float, str]] = []
    similar: list[str] = []
    pairs = 0
    for other in islice(others, _MAX_SCANNED):
        if other == name or abs(len(other) - len(name)) > _MOST_ADDED:
            continue
        folded = _plain(other)
        if folded == plain:
            found.append((2.0, other))
        elif _is_part(plain, folded):
            found.append((1.0, other))
        elif abs(len(other) - len(name)) <= 3 and pairs + len(other) * len(name) <= _MAX_PAIRS:
            pairs += len(other) * len(name)
            similar.append(other)
    matcher = SequenceMatcher(b=name, autojunk=False)
    for other in similar:
        matcher.set_seq1(other)
        if matcher.quick_ratio() >= _LEAST_RATIO and (ratio := matcher.ratio()) >= _LEAST_RATIO:
            found.append((ratio, other))
    return tuple(other for _, other in nlargest(_MOST, found))


def _plain(name: str) -> str:
    return _NOT_ALPHANUMERIC.sub("", name.casefold())


def _is_part(one: str, other: str) -> bool:
    """Return whether one name is the other with a part before or after it, such as a prefix."""
    short, long = sorted((one, other), key=len)
    return len(short) >= 4 and (long.endswith(short) or long.startswith(short)) and len(long) - len(short) <= 16
