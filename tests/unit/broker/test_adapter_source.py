"""`backplane.broker.adapter_source`: an adapter object in place of a URL; URLs: test_core.py and test_registry.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane import Backplane, ConfigurationError, LifecycleError
from backplane.adapters.memory import MemoryBroadcaster, MemoryOptions
from backplane.broadcaster import BrokerUrl
from backplane.broker.adapter_source import AdapterSource

if TYPE_CHECKING:
    from backplane import Subscription

pytestmark = pytest.mark.anyio


async def received(messages: Subscription, count: int) -> list[object]:
    """Return the data of what is received next."""
    async with asyncio.timeout(30):
        return [getattr(await anext(messages), "data", None) for _ in range(count)]


def adapter() -> MemoryBroadcaster:
    """Return an adapter that is not started, on a bus of its own."""
    return MemoryBroadcaster(BrokerUrl(scheme="memory", netloc="of-this-test"), MemoryOptions())


async def test_adapter_object() -> None:
    """An adapter object can be given in place of a URL, and can be started again after `stop`."""
    backplane = Backplane(adapter())
    assert backplane.url == "memory://of-this-test"
    for _ in range(2):
        async with backplane, backplane.subscribe("a") as messages:
            await backplane.publish("a", "x")
            await asyncio.to_thread(backplane.sync.publish, "a", "y")
            assert await received(messages, 2) == ["x", "y"]


async def test_default_url_is_not_warned_of_beside_an_adapter_object(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An adapter object takes precedence over BACKPLANE_URL."""
    monkeypatch.setenv("BACKPLANE_URL", "redis://nowhere.invalid")
    async with Backplane(adapter()) as backplane:
        assert backplane.url == "memory://of-this-test"
    assert caplog.text == ""


async def test_adapter_object_of_an_event_loop_that_ended() -> None:
    """An adapter object cannot be started a second time without its `stop`, and the error names the cure."""
    backplane = Backplane(adapter())
    await asyncio.to_thread(asyncio.run, backplane.start())
    for _ in range(2):
        with pytest.raises(LifecycleError, match="with a new one, or with a URL"):
            await backplane.start()
    assert backplane.state == "closed"


async def test_adapter_object_of_an_event_loop_that_ended_with_another_backplane() -> None:
    """An adapter object of an ended event loop cannot be started by another Backplane either."""
    shared = adapter()
    await asyncio.to_thread(asyncio.run, Backplane(shared).start())
    with pytest.raises(LifecycleError, match="with a new one, or with a URL"):
        await Backplane(shared).start()


async def test_adapter_object_while_another_backplane_stops() -> None:
    """Until the link is closed the object belongs to the Backplane that closes it."""
    shared = adapter()
    first, second = Backplane(shared), Backplane(shared)
    await first.start()
    stop = asyncio.create_task(first.stop())
    await asyncio.sleep(0)
    with pytest.raises(LifecycleError, match="another Backplane uses it"):
        await second.start()
    await stop
    async with second:
        await second.publish("a", "x")


@pytest.mark.parametrize("wrong", [MemoryBroadcaster, b"memory://", 6379], ids=["class", "bytes", "port"])
def test_what_is_no_source(wrong: object) -> None:
    """An object that is neither a URL nor an adapter raises ConfigurationError."""
    with pytest.raises(ConfigurationError, match="takes a URL or an adapter object, not"):
        Backplane(wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_adapter_without_options() -> None:
    """An adapter without options as in the contract is refused when the Backplane is made."""

    class Incomplete(MemoryBroadcaster):
        def __init__(self) -> None:
            """Leave out what the base class sets."""

    with pytest.raises(ConfigurationError, match="the options of Incomplete must be"):
        Backplane(Incomplete())


async def test_adapter_object_of_another_backplane() -> None:
    """Two started Backplanes cannot share an adapter object; one after the other they can."""
    shared = adapter()
    async with Backplane(shared) as backplane, backplane.subscribe("a") as messages:
        with pytest.raises(LifecycleError, match="another Backplane uses it"):
            await Backplane(shared).start()
        await backplane.publish("a", "x")
        assert await received(messages, 1) == ["x"]
    async with Backplane(shared) as other:
        await other.publish("a", "x")


def test_adapter_object_cannot_be_opened_a_second_time() -> None:
    """A publish from a process that never starts the Backplane needs a link of its own, and so a URL."""
    with pytest.raises(ConfigurationError, match="start the Backplane, or give it a URL"):
        Backplane(adapter()).sync.publish("a", "x")


def test_url_for_another_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL that was given is that of another link; neither an adapter object nor the default has one."""
    monkeypatch.delenv("BACKPLANE_URL", raising=False)
    assert AdapterSource("memory://of-this-test").url_for_another() == "memory://of-this-test"
    with pytest.raises(ConfigurationError, match="an adapter object has only one: start the Backplane"):
        AdapterSource(adapter()).url_for_another()
    with pytest.raises(ConfigurationError, match="set BACKPLANE_URL"):
        AdapterSource("").url_for_another()
