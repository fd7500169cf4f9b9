"""What a wrong option is refused with: what it is, and what was probably meant."""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar

from backplane.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["did_you_mean", "refuse_unknown_options"]

_T = TypeVar("_T")

_class_of: Final[dict[str, str]] = {}  # by the option's name


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
