"""`backplane.worker.clients`: which clients a worker accepts, how many of a key, and that none of a client is left."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane.control.client_index import ClientIndex
from backplane.errors import ClosedError, TooManyConnectionsError
from backplane.journal.journal import Journal
from backplane.statistics import Counters
from backplane.web.client_address import address_key
from backplane.worker.clients import ClientRegistry
from tests.unit.doubles import FakeClient, counted

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio


class Worker:
    """The registry of a worker, with what it counts and logs.

    Attributes:
        max_per_client: The limit that clients register with.
    """

    def __init__(
        self, max_connections: int | None = None, max_per_client: int | None = None, *, log_seconds: float = 10.0
    ) -> None:
        self.counters, self.journal = Counters(), Journal(window_seconds=log_seconds, burst=1)
        self.max_per_client = max_per_client
        self.clients = ClientRegistry(max_connections, self.counters, self.journal)

    def register(self, client: FakeClient, client_key: str | bytes | None) -> None:
        """Register a client with the limit of this worker."""
        self.clients.register(client, client_key, self.max_per_client)


async def test_as_many_as_are_allowed() -> None:
    """A worker accepts as many clients as it may, counts one more as refused, and accepts another when one has left."""
    worker, clients = Worker(max_connections=2), [FakeClient() for _ in range(3)]
    for client in clients[:2]:
        worker.register(client, "alice")
    with pytest.raises(TooManyConnectionsError, match="as many connections as it may"):
        worker.register(clients[2], "bob")
    assert (list(worker.clients.connected), counted(worker.counters)) == (clients[:2], {"refused_connections": 1})
    worker.clients.unregister(clients[0])
    worker.register(clients[2], "bob")
    assert list(worker.clients.connected) == clients[1:]


async def test_as_many_of_one_client() -> None:
    """A client has as many connections as it may, whatever others have, also when all have ended and it returns."""
    worker, other = Worker(max_per_client=2), FakeClient()
    worker.register(other, "bob")
    for _ in range(3):
        clients = [FakeClient() for _ in range(2)]
        for client in clients:
            worker.register(client, "alice")
        with pytest.raises(TooManyConnectionsError, match=r"^a client may have 2 connections$"):
            worker.register(FakeClient(), "alice")
        for client in clients:
            worker.clients.unregister(client)
    assert list(worker.clients.connected) == [other]


async def test_clients_whose_address_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    """Clients without a known address count for the worker but not as one client; one warning names the cure."""
    worker, clients = Worker(max_connections=3, max_per_client=1), [FakeClient() for _ in range(3)]
    for client in clients:
        worker.register(client, None)
    with pytest.raises(TooManyConnectionsError, match="as many connections as it may"):
        worker.register(FakeClient(), None)
    for client in clients:
        worker.clients.unregister(client)
    assert len(worker.clients) == 0
    assert len([text for text in caplog.messages if "pass client_key=" in text]) == 1


async def test_key_and_address(caplog: pytest.LogCaptureFixture) -> None:
    """A key that looks like an address is not that address, whose refusal logs what to do if it is a proxy's."""
    worker, address = Worker(max_per_client=1, log_seconds=0), address_key({"client": ("192.0.2.1", 4711)})
    worker.register(FakeClient(), "192.0.2.1")
    worker.register(FakeClient(), address)
    assert len(worker.clients.connected) == 2
    for key in ("192.0.2.1", address):
        with pytest.raises(TooManyConnectionsError, match=r"^a client may have 1 connections$"):
            worker.register(FakeClient(), key)
        assert ("--forwarded-allow-ips" in caplog.messages[-1]) == (key is address)


async def test_unregistered_twice_or_never_registered() -> None:
    """A client that is unregistered a second time, or was refused, does not free the place of another one."""
    worker, one, two, refused = Worker(max_per_client=2), FakeClient(), FakeClient(), FakeClient()
    for client in (one, two):
        worker.register(client, "alice")
    with pytest.raises(TooManyConnectionsError):
        worker.register(refused, "alice")
    for client in (refused, one, one):
        worker.clients.unregister(client)
    worker.register(one, "alice")
    with pytest.raises(TooManyConnectionsError):
        worker.register(refused, "alice")


