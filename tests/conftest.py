"""What all tests share: the event loops they run on, the brokers they use, and the check for leaked tasks."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import shutil
import sys
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Concatenate, Literal, NoReturn, ParamSpec, Protocol, TypeVar, cast

import pytest
from hypothesis import HealthCheck, settings

from tests.brokers.broker import Broker, BrokerMissingError
from tests.brokers.cluster import kafka_cluster, nats_cluster
from tests.brokers.commons import COMMONS
from tests.brokers.kafka import KafkaConfig, KafkaProcess, private_kafka, shared_kafka
from tests.brokers.mosquitto import MosquittoProcess
from tests.brokers.nats import delete_streams, private_nats, shared_nats
from tests.brokers.postgres import PostgresConfig, private_postgres, shared_postgres
from tests.brokers.rabbitmq import RabbitCluster, private_rabbitmq, rabbitmq_cluster, shared_rabbitmq
from tests.brokers.redis import RedisConfig, empty, private_redis, shared_redis
from tests.brokers.redis_cluster import RedisCluster, SingleNode, single_node
from tests.brokers.redis_sentinel import private_sentinels
from tests.chaos.case_table import lines as chaos_lines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from playwright.sync_api import Browser

    from tests.brokers.cluster import Cluster
    from tests.brokers.redis_sentinel import RedisSentinels

_CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

_UVLOOP = ("asyncio", {"use_uvloop": True})
_SLOW_BROKERS = {"private_kafka", "kafka_cluster", "private_amqp"}
_T = TypeVar("_T")
_P = ParamSpec("_P")
_SKIPPED = "Tests on "

pytest_plugins = ["tests.parallel"]

# How long an example takes depends on what else the machine does.
settings.register_profile("any load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any load")


class StartRedis(Protocol):
    """Starts a Redis that belongs to one test and ends with it."""

    def __call__(self, config: RedisConfig = ..., /) -> Broker:
        """Start one; skip the test where there is none."""
        ...


class StartRedisNode(Protocol):
    """Starts a Redis Cluster of one node, or returns the one with this configuration."""

    def __call__(self, config: RedisConfig = ..., /) -> SingleNode:
        """Start one; skip the test where there is none."""
        ...


class StartSentinels(Protocol):
    """Starts a Redis service under sentinels that belongs to one test and ends with it."""

    def __call__(self, *, password: str = "", sentinel_password: str = "", tls: bool = False) -> RedisSentinels:
        """Start one; skip the test where there is none."""
        ...


class StartNats(Protocol):
    """Starts a NATS that belongs to one test and ends with it."""

    def __call__(self, config: str = "", /, *, login: str = "", jetstream: bool = False) -> Broker:
        """Start one; skip the test where there is none."""
        ...


class StartPostgres(Protocol):
    """Starts a PostgreSQL that belongs to one test and ends with it."""

    def __call__(self, config: PostgresConfig = ..., /) -> Broker:
        """Start one; skip the test where there is none."""
        ...


class StartKafka(Protocol):
    """Starts a Kafka that belongs to one test and ends with it."""

    def __call__(self, config: KafkaConfig = ..., /) -> Broker:
        """Start one; skip the test where there is none."""
        ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--chaos=full`, which runs what is marked `full`, too, and `--measured`, which divides the suite in two."""
    parser.addoption(
        "--chaos", choices=("short", "full"), default="short", help="how much of tests/chaos, tests/sdk and others"
    )
    parser.addoption("--measured", choices=("only", "rest"), help="run what `make coverage` runs, or all the rest")


