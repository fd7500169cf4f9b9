"""`diagnose`: what it reports of a broker, and of problems with it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import pytest

from backplane import (
    Backplane,
    BackplaneError,
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    InvalidChannelError,
    PublishError,
    PublishOutcomeUnknownError,
    Settings,
    SubscribeError,
)
from backplane.adapters.memory import MemoryBroadcaster
from backplane.broadcaster import Capabilities
from backplane.broker import registry
from backplane.cli import diagnosis
from backplane.cli.diagnosis import Diagnosis, describe_reach, describe_return, diagnose, format_size
from backplane.message import ALL
from tests.conformance.example_broker import example_broker

if TYPE_CHECKING:
    from backplane.broadcaster import Sink

pytestmark = pytest.mark.anyio

CAPABILITIES = Capabilities(brokered=False, reach="process", publish_returns="delivered", max_payload_bytes=1)


def failing(error: Exception) -> object:
    """Return a method that raises."""

    async def method(*_: object) -> NoReturn:
        raise error

    return method


async def forever(*_: object) -> NoReturn:
    """Stand for a broker that does not answer."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nothing ends this")


# --- no problem ----------------------------------------------------------------------------------------------------


async def test_a_broker_that_works() -> None:
    """Every figure is reported, and no problem."""
    found = await diagnose("memory://", messages=3)

    assert found.problem is None
    assert found.url == "memory://"
    assert found.broker == "the memory of this process"
    assert found.capabilities.reach == "process"
    assert found.connect_seconds is not None
    assert len(found.round_trips_seconds) == 3
    assert min(found.round_trips_seconds) > 0


async def test_processes_of_a_host_are_counted(ipc_url: str) -> None:
    """On `ipc://`, which has no broker, the other processes are counted."""
    assert (await diagnose(ipc_url, messages=1)).broker == "Unix sockets, 0 other processes"
    async with Backplane(ipc_url):
        assert (await diagnose(ipc_url, messages=1)).broker == "Unix sockets, 1 other process"


async def test_progress_is_reported() -> None:
    """`on_progress` is called with each step."""
    steps: list[str] = []
    await diagnose("memory://", channel="mine", messages=2, on_progress=steps.append)

    assert steps == [
        "connecting to memory://",
        "joining channel 'mine'",
        "message 1 of 2",
        "message 2 of 2",
    ]


async def test_an_adapter_that_does_not_describe_its_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `SupportsDescribe` there is no description, and no problem."""
    adapter = ("tests.conformance.example_adapter:ExampleBroadcaster", None)
    monkeypatch.setitem(registry._BUILT_IN, "example", adapter)  # pyright: ignore[reportPrivateUsage]
    async with example_broker() as url:
        found = await diagnose(url, messages=1)
    assert (found.broker, found.problem) == (None, None)


async def test_a_limit_that_the_broker_announces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capabilities are those of the open link, when the broker's limit is known."""
    start = MemoryBroadcaster.start

    async def start_with_a_limit(self: MemoryBroadcaster, sink: Sink) -> None:
        await start(self, sink)
        limited = replace(self.capabilities, max_payload_bytes=1234)
        monkeypatch.setattr(MemoryBroadcaster, "capabilities", limited)

    monkeypatch.setattr(MemoryBroadcaster, "start", start_with_a_limit)
    found = await diagnose("memory://", messages=1)
    assert found.capabilities.max_payload_bytes == 1234