async def test_counts_until_its_transport_is_gone() -> None:
    """A client whose handler has ended counts, for its key and for the worker, until its transport is gone."""
    worker, client, other = Worker(2, 1), FakeClient(), FakeClient()
    gone: list[Callable[[], None]] = []
    worker.register(client, "alice")
    worker.register(other, "bob")
    worker.clients.unregister(client, gone.append)
    assert list(worker.clients.connected) == [other]
    assert len(worker.clients) == 2
    with pytest.raises(TooManyConnectionsError, match="as many connections as it may"):
        worker.register(client, "carol")
    worker.clients.unregister(other)
    with pytest.raises(TooManyConnectionsError, match="a client may have 1"):
        worker.register(client, "alice")
    gone[0]()
    assert len(worker.clients) == 0
    worker.register(client, "alice")


async def test_waits_for_no_transport() -> None:
    """The wait for the clients is over when every handler has ended, whatever the clients have not read."""
    worker, client = Worker(), FakeClient()
    gone: list[Callable[[], None]] = []
    worker.register(client, "alice")
    asyncio.get_running_loop().call_soon(worker.clients.unregister, client, gone.append)
    async with asyncio.timeout(30):
        await worker.clients.wait_until_empty(60)
    gone[0]()


async def test_clients_that_left_cost_nothing() -> None:
    """After many clients have connected and left, nothing of their keys is kept."""
    worker = Worker(max_per_client=1)
    for number in range(100):
        client = FakeClient()
        worker.register(client, f"192.0.2.{number}")
        worker.clients.unregister(client)
    assert worker.clients._count_by_key == {}  # pyright: ignore[reportPrivateUsage]


async def test_no_client_while_draining() -> None:
    """A worker that drains accepts no client, and does not count that as a refusal because it is full."""
    worker = Worker()
    worker.clients.is_draining = True
    with pytest.raises(ClosedError, match="connect again, to another one"):
        worker.register(FakeClient(), "alice")
    assert (list(worker.clients.connected), counted(worker.counters)) == ([], {})


async def test_refused_clients_are_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """A client that is refused again and again is one line in the log, and a second one with the count."""
    worker = Worker(max_per_client=1)
    worker.register(FakeClient(), "alice")
    for _ in range(20):
        with pytest.raises(TooManyConnectionsError):
            worker.register(FakeClient(), "alice")
    worker.journal.flush()
    assert caplog.messages == [
        "refused a client: a client may have 1 connections",
        "19 more within 10 s, the last one: refused a client: a client may have 1 connections",
    ]


async def test_limit_of_each_connection() -> None:
    """All connections of a key count, and the limit of the one that comes decides."""
    worker = Worker()
    for limit in (1, None, 3):
        worker.clients.register(FakeClient(), "alice", limit)
    with pytest.raises(TooManyConnectionsError, match=r"^a client may have 3 connections$"):
        worker.clients.register(FakeClient(), "alice", 3)


async def test_sockets_for_refusals() -> None:
    """As many refused clients may have a socket at a time as the worker may have clients, and at most 256."""
    for max_connections, most in ((3, 3), (1_000, 256), (None, 256)):
        clients = Worker(max_connections).clients
        assert [clients.reserve_refusal() for _ in range(most + 1)] == [*[True] * most, False]
        clients.release_refusal()
        assert (clients.reserve_refusal(), clients.reserve_refusal()) == (True, False)


async def test_a_client_that_cannot_be_closed(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and all others are closed."""
    worker, broken, others = Worker(), FakeClient(), [FakeClient() for _ in range(120)]

    async def fail(_code: int, _reason: str, /) -> None:
        raise KeyError("a fault")

    broken.close = fail  # type: ignore[method-assign]
    for client in (broken, *others):
        worker.register(client, None)
    await worker.clients.close_all()
    assert [client.closes for client in others] == [[("at once", 1012, "restart")]] * 120
    assert [line.partition(" at test_clients.py")[0] for line in caplog.messages] == [
        "a client could not be closed: KeyError"
    ]


@pytest.mark.parametrize("user", ["ada", None])
async def test_a_client_that_names_its_user_later(user: str | None) -> None:
    """Commands find it by its user from then on; without commands, or a user, nothing changes."""
    worker, client = Worker(), FakeClient()
    worker.clients.identify(client)
    worker.clients.index = ClientIndex()
    worker.register(client, None)
    client.user = user
    worker.clients.identify(client)
    assert worker.clients.index.user_of(client.id) == user
