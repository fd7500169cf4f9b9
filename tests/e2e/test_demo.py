"""The demo as a user meets it: real workers, a real browser."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import psutil
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, ViewportSize, expect
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from backplane.broker.registry import broadcaster_from_url
from tests.e2e.brokers import by_default_on

pytestmark = pytest.mark.timeout(180)

# With two workers, one reconnect of the page, which makes eight attempts itself, nearly always suffices.
TRIES_TO_SEPARATE = 30

expect.set_options(timeout=30_000)  # of a machine that others use


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """A running demo."""

    process: subprocess.Popen[str]
    address: str
    workers: list[int]

    def websocket(self, room: str, name: str, since: str = "") -> ClientConnection:
        """Connect to a room."""
        url = f"{self.address.replace('http', 'ws')}/rooms/{room}?name={name}&since={since}"
        return connect(url, open_timeout=60)  # a new worker may have to start first


def receive(client: ClientConnection) -> Any:
    """Return the next message: what was published, or what the server sends to this client alone.

    Its join and who is in the room are left out.
    """
    while True:
        frame = json.loads(client.recv())
        if "event" not in frame and "presence" not in frame:
            return frame.get("data", frame)


def receive_until(client: ClientConnection, text: str) -> tuple[list[str], str]:
    """Receive until this text was published; return the texts up to it, and its position."""
    texts: list[str] = []
    while True:
        frame = json.loads(client.recv())
        if "data" in frame:
            texts.append(frame["data"]["text"])
            if texts[-1] == text:
                return texts, frame["position"]


@contextmanager
def _running(*options: str, workers: int = 4) -> Generator[Demo]:
    """Run the demo, entered when it is ready; ended where the block leaves it running."""
    command = [sys.executable, "-m", "backplane.cli", "demo", "--workers", str(workers), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            printed = _read_panel(process)
            address = re.search(r"http://\S+", printed)
            pids = re.search(rf"workers +{workers} \(([\d, ]+)\)", printed)
            assert address, printed
            assert pids, printed
            yield Demo(process=process, address=address[0], workers=[int(pid) for pid in pids[1].split(",")])
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.stdout is not None
            process.stdout.read()


@pytest.fixture(scope="module")
def shared_demo() -> Iterator[Demo]:
    """The demo on two workers joined by `ipc://`: as many as the tests distinguish."""
    with _running(workers=2) as running:
        yield running


@pytest.fixture
def demo(request: pytest.FixtureRequest) -> Iterator[Demo]:
    """The demo that the tests share, each with a room of its own, or one for a test that kills its processes."""
    if getattr(request, "param", "shared") == "shared":
        yield request.getfixturevalue("shared_demo")
    else:
        with _running(workers=2) as running:
            yield running


kills = pytest.mark.parametrize("demo", ["own"], indirect=True)


@pytest.fixture
def room(request: pytest.FixtureRequest) -> str:
    """A room that only this test uses."""
    return str(request.node.originalname)[-40:]


def _read_panel(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if "Ctrl-C" in line:
            break
    return printed


@pytest.fixture
def console_errors() -> list[str]:
    """The errors on the consoles of the pages."""
    return []


@pytest.fixture
def open_page(browser: Browser, demo: Demo, room: str, console_errors: list[str]) -> Callable[[], Page]:
    """Open the demo in a window of its own, and return when it is live."""

    def note_error(message: ConsoleMessage) -> None:
        if message.type == "error":
            console_errors.append(message.text)

    numbers = itertools.count(10)

    def open_page() -> Page:
        page = browser.new_context(viewport=ViewportSize(width=390, height=800)).new_page()
        # Of the names that pages draw, two can be the same.
        page.add_init_script(f'sessionStorage.name ??= "Ada {next(numbers)}"')
        page.on("console", note_error)
        page.on("pageerror", lambda error: console_errors.append(str(error)))
        page.clock.install()
        page.goto(f"{demo.address}#{room}")
        _expect_live(page)
        return page

    return open_page


@pytest.fixture
def pages(open_page: Callable[[], Page]) -> tuple[Page, Page]:
    """Two windows that two different workers serve."""
    first, second = open_page(), open_page()
    for _ in range(TRIES_TO_SEPARATE):
        if _served_by(first) != _served_by(second):
            return first, second
        second.get_by_role("button", name="Reconnect (another worker)").click()
        _expect_live(second)
    pytest.fail("both pages stay on one worker")


def _expect_live(page: Page) -> None:
    expect(page.locator("#state")).to_have_text("live", timeout=30_000)


def _pause(page: Page) -> None:
    """Stop the timers of a page: soon enough that the SDK does not miss a ping."""
    page.clock.pause_at(datetime.now(UTC) + timedelta(seconds=8))


def _served_by(page: Page) -> int:
    return int(page.locator("#served-by").get_attribute("data-worker") or 0)


def _send(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name="Send").click()


def _message(page: Page, text: str) -> Locator:
    return page.get_by_role("log").get_by_role("listitem").filter(has_text=text)


def _expect_message(page: Page, text: str, *, worker: int) -> None:
    expect(_message(page, text).get_by_text(f"worker {worker}", exact=True)).to_be_visible()


def test_two_workers_share_a_room(pages: tuple[Page, Page], console_errors: list[str]) -> None:
    """What one window sends, the other shows with the badge of the worker that published it, both ways."""
    first, second = pages

    _send(first, "from the first window")
    _expect_message(second, "from the first window", worker=_served_by(first))
    _expect_message(first, "from the first window", worker=_served_by(first))

    _send(second, "from the second window")
    _expect_message(first, "from the second window", worker=_served_by(second))

    assert console_errors == []


@kills
def test_page_gets_what_it_missed_when_its_worker_is_killed(pages: tuple[Page, Page]) -> None:
    """A page whose worker was killed comes back on another one, and shows what was sent meanwhile, and how much."""
    first, second = pages
    killed = _served_by(first)
    _send(second, "before")
    _expect_message(first, "before", worker=_served_by(second))
    _pause(first)  # so it comes back when the test wants it to

    os.kill(killed, signal.SIGKILL)
    expect(first.locator("#state")).to_contain_text("reconnecting")
    texts = [f"missed {number}" for number in range(12)]
    for text in texts:
        _send(second, text)
        expect(_message(second, text).get_by_text("worker")).to_be_visible()
    first.clock.resume()

    _expect_live(first)
    assert _served_by(first) != killed
    expect(first.get_by_role("log")).to_contain_text(f"Worker {killed} gone, 12 messages restored.")
    _send(second, "after")
    _expect_message(first, "after", worker=_served_by(second))
    assert first.locator(".log .message .text").all_inner_texts() == ["before", *texts, "after"]


@kills
def test_own_message_whose_worker_is_killed_is_shown_once(pages: tuple[Page, Page]) -> None:
    """A message that was published, though its worker was killed before its page was notified, is shown once."""
    first, second = pages
    killed = _served_by(first)
    _pause(first)
    # The confirmation is on its way when the worker is killed.
    first.evaluate("centrifuge._transport._transport.onmessage = null")
    _send(first, "confirmed late")
    _expect_message(second, "confirmed late", worker=killed)
    os.kill(killed, signal.SIGKILL)
    expect(first.get_by_role("log")).to_contain_text("not confirmed")
    first.clock.resume()

    _expect_message(first, "confirmed late", worker=killed)
    expect(_message(first, "confirmed late")).to_have_count(1)
    expect(first.get_by_role("log")).not_to_contain_text("not confirmed")


@by_default_on("ipc", "redis")
def test_client_of_a_killed_worker_gets_the_rest_on_every_broker(broker_url: str) -> None:
    """With its last position a client gets exactly what it missed, when the workers that knew it are gone."""
    if broadcaster_from_url(broker_url).capabilities.keeps == "nothing":
        pytest.skip("this broker keeps no messages: the demo runs without its history")
    with _running("--url", broker_url, workers=2) as demo, demo.websocket("lobby", "Ada") as ada:
        ada.send('{"id": "1", "text": "before"}')
        _, position = receive_until(ada, "before")
        for number in range(12):
            ada.send(json.dumps({"id": str(number), "text": f"missed {number}"}))
        receive_until(ada, "missed 11")

        for worker in demo.workers:
            os.kill(worker, signal.SIGKILL)
        with pytest.raises(ConnectionClosedError):
            [ada.recv() for _ in range(100)]
        with demo.websocket("lobby", "Ada", position) as back:  # Gunicorn holds it until a new worker accepts it
            texts, _ = receive_until(back, "missed 11")
            assert texts == [f"missed {number}" for number in range(12)]
            assert receive(back)["type"] == "welcome"


def _person(page: Page, name: str) -> Locator:
    return page.get_by_role("list", name="In this room").get_by_role("listitem").filter(has_text=name)


def _name(page: Page) -> str:
    return page.get_by_label("Your name").input_value()


def test_people_of_all_workers_are_shown(pages: tuple[Page, Page], open_page: Callable[[], Page]) -> None:
    """Each window shows the users of the room with their workers; one that is closed leaves it after the grace."""
    first, second = pages
    third = open_page()
    for page in (first, second, third):
        expect(page.get_by_text("In this room: 3")).to_be_visible()
        for other in (first, second, third):
            badge = _person(page, _name(other)).locator(".badge")
            expect(badge).to_have_text(str(_served_by(other)))
    expect(_person(first, _name(first))).to_have_class(re.compile(r"\bme\b"))

    name = _name(third)
    third.context.close()
    expect(_person(first, name)).to_have_count(0, timeout=15_000)
    expect(first.get_by_text("In this room: 2")).to_be_visible()


def test_name_in_two_windows_is_one_user(pages: tuple[Page, Page]) -> None:
    """Two windows of the same name, at two workers, are one user, though two workers serve them."""
    first, second = pages
    second.get_by_label("Your name").fill(_name(first))
    second.get_by_label("Your name").press("Enter")
    _expect_live(second)
    expect(first.get_by_text("In this room: 1")).to_be_visible(timeout=15_000)  # after the grace of the other name
    expect(second.get_by_text("In this room: 1")).to_be_visible()


def test_typing_is_shown_until_it_ends(pages: tuple[Page, Page]) -> None:
    """Who types is shown in the other windows: until the message is sent, or nothing was typed for some seconds."""
    first, second = pages
    expect(_person(first, _name(second))).to_have_count(1)
    text = second.get_by_label("Message", exact=True)

    text.press_sequentially("hello")
    expect(first.get_by_text(f"{_name(second)} is typing…")).to_be_visible()
    expect(_person(first, _name(second))).to_have_class(re.compile(r"\btypes\b"))
    expect(second.get_by_text("is typing…")).to_be_hidden()
    text.press("Enter")
    expect(first.get_by_text("is typing…")).to_be_hidden(timeout=2_000)  # earlier than its time would end

    text.press_sequentially("hm")
    expect(first.get_by_text(f"{_name(second)} is typing…")).to_be_visible()
    expect(first.get_by_text("is typing…")).to_be_hidden(timeout=15_000)


@kills
def test_people_of_a_killed_worker_leave_unless_they_come_back(pages: tuple[Page, Page], demo: Demo, room: str) -> None:
    """Of the users of a killed worker those leave that do not come back; a page that does has never left."""
    first, second = pages
    killed = _served_by(first)
    second.evaluate("""() => {
        window.gone = [];
        const show = receivePresence;
        window.receivePresence = (presence) => { gone.push(...(presence.left ?? [])); show(presence); };
    }""")
    with ExitStack() as stack:
        # As many as it takes: the names of one worker's users leave, those of the others stay.
        workers: dict[str, int] = {}
        while killed not in workers.values():
            name = f"guest-{len(workers)}"
            workers[name] = receive(stack.enter_context(demo.websocket(room, name)))["worker"]
        gone = next(name for name, worker in workers.items() if worker == killed)
        expect(_person(second, gone).locator(".badge")).to_have_text(str(killed))

        os.kill(killed, signal.SIGKILL)
        _expect_live(first)
        expect(_person(second, gone)).to_have_count(0, timeout=15_000)
        assert second.evaluate("gone") == [gone]

    expect(_person(second, _name(first)).locator(".badge")).to_have_text(str(_served_by(first)))


def test_hostile_names_are_shown_as_text(open_page: Callable[[], Page], demo: Demo, room: str) -> None:
    """Markup in a name, and the names of an object's own members, are shown as text; control characters are refused."""
    page = open_page()
    for name in ("<img src=x onerror=alert(1)>", "__proto__", "constructor", "x" * 32, "😀" * 32):
        with demo.websocket(room, quote(name)):
            expect(_person(page, name)).to_have_count(1)
    assert page.locator("img").count() == 0
    for name in ("x" * 33, "a%00b", "%1b", "%20"):
        with pytest.raises(InvalidStatus), demo.websocket(room, name):
            pass


