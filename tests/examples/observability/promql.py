"""Expressions of Prometheus, taken apart: the metrics they read, and what must have a value while all is well."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from promql_parser import BinaryExpr, Call, Expr, ParenExpr, VectorSelector, parse, walk

from backplane.metrics.table import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["KNOWN", "filled", "metrics_of", "valued_parts"]

_SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("",), "gauge": ("",)}

KNOWN = {metric.name + suffix for metric in METRICS for suffix in _SUFFIXES[metric.kind]} | {
    "backplane_scrape_workers_missing",
    "backplane_worker_up",
}
"""The series that a scrape has: those of the table, and what is known of workers that did not answer."""

_SETS = {"and", "or", "unless"}
_COMPARISON = re.compile(r"\s(==|!=|<=|>=|<|>)\s(?!bool)")  # a matcher of a label has no blanks


def metrics_of(expression: str) -> set[str]:
    """Return the names of the series that an expression reads.

    Raises:
        ValueError: It is not valid.
    """
    names: set[str] = set()

    def visit(part: Expr) -> None:
        if isinstance(part, VectorSelector):
            assert part.name, f"a selector without a name in {expression}"
            names.add(part.name)

    walk(parse(expression), visit)
    return names


def filled(expression: str) -> str:
    """Return an expression of the dashboard with what Grafana would put in place of its variables."""
    return expression.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*")


def valued_parts(expression: str) -> list[str]:
    """Return the parts of an expression that must have a value at any time, also while its alert does not fire.

    Its comparisons return 0 or 1 instead of leaving out what does not hold; of `absent(...)` it is the argument.
    """
    return [_COMPARISON.sub(r" \1 bool ", part.prettify()) for part in _operands(parse(expression))]


def _operands(part: Expr) -> Iterator[Expr]:
    if isinstance(part, BinaryExpr) and str(part.op) in _SETS:
        yield from _operands(part.lhs)
        yield from _operands(part.rhs)
    elif isinstance(part, ParenExpr):
        yield from _operands(part.expr)
    elif isinstance(part, Call) and part.func.name == "absent":
        for argument in part.args:
            yield from _operands(argument)
    else:
        yield part
