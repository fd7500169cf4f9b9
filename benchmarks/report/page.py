"""One HTML page of a result: it needs no network, fits a phone, and prints."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness.figures import FIGURES
from benchmarks.report import plots
from benchmarks.report.table import NO_VALID_RUN, cell, faults, ratio, valid_runs, why
from benchmarks.scenarios.catalog import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from benchmarks.harness.result import Outcome, Report, Section

__all__ = ["PLOTTED", "write_page"]

_CSS = """
:root { color-scheme: light; font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff }
body { max-width: 76rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.6rem }
h2 { font-size: 1.15rem; margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem }
p, li { max-width: 48rem }
.quiet { color: #555; font-size: .85rem }
.wrong { color: #b00020 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th { vertical-align: bottom }
th:first-child, td:first-child, td:last-child { text-align: left }
tr.floor { color: #555 }
tr.invalid { text-decoration: line-through }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 23rem), 1fr)); gap: 1rem }
figure { margin: 0; max-width: 36rem; break-inside: avoid }
figcaption { font-weight: 600; font-size: .9rem }
svg { width: 100%; height: auto }
@media print {
  body { max-width: none; padding: 0 }
  .wide { overflow: visible }
  table { font-size: 7.5pt }
  .plots { grid-template-columns: 1fr 1fr }
  h2 { break-after: avoid }
  tr { break-inside: avoid }
}
"""

_METHOD = """
<p>Each figure is the median of its repetitions, ± half of their range. Candidates take turns, and a ratio compares runs
of the same turn. Server, clients and publishers are processes of their own on one machine, joined by real sockets.
Messages are sent at their time whether the server keeps up or not, and latency counts from when a message
<em>should</em> have been sent. <em>To last socket</em> is when the last of all sockets had a message. Every delivery is
checked for loss, doubling and order. A floor is the least that one write for each message and socket costs: the
kernel's <code>send</code> from C, a bare event loop, a bare ASGI application; only what joins messages can be below it.
A run whose own clients were saturated, or whose publisher did not keep its rate, is left out of all figures and counted
under <em>valid runs</em>.</p>
"""

PLOTTED: Final[dict[str, tuple[str, ...]]] = {
    "fanout": ("last_p99_ms", "cpu_us_per_delivery"),
    "saturation": ("cpu_us_per_delivery", "deliveries_per_second"),
    "channels": ("cpu_us_per_delivery",),
    "memory": ("kib_per_connection",),
    "idle": ("idle_cpu_percent",),
    "slow": ("last_p99_ms",),
    "churn": ("cpu_us_per_join",),
    "storm": ("all_back_ms",),
    "failover": ("all_back_ms",),
    "restart": ("all_back_ms",),
    "sdk": ("json_times", "protobuf_times", "paced_json_times", "paced_protobuf_times"),
    "history": ("publish_times", "broker_times", "receive_extra_us", "storm_ms", "repair_ms", "repair_missed_stall_ms"),
    "presence": ("presence_extra_percent", "present_watched_max_ms", "left_seconds"),
    "publishes": ("publishes_per_second_1", "publishes_per_second_8", "cpu_us_per_publish_1", "cpu_us_per_publish_8"),
}
_OVER_TIME = ("failover", "restart")
_PERCENTILES = {"fanout": "latency", "channels": "latency", "slow": "latency", "storm": "connect"}


def write_page(report: Report, path: Path) -> Path:
    """Write the page and return where it is."""
    sections = "".join(_section(section) for section in report.sections)
    body = f"<h1>Benchmarks of backplane</h1>{_machine(report.machine)}{_METHOD}{_overview(report)}{sections}"
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Benchmarks of backplane</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_CSS}</style></head>'
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}<body>{body}</body></html>\n")
    return path


def _machine(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    commit = f"{machine['commit'][:12]}{' and changes' if machine['dirty'] else ''}"
    facts = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; "
        f"{machine['python']}; {versions}; commit {commit}; {machine['when']}; load before {machine['load_before']}"
    )
    return f'<p class="quiet">{escape(facts)}<br><code>{escape(machine["command"])}</code></p>'


def _overview(report: Report) -> str:
    """Plot what needs several sections: latency over rate, deliveries over sockets and workers."""
    wanted = (
        ("fanout", "rate", "last_p99_ms"),
        ("saturation", "connections", "deliveries_per_second"),
        ("saturation", "workers", "deliveries_per_second"),
    )
    found: list[str] = []
    for scenario, setting, figure in wanted:
        for alike in _groups(report, scenario, setting):
            caption = f"{scenario}: {FIGURES[figure].title} over {setting}"
            if plot := plots.lines(alike, setting, figure):
                found.append(_figure(caption, plot))
    return f'<div class="plots">{"".join(found)}</div>' if found else ""


def _groups(report: Report, scenario: str, setting: str) -> Iterator[list[Section]]:
    """Yield sections that differ in `setting` and in nothing else but how often they were repeated."""
    groups: dict[str, list[Section]] = {}
    for section in report.sections:
        if section.scenario == scenario:
            rest = {key: value for key, value in section.settings.items() if key not in (setting, "repetitions")}
            groups.setdefault(repr(sorted(rest.items())), []).append(section)
    yield from (group for group in groups.values() if len({each.settings[setting] for each in group}) > 1)


def _section(section: Section) -> str:
    found = [_figure(f"{FIGURES[name].title}", plots.bars(section, name)) for name in _shown(section)]
    measure = _PERCENTILES.get(section.scenario)
    if measure and any(each.spread(f"{measure}_p50_ms") for each in section.outcomes):
        found.append(_figure(f"{measure.capitalize()} by percentile", plots.percentiles(section, measure)))
    if section.scenario in _OVER_TIME and any(run.slices for each in section.outcomes for run in each.valid[:1]):
        found.append(_figure("Deliveries over time", plots.over_time(section)))
    head = f"<h2>{escape(section.title)}</h2>{_machine(section.machine) if section.machine else ''}"
    return f"{head}{_table(section)}{_remarks(section)}<div class='plots'>{''.join(found)}</div>"


def _shown(section: Section) -> list[str]:
    return [name for name in PLOTTED[section.scenario] if any(each.spread(name) for each in section.outcomes)]


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"


def _table(section: Section) -> str:
    columns = SCENARIOS[section.scenario].columns
    titles = [f"{FIGURES[name].title} {FIGURES[name].unit}" for name in columns]
    reference = section.reference
    heads = ["candidate", *titles, f"x {reference.name if reference else ''}", "valid runs", "faults"]
    rows = "".join(_row(section, outcome) for outcome in section.outcomes)
    head = "".join(f"<th>{escape(title)}</th>" for title in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(section: Section, outcome: Outcome) -> str:
    columns = SCENARIOS[section.scenario].columns
    if outcome.failed:
        return (
            f'<tr><td>{escape(outcome.name)}</td><td class="wrong" colspan="{len(columns) + 3}">did not run</td></tr>'
        )
    cells = [cell(name, outcome.spread(name)) for name in columns]
    cells += [ratio(section, outcome), valid_runs(outcome), faults(section, outcome)]
    values = "".join(f"<td>{escape(value)}</td>" for value in cells)
    kind = f"{outcome.kind}{'' if outcome.valid else ' invalid'}"
    return f'<tr class="{kind}"><td>{escape(outcome.name)}</td>{values}</tr>'


def _remarks(section: Section) -> str:
    wrong = [(each.name, f"did not run: {why(each.failed)}") for each in section.outcomes if each.failed]
    wrong += [("all", NO_VALID_RUN)] if section.reference is None else []
    wrong += [(each.name, f"invalid: {reason}") for each in section.outcomes for reason in each.invalid]
    notes = [(each.name, note) for each in section.outcomes for run in each.runs for note in run.notes]
    items = [f'<li class="wrong">{escape(f"{name}: {reason}")}</li>' for name, reason in wrong]
    items += [f"<li>{escape(f'{name}: {note}')}</li>" for name, note in list(dict.fromkeys(notes))[:20]]
    return f'<ul class="quiet">{"".join(items)}</ul>' if items else ""
