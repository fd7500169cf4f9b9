"""Libraries for event streams, in programs of their own: each resumes from the first event on, without a message."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from typing import Final

import pytest
from fastapi import FastAPI, Request, Response

from backplane import Backplane, History, Limits
from tests.sdk.conftest import skip_without
from tests.sdk.install import MissingError, node_modules
from tests.server_in_loop import serving_in_loop

pytestmark = pytest.mark.anyio

SECONDS: Final = 60.0
PROGRAM: Final = Path(__file__).parent / "event_source.mjs"
LIBRARIES: Final = [
    "eventsource",  # its parser ignores an `id` without data
    "@microsoft/fetch-event-source",
    *(
        pytest.param(name, marks=pytest.mark.full)
        for name in ("eventsource-2", "launchdarkly-eventsource", "event-source-polyfill")
    ),
]


class Orders:
    """An application whose streams end at once, but for the fourth, and which publishes while their client is away.

    Attributes:
        visits: The id that each request has shown.
    """

    def __init__(self) -> None:
        self.visits: list[str] = []
        self.backplane = Backplane("memory://", history={"orders": History(max_messages=3)})
        self.app = FastAPI(lifespan=self.backplane.lifespan)
        self.app.add_api_route("/orders", self._orders)

    async def _orders(self, request: Request) -> Response:
        shown = request.query_params.get("lastEventId")  # the polyfill's
        self.visits.append(request.headers.get("last-event-id") or shown or "")
        visit = len(self.visits)
        for number in range((0, 2, 2, 9)[visit - 1]):
            await self.backplane.publish("orders", f"{visit}.{number}")
        limits = Limits(max_age_seconds=0.05 if visit < 4 else None)
        return self.backplane.sse(request, "orders", since=shown, limits=limits, rewind=1, retry_seconds=0.01)


@pytest.mark.parametrize("library", LIBRARIES)
async def test_library_resumes(library: str) -> None:
    """It has everything once, also what was published before its first message, and a gap where that is not kept."""
    try:
        folder = node_modules()
    except MissingError as error:
        skip_without(str(error))
    orders = Orders()
    async with serving_in_loop(orders.app) as server:
        command = ["node", str(PROGRAM), library, f"{server.http_url}/orders"]
        process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=PIPE, stdin=DEVNULL)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(SECONDS):
                received = [json.loads(await process.stdout.readline()) for _ in range(6)]
        finally:
            process.kill()
            await process.wait()
    assert received == [
        *(["message", f"{visit}.{number}"] for visit in (2, 3) for number in range(2)),
        ["gap", '{"channel": "orders"}'],
        ["message", "4.8"],
    ]
    assert [len(shown) for shown in orders.visits] == [0, 28, 28, 28]
