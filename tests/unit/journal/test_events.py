"""`backplane.journal.events`: each event is used, documented, and logged with the fields that it names."""

from __future__ import annotations

import ast
import logging
import re
from functools import cache
from pathlib import Path

import pytest

import backplane
from backplane.journal import events
from backplane.journal.events import EVENTS, Event
from mkdocs_hooks.blocks import fill
from mkdocs_hooks.sources import source_files

CONSTANTS = {name: event for name, event in vars(events).items() if isinstance(event, Event)}
# Fields of any line: what the journal and the writing of a line add, and the keywords of both.
OF_ANY_LINE = {"worker", "error", "suppressed", "window_seconds", "last"}
NO_FIELDS = {"level", "exc_info", "of_many"}
OF_CLIENTS = {"kind", "connection", "client_key"}


@cache
def trees() -> list[tuple[str, ast.Module]]:
    """Return the syntax trees of the package, but for the journal itself."""
    return [
        (name, ast.parse(path.read_text(encoding="utf-8")))
        for name, path in source_files().items()
        if not name.startswith("journal/")
    ]


def test_names_are_unique() -> None:
    """Each name is one event, in the form `part.what_happened`, and each has one constant."""
    assert len({event.name for event in EVENTS}) == len(EVENTS) == len(CONSTANTS)
    assert [event.name for event in EVENTS if not re.fullmatch(r"[a-z]+\.[a-z_]+", event.name)] == []
    assert {event.name for event in CONSTANTS.values()} == {event.name for event in EVENTS}
    assert [name for name, event in CONSTANTS.items() if name != event.name.upper().replace(".", "_")] == []


def test_each_is_used() -> None:
    """Each event is logged somewhere in the package."""
    used = {node.id for _, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert sorted(set(CONSTANTS) - used) == []


def test_each_is_documented() -> None:
    """The page of the events has each, with its level and its fields."""
    page = fill("<!-- generated: log-events -->")
    for event in EVENTS:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{event.name}` |")]
        assert f"| {logging.getLevelName(event.level)} |" in row
        assert all(f"`{name}`" in row for name in event.fields)


def test_nothing_is_logged_without_an_event() -> None:
    """No module calls a logger itself: each line has an event."""
    direct = {"debug", "info", "warning", "error", "exception", "critical"}
    found = [
        f"{name}:{node.lineno}"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in direct
        and isinstance(node.func.value, ast.Name)
        and "log" in node.func.value.id
    ]
    assert found == []


@cache
def passed_fields() -> dict[str, dict[str, set[str]]]:
    """Return for each constant where it is logged, with the names of the fields that are passed."""
    found: dict[str, dict[str, set[str]]] = {}
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                fields = {keyword.arg for keyword in node.keywords if keyword.arg is not None} - NO_FIELDS
                for argument in node.args:
                    if isinstance(argument, ast.Name) and argument.id in CONSTANTS:
                        found.setdefault(argument.id, {})[f"{name}:{node.lineno}"] = fields
    return found


@pytest.mark.parametrize("event", CONSTANTS)
def test_fields_are_those_of_the_event(event: str) -> None:
    """Each call that logs an event passes no field that the event does not name."""
    known = {*CONSTANTS[event].fields, *OF_ANY_LINE}
    unknown = {place: fields - known for place, fields in passed_fields().get(event, {}).items() if fields - known}
    assert unknown == {}


def test_what_adapters_log_is_kept() -> None:
    """Each event that an adapter logs is of a kind that the worker keeps."""
    of_adapters = {
        node.id
        for name, tree in trees()
        if name.startswith("adapters/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id in CONSTANTS
    }
    assert len(of_adapters) > 10
    assert sorted(name for name in of_adapters if CONSTANTS[name].kept is None) == []


def test_fields_fill_the_sentences() -> None:
    """Each field in the sentence of a line is passed with it, by name, or names its client."""
    for name, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            wanted = {field for text in texts for field in re.findall(r"%\((\w+)\)", text)}
            if not wanted:
                continue
            passed = {keyword.arg for keyword in node.keywords}
            assert wanted - passed <= OF_CLIENTS, f"{name}:{node.lineno}: {sorted(wanted - passed)}"


def test_package_is_found() -> None:
    """The tests above look at the package that is installed, adapters included."""
    names = source_files()
    assert any(name.startswith("adapters/redis/") for name in names)
    assert len(names) > 300
    assert Path(backplane.__file__).exists()
