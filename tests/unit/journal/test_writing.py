"""`backplane.journal.writing`: what usual formatters and exporters make of a line."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from pythonjsonlogger.json import JsonFormatter

from backplane.journal.events import CLIENT_REFUSED, HANDLER_OVERSTAYED, LINK_LOST
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("backplane.test.writing")

FIELDS: dict[str, Any] = {
    "backplane.event": "client.refused",
    "backplane.what": "join",
    "backplane.connection": "9f2c",
    "backplane.client_key": "ada",
    "backplane.seconds": 0.5,
}


@pytest.fixture
def logged() -> Callable[[logging.Handler], None]:
    """Log one line with a handler."""

    def log(handler: logging.Handler) -> None:
        logger.addHandler(handler)
        try:
            write(
                logger,
                CLIENT_REFUSED,
                "refused a %(what)s of %(connection)s",
                what="join",
                connection="9f2c",
                client_key="ada",
                seconds=0.5,
                reason=None,
            )
        finally:
            logger.removeHandler(handler)

    return log


class Lines(logging.Handler):
    """Keeps formatted lines."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(self.format(record))


def test_formatter(logged: Callable[[logging.Handler], None]) -> None:
    """A format of the standard library names the fields, those that a line lacks have the default."""
    words = "%(backplane.event)s %(backplane.client_key)s %(backplane.channel)s %(message)s"
    handler = Lines(logging.Formatter(words, defaults={"backplane.channel": "-"}))
    logged(handler)
    assert handler.lines == ["client.refused ada - refused a join of 9f2c"]


def test_python_json_logger(logged: Callable[[logging.Handler], None]) -> None:
    """python-json-logger writes each field as it is, and the sentence as the message."""
    handler = Lines(JsonFormatter())
    logged(handler)
    (line,) = map(json.loads, handler.lines)
    line.pop("taskName", None)  # of Python 3.12
    assert line == {"message": "refused a join of 9f2c", **FIELDS}


def test_structlog(logged: Callable[[logging.Handler], None]) -> None:
    """Structlog has each field, and the sentence as its `event`."""
    handler = Lines(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logged(handler)
    (line,) = map(json.loads, handler.lines)
    assert line == {"event": "refused a join of 9f2c", **FIELDS}


@pytest.mark.filterwarnings("ignore:.LoggingHandler.:DeprecationWarning")  # it moves to a package of its own
def test_opentelemetry(logged: Callable[[logging.Handler], None]) -> None:
    """The logging handler of OpenTelemetry exports each field as an attribute."""
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    logged(LoggingHandler(logger_provider=provider))
    (exported,) = exporter.get_finished_logs()
    attributes = dict(exported.log_record.attributes or {})
    assert exported.log_record.body == "refused a join of 9f2c"
    assert {name: value for name, value in attributes.items() if name.startswith("backplane.")} == FIELDS


def test_line_breaks_are_escaped(caplog: pytest.LogCaptureFixture) -> None:
    """A field cannot begin a line of its own in a log of plain text, and a long one is cut."""
    write(logger, LINK_LOST, "lost", reason="one\nCRITICAL forged", old="x" * 5_000)
    fields = vars(caplog.records[0])
    assert fields["backplane.reason"] == "one\\nCRITICAL forged"
    assert len(fields["backplane.old"]) == 1_000
    assert caplog.messages == ["lost"]


def test_level_that_is_off(caplog: pytest.LogCaptureFixture) -> None:
    """A line at a level that is off is not made; the level of a call replaces that of its event."""
    caplog.set_level(logging.WARNING)
    write(logger, LINK_LOST, "hidden", level=logging.DEBUG)
    write(logger, LINK_LOST, "shown %(generation)d", level=logging.ERROR, generation=4)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("ERROR", "shown 4")]
    assert caplog.records[0].filename == "test_writing.py"


def test_password_in_a_url(caplog: pytest.LogCaptureFixture) -> None:
    """The password of a URL in an error, of a broker or a library, is masked in fields and sentences."""
    error = OSError("redis://ada:p@ss/word@one:1, then nats://bob@two:2, and amqp://:x@y")
    write(logger, LINK_LOST, "lost: %(reason)s", reason=error)
    write(logger, LINK_LOST, "lost: %(reason)s", reason="http://one:80/?to=a@b and http://[::1]:80/a@b")
    assert caplog.messages == [
        "lost: redis://ada:***@one:1, then nats://bob@two:2, and amqp://:***@y",
        "lost: http://one:80/?to=a@b and http://[::1]:80/a@b",
    ]


def test_level_that_is_off_and_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    """An event that no worker keeps is dropped where its level is off."""
    caplog.set_level(logging.WARNING)
    write(logger, HANDLER_OVERSTAYED, "hidden", level=logging.DEBUG)
    assert caplog.messages == []
