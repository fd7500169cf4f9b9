"""What a wrong option is refused with: its name, what it must be, and what was probably meant."""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from functools import wraps
from math import inf
from typing import TYPE_CHECKING, Any, Final, TypeVar

from backplane.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["check_number", "did_you_mean", "refuse_unknown_options"]

_T = TypeVar("_T")

_class_of: Final[dict[str, str]] = {}  # by the option's name


def check_number(name: str, value: object, *, whole: bool = False, optional: bool = False) -> None:
    """Check that the option `name` is a number more than 0 and finite.

    Args:
        name: As the application knows it.
        value: What it was set to.
        whole: Whether it must be an `int`.
        optional: Whether `None` is allowed too.

    Raises:
        ConfigurationError: It is not.
    """
    if value is None and optional:
        return
    if isinstance(value, int if whole else int | float) and not isinstance(value, bool) and 0 < value < inf:
        return
    kind = "whole" if whole else "finite"
    raise ConfigurationError(f"{name} must be a {kind} number more than 0{', or None' * optional}, not {value!r}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a guess at the known word that was meant, ` (did you mean 'redis'?)`; nothing where none is close."""
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def refuse_unknown_options(options: type[_T]) -> type[_T]:
    """Decorate a dataclass of keyword options, so that one it does not know raises `ConfigurationError`.

    The error names what was probably meant, or the class that has it, and all that are known.
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
