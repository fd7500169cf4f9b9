"""Presence and commands on any adapter: each promise as a test.

Three workers in one event loop, each with an adapter of its own on one URL. Nothing waits for time: what must become
true is waited for, and what must not be reported is proved by what is reported after it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from backplane import (
    Backplane,
    BrokerUnavailableError,
    Gap,
    InvalidDataError,
    Presence,
    PresenceChange,
    PresenceSnapshot,
    Settings,
    TooManyPresentError,
    Who,
)
from backplane.broker.registry import broadcaster_from_url
from backplane.presence_types import MAX_INFO_BYTES, MAX_USER_BYTES
from backplane.testing.conformance import HOSTILE_CHANNELS
from backplane.testing.harness import reaches_state
from backplane.testing.loop_client import LoopClient
from backplane.testing.proxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping

    from backplane.broadcaster import Broadcaster

__all__ = ["PresenceConformance"]

_GRACE_SECONDS: Final = 1.5
_MAX_ENTRIES: Final = 6
RULES: Final = {
    "counted-*": Presence(grace_seconds=0, max_entries=_MAX_ENTRIES),
    "brief-*": Presence(grace_seconds=_GRACE_SECONDS),
    "lasting-*": Presence(grace_seconds=3600),
    "*": Presence(grace_seconds=0),
}
_SECRET: Final = "of-all-workers-of-this-application"  # noqa: S105
_WAIT_SECONDS: Final = 60.0
# Two of the longest that differ in their last byte: what stands for them must differ too.
_HOSTILE_CHANNELS: Final = (*HOSTILE_CHANNELS, f"{'x' * 254}y")
_CHANNELS: Final = 1_000
_ENTRIES: Final = 1_000

Cluster = tuple[Backplane, Backplane, Backplane]


def member(
    url: str | Broadcaster, *, down_seconds: float = 60, heartbeat_seconds: float = 0.3, secret: str | None = None
) -> Backplane:
    """Return a worker with presence in every channel; it waits a minute until another one counts as ended."""
    settings = Settings(
        worker_heartbeat_seconds=heartbeat_seconds,
        worker_down_seconds=down_seconds,
        linger_seconds=0.02,
        max_backoff_seconds=0.2,
    )
    return Backplane(url, settings=settings, presence=RULES, control_secret=secret, on_gap=_keep_open)


def _keep_open(_: Gap) -> None:
    """Send clients nothing at a gap, and let them stay."""


@asynccontextmanager
async def members(*urls: str | Broadcaster, **options: Any) -> AsyncGenerator[tuple[Backplane, ...]]:
    """Run a worker at each URL, and return once each knows all others."""
    async with AsyncExitStack() as stack:
        made = [await stack.enter_async_context(member(url, **options)) for url in urls]
        for worker in made:
            await until(lambda worker=worker: count_alive(worker), len(made))  # type: ignore[misc]
        yield tuple(made)


async def count_alive(worker: Backplane) -> int:
    """Return how many workers are alive and described, as `worker` knows."""
    return sum(1 for other in await worker.workers() if other.is_alive and other.pid)


async def until(evaluate: Callable[[], Any], expected: object) -> None:
    """Wait, bounded, until `await evaluate()` is `expected`; it is evaluated every 20 ms."""
    value: object = None
    try:
        async with asyncio.timeout(_WAIT_SECONDS):
            while (value := await evaluate()) != expected:  # noqa: ASYNC110  # a list has no event
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {_WAIT_SECONDS:g} s: {value!r:.2000} instead of {expected!r:.2000}") from None


async def known(worker: Backplane, channel: str) -> dict[str, int] | None:
    """Return the users of a channel and their connections; `None` while the view is stale, or a number alone."""
    view = await worker.present(channel)
    return None if view.stale or view.counts_only else {name: user.connections for name, user in view.users.items()}


async def all_know(workers: Iterable[Backplane], channel: str, users: Mapping[str, int]) -> None:
    """Wait until every worker has exactly these users, with so many connections each."""

    async def knows(worker: Backplane) -> None:
        await until(lambda: known(worker, channel), dict(users))
        assert (await worker.present(channel)).connections == sum(users.values())

    await asyncio.gather(*map(knows, workers))


class Replayed:
    """What one watcher has made of a snapshot and the changes after it, and whether they were numbered as promised.

    Attributes:
        users: The info of each user.
        connections: How many connections there are.
        snapshots: How many snapshots there were.
        changes: Every change, in order.
    """

    def __init__(self, worker: Backplane, channel: str) -> None:
        self.users: dict[str, Any] = {}
        self.connections: int = 0
        self.snapshots: int = 0
        self.changes: list[PresenceChange] = []
        self._worker = worker
        self._channel = channel
        self._version = 0
        self._changed = asyncio.Event()

    @property
    def joined(self) -> list[str]:
        """The users that were reported as joined, in order."""
        return [name for change in self.changes for name in change.joined]

    @property
    def left(self) -> list[str]:
        """The users that were reported as left, in order."""
        return [name for change in self.changes for name in change.left]

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Replayed]:
        """Watch for as long as the block, which begins after the first snapshot."""
        task = asyncio.create_task(self._run())
        try:
            await self.until(lambda: self.snapshots > 0)
            yield self
            if task.done():
                await task
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait, bounded, until `condition` holds; it is evaluated after each item."""
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"users {self.users!r:.500}, the last changes {self.changes[-5:]}") from None

    async def _run(self) -> None:
        async with self._worker.watch(self._channel) as presence:
            async for item in presence:
                self._take(item)
                self._changed.set()

    def _take(self, item: PresenceSnapshot | PresenceChange) -> None:
        if isinstance(item, PresenceSnapshot):
            self.snapshots += 1
            self.users = {name: user.info for name, user in item.users.items()}
        else:
            assert item.version == self._version + 1, "a number is missing"
            assert not item.joined.keys() & self.users.keys(), "joined again"
            assert self.users.keys() >= {*item.left, *item.updated}, "left or updated without having joined"
            self.changes.append(item)
            self.users |= {name: user.info for name, user in {**item.joined, **item.updated}.items()}
            for name in item.left:
                del self.users[name]
        self._version = item.version
        self.connections = item.connections


