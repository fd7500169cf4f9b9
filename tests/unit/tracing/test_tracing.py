"""`backplane.tracing`: the spans of publishes, deliveries and consumers, made by the real SDK."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from pydantic import BaseModel

from backplane import Backplane, Gap, History, Message, Presence
from backplane.broadcaster import BrokerUrl, Options
from backplane.errors import ConfigurationError, InvalidChannelError, InvalidDataError, PayloadTooLargeError
from backplane.fanout.codec import decode
from backplane.header import TRACE_CONTEXT, value_of
from backplane.message import ExtendedMessage
from backplane.metrics.snapshot import snapshot
from backplane.tracing import Tracing
from tests.exported_spans import Exported, context_of, parent_id
from tests.unit.doubles import ControlledBroadcaster
from tests.unit.history.world import history_world

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio


class Order(BaseModel):
    """A message of an application."""

    number: int


class Recorder(ControlledBroadcaster):
    """An adapter that keeps what is published."""

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options=options)
        self.payloads: list[bytes] = []

    async def publish(self, channel: str, payload: bytes) -> None:
        """Keep and deliver it."""
        if not channel.startswith("$"):
            self.payloads.append(payload)
        await super().publish(channel, payload)


async def test_a_publish_and_its_delivery() -> None:
    """Both are in the caller's trace: the publish is a child of the current span, the delivery one of the publish."""
    exported = Exported()
    async with (
        Backplane("memory://traced", tracing=Tracing(exported.provider)) as backplane,
        backplane.subscribe("orders:42") as one,
        backplane.subscribe("orders:42") as two,
    ):
        with exported.tracer.start_as_current_span("POST /orders"):
            await backplane.publish("orders:42", "hello")
        for messages in (one, two):
            message = await anext(messages)
            assert (message.data if isinstance(message, Message) else None) == "hello"
    request, send, deliver = (exported.named(name) for name in ("POST /orders", "send", "deliver"))
    assert len(exported.spans) == 3
    assert {context_of(span).trace_id for span in exported.spans} == {context_of(request).trace_id}
    assert (parent_id(send), parent_id(deliver)) == (context_of(request).span_id, context_of(send).span_id)
    assert [link.context.span_id for link in deliver.links] == [context_of(send).span_id]
    assert (send.kind, deliver.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert dict(send.attributes or {}) == {
        "messaging.system": "memory",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders:42",
        "messaging.message.body.size": 5,
    }
    found = dict(deliver.attributes or {})
    lag = found.pop("backplane.lag")
    assert isinstance(lag, float)
    assert 0 <= lag < 30
    assert found == {
        "messaging.system": "memory",
        "messaging.operation.name": "deliver",
        "messaging.operation.type": "process",
        "messaging.destination.name": "orders:42",
        "backplane.deliveries": 2,
    }
    assert deliver.start_time is not None
    assert send.start_time is not None
    assert deliver.end_time is not None
    assert send.start_time <= deliver.start_time <= deliver.end_time


async def test_without_a_current_span() -> None:
    """A publish outside of any span begins a trace."""
    exported = Exported()
    async with Backplane("memory://traced", tracing=Tracing(exported.provider)) as backplane:
        await backplane.publish("a", "hello")
    assert [(span.name, span.parent) for span in exported.spans] == [("send", None)]


async def test_unsampled_costs_no_byte() -> None:
    """Where the publish is not sampled the payload is that of a backplane without tracing, and there is no span."""
    adapter, plain, exported = Recorder(), Recorder(), Exported(sampled=False)
    async with (
        Backplane(adapter, tracing=Tracing(exported.provider)) as backplane,
        backplane.subscribe("a") as messages,
    ):
        await backplane.publish("a", "hello")
        message = await anext(messages)
    async with Backplane(plain) as backplane:
        await backplane.publish("a", "hello")
    assert type(message) is Message
    assert (len(adapter.payloads[0]), adapter.payloads[0][:5]) == (len(plain.payloads[0]), plain.payloads[0][:5])
    assert exported.spans == []


async def test_bytes_of_a_sampled_message() -> None:
    """The header has the flags, the trace id and the span id: 29 bytes."""
    adapter, exported = Recorder(), Exported()
    async with Backplane(adapter, tracing=Tracing(exported.provider)) as backplane:
        await backplane.publish("a", "hello")
    (payload,) = adapter.payloads
    message = decode("a", payload)
    assert isinstance(message, ExtendedMessage)
    context = context_of(exported.named("send"))
    sent = bytes([context.trace_flags]) + context.trace_id.to_bytes(16) + context.span_id.to_bytes(8)
    assert (value_of(message.extensions, TRACE_CONTEXT), len(payload)) == (sent, 21 + 29 + 5)


async def test_without_tracing_nothing_is_written() -> None:
    """A backplane without tracing reads a traced message, and makes no span of it; what it writes is of version 1."""
    exported, adapter = Exported(), Recorder()
    async with (
        Backplane("memory://mixed", tracing=Tracing(exported.provider)) as traced,
        Backplane("memory://mixed") as other,
        Backplane(adapter) as plain,
        other.subscribe("a") as messages,
    ):
        await traced.publish("a", "hello")
        message = await anext(messages)
        assert isinstance(message, ExtendedMessage)
        assert message.data == "hello"
        with exported.tracer.start_as_current_span("current"):
            await plain.publish("a", "hello")
    assert exported.names == ["send", "current"]
    assert adapter.payloads[0][3] == 1


# --- names and attributes ---------------------------------------------------------------------------------------------


async def test_templates_name_spans() -> None:
    """The template of a typed channel names the spans of its channels, for plain publishes too; else a rule does."""
    exported = Exported()
    async with Backplane(
        "memory://",
        history={"kept:*": History()},
        presence={"room:*": Presence()},
        tracing=Tracing(exported.provider),
    ) as backplane:
        orders = backplane.channel("orders:{user}:{number}", Order)
        await orders.publish(Order(number=1), user="ada", number=1)
        await backplane.publish("orders:ada:2", "x")
        await backplane.publish("orders:ada", "x")
        receipt = await backplane.publish("kept:1", "x")
        await backplane.publish("room:1", "x")
        await asyncio.to_thread(backplane.sync.channel("other-{id}", Order).publish, Order(number=1), id=1)
    assert exported.names == [
        "send orders:{user}:{number}",
        "send orders:{user}:{number}",
        "send",
        "send kept:*",
        "send room:*",
        "send other-{id}",
    ]
    attributes = [span.attributes or {} for span in exported.spans]
    assert attributes[0]["messaging.destination.template"] == "orders:{user}:{number}"
    assert attributes[0]["messaging.destination.name"] == "orders:ada:1"
    assert attributes[3]["messaging.message.id"] == str(receipt.position)


async def test_without_channel_names() -> None:
    """With `channel_names=False` no span has the name of a channel, not even in an error."""
    exported, name = Exported(), "patient-4711"
    tracing = Tracing(exported.provider, channel_names=False)
    async with Backplane("memory://", tracing=tracing) as backplane, backplane.subscribe(name) as messages:
        await backplane.publish(name, "hello")
        message = await anext(messages)
        with tracing.consume(message):
            pass
        with pytest.raises(PayloadTooLargeError):
            await backplane.publish(name, bytes(2_000_000_000 >> 4))
    assert sorted(exported.names) == ["deliver", "process", "send", "send"]
    assert name not in "".join(span.to_json() for span in exported.spans)


@pytest.mark.parametrize(
    ("data", "raised"),
    [(object(), InvalidDataError), (bytes(2_000), PayloadTooLargeError)],
    ids=["invalid", "too large"],
)
async def test_errors(data: object, raised: type[Exception]) -> None:
    """A publish that raises is a span with the error's type; what it raises is not changed."""
    exported = Exported()
    async with Backplane(Recorder(), tracing=Tracing(exported.provider)) as backplane:
        with pytest.raises(raised):
            await backplane.publish("a", data)
    (span,) = exported.spans
    assert (span.attributes or {})["error.type"] == raised.__name__
    assert (span.status.status_code, span.status.description, span.events) == (StatusCode.ERROR, None, ())


async def test_an_invalid_name_is_no_span() -> None:
    """What is refused before anything is published is not in a span, whose attributes it would fill."""
    exported = Exported()
    async with Backplane("memory://", tracing=Tracing(exported.provider)) as backplane:
        with pytest.raises(InvalidChannelError):
            await backplane.publish("x" * 10_000, "hello")
    assert exported.spans == []


async def test_a_cancelled_publish() -> None:
    """A publish that is cancelled ends its span."""
    exported, waits, released = Exported(), asyncio.Event(), asyncio.Event()

    class Slow(Recorder):
        async def publish(self, channel: str, payload: bytes) -> None:
            waits.set()
            await released.wait()

    async with Backplane(Slow(), tracing=Tracing(exported.provider)) as backplane:
        publishing = asyncio.create_task(backplane.publish("a", "hello"))
        await waits.wait()
        publishing.cancel()
        await asyncio.wait([publishing])
        released.set()
    assert (exported.named("send").attributes or {})["error.type"] == "CancelledError"


async def test_a_repeated_key() -> None:
    """A message that the broker has dropped as a duplicate is marked."""
    exported = Exported()
    async with Backplane("memory://", history={"k": History()}, tracing=Tracing(exported.provider)) as backplane:
        for _ in range(2):
            await backplane.publish("k", "x", idempotency_key="one")
    assert [(span.attributes or {}).get("backplane.duplicate") for span in exported.spans] == [None, True]


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 28, 29, 30])
async def test_extensions_change_no_outcome(room: int) -> None:
    """Where the trace context would take the payload over the limit it is left out, and the message is published."""
    adapter, exported = Recorder(), Exported()
    limit = adapter.capabilities.max_payload_bytes
    async with Backplane(adapter, tracing=Tracing(exported.provider)) as backplane:
        await backplane.publish("a", bytes(limit - 21 - room))
    (payload,) = adapter.payloads
    assert (payload[3], len(payload)) == ((2, limit - room + 29) if room >= 29 else (1, limit - room))
    assert (exported.named("send").attributes or {})["messaging.message.body.size"] == limit - 21 - room


