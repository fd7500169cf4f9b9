"""The one check of every option that is a time, a size or a count."""

from __future__ import annotations

from math import inf

from backplane.errors import ConfigurationError

__all__ = ["check_number"]


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
