"""The alerts: Prometheus's own tool takes and tests them, each has a section of the runbook, and reads what exists."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.examples.example_server import EXAMPLES
from tests.examples.observability.promql import KNOWN, metrics_of

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = EXAMPLES / "observability"
ALERTS = FOLDER / "alerts.yml"
RUNBOOK = "https://fastapi-backplane.readthedocs.io/en/stable/operations/runbook/"


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Prometheus's tool."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool: apt-get install prometheus")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def alerts() -> dict[str, dict[str, Any]]:
    """The alerts by their name."""
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def test_prometheus_takes_the_configuration() -> None:
    """The configuration is valid, and so is the file of rules that it names."""
    result = promtool("check", "config", FOLDER / "prometheus.yml")
    assert result.returncode == 0, result.stderr
    assert "1 rule files found" in result.stdout


def test_rules_pass_their_tests() -> None:
    """Each alert fires for what it is for, and not for what looks like it."""
    result = promtool("test", "rules", FOLDER / "alerts_test.yml")
    assert result.returncode == 0, result.stdout + result.stderr


def test_broken_rule_fails(tmp_path: Path) -> None:
    """The tests of the rules find a threshold that was changed."""
    text = ALERTS.read_text(encoding="utf-8")
    changed = text.replace("> 0.01 * sum", "> 0.1 * sum")
    assert changed != text
    (tmp_path / "alerts.yml").write_text(changed, encoding="utf-8")
    shutil.copy(FOLDER / "alerts_test.yml", tmp_path)
    result = promtool("test", "rules", tmp_path / "alerts_test.yml")
    assert result.returncode == 1
    assert "BackplanePublishFails" in result.stdout + result.stderr


def test_every_alert_is_tested(alerts: dict[str, dict[str, Any]]) -> None:
    """For each alert there is a moment at which it fires and one at which it does not."""
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts.keys()
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts.keys()


def test_every_alert_names_what_to_do(alerts: dict[str, dict[str, Any]]) -> None:
    """Each alert has its section in the runbook, the runbook no other, and each section the same three parts."""
    text = (EXAMPLES.parent / "docs" / "operations" / "runbook.md").read_text(encoding="utf-8")
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    assert list(sections) == list(alerts)
    for name, alert in alerts.items():
        assert alert["annotations"]["runbook_url"] == f"{RUNBOOK}#{name.lower()}"
        assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert alert["labels"].keys() == {"severity"}
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert [sections[name].count(f"**{part}.**") for part in ("Means", "Look at", "Do")] == [1, 1, 1], name


def test_every_alert_reads_metrics_that_exist(alerts: dict[str, dict[str, Any]]) -> None:
    """Each expression can be parsed, and reads only what a scrape has."""
    for name, alert in alerts.items():
        assert metrics_of(alert["expr"]) <= KNOWN, name