async def test_without_a_header() -> None:
    """With `wire_format=plain` the publish has a span, and nothing goes along, not even over the limit."""
    adapter, exported = Recorder(Options(wire_format="plain")), Exported()
    async with Backplane(adapter, tracing=Tracing(exported.provider)) as backplane:
        await backplane.publish("a", "hello")
        with pytest.raises(PayloadTooLargeError):
            await backplane.publish("a", "x" * 1_025)
    assert adapter.payloads == [b"hello"]
    assert [(span.attributes or {})["messaging.message.body.size"] for span in exported.spans] == [5, 1_025]


# --- deliveries -------------------------------------------------------------------------------------------------------


async def test_messages_of_one_trace_are_one_delivery() -> None:
    """Several messages of one trace that a worker delivers at once are one span in that trace, linked to each."""
    exported = Exported()
    async with Backplane(Recorder(), tracing=Tracing(exported.provider)) as backplane, backplane.subscribe("a"):
        with exported.tracer.start_as_current_span("request"):
            for number in range(3):
                await backplane.publish("a", str(number))
        await delivered(exported, 1)
    sends = [context_of(span).span_id for span in exported.spans if span.name == "send"]
    deliver = exported.named("deliver")
    assert [link.context.span_id for link in deliver.links] == sends
    assert (parent_id(deliver), context_of(deliver).trace_id) == (
        sends[0],
        context_of(exported.named("request")).trace_id,
    )
    assert (deliver.attributes or {})["messaging.batch.message_count"] == 3


