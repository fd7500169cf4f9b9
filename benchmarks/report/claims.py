"""What the documents state about speed, made from the committed results: `python -m benchmarks claims` rewrites it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness.candidate import HANDED_OVER, ROOT
from benchmarks.harness.figures import FIGURES
from benchmarks.harness.result import Report
from benchmarks.report import plots
from benchmarks.scenarios import presence

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from benchmarks.harness.result import Outcome, Section

__all__ = [
    "DOCS",
    "PAGE",
    "README",
    "RESULTS",
    "ClaimsError",
    "claims",
    "documented",
    "newest",
    "plot",
    "rewrite",
    "short_claims",
    "written_claims",
]

README: Final = ROOT / "README.md"
"""Has the short form: three rows."""
PAGE: Final = ROOT / "benchmarks" / "README.md"
"""Has every row, and the plot."""
DOCS: Final = ROOT / "docs"
"""Has the table of a scenario where a page has its marks."""
RESULTS: Final = ROOT / "benchmarks" / "results"

_DOCUMENTED: Final = re.compile(r"^(<!-- claims (\w+) -->\n)(.*?)(^<!-- end -->)", re.DOTALL | re.MULTILINE)
_BLOCK: Final = re.compile(r"^(<!-- claims -->\n)(.*?)(^<!-- end -->)", re.DOTALL | re.MULTILINE)
_RELEASE: Final = re.compile(r"\d+(\.\d+)*")
_CPU: Final = "cpu_us_per_delivery"
_LAST: Final = "last_p99_ms"
_OURS: Final = ("backplane redis", "backplane redis lane")
_COMPETITOR: Final = "encode/broadcaster"
_SHORT: Final = ("backplane redis lane", "backplane redis", _COMPETITOR)
# The package index shows the README without the repository around it.
_LINK: Final = "https://github.com/fastapi-backplane/backplane/blob/main/benchmarks/README.md"
_NOTHING: Final = "\N{EN DASH}"


class ClaimsError(Exception):
    """What is to be claimed is not in the result, or has no place in a document; the message names it."""


def newest(folder: Path = RESULTS) -> Path | None:
    """Return the result of the newest release, `RELEASE.json`; `None` where there is none yet."""
    found = [path for path in folder.glob("*.json") if _RELEASE.fullmatch(path.stem)]
    return max(found, key=lambda path: [int(part) for part in path.stem.split(".")], default=None)


def claims(result: Path | None) -> str:
    """Return the block of `PAGE`: a table of all candidates, the plot, and where they are from; empty without a result.

    Raises:
        ClaimsError: The result has no saturation and no fan-out of backplane on Redis with one worker.
    """
    if result is None:
        return ""
    report = Report.load(result)
    saturation, fanout = _section(report, "saturation", result), _section(report, "fanout", result)
    return "\n".join(
        [
            *_table(saturation, fanout),
            "",
            f"![{FIGURES[_CPU].title}]({_relative(result.with_suffix('.svg'))})",
            "",
            *_origin(report, result, saturation),
            *_beside_stalled(report),
            *_history(report),
            *_presence(report),
            *_memory(report),
            *_idle(report),
            "",
        ]
    )


def short_claims(result: Path | None) -> str:
    """Return the block of `README`: backplane with and without the direct lane, beside one competitor.

    Raises:
        ClaimsError: As `claims` does.
    """
    if result is None:
        return ""
    report = Report.load(result)
    saturation, fanout = _section(report, "saturation", result), _section(report, "fanout", result)
    settings = saturation.settings
    lines = [
        *_table(saturation, fanout, _SHORT),
        "",
        *([beside] if (beside := " ".join([*_resumed(report), *_present(report)])) else []),
        f"One worker, {settings['connections']:,} sockets, {settings['payload']} B, on {report.machine['cores']} cores "
        f"that server, clients and broker share; medians of {settings['repetitions']} turns. "
        f"Ratios carry over to another machine, milliseconds do not. [All figures, floors and the method]({_LINK}).",
        "",
    ]
    return "\n".join(lines)


def plot(result: Path) -> str:
    """Return the plot that `PAGE` shows, as SVG."""
    return plots.bars(_section(Report.load(result), "saturation", result), _CPU)


def written_claims(readme: Path = README) -> str:
    """Return the block that stands in a document.

    Raises:
        ClaimsError: Its marks are not there, or more than once.
    """
    found = _BLOCK.findall(readme.read_text(encoding="utf-8"))
    if len(found) != 1:
        raise ClaimsError(
            f"{readme.name} has {len(found)} places for claims: write <!-- claims --> and <!-- end --> on lines of "
            "their own once, where they are to stand"
        )
    return str(found[0][1])


def documented(text: str, result: Path | None) -> str:
    """Return a page with the table of one scenario in each place from `<!-- claims SCENARIO -->` to `<!-- end -->`.

    Raises:
        KeyError: There is no table of such a scenario.
    """
    report = Report(machine={}) if result is None else Report.load(result)

    def block(marks: re.Match[str]) -> str:
        lines = [f"{line}\n" for line in _TABLES[marks[2]](report)[1:]]  # without the blank line before it
        return "".join((marks[1], *lines, marks[4]))

    return _DOCUMENTED.sub(block, text)


def rewrite(result: Path | None, readme: Path = README, page: Path = PAGE, docs: Path = DOCS) -> str:
    """Write the blocks into all documents, and the plot beside the result; returns what was done, as a sentence.

    Raises:
        ClaimsError: As `claims` and `written_claims` do; nothing is written then.
    """
    written_claims(readme)
    written_claims(page)
    blocks = {readme: short_claims(result), page: claims(result)}
    for each in docs.rglob("*.md"):
        text = each.read_text(encoding="utf-8")
        if (new := documented(text, result)) != text:
            each.write_text(new, encoding="utf-8")
    if result is not None:
        result.with_suffix(".svg").write_text(plot(result), encoding="utf-8")
    for document, block in blocks.items():
        _write(document, block)
    return f"the documents have the claims of {_relative(result)}" if result else "the documents claim nothing"


def _write(document: Path, block: str) -> None:
    text = document.read_text(encoding="utf-8")
    document.write_text(_BLOCK.sub(lambda marks: f"{marks[1]}{block}{marks[3]}", text), encoding="utf-8")


def _section(report: Report, scenario: str, result: Path) -> Section:
    """Return the section with the most candidates that has backplane on Redis with one worker."""
    fit = [
        section
        for section in report.sections
        if section.scenario == scenario
        and section.settings["workers"] == 1
        and all(_candidate(section, name) for name in _OURS)
    ]
    if not fit:
        raise ClaimsError(f"{result.name} has no valid {scenario} of {' and '.join(_OURS)} with one worker")
    return max(fit, key=lambda section: len([each for each in section.outcomes if each.valid]))


def _candidate(section: Section, name: str) -> Outcome | None:
    return next((each for each in section.outcomes if each.name == name and each.valid), None)


def _table(saturation: Section, fanout: Section, names: Collection[str] = ()) -> list[str]:
    """Return a row for each candidate of the saturation, with ratios to the lowest floor and to one competitor.

    With `names` only these, in their order, and no ratio to the floor.
    """
    floor = next((each for each in saturation.outcomes if each.kind == "floor" and each.valid and not names), None)
    references = [each for each in (floor, _candidate(saturation, _COMPETITOR)) if each]
    settings = fanout.settings
    heads = [
        "",
        FIGURES[_CPU].title,
        *(f"x {each.name}" for each in references),
        f"p99 to the last of {settings['connections']:,} sockets at {settings['rate']:g}/s",
    ]
    candidates = [
        each
        for kind in ("backplane", "floor", "competitor")
        for each in saturation.outcomes
        if each.kind == kind and each.valid and (kind != "backplane" or each.name in _OURS)
    ]
    if names:
        candidates = [each for name in names for each in candidates if each.name == name]
    rows = [
        [
            each.name,
            _cell(each, _CPU),
            *(_ratio(each, reference) for reference in references),
            _cell(_candidate(fanout, each.name), _LAST),
        ]
        for each in candidates
    ]
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---", *["--:"] * (len(heads) - 1)], *rows)]


def _cell(outcome: Outcome | None, figure: str) -> str:
    spread = outcome.spread(figure) if outcome else None
    return f"{spread.median:,.{FIGURES[figure].digits}f} {FIGURES[figure].unit}".strip() if spread else _NOTHING


def _ratio(outcome: Outcome, reference: Outcome) -> str:
    spread = outcome.ratio(_CPU, reference) if outcome is not reference else None
    return f"{spread.median:.2f}" if spread else _NOTHING


def _origin(report: Report, result: Path, saturation: Section) -> list[str]:
    """Return where the figures are from, and what was left out of them."""
    settings = saturation.settings
    page = result.with_suffix(".html")
    lines = [
        f"One worker on {settings['loop']}, {settings['connections']:,} sockets, {settings['payload']} B, on "
        f"{_machine(report.machine)}; medians of {settings['repetitions']} turns "
        f"([all figures]({_relative(result)}){f', [as a page]({_relative(page)})' if page.exists() else ''}).",
        "Server, clients and broker share these cores: ratios carry over to another machine, milliseconds do not.",
        "Messages that arrive together leave the direct lane in one write; the floors write each one by itself.",
    ]
    left_out = [
        f"{each.name} ({'did not run' if each.failed else 'no valid run'})"
        for each in saturation.outcomes
        if not each.valid
    ]
    return [*lines, *([f"Not in it: {', '.join(left_out)}."] if left_out else [])]


def _machine(machine: Mapping[str, Any]) -> str:
    """Return what was measured, and on what."""
    commit = f"`{machine['commit'][:7]}`{' and changes' if machine['dirty'] else ''}"
    return (
        f"{machine['cores']} cores of {machine['processor']}, {machine['python']}, {machine['when'][:10]}, commit "
        f"{commit}"
    )


def _apart(section: Section) -> str:
    """Return where a section was measured, if not as the rest was."""
    return f", on {_machine(section.machine)}" if section.machine else ""


def _beside_stalled(report: Report) -> list[str]:
    """Return what sockets that stop reading cost the others, of the section with the most of them."""
    fit = [
        each for each in report.sections if each.scenario == "slow" and all(_candidate(each, name) for name in _OURS)
    ]
    if not fit:
        return []
    section = max(fit, key=lambda each: int(each.settings["stalled"]))
    settings = section.settings
    plain, lane = (_cell(_candidate(section, name), "times_alone") for name in _OURS)
    return [
        f"Where {settings['stalled']} of {settings['connections'] + settings['stalled']} sockets stop reading, at "
        f"{settings['rate']:g} messages of {settings['payload']:,} B per second, the p99 of the others is {plain} "
        f"times what it is without those, on the direct lane {lane} times (medians of {settings['repetitions']} turns "
        f"of {settings['seconds']:g} s)."
    ]


def _history(report: Report) -> list[str]:
    """Return the table of what a history costs on each adapter, and what it does for clients that come back."""
    measured = _with_history(report)
    if not measured:
        return []
    settings = measured[0][0].settings
    heads = [
        "",
        "publisher CPU",
        "broker CPU",
        "time a publish",
        "receiver CPU, more",
        f"{settings['connections']:,} clients back after",
        "without history",
        "reads",
        f"{settings['repaired']:,} channels repaired in",
        "longest stall, of it collection",
    ]
    rows = [
        [
            each.name,
            *(_times(each, figure) for figure in ("publish_times", "broker_times", "wall_times")),
            *(_cell(each, figure) for figure in ("receive_extra_us", "storm_ms", "storm_plain_ms", "storm_reads")),
            _cell(each, "repair_missed_ms"),
            f"{_cell(each, 'repair_missed_stall_ms')}, {_cell(each, 'repair_missed_gc_ms')}",
        ]
        for _, each in measured
    ]
    return [
        "",
        "What a history costs: a kept channel beside a plain one, of "
        f"{settings['payload']} B; {settings['connections']:,} clients that come back at once to "
        f"{settings['channels']} rooms, each with 20 messages missed; {settings['repaired']:,} channels that have "
        f"missed three messages each while the link was cut; medians of {settings['repetitions']} turns"
        f"{_apart(measured[0][0])}.",
        "",
        _row(heads),
        _row(["---", *["--:"] * (len(heads) - 1)]),
        *map(_row, rows),
    ]


def _resumed(report: Report) -> list[str]:
    """Return one sentence on the clients that come back, on Redis."""
    for section, each in _with_history(report):
        if each.name == _OURS[0]:
            settings = section.settings
            return [
                f"{settings['connections']:,} clients that come back at once to {settings['channels']} rooms with a "
                f"history, and get the 20 messages that each has missed, cost Redis {_cell(each, 'storm_reads')} reads."
            ]
    return []


def _presence(report: Report) -> list[str]:
    """Return the table of what presence costs on each adapter, and how soon it is true."""
    measured = _alike(report, "presence", "connections", "channels", "seconds", "repetitions")
    if not measured:
        return []
    section = measured[0][0]
    settings = section.settings
    figures = (
        "presence_extra_percent",
        "presence_extra_max_percent",
        "joins_per_second",
        "presence_sent_per_second",
        "presence_received_per_second",
        "present_watched_ms",
        "present_watched_max_ms",
        "present_unwatched_ms",
        "left_seconds",
    )
    heads = [
        "",
        "CPU that presence takes",
        "worker with most",
        "joins, and leaves, per second",
        "messages per second, all workers",
        "received by a worker",
        "complete list, room watched elsewhere",
        "longest",
        "room not watched",
        "`kill -9`: all have left after",
    ]
    return [
        "",
        f"What presence costs each of {presence.WORKERS} workers: {settings['connections']:,} connections that live "
        f"{presence.LIFETIME_SECONDS / 60:g} minutes each, in {settings['channels']:,} rooms, with every room "
        "watched by every worker, beside as many workers without presence at the same time, for "
        f"{settings['seconds']:g} s; `present()` at a worker for rooms of the others; the users of a killed worker "
        f"have left everywhere at most 15 s later (10 s without a heartbeat, 5 s of grace){_apart(section)}.",
        "",
        _row(heads),
        _row(["---", *["--:"] * (len(heads) - 1)]),
        *(_row([each.name, *(_cell(each, figure) for figure in figures)]) for _, each in measured),
    ]


def _present(report: Report) -> list[str]:
    """Return one sentence on presence, on Redis."""
    for section, each in _alike(report, "presence", "connections", "channels", "seconds", "repetitions"):
        if each.name == _OURS[0]:
            settings = section.settings
            return [
                f"Presence of {settings['connections']:,} connections in {settings['channels']} rooms takes "
                f"{_cell(each, 'presence_extra_percent')} of each of {presence.WORKERS} workers."
            ]
    return []


def _memory(report: Report) -> list[str]:
    """Return a table of what a client takes, for each number of clients, where some of them are handed over."""
    sections = _handed_over(report, "memory")
    if not sections:
        return []
    names = list(dict.fromkeys(each.name for section in sections for each in section.outcomes if each.valid))
    heads = ["", *(_clients(section) for section in sections), "tasks per client"]
    rows = [
        [
            name,
            *(_cell(_candidate(section, name), "kib_per_connection") for section in sections),
            _cell(_candidate(sections[0], name), "tasks_per_connection"),
        ]
        for name in names
    ]
    return [
        "",
        "Memory (PSS) of the server for each client that has joined a room and waits, without what the kernel takes "
        f"for a socket{_apart(sections[0])}.",
        "",
        _row(heads),
        _row(["---", *["--:"] * (len(heads) - 1)]),
        *map(_row, rows),
    ]


def _clients(section: Section) -> str:
    workers = section.settings["workers"]
    return f"{section.settings['connections']:,} clients{f' on {workers} workers' if workers > 1 else ''}"


def _idle(report: Report) -> list[str]:
    """Return the table of what clients cost that only wait, where some of them are handed over."""
    sections = _handed_over(report, "idle")
    if not sections:
        return []
    section = sections[0]
    settings = section.settings
    in_memory = settings["in_memory"]
    figures = {
        "idle_cpu_percent": "CPU of the worker",
        "stall_ms": "longest stall",
        "collection_ms": "of it collection",
        "pings_per_client": "pings answered by each",
        "drain_seconds": "drain: all closed after",
        "drain_stall_ms": "longest stall",
        "drain_collection_ms": "of it collection",
    }
    return [
        "",
        f"{settings['connections']:,} clients of one room in one worker that only answer a ping every "
        f"{settings['heartbeat']:g} s"
        f"{f', {in_memory:,} of them without a socket' if in_memory else ''}, for {settings['seconds']:g} s, and their "
        f"drain with `drain_seconds={settings['drain']:g}`{_apart(section)}.",
        "",
        _row(["", *figures.values()]),
        _row(["---", *["--:"] * len(figures)]),
        *(_row([each.name, *(_cell(each, name) for name in figures)]) for each in section.outcomes if each.valid),
    ]


def _handed_over(report: Report, scenario: str) -> list[Section]:
    """Return the sections of a scenario in which a candidate hands its clients over."""
    return [
        section
        for section in report.sections
        if section.scenario == scenario
        and any(each.valid and each.name.endswith(HANDED_OVER) for each in section.outcomes)
    ]


def _with_history(report: Report) -> list[tuple[Section, Outcome]]:
    """Return each candidate with a history that has a valid run."""
    return _alike(report, "history", "connections", "channels", "repaired", "payload", "repetitions")


def _alike(report: Report, scenario: str, *names: str) -> list[tuple[Section, Outcome]]:
    """Return each candidate with a valid run, of all sections of a scenario with the settings of the first one."""
    sections = [each for each in report.sections if each.scenario == scenario]
    alike = [each for each in sections if all(each.settings[name] == sections[0].settings[name] for name in names)]
    return [(section, outcome) for section in alike for outcome in section.outcomes if outcome.valid]


def _times(outcome: Outcome, figure: str) -> str:
    """Return how many times that of a plain channel it is."""
    found = _cell(outcome, figure)
    return found if found == _NOTHING else f"{found} x"


_TABLES: Final[dict[str, Callable[[Report], list[str]]]] = {
    "history": _history,
    "presence": _presence,
    "memory": _memory,
    "idle": _idle,
}


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _relative(path: Path) -> str:
    """Return a path as `PAGE` links to it."""
    folder = PAGE.parent
    return path.resolve().relative_to(folder).as_posix() if path.resolve().is_relative_to(folder) else path.name
