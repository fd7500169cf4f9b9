"""Why a client does not receive a channel, on real brokers: each worker that receives nothing is named with the reason.

Two workers: one is asked, the other one serves the client. An explanation may take ten seconds at most: by the
application, by the command and on the live page, which name the same worker.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from backplane import Backplane, ConfigurationError, Connection, InvalidDataError, Limits, PublishError, Settings
from backplane.centrifugal.endpoint import Accepted, Centrifugal, ConnectRequest
from backplane.centrifugal.tokens import ConnectClaims, SubscribeClaims
from backplane.errors import InvalidTokenError
from backplane.server.uvicorn import DirectLaneProtocol
from backplane.testing import FaultProxy
from tests.brokers.redis import RedisConfig
from tests.server_in_loop import serving_in_loop
from tests.unit.admin.kit import browsing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket
    from websockets.asyncio.client import ClientConnection

    from backplane.explain.explanation import Explanation
    from tests.brokers.broker import Broker
    from tests.conftest import StartRedis

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested does not depend on it."""
    return "asyncio", {"use_uvloop": True}


WAIT_SECONDS = 60
# Within ten seconds where the machine has nothing else to do, and several tests are no such machine.
NAMED_SECONDS = 30
SETTINGS = Settings(
    worker_heartbeat_seconds=0.2,
    worker_down_seconds=60,
    probe_interval_seconds=60,
    publish_timeout_seconds=20,
    subscribe_timeout_seconds=60,
)
CHANNEL = "orders:42"


async def why(*arguments: str) -> tuple[int, str]:
    """Run the command; return its status and what it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "backplane", "why", *arguments, "--seconds", "1"), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(NAMED_SECONDS):
        printed, _ = await process.communicate()
    return process.returncode or 0, printed.decode()


async def command_finds(url: str, secret: str | None = None) -> tuple[str, str]:
    """Return what `backplane why` finds: the verdict, and the worker that it names."""
    signed = () if secret is None else ("--control-secret", secret)
    status, printed = await why(url, "--channel", CHANNEL, "--client", "ada", "--json", *signed)
    assert status == 1
    found = json.loads(printed)
    return found["verdict"], found["findings"][0]["worker"]


async def page_finds(backplane: Backplane) -> tuple[str, str]:
    """Return what the live page of a worker finds."""
    async with asyncio.timeout(NAMED_SECONDS), browsing(backplane) as page:
        found = (await page.get("api/explain", params={"client": "ada", "channel": CHANNEL})).json()
    return found["verdict"], found["findings"][0]["worker"]


async def others_find(found: Explanation, site: Deployment, url: str, secret: str | None = None) -> None:
    """Check that the command and the page find the same verdict, and name the same worker."""
    expected = found.verdict, found.findings[0].worker
    assert await command_finds(url, secret) == expected
    assert await page_finds(site.asked) == expected


class Deployment:
    """Two workers, and the client of the second one."""

    def __init__(self, asked: Backplane, serving: Backplane, client: ClientConnection) -> None:
        self.asked = asked
        self.serving = serving
        self.client = client

    @property
    def worker(self) -> Any:
        """What runs the worker that serves the client."""
        return self.serving._runtime  # pyright: ignore[reportPrivateUsage]

    async def explain(self, channel: str = CHANNEL, client: str | None = "ada", **options: Any) -> Explanation:
        """Ask the other worker."""
        async with asyncio.timeout(NAMED_SECONDS):
            return await self.asked.explain(channel=channel, client=client, **options)

    async def receive(self, text: str, channel: str = CHANNEL) -> None:
        """Publish a message, which the client receives as the next one."""
        await self.asked.publish(channel, text)
        async with asyncio.timeout(WAIT_SECONDS):
            assert await self.client.recv() == text

    async def until_known(self) -> None:
        """Wait until the workers know each other."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len([worker for worker in await self.asked.workers() if worker.is_alive]) < 2:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def deployment(
    url: str,
    url_of_second: str | None = None,
    *,
    channels: tuple[str, ...] = (CHANNEL,),
    authorize: Callable[[Any, str], bool | Awaitable[bool]] | None = None,
    secret: str | None = None,
    limits: Limits | None = None,
    stays: asyncio.Event | None = None,
) -> AsyncGenerator[Deployment]:
    """Run both workers; the client has joined the channels, as far as it may, when this is entered."""
    joined = asyncio.Event()
    serving = Backplane(url_of_second or url, cluster=True, settings=SETTINGS, control_secret=secret)
    if authorize is not None:
        serving.authorize(authorize)

    async def endpoint(websocket: WebSocket) -> None:
        async with serving.connect(websocket, client_key="ada", limits=limits) as connection:
            for channel in channels:
                with suppress(Exception):
                    await connection.join(channel)
            joined.set()
            async for _ in connection:
                pass
            if stays is not None:
                await stays.wait()

    app = Starlette(routes=[WebSocketRoute("/", endpoint)], lifespan=serving.lifespan)
    async with (
        Backplane(url, cluster=True, settings=SETTINGS, control_secret=secret) as asked,
        serving_in_loop(app, ws=DirectLaneProtocol) as server,
        connect(f"{server.ws_url}/", proxy=None) as client,
    ):
        await joined.wait()
        yield Deployment(asked, serving, client)