async def test_messages_of_several_traces_are_a_linked_root() -> None:
    """A delivery of messages of several traces is in none of them, and linked to each; the unsampled do not count."""
    exported, unsampled = Exported(), Exported(sampled=False)
    async with Backplane(Recorder(), tracing=Tracing(exported.provider)) as backplane, backplane.subscribe("a"):
        await backplane.publish("a", "1")
        with trace.use_span(unsampled.tracer.start_span("unsampled")):
            await backplane.publish("a", "2")
        await backplane.publish("a", "3")
        await delivered(exported, 1)
    sends = [context_of(span) for span in exported.spans if span.name == "send"]
    deliver = exported.named("deliver")
    assert deliver.parent is None
    assert [link.context.trace_id for link in deliver.links] == [send.trace_id for send in sends]
    assert len({send.trace_id for send in sends} | {context_of(deliver).trace_id}) == 3
    assert (deliver.attributes or {})["messaging.batch.message_count"] == 3


async def test_links_are_bounded() -> None:
    """A batch of a thousand sampled messages has 128 links, as many as the SDK takes."""
    exported = Exported()
    async with Backplane(Recorder(), tracing=Tracing(exported.provider)) as backplane, backplane.subscribe("a"):
        with exported.tracer.start_as_current_span("request"):
            for number in range(1_000):
                await backplane.publish("a", str(number))
        await delivered(exported, 1)
    assert (len(exported.named("deliver").links), exported.named("deliver").dropped_links) == (128, 0)


