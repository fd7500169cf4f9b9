"""examples/observability/kubernetes: the schemas of Kubernetes take them, and they agree with the chat."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from backplane.metrics.table import METRICS
from tests.examples.example_server import EXAMPLES
from tests.examples.observability.promql import metrics_of

if TYPE_CHECKING:
    from pathlib import Path

CHAT = EXAMPLES / "kubernetes" / "chat.yaml"
FOLDER = EXAMPLES / "observability" / "kubernetes"
NATIVE = [CHAT, FOLDER / "hpa.yaml"]


def objects(path: Path) -> dict[str, Any]:
    """Return the objects of a manifest by their kind."""
    return {document["kind"]: document for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))}


def load(name: str) -> dict[str, Any]:
    """Return the one document of a file of the folder."""
    return dict(yaml.safe_load((FOLDER / name).read_text(encoding="utf-8")))


def validate(path: Path) -> subprocess.CompletedProcess[str]:
    """Check a manifest by the schemas of Kubernetes, which refuse keys that they do not know."""
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def chat() -> dict[str, Any]:
    """The objects of the chat by kind."""
    return objects(CHAT)


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: path.name)
def test_native_kinds_pass_the_schemas(path: Path) -> None:
    """Every native object is valid, without a key that its kind does not have."""
    result = validate(path)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("INFO") == len(objects(path)), result.stdout


def test_misspelt_key_fails(tmp_path: Path) -> None:
    """The check refuses `behaviour`, which Kubernetes would ignore."""
    misspelt = tmp_path / "hpa.yaml"
    misspelt.write_text((FOLDER / "hpa.yaml").read_text(encoding="utf-8").replace("behavior:", "behaviour:"))
    result = validate(misspelt)
    assert (result.returncode, "behaviour" in result.stdout) == (1, True)


def test_scaling_is_for_the_chat(chat: dict[str, Any]) -> None:
    """Both ways to scale name the Deployment, with the same bounds and the same behaviour, and never end all pods."""
    hpa, keda = load("hpa.yaml")["spec"], load("keda.yaml")["spec"]
    deployment = chat["Deployment"]
    assert hpa["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert keda["scaleTargetRef"] == {"name": deployment["metadata"]["name"]}
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (keda["minReplicaCount"], keda["maxReplicaCount"])
    assert hpa["minReplicas"] == deployment["spec"]["replicas"]
    assert keda["advanced"] == {"horizontalPodAutoscalerConfig": {"behavior": hpa["behavior"]}}


def test_both_scale_by_the_same_number_of_clients() -> None:
    """The HPA and KEDA add a pod at the same average, and the metric is one of the table."""
    (metric,) = load("hpa.yaml")["spec"]["metrics"]
    (trigger,) = load("keda.yaml")["spec"]["triggers"]
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": trigger["metadata"]["threshold"]}
    names = {metric["pods"]["metric"]["name"], *metrics_of(trigger["metadata"]["query"])}
    assert names == {"backplane_connections"} <= {row.name for row in METRICS}


def test_scale_down_is_slower_than_a_drain(chat: dict[str, Any]) -> None:
    """One pod ends at a time, and the next one only after the last has had its whole grace period."""
    (policy,) = load("hpa.yaml")["spec"]["behavior"]["scaleDown"]["policies"]
    grace = chat["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert (policy["type"], policy["value"]) == ("Pods", 1)
    assert policy["periodSeconds"] >= 2 * grace


def test_keda_does_not_take_an_empty_answer_for_no_clients() -> None:
    """KEDA's metadata are strings; an empty answer of Prometheus is an error, for which no pod ends."""
    spec = load("keda.yaml")["spec"]
    (trigger,) = spec["triggers"]
    assert {type(value) for value in trigger["metadata"].values()} == {str}
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    assert trigger["metadata"].keys() == {"serverAddress", "query", "threshold", "ignoreNullValues"}
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"
    assert spec["fallback"]["replicas"] >= spec["minReplicaCount"] > 0


def test_service_monitor_finds_the_service(chat: dict[str, Any]) -> None:
    """The monitor selects the chat's service by its labels, and a port that it has; `job` is the value of a label."""
    monitor, service = load("service-monitor.yaml"), chat["Service"]
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "ServiceMonitor")
    spec = monitor["spec"]
    labels = service["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert spec["jobLabel"] in labels
    (endpoint,) = spec["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert endpoint.keys() == {"port", "path", "interval", "scrapeTimeout"}


def test_adapter_makes_the_metric_of_the_hpa() -> None:
    """The rule of prometheus-adapter is about the metric that the HPA asks for, by namespace and pod."""
    (rule,) = load("prometheus-adapter.yaml")["rules"]["custom"]
    (metric,) = load("hpa.yaml")["spec"]["metrics"]
    assert metrics_of(rule["seriesQuery"]) == {metric["pods"]["metric"]["name"]}
    query: str = rule["metricsQuery"]
    names = {"GroupBy": "pod", "Series": "backplane_connections", "LabelMatchers": 'pod="chat-1"'}
    for name, value in names.items():
        query = query.replace(f"<<.{name}>>", value)
    assert metrics_of(query) == {"backplane_connections"}
