"""`backplane.worker.cluster`: what a worker has that knows the others; several workers share one broker here."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from backplane import (
    Backplane,
    BrokerUnavailableError,
    ClosedError,
    ConfigurationError,
    JoinRefusedError,
    Presence,
    PresenceSnapshot,
    Settings,
    SubscribeError,
    Who,
)
from backplane.cluster.topics import CONTROL, WORKERS, inbox_of, presence_of
from backplane.fanout.codec import encode
from backplane.worker import cluster as module
from tests.unit.asgi_client import Client
from tests.unit.doubles import ControlledBroadcaster, Gate, until_idle
from tests.unit.kit import WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from backplane.worker.cluster import Cluster

pytestmark = pytest.mark.anyio

RULES = {"room:*": Presence(grace_seconds=0)}
ADA, BOB = Who(user="ada"), Who(user="bob", info={"n": 1})
LONG = "room:" + "é" * 125
BRISK = Settings(worker_heartbeat_seconds=0.2)


class Adapter(ControlledBroadcaster):
    """A broker that also records what is published.

    Attributes:
        published: The channels, in order.
        publish_gate: Holds each `publish`.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.published: list[str] = []
        self.publish_gate = Gate()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Record a publish."""
        self.published.append(channel)
        await self.publish_gate.passage()
        await super().publish(channel, payload)


def cluster_of(backplane: Backplane) -> Cluster:
    """Return what a started backplane has of the cluster."""
    runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
    assert runtime is not None
    assert runtime.cluster is not None
    return runtime.cluster


def worker(**options: Any) -> Backplane:
    """Return a worker on the broker that all workers of this process share."""
    chosen: dict[str, Any] = {"presence": RULES, "settings": BRISK} | options
    return Backplane("memory://", **chosen)


@asynccontextmanager
async def connected(backplane: Backplane, *channels: str, presence: Who | None = None) -> AsyncGenerator[Any]:
    """Connect a client for the block."""
    client = Client()
    async with backplane.connect(client.websocket, *channels, presence=presence) as connection:
        yield connection


async def until(backplane: Backplane, condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; it is looked at whenever something of the cluster happened."""
    agent = cluster_of(backplane)._agent  # pyright: ignore[reportPrivateUsage]
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await agent.passed()


def reserved(adapter: ControlledBroadcaster) -> set[str]:
    """Return the reserved channels that are subscribed."""
    return {channel for channel in adapter.channels if channel.startswith("$backplane/")}


# --- what is not turned on costs nothing -----------------------------------------------------------------------------


async def test_without_it_nothing_is_sent_or_kept() -> None:
    """Without presence and cluster nothing is subscribed or published, and a client has nothing for it."""
    adapter = Adapter()
    async with Backplane(adapter) as backplane, connected(backplane, "room:1") as connection:
        runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert runtime is not None
        assert (runtime.cluster, runtime._bus, runtime.clients.index) == (None, None, None)  # pyright: ignore[reportPrivateUsage]
        assert connection._driver._options is None
        with pytest.raises(ConfigurationError, match="channel 'room:1' has no presence: pass Backplane"):
            await connection.join("room:1", presence=True)
        with pytest.raises(ConfigurationError, match="channel 'room:1' has no presence: pass Backplane"):
            await connection.update_presence("room:1")
        with pytest.raises(ConfigurationError, match="needs Backplane"):
            await connected(backplane, "room:1", presence=ADA).__aenter__()
        with pytest.raises(ConfigurationError, match="the workers do not know each other"):
            await backplane.present("room:1")
        await until_idle()
        assert (reserved(adapter), adapter.published) == (set(), [])


async def test_a_cluster_without_presence() -> None:
    """It has three reserved channels and a heartbeat; a client without a user has nothing for presence."""
    adapter = Adapter()
    async with Backplane(adapter, cluster=True) as backplane, connected(backplane, "a") as connection:
        (own,) = await backplane.workers()
        assert reserved(adapter) == {WORKERS, CONTROL, inbox_of(own.id)}
        assert (own.connections, own.version, own.is_alive) == (1, "0.1.0", True)
        assert connection._driver._options is None
        await until_idle()
        assert adapter.published == [WORKERS]


