"""The reference of metrics, from the table that every exporter reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mkdocs_hooks.tables import table

if TYPE_CHECKING:
    from backplane.metrics.metric import Metric

__all__ = ["metrics"]


def metrics() -> str:
    """Return every metric with its labels, their values, its meaning, and what to alert on."""
    from backplane.metrics.table import SUBJECTS

    head = ("metric", "kind", "labels", "meaning", "alert on")
    return "\n".join(f"## {subject}\n\n{table(head, map(_row, rows))}" for subject, rows in SUBJECTS.items())


def _row(metric: Metric) -> tuple[str, ...]:
    kind = f"{metric.kind}, {metric.unit}" if metric.unit else metric.kind
    return f"`{metric.name}`{{ #{metric.name} }}", kind, _labels(metric), metric.help, metric.alert


def _labels(metric: Metric) -> str:
    """Return the labels with the values that are known beforehand: a worker that is not started has all of them."""
    from backplane import Backplane
    from backplane.metrics.view import view_of

    if metric.name == "backplane_info":
        return ", ".join(f"`{name}`" for name in metric.labels)
    samples = [labels for labels, _ in metric.read(view_of(Backplane("memory://")))]
    return "; ".join(
        f"`{name}`: {', '.join(dict.fromkeys(labels[place] for labels in samples))}"
        for place, name in enumerate(metric.labels)
    )
