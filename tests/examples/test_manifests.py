"""docker-compose.yml and examples/kubernetes: they agree with the code and with the files of the repository."""

from __future__ import annotations

import re
import runpy
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from backplane import Settings
from backplane.worker.shutdown import stagger_window
from tests.examples.example_server import EXAMPLES

ROOT = EXAMPLES.parent

# backplane.worker.runtime: how long handlers may take after the last close.
HANDLERS_SECONDS = Settings().handler_grace_seconds + 2


@pytest.fixture
def compose() -> dict[str, Any]:
    """docker-compose.yml."""
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8")))


@pytest.fixture
def manifest() -> dict[str, Any]:
    """The manifest's objects by kind."""
    text = (EXAMPLES / "kubernetes" / "chat.yaml").read_text(encoding="utf-8")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


@pytest.fixture
def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    """The specification of each pod."""
    return dict(manifest["Deployment"]["spec"]["template"]["spec"])


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    """The one container of a pod."""
    (container,) = pod["containers"]
    return dict(container)


def option(command: list[str], name: str) -> str:
    """Return the value of a command's option."""
    return command[command.index(name) + 1]


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_probe_requests_what_the_example_serves(container: dict[str, Any], probe: str) -> None:
    """Each probe's path is answered 200 by the running example; the port is the one the server listens on."""
    probed = container[probe]["httpGet"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert str(ports[probed["port"]]) == option(container["command"], "--port")
    with TestClient(runpy.run_path(str(EXAMPLES / "chat.py"))["app"]) as client:
        assert client.get(probed["path"]).status_code == 200


def test_only_readiness_depends_on_the_broker(container: dict[str, Any]) -> None:
    """Only readiness may fail while the broker is away."""
    paths = {
        probe: container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths == {
        "startupProbe": "/health/live",
        "livenessProbe": "/health/live",
        "readinessProbe": "/health/ready",
    }


def test_grace_period_covers_the_drain(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """The grace period covers preStop, the longest drain and the end of the server."""
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    longest_drain = stagger_window(1_000_000, Settings().drain_seconds) + HANDLERS_SECONDS
    assert pod["terminationGracePeriodSeconds"] >= int(seconds) + longest_drain + 5


def test_pre_stop_outlasts_the_readiness_probe(container: dict[str, Any]) -> None:
    """PreStop sleeps for longer than the readiness probe takes to fail."""
    probe = container["readinessProbe"]
    assert (
        int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        > probe["periodSeconds"] * probe["failureThreshold"]
    )


def test_objects_select_the_same_pods(manifest: dict[str, Any]) -> None:
    """Deployment, service and budget select what the pods are labelled with."""
    labels = manifest["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert manifest["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert manifest["Service"]["spec"]["selector"] == labels
    assert manifest["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert manifest["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels


def test_pod_has_no_more_rights_than_it_needs(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """No root, no token of the cluster, no capability, no file to write, and a bound on memory."""
    assert pod["automountServiceAccountToken"] is False
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 10001)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"].keys() == {"memory"}
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}


def test_sockets_have_a_folder(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """The one folder that can be written is a small one in memory, for the sockets by which workers are scraped."""
    (volume,) = pod["volumes"]
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/tmp"}]
    assert volume["emptyDir"]["medium"] == "Memory"


def test_network_policy_lets_clients_in_and_the_broker_out(manifest: dict[str, Any], container: dict[str, Any]) -> None:
    """Clients reach the one port of the pods, and the pods reach nothing but the broker and DNS."""
    policy = manifest["NetworkPolicy"]["spec"]
    (port,) = container["ports"]
    assert policy["ingress"] == [{"ports": [{"port": port["name"]}]}]
    assert [[port["port"] for port in rule["ports"]] for rule in policy["egress"]] == [[6379], [53, 53]]


def test_image_runs_as_the_user_that_the_manifest_names(pod: dict[str, Any]) -> None:
    """The image's user is a number, which `runAsNonRoot` can check, and the one of the manifest."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"USER {pod['securityContext']['runAsUser']}\n" in dockerfile


def test_containers_are_hardened(compose: dict[str, Any]) -> None:
    """A container that is built here cannot write to its image or gain rights; no container may gain any."""
    for name, service in compose["services"].items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if "build" in service:
            assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name


def test_actions_are_pinned_by_commit() -> None:
    """Each action is pinned by its commit, which cannot be moved, with the tag as a comment; own workflows are not."""
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        for line in workflow.read_text(encoding="utf-8").splitlines():
            if "uses:" in line and "uses: ./" not in line:
                assert re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_broker_comes_from_a_secret(container: dict[str, Any]) -> None:
    """The broker's URL, which holds a password, is not in the manifest."""
    (variable,) = container["env"]
    assert variable["name"] == "BACKPLANE_URL"
    assert "secretKeyRef" in variable["valueFrom"]


def test_mounted_files_exist(compose: dict[str, Any]) -> None:
    """Every mounted file exists in the repository, and every proxy configuration is mounted."""
    mounted = [
        volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", ())
    ]
    assert [path for path in mounted if not (ROOT / path).exists()] == []
    assert {(ROOT / path).name for path in mounted} >= {path.name for path in (EXAMPLES / "proxies").iterdir()}


def test_services_refer_to_existing_services(compose: dict[str, Any]) -> None:
    """The proxies' servers are services, on the ports they listen on; no port is published twice."""
    services = compose["services"]
    for name, service in services.items():
        for other in service.get("depends_on", ()):
            assert other in services, name
        for variable in ("SERVER_1", "SERVER_2"):
            if variable in service.get("environment", {}):
                host, port = service["environment"][variable].split(":")
                assert option(services[host]["command"], "--port") == port
                assert service["environment"]["LISTEN"].split(":")[1] == service["ports"][0].split(":")[2]
    published = [port.split(":")[1] for service in services.values() for port in service.get("ports", ())]
    assert len(published) == len(set(published))


def test_stop_grace_period_covers_the_drain(compose: dict[str, Any]) -> None:
    """Docker waits for longer than the drain takes."""
    seconds = int(compose["services"]["chat-1"]["stop_grace_period"].removesuffix("s"))
    assert seconds > Settings().drain_seconds + HANDLERS_SECONDS