async def test_a_channel_without_a_rule() -> None:
    """A client in it is nowhere present: nothing is subscribed or published for it."""
    adapter = Adapter()
    async with (
        Backplane(adapter, presence=RULES) as backplane,
        connected(backplane, "lobby", presence=ADA) as connection,
    ):
        await until_idle()
        assert (len(reserved(adapter)), adapter.published) == (3, [WORKERS])
        for call in (
            backplane.present("lobby"),
            connection.join("another", presence=True),
            connection.update_presence("another"),
        ):
            with pytest.raises(ConfigurationError, match=r"channel '(lobby|another)' has no presence: give it a rule"):
                await call
        assert list(connection.channels) == ["lobby"]
        with pytest.raises(ConfigurationError, match="channel 'lobby' has no presence"):
            async with backplane.watch("lobby"):
                pytest.fail("it is watched")
        assert len(reserved(adapter)) == 3


async def test_what_others_see() -> None:
    """Health and statistics count the channels and messages of the application alone."""
    async with worker() as backplane, connected(backplane, "room:1", "lobby", presence=ADA):
        await backplane.present("room:1")
        assert (await backplane.health()).channels == 2
        assert backplane.statistics().delivered == 0
        assert backplane.statistics().published == 0


# --- presence --------------------------------------------------------------------------------------------------------


async def test_users_of_several_workers() -> None:
    """Each worker has the users of all, a channel with the longest name as well, and one that left is gone."""
    async with worker() as a, worker() as b, worker() as c:
        async with connected(a, "room:1", LONG, presence=ADA), connected(b, "room:1", presence=BOB):
            for each in (a, b, c):
                view = await each.present("room:1")
                assert (sorted(view.users), view.connections, view.stale) == (["ada", "bob"], 2, False)
            assert list((await c.present(LONG)).users) == ["ada"]
            assert presence_of(LONG).startswith("$backplane/presence-sha256/")
        async with c.watch("room:1") as watch:
            await until(c, lambda: watch.view.connections == 0)


async def test_present_shares_its_question() -> None:
    """Calls at the same time, and one soon after, ask once; an own client that joined just before is in each answer."""
    adapter = Adapter()
    async with Backplane(adapter, presence=RULES) as backplane, connected(backplane, "room:1", presence=ADA):
        views = await asyncio.gather(*(backplane.present("room:1") for _ in range(5)))
        views.append(await backplane.present("room:1"))
        assert [list(view.users) for view in views] == [["ada"]] * 6
        asked = adapter.published.count(presence_of("room:1"))
        async with connected(backplane, "room:1", presence=BOB):
            assert sorted((await backplane.present("room:1")).users) == ["ada", "bob"]
        assert adapter.published.count(presence_of("room:1")) <= asked + 2