def pytest_configure(config: pytest.Config) -> None:
    """Register a marker, and allow as many open files as the system lets us: one process opens hundreds of sockets."""
    config.addinivalue_line("markers", "full: only with --chaos=full")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS reports a hard limit that it does not allow
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only the full suite runs, and what the other half of `--measured` runs."""
    full, half = config.getoption("--chaos") == "full", config.getoption("--measured")
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        is_kept = (full or not item.get_closest_marker("full")) and half in (None, _half(item))
        (kept if is_kept else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def _half(item: pytest.Item) -> Literal["only", "rest"]:
    """Return `only` for what `make coverage` runs: the unit tests, each on one event loop, as both run the same lines.

    The conformance suite is not measured: under a tracer its bursts take longer than its timeouts allow.
    """
    parameters: dict[str, object] = (
        item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    )
    is_measured = item.nodeid.startswith("tests/unit/") and parameters.get("anyio_backend") != _UVLOOP
    return "only" if is_measured else "rest"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print once for each broker that was missing, and the figures of the chaos suite."""
    skipped: list[pytest.TestReport] = terminalreporter.stats.get("skipped", [])
    reasons = {str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple)}
    for reason in sorted(reasons):
        if reason.startswith(f"Skipped: {_SKIPPED}"):
            terminalreporter.write_line(reason.removeprefix("Skipped: "), yellow=True)
    finished: list[pytest.TestReport] = [
        *terminalreporter.stats.get("passed", []),
        *terminalreporter.stats.get("failed", []),
    ]
    if table := chaos_lines(finished):
        terminalreporter.section("chaos")
        for line in table:
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def no_inherited_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the developer's own BACKPLANE_URL."""
    monkeypatch.delenv("BACKPLANE_URL", raising=False)


@pytest.fixture(autouse=True)
def thawed() -> Generator[None]:
    """Freeze nothing beyond a test that drains and does not stop: what it leaves would never be collected."""
    yield
    gc.unfreeze()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(_UVLOOP, id="uvloop"),
    ],
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Run every async test on both event loops."""
    loop: tuple[str, dict[str, bool]] = request.param
    return loop


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run on one event loop what takes seconds: a slow broker of its own, a class with `one_loop`; the rest on both."""
    fixtures = metafunc.definition._fixtureinfo  # pyright: ignore[reportPrivateUsage]
    loops = fixtures.name2fixturedefs.get("anyio_backend", [])
    suite = cast("object", metafunc.cls)  # pyright: ignore[reportUnknownMemberType]
    once = not _SLOW_BROKERS.isdisjoint(metafunc.fixturenames) or getattr(suite, "one_loop", False)
    if loops and loops[-1].params and once:
        one = pytest.mark.parametrize("anyio_backend", loops[-1].params[:1], indirect=True, scope="module")
        metafunc.definition.add_marker(one)


@pytest.fixture(autouse=True)
def watch_tasks(request: pytest.FixtureRequest) -> None:
    """Apply `no_task_left` to every async test, before its other fixtures."""
    if "anyio_backend" in request.fixturenames:
        request.getfixturevalue("no_task_left")


@pytest.fixture
async def no_task_left(anyio_backend: Any) -> AsyncIterator[None]:
    """Fail a test that has a task left when it and its fixtures are done."""
    before = asyncio.all_tasks()
    yield
    for _ in range(10):  # a cancelled task needs a pass of the loop to end
        await asyncio.sleep(0)
    # The task that runs tests and fixtures belongs to the plugin.
    left = {task for task in asyncio.all_tasks() - before if "TestRunner" not in repr(task.get_coro())}
    assert not left, f"tasks left: {left}"


@pytest.fixture
def ipc_url() -> Iterator[str]:
    """A name on `ipc://` in a folder of the test's own; pytest's are too deep for the path of a Unix socket."""
    with TemporaryDirectory(prefix="bp-") as folder:
        yield f"ipc://test?peer_timeout_seconds=5&directory={folder}"


@pytest.fixture(scope="session")
def shared_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The Redis that all tests of one process share, for `redis_broker` alone."""
    with _started("redis", lambda: shared_redis(tmp_path_factory.mktemp("redis"))) as broker:
        yield broker


@pytest.fixture
def redis_broker(shared_redis_server: Broker) -> Broker:
    """The Redis that all tests of one process share, emptied before each; one that breaks it takes `private_redis`.

    A fixture of a wider scope cannot use it, as its keys would be deleted between two tests: it takes `module_redis`.
    """
    empty(shared_redis_server)
    return shared_redis_server


@pytest.fixture(scope="module")
def module_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Redis for the tests of one module, which keeps its keys from one test to the next."""
    with _started("redis", lambda: private_redis(RedisConfig(), tmp_path_factory.mktemp("redis"))) as broker:
        yield broker


