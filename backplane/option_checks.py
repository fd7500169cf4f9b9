"""Checks of options: the error names the option, what it must be, and the name that was probably meant."""

from __future__ import annotations

from dataclasses import fields
from difflib import SequenceMatcher, get_close_matches
from functools import wraps
from heapq import nlargest
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any, Final, TypeGuard, TypeVar

from backplane.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["check_number", "did_you_mean", "is_number", "refuse_unknown_options"]

_T = TypeVar("_T")

_class_of: Final[dict[str, str]] = {}  # by the option's name


def check_number(name: str, value: object, *, whole: bool = False, optional: bool = False) -> None:
    """Check that the option `name` is a finite number above 0.

    Args:
        name: Name of the option, as the application writes it.
        value: Its value.
        whole: Whether it must be an `int`.
        optional: Whether `None` is allowed too.

    Raises:
        ConfigurationError: It is not.
    """
    if value is None and optional:
        return
    if is_number(value) and (isinstance(value, int) or not whole) and 0 < value < inf:
        return
    kind = "whole" if whole else "finite"
    raise ConfigurationError(f"{name} must be a {kind} number more than 0{', or None' * optional}, not {value!r}")


def is_number(value: object) -> TypeGuard[float]:
    """Return whether `value` is a number: an `int` or `float`, but neither a `bool` nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # NaN


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint at the most similar known word, ` (did you mean 'redis'?)`, or nothing if none is similar."""
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def most_alike(name: str, others: Iterable[str], most: int) -> list[str]:
    """Return up to `most` of the first thousand of `others`, those first that are most like `name`."""
    return nlargest(most, islice(others, 1_000), key=lambda other: SequenceMatcher(a=name, b=other).ratio())


def refuse_unknown_options(options: type[_T]) -> type[_T]:
    """Decorate a dataclass of keyword options, so that an unknown one raises `ConfigurationError`.

    The error names the option that was probably meant, or the class that has it, and all known ones.
    """
    construct: Callable[..., None] = options.__init__
    known = [field.name for field in fields(options)]  # type: ignore[arg-type]  # a dataclass
    _class_of.update(dict.fromkeys(known, options.__name__))

    @wraps(construct)
    def checked(self: _T, *positional: Any, **given: Any) -> None:
        for name in given:
            if name not in known:
                names = ", ".join(known)
                hint = f" ({_class_of[name]} has)" if name in _class_of else did_you_mean(name, known)
                raise ConfigurationError(f"{options.__name__} has no option {name!r}{hint}; known are {names}")
        construct(self, *positional, **given)

    options.__init__ = checked  # type: ignore[assignment,method-assign]
    return options