@pytest.fixture(params=["ipc", "redis", "nats", "kafka"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """The URL of each broker that connects processes, in turn."""
    if request.param == "ipc":
        return str(request.getfixturevalue("ipc_url"))
    return str(request.getfixturevalue(f"{request.param}_broker").own_url)


async def test_nothing_is_wrong(broker_url: str) -> None:
    """The way is whole: the client gets what is published, and never the test message."""
    async with deployment(broker_url) as site:
        await site.until_known()
        await site.receive("real")
        found = await site.explain()
        assert (found.verdict, found.tested, found.missing) == ("whole", True, ())
        await site.receive("next")


async def test_a_hub_that_swallows_a_channel(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Way 1, in the worker: the adapter delivers, and the hub drops one channel."""
    async with deployment(broker_url) as site:
        await site.until_known()
        deliver = site.worker.hub.deliver

        def swallow(channel: str, *arguments: Any) -> None:
            if channel != CHANNEL:
                deliver(channel, *arguments)

        # The adapter holds the method of the session, which calls this one.
        monkeypatch.setattr(site.worker.hub, "deliver", swallow)
        found = await site.explain()
        assert (found.verdict, found.findings[0].worker) == ("receives nothing", site.worker.members().own().id)
        await others_find(found, site, broker_url)


async def test_a_subscription_that_the_broker_lost(redis_broker: Broker) -> None:
    """Way 2, at the broker: the worker believes that it is subscribed."""
    async with deployment(redis_broker.url) as site, site.asked.subscribe(CHANNEL):
        await site.until_known()
        await site.worker.supervisor._broadcaster.unsubscribe([CHANNEL])  # pyright: ignore[reportPrivateUsage]
        found = await site.explain()
        assert (found.verdict, found.findings[0].worker) == ("receives nothing", site.worker.members().own().id)
        assert "it arrived at" in found.text  # the other worker
        await others_find(found, site, redis_broker.url)
        assert (await site.explain(client=None)).verdict == "receives nothing"


async def test_a_link_that_is_silent(redis_broker: Broker) -> None:
    """Way 3, the link: nothing passes any more, and no connection has ended."""
    async with FaultProxy(redis_broker.url) as proxy, deployment(redis_broker.url, proxy.url) as site:
        await site.until_known()
        proxy.silence()
        worker = site.worker.members().own()
        found = await site.explain()
        assert (found.verdict, found.findings[0].worker, found.missing) == ("silent worker", worker.id, (worker.id,))
        assert str(worker.pid) in found.text
        await others_find(found, site, redis_broker.url)
        proxy.heal()


async def test_a_join_that_authorize_refuses(redis_broker: Broker) -> None:
    """Way 4, authorisation by the application: the client is connected, and its join was refused."""

    async def refuse(_: Any, channel: str) -> bool:
        return channel != CHANNEL

    async with deployment(redis_broker.url, authorize=refuse, channels=(CHANNEL, "other")) as site:
        found = await site.explain()
        assert (found.verdict, CHANNEL in found.text) == ("refused by authorize", True)
        await others_find(found, site, redis_broker.url)
        await site.receive("real", "other")
        assert (await site.explain("other")).is_whole


async def test_a_handshake_that_authorize_refuses(redis_broker: Broker) -> None:
    """The same where the client is gone since: its handshake was refused."""
    serving = Backplane(redis_broker.url, cluster=True, settings=SETTINGS)
    serving.authorize(lambda _, channel: channel != CHANNEL)

    async def endpoint(websocket: WebSocket) -> None:
        async with serving.connect(websocket, CHANNEL, client_key="ada"):
            pass

    app = Starlette(routes=[WebSocketRoute("/", endpoint)], lifespan=serving.lifespan)
    async with serving_in_loop(app) as server:
        with pytest.raises(InvalidStatus):
            async with connect(f"{server.ws_url}/", proxy=None):
                pass
        assert (await serving.explain(channel=CHANNEL, client="ada")).verdict == "refused by authorize"


async def test_a_channel_that_the_broker_refuses(private_redis: StartRedis) -> None:
    """Way 4, authorisation by the broker: an ACL denies the channel to the worker's account."""
    users = ("alice on >secret +@all resetchannels &$backplane/* &other",)
    broker = private_redis(RedisConfig(users=users, login="alice:secret"))
    async with deployment(broker.url, channels=(CHANNEL, "other")) as site:
        found = await site.explain()
        assert (found.verdict, found.tested) == ("refused by the broker", False)
        await others_find(found, site, broker.url)
        assert "secret" not in str(found.to_json())


async def test_another_channel(redis_broker: Broker) -> None:
    """Way 5, the wrong name: the one that is meant is shown."""
    async with deployment(redis_broker.url, channels=("order:42",)) as site:
        found = await site.explain()
        assert (found.verdict, "'order:42'" in found.text) == ("wrong channel", True)
        await others_find(found, site, redis_broker.url)
        assert (await site.explain(client=None)).verdict == "no subscribers"


@pytest.mark.parametrize("secret", [None, "0123456789abcdef-shared"])
async def test_another_prefix(redis_broker: Broker, secret: str | None) -> None:
    """Way 6, the wrong prefix: the worker that has the client, or subscribers of the channel, is named with it."""
    url, other = f"{redis_broker.url}?prefix=shop:", f"{redis_broker.url}?prefix=shop2:"
    async with deployment(url, other, secret=secret) as site:
        found = await site.explain()
        assert (found.verdict, found.findings[0].worker) == ("wrong prefix", site.worker.members().own().id)
        assert "prefix 'shop2:', and on no worker that has" in found.text
        assert f"/{os.getpid()}" in found.text
        await others_find(found, site, url, secret)
        found = await site.explain(client=None)
        assert (found.verdict, "prefix 'shop2:'" in found.text) == ("wrong prefix", True)
        found = await site.explain(client="bob")
        assert (found.verdict, "prefix 'shop:'" in found.cure) == ("unknown client", True)
        assert (await site.serving.explain(channel=CHANNEL, client="ada")).verdict == "nothing published"


async def test_another_name() -> None:
    """The same with the wrong name of `ipc://`."""
    with TemporaryDirectory(prefix="bp-") as directory:
        urls = [f"ipc://{name}?directory={directory}" for name in ("shop", "shop2", "shop and more")]
        async with deployment(urls[0], urls[1]) as site, Backplane(urls[2], cluster=True, settings=SETTINGS):
            found = await site.explain()
            assert (found.verdict, "ipc://shop2" in found.text) == ("wrong prefix", True)
            await others_find(found, site, urls[0])


async def test_another_secret(redis_broker: Broker) -> None:
    """What has another secret answers nothing: then it is stated where the client was looked for."""
    url, other = f"{redis_broker.url}?prefix=shop:", f"{redis_broker.url}?prefix=shop2:"
    async with (
        deployment(url, other, secret="0123456789abcdef-theirs"),
        Backplane(url, cluster=True, settings=SETTINGS) as asked,
    ):
        found = await asked.explain(channel=CHANNEL, client="ada")
        assert (found.verdict, "prefix 'shop:'" in found.cure) == ("unknown client", True)


async def test_an_acl_that_hides_other_prefixes(private_redis: StartRedis) -> None:
    """Where the account may not list channels, or not subscribe to others, the client is unknown."""
    for rules in ("+@all -pubsub|channels &*", "+@all resetchannels &shop:*"):
        broker = private_redis(RedisConfig(users=(f"alice on >secret ~* {rules}",), login="alice:secret"))
        admin = broker.url.replace("alice:secret@", "")
        url = f"{broker.url}?prefix=shop:"
        async with (
            Backplane(f"{admin}?prefix=shop2:", cluster=True, settings=SETTINGS) as other,
            other.subscribe(CHANNEL, name="ada"),
            Backplane(url, cluster=True, settings=SETTINGS) as asked,
        ):
            assert (await asked.explain(channel=CHANNEL, client="ada")).verdict == "unknown client"


async def test_nothing_published(redis_broker: Broker) -> None:
    """The way is whole, and the publisher uses another name, which is shown; with a message it is whole."""
    async with deployment(redis_broker.url) as site:
        await site.until_known()
        await site.asked.publish("order:42", "not for it")
        found = await site.explain()
        assert (found.verdict, "'order:42'" in found.text, found.tested) == ("nothing published", True, True)
        await others_find(found, site, redis_broker.url)
        await site.receive("real")
        assert (await site.explain()).is_whole


async def test_a_client_that_is_excluded(redis_broker: Broker) -> None:
    """All messages were published with `exclude=` the client; once it receives one, that is a note."""
    async with deployment(redis_broker.url) as site:
        await site.until_known()
        [client] = [client for worker in (await site.explain()).workers for client in worker.clients]
        for _ in range(2):
            await site.asked.publish(CHANNEL, "not for the author", exclude=client.id)
        async with asyncio.timeout(WAIT_SECONDS):
            while (found := await site.explain(timeout_seconds=1)).verdict != "excluded":
                await asyncio.sleep(0.25)
        assert "from each of the last 2 messages" in found.text
        await others_find(found, site, redis_broker.url)
        await site.receive("real")
        found = await site.explain()
        assert (found.verdict, found.findings[0].code) == ("whole", "excluded")


async def test_a_publish_that_the_broker_refuses(private_redis: StartRedis) -> None:
    """Nothing is published, because the broker refuses it: what the publishing worker has logged is shown."""
    users = ("bob on >secret +@all &*", "alice on >secret +@all resetchannels &$backplane/*")
    broker = private_redis(RedisConfig(users=users, login="alice:secret"))
    async with deployment(broker.url, broker.url.replace("alice:", "bob:")) as site:
        await site.until_known()
        with pytest.raises(PublishError):
            await site.asked.publish(CHANNEL, "x")
        found = await site.explain()
        assert (found.verdict, found.tested) == ("nothing published", False)
        assert any("the broker refused a message on channel 'orders:42'" in each.text for each in found.findings)


async def test_a_client_that_does_not_read(redis_broker: Broker) -> None:
    """What waits for it is counted."""
    async with deployment(redis_broker.url) as site:
        await site.receive("real")
        site.client.transport.pause_reading()
        async with asyncio.timeout(WAIT_SECONDS):
            while (found := await site.explain(test=False, timeout_seconds=1)).is_whole:
                await asyncio.gather(*(site.asked.publish(CHANNEL, "x" * 500_000) for _ in range(10)))
                await asyncio.sleep(0.25)
        assert found.verdict in ("not reading", "ended")


async def test_no_worker(redis_broker: Broker) -> None:
    """None is there: where they were looked for is stated."""
    status, printed = await why(f"{redis_broker.url}?prefix=empty:", "--channel", CHANNEL, "--client", "ada", "--json")
    found = json.loads(printed)
    assert (status, found["verdict"], "prefix 'empty:'" in found["text"]) == (1, "no workers", True)


async def test_a_join_over_a_limit(redis_broker: Broker) -> None:
    """The client has as many channels as it may."""
    async with deployment(redis_broker.url, channels=("one", CHANNEL), limits=Limits(max_channels=1)) as site:
        found = await site.explain()
        assert (found.verdict, "max_channels" in found.text) == ("refused by a limit", True)
        await others_find(found, site, redis_broker.url)


async def test_a_client_that_has_not_joined(redis_broker: Broker) -> None:
    """It has joined a channel whose name is not similar."""
    async with deployment(redis_broker.url, channels=("news",)) as site:
        found = await site.explain()
        assert (found.verdict, "has joined 1 channel" in found.text) == ("not joined", True)
        await others_find(found, site, redis_broker.url)


async def test_a_lost_link(redis_broker: Broker) -> None:
    """The worker itself answers while its link is lost, from what it knows; the page asks it."""
    async with FaultProxy(redis_broker.url) as proxy, deployment(redis_broker.url, proxy.url) as site:
        await site.until_known()
        proxy.refuse()
        async with asyncio.timeout(WAIT_SECONDS):
            while site.serving.state == "live":
                await asyncio.sleep(0.01)
        async with asyncio.timeout(NAMED_SECONDS):
            found = await site.serving.explain(channel=CHANNEL, client="ada", timeout_seconds=1)
        assert (found.verdict, found.findings[0].worker, found.missing) == (
            "link down",
            site.worker.members().own().id,
            (),
        )
        async with asyncio.timeout(NAMED_SECONDS):
            found = await site.serving.explain(channel=CHANNEL, client="bob", timeout_seconds=1)
        assert found.verdict == "link down"
        proxy.heal()


async def test_a_subscription_that_is_not_confirmed(redis_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker has ended the subscription, and does not confirm it again."""
    async with deployment(redis_broker.url) as site:
        await site.until_known()
        never = asyncio.Event()

        async def subscribe(_: object) -> None:
            await never.wait()

        monkeypatch.setattr(site.worker.broadcaster, "subscribe", subscribe)
        site.worker.hub.revoke([CHANNEL], "a planted fault")
        found = await site.explain()
        assert (found.verdict, found.findings[0].worker) == ("not subscribed", site.worker.members().own().id)
        await others_find(found, site, redis_broker.url)
        never.set()


async def test_a_handshake_that_is_not_answered(redis_broker: Broker) -> None:
    """The client has joined one channel, and `authorize` does not answer for the next one."""
    asked, answered = asyncio.Event(), asyncio.Event()
    serving = Backplane(redis_broker.url, cluster=True, settings=replace(SETTINGS, authorize_timeout_seconds=60))

    async def authorize(_: object, channel: str) -> bool:
        if channel != CHANNEL:
            asked.set()
            await answered.wait()
        return True

    serving.authorize(authorize)

    async def endpoint(websocket: WebSocket) -> None:
        async with serving.connect(websocket, CHANNEL, "other", client_key="ada") as connection:
            async for _ in connection:
                pass

    app = Starlette(routes=[WebSocketRoute("/", endpoint)], lifespan=serving.lifespan)
    async with serving_in_loop(app) as server:
        client = asyncio.create_task(_connected(f"{server.ws_url}/"))
        await asked.wait()
        assert (await serving.explain(channel=CHANNEL, client="ada")).verdict == "joining"
        assert (await command_finds(redis_broker.url))[0] == "joining"
        answered.set()
        await client


async def _connected(url: str) -> None:
    async with connect(url, proxy=None):
        pass


class SubscribeTokens:
    """Each user may connect, and subscribe to nothing."""

    def connect(self, token: str, /) -> ConnectClaims:
        """Take the token for the user."""
        return ConnectClaims(user=token)

    def subscribe(self, token: str, /, *, user: str, channel: str, client: str) -> SubscribeClaims:
        """Refuse."""
        raise InvalidTokenError(f"the token {token} of {user} in {client} is not for {channel}")


async def test_an_sdk_client_whose_token_is_refused(redis_broker: Broker) -> None:
    """A subscription that its token does not permit is a refused join."""
    backplane = Backplane(redis_broker.url, cluster=True, settings=SETTINGS)
    centrifugal = Centrifugal(backplane, tokens=SubscribeTokens())
    app = Starlette(routes=[WebSocketRoute("/sdk", centrifugal.serve)], lifespan=backplane.lifespan)
    async with serving_in_loop(app) as server, connect(f"{server.ws_url}/sdk", proxy=None) as sdk:
        await sdk.send('{"id":1,"connect":{"token":"ada"}}')
        await sdk.recv()
        await sdk.send('{"id":2,"subscribe":{"channel":"' + CHANNEL + '","token":"x"}}')
        while '"id":2' not in str(await sdk.recv()):
            pass
        found = await backplane.explain(channel=CHANNEL, client="ada")
        assert (found.verdict, "the token x of ada" in found.text) == ("refused by authorize", True)


async def test_a_client_that_is_being_closed(redis_broker: Broker) -> None:
    """It does not read its close frame, or its handler stays: it has left its channels, and is not taken for idle."""
    stays = asyncio.Event()
    async with deployment(redis_broker.url, stays=stays) as site:
        await site.until_known()
        [client] = [client for worker in (await site.explain()).workers for client in worker.clients]
        await site.asked.disconnect(connection=client.id, code=4003, reason="banned", confirm_seconds=10)
        await site.client.wait_closed()
        async with asyncio.timeout(WAIT_SECONDS):
            while (found := await site.explain(timeout_seconds=1)).verdict not in ("closing", "closed"):
                await asyncio.sleep(0.25)
        assert "by the worker with 4003: banned" in found.text
        stays.set()


async def test_a_client_that_has_ended(redis_broker: Broker) -> None:
    """It is known for a while, with the code and the reason."""
    async with deployment(redis_broker.url) as site:
        await site.until_known()
        [connection] = (await site.explain()).workers[0].clients or (await site.explain()).workers[1].clients
        await site.asked.disconnect(user="ada", code=4003, reason="banned", confirm_seconds=10)
        await site.client.wait_closed()
        async with asyncio.timeout(WAIT_SECONDS):
            while (found := await site.explain(client=connection.id[:6], timeout_seconds=1)).verdict != "ended":
                await asyncio.sleep(0.25)
        assert "by the worker with 4003: banned" in found.text


async def test_every_kind_of_client() -> None:
    """A worker alone, in memory: handed-over WebSockets, event streams and SDK clients are known by their user."""
    backplane = Backplane("memory://", cluster=True, settings=SETTINGS)
    centrifugal = Centrifugal(backplane)

    @centrifugal.on_connect
    def accept(_connection: Connection, _request: ConnectRequest) -> Accepted:
        return Accepted(user="sdk")

    async def handed_over(websocket: WebSocket) -> None:
        await backplane.hand_over(websocket, CHANNEL, client_key="handed over")

    async def events(request: Request) -> Response:
        return backplane.sse(request, CHANNEL, client_key="stream")

    routes = [
        WebSocketRoute("/handed-over", handed_over),
        WebSocketRoute("/sdk", centrifugal.serve),
        Route("/events", events),
    ]
    app = Starlette(routes=routes, lifespan=backplane.lifespan)
    async with (
        serving_in_loop(app, ws=DirectLaneProtocol) as server,
        connect(f"{server.ws_url}/handed-over", proxy=None),
        connect(f"{server.ws_url}/sdk", proxy=None) as sdk,
        httpx.AsyncClient(timeout=WAIT_SECONDS, trust_env=False) as http,
        http.stream("GET", f"{server.http_url}/events"),
    ):
        await sdk.send('{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"' + CHANNEL + '"}}')
        replies = ""
        while '"id":2' not in replies:
            replies += str(await sdk.recv())
        await backplane.publish(CHANNEL, "real")
        for user, kind in (("handed over", "connection"), ("stream", "event stream"), ("sdk", "connection")):
            found = await backplane.explain(channel=CHANNEL, client=user)
            assert (found.verdict, found.tested) == ("whole", True)
            [client] = found.workers[0].clients
            assert (client.user, client.kind) == (user, kind)
        assert (await backplane.explain(channel="Orders:42", client="stream")).verdict == "wrong channel"


async def test_a_subscription_of_the_application() -> None:
    """What the application itself has subscribed is found by its name and by its id, and is near to a name like it."""
    async with (
        Backplane("memory://", cluster=True, settings=SETTINGS) as backplane,
        backplane.subscribe(CHANNEL, name="billing") as billing,
    ):
        await backplane.publish(CHANNEL, "real")
        await anext(billing)
        for client in ("billing", billing.id, billing.id[:6]):
            found = await backplane.explain(channel=CHANNEL, client=client)
            assert (found.verdict, found.workers[0].clients[0].kind) == ("whole", "subscription")
        assert (await backplane.explain(channel="Orders:42", client="billing")).verdict == "wrong channel"
        found = await backplane.explain(channel=CHANNEL, client="billling")
        assert (found.verdict, "'billing'" in found.text) == ("unknown client", True)
        await backplane.publish(CHANNEL, "nothing takes it")
        async with asyncio.timeout(WAIT_SECONDS):
            while (found := await backplane.explain(channel=CHANNEL, client="billing")).verdict != "not reading":
                await asyncio.sleep(0.25)
        for name in ("", "x" * 513, 3):
            with pytest.raises(ConfigurationError, match="name must be a text"):
                await backplane.subscribe(CHANNEL, name=name).__aenter__()  # type: ignore[arg-type]


async def test_questions_that_are_none(redis_broker: Broker) -> None:
    """A client is a name; more than five questions a second are answered by no worker, and without a wait."""
    async with Backplane(redis_broker.url, cluster=True, settings=SETTINGS) as backplane:
        for client in ("", "x" * 513, 3):
            with pytest.raises(InvalidDataError):
                await backplane.explain(channel=CHANNEL, client=client)  # type: ignore[arg-type]
        found = await asyncio.gather(
            *(backplane.explain(channel="c" * 200, client="x" * 500, test=False, timeout_seconds=5) for _ in range(8))
        )
        assert [each.verdict for each in found].count("no evidence") == 3
    quiet = Settings(worker_heartbeat_seconds=0.2, path_test=False)
    async with Backplane(redis_broker.url, cluster=True, settings=quiet) as backplane, backplane.subscribe(CHANNEL):
        assert (await backplane.explain(channel=CHANNEL)).not_tested == "Settings(path_test=False)"


async def test_command(redis_broker: Broker) -> None:
    """The command prints the same, as text or JSON, and its status states whether the way is whole."""
    url = redis_broker.url
    async with deployment(url) as site:
        await site.until_known()
        await site.receive("real")
        status, printed = await why(url, "--channel", CHANNEL, "--client", "ada")
        assert (status, "✓ client 'ada' has joined 'orders:42'" in printed) == (0, True)
        status, printed = await why(url, "--channel", "Orders:42", "--json", "--no-test")
        found = json.loads(printed)
        assert (status, found["ok"], found["verdict"], found["asked"]) == (1, False, "no subscribers", 2)
        assert "'orders:42'" in found["text"]
        assert found["not_tested"] == "it was not asked for"
    assert (await why(url, "--channel", ""))[0] == 2
