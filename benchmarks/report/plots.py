"""Plots as SVG that stands inside the page or in a file: no script, no font and no style sheet of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

from benchmarks.harness.figures import FIGURES, PERCENTILES
from benchmarks.harness.tally import SLICES_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.harness.candidate import Kind
    from benchmarks.harness.result import Section

__all__ = ["bars", "lines", "over_time", "percentiles"]

# As wide as a phone; wider screens put plots side by side.
_WIDTH: Final = 460
_HEIGHT: Final = 240
_LEFT: Final = 52
_LETTER: Final = 4.9
"""About how wide a letter is at the plots' size of text, to leave room for names."""

_BARS: Final[Mapping[Kind, str]] = {"backplane": "#0072b2", "floor": "#bbbbbb", "competitor": "#e69f00"}
_COLOURS: Final = (
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
"""Distinct with colour blindness too (Okabe and Ito); after the last one the dashes change."""

_DASHES: Final = ("", "5 2", "1 2")
_TICKS: Final = 5
_WIDE: Final = 50
"""Where the highest figure is more times the lowest one, bars are logarithmic: the short ones could not be seen."""

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """One direction of a plot: values from `low` to `high` lie from `start` to `end`."""

    title: str
    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False
    label: Callable[[float], str]

    def at(self, value: float) -> float:
        """Return where a value lies, to a tenth of a unit."""
        low, high, value = (math.log10(each) if self.logarithmic else each for each in (self.low, self.high, value))
        return round(self.start + (value - low) / ((high - low) or 1) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        """The values that get a label: 1, 2 and 5 of each power of ten, or some five at equal distances."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
            found = [each for each in found if self.low <= each <= self.high]
            return found if len(found) <= 2 * _TICKS else found[::3]
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / _TICKS or 1))
        step = next(power * digit for digit in (1, 2, 5, 10) if power * digit * _TICKS >= self.high - self.low)
        return [step * number for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


@dataclass(frozen=True, slots=True)
class _Line:
    """One candidate of a plot; `band` goes along its upper edge and back along the lower one."""

    name: str
    points: Points
    band: Points


def bars(section: Section, figure: str) -> str:
    """Plot one figure of each candidate with the range of its repetitions."""
    found = [(outcome, spread) for outcome in section.outcomes if (spread := outcome.spread(figure))]
    left = round(8 + _LETTER * max(len(outcome.name) for outcome, _ in found))
    numbers = [f"{spread.median:,.{FIGURES[figure].digits}f}" for _, spread in found]
    lowest, highest = min(spread.low for _, spread in found), max(spread.high for _, spread in found)
    logarithmic = 0 < lowest < highest / _WIDE
    across = _Axis(
        title="",
        label=_number,
        low=lowest / 2 if logarithmic else 0,
        high=highest,
        start=left,
        end=_WIDTH - 8 - 6 * max(map(len, numbers)),
        logarithmic=logarithmic,
    )
    boxes: dict[str, list[str]] = {}
    names, ranges, values = list[str](), list[str](), list[str]()
    for number, ((outcome, spread), value) in enumerate(zip(found, numbers, strict=True)):
        top, low, high = 2 + 16 * number, across.at(spread.low), across.at(spread.high)
        box = f"M{left} {top}H{across.at(spread.median):g}v12H{left}z"
        boxes.setdefault(_BARS[outcome.kind], []).append(box)
        names.append(_text(left - 4, top + 9, outcome.name))
        values.append(_text(high + 4, top + 9, value))
        ranges += [f"M{low:g} {top + 6}H{high:g}"] if high > low else []
    height = 2 + 16 * len(found) + 16
    title = f"{FIGURES[figure].title} {FIGURES[figure].unit}".strip()
    return _svg(
        title,
        height,
        [
            *(f'<path fill="{colour}" d="{"".join(paths)}"/>' for colour, paths in boxes.items()),
            _path(ranges, "#444"),
            _anchored("end", names),
            *values,
            _text(left, height - 5, f"{title}, median and range{', logarithmic' * logarithmic}"),
        ],
    )


def lines(sections: Sequence[Section], setting: str, figure: str) -> str:
    """Plot one figure of each candidate over a setting in which the sections differ; empty where none is in two."""
    drawn: list[_Line] = []
    for name in dict.fromkeys(outcome.name for section in sections for outcome in section.outcomes):
        found = sorted(
            (float(section.settings[setting]), spread.median, spread.low, spread.high)
            for section in sections
            for outcome in section.outcomes
            if outcome.name == name and (spread := outcome.spread(figure))
        )
        if len(found) > 1:
            upper = [(at, high) for at, _, _, high in found]
            lower = [(at, low) for at, _, low, _ in reversed(found)]
            drawn.append(_Line(name, [(at, median) for at, median, _, _ in found], upper + lower))
    up = f"{FIGURES[figure].title} {FIGURES[figure].unit}".strip()
    return _plot(drawn, across=setting, up=up, logarithmic_across=True) if drawn else ""


def percentiles(section: Section, measure: str) -> str:
    """Plot the percentiles of a latency of each candidate, each the median over its repetitions."""
    drawn: list[_Line] = []
    for outcome in section.outcomes:
        found = [outcome.spread(f"{measure}_{key}_ms") for key in PERCENTILES]
        points = [(float(at), max(spread.median, 0.01)) for at, spread in enumerate(found) if spread]
        if points:
            drawn.append(_Line(outcome.name, points, []))
    return _plot(
        drawn,
        across="percentile",
        up="ms, logarithmic",
        logarithmic_up=True,
        label=lambda at: PERCENTILES[int(at)] if at == int(at) else "",
    )


def over_time(section: Section) -> str:
    """Plot the deliveries of each tenth of a second of the first valid repetition."""
    drawn = [
        _Line(
            outcome.name,
            [(at / SLICES_PER_SECOND, count * SLICES_PER_SECOND) for at, count in enumerate(outcome.valid[0].slices)],
            [],
        )
        for outcome in section.outcomes
        if outcome.valid and outcome.valid[0].slices
    ]
    return _plot(drawn, across="s", up="deliveries/s")


def _plot(
    drawn: Sequence[_Line],
    *,
    across: str,
    up: str,
    logarithmic_across: bool = False,
    logarithmic_up: bool = False,
    label: Callable[[float], str] | None = None,
) -> str:
    """Return lines between two axes, and below them which is which."""
    points = [point for line in drawn for point in (*line.points, *line.band)]
    highest = max(0.01, *(value for _, value in points))
    x = _Axis(
        title=across,
        low=min(at for at, _ in points),
        high=max(at for at, _ in points),
        start=_LEFT,
        end=_WIDTH - 16,
        logarithmic=logarithmic_across,
        label=label or _number,
    )
    y = _Axis(
        title=up,
        label=_number,
        low=_decade(min(value for _, value in points), math.floor) if logarithmic_up else 0,
        high=_decade(highest, math.ceil) if logarithmic_up else highest * 1.05,
        start=_HEIGHT - 30,
        end=16,
        logarithmic=logarithmic_up,
    )
    parts = _frame(x, y)
    for number, line in enumerate(drawn):
        colour = _COLOURS[number % len(_COLOURS)]
        if line.band:
            parts.append(f'<path fill="{colour}" fill-opacity=".15" d="{_along(x, y, line.band)}z"/>')
        parts.append(_path([_along(x, y, line.points)], colour, _dash(number)))
    for number, line in enumerate(drawn):
        left, top = 8 + number % 2 * _WIDTH // 2, _HEIGHT + 8 + 12 * (number // 2)
        parts.append(_path([f"M{left} {top - 3}h18"], _COLOURS[number % len(_COLOURS)], _dash(number)))
        parts.append(_text(left + 22, top, line.name))
    return _svg(f"{up} over {across}", _HEIGHT + 4 + 12 * ((len(drawn) + 1) // 2), parts)


def _frame(x: _Axis, y: _Axis) -> list[str]:
    """Return the grid, the labels of its lines and the titles of the axes."""
    grid = [f"M{x.at(tick):g} {y.start:g}V{y.end:g}" for tick in x.ticks]
    grid += [f"M{x.start:g} {y.at(tick):g}H{x.end:g}" for tick in y.ticks]
    below = [_text(x.at(tick), y.start + 12, label) for tick in x.ticks if (label := x.label(tick))]
    beside = [_text(x.start - 4, y.at(tick) + 3, y.label(tick)) for tick in y.ticks]
    return [
        _path(grid, "#ddd"),
        _anchored("middle", [*below, _text((x.start + x.end) / 2, y.start + 24, x.title)]),
        _anchored("end", beside),
        _text(4, y.end - 6, y.title),
    ]


def _along(x: _Axis, y: _Axis, points: Points) -> str:
    """Return the path through the points, without those in the middle of a level stretch."""
    places = [(round(x.at(at)), round(y.at(value))) for at, value in points]
    levels = [place[1] for place in places]
    kept = [
        place
        for number, place in enumerate(places)
        if number in (0, len(places) - 1) or len({*levels[number - 1 : number + 2]}) > 1
    ]
    return "M" + " ".join(f"{at} {level}" for at, level in kept)


def _decade(value: float, rounded: Callable[[float], int]) -> float:
    return float(10.0 ** rounded(math.log10(value)))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _dash(number: int) -> str:
    return _DASHES[number // len(_COLOURS) % len(_DASHES)]


def _path(parts: Sequence[str], colour: str, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path fill="none" stroke="{colour}"{dashes} d="{"".join(parts)}"/>'


def _text(x: float, y: float, label: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}">{escape(label)}</text>'


def _anchored(anchor: str, texts: Sequence[str]) -> str:
    return "\n".join([f'<g text-anchor="{anchor}">', *texts, "</g>"])


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    body = "\n".join(part for part in parts if part)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="9" fill="#1a1a1a">\n{body}\n</svg>\n'
    )
