"""`backplane.control.commands`: each command once, in order, in slices; and whatever else is received there."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from backplane import BrokerUnavailableError, CloseCode, JoinRefusedError
from backplane.cluster.topics import CONTROL, inbox_of
from backplane.control import commands as module
from backplane.control.messages import Command, Selector
from tests.unit.control.world import ASKER, ControlWorker, control_workers
from tests.unit.doubles import FakeClient, Gate, run_passes, until_idle
from tests.unit.kit import interrupting_a_spin, warnings_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

ADA = Selector(user="ada")
CLOSE = {"code": 4003, "reason": "banned"}


@pytest.fixture
async def worker() -> AsyncGenerator[ControlWorker]:
    """A worker that applies commands."""
    async with control_workers() as [made]:
        yield made


# --- the kinds ---


async def test_disconnect(worker: ControlWorker) -> None:
    """It closes the user's clients at once, with the code and the reason, and no other client."""
    ada, other, bob = worker.add("01", "ada"), worker.add("02", "ada"), worker.add("03", "bob")
    answer = await worker.asked("disconnect", selector=ADA, arguments=CLOSE)
    assert (answer.succeeded, answer.value, answer.worker) == (True, 2, worker.name)
    assert ada.closes == other.closes == [("at once", 4003, "banned")]
    assert bob.closes == []


@pytest.mark.parametrize(("reason", "closed_with"), [("", "forbidden"), ("\ud800", "?"), ("é" * 100, "é" * 60 + "…")])
async def test_the_reason_is_one_that_can_be_sent(worker: ControlWorker, reason: str, closed_with: str) -> None:
    """A forged reason is cut and replaced as one of the application is."""
    ada = worker.add("01", "ada")
    arguments = {"code": int(CloseCode.FORBIDDEN), "reason": reason}
    await worker.receives(json.dumps(["command", "1", "disconnect", {"user": "ada"}, arguments, None, time.time()]))
    assert ada.closes == [("at once", 4503, closed_with)]


