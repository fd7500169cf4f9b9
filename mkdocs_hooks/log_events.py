"""Every event that the package logs, from its list, and every line, found in its syntax trees."""

from __future__ import annotations

import ast
import logging
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from mkdocs_hooks.sources import source_files
from mkdocs_hooks.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LogLine", "lines_in", "log_events", "log_lines", "package_lines"]

_ORDER: Final = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")
_OPEN: Final = "set by the caller"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One call that logs.

    Attributes:
        logger: The name of the logger.
        event: The names of the constants of its event; several where the call chooses, none where its caller does.
        level: Its level, or several where the call chooses.
        message: The message before its fields are put in.
        is_burst: Whether lines that follow five within ten seconds are counted and not repeated.
        is_counted: Whether all within ten seconds can be counted, without the first five.
    """

    logger: str
    event: tuple[str, ...]
    level: str
    message: str
    is_burst: bool = False
    is_counted: bool = False


def log_events() -> str:
    """Return the table of the events."""
    from backplane.journal.events import EVENTS

    return table(
        ("event", "level", "fields", "meaning"),
        [
            (
                f"`{event.name}`",
                logging.getLevelName(event.level),
                ", ".join(f"`{name}`" for name in event.fields),
                event.meaning,
            )
            for event in EVENTS
        ],
    )


def log_lines() -> str:
    """Return every line of the package, grouped by the room that logs it, the gravest first."""
    rooms: dict[str, set[LogLine]] = defaultdict(set)
    for room, line in package_lines():
        rooms[room].add(line)
    return "\n".join(
        f"### `{room}` {{ #{room.replace('.', '-')} }}\n\n{_table(lines)}" for room, lines in sorted(rooms.items())
    )


def package_lines() -> list[tuple[str, LogLine]]:
    """Return every line that the installed package can log, each with its room."""
    return [
        (_room(PurePosixPath(name)), line)
        for name, path in source_files().items()
        for line in lines_in(path.read_text(encoding="utf-8"), module=_module(PurePosixPath(name)))
    ]


def lines_in(source: str, *, module: str) -> list[LogLine]:
    """Return the lines that a module can log.

    A function that only passes on what it is called with is left out: its callers are found by themselves.
    """
    tree = ast.parse(source)
    loggers = dict(_loggers(tree, module))
    found: list[LogLine] = []
    for function, call in _calls(tree, None):
        found += _lines(function, call, loggers)
    return found


def _table(lines: set[LogLine]) -> str:
    rows = sorted(lines, key=lambda line: (_gravity(line.level), line.logger, line.message))
    return table(
        ("level", "event", "logger", "message"),
        [
            (
                line.level + (" †" if line.is_counted else " *" * line.is_burst),
                _names(line.event),
                f"`{line.logger}`",
                _code(line.message),
            )
            for line in rows
        ],
    )


def _names(constants: tuple[str, ...]) -> str:
    return ", ".join(f"`{_event(constant).name}`" for constant in constants)


def _event(constant: str) -> Any:
    """Return an event by the name of its constant."""
    from backplane.journal import events

    return getattr(events, constant)


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


def _lines(function: ast.AST | None, call: ast.Call, loggers: dict[str, str]) -> Iterator[LogLine]:
    match call:
        case ast.Call(
            func=(ast.Name(id="write" | "log") | ast.Attribute(attr="log")) as called,
            args=arguments,
        ) if (found := _parts(called, arguments, loggers)) is not None:
            logger, event, message = found
            constants = _constants(event)
            for text in _texts(message, function):
                yield LogLine(
                    logger=logger,
                    event=constants,
                    level=_level_of(call, constants, function),
                    message=text,
                    is_burst=not (isinstance(called, ast.Name) and called.id == "write"),
                    is_counted=any(keyword.arg == "of_many" for keyword in call.keywords),
                )
        case _:
            pass


def _parts(
    called: ast.expr, arguments: list[ast.expr], loggers: dict[str, str]
) -> tuple[str, ast.expr, ast.expr] | None:
    """Return logger, event and message of a call, `None` where it does not log."""
    match arguments:
        case [ast.Name(id=name), event, message, *_] if name in loggers:
            return loggers[name], event, message
        case [ast.Attribute(attr="_logger"), event, message, *_]:  # of a server, whose lines are passed on
            return "uvicorn.error", event, message
        case _:
            return None


def _constants(node: ast.expr) -> tuple[str, ...]:
    """Return the constants that an event can be; none where it is passed on, or computed."""
    match node:
        case ast.Name(id=name) if name.isupper():
            return (name,)
        case ast.IfExp(body=one, orelse=other):
            return _constants(one) + _constants(other)
        case _:
            return ()


def _level_of(call: ast.Call, constants: tuple[str, ...], function: ast.AST | None) -> str:
    own = " or ".join(dict.fromkeys(logging.getLevelName(int(_event(name).level)) for name in constants)) or _OPEN
    chosen = next((keyword.value for keyword in call.keywords if keyword.arg == "level"), None)
    return own if chosen is None else _level(chosen, function, own)


def _level(node: ast.expr, function: ast.AST | None, own: str) -> str:
    match node:
        case ast.Constant(value=None):
            return own
        case ast.Attribute(value=ast.Name(id="logging"), attr=name):
            return name
        case ast.IfExp(body=one, orelse=other):
            return f"{_level(one, function, own)} or {_level(other, function, own)}"
        case ast.Name(id=name) if function is not None:
            return " or ".join(_level(value, None, own) for value in _assigned(function, name)) or own
        case _:
            return own


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