async def test_present_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an answer does not come in time it returns what is known, as stale."""
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.01)
    adapter = Adapter()
    async with Backplane(adapter, presence=RULES) as backplane:
        adapter.subscribe_gate.close()
        view = await backplane.present("room:1")
        assert (view.stale, dict(view.users)) == (True, {})
        adapter.subscribe_gate.open()


async def test_a_client_that_is_refused_was_never_present() -> None:
    """It joins one channel, and is refused the next one: nothing is published of it."""
    adapter = Adapter()
    backplane = Backplane(adapter, presence=RULES)
    backplane.authorize(lambda _, channel: channel != "room:2")
    async with backplane:
        client = Client()
        with pytest.raises(Exception) as caught:  # noqa: PT011
            await backplane.connect(client.websocket, "room:1", "room:2", presence=ADA).__aenter__()
        assert isinstance(caught.value.__cause__, JoinRefusedError)
        await until_idle()
        assert presence_of("room:1") not in adapter.published
        assert presence_of("room:1") not in adapter.channels


async def test_a_client_is_present_once_it_is_accepted() -> None:
    """Not in its handshake, however long that takes; and not where it leaves within it."""
    adapter = Adapter()
    async with Backplane(adapter, presence=RULES) as backplane:
        client = Client()
        client.accept_gate.close()
        context = backplane.connect(client.websocket, "room:1", presence=ADA)
        entering = asyncio.create_task(context.__aenter__())
        await client.accepting.wait()
        await until_idle()
        assert presence_of("room:1") not in adapter.channels
        client.accept_gate.open()
        connection = await entering
        assert list((await backplane.present("room:1")).users) == ["ada"]
        await connection.leave("room:1")
        assert list((await backplane.present("room:1")).users) == []
        await connection.join("room:1")
        assert list((await backplane.present("room:1")).users) == ["ada"]
        await context.__aexit__(None, None, None)
        with pytest.raises(ClosedError):
            await connection.update_presence("room:1", info=1)
        assert list((await backplane.present("room:1")).users) == []


async def test_update_and_frames_of_a_connection() -> None:
    """A client is sent the users and what changes; a channel that it has not joined changes nothing."""
    async with worker() as backplane:
        client = Client()
        async with backplane.connect(client.websocket, "lobby", presence=BOB) as connection:
            await connection.join("room:1", presence=True)
            first: Any = await client.receives()
            assert json.loads(first)["presence"]["connections"] in (0, 1)
            await connection.update_presence("room:2", info={"n": 2})
            await connection.update_presence("room:1", info={"n": 2})
            seen: dict[str, Any] = {}
            while seen.get("bob") != {"info": {"n": 2}, "connections": 1}:
                text: Any = await client.receives()
                stated = json.loads(text)["presence"]
                seen |= stated.get("joined", {}) | stated.get("updated", {})
            assert dict((await backplane.present("room:2")).users) == {}


async def test_frames_have_no_envelope() -> None:
    """Messages of a client with an envelope are in it, and its presence is not."""
    async with worker() as backplane:
        client = Client()
        async with backplane.connect(client.websocket, "room:1", envelope=lambda _: "made") as connection:
            await client.receives()  # of the join
            await connection.join("room:1", presence=True)
            text: Any = await client.receives()
            assert json.loads(text)["channel"] == "room:1"
            await backplane.publish("room:1", "x")
            assert await client.receives() == "made"


async def test_watches_end_with_the_worker() -> None:
    """Iterations end at a drain, as subscriptions do, and at the stop."""
    items: asyncio.Queue[object] = asyncio.Queue()

    async def watched(backplane: Backplane) -> None:
        async with backplane.watch("room:1") as watch:
            async for item in watch:
                items.put_nowait(item)

    backplane = worker()
    await backplane.start()
    first = asyncio.create_task(watched(backplane))
    assert isinstance(await asyncio.wait_for(items.get(), WAIT_SECONDS), PresenceSnapshot)
    await backplane.drain()
    await asyncio.wait_for(first, WAIT_SECONDS)
    assert items.empty()
    async with backplane.watch("room:1") as watch:
        second = asyncio.create_task(watch.__anext__())
        await backplane.stop()
        assert isinstance(await second, PresenceSnapshot)
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
    with pytest.raises(ClosedError):
        await backplane.present("room:1")


# --- the link --------------------------------------------------------------------------------------------------------


async def test_a_lost_link() -> None:
    """What is known is returned at once, as stale, and is true again when the link is back."""
    adapter = Adapter()
    async with Backplane(adapter, presence=RULES) as backplane, connected(backplane, "room:1", presence=ADA):
        assert not (await backplane.present("room:1")).stale
        cluster_of(backplane).link_changed("starting")
        assert not (await backplane.present("room:1")).stale
        cluster_of(backplane).link_changed("degraded")
        view = await backplane.present("room:1")
        assert (view.stale, list(view.users)) == (True, ["ada"])
        assert (await backplane.present("room:2")).stale
        cluster_of(backplane).link_changed("live")
        async with backplane.watch("room:1") as watch:
            await until(backplane, lambda: not watch.view.stale)


async def test_a_gap_where_answers_are_received() -> None:
    """What may have been an answer is asked for again, and what is known is known."""
    adapter = Adapter()
    async with Backplane(adapter, presence=RULES) as backplane:
        assert not (await backplane.present("room:1")).stale
        (own,) = await backplane.workers()
        assert adapter.sink is not None
        adapter.sink.gap([inbox_of(own.id)], "a test")
        assert not (await backplane.present("room:1")).stale


async def test_a_start_that_is_refused() -> None:
    """The error names every channel that the broker refuses, and what is needed; the link is closed again."""
    adapter = Adapter()
    adapter.refusals = {WORKERS: "no permission", CONTROL: "no permission"}
    backplane = Backplane(adapter, cluster=True)
    with pytest.raises(SubscribeError) as caught:
        await backplane.start()
    assert caught.value.refused.keys() == {WORKERS, CONTROL}
    assert "'$backplane/': this program must be allowed to publish and to subscribe" in caught.value.__notes__[0]
    assert (adapter.sink, backplane.state) == (None, "closed")
    adapter.refusals = {}
    async with backplane:
        assert len(await backplane.workers()) == 1


async def test_a_start_that_is_not_confirmed() -> None:
    """The error of a broker that does not answer is raised as it is."""
    adapter = Adapter()
    adapter.unconfirmed = {WORKERS: "loading"}
    backplane = Backplane(adapter, cluster=True, settings=Settings(subscribe_timeout_seconds=0.05))
    with pytest.raises(BrokerUnavailableError):
        await backplane.start()
    assert adapter.sink is None


async def test_a_lazy_start() -> None:
    """It returns without the broker, and begins when all channels are confirmed."""
    adapter = Adapter()
    adapter.subscribe_gate.close()
    async with Backplane(adapter, presence=RULES, settings=Settings(start="lazy")) as backplane:
        assert (await backplane.present("room:1")).stale
        await until_idle()
        assert adapter.published == []
        adapter.subscribe_gate.open()
        async with backplane.watch("room:1") as watch:
            await until(backplane, lambda: not watch.view.stale)
        assert WORKERS in adapter.published


async def test_a_lazy_start_on_a_link_that_is_lost() -> None:
    """Where the link is lost when the last confirmation arrives it begins without it, as after any loss."""
    adapter = Adapter()
    adapter.subscribe_gate.close()
    async with Backplane(adapter, presence=RULES, settings=Settings(start="lazy")) as backplane:
        await backplane.wait_for_state("live")
        cluster_of(backplane).link_changed("degraded")
        adapter.subscribe_gate.open()
        await adapter.until(lambda: len(reserved(adapter)) == 3)
        await until_idle()
        assert (await backplane.present("room:1")).stale
        cluster_of(backplane).link_changed("live")
        async with backplane.watch("room:1") as watch:
            await until(backplane, lambda: not watch.view.stale)


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_an_orderly_stop_is_seen_at_once() -> None:
    """The others drop the users of a worker that stops, and list it as ended; started again it is another one."""
    async with worker() as a:
        b = worker()
        await b.start()
        context = connected(b, "room:1", presence=BOB)
        await context.__aenter__()
        assert list((await a.present("room:1")).users) == ["bob"]
        async with a.watch("room:1") as watch:
            (before,) = [each for each in await b.workers() if each.last_seen_seconds_ago == 0]
            await b.stop()
            await until(a, lambda: not watch.view.users)
        await context.__aexit__(None, None, None)
        assert {each.id: each.is_alive for each in await a.workers()}[before.id] is False
        async with b:
            ids = {each.id for each in await b.workers()}
            assert before.id not in ids
            await until(a, lambda: ids <= {each.id for each in cluster_of(a).workers() if each.is_alive})


async def test_a_stop_while_the_broker_does_not_take_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the goodbye no longer than a second."""
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.01)
    adapter = Adapter()
    backplane = Backplane(adapter, presence=RULES)
    await backplane.start()
    await until_idle()
    adapter.publish_gate.close()
    async with asyncio.timeout(WAIT_SECONDS):
        await backplane.stop()
    assert adapter.published == [WORKERS, WORKERS]