async def test_a_client_that_cannot_be_closed(worker: ControlWorker, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the others are closed."""

    class Broken(FakeClient):
        async def close(self, code: int, reason: str, /) -> None:
            raise OSError("some data")

    worker.clients.add(Broken("01", "ada"), "ada")
    ada = worker.add("02", "ada")
    await worker.asked("disconnect", selector=ADA, arguments=CLOSE)
    assert len(ada.closes) == 1
    assert "a connection could not be closed: OSError at test_commands.py" in caplog.text
    assert "some data" not in caplog.text


async def test_a_close_that_takes_long_delays_nothing(worker: ControlWorker) -> None:
    """A client in its handshake, or one that reads nothing, is closed later: the answer does not wait for that."""

    class Hanging(FakeClient):
        async def close(self, code: int, reason: str, /) -> None:
            await super().close(code, reason)
            await asyncio.Event().wait()

    hanging = Hanging("01", "ada")
    worker.clients.add(hanging, "ada")
    assert (await worker.asked("disconnect", selector=ADA, arguments=CLOSE)).value == 1
    assert hanging.closes == [("at once", 4003, "banned")]
    assert (await worker.asked("count", selector=ADA)).value == 1


async def test_leave(worker: ControlWorker) -> None:
    """Only those that have joined the channel leave it, and count."""
    ada, other = worker.add("01", "ada", "a", "b"), worker.add("02", "ada", "b")
    selector = Selector(user="ada", channel="a")
    assert (await worker.asked("leave", selector=selector, arguments={"channel": "a"})).value == 1
    assert (await worker.asked("leave", selector=ADA, arguments={"channel": "a"})).value == 0
    assert (ada.channels, other.channels) == (["b"], ["b"])


async def test_join(worker: ControlWorker) -> None:
    """Those that have not joined yet do, and count."""
    ada, other = worker.add("01", "ada", "a"), worker.add("02", "ada")
    assert (await worker.asked("join", selector=ADA, arguments={"channel": "a"})).value == 1
    assert (await worker.asked("join", selector=ADA, arguments={"channel": "a"})).value == 0
    assert (ada.channels, other.channels) == (["a"], ["a"])


class Refused(FakeClient):
    """A client that `authorize` refuses: by an answer, or by what it raises."""

    error: Exception = JoinRefusedError("this client may not join channel 'a'")

    async def join(self, channel: str, /) -> None:
        """Refuse."""
        raise self.error


async def test_joins_that_are_refused(worker: ControlWorker, caplog: pytest.LogCaptureFixture) -> None:
    """They do not count; what `authorize` raises is logged without its text, which can hold data."""
    refused, broken = Refused("01", "ada"), Refused("02", "ada")
    broken.error = LookupError("some data")
    for client in (refused, broken):
        worker.clients.add(client, "ada")
    ada = worker.add("03", "ada")
    assert (await worker.asked("join", selector=ADA, arguments={"channel": "a"})).value == 1
    worker.bus_worker.journal.flush()
    assert ada.channels == ["a"]
    assert "this client may not join" in caplog.text
    assert "LookupError at test_commands.py" in caplog.text
    assert "some data" not in caplog.text


class Slow(FakeClient):
    """A client whose joins wait at a gate.

    Attributes:
        joining: How many of all such clients join at this moment.
    """

    joining = 0

    def __init__(self, id: str, gate: Gate) -> None:  # noqa: A002
        super().__init__(id, "ada")
        self._gate = gate

    async def join(self, channel: str, /) -> None:
        """Join once the gate is open."""
        Slow.joining += 1
        try:
            await self._gate.passage()
            await super().join(channel)
        finally:
            Slow.joining -= 1


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_leave_after_a_join_wins(worker: ControlWorker, at_once: bool) -> None:
    """A join that still waits, for `authorize` or the broker, is undone by a later `leave`: a user who is expelled."""
    gate = Gate()
    gate.close()
    slow = Slow("01", gate)
    worker.clients.add(slow, "ada")
    join = Command(kind="join", selector=ADA, arguments={"channel": "a"}, reply_to=inbox_of(ASKER))
    leave = Command(kind="leave", selector=ADA, arguments={"channel": "a"}, reply_to=inbox_of(ASKER))
    if at_once:
        await worker.receives(join, leave)
    else:
        await worker.receives(join)
        await worker.receives(leave)
    gate.open()
    await until_idle()
    assert slow.channels == []
    assert [worker.answers(each.id)[0].value for each in (join, leave)] == [0, 1]
    assert (await worker.asked("join", selector=ADA, arguments={"channel": "a"})).value == 1
    assert slow.channels == ["a"]


async def test_a_join_after_a_leave_wins(worker: ControlWorker) -> None:
    """In one pass of the event loop too."""
    ada = worker.add("01", "ada", "a")
    leave = Command(kind="leave", selector=ADA, arguments={"channel": "a"})
    join = Command(kind="join", selector=ADA, arguments={"channel": "a"})
    await worker.receives(leave, join)
    assert ada.channels == ["a"]


async def test_two_joins_of_one_channel_are_one(worker: ControlWorker) -> None:
    """A second command waits for the join of the first one, and both count it."""
    gate = Gate()
    gate.close()
    slow = Slow("01", gate)
    worker.clients.add(slow, "ada")
    joins = [Command(kind="join", selector=ADA, arguments={"channel": "a"}, reply_to=inbox_of(ASKER)) for _ in range(2)]
    await worker.receives(*joins)
    gate.open()
    await until_idle()
    assert slow.channels == ["a"]
    assert [worker.answers(join.id)[0].value for join in joins] == [1, 1]


async def test_joins_do_not_flood_the_application(worker: ControlWorker) -> None:
    """Of many clients that join by commands only a hundred ask `authorize` at a time."""
    gate = Gate()
    gate.close()
    slow = [Slow(f"{number:04}", gate) for number in range(250)]
    for client in slow:
        worker.clients.add(client, "ada")
    join = Command(kind="join", selector=ADA, arguments={"channel": "a"}, reply_to=inbox_of(ASKER))
    await worker.receives(join)
    assert Slow.joining == 100
    gate.open()
    await until_idle()
    assert worker.answers(join.id)[0].value == 250


@pytest.mark.parametrize("data", ["text", "", "é\u0000", b"\x00\xff", b"", b"x" * 60_000])
async def test_send(worker: ControlWorker, data: str | bytes) -> None:
    """Text and binary data arrive as they were sent."""
    ada = worker.add("01", "ada")
    binary = {"data": base64.b64encode(data).decode(), "binary": True} if isinstance(data, bytes) else {"data": data}
    answer = await worker.asked("send", selector=ADA, arguments=binary)
    assert (answer.value, ada.sent) == (1, [data])


async def test_sends_keep_their_order_beside_commands_for_many(worker: ControlWorker) -> None:
    """What is sent to all of a channel in slices comes before what one of them is sent afterwards, and is whole."""
    crowd = [worker.add(f"{number:04}", "ada" if number == 999 else None, "a") for number in range(1_000)]
    to_all = [
        Command(kind="send", selector=Selector(channel="a"), arguments={"data": f"all {number}"}) for number in "12"
    ]
    to_ada = Command(kind="send", selector=ADA, arguments={"data": "ada"})
    await worker.receives(to_all[0], to_ada, to_all[1])
    assert crowd[999].sent == ["all 1", "ada", "all 2"]
    assert all(client.sent == ["all 1", "all 2"] for client in crowd[:999])


async def test_a_command_for_many_clients_does_not_stall(worker: ControlWorker) -> None:
    """10,000 clients are closed in slices, between which everything else runs; those that ended are left out."""
    crowd = [worker.add(f"{number:05}", "ada") for number in range(10_000)]
    worker.commands.received(
        CONTROL, Command(kind="disconnect", selector=ADA, arguments=CLOSE, reply_to=inbox_of(ASKER)).encode()
    )
    closed: list[int] = []
    while not closed or closed[-1] < 9_998:
        await asyncio.sleep(0)
        closed.append(sum(bool(client.closes) for client in crowd))
        if len(closed) == 5:
            crowd[4_000].is_over = crowd[-1].is_over = True
    assert max(after - before for before, after in zip([0, *closed], closed, strict=False)) <= 100
    assert (crowd[4_000].closes, crowd[-1].closes) == ([], [])


async def test_count(worker: ControlWorker) -> None:
    """It counts those that are selected."""
    for client_id in ("01", "02", "03"):
        worker.add(client_id, "ada")
    selector = Selector(user="ada", exclude="02")
    assert (await worker.asked("count", selector=selector)).value == 2


# --- surveys ---


async def survey(worker: ControlWorker, **arguments: Any) -> tuple[bool, Any]:
    """Return how a survey is answered."""
    answer = await worker.asked("survey", arguments={"name": "load", "question": None, "seconds": 5} | arguments)
    return answer.succeeded, answer.value


async def test_a_survey(worker: ControlWorker) -> None:
    """The handler's answer to the question is returned."""
    worker.surveys.set("load", lambda question: {"asked": question})
    assert await survey(worker, question=[1]) == (True, {"asked": [1]})


async def test_a_survey_without_a_handler(worker: ControlWorker) -> None:
    """A worker without it answers that, instead of being missing."""
    assert await survey(worker) == (False, "this worker has no handler of survey 'load'")


async def test_a_survey_whose_handler_raises(worker: ControlWorker, caplog: pytest.LogCaptureFixture) -> None:
    """The class of the error is answered, and the error logged here."""

    def fail(_: Any) -> None:
        raise LookupError("some data")

    worker.surveys.set("load", fail)
    assert await survey(worker) == (False, "the handler raised LookupError")
    assert "some data" in caplog.text


@pytest.mark.parametrize("value", [object(), b"\xff", "\ud800"])
async def test_a_survey_whose_answer_is_no_json(worker: ControlWorker, value: object) -> None:
    """That is answered."""
    worker.surveys.set("load", lambda _: value)
    assert await survey(worker) == (False, f"the answer is not JSON, but {type(value).__name__}")


async def test_a_survey_whose_answer_is_too_large(worker: ControlWorker) -> None:
    """Its size and the broker's limit are answered."""
    worker.surveys.set("load", lambda _: "x" * 10_000_000)
    succeeded, value = await survey(worker)
    assert not succeeded
    assert value.startswith("the answer takes 10,000,")
    assert value.endswith("bytes, and the broker takes 100,000")


async def test_a_survey_that_hangs_delays_no_command(worker: ControlWorker) -> None:
    """Commands after it are applied meanwhile; it ends with the worker, also where it ignores that."""
    hanging = asyncio.Event()

    async def hang(_: Any) -> None:
        while not hanging.is_set():
            try:
                await hanging.wait()
            except asyncio.CancelledError:
                continue

    worker.surveys.set("load", hang)
    ada = worker.add("01", "ada")
    await worker.receives(
        Command(kind="survey", arguments={"name": "load", "seconds": 60}),
        Command(kind="send", selector=ADA, arguments={"data": "x"}),
    )
    assert ada.sent == ["x"]
    async with asyncio.timeout(30):
        await worker.commands.stop()
    hanging.set()
    await until_idle()


async def test_a_survey_takes_a_minute_at_most(worker: ControlWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forged time does not keep a handler for longer."""
    asked: list[float] = []

    async def answer(_name: str, _question: Any, seconds: float) -> None:
        asked.append(seconds)

    monkeypatch.setattr(worker.surveys, "answer", answer)
    await survey(worker, seconds=1e300)
    await survey(worker, seconds=5)
    assert asked == [60.0, 5]


# --- what is no command, or none of this moment ---


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("disconnect", {}),
        ("disconnect", {"code": 4003}),
        ("disconnect", {"code": True, "reason": ""}),
        ("disconnect", {"code": "4003", "reason": ""}),
        ("disconnect", {"code": 1005, "reason": ""}),
        ("disconnect", {"code": 10**30, "reason": ""}),
        ("disconnect", {"code": 4003, "reason": ["x"]}),
        ("leave", {}),
        ("leave", {"channel": 5}),
        ("join", {"channel": ""}),
        ("join", {"channel": "\ud800"}),
        ("join", {"channel": "$backplane/control"}),
        ("join", {"channel": "x" * 10_000}),
        ("send", {}),
        ("send", {"data": 5}),
        ("send", {"data": "\ud800"}),
        ("send", {"data": "é", "binary": True}),
        ("send", {"data": "abc", "binary": True}),
        ("survey", {}),
        ("survey", {"name": "load", "seconds": None}),
        ("survey", {"name": "load", "seconds": -1}),
        ("survey", {"name": "load", "seconds": True}),
        ("survey", {"name": ["load"], "seconds": 1}),
    ],
)
async def test_arguments_that_cannot_be_used(
    worker: ControlWorker, kind: str, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Such a command is dropped, counted and answered; it concerns no client, and is no error of this worker."""
    ada = worker.add("01", "ada")
    worker.surveys.set("load", lambda _: pytest.fail("it was asked"))
    parts = [{"user": "ada"}, arguments, inbox_of(ASKER), time.time()]
    await worker.receives(json.dumps(["command", "1", kind, *parts]))
    [answer] = worker.answers("1")
    assert not answer.succeeded
    assert answer.value in {"ConfigurationError", "InvalidChannelError", "InvalidDataError"}
    assert (worker.commands.applied, worker.commands.rejected) == (0, 1)
    assert (ada.closes, ada.sent, ada.channels) == ([], [], [])
    assert warnings_of(caplog, logging.ERROR) == []


async def test_an_unknown_kind_is_answered(worker: ControlWorker) -> None:
    """A worker of an older version answers that it does not know it, so that it is not taken for one that hangs."""
    answer = await worker.asked("reboot")
    assert (answer.succeeded, answer.value) == (False, "this worker does not know the command 'reboot'")
    await worker.receives(Command(kind="reboot"))
    assert worker.commands.rejected == 0


async def test_a_command_that_fails_stops_no_other(worker: ControlWorker, caplog: pytest.LogCaptureFixture) -> None:
    """An error of a client is logged by its place, and answered by its class."""

    class Broken(FakeClient):
        def send(self, data: str | bytes, /) -> None:
            raise OSError("some data")

    worker.clients.add(Broken("01", "ada"), "ada")
    bob = worker.add("02", "bob")
    broken = Command(kind="send", selector=ADA, arguments={"data": "x"}, reply_to=inbox_of(ASKER))
    await worker.receives(broken, Command(kind="send", selector=Selector(user="bob"), arguments={"data": "x"}))
    assert worker.answers(broken.id)[0].value == "OSError"
    assert bob.sent == ["x"]
    assert "a command failed: OSError at test_commands.py" in caplog.text
    assert "some data" not in caplog.text


async def test_a_command_is_applied_once(worker: ControlWorker) -> None:
    """A repetition changes nothing, and is not answered again."""
    ada = worker.add("01", "ada")
    command = Command(kind="send", selector=ADA, arguments={"data": "x"}, reply_to=inbox_of(ASKER))
    await worker.receives(command, command)
    await worker.receives(command)
    assert ada.sent == ["x"]
    assert len(worker.answers(command.id)) == 1
    assert (worker.commands.applied, worker.commands.rejected) == (1, 0)


@pytest.mark.parametrize(("seconds", "sent"), [(-301, []), (-295, ["x"]), (295, ["x"]), (301, [])])
async def test_commands_of_another_time(worker: ControlWorker, seconds: float, sent: list[str]) -> None:
    """Clocks may differ by five minutes; what is older or newer is dropped and counted."""
    ada = worker.add("01", "ada")
    moment = time.time() + seconds
    await worker.receives(Command(kind="send", selector=ADA, arguments={"data": "x"}, issued_at=moment))
    assert ada.sent == sent
    assert worker.commands.rejected == 1 - len(sent)


@pytest.mark.parametrize("issued_at", ["1e999", "-1e999", "1" + "0" * 400, "NaN", "true"])
async def test_times_that_are_none(worker: ControlWorker, issued_at: str) -> None:
    """None of these counts as now."""
    ada = worker.add("01", "ada")
    await worker.receives(f'["command","1","send",{{"user":"ada"}},{{"data":"x"}},null,{issued_at}]')
    assert (ada.sent, worker.commands.rejected) == ([], 1)


async def test_replays_are_refused_for_as_long_as_a_command_counts(
    worker: ControlWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids are forgotten only when their command is too old, by any clock that may differ by five minutes."""
    ada, loop = worker.add("01", "ada"), asyncio.get_running_loop()
    now, clock = loop.time(), time.time()
    command = Command(kind="send", selector=ADA, arguments={"data": "x"}, issued_at=clock + 299)
    await worker.receives(command)
    for passed in (1, 299, 590):
        monkeypatch.setattr(loop, "time", lambda passed=passed: now + passed)
        monkeypatch.setattr(time, "time", lambda passed=passed: clock + passed)
        worker.commands.received(CONTROL, Command(kind="count", issued_at=clock + passed).encode())
        worker.commands.received(CONTROL, command.encode())
    monkeypatch.setattr(loop, "time", lambda: now + 661)
    monkeypatch.setattr(time, "time", lambda: clock + 661)
    worker.commands.received(CONTROL, Command(kind="count", issued_at=clock + 661).encode())
    rejected = worker.commands.rejected
    worker.commands.received(CONTROL, command.encode())
    assert worker.commands.rejected == rejected + 1
    assert command.id not in worker.commands._seen  # pyright: ignore[reportPrivateUsage]
    monkeypatch.undo()
    await until_idle()
    assert ada.sent == ["x"]


async def test_no_flood_of_commands_lets_one_be_replayed(
    worker: ControlWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are more than can be remembered, those that were issued before a forgotten one count no longer."""
    monkeypatch.setattr(module, "_MAX_KEPT", 10)
    ada, moment = worker.add("01", "ada"), time.time()
    old = Command(kind="send", selector=ADA, arguments={"data": "x"}, issued_at=moment - 50)
    await worker.receives(old)
    for number in range(30):
        await worker.receives(Command(kind="count", issued_at=moment + number / 10))
    assert len(worker.commands._seen) == 10  # pyright: ignore[reportPrivateUsage]
    assert worker.commands.rejected == 0
    await worker.receives(old)
    assert (ada.sent, worker.commands.rejected) == (["x"], 1)


async def test_too_many_commands_at_once(worker: ControlWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is bounded; the rest is dropped and counted, and later ones are applied."""
    monkeypatch.setattr(module, "_MAX_WAITING", 5)
    ada = worker.add("01", "ada")
    commands = [Command(kind="send", selector=ADA, arguments={"data": str(number)}) for number in range(8)]
    await worker.receives(*commands)
    await worker.receives(Command(kind="send", selector=ADA, arguments={"data": "later"}))
    assert ada.sent == ["0", "1", "2", "3", "4", "later"]
    assert worker.commands.rejected == 3


async def test_commands_of_other_workers_are_left_to_them(worker: ControlWorker) -> None:
    """A selector can name one worker."""
    ada = worker.add("01", "ada")
    for name in ("00000000000000aa", worker.name):
        selector = Selector(user="ada", worker=name)
        await worker.receives(Command(kind="send", selector=selector, arguments={"data": name}))
    assert ada.sent == [worker.name]


async def test_hostile_texts_are_counted_in_one_line(worker: ControlWorker, caplog: pytest.LogCaptureFixture) -> None:
    """A flood of what is no command writes one line, without the data."""
    with interrupting_a_spin():
        for text in ("", "secret", "[" * 50_000, '["command"]', "{}", json.dumps(["command", "x" * 90_000])) * 50:
            worker.broker.deliver(CONTROL, text.encode())
        await until_idle()
    assert (worker.commands.rejected, worker.commands.applied) == (300, 0)
    assert warnings_of(caplog) == ["dropped a message on the control channel: it is no command"]


# --- answers, and the end ---


async def test_no_answer_where_none_is_awaited(worker: ControlWorker) -> None:
    """Then nothing is published."""
    worker.add("01", "ada")
    await worker.receives(Command(kind="disconnect", selector=ADA, arguments=CLOSE), Command(kind="reboot"))
    assert worker.broker.published == []


async def test_an_answer_that_cannot_be_sent(worker: ControlWorker, caplog: pytest.LogCaptureFixture) -> None:
    """The command is applied all the same."""
    ada = worker.add("01", "ada")
    worker.broker.error = BrokerUnavailableError("away")
    command = Command(kind="send", selector=ADA, arguments={"data": "x"}, reply_to=inbox_of(ASKER))
    await worker.receives(command)
    assert ada.sent == ["x"]
    assert warnings_of(caplog) == ["could not answer a command: away"]


async def test_a_broker_that_hangs_delays_no_command(worker: ControlWorker) -> None:
    """Answers wait for the broker, commands do not; the end of the worker ends what waits."""
    ada = worker.add("01", "ada")
    worker.broker.gate.close()
    for number in range(5):
        command = Command(kind="send", selector=ADA, arguments={"data": str(number)}, reply_to=inbox_of(ASKER))
        await worker.receives(command)
    assert ada.sent == ["0", "1", "2", "3", "4"]
    async with asyncio.timeout(30):
        await worker.commands.stop()
    assert worker.broker.published == []


async def test_stop_in_the_middle_of_a_command(worker: ControlWorker) -> None:
    """What is in progress ends, what waits is dropped; a second stop changes nothing."""
    crowd = [worker.add(f"{number:04}", "ada") for number in range(1_000)]
    for command in (Command(kind="send", selector=ADA, arguments={"data": str(number)}) for number in range(3)):
        worker.commands.received(CONTROL, command.encode())
    await run_passes(3)
    await worker.commands.stop()
    sent = sum(len(client.sent) for client in crowd)
    assert 0 < sent < 1_000
    await until_idle()
    assert sum(len(client.sent) for client in crowd) == sent
    await worker.commands.stop()
    worker.commands.gap(CONTROL)


async def test_stop_does_not_wait_for_an_application_that_ignores_it(
    worker: ControlWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An `authorize` that goes on after its cancellation does not hold up the end of the worker."""
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.01)
    goes_on = asyncio.Event()

    class Stubborn(FakeClient):
        async def join(self, channel: str, /) -> None:
            while not goes_on.is_set():
                with suppress(asyncio.CancelledError):
                    await goes_on.wait()

    worker.clients.add(Stubborn("01", "ada"), "ada")
    await worker.receives(Command(kind="join", selector=ADA, arguments={"channel": "a"}))
    async with asyncio.timeout(30):
        await worker.commands.stop()
    goes_on.set()
    await until_idle()


async def test_a_slow_kind_goes_on_beside() -> None:
    """A command after it does not wait for it."""
    async with control_workers() as (worker,):
        done = asyncio.Event()

        async def wait(_: Command) -> str:
            await done.wait()
            return "done"

        worker.commands.add_slow_kind("wait", wait)
        slow = Command(kind="wait", reply_to=inbox_of(ASKER))
        await worker.receives(slow)
        assert (await worker.asked("count")).value == 0
        assert worker.answers(slow.id) == []
        done.set()
        await until_idle()
        assert worker.answers(slow.id)[0].value == "done"
