"""Options with their type, default and unit, from the classes that declare them."""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, fields
from enum import Enum
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, Union, get_args, get_origin

from pydantic import SecretStr

from mkdocs_hooks.api import load
from mkdocs_hooks.docstrings import field_docs
from mkdocs_hooks.tables import table

if TYPE_CHECKING:
    from backplane.broadcaster import Options

__all__ = ["Option", "adapter_options", "options", "options_of", "options_of_adapter", "statistics", "unit_of"]

_UNITS: Final = (
    ("max_burst", "messages"),
    ("_seconds", "seconds"),
    ("_bytes", "bytes"),
    ("_per_second", "messages per second"),
    ("messages", "messages"),
    ("max_connections", "connections"),
    ("max_channels", "channels"),
    ("max_running_commands", "commands"),
    ("partitions", "partitions"),
    ("replication_factor", "brokers"),
    ("replicas", "servers"),
    ("db", "number of a database"),
)
# A URL to make an adapter of, where it must hold more than a host; nothing is connected.
_URLS: Final = {"redis+sentinel": "redis+sentinel://localhost/service"}
_NUMBERS: Final = (int, float)
# The meaning of an option may end with its default, which the page shows by itself; one that is derived stays.
_DEFAULT: Final = re.compile(r" Defaults to [^.:]*(?:\.\d+)?\.$")
_NO_DEFAULT: Final = re.compile(r" Defaults to none\.$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option as the pages show it.

    Attributes:
        name: The keyword, or the name in a URL's query.
        type: What it takes.
        default: What holds without it.
        unit: What a number counts; empty where it is none.
        meaning: From its docstring.
    """

    name: str
    type: str
    default: str
    unit: str
    meaning: str


def options(name: str) -> str:
    """Return the options of a class that `backplane` exports, each with a heading of its own."""
    import backplane

    return _sections(options_of(getattr(backplane, name)))


def statistics() -> str:
    """Return every count of `Backplane.statistics()` with its meaning."""
    counted = load("Statistics")
    docs = field_docs(counted)
    rows = [(f"`{field.name}`{{ #{field.name} }}", docs[field.name]) for field in fields(counted)]
    return table(("count", "meaning"), rows)


def adapter_options(scheme: str) -> str:
    """Return the options of the adapter of a URL's scheme as a table; of a variant only those that the other lacks."""
    owner = _options_class(scheme)
    options = options_of_adapter(owner)
    if _is_variant(owner):
        options = [option for option in options if option.name in owner.__annotations__]
    return table(
        ("option", "takes", "default", "meaning"),
        [
            (f"`{option.name}`", option.type + f", {option.unit}" * bool(option.unit), option.default, option.meaning)
            for option in options
        ],
    )


def options_of(owner: type) -> list[Option]:
    """Return the options that a dataclass declares.

    Raises:
        LookupError: One has no docstring, or is a number without a unit.
    """
    hints = _hints(owner)
    docs = field_docs(owner)
    return [
        _option(field.name, hints[field.name], _default(field), docs.get(field.name, ""), owner.__name__)
        for field in fields(owner)
    ]


def options_of_adapter(owner: type[Options]) -> list[Option]:
    """Return the options that the query of an adapter's URL takes: its own first, those of every adapter last.

    Raises:
        LookupError: One has no docstring, or is a number without a unit.
    """
    docs = field_docs(owner)
    found = [
        _option(name, field.annotation, field.default, docs.get(name, ""), owner.__name__)
        for name, field in owner.model_fields.items()
    ]
    return sorted(found, key=lambda option: option.name == "wire_format")


def unit_of(name: str) -> str:
    """Return what the number of an option counts, judged by its name; empty where the name does not show it."""
    return next((unit for part, unit in _UNITS if part in name), "")


def _option(name: str, hint: Any, default: object, meaning: str, owner: str) -> Option:
    unit = unit_of(name) if _is_number(hint) else ""
    if not meaning:
        raise LookupError(f"{owner}.{name} has no docstring")
    if _is_number(hint) and not unit:
        raise LookupError(f"the name of {owner}.{name} does not show its unit: add it to mkdocs_hooks.options")
    return Option(
        name=name,
        type=_type_in_words(hint),
        default=_value_in_words(default, unit),
        unit=unit,
        meaning=(_NO_DEFAULT if default in (None, "") else _DEFAULT).sub("", meaning),
    )


def _sections(options: Iterable[Option]) -> str:
    options = list(options)
    index = table(
        ("option", "takes", "default"),
        [(f"[`{option.name}`](#{option.name})", _taken(option), option.default) for option in options],
    )
    return "\n".join((index, *map(_section, options)))


def _section(option: Option) -> str:
    head = f"### `{option.name}` {{ #{option.name} }}"
    return f"{head}\n\n*{_taken(option)}; default: {option.default}*\n\n{option.meaning}\n"


def _taken(option: Option) -> str:
    return option.type + f", {option.unit}" * bool(option.unit)


def _options_class(scheme: str) -> type[Options]:
    from backplane.broker.registry import broadcaster_from_url

    return broadcaster_from_url(_URLS.get(scheme, f"{scheme}://localhost")).options_class


def _is_variant(owner: type[Options]) -> bool:
    from backplane.broadcaster import Options

    return owner.__base__ is not Options


def _hints(owner: type) -> dict[str, Any]:
    """Return the types of a dataclass' fields; a name that is there for checkers alone is `Any`."""

    class Names(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            return Callable if name == "Callable" else Any

    known = Names(vars(builtins) | vars(sys.modules[owner.__module__]))
    return {field.name: eval(str(field.type), {}, known) for field in fields(owner)}  # noqa: S307  # of our own code


def _default(field: Field[Any]) -> object:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _is_number(hint: Any) -> bool:
    return hint in _NUMBERS or any(part in _NUMBERS for part in _alternatives(hint))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else ()


def _type_in_words(hint: Any) -> str:
    if get_origin(hint) is Callable:
        return "a function"
    if get_origin(hint) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(hint))
    if parts := _alternatives(hint):
        return " or ".join(_type_in_words(part) for part in parts)
    if hint is type(None):
        return "`None`"
    if hint is SecretStr:
        hint = str
    return "anything" if hint is object else f"`{getattr(hint, '__name__', hint)}`"


def _value_in_words(value: object, unit: str) -> str:
    if isinstance(value, Enum):
        value = value.value
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return f"`{value}`"
    if unit == "bytes" and isinstance(value, int):
        for size, name in ((1024 * 1024, "MiB"), (1024, "KiB")):
            if value % size == 0:
                return f"{value // size:,} {name}"
    if isinstance(value, (int, float)):
        return f"{value:,g}" if isinstance(value, float) else f"{value:,}"
    return f"`{value}`"