def test_message_over_the_limit_is_refused_with_a_note(open_page: Callable[[], Page]) -> None:
    """A text over the limit is not sent: it stays in its field and a note states by how much it is too long."""
    page = open_page()

    _send(page, "x" * 1003)

    expect(page.get_by_role("alert")).to_have_text("3 characters over the limit of 1000: shorten it to send it.")
    expect(page.get_by_label("Message", exact=True)).to_have_value("x" * 1003)


def test_markup_is_shown_as_text(open_page: Callable[[], Page]) -> None:
    """HTML in a message is shown as text, and creates no element."""
    page = open_page()

    _send(page, "<img src=x onerror=alert(1)>")

    _expect_message(page, "<img src=x onerror=alert(1)>", worker=_served_by(page))
    assert page.locator("img").count() == 0


MALFORMED: tuple[str | bytes, ...] = (
    *("", "no JSON", "[]", '{"id": "1"}'),
    *('{"id": "1", "text": "  "}', json.dumps({"id": "1", "text": "x" * 1001}), b"\xff"),
)


def test_malformed_input_is_answered_and_the_connection_stays(demo: Demo) -> None:
    """Input that is not a message is answered with an error, and the next message is published."""
    for number, malformed in enumerate(MALFORMED):
        with demo.websocket(f"room-{number}", "Ada") as client:
            assert receive(client)["type"] == "welcome"
            assert receive(client)["text"] == "Ada joined"

            client.send(malformed)
            assert receive(client)["type"] == "error", malformed

            client.send('{"id": "2", "text": "still here"}')
            message = receive(client)
            assert (message["id"], message["author"], message["text"]) == ("2", "Ada", "still here"), malformed
            assert message["worker"] in demo.workers