@pytest.fixture(name="private_redis")
def private_redis_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartRedis]:
    """Starts a Redis for this test alone: `private_redis(RedisConfig(password="secret"))`."""

    def make(folder: Path, config: RedisConfig = RedisConfig(), /) -> Broker:  # noqa: B008  # frozen
        return private_redis(config, folder)

    with _starting("redis", make, tmp_path_factory) as start:
        yield start


@pytest.fixture(name="private_sentinels")
def private_sentinels_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartSentinels]:
    """Starts a primary, a replica and three sentinels for this test alone, which takes a second."""
    with _starting("redis-sentinel", private_sentinels, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def redis_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartRedisNode]:
    """Starts a Redis Cluster of one node, one for each configuration: it takes two seconds."""
    nodes: dict[RedisConfig, SingleNode] = {}
    with ExitStack() as stack:

        def start(config: RedisConfig = RedisConfig(), /) -> SingleNode:  # noqa: B008  # frozen
            if config not in nodes:
                folder = tmp_path_factory.mktemp("redis-node")
                nodes[config] = stack.enter_context(_started("redis-cluster", lambda: single_node(folder, config)))
            return nodes[config]

        yield start


@pytest.fixture(scope="module")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three primaries and their replicas for the tests of one module, which takes three seconds."""
    with _started("redis-cluster", lambda: RedisCluster(tmp_path_factory.mktemp("redis-cluster"))) as cluster:
        yield cluster


@pytest.fixture
def redis_cluster_broker(redis_cluster: RedisCluster) -> RedisCluster:
    """The same, by the name that tests of all brokers use."""
    return redis_cluster


@pytest.fixture(scope="session")
def shared_nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The NATS that all tests of one process share, for `nats_broker` alone."""
    with _started("nats", lambda: shared_nats(tmp_path_factory.mktemp("nats"))) as broker:
        yield broker


@pytest.fixture
def nats_broker(shared_nats_server: Broker, caplog: pytest.LogCaptureFixture) -> Iterator[Broker]:
    """The NATS that all tests of one process share, without a stream; a test that breaks it takes `private_nats`.

    The stream of a pattern keeps the limits of its creation: one that another test left would keep too few messages.
    So a test that found such a stream fails.
    """
    delete_streams(shared_nats_server)
    yield shared_nats_server
    lines = [record.getMessage() for record in caplog.get_records("call")]
    assert not [line for line in lines if "is used as it is" in line]


@pytest.fixture(name="private_nats")
def private_nats_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartNats]:
    """Starts a NATS for this test alone, with lines of its configuration file: `private_nats("max_payload: 1024")`."""

    def make(folder: Path, config: str = "", /, *, login: str = "", jetstream: bool = False) -> Broker:
        return private_nats(config, folder, login=login, jetstream=jetstream)

    with _starting("nats", make, tmp_path_factory) as start:
        yield start


@pytest.fixture
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MosquittoProcess]:
    """A Mosquitto for this test alone."""
    with _started("mosquitto", lambda: MosquittoProcess(tmp_path_factory.mktemp("mosquitto"))) as broker:
        yield broker


