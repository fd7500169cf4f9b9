"""Both browser builds of the SDK in Chromium, and the script of the package: ten messages a second through faults.

A page on channels with a history loses nothing; without one each hole has its `recovered: false`.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, Final

import pytest

from backplane.testing import FaultProxy
from tests.sdk.counting import HISTORY, check, publishing
from tests.sdk.install import node_modules
from tests.sdk.servers import running_workers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from playwright.async_api import CDPSession, Page

    from tests.chaos.target import FaultTarget
    from tests.sdk.counting import Numbers
    from tests.sdk.servers import SdkServer

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(150)]

logger = logging.getLogger(__name__)

_MESSAGES: Final = 10  # for which a fault lasts: a second
_MESSAGES_ASLEEP: Final = 25  # for longer than `ping_seconds + pong_seconds` of /fast


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A page at a proxy to two workers, which have a proxy to their broker, and numbers that are published."""

    page: Page
    browser: CDPSession
    proxy: FaultProxy
    workers: Sequence[SdkServer]
    links: FaultProxy
    target: FaultTarget
    numbers: Numbers

    async def events(self) -> list[dict[str, Any]]:
        """Return what the page has reported."""
        events: list[dict[str, Any]] = await self.page.evaluate("events")
        return events

    async def up_to_date(self) -> None:
        """Wait until the page has a number that is published from now on."""
        newest = await self.numbers.more(1)
        has_come = "(number) => events.some(({data}) => data && data.n >= number)"
        await self.page.wait_for_function(has_come, arg=newest, timeout=60_000)


async def offline(scene: Scene) -> None:
    """The browser is offline, and online again."""
    for is_offline in (True, False):
        network = {"offline": is_offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        await scene.browser.send("Network.emulateNetworkConditions", network)
        await scene.numbers.more(_MESSAGES if is_offline else 0)


async def network_cut(scene: Scene) -> None:
    """The connection is reset, and new ones are refused for a while."""
    scene.proxy.refuse()
    scene.proxy.cut()
    await scene.numbers.more(_MESSAGES)
    scene.proxy.heal()


async def network_silent(scene: Scene) -> None:
    """Nothing passes, and no connection is closed."""
    scene.proxy.silence()
    await scene.numbers.more(_MESSAGES)
    scene.proxy.heal()


async def worker_killed(scene: Scene) -> None:
    """The page's worker is killed; for a while there is no other."""
    scene.workers[0].kill()
    await scene.numbers.more(_MESSAGES)
    scene.proxy.lead_to(scene.workers[1].url)


async def asleep(scene: Scene) -> None:
    """The page's process is suspended, as on a laptop that sleeps, for longer than its connection lives without pongs.

    A headless Chromium goes on running a page whose lifecycle state is set to frozen.
    """
    assert scene.page.context.browser is not None
    session = await scene.page.context.browser.new_browser_cdp_session()
    processes = (await session.send("SystemInfo.getProcessInfo"))["processInfo"]
    renderers = [process["id"] for process in processes if process["type"] == "renderer"]
    assert renderers
    for pid in renderers:
        os.kill(pid, signal.SIGSTOP)
    await scene.numbers.more(_MESSAGES_ASLEEP)
    for pid in renderers:
        os.kill(pid, signal.SIGCONT)


async def links_cut(scene: Scene) -> None:
    """The workers lose their broker for a while."""
    scene.links.refuse()
    scene.links.cut()
    await scene.numbers.more(_MESSAGES)
    scene.links.heal()


async def broker_restarted(scene: Scene) -> None:
    """The broker is killed, and comes back."""
    await scene.numbers.over_a_restart(scene.target)


Fault = Callable[[Scene], Awaitable[None]]

FAULTS: Final[Sequence[Fault]] = (
    offline, network_cut, network_silent, asleep, links_cut, broker_restarted, worker_killed,
)  # fmt: skip
QUICK: Final[Sequence[Fault]] = (offline, worker_killed)
KINDS: Final = {"json": "/fast", "protobuf": "/fast", "script": "/enveloped"}
"""The kinds of pages, each with the path that it connects to."""


@pytest.mark.parametrize(
    ("kind", "storage", "channel", "faults"),
    [
        pytest.param("protobuf", "redis", "kept", QUICK, id="quick"),
        *(
            pytest.param(*case, FAULTS, id="-".join(case), marks=pytest.mark.full)
            for case in product(KINDS, ("redis", "nats", "kafka"), ("kept", "plain"))
        ),
    ],
)
async def test_pages(
    kind: str, channel: str, faults: Sequence[Fault], target: FaultTarget, page: Page, own: str, tmp_path: Path
) -> None:
    """A page has all that was published where there is a history; otherwise each hole is reported."""
    channel += own
    async with target.proxy as links:
        environment = {"BACKPLANE_URL": links.url, "BROWSER_BUILDS": str(builds()), **HISTORY}
        async with (
            running_workers(2, tmp_path, environment) as workers,
            FaultProxy(workers[0].url) as proxy,
            publishing(target.url, channel) as numbers,
        ):
            browser = await page.context.new_cdp_session(page)
            await browser.send("Network.enable")
            await page.goto(
                f"{proxy.url.replace('ws', 'http', 1).removesuffix('/ws')}/page#{kind},{KINDS[kind]},{channel}"
            )
            scene = Scene(
                page=page, browser=browser, proxy=proxy, workers=workers, links=links, target=target, numbers=numbers
            )
            await scene.up_to_date()
            begins = [len(numbers.confirmed)]
            for fault in faults:
                await fault(scene)
                await scene.up_to_date()
                begins.append(len(numbers.confirmed))
            numbers.stop()
            await scene.up_to_date()
            events = await scene.events()
            await page.goto("about:blank")
    may_repeat = target.lossless and channel.startswith("plain")
    missing = check(events, numbers.confirmed, may_repeat=may_repeat)
    lost = {
        fault.__name__: f"{len(missing & set(numbers.confirmed[begin:end]))} of {end - begin}"
        for fault, (begin, end) in zip(faults, pairwise(begins), strict=True)
    }
    logger.info("a page of kind %s on %s lost: %s", kind, channel, lost)  # --log-cli-level=INFO shows it
    comebacks = [event["recovered"] for event in events if event.get("was_recovering")]
    if channel.startswith("kept"):
        assert (missing, all(comebacks)) == (set(), True)
    else:
        assert missing
        assert comebacks
        assert not any(comebacks)


def builds() -> Path:
    """Return the folder of the SDK's builds for browsers."""
    return node_modules() / "node_modules" / "centrifuge" / "dist"