async def replayed(stack: AsyncExitStack, workers: Iterable[Backplane], channel: str) -> list[Replayed]:
    """Watch a channel at each worker until `stack` ends; return once each has its first snapshot."""
    replays = [Replayed(worker, channel) for worker in workers]
    await asyncio.gather(*(stack.enter_async_context(replay.running()) for replay in replays))
    return replays


def muted(url: str) -> tuple[Broadcaster, Callable[[], None], Callable[[], None]]:
    """Return an adapter, how to end its publishing, as `kill -9` does, and how to let it publish again."""
    adapter = broadcaster_from_url(url)
    publish = adapter.publish

    async def refuse(*_: Any, **__: Any) -> None:
        raise BrokerUnavailableError("muted")

    return adapter, lambda: vars(adapter).update(publish=refuse), lambda: vars(adapter).update(publish=publish)


class PresenceConformance:
    """Subclass it, give it the fixture `url`, and pytest runs every promise of presence and of commands."""

    pytestmark: pytest.MarkDecorator = pytest.mark.anyio

    # -- hooks ---------------------------------------------------------------------------------------------------------

    @pytest.fixture
    def url(self) -> str:
        """The URL of a broker that belongs to this test run."""
        raise NotImplementedError("a subclass gives the URL of its broker")

    @pytest.fixture
    def proxy(self, brokered_url: str) -> FaultProxy:
        """The proxy through which the tests of broken links connect.

        Override it where the broker announces an address of its own, at which clients would bypass the proxy.
        """
        return FaultProxy(brokered_url)

    # -- fixtures ------------------------------------------------------------------------------------------------------

    @pytest.fixture(autouse=True)
    def needs_asyncio(self, anyio_backend_name: str) -> None:
        """Skip on Trio, on which the plugin of anyio runs every test too where it is installed."""
        if anyio_backend_name != "asyncio":
            pytest.skip("the package runs on asyncio")

    @pytest.fixture
    def brokered_url(self, url: str) -> str:
        """The URL, for a test that cuts the link to a broker."""
        if not broadcaster_from_url(url).capabilities.brokered:
            pytest.skip("no broker, no link to lose: capabilities.brokered is False")
        return url

    @pytest.fixture
    def room(self) -> str:
        """A channel that was never used; a user that leaves it has left at once."""
        return f"room-{secrets.token_hex(8)}"

    @pytest.fixture
    async def three(self, url: str) -> AsyncIterator[Cluster]:
        """Three workers that know each other."""
        async with members(url, url, url) as (first, second, third):
            yield first, second, third

    # -- lists and changes -------------------------------------------------------------------------------------------

    async def test_every_worker_has_the_users_of_all(self, three: Cluster, room: str) -> None:
        """Joins, updates and ends on three workers are in the list of each, with the info of each user."""
        clients = [await LoopClient(three[n % 3], room, user=f"u{n}", info={"n": n}).open() for n in range(9)]
        await all_know(three, room, {f"u{n}": 1 for n in range(9)})
        for worker in three:
            view = await worker.present(room)
            assert {name: user.info for name, user in view.users.items()} == {f"u{n}": {"n": n} for n in range(9)}
        for number in (0, 4, 8):
            await clients[number].connection.update_presence(room, info={"typing": True})
        await clients[1].connection.leave(room)
        await clients[2].close()
        await all_know(three, room, {f"u{n}": 1 for n in (0, 3, 4, 5, 6, 7, 8)})
        for worker in three:
            await until(
                lambda worker=worker: _typing(worker, room),  # type: ignore[misc]
                {"u0", "u4", "u8"},
            )
        for client in clients:
            if client is not clients[2]:
                await client.close()
        await all_know(three, room, {})

    async def test_changes_replay_to_the_list(self, three: Cluster, room: str) -> None:
        """A watcher that applies numbered changes to the snapshot has what the list has, under joins and leaves."""
        async with AsyncExitStack() as stack:
            replays = await replayed(stack, three, room)
            open_clients: list[LoopClient] = []
            for number in range(120):
                info = {"round": number}
                open_clients.append(await LoopClient(three[number % 3], room, user=f"u{number % 30}", info=info).open())
                if number % 3 == 0:
                    await open_clients[number // 2 % len(open_clients)].connection.update_presence(room, info=number)
                if len(open_clients) > 12:
                    await open_clients.pop(number * 7 % len(open_clients)).close()
            await all_know(three, room, Counter(client.user for client in open_clients))
            for worker, replay in zip(three, replays, strict=True):
                view = await worker.present(room)
                infos = {name: user.info for name, user in view.users.items()}
                await replay.until(lambda replay=replay, infos=infos: replay.users == infos)  # type: ignore[misc]
                assert replay.snapshots == 1
                assert replay.connections == len(open_clients)
            for client in open_clients:
                await client.close()
            for replay in replays:
                await replay.until(lambda replay=replay: not replay.users)  # type: ignore[misc]
            assert len({tuple(replay.users) for replay in replays}) == 1

    async def test_a_snapshot_holds_what_was_there_before(self, three: Cluster, room: str) -> None:
        """The first item of a watch is complete: the users that joined any worker before it, and none joins twice."""
        async with (
            LoopClient(three[0], room, user="first"),
            LoopClient(three[1], room, user="second"),
        ):
            await all_know(three[:2], room, {"first": 1, "second": 1})
            async with Replayed(three[2], room).running() as replay:
                assert replay.users.keys() == {"first", "second"}
                async with LoopClient(three[0], room, user="third"):
                    await replay.until(lambda: bool(replay.changes))
                assert replay.joined == ["third"]

    async def test_a_user_with_several_connections_is_one_user(self, three: Cluster, room: str) -> None:
        """Connections of a user on several workers are counted, and only the end of the last one is a leave."""
        async with Replayed(three[0], room).running() as replay:
            clients = [await LoopClient(worker, room, user="u", info=n).open() for n, worker in enumerate(three)]
            await all_know(three, room, {"u": 3})
            for left in (2, 1):
                await clients.pop(0).close()
                await all_know(three, room, {"u": left})
            await clients[0].close()
            await all_know(three, room, {})
            await replay.until(lambda: not replay.users)
        assert (replay.joined, replay.left) == (["u"], ["u"])

    async def test_a_user_that_is_back_within_the_grace_has_not_left(self, three: Cluster) -> None:
        """A reconnect to another worker within the grace is reported to no watcher; an end without one is."""
        room = f"brief-{secrets.token_hex(8)}"
        async with AsyncExitStack() as stack:
            replays = await replayed(stack, three, room)
            ends = await LoopClient(three[0], room, user="ends").open()
            returns = await LoopClient(three[0], room, user="returns").open()
            for replay in replays:
                await replay.until(lambda replay=replay: len(replay.users) == 2)  # type: ignore[misc]
            await returns.close()
            async with LoopClient(three[1], room, user="returns"):
                await ends.close()  # later than the other one: its grace ends later
                for replay in replays:
                    await replay.until(lambda replay=replay: bool(replay.left))  # type: ignore[misc]
                    assert (sorted(replay.joined), replay.left) == (["ends", "returns"], ["ends"])
                await all_know(three, room, {"returns": 1})

    async def test_a_user_in_the_grace_is_present_without_a_connection(self, three: Cluster) -> None:
        """Within the grace a user is still in every list, with 0 connections."""
        room = f"lasting-{secrets.token_hex(8)}"
        async with LoopClient(three[1], room, user="u"):
            await all_know(three, room, {"u": 1})
        await all_know(three, room, {"u": 0})

    async def test_clients_are_sent_the_users_and_their_changes(self, three: Cluster, room: str) -> None:
        """A client that asked for it is sent a list, and then each change, as JSON."""
        async with LoopClient(three[0], room, user="watches") as client:
            await client.connection.join(room, presence=True)
            await until(lambda: _shown(client, room), {"watches"})
            async with LoopClient(three[1], room, user="other"):
                await until(lambda: _shown(client, room), {"watches", "other"})
            await until(lambda: _shown(client, room), {"watches"})

    # -- names and sizes ---------------------------------------------------------------------------------------------

    async def test_hostile_channel_names_are_apart(self, three: Cluster) -> None:
        """Wildcards, blanks, control characters, any Unicode and the longest names each have users of their own."""
        async with AsyncExitStack() as stack:
            for number, channel in enumerate(_HOSTILE_CHANNELS):
                await stack.enter_async_context(LoopClient(three[number % 3], channel, user=f"u{number}"))
            await asyncio.gather(
                *(all_know(three, channel, {f"u{number}": 1}) for number, channel in enumerate(_HOSTILE_CHANNELS))
            )

    async def test_a_thousand_channels(self, three: Cluster, room: str) -> None:
        """A thousand channels, each with a user on each of two workers, are known by the third one."""
        names = [f"{room}-{number}" for number in range(_CHANNELS)]
        per_client = 50
        async with AsyncExitStack() as stack:
            for worker, user in zip(three[:2], ("first", "second"), strict=False):
                for start in range(0, _CHANNELS, per_client):
                    await stack.enter_async_context(LoopClient(worker, *names[start : start + per_client], user=user))
            await asyncio.gather(*(all_know([three[2]], name, {"first": 1, "second": 1}) for name in names))

    async def test_a_thousand_entries(self, three: Cluster, room: str) -> None:
        """A channel with a thousand connections is complete on each worker, and on one that comes to it last."""
        clients = [LoopClient(three[n % 2], room, user=f"u{n}", info={"n": n}) for n in range(_ENTRIES)]
        await asyncio.gather(*(client.open() for client in clients))
        expected = {f"u{n}": 1 for n in range(_ENTRIES)}
        await all_know(three, room, expected)
        await asyncio.gather(*(client.close() for client in clients))
        await all_know(three, room, {})

    async def test_the_largest_user_and_info(self, three: Cluster, room: str) -> None:
        """A user and an info of the largest size arrive as they are; one byte more is refused, and changes nothing."""
        user, info = "ü" * (MAX_USER_BYTES // 2), "x" * (MAX_INFO_BYTES - 2)
        async with LoopClient(three[0], room, user=user, info=info) as client:
            for refused in ({"user": user, "info": f"{info}x"}, {"user": f"{user}x"}):
                with pytest.raises(InvalidDataError):
                    Who(**refused)
            with pytest.raises(InvalidDataError):
                await client.connection.update_presence(room, info=f"{info}x")
            await all_know(three, room, {user: 1})
            assert (await three[2].present(room)).users[user].info == info

    async def test_more_entries_than_the_rule_allows_are_counted(self, three: Cluster) -> None:
        """Over `max_entries` a channel has numbers alone, on every worker; a watcher begins anew, and again later."""
        room = f"counted-{secrets.token_hex(8)}"
        async with Replayed(three[2], room).running() as replay:
            clients = [await LoopClient(three[n % 2], room, user=f"u{n}").open() for n in range(_MAX_ENTRIES)]
            await all_know(three, room, {f"u{n}": 1 for n in range(_MAX_ENTRIES)})
            begun = replay.snapshots
            async with LoopClient(three[2], room, user="more"):
                await replay.until(lambda: replay.connections == _MAX_ENTRIES + 1)
                for worker in three:
                    await until(lambda worker=worker: _counted(worker, room), _MAX_ENTRIES + 1)  # type: ignore[misc]
                with pytest.raises(TooManyPresentError):
                    _ = (await three[0].present(room)).users
                await replay.until(lambda: replay.snapshots > begun)
            for _ in range(_MAX_ENTRIES // 2):
                await clients.pop().close()
            await all_know(three, room, {f"u{n}": 1 for n in range(len(clients))})
            await replay.until(lambda: replay.users.keys() == {f"u{n}" for n in range(len(clients))})
            for client in clients:
                await client.close()

    # -- workers that end, links that are lost -----------------------------------------------------------------------

    async def test_a_worker_that_stops_is_out_at_once(self, url: str, room: str) -> None:
        """The users of a worker that ends in order are gone, long before it would be missed."""
        async with members(url, url, down_seconds=600) as (first, second), AsyncExitStack() as stack:
            third = await stack.enter_async_context(member(url, down_seconds=600))
            async with LoopClient(first, room, user="stays"):
                ends = await LoopClient(third, room, user="ends").open()
                await all_know([first, second, third], room, {"stays": 1, "ends": 1})
                assert await count_alive(second) == 3
                await stack.aclose()
                await ends.close()
                await all_know([first, second], room, {"stays": 1})
                await until(lambda: count_alive(second), 2)

    async def test_a_worker_that_is_killed_is_out_in_time(self, url: str, room: str) -> None:
        """A worker that ends without a goodbye is out of every list, not before the time that is set for it."""
        adapter, mute, unmute = muted(url)
        async with members(url, url, adapter, down_seconds=1.5, heartbeat_seconds=0.2) as (first, second, third):
            loop = asyncio.get_running_loop()
            async with LoopClient(first, room, user="stays"), LoopClient(third, room, user="ends"):
                await all_know([first, second], room, {"stays": 1, "ends": 1})
                asked_at, name = loop.time(), (await third.workers())[0].id
                ago = next(other.last_seen_seconds_ago for other in await first.workers() if other.id == name)
                mute()
                await all_know([first, second], room, {"stays": 1})
                assert loop.time() - (asked_at - ago) > 1.5 - 0.01  # uvloop's clock counts milliseconds
                assert await count_alive(first) == 2
                unmute()
                await all_know([first, second, third], room, {"stays": 1, "ends": 1})

    async def test_lists_are_stale_while_the_link_is_lost(
        self, brokered_url: str, proxy: FaultProxy, room: str
    ) -> None:
        """A worker without its link has stale lists and takes no other for ended; then they are true again."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(proxy)
            workers = await stack.enter_async_context(members(brokered_url, brokered_url, proxy.url))
            first, second, third = workers
            (replay,) = await replayed(stack, [third], room)
            await stack.enter_async_context(LoopClient(third, room, user="own"))
            stays = await stack.enter_async_context(LoopClient(first, room, user="stays"))
            leaves = await LoopClient(second, room, user="leaves").open()
            await all_know([first, second, third], room, {"own": 1, "stays": 1, "leaves": 1})
            proxy.refuse()
            await reaches_state(third, "degraded")
            view = await third.present(room)
            assert view.stale
            assert view.users.keys() == {"own", "stays", "leaves"}
            await leaves.close()
            await stack.enter_async_context(LoopClient(second, room, user="joins"))
            await stays.connection.update_presence(room, info="updated")
            await all_know([first, second], room, {"own": 1, "stays": 1, "joins": 1})
            proxy.heal()
            await all_know([third, first, second], room, {"own": 1, "stays": 1, "joins": 1})
            assert (await third.present(room)).users["stays"].info == "updated"
            await replay.until(lambda: replay.users == {"own": None, "stays": "updated", "joins": None})
            assert (sorted(replay.joined), replay.left) == (["joins", "leaves", "own", "stays"], ["leaves"])
            assert all(worker.is_alive for worker in await third.workers())

    # -- workers and surveys -----------------------------------------------------------------------------------------

    async def test_each_worker_knows_all(self, three: Cluster) -> None:
        """Every worker lists itself first, and the others, with their clients and their version."""
        async with LoopClient(three[1], user="u"):
            names = [(await worker.workers())[0].id for worker in three]
            assert len(set(names)) == 3
            for worker, own in zip(three, names, strict=True):
                known_workers = await worker.workers()
                assert known_workers[0].id == own
                assert {other.id for other in known_workers} == set(names)
                assert all(other.pid and other.host and other.version and other.started_at for other in known_workers)
                await until(
                    lambda worker=worker: _connections(worker),  # type: ignore[misc]
                    dict(zip(names, (0, 1, 0), strict=True)),
                )

    async def test_a_survey_names_the_worker_that_does_not_answer(self, url: str) -> None:
        """The answers of the others arrive in time, with the name of the one without; errors are answers too."""
        adapter, mute, unmute = muted(url)
        async with members(url, url, adapter, heartbeat_seconds=0.2) as workers:
            names = [(await worker.workers())[0] for worker in workers]
            for number, worker in enumerate(workers):
                worker.on_survey("number")(partial(_answer, number))
            first = workers[0]
            await knows_all(first)
            answers = await first.survey("number", "q", timeout_seconds=20)
            assert answers.by_worker == {name: ["q", number] for number, name in enumerate(names)}
            workers[1].on_survey("only one")(partial(_answer, 1))
            answers = await first.survey("only one", timeout_seconds=20)
            assert answers.by_worker == {names[1]: [None, 1]}
            assert answers.errors.keys() == {names[0], names[2]}
            mute()
            answers = await first.survey("number", timeout_seconds=0.7)
            assert answers.by_worker == {names[0]: [None, 0], names[1]: [None, 1]}
            assert answers.missing == [names[2]]
            unmute()

    # -- commands ----------------------------------------------------------------------------------------------------

    async def test_commands_apply_on_every_worker(self, three: Cluster, room: str) -> None:
        """A user's connections are sent to, join, leave and are closed on all workers; those of others are not."""
        for worker in three:
            await knows_all(worker)
        names = [(await worker.workers())[0] for worker in three]
        each: dict[Any, Any] = dict.fromkeys(names, 1)
        clients = [await LoopClient(worker, user="u").open() for worker in three]
        async with LoopClient(three[1], user="other") as other:
            answers = await three[0].join(user="u", channel=room, confirm_seconds=20)
            assert answers is not None
            assert answers.by_worker == each
            await all_know(three, room, {"u": 3})
            await three[0].send_to(user="u", data="note")
            for client in clients:
                await client.receives("note")
            counted = await three[2].count_connections(user="u", exclude=clients[0].connection, timeout_seconds=20)
            assert sum(counted.by_worker.values()) == 2
            assert counted.complete
            await three[1].leave(user="u", channel=room)
            await all_know(three, room, {})
            assert all(room not in client.connection.channels for client in clients)
            left = await three[2].disconnect(
                user="u", exclude=clients[2].connection, code=4003, reason="banned", confirm_seconds=20
            )
            assert left.by_worker == each | {names[2]: 0}
            assert [await client.ended() for client in clients[:2]] == [4003, 4003]
            await three[0].disconnect(connection=clients[2].connection.id)
            assert await clients[2].ended() == 4503
            await three[0].send_to(user="other", data="barrier")
            await other.receives("barrier")
            assert other.sent == ["barrier"]
            assert other.close_code is None
        for client in clients:
            await client.close()

    async def test_a_command_that_arrives_again_is_applied_once(self, url: str) -> None:
        """What was recorded on the control channel and is published again changes nothing."""
        recorded: list[tuple[str, bytes]] = []
        adapter = broadcaster_from_url(url)
        publish = adapter.publish

        async def record(channel: str, payload: bytes, *rest: Any, **options: Any) -> Any:
            recorded.append((channel, payload))
            return await publish(channel, payload, *rest, **options)

        vars(adapter).update(publish=record)
        async with members(adapter, url, url) as workers, LoopClient(workers[1], user="u") as client:
            await workers[0].send_to(user="u", data="once")
            await client.receives("once")
            applied = workers[1].statistics().commands_applied
            for channel, payload in [item for item in recorded if item[0] == "$backplane/control"] * 3:
                await publish(channel, payload)
            await workers[0].send_to(user="u", data="barrier")
            await client.receives("barrier")
            assert client.sent == ["once", "barrier"]
            assert workers[1].statistics().commands_applied == applied + 1

    async def test_what_is_not_signed_is_dropped(self, url: str, room: str) -> None:
        """With a secret, commands and presence of a program without it are dropped and counted; others apply."""
        async with (
            members(url, url, secret=_SECRET) as (first, second),
            member(url) as outside,
            LoopClient(second, room, user="u") as client,
            LoopClient(outside, room, user="forged"),
        ):
            await outside.disconnect(user="u")
            await outside.send_to(user="u", data="forged")
            await first.send_to(user="u", data="signed")
            await client.receives("signed")
            assert (client.sent, client.close_code) == (["signed"], None)
            await until(lambda: _rejects(second, 2), True)
            await all_know([first, second], room, {"u": 1})
            assert await count_alive(first) == 2


async def knows_all(worker: Backplane) -> None:
    """Wait until a command of `worker` returns as soon as all have answered: soon after the start it waits longer."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_WAIT_SECONDS):
        while True:
            asked_at = loop.time()
            await worker.count_connections(user="none", timeout_seconds=0.3)
            if loop.time() - asked_at < 0.29:
                return


async def _shown(client: LoopClient, channel: str) -> set[str]:
    """Return the users that a client shows which applies what it was sent; fails where a number is missing."""
    users: set[str] = set()
    version = 0
    for text in client.sent:
        frame = json.loads(text)
        assert frame["channel"] == channel
        presence = frame["presence"]
        if "users" in presence:
            users = set(presence["users"])
        else:
            assert presence["version"] == version + 1
            assert not users & presence.get("joined", {}).keys()
            users |= presence.get("joined", {}).keys()
            users -= set(presence.get("left", ()))
        version = presence["version"]
    return users


async def _typing(worker: Backplane, channel: str) -> set[str]:
    users = (await worker.present(channel)).users
    return {name for name, user in users.items() if user.info == {"typing": True}}


async def _counted(worker: Backplane, channel: str) -> int | None:
    view = await worker.present(channel)
    return view.connections if view.counts_only and not view.stale else None


async def _connections(worker: Backplane) -> dict[str, int]:
    return {other.id: other.connections for other in await worker.workers()}


async def _rejects(worker: Backplane, least: int) -> bool:
    return worker.statistics().cluster_rejected >= least


def _answer(number: int, question: object) -> list[object]:
    return [question, number]