@pytest.fixture(scope="session")
def postgres_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The PostgreSQL that all tests of one process share; one that breaks it takes `private_postgres`."""
    with _started("postgres", lambda: shared_postgres(tmp_path_factory.mktemp("postgres"))) as broker:
        yield broker


@pytest.fixture(name="private_postgres")
def private_postgres_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartPostgres]:
    """Starts a PostgreSQL for this test alone: `private_postgres(PostgresConfig(settings=("max_connections=9",)))`."""

    def make(folder: Path, config: PostgresConfig = PostgresConfig(), /) -> Broker:  # noqa: B008  # frozen
        return private_postgres(config, folder)

    with _starting("postgres", make, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def amqp_broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Broker:
    """The RabbitMQ that the whole run shares; a test takes an exchange of its own, or `private_amqp` to break it."""
    make = partial(shared_rabbitmq, tmp_path_factory.mktemp("rabbitmq"))
    try:
        return request.config.stash[COMMONS].take("amqp", make)
    except BrokerMissingError as error:
        _skip_without("amqp", str(error))


@pytest.fixture(name="private_amqp")
def private_amqp_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Broker]]:
    """Starts a RabbitMQ for this test alone, which takes ten seconds; such a test runs on one event loop."""
    with _starting("amqp", private_rabbitmq, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def amqp_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitCluster]:
    """A cluster of two RabbitMQ nodes for the tests of one module, which takes ten seconds to start."""
    with _started("amqp", lambda: rabbitmq_cluster(tmp_path_factory.mktemp("rabbitmq"))) as cluster:
        yield cluster


@pytest.fixture(name="nats_cluster")
def nats_cluster_fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """A private cluster of three NATS servers."""
    with _started("nats", lambda: nats_cluster(tmp_path)) as cluster:
        yield cluster


@pytest.fixture(name="kafka_cluster")
def kafka_cluster_fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """A private cluster of three Kafka brokers, which takes ten seconds to start."""
    announce = _announcer(request.config)
    with _started("kafka", lambda: kafka_cluster(tmp_path, announce)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka_broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Broker:
    """The Kafka that the whole run shares; a test takes a topic of its own, or `private_kafka` to break it."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    # One more: processes that a crashed worker has forked may hold its proxy for a while.
    make = partial(shared_kafka, tmp_path_factory.mktemp("kafka"), _announce, proxies=workers + 1)
    try:
        broker = request.config.stash[COMMONS].take("kafka", make)
    except BrokerMissingError as error:
        _skip_without("kafka", str(error))
    if isinstance(broker, KafkaProcess):
        broker.claim_proxy()
    return broker


@pytest.fixture(name="private_kafka")
def private_kafka_fixture(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartKafka]:
    """Starts a Kafka for this test alone, which takes two seconds; such a test runs on one event loop."""
    announce = _announcer(request.config)

    def make(folder: Path, config: KafkaConfig = KafkaConfig(), /) -> Broker:  # noqa: B008  # frozen
        return private_kafka(config, folder, announce)

    with _starting("kafka", make, tmp_path_factory) as start:
        yield start


def _announce(line: str) -> None:
    """Write a line to the terminal, from the process that shares its brokers."""
    print(line, file=sys.__stderr__, flush=True)


def _announcer(config: pytest.Config) -> Callable[[str], None]:
    """Return a function that writes a line to the terminal, not captured."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")

    def announce(line: str) -> None:
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            config.get_terminal_writer().line(line)

    return announce


@contextmanager
def _starting(
    name: str,
    make: Callable[Concatenate[Path, _P], AbstractContextManager[_T]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Generator[Callable[_P, _T]]:
    """Yield what starts a broker in a folder of its own, each time anew; all of them end with the block."""
    with ExitStack() as stack:

        def start(*arguments: _P.args, **options: _P.kwargs) -> _T:
            folder = tmp_path_factory.mktemp(name)
            return stack.enter_context(_started(name, lambda: make(folder, *arguments, **options)))

        yield start


@contextmanager
def _started(name: str, make: Callable[[], AbstractContextManager[_T]]) -> Generator[_T]:
    with ExitStack() as stack:
        try:
            broker = stack.enter_context(make())
        except BrokerMissingError as error:
            _skip_without(name, str(error))
        yield broker


def _skip_without(name: str, reason: str) -> NoReturn:
    """Skip, but fail in CI, where a run that skips everything must not pass."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must not run without {name}: {reason}", pytrace=False)
    pytest.skip(f"{_SKIPPED}{name} were skipped: {reason}.")


@pytest.fixture
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright  # most tests need none

    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        missing = f"no browser found: install one of {', '.join(names)}"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()