async def test_no_span_for_each_subscriber() -> None:
    """A thousand subscribers are one span, which ends with the last slice of the delivery."""
    exported = Exported()
    async with Backplane("memory://", tracing=Tracing(exported.provider)) as backplane:
        scopes = [backplane.subscribe("a") for _ in range(1_000)]
        subscriptions = [await scope.__aenter__() for scope in scopes]
        await backplane.publish("a", "hello")
        for messages in subscriptions:
            await anext(messages)
        await delivered(exported, 1)
        for scope in scopes:
            await scope.__aexit__(None, None, None)
    assert sorted(exported.names) == ["deliver", "send"]
    assert (exported.named("deliver").attributes or {})["backplane.deliveries"] == 1_000


async def test_deliveries_are_bounded() -> None:
    """Above the bound spans of deliveries are counted and not made; publishes and consumers go on having one."""
    exported = Exported()
    tracing = Tracing(exported.provider, max_spans_per_second=0.001)
    async with Backplane("memory://", tracing=tracing) as backplane, backplane.subscribe("a") as messages:
        for number in range(5):
            await backplane.publish("a", str(number))
            with tracing.consume(await anext(messages)):
                pass
        assert tracing.skipped_spans == 4
        assert snapshot(backplane)["metrics"]["backplane_trace_spans_skipped_total"] == [[[], 4]]
    assert sorted(exported.names) == ["deliver", *["process"] * 5, *["send"] * 5]


async def test_what_the_broker_gives_back_is_a_delivery() -> None:
    """What was missed and is read from the history is delivered in a span, too: late, in the trace of its publish."""
    exported, adapter = Exported(), Recorder()
    tracing = Tracing(exported.provider)
    async with Backplane(adapter, tracing=tracing) as backplane, history_world() as worker:
        worker.hub.tracer = tracing.tracer(BrokerUrl(scheme="memory"), lambda _: "k*")
        subscriber = await worker.joined("k")
        await worker.degrade()
        await backplane.publish("k", "late")
        worker.adapter.append("k", adapter.payloads[0], most=100)
        worker.adapter.start_gate.open()
        assert await subscriber.receives(1) == ["late"]
        await delivered(exported, 1)
    assert parent_id(exported.named("deliver k*")) == context_of(exported.named("send")).span_id


# --- consumers --------------------------------------------------------------------------------------------------------


