"""`backplane publish --traceparent`: the trace of a shell goes along with the message."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from backplane.adapters.memory import MemoryBroadcaster
from backplane.cli import app
from backplane.cli.traceparent import CarriedTrace
from backplane.errors import ConfigurationError
from backplane.fanout.codec import decode
from backplane.message import ExtendedMessage, Message

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[Message | None]:
    """Every message that reached the adapter."""
    received: list[Message | None] = []

    async def publish(_: MemoryBroadcaster, channel: str, payload: bytes) -> None:
        received.append(decode(channel, payload))

    monkeypatch.setattr(MemoryBroadcaster, "publish", publish)
    return received


def publish(*arguments: str) -> tuple[int, str]:
    """Run the command on `memory://`; return status and standard error."""
    result = CliRunner().invoke(app, ["publish", "memory://", "room", "hello", *arguments])
    return result.exit_code, result.stderr


@pytest.mark.parametrize("text", [TRACEPARENT, f" {TRACEPARENT}\n", f"01-{TRACE_ID}-{SPAN_ID}-01-more"])
def test_sampled(published: list[Message | None], text: str) -> None:
    """The message has the context of the span: flags, trace id, span id."""
    assert publish("--traceparent", text)[0] == 0
    (message,) = published
    assert isinstance(message, ExtendedMessage)
    assert (message.data, message.extensions.hex()) == ("hello", f"011901{TRACE_ID}{SPAN_ID}")


@pytest.mark.parametrize(
    "arguments", [[], ["--traceparent", f"00-{TRACE_ID}-{SPAN_ID}-00"]], ids=["none", "not sampled"]
)
def test_not_sampled(published: list[Message | None], arguments: list[str]) -> None:
    """Without a span, or with one that is not sampled, the message is an ordinary one."""
    assert publish(*arguments)[0] == 0
    assert [type(message) for message in published] == [Message]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        TRACEPARENT.upper(),
        f"{TRACEPARENT}-more",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-{SPAN_ID}",
    ],
)
def test_what_is_none(published: list[Message | None], text: str) -> None:
    """What is no such header is refused with status 2, and nothing is published."""
    status, errors = publish("--traceparent", text)
    assert (status, published) == (2, [])
    assert "--traceparent takes the header of W3C Trace Context" in errors
    with pytest.raises(ConfigurationError):
        CarriedTrace(text)