# --- workers ---------------------------------------------------------------------------------------------------------


async def test_an_observer() -> None:
    """It sees the workers and the users, is none of them, and cannot have users."""
    async with worker() as member, worker(cluster="observer") as observer:
        async with connected(member, "room:1", presence=ADA):
            assert list((await observer.present("room:1")).users) == ["ada"]
        await until(observer, lambda: len(cluster_of(observer).workers()) == 1)
        assert [each.id for each in await observer.workers()] == [each.id for each in await member.workers()]
        with pytest.raises(ConfigurationError, match="needs a member of the cluster: this Backplane is an observer"):
            await connected(observer, "room:1", presence=ADA).__aenter__()
        async with connected(observer, "room:1") as connection:
            await connection.join("room:1", presence=True)


async def test_workers_of_another_version() -> None:
    """What a heartbeat states otherwise is left out, and a worker of which only its id is known is not listed."""
    adapter = Adapter()
    async with Backplane(adapter, cluster=True) as backplane:

        def publish(*fields: object) -> None:
            assert adapter.sink is not None
            text = json.dumps(fields)
            options: Any = {"excluded": None, "wire_format": "compact", "states_json": False}
            adapter.sink.deliver(WORKERS, encode(text, origin=b"12345678", published_at=1.0, **options))

        publish("beat", "d" * 16, 1, {"host": 5, "pid": "x", "started": 3, "connections": 4})
        publish("beat", "e" * 16, 1, {})
        await until(backplane, lambda: len(cluster_of(backplane).workers()) == 2)
        (other,) = [each for each in await backplane.workers() if each.id == "d" * 16]
        assert (other.host, other.pid, other.started_at, other.connections, other.version) == ("", 0, 3, 4, "")
        assert backplane.statistics().cluster_rejected == 0
        publish("beat", "too short", 1, {})
        await until_idle()
        assert backplane.statistics().cluster_rejected == 1
        assert (await backplane.health()).presence_lag_seconds == 0


