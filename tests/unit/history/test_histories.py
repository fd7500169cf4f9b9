"""`backplane.history.histories`: what a worker with history has, and reads of the history on demand."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from backplane.errors import BrokerUnavailableError, ConfigurationError, InvalidPositionError
from backplane.fanout.broker_subscriptions import BrokerSubscriptions
from backplane.fanout.codec import encode_path_test
from backplane.history.histories import Histories
from backplane.history_rules import History, HistoryRules
from backplane.journal.journal import Journal
from backplane.message import Position
from backplane.settings import Settings
from backplane.statistics import Counters
from tests.unit.controlled_adapter import Adapter, ControlledHistoryAdapter

if TYPE_CHECKING:
    from backplane.broadcaster import Capabilities
    from backplane.message import HistoryPage

pytestmark = pytest.mark.anyio

RULES = HistoryRules({"k*": History(max_messages=3)})


def histories(adapter: Any, settings: Settings | None = None) -> Histories:
    """Return the histories of a worker."""
    subscriptions = BrokerSubscriptions(linger_seconds=60, timeout_seconds=60, batch_size=500)
    return Histories(
        adapter,
        RULES,
        subscriptions,
        settings=settings or Settings(),
        statistics=Counters(),
        journal=Journal(),
    )


def adapter_with(*payloads: str) -> ControlledHistoryAdapter:
    """Return an adapter that has kept these texts."""
    adapter = ControlledHistoryAdapter()
    for payload in payloads:
        adapter.append("k", payload.encode(), most=3)
    return adapter


def data(page: HistoryPage) -> list[str | bytes]:
    """Return the data of a page."""
    return [message.data for message in page.messages]


class Claiming(Adapter):
    """An adapter that declares that it keeps messages, and has no method for it."""

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return replace(super().capabilities, keeps="server")


async def test_an_adapter_that_keeps_nothing_is_refused() -> None:
    """A history on an adapter that keeps nothing, or has no methods for it, is a wrong configuration."""
    adapter = ControlledHistoryAdapter()
    adapter.keeps_history = False
    for refused in (adapter, Claiming()):
        with pytest.raises(ConfigurationError, match="keeps no messages: use another adapter"):
            histories(refused)


async def test_what_runs_on_the_link() -> None:
    """The repairer runs, and where live messages may be skipped quiet channels are compared too."""
    adapter = ControlledHistoryAdapter()
    made = histories(adapter)
    assert made.link_tasks == [made.hub.repairer.run]
    adapter.live_may_skip = True
    made = histories(adapter)
    first, second = made.link_tasks
    assert (first, second.__qualname__) == (made.hub.repairer.run, "QuietChannels.run")


async def test_the_broker_is_prepared_with_the_rules() -> None:
    """A new link is prepared for the rules."""
    adapter = ControlledHistoryAdapter()
    await histories(adapter).prepare()
    assert adapter.prepared == [RULES]


async def test_the_newest_messages() -> None:
    """Without a position the newest messages are returned, oldest first, and whether there are older ones."""
    adapter = adapter_with("1", "2", "3")
    made = histories(adapter)
    page = await made.page("k", None, 2)
    assert (data(page), page.complete, page.more) == (["2", "3"], True, True)
    assert page.position == adapter.log("k").top
    assert page.messages[0].position == adapter.log("k").items[1].place
    page = await made.page("k", None, 9)
    assert (data(page), page.more) == (["1", "2", "3"], False)


@pytest.mark.parametrize("as_text", [True, False])
async def test_page_after_page(as_text: bool) -> None:
    """The position of a page, as an object or as text, gives the next one, until there is nothing more."""

    def form(position: Position) -> str | Position:
        return str(position) if as_text else position

    adapter = adapter_with("1", "2", "3")
    made = histories(adapter)
    first = await made.page("k", form(Position(adapter.log("k").epoch, 0, 0)), 2)
    assert (data(first), first.complete, first.more) == (["1", "2"], True, True)
    second = await made.page("k", form(first.position), 2)
    assert (data(second), second.complete, second.more) == (["3"], True, False)
    last = await made.page("k", form(second.position), 2)
    assert (data(last), last.complete, last.more, last.position) == ([], True, False, second.position)


async def test_a_position_that_is_not_found() -> None:
    """Where the history does not reach back to it, the newest messages are returned, which is not complete."""
    adapter = adapter_with("1", "2", "3", "4", "5", "6")
    page = await histories(adapter).page("k", Position(adapter.log("k").epoch, 1, 1), 2)
    assert (data(page), page.complete, page.more) == (["5", "6"], False, True)
    assert page.position == adapter.log("k").top


@pytest.mark.parametrize("since", [None, Position(b"another ", 1, 1)])
async def test_an_empty_history(since: Position | None) -> None:
    """Of a channel without messages the page is empty, and has the position where it begins."""
    adapter = ControlledHistoryAdapter()
    page = await histories(adapter).page("k", since, 2)
    assert (data(page), page.complete, page.more) == ([], since is None, False)
    assert page.position == adapter.log("k").top


async def test_a_malformed_message_is_left_out() -> None:
    """A malformed payload is not returned, and the position lies after it."""
    adapter = adapter_with("1")
    place = adapter.append("k", b"\xbfBP")
    page = await histories(adapter).page("k", None, 5)
    assert (data(page), page.position) == (["1"], place)


async def test_a_path_test_is_left_out() -> None:
    """A path test, which a log that has everything has too, is not returned."""
    adapter = adapter_with("1")
    adapter.append("k", encode_path_test(b"TEST_ID8", origin=b"ORIGIN_8", published_at=0.0))
    adapter.append("k", b"2")
    assert data(await histories(adapter).page("k", None, 5)) == ["1", "2"]


async def test_a_page_is_bounded() -> None:
    """No page has more messages or bytes than the settings permit for a read."""
    adapter = adapter_with("1", "2", "3")
    settings = Settings(max_recall_messages=2, max_recall_bytes=77)
    assert len((await histories(adapter, settings).page("k", None, 1_000)).messages) == 2
    assert [(recall.limit, recall.max_bytes) for recall in adapter.recalls] == [(2, 77)]


async def test_what_cannot_be_read() -> None:
    """A channel without a rule, a limit that is no number, and a text that is no position are refused, unread."""
    adapter = ControlledHistoryAdapter()
    made = histories(adapter)
    with pytest.raises(ConfigurationError, match="channel 'other' has no history: give it a rule"):
        await made.page("other", None, 1)
    for limit in (0, -1, 1.5):
        with pytest.raises(ConfigurationError, match="limit"):
            await made.page("k", None, limit)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidPositionError):
        await made.page("k", "garbage", 1)
    assert adapter.recalls == []


async def test_a_broker_that_does_not_answer() -> None:
    """A read that takes too long raises an error that names the channel and the time."""
    adapter = ControlledHistoryAdapter()
    adapter.recall_gate.close()
    with pytest.raises(BrokerUnavailableError, match=r"did not return the history of channel 'k' within 0\.01 s"):
        await histories(adapter, Settings(recall_timeout_seconds=0.01)).page("k", None, 1)
