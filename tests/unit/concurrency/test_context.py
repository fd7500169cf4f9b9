"""`backplane.concurrency.context`: work that is started at once, in a task and a Context as asyncio would run it."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Final

import anyio
import pytest

from backplane.concurrency.context import begin, run_in, task_in
from tests.unit.doubles import run_passes, until_idle

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0

user: ContextVar[str] = ContextVar("user", default="no user")

Trace = list[object]


def me() -> asyncio.Task[Any]:
    """Return the current task."""
    task = asyncio.current_task()
    assert task is not None
    return task


# --- what work may do in a task -------------------------------------------------------------------------------------


async def returns(trace: Trace) -> None:
    """End at once."""
    trace.append(me() in asyncio.all_tasks())


async def raises(trace: Trace) -> None:
    """Fail at once."""
    raise KeyError(me().cancelling())


async def stays_itself(trace: Trace) -> None:
    """Be the same task from the first step to the last."""
    before = me()
    await asyncio.sleep(0)
    trace.append(me() is before)
    await asyncio.sleep(0)
    trace.append(me() is before)


async def raises_later(_: Trace) -> None:
    """Fail after a pass."""
    await asyncio.sleep(0)
    raise KeyError


async def timeout_that_expires(trace: Trace) -> None:
    """Wait for longer than a timeout."""
    try:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()
    except TimeoutError:
        trace.append(me().cancelling())


async def timeout_of_nothing(trace: Trace) -> None:
    """Run, and wait, with a timeout of zero."""
    async with asyncio.timeout(0):
        trace.append("in time")
    with suppress(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            trace.append("too late")


async def timeout_in_time(trace: Trace) -> None:
    """End before a timeout."""
    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.sleep(0)
    trace.append(me().cancelling())


async def scopes(trace: Trace) -> None:
    """Use the cancel scopes of anyio."""
    with anyio.fail_after(WAIT_SECONDS):
        trace.append("at once")
    with anyio.move_on_after(0) as scope:
        await anyio.sleep(WAIT_SECONDS)
    trace.append(scope.cancelled_caught)
    with anyio.CancelScope() as scope:
        scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0)
            trace.append("shielded")
        await anyio.sleep(0)
        trace.append("never")
    trace.append((scope.cancelled_caught, me().cancelling()))
    try:
        with anyio.fail_after(0.01):
            await anyio.sleep(WAIT_SECONDS)
    except TimeoutError:
        trace.append("timeout")


async def groups(trace: Trace) -> None:
    """Use the task groups of asyncio and anyio."""

    async def child(number: int) -> None:
        await asyncio.sleep(0)
        trace.append((number, user.get()))

    async with asyncio.TaskGroup() as group:
        group.create_task(child(1))
    async with anyio.create_task_group() as scope:
        scope.start_soon(child, 2)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(raises_later(trace))
            await asyncio.Event().wait()
    except ExceptionGroup as error:
        trace.append([type(part) for part in error.exceptions])


async def locks(trace: Trace) -> None:
    """Hold locks, one of which records its owner."""
    lock, other = asyncio.Lock(), anyio.Lock()
    async with lock, other:
        trace.append(other.statistics().owner is not None)
        with pytest.raises(RuntimeError):
            await other.acquire()
    await asyncio.sleep(0)
    async with other:
        trace.append("again")


async def cancels_itself_and_waits(trace: Trace) -> None:
    """Cancel the own task, wait, and continue."""
    me().cancel("reason")
    trace.append(me().cancelling())
    waited = asyncio.get_running_loop().create_future()
    try:
        await waited
    except asyncio.CancelledError as error:
        trace.append((error.args, waited.cancelled(), me().uncancel()))
    await asyncio.sleep(0)
    trace.append("continued")


async def cancels_itself_at_a_bare_yield(trace: Trace) -> None:
    """Cancel the own task, and yield without a future."""
    me().cancel()
    try:
        await asyncio.sleep(0)
    finally:
        trace.append(me().cancelling())


async def cancels_itself_and_returns(trace: Trace) -> None:
    """Cancel the own task, and end."""
    trace.append(me().cancel())


async def waits(trace: Trace) -> None:
    """Wait for ever."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError as error:
        trace.append(error.args)
        raise


async def waits_for_a_task(trace: Trace) -> None:
    """Wait for a task, which a cancellation cancels too."""
    child = asyncio.create_task(asyncio.Event().wait())
    try:
        await child
    finally:
        trace.append(child.cancelled())


async def waits_for_results_and_errors(trace: Trace) -> None:
    """Wait for results and errors."""
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, 42)
    trace.append(await future)
    failing = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(failing.set_exception, KeyError())
    try:
        await failing
    except KeyError:
        trace.append("caught")


async def variables(trace: Trace) -> None:
    """Set and reset variables."""
    token = user.set("bob")
    await asyncio.sleep(0)
    trace.append(user.get())
    user.reset(token)
    user.set("carol")
    trace.append(await asyncio.create_task(named()))


async def named() -> str:
    """Return the user."""
    return user.get()


async def callback_at_its_end(trace: Trace) -> None:
    """Add a callback for the end."""
    me().add_done_callback(lambda _: trace.append("done"))


