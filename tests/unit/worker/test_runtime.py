"""`backplane.worker.runtime`: whom a worker takes, and that it forgets who leaves; `test_core.py` has the rest."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane.errors import ClosedError, TooManyConnectionsError
from backplane.log_bursts import LogBursts
from backplane.settings import Settings
from backplane.web.client_address import address_key
from backplane.worker.runtime import Runtime
from tests.unit.doubles import ControlledBroadcaster, counted

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio


class Guest:
    """Someone who must be told before the worker ends."""

    def retire(self, code: int, reason: str) -> None:
        """Do nothing."""

    async def close(self, code: int, reason: str) -> None:
        """Do nothing."""


def running(max_connections: int | None = None, max_connections_per_client: int | None = None) -> Runtime:
    """Return a backplane with these limits."""
    settings = Settings(max_connections=max_connections, max_connections_per_client=max_connections_per_client)
    return Runtime(ControlledBroadcaster(), settings)


async def test_as_many_as_are_allowed() -> None:
    """The worker takes as many as it may, is counted for one more, and takes the next when one has left."""
    worker, guests = running(max_connections=2), [Guest() for _ in range(3)]
    for guest in guests[:2]:
        worker.register_client(guest, "alice")
    with pytest.raises(TooManyConnectionsError, match="as many connections as it may"):
        worker.register_client(guests[2], "bob")
    assert (list(worker.connections), counted(worker.statistics)) == (guests[:2], {"refused_connections": 1})
    worker.unregister_client(guests[0])
    worker.register_client(guests[2], "bob")
    assert list(worker.connections) == guests[1:]


async def test_as_many_of_one_client() -> None:
    """One client has as many as it may, whatever others have, also when all of its own have left and come again."""
    worker, other = running(max_connections_per_client=2), Guest()
    worker.register_client(other, "bob")
    for _ in range(3):
        guests = [Guest() for _ in range(2)]
        for guest in guests:
            worker.register_client(guest, "alice")
        with pytest.raises(TooManyConnectionsError, match=r"^a client may have 2 connections$"):
            worker.register_client(Guest(), "alice")
        for guest in guests:
            worker.unregister_client(guest)
    assert list(worker.connections) == [other]


async def test_clients_whose_address_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    """Clients without a known address count for the worker and not as one client; one warning names the cure."""
    worker, guests = running(max_connections=3, max_connections_per_client=1), [Guest() for _ in range(3)]
    for guest in guests:
        worker.register_client(guest, None)
    with pytest.raises(TooManyConnectionsError, match="as many connections as it may"):
        worker.register_client(Guest(), None)
    for guest in guests:
        worker.unregister_client(guest)
    assert worker.health().connections == 0
    assert len([text for text in caplog.messages if "pass client_key=" in text]) == 1


async def test_key_and_address(caplog: pytest.LogCaptureFixture) -> None:
    """A key that looks like an address is not that address, whose refusal logs what to do if it is a proxy's."""
    worker, address = running(max_connections_per_client=1), address_key({"client": ("192.0.2.1", 4711)})
    worker.register_client(Guest(), "192.0.2.1")
    worker.register_client(Guest(), address)
    assert len(worker.connections) == 2
    for key in ("192.0.2.1", address):
        with pytest.raises(TooManyConnectionsError, match=r"^a client may have 1 connections$"):
            worker.register_client(Guest(), key)
        assert ("--forwarded-allow-ips" in caplog.messages[-1]) == (key is address)
        worker.bursts = LogBursts()


async def test_dismissed_twice_or_never_admitted() -> None:
    """Who is forgotten already, or was refused, takes no one else's place away."""
    worker, one, two, refused = running(max_connections_per_client=2), Guest(), Guest(), Guest()
    for guest in (one, two):
        worker.register_client(guest, "alice")
    with pytest.raises(TooManyConnectionsError):
        worker.register_client(refused, "alice")
    for guest in (refused, one, one):
        worker.unregister_client(guest)
    worker.register_client(one, "alice")
    with pytest.raises(TooManyConnectionsError):
        worker.register_client(refused, "alice")


async def test_counts_until_its_transport_is_gone() -> None:
    """A client whose handler has ended counts, for it, in all and in health, until its transport is gone."""
    worker, guest, other = running(2, 1), Guest(), Guest()
    gone: list[Callable[[], None]] = []
    worker.register_client(guest, "alice")
    worker.register_client(other, "bob")
    worker.unregister_client(guest, gone.append)
    assert list(worker.connections) == [other]
    assert worker.health().connections == 2
    with pytest.raises(TooManyConnectionsError, match="as many connections as it may"):
        worker.register_client(guest, "carol")
    worker.unregister_client(other)
    with pytest.raises(TooManyConnectionsError, match="a client may have 1"):
        worker.register_client(guest, "alice")
    gone[0]()
    assert worker.health().connections == 0
    worker.register_client(guest, "alice")


async def test_drain_waits_for_no_transport() -> None:
    """A drain is over when every handler has ended, whatever the clients have not read."""
    worker, guest = running(), Guest()
    gone: list[Callable[[], None]] = []
    worker.register_client(guest, "alice")
    asyncio.get_running_loop().call_soon(worker.unregister_client, guest, gone.append)
    async with asyncio.timeout(1):
        await worker.drain()
    gone[0]()


async def test_clients_that_left_cost_nothing() -> None:
    """A worker that many clients have come to and left keeps nothing of their keys."""
    worker = running(max_connections_per_client=1)
    for number in range(100):
        guest = Guest()
        worker.register_client(guest, f"192.0.2.{number}")
        worker.unregister_client(guest)
    assert worker._by_client == {}  # pyright: ignore[reportPrivateUsage]


async def test_nobody_while_draining() -> None:
    """A worker that drains takes nobody, and does not count that as a refusal for being full."""
    worker = running()
    worker.draining = True
    with pytest.raises(ClosedError, match="connect again, to another one"):
        worker.register_client(Guest(), "alice")
    assert (list(worker.connections), counted(worker.statistics)) == ([], {})


async def test_refused_clients_are_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """A client that comes again and again to a full worker is in the log by one line, and by number in a second one."""
    worker = running(max_connections_per_client=1)
    worker.register_client(Guest(), "alice")
    for _ in range(20):
        with pytest.raises(TooManyConnectionsError):
            worker.register_client(Guest(), "alice")
    worker.bursts.flush()
    assert caplog.messages == [
        "refused a client: a client may have 1 connections",
        "19 more within 10 s, the last one: refused a client: a client may have 1 connections",
    ]


async def test_stop_flushes_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """What was counted and not logged yet is logged at the stop."""
    worker = running(max_connections_per_client=1)
    await worker.supervisor.start()
    worker.register_client(Guest(), "alice")
    for _ in range(2):
        with pytest.raises(TooManyConnectionsError):
            worker.register_client(Guest(), "alice")
    await worker.stop()
    assert [text for text in caplog.messages if text.startswith("1 more within 10 s")] != []
