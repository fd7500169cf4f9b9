"""docs/: excerpts are those of their files, examples run, generated pages are whole, links and words are right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import yaml
from pydantic import Field
from typer.main import get_command

import backplane
from backplane import Backlog, BrokerError, CloseCode, Limits, Settings, broadcaster
from backplane.broadcaster import Broadcaster, Capabilities, Options, Sink
from backplane.cli import app
from backplane.errors import BackplaneError
from backplane.metrics.table import METRICS
from mkdocs_hooks.api import load, where
from mkdocs_hooks.blocks import BLOCKS, MARK, fill
from mkdocs_hooks.docstrings import field_docs, parse
from mkdocs_hooks.errors import error_classes
from mkdocs_hooks.histories import history_row
from mkdocs_hooks.layers import contract
from mkdocs_hooks.log_events import lines_in, package_lines
from mkdocs_hooks.navigation import SECTIONS, navigation
from mkdocs_hooks.options import options_of, options_of_adapter
from mkdocs_hooks.rooms import modules
from mkdocs_hooks.sources import source_files
from mkdocs_hooks.tables import table
from tests.dialect import ALLOWED, BANNED, offences, offences_in_code
from tests.readme_table import schemes_by_adapter

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REPOSITORY = "https://github.com/fastapi-backplane/backplane/blob/main/"
SITE = "https://fastapi-backplane.readthedocs.io/en/stable/"
FENCE = re.compile(
    r"^<!-- (excerpt|run|script|example)(?:: (.*?))? -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL
)

# The tests run against an installed wheel too, with the sources away.
needs_documents = pytest.mark.skipif(not DOCS.is_dir(), reason="the documents are away")

PAGES = sorted(DOCS.rglob("*.md"))
LEVELS = {"CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG"}
# Written by people for people, beside the pages of the site.
PROSE = [
    *PAGES,
    *(
        path
        for name in (
            "README.md",
            "CHANGELOG.md",
            "SECURITY.md",
            "CONTRIBUTING.md",
            "examples/README.md",
            "benchmarks/README.md",
            "examples/celery/README.md",
            "examples/django/README.md",
            "examples/mirror/README.md",
            "examples/observability/README.md",
            "examples/sdk/README.md",
        )
        if (path := ROOT / name).exists() and DOCS.is_dir()
    ),
]


def read(name: str) -> str:
    """Return the text of a page."""
    return (DOCS / name).read_text(encoding="utf-8")


def page_id(page: Path) -> str:
    """Return a page's path, as the name of a test case."""
    return page.relative_to(ROOT).as_posix()


def snippets(kind: str) -> list[tuple[str, str]]:
    """Return the Python of all pages that is marked as `kind`, each with what follows the kind in its mark."""
    found = (match for page in PAGES for match in FENCE.finditer(page.read_text(encoding="utf-8")))
    return [(match[2], match[3]) for match in found if match[1] == kind]


def options_of_commands() -> dict[str, set[str]]:
    """Return the long options of each command of `backplane`."""
    group: Any = get_command(app)  # of click's, or of the one that Typer brings along
    return {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        for name, command in group.commands.items()
    }


# --- snippets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_is_marked(page: Path) -> None:
    """No Python is in a page unproven."""
    text = page.read_text(encoding="utf-8")
    assert text.count("```python") == len(FENCE.findall(text))


@needs_documents
def test_example_has_a_test() -> None:
    """Each example is named in a test module of tests/docs, which runs it."""
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "docs").glob("test_*.py"))
    assert [name for name, _ in snippets("example") if f'"{name}"' not in tests] == []