async def callback_at_its_error(trace: Trace) -> None:
    """Add a callback for the end, and fail at once."""
    me().add_done_callback(lambda task: trace.append(repr(task.exception())))
    raise KeyError


async def cancels_itself_and_raises(trace: Trace) -> None:
    """Cancel the own task, and fail at once."""
    me().add_done_callback(lambda task: trace.append(task.cancelled() or repr(task.exception())))
    me().cancel()
    raise KeyError


async def stops_an_iteration(_: Trace) -> None:
    """Raise StopIteration, which a coroutine cannot."""
    raise StopIteration


ALL: Final = (
    returns,
    raises,
    stays_itself,
    raises_later,
    timeout_that_expires,
    timeout_of_nothing,
    timeout_in_time,
    scopes,
    groups,
    locks,
    cancels_itself_and_waits,
    cancels_itself_at_a_bare_yield,
    cancels_itself_and_returns,
    waits_for_results_and_errors,
    variables,
    callback_at_its_end,
    callback_at_its_error,
    cancels_itself_and_raises,
    stops_an_iteration,
)


async def outcome(started: Callable[[], asyncio.Task[None] | None], cancelled_after: int | None) -> object:
    """Return how a started task ends; it is cancelled after so many passes of the event loop."""
    try:
        task = started()
    except (Exception, asyncio.CancelledError) as error:
        await until_idle()
        return type(error), error.args
    if task is None:
        await until_idle()
        return None
    if cancelled_after is not None:
        await run_passes(cancelled_after)
        task.cancel("from outside")
    await asyncio.wait([task], timeout=WAIT_SECONDS)
    await until_idle()
    failure = asyncio.CancelledError() if task.cancelled() else task.exception()
    return None if failure is None else (type(failure), failure.args)


async def both(work: Callable[[Trace], Coroutine[Any, Any, None]], cancelled_after: int | None = None) -> list[object]:
    """Return what work does, sees and leaves in its Context: in a task of asyncio, and started at once."""
    loop = asyncio.get_running_loop()
    found: list[object] = []
    for at_once in (False, True):
        trace, context = Trace(), copy_context()
        context.run(user.set, "alice")

        def start(trace: Trace = trace, context: Context = context) -> asyncio.Task[None]:
            return loop.create_task(work(trace), context=context)

        def start_at_once(trace: Trace = trace, context: Context = context) -> asyncio.Task[None] | None:
            return begin(work(trace), context, loop)

        passes = cancelled_after if at_once or cancelled_after is None else cancelled_after + 1
        ended = await outcome(start_at_once if at_once else start, passes)
        found.append((trace, ended, context[user], me().cancelling()))
    return found


@pytest.mark.parametrize("work", ALL, ids=lambda work: work.__name__)
async def test_as_in_any_task(work: Callable[[Trace], Coroutine[Any, Any, None]]) -> None:
    """Whatever work does with its task and its Context has the same effects as in a task of asyncio."""
    in_a_task, at_once = await both(work)
    assert at_once == in_a_task


@pytest.mark.parametrize("passes", [0, 1, 2])
@pytest.mark.parametrize("work", [waits, waits_for_a_task, stays_itself], ids=lambda work: work.__name__)
async def test_cancelled_as_any_task(work: Callable[[Trace], Coroutine[Any, Any, None]], passes: int) -> None:
    """A cancellation is raised in it, with its message, before or after the next pass of the event loop."""
    in_a_task, at_once = await both(work, passes)
    assert at_once == in_a_task


async def test_several_wait_for_the_same() -> None:
    """Several tasks that wait for one future, such as a token that is renewed, all get its result."""
    loop = asyncio.get_running_loop()
    shared: asyncio.Future[str] = loop.create_future()
    results: list[str] = []

    async def wait() -> None:
        results.append(await shared)

    tasks = [begin(wait(), copy_context(), loop) for _ in range(3)]
    cancelled = begin(wait(), copy_context(), loop)
    assert cancelled is not None
    tasks.append(asyncio.create_task(wait()))
    await run_passes(1)
    shared.set_result("token")
    await asyncio.gather(*(task for task in (*tasks, cancelled) if task is not None))
    assert results == ["token"] * 5


# --- no state is left for the next work -----------------------------------------------------------------------------


def keeps(kept: list[object]) -> None:
    """Keep the task."""
    kept.append(me())


def keeps_weakly(kept: list[object]) -> None:
    """Keep the task in a weak reference."""
    kept.append(weakref.ref(me()))


def names(_: list[object]) -> None:
    """Name the task."""
    me().set_name("mine")


def sets_an_attribute(_: list[object]) -> None:
    """Set an attribute of the task."""
    me().user = "alice"  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def adds_a_callback(kept: list[object]) -> None:
    """Add a callback for the end."""
    me().add_done_callback(lambda _: kept.append("done"))


def cancels(_: list[object]) -> None:
    """Cancel the task, and uncancel it."""
    me().cancel()
    me().uncancel()