async def test_consume() -> None:
    """The body of the loop belongs to a span in the trace of the publisher, which is a child of the publish."""
    exported = Exported()
    tracing = Tracing(exported.provider)
    async with Backplane("memory://", tracing=tracing) as backplane, backplane.subscribe("a") as messages:
        await backplane.publish("a", "hello")
        with exported.tracer.start_as_current_span("consumer"):
            with tracing.consume(await anext(messages)), exported.tracer.start_as_current_span("work"):
                pass
            with exported.tracer.start_as_current_span("next"):
                pass
    send, process, work = (exported.named(name) for name in ("send", "process", "work"))
    assert (parent_id(process), parent_id(work)) == (context_of(send).span_id, context_of(process).span_id)
    assert [link.context.span_id for link in process.links] == [context_of(send).span_id]
    assert process.kind == SpanKind.CONSUMER
    assert parent_id(exported.named("next")) == context_of(exported.named("consumer")).span_id


async def test_consume_of_what_is_not_traced() -> None:
    """A gap, a message that is not sampled and one without a context leave the current span as it is."""
    exported = Exported()
    tracing = Tracing(exported.provider)
    unsampled = ExtendedMessage(channel="a", data="x", extensions=b"\x01\x19\x00" + bytes(range(24)))
    zeros = ExtendedMessage(channel="a", data="x", extensions=b"\x01\x19\x01" + bytes(24))
    for item in (Gap(channel="a", reason="x"), Message(channel="a", data="x"), unsampled, zeros):
        with exported.tracer.start_as_current_span("current") as current, tracing.consume(item):
            assert trace.get_current_span() is current
    assert exported.names == ["current"] * 4


async def test_consume_of_a_failure() -> None:
    """What the body raises is recorded in the span, and raised further; the current span is the one before again."""
    exported = Exported()
    tracing = Tracing(exported.provider)
    async with Backplane("memory://", tracing=tracing) as backplane, backplane.subscribe("a") as messages:
        await backplane.publish("a", "hello")
        item = await anext(messages)
        with pytest.raises(ZeroDivisionError), tracing.consume(item):
            _ = 1 / 0
    process = exported.named("process")
    assert (process.status.status_code, [event.name for event in process.events]) == (StatusCode.ERROR, ["exception"])
    assert not trace.get_current_span().get_span_context().is_valid


async def test_consume_of_a_typed_channel() -> None:
    """The message of the model that was returned last is there for `consume`."""
    exported = Exported()
    tracing = Tracing(exported.provider)
    async with Backplane("memory://", tracing=tracing) as backplane:
        orders = backplane.channel("orders:{id}", Order)
        async with orders.subscribe(id=42) as messages:
            assert messages.message is None
            await orders.publish(Order(number=1), id=42)
            order = await anext(messages)
            assert order == Order(number=1)
            assert messages.message is not None
            with tracing.consume(messages.message):
                pass
    assert parent_id(exported.named("process orders:{id}")) == context_of(exported.named("send orders:{id}")).span_id


# --- what goes along --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "expected"), [(False, None), (True, "gold")])
async def test_baggage(option: bool, expected: str | None) -> None:
    """The baggage of the publisher is that of the consumer, where both ask for it; and is not there after it."""
    exported = Exported()
    tracing = Tracing(exported.provider, baggage=option)
    async with Backplane("memory://", tracing=tracing) as backplane, backplane.subscribe("a") as messages:
        token = attach(baggage.set_baggage("tier", "gold"))
        try:
            await backplane.publish("a", "hello")
        finally:
            detach(token)
        with tracing.consume(await anext(messages)):
            assert baggage.get_baggage("tier") == expected
        assert baggage.get_baggage("tier") is None


@pytest.mark.parametrize(("size", "goes_along"), [(900, True), (1_100, False)])
async def test_large_baggage_is_left_out(size: int, goes_along: bool) -> None:
    """Baggage that does not fit into the extensions is left out, and the trace context goes along."""
    exported = Exported()
    tracing = Tracing(exported.provider, baggage=True)
    async with Backplane("memory://", tracing=tracing) as backplane, backplane.subscribe("a") as messages:
        token = attach(baggage.set_baggage("long", "x" * size))
        try:
            await backplane.publish("a", "hello")
        finally:
            detach(token)
        with tracing.consume(await anext(messages)):
            assert (baggage.get_baggage("long") is not None) is goes_along
    assert parent_id(exported.named("process")) == context_of(exported.named("send")).span_id