@pytest.mark.parametrize(("path", "code"), snippets("excerpt"))
def test_excerpt_is_in_its_file(path: str, code: str) -> None:
    """An excerpt is word for word in the file it is from."""
    assert code in (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("code", [code for _, code in snippets("run")])
def test_suite_runs_in_another_project(code: str, tmp_path: Path) -> None:
    """Each suite runs from a test file as the page has it, with no configuration, once."""
    (tmp_path / "test_mine.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-k", "bytes_are_intact or payloads_are_intact"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert f"{code.count('Conformance):')} passed" in done.stdout


@pytest.mark.parametrize("code", [code for _, code in snippets("script")])
def test_script_runs(code: str, tmp_path: Path) -> None:
    """A script runs to its end as the page has it, without a complaint."""
    script = tmp_path / "script.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env=os.environ | {"BACKPLANE_URL": "memory://"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- pages that are written by hand --------------------------------------------------------------------------------


@needs_documents
def test_adapter_page_names_the_whole_contract() -> None:
    """Every method an adapter must write or may call, and every optional ability, has its place in the page."""
    page = read("adapters/write-an-adapter.md")
    for name in Broadcaster.__abstractmethods__ | {"options_class"}:
        assert re.search(rf"^\| `{name}\b", page, re.MULTILINE), name
    for name in (name for name in vars(Sink) if not name.startswith("_")):
        assert f"| `sink.{name}(" in page
    abilities = {name for name in broadcaster.__all__ if name.startswith("Supports")}
    for name in abilities:
        assert f"\n- `{name}`: " in page


@needs_documents
def test_command_page_names_every_command_and_option() -> None:
    """Each command has its section, and each of its options is named there; no option is named that does not exist."""
    section = re.compile(r"^## `backplane (\w+).*?\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    named = {
        name: set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", text))
        for name, text in section.findall(read("guides/command-line.md"))
    }
    assert named == options_of_commands()


@needs_documents
def test_every_public_name_is_on_the_api_page() -> None:
    """Each name that `backplane` exports is documented once: by itself, or with the module of the errors."""
    page = fill(read("reference/api.md"))
    anywhere = re.findall(r"^::: backplane\.(?:\w+\.)*(\w+)$", page, re.MULTILINE)
    assert [name for name in backplane.__all__ if anywhere.count(name) > 1] == []
    documented = set(re.findall(r"^::: backplane\.(\w+)$", page, re.MULTILINE))
    documented |= {error.__name__ for error in error_classes()}
    assert "::: backplane.errors" in page
    assert set(backplane.__all__) - documented == set()


@needs_documents
@pytest.mark.parametrize(
    "module",
    [
        "admin",
        "broadcaster",
        "client_routes",
        "dependencies",
        "errors",
        "health_routes",
        "integrations.broadcaster",
        "integrations.django_channels",
        "integrations.litestar",
        "integrations.socketio",
        "lane",
        "sync",
        "testing",
    ],
)
def test_every_name_of_a_public_module_is_on_the_api_page(module: str) -> None:
    """Each name that a public module exports is documented by itself, or with its module, in which it is defined."""
    page = fill(read("reference/api.md"))
    name = f"backplane.{module}"
    for exported in import_module(name).__all__:
        alone = re.search(rf"^::: {name}\.{exported}$", page, re.MULTILINE)
        together = re.search(rf"^::: {name}$", page, re.MULTILINE)
        is_own = re.search(rf"^(class |def |async def )?{exported}\b", source_of(module), re.MULTILINE)
        assert alone or (together and is_own), exported


def source_of(module: str) -> str:
    """Return the source of a module of the package."""
    place = module.replace(".", "/")
    return next(
        path for name, path in source_files().items() if name in (f"{place}.py", f"{place}/__init__.py")
    ).read_text(encoding="utf-8")


@needs_documents
def test_architecture_page_names_every_word_once() -> None:
    """The vocabulary defines each of its words in one row."""
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", read("architecture/index.md"), re.MULTILINE)
    assert len(words) > 20
    assert len(words) == len(set(words))


@needs_documents
def test_walks_name_files_and_names_that_exist() -> None:
    """Each file of a walk exists, and the names in its row are in it."""
    root = Path(backplane.__file__).parent
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (.+) \|$", read("architecture/walks.md"), re.MULTILINE)
    assert len(rows) > 30
    missing: list[str] = []
    for path, words in rows:
        if not (root / path).exists():
            missing.append(path)
            continue
        text = (root / path).read_text(encoding="utf-8")
        named = [name for code in re.findall(r"`([A-Za-z_.]+)`", words) for name in code.split(".")]
        missing += [f"{path}: {name}" for name in named if name not in text]
    assert missing == []


@needs_documents
def test_file_named_in_prose_is_there() -> None:
    """A file of the tests, the examples or the benchmarks that a document names exists."""
    folders = r"(?<![\w/.])((?:tests|examples|benchmarks|mkdocs_hooks|requirements)/[\w/-]+\.\w+)"
    named = {(page.name, path) for page in PROSE for path in re.findall(folders, page.read_text(encoding="utf-8"))}
    assert len(named) > 10
    assert [found for found in sorted(named) if not (ROOT / found[1]).exists()] == []


@needs_documents
def test_page_named_in_the_code_is_there() -> None:
    """Where a docstring or a comment names a page of the documents, the page exists."""
    missing = [
        f"{path}: {page}"
        for folder in ("backplane", "adapters", "examples", "tests", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for page in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text(encoding="utf-8"))
        if not (ROOT / page).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("page", PROSE, ids=page_id)
def test_linked_source_is_there(page: Path) -> None:
    """What a page links to in the repository exists."""
    targets = re.findall(rf"{re.escape(REPOSITORY)}([^)\s#>]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("page", PROSE, ids=page_id)
def test_link_is_not_dead(page: Path) -> None:
    """A relative link leads to a file that exists, on the pages of the site too; its build checks their anchors."""
    targets = re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", [page for page in PROSE if not page.is_relative_to(DOCS)], ids=page_id)
def test_link_to_the_site_leads_to_a_page(page: Path) -> None:
    """What a document beside the site links to on the site is a page, and a heading of it."""
    assert [
        (path, anchor)
        for path, anchor in re.findall(
            rf"{re.escape(SITE)}([\w/.-]*?)/?(?:#([\w.-]+))?(?=[)>\s,;:]|\.\s|\.$)",
            page.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
        if anchor not in anchors_of(path)
    ] == []


def anchors_of(path: str) -> set[str]:
    """Return the anchors of a page of the site, given its path there; none where it does not exist."""
    candidates = (DOCS / f"{path or 'index'}.md", DOCS / path / "index.md")
    text = "".join(page.read_text(encoding="utf-8") for page in candidates if page.exists())
    headings = re.findall(r"^#+ (.+)$", fill(text), re.MULTILINE)
    slugs = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
    return {*slugs, *re.findall(r"\{ #(\S+) \}", fill(text)), *([""] if text else [])}


@needs_documents
def test_anchors_are_found() -> None:
    """A page has itself and its headings as anchors, a missing page has none."""
    assert {"", "share-a-broker"} <= anchors_of("adapters")
    assert "publish_timeout_seconds" in anchors_of("reference/settings")
    assert anchors_of("no/such/page") == set()


# --- language ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PROSE, ids=page_id)
def test_language_is_plain(page: Path) -> None:
    """No document uses the words that tests/dialect.py lists."""
    assert offences(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "A worker hears it.",
        "The server said so.",
        "It tells its subscribers.",
        "The message behind it waits.",
        "Whoever listens gets it.",
        "Nobody receives it.",
        "It reconnects in secret.",
        "The link is deaf.",
        "A broker who refuses.",
        "It waits, for it is\nfull.",
    ],
)
def test_banned_word_is_found(text: str) -> None:
    """Each kind of banned word is found, with its line."""
    (found, *_) = offences(f"First.\n\n{text}\n")
    assert found.startswith("3: ")


@pytest.mark.parametrize(
    "text",
    [
        "A server behind a proxy, or behind the load balancer.",
        "`nobody says` is code.",
        "```python\nsay = 'nobody'\n```",
        "[text](behind.md)",
    ],
)
def test_field_terms_and_code_are_allowed(text: str) -> None:
    """The field's own terms, code and the targets of links are no offences."""
    assert offences(text) == []


def test_code_is_searched_in_comments_strings_and_names() -> None:
    """In a module the words count in comments, docstrings, messages and names, with their lines."""
    source = 'def f(x):\n    """Says it."""\n    g._tell_all(x)  # whoever asks\n    raise E("nobody")\n'
    lines = [line.partition(":")[0] for line in offences_in_code(source)]
    assert lines == ["2", "3", "3", "4"]
    assert offences_in_code("for x in y:  # a plain comment\n    z = 1\n") == []


@needs_documents
@pytest.mark.parametrize("folder", ["backplane", "adapters", "tests", "benchmarks", "examples", "mkdocs_hooks"])
def test_language_of_code_is_plain(folder: str) -> None:
    """No comment, docstring, message or name uses those words, but where they are listed and tried."""
    listed = {ROOT / "tests" / "dialect.py", Path(__file__)}
    paths = set((ROOT / folder).rglob("*.py")) - listed
    assert paths
    found = {path: offences_in_code(path.read_text(encoding="utf-8")) for path in sorted(paths)}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_words_of_names_and_of_wrapped_text_are_found() -> None:
    """The words of a name count wherever it is written, and so do those that a line's end parts."""
    source = 'class FirstHears:\n    x = "last_heard"  # it waits, for\n    # it is full\n'
    lines = [line.partition(":")[0] for line in offences_in_code(source)]
    assert lines == ["1", "2", "2"]


def test_dialect_patterns_are_used() -> None:
    """Every pattern compiles, and none is listed twice."""
    for pattern in (*BANNED, *ALLOWED):
        re.compile(pattern)
    assert len(set(ALLOWED)) == len(ALLOWED)


# --- the site ------------------------------------------------------------------------------------------------------


@needs_documents
def test_navigation_holds_every_page() -> None:
    """Each page is in the navigation once."""
    flat = re.findall(r"'([^']+\.md)'", repr(navigation(DOCS)))
    assert sorted(flat) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def test_navigation_orders_known_pages_and_appends_others(tmp_path: Path) -> None:
    """Known folders and pages come in their order, others after them by name; a folder without pages is left out."""
    (tmp_path / "empty").mkdir()
    for path in ("index.md", "zoo/b.md", "zoo/a.md", "reference/other.md", "reference/limits.md", "tutorial/redis.md"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    assert navigation(tmp_path) == [
        "index.md",
        {"Tutorial": ["tutorial/redis.md"]},
        {"Reference": ["reference/limits.md", "reference/other.md"]},
        {"Zoo": ["zoo/a.md", "zoo/b.md"]},
    ]
    assert list(SECTIONS).index("tutorial") < list(SECTIONS).index("reference")


@needs_documents
def test_site_needs_no_other_host() -> None:
    """The theme loads no fonts, and no page or option names a script or style of another host."""
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in config
    assert not re.search(r"extra_(javascript|css):.*http", config)
    for page in PAGES:
        assert not re.search(r"<script|<link|<iframe|```mermaid|!\[[^\]]*\]\(http", page.read_text(encoding="utf-8"))


@needs_documents
def test_hosted_site_is_built_as_here() -> None:
    """The hosted build installs the group of `make docs`, and treats warnings as errors."""
    hosted = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text(encoding="utf-8"))
    assert any("--group docs" in line for line in hosted["build"]["jobs"]["install"])
    assert "\nstrict: true\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


# --- generated blocks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if MARK.search(page.read_text(encoding="utf-8"))], ids=page_id)
def test_marks_are_filled(page: Path) -> None:
    """Every mark names a block that can be made, and none is left."""
    filled = fill(page.read_text(encoding="utf-8"))
    assert not re.search(r"<!-- generated", filled)


@needs_documents
def test_every_block_is_on_a_page() -> None:
    """No generator is without a page."""
    used = {mark[1] for page in PAGES for mark in MARK.finditer(page.read_text(encoding="utf-8"))}
    assert used == set(BLOCKS)


def test_unknown_mark_is_an_error() -> None:
    """A mark that names no block fails the build."""
    with pytest.raises(KeyError, match="nothing"):
        fill("<!-- generated: nothing -->")


@pytest.mark.parametrize("owner", [Settings, Limits, Backlog])
def test_options_are_whole(owner: type) -> None:
    """Each setting and limit is there with its type, its default, and a unit where it is a number."""
    block = fill(f"<!-- generated: options {owner.__name__} -->")
    for field in fields(owner):
        assert f"### `{field.name}` {{ #{field.name} }}" in block
    (seconds,) = [option for option in options_of(Settings) if option.name == "publish_timeout_seconds"]
    assert (seconds.type, seconds.default, seconds.unit) == ("`float`", "2", "seconds")
    assert seconds.meaning.startswith("How long `publish` waits")


def test_defaults_are_written_in_units() -> None:
    """Sizes are in KiB or MiB, large counts have separators, and what has no value is `none`."""
    options = (*options_of(Settings), *options_of(Limits), *options_of(Backlog))
    found = {option.name: option.default for option in options}
    assert found["max_bytes"] == "1 MiB"
    assert found["max_message_bytes"] == "64 KiB"
    assert found["max_messages"] == "1,024"
    assert found["max_burst"] == "none"
    assert found["start"] == "`strict`"


@dataclass
class _WithFunction:
    """Options of a test.

    Attributes:
        key: What it does.
        amount_bytes: How much. Defaults to 1 KiB.
    """

    key: Callable[[int], object] | None = None
    amount_bytes: int | None = 1024


def test_types_for_checkers_alone_are_understood() -> None:
    """A function, imported for type checkers alone, is called one; a number may be missing."""
    key, amount = options_of(_WithFunction)
    assert (key.type, key.default, key.unit) == ("a function or `None`", "none", "")
    assert (amount.type, amount.default, amount.unit) == ("`int` or `None`", "1 KiB", "bytes")


@dataclass
class _Undocumented:
    """Options of a test."""

    first_seconds: float = 1.0


@dataclass
class _WithoutUnit:
    """Options of a test.

    Attributes:
        amount: How much of it.
    """

    amount: int = 1


def test_option_without_docstring_or_unit_is_an_error() -> None:
    """An option that is not documented, or a number without a unit, fails the build."""
    with pytest.raises(LookupError, match="first_seconds has no docstring"):
        options_of(_Undocumented)
    with pytest.raises(LookupError, match="amount does not show its unit"):
        options_of(_WithoutUnit)


class _ExampleOptions(Options):
    """Options of an adapter of a test."""

    size_bytes: int = Field(default=2048, gt=0)
    """How much."""
    kind: Literal["one", "two"] = "one"
    """Which one. Defaults to one."""


def test_adapter_options_have_their_own_first() -> None:
    """An adapter's own options come before those of every adapter, with their default once."""
    own, kind, common = options_of_adapter(_ExampleOptions)
    assert (own.name, own.default, own.unit, own.meaning) == ("size_bytes", "2 KiB", "bytes", "How much.")
    assert (kind.type, kind.default, kind.meaning) == ("`one` or `two`", "`one`", "Which one.")
    assert common.name == "wire_format"


@pytest.mark.parametrize(
    "scheme", ["memory", "ipc", "redis", "redis+sentinel", "redis+cluster", "nats", "kafka", "postgres", "amqp"]
)
def test_adapter_options_are_whole(scheme: str) -> None:
    """The options of each adapter can be listed, and no row lacks its meaning."""
    rows = fill(f"<!-- generated: adapter-options {scheme} -->").splitlines()[2:]
    assert rows
    assert all(re.match(r"\| `\w+` \| .+ \| .+ \| .+ \|$", row) for row in rows)


def test_variant_of_an_adapter_lists_what_it_adds() -> None:
    """The options of Redis are not repeated for its sentinels."""
    block = fill("<!-- generated: adapter-options redis+sentinel -->")
    assert re.findall(r"^\| `(\w+)`", block, re.MULTILINE) == ["sentinel_username", "sentinel_password"]


def test_statistics_are_whole() -> None:
    """Each count has its row with a meaning."""
    rows = re.findall(r"^\| `(\w+)`\{.*?\} \| (.+) \|$", fill("<!-- generated: statistics -->"), re.MULTILINE)
    assert [name for name, _ in rows] == [field.name for field in fields(load("Statistics"))]


def test_patterns_name_every_adapter() -> None:
    """The table of patterns has a row for each adapter, with what it declares."""
    rows = fill("<!-- generated: patterns -->").splitlines()[2:]
    assert len(rows) == len(schemes_by_adapter())
    assert "| `memory://` | yes |" in rows


def test_histories_name_every_adapter() -> None:
    """Each adapter has its row, made from what it declares; one that keeps nothing promises nothing."""
    rows = fill("<!-- generated: histories -->").splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [f"{schemes[0]}://" for schemes in schemes_by_adapter()]
    assert [row.split("`")[1] for row in rows if "not kept" in row] == ["postgres://", "amqp://"]
    nothing = Capabilities(brokered=True, reach="network", publish_returns="accepted", max_payload_bytes=1)
    assert history_row(nothing)[0] == "not kept"
    assert history_row(replace(nothing, keeps="server"))[2:] == ("the worker reads what it missed", "refused")
    assert history_row(replace(nothing, keeps="server", resumes=True, deduplicates=True))[3] == "300 seconds"


def test_close_codes_are_whole() -> None:
    """Each code has its row, with its name and whether the client comes back."""
    rows = re.findall(
        r"^\| (\d{4}) \| `(\w+)`\{.*?\} \| (stays away|comes back) \| .+ \|$",
        fill("<!-- generated: close-codes -->"),
        re.MULTILINE,
    )
    assert [(int(code), name, answer == "comes back") for code, name, answer in rows] == [
        (code.value, code.name, code.reconnect) for code in sorted(CloseCode)
    ]


def test_errors_are_whole() -> None:
    """Each exported error has its section, and its place in the tree."""
    block = fill("<!-- generated: errors -->")
    tree = fill("<!-- generated: error-tree -->")
    exported = {name for name in backplane.__all__ if name.endswith("Error")}
    assert {error.__name__ for error in error_classes()} == exported
    for error in error_classes():
        assert f"### `{error.__name__}` {{ #{error.__name__} }}" in block
        assert f"(#{error.__name__})" in tree
        text = parse(error.__doc__ or "").text
        assert text in block
        if issubclass(error, BrokerError):
            assert re.search(r"[Pp]ublish|Raised", text), "states what is certain, or which call raises it"
    assert error_classes()[0] is BackplaneError


def test_metrics_are_documented() -> None:
    """The page explains each metric of the table once, with the values of its labels, and when to look at it."""
    page = fill((ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8"))
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `backplane_")]
    assert [row[0] for row in rows] == [f"| `{name}`{{ #{name} }}" for name in (metric.name for metric in METRICS)]
    shown = {metric.name: row[1:] for metric, row in zip(METRICS, rows, strict=True)}
    assert shown["backplane_lag_seconds"][:2] == [
        "histogram, seconds",
        "`stage`: received, written; `publisher`: self, other",
    ]
    assert all(metric.help in row[2] for metric, row in zip(METRICS, shown.values(), strict=True))
    assert sum(bool(metric.alert) for metric in METRICS) > 20


def test_log_lines_are_found() -> None:
    """Calls that log are found with logger, event, level and message, however the message is made."""
    source = """
import logging
logger = logging.getLogger("backplane.example")

def one(journal, error, is_grave, what, event):
    write(logger, LINK_LOST, "plain %(reason)s", reason=error)
    journal.log(logger, CLIENT_CLOSED, "counted")
    write(logger, LINK_LOST if is_grave else LINK_LIVE, "either")
    words = "assigned" if is_grave else "otherwise"
    write(logger, LINK_LIVE, words)
    journal.log(logger, LINK_LOST, "first " "second", level=logging.DEBUG)
    write(logger, LINK_LOST, what)
    error.log("no logger")
    level = logging.INFO if is_grave else None
    write(logger, LINK_LOST, "assigned level", level=level)
    journal.log(logger, event, "event of the caller")
"""
    found = [(line.event, line.level, line.message, line.is_burst) for line in lines_in(source, module="example")]
    assert found == [
        (("LINK_LOST",), "WARNING", "plain %(reason)s", False),
        (("CLIENT_CLOSED",), "INFO", "counted", True),
        (("LINK_LOST", "LINK_LIVE"), "WARNING or INFO", "either", False),
        (("LINK_LIVE",), "INFO", "assigned", False),
        (("LINK_LIVE",), "INFO", "otherwise", False),
        (("LINK_LOST",), "DEBUG", "first second", True),
        (("LINK_LOST",), "INFO or WARNING", "assigned level", False),
        ((), "set by the caller", "event of the caller", True),
    ]
    source = "import logging\nlog = logging.getLogger(__name__)\nwrite(log, LINK_LOST, 'x')"
    (named,) = lines_in(source, module="backplane.a.b")
    assert named.logger == "backplane.a.b"


def test_log_lines_cover_the_package() -> None:
    """Every logger that a module makes has lines, each below `backplane`, and each room that logs has its section."""
    lines = package_lines()
    root = Path(backplane.__file__).parent
    sources = [path.read_text(encoding="utf-8") for path in (*root.rglob("*.py"), *(root / "adapters").rglob("*.py"))]
    made = {name for text in sources for name in re.findall(r'^logger.* = logging.getLogger\("(.+)"\)$', text, re.M)}
    assert made
    assert {line.logger for _, line in lines} >= made
    assert all(line.logger.startswith(("backplane.", "uvicorn.error")) for _, line in lines)
    assert len(lines) > 100
    assert [line for _, line in lines if not set(line.level.split(" or ")) <= {*LEVELS, "set by the caller"}] == []
    assert {line.message for _, line in lines} >= {
        "still no link to %(url)s after %(seconds).0f s, tries: %(tries)d: %(reason)s",
        "connection %(connection)s ends, the broker failed: %(reason)s",
        "closing connection %(connection)s: %(reason)s",
    }
    block = fill("<!-- generated: log-lines -->")
    for room, _ in lines:
        assert f"### `{room}` {{ #{room.replace('.', '-')} }}" in block


def test_commands_are_whole() -> None:
    """Each command has its section with every option."""
    block = fill("<!-- generated: command-line -->")
    sections = dict(re.findall(r"^## `backplane (\w+)`.*?\n(.*?)(?=^## |\Z)", block, re.MULTILINE | re.DOTALL))
    assert sections.keys() == options_of_commands().keys()
    for name, options in options_of_commands().items():
        assert all(f"`{option}`" in sections[name] for option in options - {"--help"})
    assert re.findall("<.*?>", re.sub("`[^`]*`", "", block)) == []  # a reader would not see it


def test_rooms_list_every_module() -> None:
    """Each module of the package is on the map, with what it holds."""
    assert modules()["core"].startswith("`Backplane`")
    assert all(words for name, words in modules().items() if not name.endswith("__init__"))
    block = fill("<!-- generated: rooms -->")
    for name in modules():
        assert name.endswith("__init__") or f"| `{name.rpartition('.')[2]}` |" in block


def test_layers_hold_every_room() -> None:
    """Each room and top-level module of the package is in one layer of the map, and is described there."""
    named = [name for layer in contract() for name in layer]
    top = {name.partition(".")[0] for name in modules()} - {"__init__"}
    assert sorted(named) == sorted(top)
    assert not re.search(r"\| +\|", fill("<!-- generated: layers -->"))


def test_name_is_found_in_its_module() -> None:
    """A public name is found wherever it stands, and an unknown one is an error."""
    assert where("Broadcaster") == "backplane.broadcaster.Broadcaster"
    with pytest.raises(LookupError, match="NoSuchName is defined in 0 modules"):
        where("NoSuchName")


def test_docstring_is_split() -> None:
    """The text and the attributes with their continuation lines are separated."""
    found = parse(
        """Summary.

        More.

        Attributes:
            one: First
                line.
            two: Second.

        Raises:
            three: No attribute.
        """
    )
    assert found.text == "Summary.\n\nMore."
    assert found.attributes == {"one": "First line.", "two": "Second."}


def test_fields_are_documented_in_either_way() -> None:
    """A field is documented in the class' docstring, or by a string after it."""
    assert field_docs(Settings)["start"].startswith("What a start does")
    assert field_docs(CloseCode)["NORMAL_CLOSURE"].startswith("The handler ended.")


@needs_documents
def test_pages_of_a_folder_are_listed() -> None:
    """Each page of a folder but its index is in the list, with its title and its first sentence."""
    listed = fill("<!-- generated: pages guides -->")
    names = re.findall(r"^\| \[.+\]\(([\w-]+)\.md\) \| .+ \|$", listed, re.MULTILINE)
    assert sorted(names) == sorted(path.stem for path in (DOCS / "guides").glob("*.md") if path.stem != "index")


def test_table_escapes_bars() -> None:
    """A vertical bar or a line end in a cell breaks no table."""
    assert table(("a",), [("x|y\nz",)]) == "| a |\n|---|\n| x\\|y z |\n"
