"""The command line, from the commands that typer knows."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mkdocs_hooks.docstrings import one_line
from mkdocs_hooks.tables import table

__all__ = ["command_line", "commands"]


def commands() -> dict[str, Any]:
    """Return the commands of `backplane` by name: objects of click's, or of the one that typer brings along."""
    from typer.main import get_command

    from backplane.cli import app

    group: Any = get_command(app)
    return dict(group.commands)


def command_line() -> str:
    """Return every command with its usage, arguments and options."""
    return "\n".join(_section(name, command) for name, command in commands().items())


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join(["backplane", name, *(["[OPTIONS]"] if options else []), *map(_metavar, arguments)])
    parts = [f"## `backplane {name}` {{ #{name} }}", f"```text\n{usage}\n```", _plain(command.help)]
    if arguments:
        rows = [(f"`{_metavar(argument)}`", _plain(argument.help)) for argument in arguments]
        parts.append(table(("argument", "meaning"), rows))
    if options:
        kinds = _kinds(command.callback)
        taken = [(_names(one, kinds.get(one.name, "")), _default(one), _plain(one.help)) for one in options]
        parts.append(table(("option", "default", "meaning"), taken))
    return "\n\n".join(parts) + "\n"


def _metavar(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name.upper())
    if name.startswith("["):
        return name
    name += "..." * (parameter.nargs == -1)
    return name if parameter.required else f"[{name}]"


def _names(option: Any, kind: str) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return names if option.is_flag else f"{names} *{option.metavar or kind}*"


def _default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return escape(option.show_default)
    if option.is_flag or option.default in (None, "", [], ()) or callable(option.default):
        return ""
    return f"`{option.default}`"


def _kinds(callback: Any) -> dict[str, str]:
    """Return what each parameter of a command takes, from its annotation."""
    kinds: dict[str, str] = {}
    for name, hint in get_type_hints(callback).items():
        parts = get_args(hint) or (hint,)
        kinds[name] = "N" if int in parts or float in parts else "PATH" if Path in parts else "TEXT"
    return kinds


def _plain(text: str | None) -> str:
    return one_line(text or "")
