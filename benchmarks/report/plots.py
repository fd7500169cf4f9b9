"""Plots as SVG that stands inside the page: no script, no font and no file of its own."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib import figure as figures
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.harness import histogram
from benchmarks.harness.figures import FIGURES
from benchmarks.harness.tally import SLICES_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness.result import Outcome, Section

__all__ = ["bars", "distribution", "lines", "over_time"]

# Its stubs leave much unknown.
_mpl: Any = matplotlib
_figures: Any = figures

# Text stays text, in the page's own font; ids do not change from one writing to the next.
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "backplane", "font.family": "sans-serif", "font.size": 9}
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#000000",
    "#7f3c8d",
    "#11a579",
    "#999999",
)
"""Told apart by people who see few colours (Okabe and Ito), then by line style."""

_DASHES = ("-", "--", ":")


def distribution(section: Section) -> str:
    """Plot how many deliveries took no longer than what, over all repetitions of each candidate."""
    canvas, axes = _axes("ms, logarithmic", "of all deliveries")
    for number, outcome in enumerate(_with_histogram(section)):
        merged = sum(histogram.decoded(run.histogram) for run in outcome.valid if run.histogram)
        milliseconds, share = histogram.curve(merged)  # type: ignore[arg-type]
        axes.step(
            milliseconds.clip(0.01), 1 - share.clip(0, 0.99999), where="post", label=outcome.name, **_look(number)
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.set_yticks([1, 0.5, 0.1, 0.01, 0.001, 0.0001])
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    axes.yaxis.set_minor_formatter(NullFormatter())
    _plain_ticks(axes.xaxis)
    return _svg(canvas, axes)


def bars(section: Section, figure: str) -> str:
    """Plot one figure of each candidate with the range of its repetitions."""
    found = [(outcome, spread) for outcome in section.outcomes if (spread := outcome.spread(figure))]
    canvas, axes = _axes(f"{FIGURES[figure].title} {FIGURES[figure].unit}", "", height=0.7 + 0.3 * len(found))
    for number, (outcome, spread) in enumerate(found):
        error = [[spread.median - spread.low], [spread.high - spread.median]]
        colour = "#bbbbbb" if outcome.kind == "floor" else "#0072b2" if outcome.kind == "backplane" else "#e69f00"
        axes.barh(number, spread.median, xerr=error, color=colour, ecolor="#444444", height=0.7)
        axes.text(spread.high, number, f" {spread.median:,.{FIGURES[figure].digits}f}", va="center", fontsize=8)
    axes.set_yticks(range(len(found)), [outcome.name for outcome, _ in found])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.grid(visible=False, axis="y")
    return _svg(canvas, axes, legend=False)


def lines(sections: Sequence[Section], setting: str, figure: str) -> str:
    """Plot one figure of each candidate over a setting in which the sections differ."""
    canvas, axes = _axes(setting, f"{FIGURES[figure].title} {FIGURES[figure].unit}")
    names = dict.fromkeys(outcome.name for section in sections for outcome in section.outcomes)
    for number, name in enumerate(names):
        points = sorted(
            (float(section.settings[setting]), spread.median, spread.low, spread.high)
            for section in sections
            for outcome in section.outcomes
            if outcome.name == name and (spread := outcome.spread(figure))
        )
        if len(points) > 1:
            at, median, low, high = zip(*points, strict=True)
            axes.plot(at, median, marker="o", markersize=3, label=name, **_look(number))
            axes.fill_between(at, low, high, alpha=0.15, color=_look(number)["color"])
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    _plain_ticks(axes.xaxis)
    return _svg(canvas, axes)


def over_time(section: Section) -> str:
    """Plot the deliveries of each tenth of a second of the first valid repetition."""
    canvas, axes = _axes("s", "deliveries/s")
    for number, outcome in enumerate(each for each in section.outcomes if each.valid):
        slices = outcome.valid[0].slices
        at = [index / SLICES_PER_SECOND for index in range(len(slices))]
        axes.plot(at, [count * SLICES_PER_SECOND for count in slices], label=outcome.name, **_look(number))
    axes.set_ylim(bottom=0)
    return _svg(canvas, axes)


def _percent(rest: float, _: int) -> str:
    return f"{(1 - rest) * 100:g} %"


def _plain(value: float, _: int) -> str:
    return f"{value:g}"


def _plain_ticks(axis: Any) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def _with_histogram(section: Section) -> list[Outcome]:
    return [outcome for outcome in section.outcomes if any(run.histogram for run in outcome.valid)]


def _axes(across: str, up: str, *, height: float = 3.2) -> tuple[Any, Any]:
    # As wide as a phone at the size of the page's text; wider screens put plots side by side.
    canvas = _figures.Figure(figsize=(4.8, height), layout="constrained")
    axes: Any = canvas.subplots()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return canvas, axes


def _look(number: int) -> dict[str, Any]:
    style = _DASHES[number // len(_COLOURS) % len(_DASHES)]
    return {"color": _COLOURS[number % len(_COLOURS)], "linestyle": style, "linewidth": 1.4}


def _svg(canvas: Any, axes: Any, *, legend: bool = True) -> str:
    if legend and axes.get_legend_handles_labels()[0]:
        canvas.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7.5)
    written = io.StringIO()
    with _mpl.rc_context(_STYLE):
        canvas.savefig(written, format="svg", metadata={"Date": None})
    body = written.getvalue()
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body[body.index("<svg") :])
    )