@pytest.mark.parametrize(
    "act", [keeps, keeps_weakly, names, sets_an_attribute, adds_a_callback, cancels], ids=lambda act: act.__name__
)
async def test_nothing_is_left_for_the_next(act: Callable[[list[object]], None]) -> None:
    """A task that work has kept, changed or cancelled is not reused for the next work."""
    kept: list[object] = []
    seen: list[object] = []
    loop, context = asyncio.get_running_loop(), copy_context()

    async def first() -> None:
        act(kept)

    async def second() -> None:
        task = me()
        seen.extend([task.get_name(), getattr(task, "user", None), task.cancelling(), bool(task._callbacks)])
        seen.append(any(task in (one, one() if isinstance(one, weakref.ref) else None) for one in kept))
        await asyncio.sleep(0)

    def fan_out() -> None:
        with suppress(asyncio.CancelledError):
            begin(first(), context, loop)
        begin(second(), context, loop)

    loop.call_soon(fan_out)
    await until_idle()
    assert seen == ["backplane-send", None, 0, False, False]


@pytest.mark.parametrize("method", ["cancel", "cancelling"])
async def test_found_after_its_end(method: str) -> None:
    """A task that is found among all tasks after its work has ended is not reused for the next work."""
    loop, context, trace = asyncio.get_running_loop(), copy_context(), Trace()
    before = asyncio.all_tasks()

    async def next_one() -> None:
        trace.append(me() in found)
        await asyncio.sleep(0)
        trace.append("continued")

    begin(returns([]), context, loop)
    found = asyncio.all_tasks() - before
    for task in found:
        getattr(task, method)()
    begin(next_one(), context, loop)
    await until_idle()
    assert trace == [False, "continued"]


async def test_one_within_the_other() -> None:
    """Work started within work has a task of its own, and the caller's task is current again afterwards."""
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[Any]] = [me()]

    async def inner() -> None:
        tasks.append(me())

    async def outer() -> None:
        tasks.append(me())
        begin(inner(), copy_context(), loop)
        assert me() is tasks[1]

    begin(outer(), copy_context(), loop)
    assert me() is tasks[0]
    assert len(set(tasks)) == 3


async def test_called_from_its_own_context() -> None:
    """Where the caller runs in the same Context, which cannot be entered twice, the work starts in the next pass."""
    loop, context = asyncio.get_running_loop(), copy_context()
    trace: Trace = []
    task = context.run(begin, variables(trace), context, loop)
    assert (task is not None, trace) == (True, [])
    assert task is not None
    await asyncio.wait_for(task, WAIT_SECONDS)
    assert (trace, context[user]) == (["bob", "carol"], "carol")


def task_of_an_old_factory(loop: asyncio.AbstractEventLoop, work: Any) -> asyncio.Task[Any]:
    """Make a task as factories did before Python 3.11."""
    return asyncio.Task(work, loop=loop)


@pytest.mark.parametrize("name", ["old factory", "eager_task_factory"])
async def test_factory_of_the_application(name: str) -> None:
    """A task factory of the application, which may take no Context or be eager, is not used."""
    loop, context, trace = asyncio.get_running_loop(), copy_context(), Trace()
    loop.set_task_factory(getattr(asyncio, name, task_of_an_old_factory))  # Python 3.11 has no eager one
    try:
        tasks = [
            context.run(begin, stays_itself(trace), context, loop),
            context.run(task_in, context, stays_itself(trace), loop),
        ]
    finally:
        loop.set_task_factory(None)
    assert trace == []
    await asyncio.wait_for(asyncio.gather(*(task for task in tasks if task is not None)), WAIT_SECONDS)
    assert trace == [True] * 4


def test_call_from_its_own_context() -> None:
    """A call into the Context that the caller runs in has its variables; its errors, of any type, are raised."""
    context = Context()

    def within() -> str:
        user.set("alice")
        return run_in(context, user.get)

    def fail() -> None:
        raise RuntimeError("of the call")

    assert run_in(context, within) == "alice"
    with pytest.raises(RuntimeError, match="of the call"):
        run_in(context, fail)


async def test_error_of_the_work_is_its_own() -> None:
    """A RuntimeError of the work is raised unchanged, and the work is not started again."""
    begun: list[int] = []

    async def fail() -> None:
        begun.append(1)
        raise RuntimeError("of the work")

    with pytest.raises(RuntimeError, match="of the work"):
        begin(fail(), copy_context(), asyncio.get_running_loop())
    await until_idle()
    assert begun == [1]


def test_event_loop_that_ends_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """An event loop that is stopped during a send, and closed, logs nothing."""
    loop = asyncio.new_event_loop()

    def send_and_stop() -> None:
        begin(returns([]), copy_context(), loop)
        loop.stop()

    loop.call_soon(send_and_stop)
    with caplog.at_level(logging.DEBUG, "asyncio"):
        loop.run_forever()
        loop.close()
        replace_event_loop(loop)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG] == []


def replace_event_loop(_: asyncio.AbstractEventLoop) -> None:
    """Run another event loop, so that the task of the ended one is garbage-collected."""

    async def main() -> None:
        begin(returns([]), copy_context(), asyncio.get_running_loop())

    asyncio.run(main())
    gc.collect()