def test_post_reaches_the_clients_of_the_room(demo: Demo, room: str) -> None:
    """What is posted to a room by HTTP is received by its clients."""
    with demo.websocket(room, "Ada") as client:
        receive(client)  # welcome
        receive(client)  # Ada joined
        body = json.dumps({"name": "cron", "text": "deployed"}).encode()
        request = Request(f"{demo.address}/rooms/{room}", body, {"Content-Type": "application/json"})
        with urlopen(request) as response:
            assert response.status == 202

        message = receive(client)
        assert (message["author"], message["text"]) == ("cron", "deployed")


def test_joins_and_leaves_are_announced_across_workers(demo: Demo, room: str) -> None:
    """A client of a room is notified of clients that join and leave it."""
    with demo.websocket(room, "Ada") as ada:
        receive(ada)  # welcome
        receive(ada)  # Ada joined
        with demo.websocket(room, "Grace"):
            assert receive(ada)["text"] == "Grace joined"
        assert receive(ada)["text"] == "Grace left"


@kills
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_every_process(demo: Demo, room: str, ending: signal.Signals) -> None:
    """Ctrl-C or SIGTERM closes the client orderly and ends with status 0, no traceback and no process left."""
    children = psutil.Process(demo.process.pid).children(recursive=True)
    assert {child.pid for child in children} >= set(demo.workers)
    assert demo.process.stdout is not None

    with demo.websocket(room, "Ada") as client:
        client.recv()
        demo.process.send_signal(ending)
        with pytest.raises(ConnectionClosedError) as closed:
            [client.recv() for _ in range(10)]
    printed = demo.process.stdout.read()

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012  # service restart
    assert demo.process.wait() == 0
    assert "Traceback" not in printed
    _, running = psutil.wait_procs(children, timeout=60)
    assert running == []