async def test_workers_that_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are listed as such for two minutes, and not for as long as the protocol remembers them."""
    async with worker() as a:
        async with worker():
            await until(a, lambda: len(cluster_of(a).workers()) == 2)
        await until(a, lambda: [each.is_alive for each in cluster_of(a).workers()] == [True, False])
        monkeypatch.setattr(module, "_LISTED_SECONDS", -BRISK.worker_down_seconds)
        assert [each.is_alive for each in cluster_of(a).workers()] == [True]


async def test_commands_wait_for_the_workers_that_are_known() -> None:
    """A command that is confirmed returns once all have answered, soon after the start as well."""
    async with worker() as a, worker() as b, connected(b, "room:1", presence=ADA) as connection:
        answers = await a.disconnect(user="ada", confirm_seconds=WAIT_SECONDS)
        assert (sorted(answers.by_worker.values()), answers.complete) == ([0, 1], True)
        assert (a.statistics().commands_applied, b.statistics().commands_applied) == (1, 1)
        assert connection.is_over


async def test_a_survey_soon_after_the_start_ends_when_all_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing else happens at that moment."""
    monkeypatch.setattr(module, "SETTLE_HEARTBEATS", 0.001)
    async with worker(settings=Settings(worker_heartbeat_seconds=60, worker_down_seconds=600)) as backplane:
        backplane.on_survey("n")(_answer_one)
        async with asyncio.timeout(WAIT_SECONDS):
            answers = await backplane.survey("n", timeout_seconds=60)
        assert (list(answers.by_worker.values()), answers.missing) == ([1], [])


async def test_the_moment_of_a_connection() -> None:
    """It is known from the handshake to the end, and of no other client."""
    async with worker() as backplane:
        async with connected(backplane, "room:1") as connection:
            assert cluster_of(backplane).opened_at(connection.id) > 0
        with pytest.raises(ClosedError, match="has ended, or is none of this worker"):
            cluster_of(backplane).opened_at(connection.id)


def _answer_one(_: object) -> int:
    return 1
