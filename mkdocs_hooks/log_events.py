"""Every line that the package can log, found in its syntax trees: logger, level, and message without arguments."""

from __future__ import annotations

import ast
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from mkdocs_hooks.sources import source_files
from mkdocs_hooks.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LogEvent", "events_in", "log_events", "package_events"]

_LEVELS: Final = ("debug", "info", "warning", "error", "exception", "critical")
_ORDER: Final = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")
_OPEN: Final = "set by the caller"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEvent:
    """One call of a logger.

    Attributes:
        logger: Its name.
        level: Its level, or several where the call chooses.
        message: The message before its arguments are put in.
        is_burst: Whether lines that follow within ten seconds are counted and not repeated.
    """

    logger: str
    level: str
    message: str
    is_burst: bool = False


def log_events() -> str:
    """Return every event of the package, grouped by the room that logs it, the gravest first."""
    rooms: dict[str, set[LogEvent]] = defaultdict(set)
    for room, event in package_events():
        rooms[room].add(event)
    return "\n".join(
        f"## `{room}` {{ #{room.replace('.', '-')} }}\n\n{_table(events)}" for room, events in sorted(rooms.items())
    )


def package_events() -> list[tuple[str, LogEvent]]:
    """Return every event of the installed package, each with its room."""
    return [
        (_room(PurePosixPath(name)), event)
        for name, path in source_files().items()
        for event in events_in(path.read_text(encoding="utf-8"), module=_module(PurePosixPath(name)))
    ]


def events_in(source: str, *, module: str) -> list[LogEvent]:
    """Return the events that a module can log.

    A function that only passes on what it is called with is left out: its callers are found by themselves.
    """
    tree = ast.parse(source)
    loggers = dict(_loggers(tree, module))
    found: list[LogEvent] = []
    for function, call in _calls(tree, None):
        found += _events(function, call, loggers)
    return found


def _table(events: set[LogEvent]) -> str:
    rows = sorted(events, key=lambda event: (_gravity(event.level), event.logger, event.message))
    return table(
        ("level", "logger", "message"),
        [(event.level + " *" * event.is_burst, f"`{event.logger}`", _code(event.message)) for event in rows],
    )


def _code(message: str) -> str:
    return f"`` {message} ``" if "`" in message else f"`{message}`"


def _gravity(level: str) -> int:
    return next((place for place, name in enumerate(_ORDER) if name in level), len(_ORDER))


def _room(path: PurePosixPath) -> str:
    parts = path.with_suffix("").parts
    named = parts[:2] if parts[0] == "adapters" else parts[:1] if len(parts) > 1 else ()
    return ".".join(("backplane", *named))


def _module(path: PurePosixPath) -> str:
    parts = path.with_suffix("").parts
    return ".".join(("backplane", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def _loggers(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        match node:
            case (
                ast.Assign(
                    targets=[ast.Name(id=variable)],
                    value=ast.Call(func=ast.Attribute(attr="getLogger") | ast.Name(id="getLogger"), args=[name]),
                )
                | ast.AnnAssign(
                    target=ast.Name(id=variable),
                    value=ast.Call(func=ast.Attribute(attr="getLogger") | ast.Name(id="getLogger"), args=[name]),
                )
            ):
                yield variable, str(name.value) if isinstance(name, ast.Constant) else module
            case _:
                pass


def _calls(node: ast.AST, function: ast.AST | None) -> Iterator[tuple[ast.AST | None, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield function, child
        inner = child if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
        yield from _calls(child, inner)


def _events(function: ast.AST | None, call: ast.Call, loggers: dict[str, str]) -> Iterator[LogEvent]:
    match call:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method), args=[message, *_]) if (
            name in loggers and method in _LEVELS
        ):
            level = "ERROR" if method == "exception" else method.upper()
            for text in _texts(message, function):
                yield LogEvent(logger=loggers[name], level=level, message=text)
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="log"), args=[level_node, message, *_]) if (
            name in loggers
        ):
            for text in _texts(message, function):
                yield LogEvent(logger=loggers[name], level=_level(level_node, function), message=text)
        case ast.Call(func=ast.Attribute(attr="log"), args=[ast.Name(id=name), level_node, message, *_]) if (
            name in loggers
        ):
            for text in _texts(message, function):
                yield LogEvent(logger=loggers[name], level=_level(level_node, function), message=text, is_burst=True)
        case _:
            pass


def _level(node: ast.expr, function: ast.AST | None) -> str:
    match node:
        case ast.Attribute(value=ast.Name(id="logging"), attr=name):
            return name
        case ast.IfExp(body=one, orelse=other):
            return f"{_level(one, function)} or {_level(other, function)}"
        case ast.Name(id=name) if function is not None:
            return " or ".join(_level(value, None) for value in _assigned(function, name)) or _OPEN
        case _:
            return _OPEN


def _texts(node: ast.expr, function: ast.AST | None) -> list[str]:
    """Return the messages that an expression can be."""
    match node:
        case ast.Constant(value=str() as text):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(str(part.value) if isinstance(part, ast.Constant) else "%s" for part in parts)]
        case ast.IfExp(body=one, orelse=other):
            return _texts(one, function) + _texts(other, function)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [a + b for a in _texts(left, function) or ["%s"] for b in _texts(right, function) or ["%s"]]
        case ast.Name(id=name) if function is not None:
            return [text for value in _assigned(function, name) for text in _texts(value, None)]
        case _:
            return []


def _assigned(function: ast.AST, name: str) -> Iterator[ast.expr]:
    """Yield what a function assigns to a variable."""
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                yield value
            case _:
                pass
