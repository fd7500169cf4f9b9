"""The errors, as a tree and one by one, from their docstrings.

The docstring of an error states its meaning, what is certain about the message where there is one, and what to do.
"""

from __future__ import annotations

from mkdocs_hooks.docstrings import parse

__all__ = ["error_classes", "error_tree", "errors"]


def error_classes() -> list[type[Exception]]:
    """Return every error of the package, each after its base, related ones together."""
    from backplane import BackplaneError

    return _below(BackplaneError)


def error_tree() -> str:
    """Return the tree of errors as a nested list."""
    return "\n".join(
        f"{'    ' * _depth(error)}- [`{error.__name__}`](#{error.__name__})"
        + (f" (also a `{', '.join(also)}`)" if (also := _builtin_bases(error)) else "")
        for error in error_classes()
    )


def errors() -> str:
    """Return every error with its docstring and its attributes."""
    return "\n".join(_section(error) for error in error_classes())


def _section(error: type[Exception]) -> str:
    docs = parse(error.__doc__ or "")
    parts = [f"### `{error.__name__}` {{ #{error.__name__} }}", docs.text]
    parts += [f"- `{name}`: {meaning}" for name, meaning in docs.attributes.items()]
    return "\n\n".join(parts) + "\n"


def _below(error: type[Exception]) -> list[type[Exception]]:
    # A subclass that another module keeps for itself is no part of the public tree.
    found = [cls for cls in error.__subclasses__() if cls.__module__ == error.__module__]
    return [error, *(cls for subclass in found for cls in _below(subclass))]


def _depth(error: type[Exception]) -> int:
    return sum(cls.__module__.startswith("backplane") for cls in error.__mro__) - 1


def _builtin_bases(error: type[Exception]) -> list[str]:
    return [base.__name__ for base in error.__bases__ if base.__module__ == "builtins" and base is not Exception]
