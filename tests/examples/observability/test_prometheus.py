"""A real Prometheus scrapes the chat on two servers, with the configuration and the rules that are shipped."""

from __future__ import annotations

import json
import math
import signal
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import yaml

from tests.examples.example_server import EXAMPLES, ExampleServer, running
from tests.examples.observability.promql import filled, valued_parts
from tests.prometheus import Prometheus, configured_prometheus

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from tests.brokers.broker import Broker
    from tests.conftest import StartRedis

FOLDER = EXAMPLES / "observability"
WORKERS = 3  # one of the first server, two of the second


@contextmanager
def watched_chat(redis: Broker, folder: Path) -> Generator[tuple[Prometheus, list[ExampleServer]]]:
    """Run the chat on two servers, and a Prometheus that scrapes both every two seconds."""
    with ExitStack() as stack:
        servers: list[ExampleServer] = []
        for workers in ("1", "2"):
            command = [sys.executable, "-m", "uvicorn", "chat:app", "--workers", workers, "--port", "{port}"]
            command += ["--timeout-worker-healthcheck", "300"]  # else it ends a worker that is suspended for 5 s
            server = running(command, folder, broker_url=redis.url)
            servers.append(stack.enter_context(server))
        configured = stack.enter_context(configured_prometheus(configuration(servers), folder))
        yield configured, servers


def configuration(servers: Sequence[ExampleServer]) -> str:
    """Return the shipped configuration for these servers, with short intervals; a missing worker takes one second."""
    shipped = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    shipped["global"] |= {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
    shipped["rule_files"] = [str(FOLDER / name) for name in shipped["rule_files"]]
    (job,) = shipped["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{server.port}" for server in servers]}]
    return json.dumps(shipped)  # which is YAML


def expressions() -> Iterator[str]:
    """Yield every expression of the alerts and of the dashboard."""
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    yield from (rule["expr"] for rule in group["rules"])
    dashboard = json.loads((FOLDER / "grafana" / "backplane.json").read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (annotation["expr"] for annotation in dashboard["annotations"]["list"])


def talk(servers: Sequence[ExampleServer]) -> None:
    """Let a client on each server send a message to one room, which each of them receives."""
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect("/rooms/watched?name=ann")) for server in servers]
        for number, client in enumerate(clients):
            client.send(json.dumps({"text": f"message {number}"}))
        for client in clients:
            texts: set[str] = set()
            while not texts >= {f"message {number}" for number in range(len(clients))}:
                texts.add(json.loads(client.recv(timeout=60)).get("data", {}).get("text", ""))


def firing(watched: Prometheus) -> set[str]:
    """Return the names of the alerts that fire."""
    return {series["alertname"] for series, _ in watched.series('ALERTS{alertstate="firing"}')}


def test_every_expression_has_a_series(private_redis: StartRedis, tmp_path: Path) -> None:
    """While three workers serve, each expression of rules and dashboard has a value, and no alert fires."""
    with watched_chat(private_redis(), tmp_path) as (watched, servers):
        watched.wait_until(lambda: len(watched.series("backplane_link_up == 1")) == WORKERS, "each worker is scraped")
        talk(servers)
        lag = next(text for text in expressions() if "0.99" in text and "by (le, stage)" in text)
        watched.wait_until(lambda: has_numbers(watched, filled(lag)), "the lag is measured")
        parts = [part for expression in expressions() for part in valued_parts(filled(expression))]
        assert len(parts) > 40
        for part in parts:
            watched.wait_until(partial(has_series, watched, part), f"{part} has a series")
        assert firing(watched) == set()


def has_series(watched: Prometheus, expression: str) -> bool:
    """Return whether an expression has a series."""
    return bool(watched.series(expression))


def has_numbers(watched: Prometheus, expression: str) -> bool:
    """Return whether an expression has series, and each of them a number."""
    values = [value for _, value in watched.series(expression)]
    return bool(values) and not any(map(math.isnan, values))


@pytest.mark.full
def test_broker_that_stops_makes_its_alerts_fire(private_redis: StartRedis, tmp_path: Path) -> None:
    """A stopped broker fires the alert of all links, then that of each; both end when it is back."""
    redis = private_redis()
    with watched_chat(redis, tmp_path) as (watched, servers):
        talk(servers)
        watched.wait_until(lambda: len(watched.series("backplane_link_up == 1")) == WORKERS, "each worker is scraped")
        redis.stop()
        watched.wait_until(lambda: "BackplaneAllLinksDown" in firing(watched), "the alert of the broker fires")
        each = 'ALERTS{alertname="BackplaneLinkDown", alertstate="firing"}'
        watched.wait_until(lambda: len(watched.series(each)) == WORKERS, "the alert of each worker fires")
        assert firing(watched) <= {"BackplaneAllLinksDown", "BackplaneLinkDown", "BackplaneGaps"}
        redis.start()
        down = {"BackplaneAllLinksDown", "BackplaneLinkDown"}
        watched.wait_until(lambda: firing(watched).isdisjoint(down), "the alerts end")


@pytest.mark.full
def test_worker_that_is_stopped_makes_its_alert_fire(private_redis: StartRedis, tmp_path: Path) -> None:
    """A suspended worker is missing from the scrape of its server after a minute; its sibling is still in it."""
    with watched_chat(private_redis(), tmp_path) as (watched, servers):
        watched.wait_until(lambda: len(watched.series("backplane_link_up == 1")) == WORKERS, "each worker is scraped")
        (victim, *_) = (
            child
            for child in psutil.Process(servers[1].process.pid).children(recursive=True)
            if "spawn_main" in " ".join(child.cmdline())
        )
        victim.send_signal(signal.SIGSTOP)
        try:
            watched.wait_until(lambda: "BackplaneWorkersMissing" in firing(watched), "its alert fires", seconds=120)
            named = watched.series("backplane_worker_up == 0")
            assert [series["worker"] for series, _ in named] == [str(victim.pid)]
            assert len(watched.series("backplane_link_up == 1")) == WORKERS - 1
        finally:
            victim.send_signal(signal.SIGCONT)
        watched.wait_until(lambda: not firing(watched), "the alert ends")


def test_worker_that_receives_less_is_found(private_redis: StartRedis, tmp_path: Path) -> None:
    """The expression of the alert names the one worker whose adapter swallows a channel, within its own interval."""
    redis = private_redis()
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    (rule,) = (rule for rule in group["rules"] if rule["alert"] == "BackplaneWorkerReceivesLess")
    expression = rule["expr"].replace("5m", "10s")
    command = [sys.executable, "-m", "uvicorn", "swallowing_app:app", "--port", "{port}"]
    run = partial(running, command, tmp_path, broker_url=redis.url, cwd=Path(__file__).parent)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(run(environment={"SWALLOWS": channel})) for channel in ("", "$backplane/workers", "")
        ]
        watched = stack.enter_context(configured_prometheus(configuration(servers), tmp_path))
        watched.wait_until(lambda: bool(watched.series(expression)), "a worker is named")
        faulty = {f"127.0.0.1:{servers[1].port}"}
        watched.wait_until(
            lambda: {series["instance"] for series, _ in watched.series(expression)} == faulty, "it is the right one"
        )
        assert len(watched.series("backplane_link_up == 1")) == len(servers)