@pytest.mark.parametrize("entries", [1, 2, 8])
async def test_tracestate(entries: int) -> None:
    """The tracestate goes along up to 512 bytes, as W3C Trace Context asks for, and is that of the delivery."""
    exported = Exported()
    state = TraceState([(f"vendor{number}", "x" * 240) for number in range(entries)])
    remote = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1), trace_state=state)
    tracing = Tracing(exported.provider)
    async with Backplane("memory://", tracing=tracing) as backplane, backplane.subscribe("a") as messages:
        with trace.use_span(trace.NonRecordingSpan(remote)):
            await backplane.publish("a", "hello")
        await anext(messages)
        await delivered(exported, 1)
    assert context_of(exported.named("send")).trace_state == state
    expected = state if entries <= 2 else TraceState()
    assert context_of(exported.named("deliver")).trace_state == expected


@pytest.mark.parametrize("text", [b"\xff\xfe", b"", b"a=b\r\nx: y", b"=,=", b"x" * 255])
async def test_hostile_tracestate_and_baggage(text: bytes) -> None:
    """Whatever another program writes there, the message is consumed."""
    tracing = Tracing(Exported().provider, baggage=True)
    extensions = b"\x01\x19\x01" + bytes(range(1, 25))
    extensions += b"".join(bytes([kind, len(text)]) + text for kind in (2, 3))
    with tracing.consume(ExtendedMessage(channel="a", data="x", extensions=extensions)):
        assert trace.get_current_span().get_span_context().trace_id == int.from_bytes(bytes(range(1, 17)))
        assert trace.get_current_span().get_span_context().trace_state == TraceState()


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Tracing(max_spans_per_second=0), "max_spans_per_second must be a finite number more than 0"),
        (lambda: Tracing("provider"), "tracer_provider must be a TracerProvider, not 'provider'"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        (lambda: Backplane(tracing=Tracing), r"tracing must be a backplane.tracing.Tracing\(...\), not <class"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        (lambda: Backplane(tracing=True), r"tracing must be a backplane.tracing.Tracing\(...\), not True"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ],
)
def test_options_that_are_refused(make: Callable[[], Any], words: str) -> None:
    """What cannot be used is refused at once, by its name."""
    with pytest.raises(ConfigurationError, match=f"^{words}"):
        make()


async def test_other_publishers_inherit_it() -> None:
    """`sync` of a backplane that is started publishes within the span of its caller, in another thread."""
    exported = Exported()
    async with Backplane("memory://", tracing=Tracing(exported.provider)) as backplane:

        def view() -> None:
            with exported.tracer.start_as_current_span("view"):
                backplane.sync.publish("a", "hello")

        await asyncio.to_thread(view)
    assert parent_id(exported.named("send")) == context_of(exported.named("view")).span_id


async def test_control_traffic_has_none() -> None:
    """What workers exchange, commands and presence, has no extension and no span, within a trace either."""
    exported, adapter = Exported(), ControlledBroadcaster()
    written: list[tuple[str, bytes]] = []
    publish = adapter.publish

    async def recorded(channel: str, payload: bytes) -> None:
        written.append((channel, payload))
        await publish(channel, payload)

    vars(adapter)["publish"] = recorded
    with exported.tracer.start_as_current_span("request"):
        async with Backplane(adapter, cluster=True, tracing=Tracing(exported.provider)) as backplane:
            await backplane.disconnect(user="ada")
            await backplane.send_to(user="ada", data="hello")
    commands = [payload for channel, payload in written if payload and channel.startswith("$backplane/")]
    assert len(commands) >= 2
    assert {payload[3] for payload in commands} == {1}
    assert exported.names == ["request"]


async def delivered(exported: Exported, count: int) -> None:
    """Wait until so many spans of deliveries have ended."""
    async with asyncio.timeout(30):
        while sum(name.startswith("deliver") for name in exported.names) < count:
            await asyncio.sleep(0)