async def test_messages_of_others_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a channel that others use, their messages are not round trips."""
    publish = MemoryBroadcaster.publish

    async def publish_among_others(self: MemoryBroadcaster, channel: str, payload: bytes) -> None:
        await publish(self, channel, b"of another publisher")
        await publish(self, channel, payload)

    monkeypatch.setattr(MemoryBroadcaster, "publish", publish_among_others)
    found = await diagnose("memory://", channel="lobby", messages=3)
    assert (found.problem, len(found.round_trips_seconds)) == (None, 3)


# --- problems -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["", "$backplane/probe/x"])
async def test_an_illegal_channel(channel: str) -> None:
    """A channel that no application may use raises, before anything is opened."""
    with pytest.raises(InvalidChannelError):
        await diagnose("memory://", channel=channel)


async def test_a_wrong_url() -> None:
    """A wrong URL raises: there is nothing to diagnose."""
    with pytest.raises(ConfigurationError):
        await diagnose("memori://")


@pytest.mark.parametrize(
    ("method", "error", "words"),
    [
        ("start", BrokerUnavailableError("no broker there."), "no broker there; is the broker running"),
        ("start", BrokerAuthenticationError("wrong password"), "wrong password; check the user and the password"),
        ("start", BrokerError("a certificate that is not trusted"), "a certificate that is not trusted"),
        ("subscribe", SubscribeError({"mine": "no permission"}), "no permission; grant channel 'mine', or name one"),
        ("publish", PublishError("no permission"), "no permission; grant channel 'mine', or name one"),
        ("publish", PublishOutcomeUnknownError("no answer"), "no answer; the broker received the message"),
    ],
)
async def test_what_the_broker_refuses(
    monkeypatch: pytest.MonkeyPatch, method: str, error: BackplaneError, words: str
) -> None:
    """Each error is reported with its text, and with a hint where there is one."""
    monkeypatch.setattr(MemoryBroadcaster, method, failing(error))
    found = await diagnose("memory://alice:secret@here", channel="mine")

    assert found.problem is not None
    assert words in found.problem
    assert found.url == "memory://alice:***@here"
    assert found.round_trips_seconds == ()
    assert (found.broker is None) is (method == "start")


async def test_a_broker_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that takes too long is ended, and the adapter stopped."""
    stopped: list[MemoryBroadcaster] = []

    async def stop(self: MemoryBroadcaster) -> None:
        stopped.append(self)

    monkeypatch.setattr(diagnosis, "Settings", lambda: Settings(start_timeout_seconds=0.01))
    monkeypatch.setattr(MemoryBroadcaster, "start", forever)
    monkeypatch.setattr(MemoryBroadcaster, "stop", stop)
    found = await diagnose("memory://")

    assert found.problem is not None
    assert found.problem.startswith("no answer from memory:// within 0.01 s; is the broker running")
    assert len(stopped) == 1


async def test_a_broker_that_does_not_describe_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A description that does not arrive in time is a problem."""
    monkeypatch.setattr(diagnosis, "_DESCRIBE_SECONDS", 0.01)
    monkeypatch.setattr(MemoryBroadcaster, "describe", forever)
    found = await diagnose("memory://")
    assert found.problem == "the broker accepted the link and did not describe itself within 0.01 s"


async def test_a_message_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that accepts messages and delivers none is a problem."""

    async def swallow(*_: object) -> None:
        """Accept it."""

    monkeypatch.setattr(diagnosis, "_RETURN_SECONDS", 0.01)
    monkeypatch.setattr(MemoryBroadcaster, "publish", swallow)
    found = await diagnose("memory://")
    assert found.problem == "message 1 was published and did not return within 0.01 s"


async def test_a_link_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap during the check is a problem, though every message returned."""
    sinks: list[Sink] = []
    start, publish = MemoryBroadcaster.start, MemoryBroadcaster.publish

    async def recorded_start(self: MemoryBroadcaster, sink: Sink) -> None:
        sinks.append(sink)
        await start(self, sink)

    async def publish_after_a_gap(self: MemoryBroadcaster, channel: str, payload: bytes) -> None:
        sinks[-1].gap(ALL, "overrun")
        await publish(self, channel, payload)

    monkeypatch.setattr(MemoryBroadcaster, "start", recorded_start)
    monkeypatch.setattr(MemoryBroadcaster, "publish", publish_after_a_gap)
    found = await diagnose("memory://")
    assert found.problem == "the link was lost during the check: overrun"


# --- figures and texts ---------------------------------------------------------------------------------------------


def test_percentiles() -> None:
    """A percentile is a value that occurred: the smallest that enough of the messages did not exceed."""
    hundred = tuple(number / 100 for number in range(100, 0, -1))
    found = Diagnosis(url="", capabilities=CAPABILITIES, round_trips_seconds=hundred)

    assert [found.round_trip_percentile(percent) for percent in (0, 50, 99, 100)] == [0.01, 0.5, 0.99, 1.0]


def test_percentile_of_nothing() -> None:
    """Without a round trip there is no percentile."""
    with pytest.raises(ValueError, match="no message"):
        Diagnosis(url="", capabilities=CAPABILITIES).round_trip_percentile(50)


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (1024, "1 KiB"),
        (1_000_000, "1 MB"),
        (1024 * 1024, "1 MiB"),
        (1_048_577, "1,048,577 bytes"),
        (16 * 1024 * 1024, "16 MiB"),
    ],
)
def test_format_size(size_bytes: int, words: str) -> None:
    """A size is formatted exactly, in the largest unit that is exact."""
    assert format_size(size_bytes) == words


def test_capabilities_in_words() -> None:
    """Reach and what a publish guarantees are described; on one host with the kernel in between."""
    within_host = replace(CAPABILITIES, reach="host")
    assert describe_reach(CAPABILITIES) == "this process"
    assert describe_return(CAPABILITIES) == "handed to every subscriber"
    assert describe_return(within_host) == "handed to every subscriber here, and to the kernel for each peer"
    assert describe_return(replace(within_host, publish_returns="stored")) == "the server has stored it"
