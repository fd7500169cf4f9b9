"""The dashboard for Grafana: as its script makes it, its expressions valid, over metrics that exist."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.examples.example_server import EXAMPLES
from tests.examples.observability.promql import KNOWN, filled, metrics_of

DASHBOARD = EXAMPLES / "observability" / "grafana" / "backplane.json"


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    """The dashboard."""
    return dict(json.loads(DASHBOARD.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Its panels, without the rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_committed_file_is_what_the_script_makes() -> None:
    """`make dashboard` changes nothing."""
    from examples.observability.grafana.dashboard import build

    assert DASHBOARD.read_text(encoding="utf-8") == build()


def test_every_expression_names_metrics_that_exist(dashboard: dict[str, Any], panels: list[dict[str, Any]]) -> None:
    """Each expression can be parsed, and reads metrics that a scrape has; so do the annotation and the variables."""
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    queries += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    variables = [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    assert len(variables) == 2
    queries += [query.removeprefix("label_values(").rpartition(",")[0] for query in variables]
    for query in queries:
        names = metrics_of(filled(query))
        assert names, query
        assert names <= KNOWN, query


def test_every_query_is_of_the_chosen_workers(panels: list[dict[str, Any]]) -> None:
    """The variables narrow each query, from the chosen source."""
    for panel in panels:
        for target in panel["targets"]:
            expression: str = target["expr"]
            selectors = expression.count("backplane_")
            assert expression.count('{job=~"$job", instance=~"$instance"') == selectors, expression
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_are_placed(dashboard: dict[str, Any], panels: list[dict[str, Any]]) -> None:
    """No two panels overlap, each has an id and a sentence that explains it, each query of it a letter of its own."""
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == list("ABCDEFGH"[: len(letters)])
